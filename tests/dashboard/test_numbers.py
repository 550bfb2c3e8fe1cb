"""Whatever a store holds, the numbers of the pages are those of the store: both are read, and compared.

A store is filled at random. What a page must show is computed here from MLflow's own client and from the predictions
in its artifacts, with scikit-learn, and not by the code that the pages use.
"""

import json
import re
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from flask import Flask
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score, recall_score

from dashboard.comparison import compare_runs
from dashboard.pages import compare, leaderboard, run, search, study_parts
from dashboard.pages import study as study_page
from dashboard.runs import Runs
from dashboard.searches import read_search
from dashboard.studies import read_study
from tests.dashboard.made_study import make_results
from vlm_core.evaluation.evaluation import evaluate
from vlm_core.evaluation.predictions import Predictions
from vlm_core.study.results_json import results_to_json
from vlm_core.tracking.store import connect
from vlm_core.tracking.writer import RunWriter

NAMES = ("Bags", "Shoes", "Tops")
TRAINED = (150, 50, 10)  # products of each: a frequent category, one in the middle and a rare one
UNSEEN = 25  # of the test products, the first ones
_FEW = settings(
    max_examples=2, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def _text(component):
    return json.dumps(component, default=lambda part: part.to_plotly_json(), ensure_ascii=False)


def _said(component):
    """All texts that a reader sees in a component, joined."""
    if isinstance(component, str | int | float):
        return str(component)
    if isinstance(component, list | tuple):
        return " | ".join(filter(None, map(_said, component)))
    parts = [getattr(component, name, None) for name in ("children", "title", "data")] if component is not None else []
    return " | ".join(
        _said(part) for part in parts if isinstance(part, str | list | tuple | int) or hasattr(part, "to_plotly_json")
    )


def _predictions(generator, labels, ids):
    scores = generator.normal(0, 1, (len(labels), len(NAMES))) + generator.uniform(0.5, 3) * np.eye(len(NAMES))[labels]
    logs = (scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))).astype(np.float32)
    return Predictions(ids, labels, logs, NAMES)


def _write_runs(generator, folder, count):
    """Write tested runs on one set of products, and return their ids."""
    labels = generator.integers(0, len(NAMES), 60)
    labels[:3] = range(3)
    ids, split, run_ids = [f"p{number}" for number in range(60)], f"{generator.integers(1 << 40):x}", []
    for number in range(count):
        evaluation = evaluate(
            _predictions(generator, labels, ids),
            pd.DataFrame(index=range(60)),
            np.full(3, 1 / 3),
            resamples=100,
            seed=0,
            trained=np.array(TRAINED),
            subsets={"unseen": np.arange(60) < UNSEEN},
        )
        with RunWriter("random", f"run {number}", folder=folder) as each:
            each.params({"model": str(generator.choice(["clip", "blip", "git"])), "mode": "probe", "seed": str(number)})
            leaks = str(generator.random() < 0.3).lower()
            data = {"fingerprint": "f", "label": "kind", "split": split, "catalogue": "shop", "protocol": "holdout"}
            each.tags({**data, "leaking": leaks, "weights_trained": str(generator.integers(1, 10**8))})
            each.evaluation(evaluation)
            seconds = float(generator.uniform(0.01, 5000))
            full = {"train_seconds_full": seconds + 10} if generator.random() < 0.5 else {}
            each.metrics({"train_seconds": seconds, "seconds_per_image": float(generator.uniform(1e-4, 2)), **full})
        run_ids.append(each.run_id)
    return run_ids


def _stored(client, run_id):
    """True and predicted categories by product, as MLflow's artifact of the run holds them."""
    with tempfile.TemporaryDirectory() as folder:
        path = client.download_artifacts(run_id, "evaluation/test/predictions.csv", folder)
        return pd.read_csv(path).sort_values("product_id")


def _predicted(client, run_id):
    table = _stored(client, run_id)
    return table["true"].to_numpy(), table["predicted"].to_numpy()


def _macro_f1(client, run_id):
    return f1_score(*_predicted(client, run_id), average="macro")


@pytest.mark.slow
@_FEW
@given(seed=st.integers(0, 2**32 - 1))
def test_leaderboard_run_and_compare_show_what_the_store_holds(store, seed):
    generator = np.random.default_rng(seed)
    run_ids = _write_runs(generator, store, 3)
    runs, client = Runs("", store), connect()
    runs.refresh()
    stored = {run_id: client.get_run(run_id).data for run_id in run_ids}
    _check_leaderboard(runs, stored)
    for run_id in run_ids:
        _check_run(runs, client, run_id, stored[run_id])
    _check_comparison(runs, client, run_ids)


def _check_leaderboard(runs, stored):
    chosen = next(row["set"] for row in runs.view().leaderboard.rows if row["run_id"] in stored)
    rows, *_ = leaderboard.update_grid(runs, True, 1, chosen, "", True, None)
    shown = {row["run_id"]: row for row in rows if "heading" not in row}
    assert set(shown) == set(stored)
    honest = sorted(
        (data.metrics["test_macro_f1"] for data in stored.values() if data.tags["leaking"] == "false"), reverse=True
    )
    for run_id, data in stored.items():
        row, metrics = shown[run_id], data.metrics
        names = {
            "score": "test_macro_f1",
            "low": "test_macro_f1_low",
            "high": "test_macro_f1_high",
            "accuracy": "test_accuracy",
        }
        names |= {f"f1_{name.lower()}": f"test_f1_{name.lower()}" for name in NAMES}
        for field, metric in names.items():
            assert row[field] == pytest.approx(metrics[metric], abs=5e-5)
        assert 0 <= row["low"] <= row["score"] <= row["high"] <= 1
        assert row["latency"] == pytest.approx(1000 * metrics["seconds_per_image"], abs=1e-4)  # in ms
        assert row["train"] == pytest.approx(metrics.get("train_seconds_full", metrics["train_seconds"]), abs=1e-4)
        assert row.get("train_partial", False) is ("train_seconds_full" not in metrics)
        assert row["trained_weights"] == float(data.tags["weights_trained"])
        assert row.get("rank") == (
            honest.index(metrics["test_macro_f1"]) + 1 if data.tags["leaking"] == "false" else None
        )
    order = [row["run_id"] for row in rows if "heading" not in row]
    assert order == sorted(
        order, key=lambda name: (stored[name].tags["leaking"], -stored[name].metrics["test_macro_f1"])
    )


def _check_run(runs, client, run_id, data):
    true, predicted = _predicted(client, run_id)
    with Flask("test").app_context():
        tiles, details = run.update_details(runs, run_id, "")
    said, metrics = _said(tiles), data.metrics
    assert f"Macro-F1 | {f1_score(true, predicted, average='macro'):.3f} | " in said
    assert f"{metrics['test_macro_f1_low']:.3f} to {metrics['test_macro_f1_high']:.3f}" in said
    assert f"Accuracy | {accuracy_score(true, predicted):.3f} | " in said
    recalls = dict(zip(NAMES, recall_score(true, predicted, labels=NAMES, average=None), strict=True))
    worst = min(recalls, key=recalls.get)
    assert f"Worst recall: {worst} | {recalls[worst]:.3f} | of {(true == worst).sum()} product" in said
    assert f"{int(data.tags['weights_trained']):,} weights trained" in said
    table = next(cell for cell in _tables(details) if cell["head"][0] == "Category")["body"]
    f1 = dict(zip(NAMES, f1_score(true, predicted, labels=NAMES, average=None), strict=True))
    for category, count, _, recall, score in table:
        assert (count, recall) == (f"{(true == category).sum():,}", f"{recalls[category]:.3f}")
        _check_score(score, f1[category])
    _check_parts(details, _stored(client, run_id), f1)
    figure = run.update_confusion(runs, 99, "counts", 1, run_id)[0]
    for i, one in enumerate(NAMES):
        for j, other in enumerate(NAMES):
            assert figure.data[0].z[i][j] == ((true == one) & (predicted == other)).sum()


def _check_parts(details, stored, f1):
    """Check the scores of frequent and rare categories, and those of the products that no weights have seen."""
    tables = {table["head"][0]: table["body"] for table in _tables(details)}
    for (_, _, categories, products, score), name in zip(tables["Part"], NAMES, strict=True):
        assert (categories, products) == ("1", str((stored["true"] == name).sum()))
        _check_score(score, f1[name])
    ((_, products, accuracy, score),) = tables["Test products"]
    few = stored[stored["product_id"].str.removeprefix("p").astype(int) < UNSEEN]
    assert products == f"{UNSEEN} of {len(stored)}"
    _check_score(accuracy, accuracy_score(few["true"], few["predicted"]))
    present = sorted(set(few["true"]))
    _check_score(score, f1_score(few["true"], few["predicted"], labels=present, average="macro"))


def _check_score(text, expected):
    value, low, high = map(float, re.findall(r"\d\.\d+", text))
    assert value == pytest.approx(expected, abs=6e-4) and 0 <= low <= value <= high <= 1


def _tables(component):
    """The data of every table in a component."""
    found = re.findall(r'\{"head": .*?\]\]\}', _text(component).replace("\n", " "))
    return [json.loads(part) for part in found]


def _check_comparison(runs, client, run_ids):
    comparison = compare_runs(runs, run_ids)
    body = compare.update_body(runs, run_ids)
    (table,) = [each for each in _tables(body) if each["head"][1:2] == ["Only A correct : only B correct"]]
    assert len(table["body"]) == 3
    names = dict(zip(comparison.names, run_ids, strict=True))
    labels = {choice["label"]: choice["value"] for choice in compare.pair_choices(comparison, comparison.largest_group)}
    for sentence, counts, _, agreement, _ in table["body"]:
        a, b = sorted((name for name in names if name in sentence), key=sentence.index)
        (true, of_a), (_, of_b) = (_predicted(client, names[name]) for name in (a, b))
        gap = 100 * (_macro_f1(client, names[a]) - _macro_f1(client, names[b]))
        points = float(re.search(r"(-?\d+\.\d) points", sentence)[1])
        low, high = map(float, re.search(r"interval (-?\d+\.\d) to (-?\d+\.\d)", sentence).groups())
        assert gap >= -1e-9 and points == pytest.approx(gap, abs=0.051) and low <= points <= high
        only_a, only_b = ((of_a == true) & (of_b != true)).sum(), ((of_a != true) & (of_b == true)).sum()
        assert counts == f"{only_a} : {only_b}"
        assert agreement == f"{(of_a == of_b).mean():.1%}"
        value = labels[f"{a} \u2212 {b}"]  # the same order wherever the pair is named
        shown = np.array(compare.update_difference(runs, value, run_ids).data[0].z)
        shares = [
            pd.crosstab(pd.Categorical(true, NAMES), pd.Categorical(each, NAMES), dropna=False, normalize="index")
            for each in (of_a, of_b)
        ]
        np.testing.assert_allclose(shown, (shares[0] - shares[1]).to_numpy(), atol=1e-6)


@pytest.mark.slow
@_FEW
@given(seed=st.integers(0, 2**32 - 1))
def test_the_search_page_shows_what_the_store_holds(store, seed):
    generator = np.random.default_rng(seed)
    with RunWriter("random", "search", folder=store) as leader:
        leader.tags({"kind": "search", "search_name": "s"})
        leader.params({"model": "clip", "search": "learning_rate,batch_size"})
        for number in range(4):
            with RunWriter("random", f"trial {number}", folder=store, parent=leader.run_id) as trial:
                trial.tags({"kind": "trial", **({"pruned": "true"} if number == 3 else {})})
                rate, size = 10 ** generator.uniform(-6, -1), int(generator.integers(8, 512))
                trial.params({"learning_rate": str(rate), "batch_size": str(size)})
                trial.metrics({"validation_macro_f1": float(generator.random())}, step=1)
                best = {} if number == 3 else {"best_validation_macro_f1": float(generator.random())}
                trial.metrics({"seconds_per_image": float(generator.uniform(1e-4, 1)), **best})
    with RunWriter("random", "s-winner", folder=store, parent=leader.run_id) as winner:
        winner.metrics({"test_macro_f1": 0.5432, "test_macro_f1_low": 0.5, "test_macro_f1_high": 0.6})
    runs, client = Runs("", store), connect()
    runs.refresh()
    found = read_search(runs.table(), leader.run_id)
    grid = next(part for part in search._trials_card(found)._traverse() if hasattr(part, "rowData"))
    best = 0.0
    for row in grid.rowData:
        data = client.get_run(row["run_id"]).data
        complete = "pruned" not in data.tags
        metric = "best_validation_macro_f1" if complete else "validation_macro_f1"
        assert row["score"] == pytest.approx(data.metrics[metric], abs=5e-5)
        assert row["state"] == ("complete" if complete else "pruned")
        assert row["ms"] == pytest.approx(1000 * data.metrics["seconds_per_image"], abs=0.005)
        assert row["setting_learning_rate"] == float(data.params["learning_rate"])  # as a number, so that it sorts
        best = max(best, data.metrics[metric]) if complete else best
    said = _said(search.update_body(runs, leader.run_id, 1))
    assert f"Best validation macro-F1 | {best:.4f}" in said and "0.5432" in said and "0.5000 to 0.6000" in said


SCORES = ("headline_macro_f1", "accuracy", "worst_recall", "natural_macro_f1")


@pytest.mark.slow
@_FEW
@given(seed=st.integers(0, 2**32 - 1))
def test_the_study_page_shows_what_the_store_holds(store, seed):
    generator = np.random.default_rng(seed)
    with RunWriter("random", "study", folder=store) as leader:
        leader.tags({"kind": "study", "study": "s", "cells": "4"})
        cells = {}
        for number in range(2):
            key = f"clip/probe/classify/holdout/{number}"
            with RunWriter("random", key, folder=store, parent=leader.run_id) as cell:
                cell.metrics({"test_macro_f1": float(generator.random())})
            cells[key] = cell.run_id
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder, "results.json")
            place.write_text(_at_random(results_to_json(make_results(leader.run_id, cells)), generator))
            leader.artifact(place, "study")
    runs, client = Runs("", store), connect()
    runs.refresh()
    read = read_study(runs, leader.run_id)
    progress = _text(study_parts.progress_card(read))
    assert "2 of 4 runs done" in progress
    for run_id in cells.values():
        assert (
            f'{{"text": "{client.get_run(run_id).data.metrics["test_macro_f1"]:.3f}", "href": "/run?run={run_id}"'
            in progress
        )
    with tempfile.TemporaryDirectory() as folder:
        stored = json.loads(Path(client.download_artifacts(leader.run_id, "study/results.json", folder)).read_text())
    _check_study(study_page.update_body(runs, None, leader.run_id)[0], stored)


def _at_random(text, generator):
    """The results with scores and pairs at random, some of them as no interval of a score can be."""
    results = json.loads(text)
    for row in results["scores"]:
        for name in SCORES:
            value, reach = generator.random(), generator.choice([0.02, 3.0])
            row[name] = {"value": value, "low": value - reach, "high": value + reach}
    for pair in results["pairs"]:
        value = float(generator.uniform(-0.3, 0.3))
        pair["test"]["difference"] = {"value": value, "low": value - 0.02, "high": value + 0.02}
        pair["test"]["only_a_correct"], pair["test"]["only_b_correct"] = generator.integers(0, 99, 2).tolist()
    return json.dumps(results)


def _check_study(cards, stored):
    grids = {grid.columnDefs[0]["headerName"]: grid for grid in cards._traverse() if hasattr(grid, "rowData")}
    tables = [grid for grid in cards._traverse() if hasattr(grid, "rowData")]
    rows = {row["label"]: row for row in stored["scores"]}
    scores = next(grid for grid in tables if grid.columnDefs[2]["headerName"] == "Macro-F1")
    shown = [[row[str(place)] for place in range(6)] for row in scores.rowData]
    assert len(shown) == sum(row["kind"] != "mechanism" for row in stored["scores"])
    for label, seeds, *values in shown:
        row = rows[label["text"]]
        assert seeds == str(len(row["seeds"]))
        for text, name in zip(values, SCORES, strict=True):
            value, low, high = map(float, re.findall(r"-?\d+\.\d+", text))
            assert value == pytest.approx(row[name]["value"], abs=6e-4) and 0 <= low <= value <= high <= 1
    first = [float(re.match(r"[\d.]+", values[2])[0]) for values in shown]
    assert first == sorted(first, reverse=True)
    pair = next(pair for pair in stored["pairs"] if pair["group"] == "families")
    test, turned = pair["test"], pair["test"]["difference"]["value"] < 0
    a, b = (pair["b"], pair["a"]) if turned else (pair["a"], pair["b"])
    (row,) = grids["A \u2212 B"].rowData
    assert row["0"] == f"{a} \u2212 {b}" and row["1"].startswith(f"+{abs(test['difference']['value']):.3f}")
    counts = (test["only_a_correct"], test["only_b_correct"])
    assert row["5"] == "{} : {}".format(*(reversed(counts) if turned else counts))

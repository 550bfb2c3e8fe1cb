"""Whatever a store holds, the numbers of the pages are those of the store: both are read, and compared.

A store is filled at random. What a page must show is computed here from MLflow's own client and from the predictions
in its artifacts, with scikit-learn, and not by the code that the pages use.
"""

import json
import re
import tempfile
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from flask import Flask
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn.metrics import accuracy_score, cohen_kappa_score, f1_score, precision_score, recall_score

from dashboard.comparison import compare_runs
from dashboard.pages import compare, leaderboard, run
from dashboard.runs import Runs
from tests.dashboard.shown import FEW, said_by, text_of
from vlm_core.evaluation.bootstrap import Estimate
from vlm_core.evaluation.evaluation import evaluate
from vlm_core.evaluation.level_scores import LevelScore, LevelsScore
from vlm_core.evaluation.predictions import Predictions
from vlm_core.evaluation.summary import summarise
from vlm_core.tracking.store import connect
from vlm_core.tracking.writer import RunWriter
from vlm_core.training.loop import EpochReport

NAMES = ("Bags", "Shoes", "Tops")
TRAINED = (150, 50, 10)  # products of each: a frequent category, one in the middle and a rare one
UNSEEN = 25  # of the test products, the first ones
PRIOR = np.array([0.6, 0.3, 0.1])
EPOCHS = 3
UNITS = {"s": 1, "min": 60, "h": 3600}


def _predictions(generator, labels, ids):
    scores = generator.normal(0, 1, (len(labels), len(NAMES))) + generator.uniform(0.5, 3) * np.eye(len(NAMES))[labels]
    logs = (scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))).astype(np.float32)
    return Predictions(ids, labels, logs, NAMES)


def _summary(generator):
    labels, predicted = generator.integers(0, 3, (2, 40))
    labels[:3] = range(3)
    return summarise(labels, predicted, NAMES, float(generator.random()))


def _write_runs(generator, folder, count):
    """Write tested runs on one set of products, and return their ids."""
    labels = generator.integers(0, len(NAMES), 60)
    labels[:3] = range(3)
    ids, split, run_ids = [f"p{number}" for number in range(60)], f"{generator.integers(1 << 40):x}", []
    for number in range(count):
        evaluation = evaluate(
            _predictions(generator, labels, ids),
            pd.DataFrame({"sold": ["here" if number % 2 else "there" for number in range(60)]}),
            PRIOR,
            resamples=100,
            seed=0,
            trained=np.array(TRAINED),
            subsets={"unseen": np.arange(60) < UNSEEN},
        )
        with RunWriter("random", f"run {number}", folder=folder) as each:
            each.params({"model": str(generator.choice(["clip", "blip", "git"])), "mode": "probe", "seed": str(number)})
            leaks = str(generator.random() < 0.3).lower()
            shares = {"leakage": str(generator.random()), "leakage_pretraining": str(generator.random())}
            data = {"fingerprint": "f", "label": "kind", "split": split, "catalogue": "shop", "protocol": "holdout"}
            each.tags({**data, **shares, "leaking": leaks, "weights_trained": str(generator.integers(1, 10**8))})
            for epoch in range(1, EPOCHS + 1):
                parts = (_summary(generator), _summary(generator))
                each.epoch(EpochReport(epoch, EPOCHS, *parts, 0.1, 1.0, True, False, ""), plot=False)
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


def _confusion(client, run_id):
    true, predicted = _predicted(client, run_id)
    return pd.crosstab(pd.Categorical(true, NAMES), pd.Categorical(predicted, NAMES), dropna=False).to_numpy()


def _row_shares(client, run_id):
    matrix = _confusion(client, run_id)
    return matrix / matrix.sum(axis=1, keepdims=True)


def _history(client, run_id, name):
    return [metric.value for metric in client.get_metric_history(run_id, name)]


def _check_seconds(text, seconds):
    """Check a duration, which is rounded to its last digit."""
    number, unit = re.search(r"(\d+\.?\d*) (s|min|h)", text).groups()
    digit = 10.0 ** -len(number.partition(".")[2]) * UNITS[unit]
    assert abs(float(number) * UNITS[unit] - seconds) <= digit / 2 + 1e-6


def _macro_f1(client, run_id):
    return f1_score(*_predicted(client, run_id), average="macro")


@pytest.mark.slow
@FEW
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
    for heading in (row for row in rows if "heading" in row):
        assert heading["count"] == sum(row["band"] == heading["band"] for row in shown.values())
    _check_warning(runs, stored, chosen)
    _check_scatter(runs, stored, chosen)
    order = [row["run_id"] for row in rows if "heading" not in row]
    assert order == sorted(
        order, key=lambda name: (stored[name].tags["leaking"], -stored[name].metrics["test_macro_f1"])
    )


def _check_warning(runs, stored, chosen):
    """Check the largest shares that leak, of the runs that do."""
    leaking = [data.tags for data in stored.values() if data.tags["leaking"] == "true"]
    said = said_by(leaderboard.update_grid(runs, True, 1, chosen, "", True, None)[3])
    assert bool(said) is bool(leaking)
    shares = re.findall(r"up to (\d+\.\d)%", said)
    expected = [max(float(tags[name]) for tags in leaking) for name in ("leakage", "leakage_pretraining") if leaking]
    assert [float(share) for share in shares] == [pytest.approx(100 * share, abs=0.051) for share in expected]


def _check_scatter(runs, stored, chosen):
    """Check the points and the front: what costs more scores higher, and nothing else is as good for less."""
    for cost in ("train", "latency", "trained_weights"):
        figure = next(
            part.figure
            for part in leaderboard.update_scatter(runs, True, 1, chosen, cost)._traverse()
            if getattr(part, "id", None) == "leaderboard-figure"
        )
        points = {}
        for trace in (each for each in figure.data if each.mode == "markers"):
            for x, y, (_, _, run_id) in zip(trace.x, trace.y, trace.customdata, strict=True):
                points[run_id] = (x, y)
        assert set(points) == set(stored)
        for run_id, (x, y) in points.items():
            data = stored[run_id]
            seconds = data.metrics.get("train_seconds_full", data.metrics["train_seconds"])
            expected = {
                "train": seconds,
                "latency": 1000 * data.metrics["seconds_per_image"],
                "trained_weights": float(data.tags["weights_trained"]),
            }
            assert x == pytest.approx(expected[cost], abs=1e-4)
            assert y == pytest.approx(data.metrics["test_macro_f1"], abs=5e-5)
        front = [trace for trace in figure.data if trace.mode == "lines"]
        usable = [points[name] for name in points if cost != "train" or "train_seconds_full" in stored[name].metrics]
        best = sorted(p for p in usable if not any(q != p and q[0] <= p[0] and q[1] >= p[1] for q in usable))
        assert [list(zip(trace.x, trace.y, strict=True)) for trace in front] == ([best] if len(best) > 1 else [])


def _check_run(runs, client, run_id, data):
    true, predicted = _predicted(client, run_id)
    with Flask("test").app_context():
        tiles, details = run.update_details(runs, run_id, "")
    said, metrics = said_by(tiles), data.metrics
    _check_tiles(tiles, client, run_id, data)
    _check_curves(runs, client, run_id)
    _check_matrices(runs, client, run_id)
    _check_calibration(details, client, run_id, metrics)
    _check_mistakes(details, _stored(client, run_id))
    assert f"Macro-F1 | {f1_score(true, predicted, average='macro'):.3f} | " in said
    assert f"{metrics['test_macro_f1_low']:.3f} to {metrics['test_macro_f1_high']:.3f}" in said
    assert f"Accuracy | {accuracy_score(true, predicted):.3f} | " in said
    recalls = dict(zip(NAMES, recall_score(true, predicted, labels=NAMES, average=None), strict=True))
    worst = min(recalls, key=recalls.get)
    assert f"Worst recall: {worst} | {recalls[worst]:.3f} | of {(true == worst).sum()} product" in said
    assert f"{int(data.tags['weights_trained']):,} weights trained" in said
    table = next(cell for cell in _tables(details) if cell["head"][0] == "Category")["body"]
    f1 = dict(zip(NAMES, f1_score(true, predicted, labels=NAMES, average=None), strict=True))
    precisions = dict(zip(NAMES, precision_score(true, predicted, labels=NAMES, average=None), strict=True))
    for category, count, precision, recall, score in table:
        assert precision == f"{precisions[category]:.3f}"
        assert (count, recall) == (f"{(true == category).sum():,}", f"{recalls[category]:.3f}")
        _check_score(score, f1[category])
    _check_parts(details, _stored(client, run_id), f1)


@pytest.mark.slow
@FEW
@given(seed=st.integers(0, 2**32 - 1))
def test_label_levels_are_shown_as_the_store_holds_them(store, seed):
    generator = np.random.default_rng(seed)
    scores = [Estimate(value, low, high) for low, value, high in np.sort(generator.random((4, 3))).tolist()]
    levels = [
        LevelScore(label, number + 2, 60, *scores[2 * number : 2 * number + 2], *generator.random(2).tolist())
        for number, label in enumerate(("group", "kind"))
    ]
    labels = np.arange(60) % len(NAMES)
    predictions = _predictions(generator, labels, [f"p{number}" for number in range(60)])
    evaluation = evaluate(predictions, pd.DataFrame(index=range(60)), PRIOR, resamples=50, seed=0)
    with RunWriter("random", "levels", folder=store) as made:
        made.evaluation(replace(evaluation, levels=LevelsScore(tuple(levels), 60, *generator.random(4).tolist())))
    runs, client = Runs("", store), connect()
    runs.refresh()
    metrics = client.get_run(made.run_id).data.metrics
    with Flask("test").app_context():
        _, details = run.update_details(runs, made.run_id, "")
    (table,) = (table for table in _tables(details) if table["head"][0] == "Label")
    for row, label in zip(table["body"], ("group", "kind"), strict=True):
        shown = [list(map(float, re.findall(r"\d\.\d+", text))) for text in row[2:]]
        for numbers, name in zip(shown[::2], ("accuracy", "macro_f1"), strict=True):
            whole = f"{label}_test_{name}"
            assert numbers == pytest.approx([metrics[f"{whole}{end}"] for end in ("", "_low", "_high")], abs=6e-4)
        alone = [metrics[f"{label}_test_{name}_without_rule"] for name in ("accuracy", "macro_f1")]
        assert [numbers[0] for numbers in shown[1::2]] == pytest.approx(alone, abs=6e-4)
    f1, inconsistent = (
        [metrics[f"test_{name}"], metrics[f"test_{name}_without_rule"]] for name in ("hierarchical_f1", "inconsistent")
    )
    said = said_by(details)
    assert "Hierarchical F1 {:.3f} ({:.3f} without the rule)".format(*f1) in said
    assert "Inconsistent predictions: {:.2%} ({:.2%} without the rule)".format(*inconsistent) in said


def _check_tiles(tiles, client, run_id, data):
    said, metrics = said_by(tiles), data.metrics
    weighted = _row_shares(client, run_id) * PRIOR[:, None]
    natural = np.mean(2 * np.diag(weighted) / (weighted.sum(axis=0) + weighted.sum(axis=1)))
    low, high = (metrics[f"test_natural_macro_f1_{end}"] for end in ("low", "high"))
    assert f"Macro-F1, natural prior | {natural:.3f} | {low:.3f} to {high:.3f}" in said
    assert "Test products | 60 | 3 categories" in said
    seconds = metrics.get("train_seconds_full", metrics["train_seconds"])
    text = re.search(r"Training \| ([^|]+) \|", said)[1]
    _check_seconds(text, seconds)
    saved = re.search(r"trained, (.*) of this saved by the feature cache", said)
    assert bool(saved) is ("train_seconds_full" in metrics)
    if saved:
        _check_seconds(saved[1], seconds - metrics["train_seconds"])


def _check_curves(runs, client, run_id):
    figure = run.update_curves(runs, 1, run_id, None, None)[0]
    names = ("train_loss", "validation_loss", "train_macro_f1", "validation_macro_f1")
    for trace, name in zip(figure.data, names, strict=True):
        assert list(trace.x) == [1, 2, 3]
        np.testing.assert_allclose(trace.y, _history(client, run_id, name), atol=1e-6)


def _check_matrices(runs, client, run_id):
    """Check the matrix of the test split and, by the recalls that MLflow holds, those of the epochs."""
    counts, share = (run.update_confusion(runs, 99, kind, 1, run_id)[0] for kind in ("counts", "share"))
    np.testing.assert_array_equal(counts.data[0].z, _confusion(client, run_id))
    np.testing.assert_allclose(share.data[0].z, _row_shares(client, run_id))
    matrices = [np.array(run.update_confusion(runs, epoch, "counts", 1, run_id)[0].data[0].z) for epoch in (1, 2, 3)]
    for place, name in enumerate(NAMES):
        recalls = [matrix[place, place] / matrix[place].sum() for matrix in matrices]
        np.testing.assert_allclose(recalls, _history(client, run_id, f"validation_recall_{name.lower()}"), atol=1e-6)
    change = run.update_confusion(runs, 2, "difference", 1, run_id)[0].data[0].z
    np.testing.assert_array_equal(change, matrices[1] - matrices[0])


def _check_calibration(details, client, run_id, metrics):
    figures = {getattr(part, "id", None): part.figure for part in details._traverse() if hasattr(part, "figure")}
    ece, brier, nll = (metrics[f"test_{name}"] for name in ("ece", "brier", "nll"))
    assert f"ECE {ece:.3f} · Brier {brier:.3f} · NLL {nll:.3f}" in text_of(details).replace("\\u00b7", "·")
    table = _stored(client, run_id)
    correct = table["true"] == table["predicted"]
    _, line, bars = figures["run-reliability"].data
    counts = [n for n in bars.y if n]
    assert sum(counts) == len(table)
    np.testing.assert_allclose(np.dot(counts, line.y), correct.sum(), atol=1e-3)
    np.testing.assert_allclose(np.dot(counts, line.x), table["confidence"].sum(), atol=1e-3)
    (groups,) = figures["run-subgroups-0"].data
    odd = table["product_id"].str.removeprefix("p").astype(int) % 2 == 1
    expected = {"here  (n 30)": correct[odd].mean(), "there  (n 30)": correct[~odd].mean()}
    assert dict(zip(groups.y, groups.x, strict=True)) == pytest.approx(expected)
    assert all(
        x - low >= 0 and x + high <= 1
        for x, low, high in zip(groups.x, groups.error_x.arrayminus, groups.error_x.array, strict=True)
    )


def _check_mistakes(details, table):
    """Check that the gallery shows the most confident mistakes, in that order."""
    wrong = table[table["true"] != table["predicted"]].sort_values("confidence", ascending=False).head(24)
    found = re.findall(r"true  \| (\w+) \| \npredicted  \| (\w+) \| \nconfidence (\d+)%\n(\w+)", said_by(details))
    expected = [
        (true, predicted, f"{confidence:.0%}"[:-1], product)
        for product, true, predicted, confidence in wrong[["product_id", "true", "predicted", "confidence"]].itertuples(
            index=False
        )
    ]
    assert sorted(found) == sorted(expected) and [each[2] for each in found] == [each[2] for each in expected]


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
    found = re.findall(r'\{"head": .*?\]\]\}', text_of(component).replace("\n", " "))
    return [json.loads(part) for part in found]


def _check_comparison(runs, client, run_ids):
    comparison = compare_runs(runs, run_ids)
    body = compare.update_body(runs, run_ids)
    (table,) = [each for each in _tables(body) if each["head"][1:2] == ["Only A correct : only B correct"]]
    assert len(table["body"]) == 3
    names = dict(zip(comparison.names, run_ids, strict=True))
    labels = {choice["label"]: choice["value"] for choice in compare.pair_choices(comparison, comparison.largest_group)}
    _check_run_cards(body, client, comparison, run_ids)
    _check_compared_figures(body, client, comparison)
    _check_seeds(body, client, run_ids)
    _check_disagreements(runs, client, run_ids)
    for sentence, counts, mcnemar, agreement, kappa in table["body"]:
        a, b = sorted((name for name in names if name in sentence), key=sentence.index)
        (true, of_a), (_, of_b) = (_predicted(client, names[name]) for name in (a, b))
        gap = 100 * (_macro_f1(client, names[a]) - _macro_f1(client, names[b]))
        points = float(re.search(r"(-?\d+\.\d) points", sentence)[1])
        low, high = map(float, re.search(r"interval (-?\d+\.\d) to (-?\d+\.\d)", sentence).groups())
        assert gap >= -1e-9 and points == pytest.approx(gap, abs=0.051) and low <= points <= high
        only_a, only_b = ((of_a == true) & (of_b != true)).sum(), ((of_a != true) & (of_b == true)).sum()
        assert counts == f"{only_a} : {only_b}"
        assert agreement == f"{(of_a == of_b).mean():.1%}"
        assert kappa == f"{cohen_kappa_score(of_a, of_b):.2f}"
        exact = binomtest(min(only_a, only_b), only_a + only_b).pvalue if only_a + only_b else 1.0
        corrected = float(re.match(r"(?:< )?([\d.]+)", mcnemar)[1])
        assert exact - 6e-4 <= corrected <= min(1, 6 * exact) + 1e-3  # Holm's, over two tests of three pairs
        value = labels[f"{a} \u2212 {b}"]  # the same order wherever the pair is named
        shown = np.array(compare.update_difference(runs, value, run_ids).data[0].z)
        shares = [_row_shares(client, names[name]) for name in (a, b)]
        np.testing.assert_allclose(shown, shares[0] - shares[1], atol=1e-6)


def _check_run_cards(body, client, comparison, run_ids):
    said = said_by(body)
    for name, run_id in zip(comparison.names, run_ids, strict=True):
        metrics = client.get_run(run_id).data.metrics
        score, low, high = (metrics[f"test_macro_f1{end}"] for end in ("", "_low", "_high"))
        after = said[said.index(f"{name} | ") :]
        assert f"{score:.3f} | macro-F1, {low:.3f} to {high:.3f} | " in after[:200]
        _check_seconds(
            re.search(r"\| ([^|]*) training", after)[1], metrics.get("train_seconds_full", metrics["train_seconds"])
        )


def _check_compared_figures(body, client, comparison):
    figures = {getattr(part, "id", None): part.figure for part in body._traverse() if hasattr(part, "figure")}
    lines = list(figures["compare-curves"].data)
    for place, each in enumerate(comparison.runs):
        for trace, name in zip(lines[2 * place : 2 * place + 2], ("loss", "macro_f1"), strict=True):
            np.testing.assert_allclose(trace.y, _history(client, each.run_id, f"validation_{name}"), atol=1e-6)
        bars = figures["compare-bars"].data[place]
        metrics = client.get_run(each.run_id).data.metrics
        assert dict(zip(bars.x, bars.y, strict=True)) == pytest.approx(
            {name: metrics[f"test_f1_{name.lower()}"] for name in NAMES}
        )
        np.testing.assert_allclose(figures["compare-confusions"].data[place].z, _row_shares(client, each.run_id))
    shown = figures["compare-agreement"].data[0].z
    predicted = [_predicted(client, comparison.runs[place].run_id)[1] for place in comparison.largest_group]
    np.testing.assert_allclose(shown, [[(one == other).mean() for other in predicted] for one in predicted])


def _check_seeds(body, client, run_ids):
    """Check mean and deviation of the runs that differ in their seed alone."""
    scores = {}
    for run_id in run_ids:
        data = client.get_run(run_id).data
        scores.setdefault(f"{data.params['model']} probe", []).append(data.metrics["test_macro_f1"])
    rows = [table["body"] for table in _tables(body) if table["head"][:2] == ["Configuration", "Seeds"]]
    expected = [
        [name, str(len(values)), f"{np.mean(values):.3f}", f"{np.std(values, ddof=1):.3f}"]
        for name, values in scores.items()
        if len(values) > 1
    ]
    assert rows == ([expected] if expected else [])


def _check_disagreements(runs, client, run_ids):
    true = _predicted(client, run_ids[0])[0]
    predicted = np.stack([_predicted(client, run_id)[1] for run_id in run_ids])
    differ, correct = (predicted != predicted[0]).any(axis=0), predicted == true
    alone = correct[1] & (correct.sum(axis=0) == 1)
    for choice, chosen in (("all", differ), ("nobody", differ & ~correct.any(axis=0)), ("1", differ & alone)):
        said = said_by(compare.update_gallery(runs, choice, run_ids))
        assert f"{chosen.sum()} of 60 products" in said if chosen.any() else "No such products" in said

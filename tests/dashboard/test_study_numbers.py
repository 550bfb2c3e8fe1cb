"""The numbers of the Search and the Study page are those of the store: both are read, and compared.

See test_numbers.py. What a page must show is computed from MLflow's own client, and not by the code that it uses.
"""

import json
import re
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dashboard.pages import search, study_parts
from dashboard.pages import study as study_page
from dashboard.runs import Runs
from dashboard.searches import read_search
from dashboard.studies import read_study
from tests.dashboard.made_study import _pair, about, make_results
from tests.dashboard.shown import FEW, said_by, text_of
from vlm_core.study.report_contents import cell_texts
from vlm_core.study.results import FusionResults, FusionRow, TextLeakRow
from vlm_core.study.results_json import results_to_json
from vlm_core.study.sections import make_sections
from vlm_core.tracking.store import connect
from vlm_core.tracking.writer import RunWriter

PRUNED = 3  # of the trials of a search


@pytest.mark.slow
@FEW
@given(seed=st.integers(0, 2**32 - 1))
def test_the_search_page_shows_what_the_store_holds(store, seed):
    generator = np.random.default_rng(seed)
    with RunWriter("random", "search", folder=store) as leader:
        leader.tags({"kind": "search", "search_name": "s"})
        objectives = {"search_objectives": "score,seconds"}
        leader.params({"model": "clip", "search": "learning_rate,batch_size", **objectives})
        for number in range(6):
            with RunWriter("random", f"trial {number}", folder=store, parent=leader.run_id) as trial:
                trial.tags({"kind": "trial", **({"pruned": "true"} if number == PRUNED else {})})
                rate, size = 10 ** generator.uniform(-6, -1), int(generator.integers(8, 512))
                trial.params({"learning_rate": str(rate), "batch_size": str(size)})
                trial.metrics({"validation_macro_f1": float(generator.random())}, step=1)
                best = {} if number == PRUNED else {"best_validation_macro_f1": float(generator.random())}
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
    assert len(grid.rowData) == 6
    cards = search.update_body(runs, leader.run_id, 1)
    _check_search_figures(cards, {row["number"]: client.get_run(row["run_id"]).data for row in grid.rowData})
    said = said_by(cards)
    (first,) = (
        data
        for data in map(client.get_run, (row["run_id"] for row in grid.rowData))
        if data.data.metrics.get("best_validation_macro_f1") == best
    )
    settings = ", ".join(f"{name} {float(first.data.params[name]):.4g}" for name in ("learning_rate", "batch_size"))
    assert "Complete | 5 | 0 running" in said and "Pruned | 1 | 0 failed" in said
    assert f"Settings searched | 2 | best: {settings}" in said
    assert f"Best validation macro-F1 | {best:.4f}" in said and "0.5432" in said and "0.5000 to 0.6000" in said


def _check_search_figures(cards, trials):
    """Check every point of the figures: `trials` is what MLflow holds of each, by number."""
    figures = {getattr(part, "id", None): part.figure for part in cards._traverse() if hasattr(part, "figure")}
    complete = {number: data for number, data in trials.items() if number != PRUNED}
    scores = {number: data.metrics["best_validation_macro_f1"] for number, data in sorted(complete.items())}
    shown = {**scores, PRUNED: trials[PRUNED].metrics["validation_macro_f1"]}
    best, *states = figures["search-history"].data
    assert list(best.x) == list(scores)
    np.testing.assert_allclose(best.y, np.maximum.accumulate(list(scores.values())))
    points = {x: y for trace in states for x, y in zip(trace.x, trace.y, strict=True)}
    assert points == pytest.approx(shown)
    for trace, (name, state) in zip(
        figures["search-slices"].data,
        [(name, state) for name in ("learning_rate", "batch_size") for state in ("complete", "pruned")],
        strict=True,
    ):
        assert trace.name == state and len(trace.x) == (len(complete) if state == "complete" else 1)
        for number, x, y in zip(trace.customdata, trace.x, trace.y, strict=True):
            assert x == float(trials[number].params[name]) and y == pytest.approx(shown[number])
    lines = {int(line.hovertemplate.split()[1]): line for line in figures["search-parallel"].data}
    assert set(lines) == set(trials)
    for number, data in trials.items():
        values = [*(float(data.params[name]) for name in ("learning_rate", "batch_size")), shown[number]]
        assert list(lines[number].customdata) == [f"{value:.4g}" for value in values]
    places = [lines[number].y[-1] for number in sorted(shown, key=shown.get)]
    assert places == sorted(places) and (places[0], places[-1]) == (0, 1)
    front, all_trials = figures["search-pareto"].data
    cost = {number: data.metrics["seconds_per_image"] for number, data in complete.items()}
    for number, x, y in zip(all_trials.customdata, all_trials.x, all_trials.y, strict=True):
        assert (x, y) == (pytest.approx(cost[number]), pytest.approx(scores[number]))
    best_for_less = sorted(
        (cost[one], scores[one])
        for one in scores
        if not any(cost[other] < cost[one] and scores[other] >= scores[one] for other in scores)
    )
    assert list(zip(front.x, front.y, strict=True)) == best_for_less
    (bars,) = figures["search-importances"].data
    assert sum(bars.x) == pytest.approx(1) and set(bars.y) == {"learning_rate", "batch_size"}


# Parts of a study's results whose tables are checked number by number, with the keys of their sections.
ELSEWHERE = (
    *("held_out", "leak", "robustness", "calibration", "faithfulness", "gaps", "decoding", "cost"),
    *("label_audit", "continual"),
)
SCORES = ("headline_macro_f1", "accuracy", "worst_recall", "natural_macro_f1")


@pytest.mark.slow
@FEW
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
            made = replace(make_results(leader.run_id, cells), fusion=_made_fusion())
            place.write_text(_at_random(results_to_json(made), generator))
            leader.artifact(place, "study")
    runs, client = Runs("", store), connect()
    runs.refresh()
    read = read_study(runs, leader.run_id)
    progress = text_of(study_parts.progress_card(read))
    assert "2 of 4 runs done" in progress
    for run_id in cells.values():
        assert (
            f'{{"text": "{client.get_run(run_id).data.metrics["test_macro_f1"]:.3f}", "href": "/run?run={run_id}"'
            in progress
        )
    with tempfile.TemporaryDirectory() as folder:
        stored = json.loads(Path(client.download_artifacts(leader.run_id, "study/results.json", folder)).read_text())
    cards = (study_page.update_body(runs, None, leader.run_id)[0], study_page.update_rest(runs, None, leader.run_id))
    _check_study(cards[0], stored)
    _check_tiles(cards[0], stored)
    _check_figures(cards, stored)
    _check_other_sections(read_study(runs, leader.run_id).results, stored)


def _made_fusion():
    """Texts, masked and not, and one pair."""
    rows = tuple(
        FusionRow(
            label, "clip", inputs, way, masked, 2, 600, about(score), about(score + 0.05), {"25%": about(score - 0.1)}
        )
        for label, inputs, way, masked, score in (
            ("clip picture", "image", "", False, 0.6),
            ("clip both, late", "image+text", "late", False, 0.7),
            ("clip both, late (masked)", "image+text", "late", True, 0.65),
        )
    )
    pair = _pair("fusion", "clip both, late", "clip picture")
    return FusionResults(rows, (pair,), (TextLeakRow("Apparel", 0.9), TextLeakRow("all", 0.8)))


def _scaled(node, generator):
    """The same with every number scaled by chance, and an estimate as a whole: each is another one then."""
    if isinstance(node, float):
        return node * generator.uniform(0.9, 1)
    if isinstance(node, list):
        return [_scaled(each, generator) for each in node]
    if not isinstance(node, dict):
        return node
    if {"value", "low", "high"} <= set(node):
        factor = generator.uniform(0.9, 1)
        return {name: number if number is None else number * factor for name, number in node.items()}
    return {name: _scaled(each, generator) for name, each in node.items()}


def _at_random(text, generator):
    """The results with scores and pairs at random, some of them as no interval of a score can be."""
    results = json.loads(text)
    for row in results["scores"]:
        for name in SCORES:
            value, reach = generator.random(), generator.choice([0.02, 3.0])
            row[name] = {"value": value, "low": value - reach, "high": value + reach}
    for name in (*ELSEWHERE, "layers", "fusion"):
        results[name] = _scaled(results[name], generator)
    for pair in results["pairs"]:
        for name in ("p_bootstrap_holm", "p_mcnemar_holm", "p_mcnemar_mid_holm", "detectable_macro_f1"):
            pair["test"][name] = float(generator.random())
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
    low, high = (abs(test["difference"][end]) for end in (("high", "low") if turned else ("low", "high")))
    shown = [abs(float(number)) for number in re.findall(r"[+-]\d\.\d+", row["1"])]
    assert shown == pytest.approx([abs(test["difference"]["value"]), low, high], abs=6e-4)
    assert row["3"] == _p(test["p_bootstrap_holm"])
    assert row["4"] == f"{_p(test['p_mcnemar_holm'])} ({_p(test['p_mcnemar_mid_holm'])})"
    assert row["6"] == f"{100 * test['detectable_macro_f1']:.1f}"
    classes = next(grid for grid in tables if grid.columnDefs[1]["headerName"] == stored["categories"][0])
    for row in classes.rowData:
        each = rows[row["0"]["text"] if isinstance(row["0"], dict) else row["0"]]
        for place, name in enumerate(stored["categories"], start=1):
            assert float(row[str(place)].split()[0]) == pytest.approx(each["per_category"][name]["value"], abs=6e-4)


def _p(value):
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _check_other_sections(results, stored):
    """Check every number in the tables of the other sections: it is the stored one, in its column's unit."""
    found = {section.key: section for section in make_sections(results)}
    expected = _expected(stored)
    assert set(expected) == {*ELSEWHERE, "fusion"}
    for key, tables in expected.items():
        shown = [table for table in found[key].tables if table.title not in ("Suspects by label", "Pairs")]
        assert len(shown) == len(tables), key
        for table, rows in zip(shown, tables, strict=True):
            cells = [cell_texts(row)[-len(rows[0]) :] for row in table.rows]
            assert len(cells) == len(rows), key
            for texts, values in zip(cells, rows, strict=True):
                for text, value in zip(texts, values, strict=True):
                    _check_cell(text, value, (key, table.title))


def _check_cell(text, value, where):
    """Check a cell: `value` is a text, a number, or (an estimate or number as stored, the factor of the unit)."""
    if isinstance(value, str):
        assert text == value, where
        return
    stored, factor = value if isinstance(value, tuple) else (value, 1)
    if isinstance(stored, dict):
        stored = [stored[name] for name in ("value", "low", "high") if stored[name] is not None]
    numbers = stored if isinstance(stored, list) else [] if stored is None else [stored]
    shown = re.findall(r"[+-]?\d[\d,]*\.?\d*", text)
    assert len(shown) == len(numbers), (where, text, numbers)
    for number, known in zip(shown, numbers, strict=True):
        digits = len(number.partition(".")[2])
        assert float(number.replace(",", "")) == pytest.approx(factor * known, abs=0.51 * 10.0**-digits), (where, text)


def _expected(stored):
    """The numbers of each section's tables, from the last column backwards as far as they are numbers."""
    scores = {row["label"]: row for row in stored["scores"]}
    shares = ("copied", "accuracy_copied", "accuracy_others", "correct_with_copy")
    of_calibration = ("temperature", "ece", "ece_scaled", "nll", "nll_scaled", "aurc", "auroc_unknown")
    of_continual = ("average_accuracy", "final_accuracy", "forgetting", "backward_transfer", "forward_transfer")
    of_layers = ("entropy", "relative_entropy", "distance_patches", "distance_share", "class_share", "product_share")
    of_layers += ("product_area", "head_diversity")
    maps = stored["faithfulness"].values()
    gaps = [gap for row in stored["gaps"] for gap in row["gaps"]]
    fusion = stored["fusion"]
    by_score = sorted(fusion["rows"], key=lambda row: (row["masked"], -row["headline_macro_f1"]["value"]))
    return {
        "held_out": [
            [
                [row[name] for name in ("macro_f1", "accuracy", "natural_macro_f1", "natural_accuracy")]
                for row in sorted(stored["held_out"], key=lambda row: -row["macro_f1"]["value"])
            ]
        ],
        "leak": [
            [
                [
                    *(score[name] for name in ("holdout", "original", "difference")),
                    *((leak[name], 100) for name in shares),
                ]
                for row in stored["leak"]
                for score, leak in zip(row["scores"], row["leaks"], strict=True)
            ]
        ],
        "robustness": [
            [
                [(row["mean_drop"], 100), *((drop["value"], 100) for drop in row["drops"].values())]
                for row in stored["robustness"]
            ]
        ],
        "calibration": [
            [
                [*(row[name] for name in of_calibration), row["auroc_products"], row["unknown"]]
                for row in stored["calibration"]
            ]
        ],
        "faithfulness": [
            [[curve["deletion_area"], curve["insertion_area"]] for model in maps for curve in model["curves"]],
            [[check["correlation"]] for model in maps for check in model["randomised"]],
            [[layer[name] for name in of_layers] for layers in stored["layers"].values() for layer in layers],
        ],
        "gaps": [
            [[(gap["accuracy_gap"], 100), gap["p_holm"], gap["p_within_categories"]] for gap in gaps],
            [[each["n"], (each["accuracy"], 100), each["macro_f1"]] for gap in gaps for each in gap["values"]],
        ],
        "decoding": [
            [
                [
                    *(score[name] for name in ("macro_f1", "accuracy")),
                    *((score[name], 100) for name in ("unknown_rate", "coverage", "covered_accuracy")),
                ]
                for row in stored["decoding"]
                for score in row["scores"].values()
            ]
        ],
        "cost": [
            [
                [
                    row["macro_f1"],
                    row["cost"]["weights"],
                    scores[row["label"]]["weights_trained"],
                    (row["cost"]["flops"], 1e-9),
                    (row["cost"]["p50_seconds"], 1000),
                    (row["cost"]["p95_seconds"], 1000),
                    row["cost"]["images_per_second"],
                    row["cost"]["peak_mib"],
                    scores[row["label"]]["train_seconds"],
                    "yes" if row["on_front"] else "",
                ]
                for row in stored["cost"]
            ]
        ],
        "label_audit": [
            [[each["left_out"], each["before"], each["after"]] for each in stored["label_audit"]["without"].values()]
        ],
        "continual": [
            [
                [*(row[name] for name in of_continual), row["seconds"], (row["memory_bytes"], 1e-3)]
                for row in stored["continual"]
            ],
            [
                [value if place < step else None for place, value in enumerate(line)]
                for row in stored["continual"]
                for step, line in enumerate(row["accuracies"], start=1)
            ],
        ],
        "fusion": [
            [[row["headline_macro_f1"], row["accuracy"], _against(row, fusion["pairs"])] for row in by_score],
            [[*row["missing"].values()] for row in by_score if row["missing"]],
            [[(each["share"], 100)] for each in fusion["leaks"]],
        ],
    }


def _against(row, pairs):
    """What is said of a fusion against one input alone."""
    pair = next((each for each in pairs if each["a"] == row["label"]), None)
    if pair is None:
        return ""
    points, p = 100 * pair["test"]["difference"]["value"], _p(pair["test"]["p_bootstrap_holm"])
    return f"{points:+.1f} points against {pair['b']} (corrected p = {p})"


def _check_figures(cards, stored):
    """Check every point of the page's figures, in the unit of its axis."""
    plots = {
        str(getattr(part, "id", "")): part.figure
        for each in cards
        for part in each._traverse()
        if getattr(part, "figure", None) is not None
    }
    points = _points(plots["study-scores-0"])
    for row in (row for row in stored["scores"] if row["kind"] != "mechanism"):
        assert points[row["label"]][0] == pytest.approx(row["headline_macro_f1"]["value"])
        value, low, high = points[row["label"]]
        assert 0 <= low <= value <= high <= 1
    pair = next(pair for pair in stored["pairs"] if pair["group"] == "families")
    ((name, (value, low, high)),) = _points(plots["study-pairs-0"]).items()
    turned = pair["test"]["difference"]["value"] < 0
    first, second = (pair["b"], pair["a"]) if turned else (pair["a"], pair["b"])
    assert name == f"{first} \u2212 {second}" and low <= value <= high
    assert value == pytest.approx(abs(pair["test"]["difference"]["value"]))
    front, *models = plots["study-cost-0"].data
    latency = {trace.name: (trace.x[0], trace.y[0]) for trace in models}
    for row in stored["cost"]:
        assert latency[row["label"]] == (
            pytest.approx(1000 * row["cost"]["p50_seconds"]),
            pytest.approx(row["macro_f1"]),
        )
    assert len(front.x) == sum(row["on_front"] for row in stored["cost"])
    (heat,) = plots["study-robustness-0"].data
    drops = [[drop["value"] for drop in row["drops"].values()] for row in stored["robustness"]]
    np.testing.assert_allclose(heat.z, drops)
    for trace, row in zip(plots["study-calibration-0"].data, stored["calibration"], strict=True):
        assert list(trace.x) == row["coverage"] and list(trace.y) == row["risk"]
    for name, protocol in (("holdout", "holdout"), ("original (leaks)", "original")):
        traces = [trace for trace in plots["study-leak-0"].data if trace.name == name]
        for trace, row in zip(traces, stored["leak"], strict=True):
            np.testing.assert_allclose(trace.x, [score[protocol]["value"] for score in row["scores"]])
    curves = [curve for model in stored["faithfulness"].values() for curve in model["curves"]]
    lines = plots["study-faithfulness-0"].data
    for place, curve in enumerate(curves):
        assert list(lines[place].y) == curve["deletion"] and list(lines[place + len(curves)].y) == curve["insertion"]


def _points(figure):
    """Value, low and high by label, of a figure of intervals."""
    found = {}
    for trace in (trace for trace in figure.data if trace.mode == "markers"):
        for y, x, (low, high) in zip(trace.y, trace.x, trace.customdata, strict=True):
            found[y] = (x, low, high)
    return found


def _check_tiles(cards, stored):
    said = said_by(cards)
    compared = [pair["test"] for pair in stored["pairs"] if pair["group"] != "held_out"]
    significant = sum(min(test["p_bootstrap_holm"], test["p_mcnemar_holm"]) < 0.05 for test in compared)
    best = max(
        (row for row in stored["scores"] if row["kind"] != "mechanism"),
        key=lambda row: row["headline_macro_f1"]["value"],
    )
    assert f"Runs in these results | {stored['cells_finished']} of {stored['cells_planned']}" in said
    assert f"Categories | {len(stored['categories'])}" in said
    assert f"Significant differences | {significant} of {len(compared)}" in said
    assert f"Best macro-F1 | {best['label']} | {best['headline_macro_f1']['value']:.3f}" in said

"""Searches and splits as pages read them."""

import json

import pandas as pd
import pytest
from dash import no_update

from dashboard.components import first_choice
from dashboard.figures.search import history, importance_bars, parallel, pareto, slices
from dashboard.importances import importances
from dashboard.pages import catalogue as catalogue_page
from dashboard.pages import search as search_page
from dashboard.runs import Runs
from dashboard.searches import read_search, search_choices
from dashboard.splits import read_split, split_choices
from vlm_core.config import searchable


def _text(component):
    return json.dumps(component, default=lambda part: part.to_plotly_json())


def _row(number, **more):
    return {
        "run_id": f"t{number}",
        "name": f"trial {number}",
        "status": "FINISHED",
        "started": pd.Timestamp("2026-01-01", tz="UTC") + pd.Timedelta(minutes=number),
        "tags.kind": "trial",
        "tags.mlflow.parentRunId": "s",
        **more,
    }


@pytest.fixture
def table():
    rates = (1e-4, 1e-3, 3e-3, 2e-4, 5e-4)
    scores = (0.5, 0.7, 0.6, 0.4, 0.65)
    trials = [
        _row(
            number + 1,
            **{
                "params.learning_rate": str(rate),
                "params.mode": ("probe", "lora")[number % 2],
                "metrics.best_validation_macro_f1": score,
                "metrics.seconds_per_image": 0.01 / (number + 1),
            },
        )
        for number, (rate, score) in enumerate(zip(rates, scores, strict=True))
    ]
    pruned = _row(
        7,
        **{
            "tags.pruned": "true",
            "metrics.validation_macro_f1": 0.2,
            "params.learning_rate": "0.1",
            "params.mode": "lora",
        },
    )
    failed, running = _row(8, status="FAILED"), _row(9, status="RUNNING")
    parent = {
        "params.search": "learning_rate,mode",
        "params.model": "git",
        "params.search_objectives": "score,seconds",
        "tags.search_name": "mine",
    }
    leader = {**_row(0, **parent), "run_id": "s", "tags.kind": "search", "tags.mlflow.parentRunId": None}
    return pd.DataFrame([leader, *trials, pruned, failed, running])


def test_a_search_is_read_from_its_runs(table):
    search = read_search(table, "s")
    assert search.name == "mine" and search.searched == ("learning_rate", "mode") and search.two_objectives
    assert [trial.state for trial in search.trials] == ["complete"] * 5 + ["pruned", "failed", "running"]
    assert search.best.run_id == "t2" and search.best.settings == {"learning_rate": 1e-3, "mode": "lora"}
    assert search_choices(table)[0]["value"] == "s"
    assert read_search(table, "t1") is None and read_search(pd.DataFrame(), "s") is None


def test_history_shows_the_best_so_far_and_pruned_trials_by_another_symbol(table):
    figure = history(read_search(table, "s"), "#000000")
    named = {trace.name: trace for trace in figure.data}
    assert list(named["best so far"].y) == [0.5, 0.7, 0.7, 0.7, 0.7]
    assert named["pruned"].marker.symbol == "x" and list(named["pruned"].y) == [0.2]


def test_slices_are_logarithmic_where_the_setting_is_searched_on_a_log_scale(table):
    figure = slices(read_search(table, "s"), searchable(), "#000000")
    assert figure.layout.xaxis.type == "log" and figure.layout.xaxis2.type is None


def test_parallel_lines_run_from_lowest_to_highest(table):
    figure = parallel(read_search(table, "s"))
    assert len(figure.data) == 6
    best = figure.data[1]
    assert best.y[-1] == 1.0 and list(best.x) == ["learning_rate", "mode", "macro-F1"]


def test_a_search_without_scores_yet_says_so_in_place_of_empty_axes(table):
    figure = parallel(read_search(table[table["run_id"].isin(["s", "t9"])], "s"))
    assert len(figure.data) == 0 and figure.layout.annotations[0].text == "No trial has a score yet"
    assert figure.layout.xaxis.visible is False


def test_the_front_of_two_objectives_is_plotted(table):
    front = pareto(read_search(table, "s"), "#000000").data[0]
    assert list(front.y) == [0.65, 0.7]


@pytest.mark.slow
def test_what_a_score_depends_on_is_found_and_constants_are_not():
    trials = [{"rate": float(n), "noise": float(n % 3), "fixed": 1.0, "word": "ab"[n % 2]} for n in range(1, 30)]
    shares = importances(trials, [trial["rate"] ** 2 for trial in trials])
    assert next(iter(shares)) == "rate" and shares["rate"] > 0.7 and "fixed" not in shares
    assert sum(shares.values()) == pytest.approx(1)
    assert importances(trials[:3], [1.0, 2.0, 3.0]) == {} and importances([], []) == {}
    assert importance_bars(shares, "#000000").data[0].y[-1] == "rate"


def test_a_store_without_a_search_says_how_to_begin_one(runs):
    state, hidden, choices = search_page.update_state(runs, 1, None)
    assert hidden and "make tune" in _text(state) and choices == []
    assert first_choice(choices, None) is no_update


def test_the_newest_search_is_shown_until_another_is_chosen():
    choices = [{"value": "b", "label": "B"}, {"value": "a", "label": "A"}]
    assert first_choice(choices, None) == "b" and first_choice(choices, "a") is no_update


def test_the_search_page_shows_all_of_a_search(table, runs, monkeypatch):
    monkeypatch.setattr(runs, "table", lambda: table)
    body = _text(search_page.update_body(runs, "s", 1))
    for part in ("History", "Importances", "Slices", "Parallel coordinates", "Score against latency", "Trials"):
        assert part in body


def test_the_winner_is_linked_with_its_test_score(table):
    assert read_search(table, "s").winner is None
    assert "retrained when" in _text(search_page._winner_tile(read_search(table, "s")))
    scores = {"metrics.test_macro_f1": 0.64, "metrics.test_macro_f1_low": 0.6, "metrics.test_macro_f1_high": 0.7}
    winner = {**_row(10, **scores), "run_id": "w", "tags.kind": None}
    search = read_search(pd.concat([table, pd.DataFrame([winner])], ignore_index=True), "s")
    assert (search.winner.run_id, search.winner.score) == ("w", 0.64) and len(search.trials) == 8
    tile = _text(search_page._winner_tile(search))
    assert "/run?run=w" in tile and "0.6400" in tile and "0.6000 to 0.7000" in tile


def test_numbers_sort_as_numbers(table):
    card = search_page._trials_card(read_search(table, "s"))
    rows = card.children[1].children[0].children.rowData
    assert {row["setting_learning_rate"] for row in rows if "setting_learning_rate" in row} >= {1e-4, 1e-3}


@pytest.mark.parametrize("name", ["search", "study"])  # today's address, and that of older links
def test_the_address_names_a_search(table, runs, monkeypatch, name):
    monkeypatch.setattr(runs, "table", lambda: table)
    assert '"value": "named"' in _text(search_page.layout(runs, {name: "named"}))


def test_splits_are_offered_once_and_read_with_their_products(runs):
    choices = split_choices(runs)
    assert len(choices) == 3
    honest = next(each["value"] for each in choices if "holdout" in each["label"])
    split = read_split(runs, honest)
    counts = split.counts()
    assert counts["training, balanced"].sum() == split.info["training_samples"]
    assert counts["test"].sum() == split.info["test_samples"] == len(split.ids("test"))
    assert len(split.products("test", split.categories[0])) == counts["test"][0]
    assert set(split.ids("training")).isdisjoint(split.ids("test"))


def test_the_catalogue_page_reports_leaks_duplicates_and_products(runs):
    choices = split_choices(runs)
    leaking = next(each["value"] for each in choices if "original" in each["label"])
    report, categories, _ = catalogue_page.update_report(runs, leaking, "ready", "")
    assert (
        "also appear in training" in _text(report)
        and "reward memorisation" in _text(report)
        and categories[0]["label"] == "All categories"
    )
    pictures, pages = catalogue_page.update_pictures(runs, leaking, "", "training", 1)
    assert _text(pictures).count("/picture/") == 24 and pages > 1
    behind, _ = catalogue_page.update_pictures(runs, leaking, "", "training", 10_000)
    assert 0 < _text(behind).count("/picture/") <= 24  # an address from a larger part shows the last page
    assert "groups of near-duplicates" in _text(catalogue_page.update_duplicates(runs, leaking))


def test_without_the_catalogue_the_page_says_how_to_get_it(filled_store, tmp_path):
    away = Runs(f"sqlite:///{filled_store}/mlflow.db", tmp_path)
    away.refresh()
    run_id = next(each["value"] for each in split_choices(away) if "holdout" in each["label"])
    pictures, _ = catalogue_page.update_pictures(away, run_id, "", "test", 1)
    assert "make prepare" in _text(pictures) and "make prepare" in _text(catalogue_page.update_duplicates(away, run_id))
    assert catalogue_page.update_report(away, "none", "ready", "")[1] == []

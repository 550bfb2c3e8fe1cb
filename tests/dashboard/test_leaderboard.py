"""The leaderboard's rows against tables written by hand."""

import json

import pandas as pd
import pytest

from dashboard.leaderboard import (
    best_run,
    largest_test_set,
    make_leaderboard,
    run_choices,
    select_rows,
    shown_categories,
    with_headings,
)
from dashboard.pages.leaderboard import _columns


def _table(*rows):
    whole = []
    for number, row in enumerate(rows):
        split = row.pop("split", "one")
        whole.append(
            {
                "run_id": f"run{number}",
                "name": f"name {number}",
                "status": "FINISHED",
                "started": pd.Timestamp("2026-01-01", tz="UTC") + pd.Timedelta(hours=number),
                "params.model": "clip-large",
                "params.seed": "0",
                "tags.fingerprint": "f",
                "tags.label": "kind",
                "tags.split": split,
                "tags.protocol": "holdout",
                "tags.catalogue": "shop",
                "tags.leaking": "false",
                **row,
            }
        )
    return pd.DataFrame(whole)


def _score(value, **more):
    return {"metrics.test_macro_f1": value, **more}


def test_runs_are_ranked_only_among_those_tested_on_the_same_products():
    leaderboard = make_leaderboard(
        _table(_score(0.5), _score(0.9, split="two"), _score(0.7), _score(0.7), _score(0.1, split="two"))
    )
    ranks = {row["run_id"]: row["rank"] for row in leaderboard.rows}
    assert ranks == {"run0": 3, "run2": 1, "run3": 1, "run1": 1, "run4": 2}
    assert [each.runs for each in leaderboard.sets] == [2, 3]  # the newest first
    assert largest_test_set(leaderboard) == leaderboard.sets[1].key


def test_a_leaking_run_has_no_rank_and_marks_its_test_set():
    leaderboard = make_leaderboard(
        _table(_score(0.5), _score(0.9, **{"tags.leaking": "true"}), _score(0.8, split="two"))
    )
    leaking = next(row for row in leaderboard.rows if row["run_id"] == "run1")
    assert "rank" not in leaking and leaking["leaking"] == "true"
    assert [each.leaking for each in leaderboard.sets] == [False, True]


@pytest.mark.parametrize("said", ["", None, "perhaps"])
def test_a_run_that_does_not_say_that_it_is_honest_counts_as_leaking(said):
    assert make_leaderboard(_table(_score(0.5, **{"tags.leaking": said}))).sets[0].leaking


def test_trials_and_runs_without_data_stay_out_and_unfinished_ones_come_without_score():
    table = _table(
        _score(0.5),
        _score(0.6, **{"tags.kind": "trial"}),
        {"status": "RUNNING", "metrics.validation_macro_f1": 0.41234},
        {"status": "FAILED", "tags.split": None},
    )
    leaderboard = make_leaderboard(table)
    assert {row["run_id"] for row in leaderboard.rows} == {"run0", "run2"}
    running = leaderboard.rows[0]
    assert running["validation"] == 0.4123 and "score" not in running and "rank" not in running


def test_costs_are_in_the_units_that_the_page_says():
    fields = {
        "metrics.seconds_per_image": 0.0125,
        "tags.weights_trained": "1200",
        "tags.weights_source": "shipped:clip",
    }
    row = make_leaderboard(_table(_score(0.5, **fields))).rows[0]
    assert (row["latency"], row["trained_weights"], row["weights"]) == (12.5, 1200.0, "shipped:clip")


def test_runs_are_grouped_by_where_their_weights_came_from_not_by_how_many_were_trained():
    sources = [
        {"tags.weights_source": source, "tags.weights_trained": "645"} for source in ("shipped:clip", "shipped:blip")
    ]
    leaderboard = make_leaderboard(_table(*(_score(0.5, **each) for each in sources)))
    headings = [
        row["heading"] for row in with_headings(leaderboard.rows, leaderboard.sets, "weights") if "heading" in row
    ]
    assert [heading.rsplit(" ", 1)[1] for heading in headings] == ["shipped:blip", "shipped:clip"]


def test_the_training_time_counts_the_cache_where_it_is_known_and_says_where_it_is_not():
    full = {"metrics.train_seconds": 12.6, "metrics.train_seconds_full": 455.0}
    rows = make_leaderboard(_table(_score(0.5, **full), _score(0.4, **{"metrics.train_seconds": 12.6}))).rows
    assert [(row["train"], row.get("train_partial", False)) for row in rows] == [(455.0, False), (12.6, True)]


def test_leaking_runs_never_stand_above_honest_ones():
    leaks = {"tags.leaking": "true"}
    table = _table(
        _score(0.9, split="old", **leaks), _score(0.4), _score(0.99, **leaks), _score(0.95, split="new", **leaks)
    )
    leaderboard = make_leaderboard(table)
    assert [row["run_id"] for row in leaderboard.rows] == ["run1", "run2", "run3", "run0"]
    assert [each.key.rsplit("|")[-1] for each in leaderboard.sets] == ["one", "new", "old"]
    rows = with_headings(leaderboard.rows, leaderboard.sets, "")
    assert [row["leaks"] for row in rows if "heading" in row] == [False, True, True, True]


def test_each_kind_of_leak_is_known_of_a_test_set():
    shares = {"tags.leaking": "true", "tags.leakage": "0.0000", "tags.leakage_pretraining": "0.0084"}
    (each,) = make_leaderboard(_table(_score(0.5, **shares), _score(0.4))).sets
    assert (each.leaking, each.in_training, each.in_pretraining) == (True, 0.0, 0.0084)


def test_a_test_set_of_many_categories_takes_no_column_from_the_others():
    few = {f"metrics.test_f1_c{number}": 0.5 for number in range(5)}
    many = {f"metrics.test_f1_t{number}": 0.5 for number in range(69)}
    sets = make_leaderboard(_table(_score(0.5, **few), _score(0.5, split="two", **many))).sets
    assert shown_categories(sets, 12) == [f"c{number}" for number in range(5)]
    chosen = [each for each in sets if len(each.categories) == 69]
    assert shown_categories(chosen, 12) == sorted(f"t{number}" for number in range(69))


def test_runs_of_one_name_are_told_apart():
    table = _table(*(_score(0.5, name="clip-probe-0", run_id=f"{letter}12345678") for letter in "abc"), _score(0.5))
    rows = {row["run_id"]: row.get("twin") for row in make_leaderboard(table).rows}
    assert rows == {"a12345678": "a12345", "b12345678": "b12345", "c12345678": "c12345", "run3": None}
    labels = [choice["label"] for choice in run_choices(table)]
    assert len(set(labels)) == 4 and labels[0].endswith("(a12345)") and "(" not in labels[3]


def test_a_run_without_a_sign_of_life_says_so():
    row = make_leaderboard(_table({"status": "RUNNING", "live": "no sign of life since 11:50", "lost": True})).rows[0]
    assert row["lost"] is True and row["live"] == "no sign of life since 11:50"


def test_failed_runs_are_hidden_and_one_test_set_is_chosen():
    leaderboard = make_leaderboard(_table(_score(0.5), {"status": "KILLED"}, _score(0.7, split="two")))
    assert len(select_rows(leaderboard, "", hide_failed=True)) == 2
    assert len(select_rows(leaderboard, "", hide_failed=False)) == 3
    assert [row["run_id"] for row in select_rows(leaderboard, "f|kind|two", hide_failed=True)] == ["run2"]


def test_each_band_begins_with_its_heading_and_holds_one_value():
    table = _table(
        _score(0.5, **{"params.preset": "cpu"}), _score(0.7, **{"params.preset": "demo"}), _score(0.6, split="two")
    )
    leaderboard = make_leaderboard(table)
    rows = with_headings(leaderboard.rows, leaderboard.sets, "preset")
    assert [row.get("heading", row["run_id"]) for row in rows] == [
        "shop · kind · holdout · seed 0 · two · preset unknown",
        "run2",
        "shop · kind · holdout · seed 0 · one · preset cpu",
        "run0",
        "shop · kind · holdout · seed 0 · one · preset demo",
        "run1",
    ]
    assert [row["band"] for row in rows] == [0, 0, 1, 1, 2, 2]


def test_the_best_run_is_an_honest_one_and_the_best_to_explain_has_attention_over_images():
    leaking = {"tags.leaking": "true"}
    scores = [
        _score(0.5),
        _score(0.7),
        _score(0.8, **{"params.inputs": "image+text"}),
        _score(0.9, **{"params.model": "baseline"}),
        _score(0.99, split="two", **leaking),
    ]
    leaderboard = make_leaderboard(_table(*scores))
    best = {row["score"]: row["run_id"] for row in leaderboard.rows}
    assert best_run(leaderboard) == best[0.9] and best_run(leaderboard, to_explain=True) == best[0.7]
    assert (
        best_run(make_leaderboard(_table(_score(0.9, **leaking)))) == best_run(make_leaderboard(pd.DataFrame())) == ""
    )


def test_an_empty_store_has_an_empty_board():
    assert make_leaderboard(pd.DataFrame()).rows == [] and make_leaderboard(pd.DataFrame({"run_id": []})).sets == ()


def test_categories_are_called_what_runs_call_them_and_otherwise_by_their_metric():
    names = ["Gürtel", "包", "Home & Kitchen"]
    scores = {f"metrics.test_f1_{slug}": 0.5 for slug in ("gurtel", "category_2", "home_kitchen")}
    stored = {"tags.categories": json.dumps(names, ensure_ascii=False)}
    (named,) = make_leaderboard(_table({**scores, **stored}, scores.copy())).sets
    assert named.names == {"gurtel": "Gürtel", "category_2": "包", "home_kitchen": "Home & Kitchen"}
    assert "categories" not in make_leaderboard(_table({**scores, **stored})).rows[0]
    headers = [column["headerName"] for column in _columns([], [named])]
    assert headers[-3:] == ["包", "Gürtel", "Home & Kitchen"]
    for odd in (None, "[", "7", '["a", 1]'):
        (plain,) = make_leaderboard(_table({**scores, "tags.categories": odd})).sets
        assert plain.names == {}
        assert "Home Kitchen" in [column["headerName"] for column in _columns([], [plain])]

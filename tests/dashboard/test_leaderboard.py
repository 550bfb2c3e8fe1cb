"""The leaderboard's rows against tables written by hand."""

import pandas as pd
import pytest

from dashboard.leaderboard import best_run, largest_test_set, make_leaderboard, select_rows, with_headings


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
    row = make_leaderboard(
        _table(_score(0.5, **{"metrics.seconds_per_image": 0.0125, "tags.weights_trained": "1200"}))
    ).rows[0]
    assert row["latency"] == 12.5 and row["weights"] == "shipped" if "weights" not in row else True
    assert row["latency"] == 12.5


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


def test_the_best_run_is_an_honest_one_and_of_a_model_that_was_not_left_out():
    leaking = {"tags.leaking": "true"}
    scores = [
        _score(0.5),
        _score(0.7),
        _score(0.9, **{"params.model": "baseline"}),
        _score(0.99, split="two", **leaking),
    ]
    leaderboard = make_leaderboard(_table(*scores))
    best = {row["score"]: row["run_id"] for row in leaderboard.rows}
    assert best_run(leaderboard) == best[0.9] and best_run(leaderboard, excluding="baseline") == best[0.7]
    assert (
        best_run(make_leaderboard(_table(_score(0.9, **leaking)))) == best_run(make_leaderboard(pd.DataFrame())) == ""
    )


def test_an_empty_store_has_an_empty_board():
    assert make_leaderboard(pd.DataFrame()).rows == [] and make_leaderboard(pd.DataFrame({"run_id": []})).sets == ()

"""Runs read back: as one table, ranked among those that may be compared."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from tests.tracking.made import make_catalogue, make_evaluation, make_split
from vlm_core.errors import UserError
from vlm_core.tracking import reader as reader_module
from vlm_core.tracking.reader import RunReader
from vlm_core.tracking.store import connect
from vlm_core.tracking.writer import RunWriter


def _run(name: str, right: int, *, protocol: str = "holdout", seed: int = 0, experiment: str = "made") -> str:
    catalogue = make_catalogue()
    evaluation = make_evaluation(right)
    with RunWriter(experiment, name) as run:
        run.params({"model": "clip", "seed": str(seed)})
        run.tags({"weights_source": "tiny"})
        run.dataset(catalogue, make_split(catalogue, protocol, seed))
        run.metrics(evaluation.metrics("test_"))
    return run.run_id


def test_the_leaderboard_ranks_within_groups_and_marks_what_leaks(store: Path) -> None:
    _run("other split", 25, seed=1)
    _run("leaks", 29, protocol="original")
    _run("good", 24)
    _run("better", 27, experiment="another")
    _run("same", 24)
    with RunWriter("made", "no score"):
        pass
    with pytest.raises(ValueError, match="boom"), RunWriter("made", "failed") as run:
        run.metrics({"test_macro_f1": 1.0})
        raise ValueError("boom")
    board = RunReader().leaderboard()
    seen = board[["group", "rank", "name", "leaking"]].astype(object).where(board.notna(), None)
    assert seen.values.tolist() == [
        [1, 1, "better", False],
        [1, 2, "good", False],
        [1, 2, "same", False],
        [2, None, "leaks", True],
        [3, 1, "other split", False],
    ]
    assert board["weights_source"].tolist() == ["tiny"] * 5
    assert (board["test_macro_f1_low"] <= board["test_macro_f1"]).all()
    assert (board["test_macro_f1"] <= board["test_macro_f1_high"]).all()


def test_an_empty_store_has_an_empty_table_and_leaderboard(store: Path) -> None:
    reader = RunReader()
    assert reader.runs().empty
    assert {"run_id", "status"} <= set(reader.runs())
    assert reader.leaderboard().empty
    assert {"group", "rank", "leaking", "test_macro_f1"} <= set(reader.leaderboard())


def test_all_pages_are_read_each_run_once(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = connect()
    experiments = [client.create_experiment(f"experiment {number}") for number in range(8)]
    for number in range(23):
        run = client.create_run(experiments[number % 8], tags={"role": "run"}, run_name=f"run {number}")
        client.log_metric(run.info.run_id, "figure", float(number))
    client.create_run("0", tags={"role": "launcher"})
    client.create_run("0")
    asked = []
    search = MlflowClient.search_runs
    monkeypatch.setattr(reader_module, "ROWS_PER_PAGE", 5)
    monkeypatch.setattr(MlflowClient, "search_runs", lambda *given, **named: asked.append(1) or search(*given, **named))
    assert [len(page) for page in RunReader().pages()] == [5, 5, 5, 5, 3]
    asked.clear()
    table = RunReader().runs()
    assert len(asked) == 5  # none asks for a run by itself
    assert sorted(table["metrics.figure"]) == [float(number) for number in range(23)]
    assert table["experiment"].nunique() == 8


def test_a_run_that_begins_between_two_pages_makes_none_appear_twice(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, search = connect(), MlflowClient.search_runs
    for _ in range(5):
        client.create_run("0", tags={"role": "run"})

    def search_while_runs_begin(*given: Any, **named: Any) -> Any:
        page = search(*given, **named)
        client.create_run("0", tags={"role": "run"})
        return page

    monkeypatch.setattr(reader_module, "ROWS_PER_PAGE", 3)
    monkeypatch.setattr(MlflowClient, "search_runs", search_while_runs_begin)
    assert RunReader().runs()["run_id"].is_unique


def test_runs_are_filtered_in_mlflows_language(store: Path) -> None:
    _run("good", 24)
    best = _run("best", 29)
    assert RunReader().runs("metrics.test_accuracy > 0.9 and params.model = 'clip'")["run_id"].tolist() == [best]
    with pytest.raises(UserError, match="is not understood"):
        RunReader().runs("nonsense ! >")


def test_what_mlflow_run_makes_of_a_stopped_run_is_told_apart(store: Path) -> None:
    with pytest.raises(KeyboardInterrupt), RunWriter("made") as run:
        raise KeyboardInterrupt
    connect().set_terminated(run.run_id, "FAILED")  # as mlflow.projects does whatever the status is
    assert RunReader().runs()["status"].tolist() == ["KILLED"]


def test_texts_that_were_swollen_behind_mlflows_back_are_cut(store: Path) -> None:
    run_id = _run("swollen", 24)
    with closing(sqlite3.connect("mlflow.db")) as database:
        database.execute("UPDATE params SET value = printf('%.*c', 1000000, 'v') WHERE key = 'seed'")
        database.execute("UPDATE tags SET value = printf('%.*c', 1000000, 't') WHERE key = 'weights_source'")
        database.commit()
    (row,) = RunReader().runs().to_dict("records")
    assert row["params.seed"] == "v" * 8000
    assert row["tags.weights_source"] == "t" * 8000
    assert len(RunReader().params(run_id)["seed"]) == 1_000_000


def test_what_a_run_does_not_hold_is_said(store: Path) -> None:
    with RunWriter("made") as run:
        pass
    reader = RunReader()
    with pytest.raises(UserError, match="holds no evaluation/test"):
        reader.evaluation(run.run_id)
    with pytest.raises(UserError, match="holds no .*predictions"):
        reader.predictions(run.run_id)
    with pytest.raises(UserError, match="there is no run nowhere"):
        reader.params("nowhere")
    assert reader.history(run.run_id, "never logged").empty
    with pytest.raises(UserError, match="is finished"):
        reader.check_resumable(run.run_id)

"""The table that a thread reads beside the pages, over real stores that fill, change and go away."""

import os
import platform
import shutil
import sqlite3
import time

import pytest

from dashboard.runs import Runs
from vlm_core.tracking.store import StoreProblem, connect
from vlm_core.tracking.tags import process_tag
from vlm_core.tracking.writer import RunWriter


@pytest.fixture
def runs(store):
    made = Runs("", store)
    made.refresh()
    return made


def _run(name, score):
    with RunWriter("shop", name) as run:
        run.metrics({"test_macro_f1": score})
        run.tags({"fingerprint": "f"})
    return run.run_id


def test_an_empty_store_is_ready_and_empty(runs):
    view = runs.view()
    assert view.state == "ready" and view.whole and view.table.empty


def test_new_runs_appear_running_ones_move_and_ended_ones_end(runs):
    _run("first", 0.5)
    runs.refresh()
    with RunWriter("shop", "second") as run:
        run.metrics({"validation_macro_f1": 0.1}, step=1)
        runs.refresh()
        assert runs.table()["name"].tolist() == ["second", "first"]
        before = runs.view().version
        run.metrics({"validation_macro_f1": 0.2}, step=2)
        runs.refresh()
        assert runs.row(run.run_id)["metrics.validation_macro_f1"] == 0.2
        assert runs.view().version > before
    runs.refresh()
    assert runs.row(run.run_id)["status"] == "FINISHED"


def test_nothing_new_keeps_the_version(runs):
    _run("first", 0.5)
    runs.refresh()
    before = runs.view().version
    runs.refresh()
    assert runs.view().version == before


def test_changes_equal_what_reading_all_anew_gives(runs):
    for number in range(4):
        _run(f"run {number}", number / 10)
        runs.refresh()
    changed = runs.table().sort_values("run_id", ignore_index=True)
    runs.refresh(whole=True)
    whole = runs.table().sort_values("run_id", ignore_index=True)
    assert changed[sorted(changed.columns)].equals(whole[sorted(whole.columns)])


def test_a_store_that_goes_away_is_said_keeps_what_was_seen_and_recovers(runs, store):
    _run("first", 0.5)
    runs.refresh()
    shutil.move(store / "mlflow.db", store / "away.db")
    (store / "mlflow.db").write_text("this is no database, " * 100)
    runs._reader = None
    runs.refresh()
    view = runs.view()
    assert view.state == "away" and "not an MLflow database" in view.problem and len(view.table) == 1
    shutil.move(store / "away.db", store / "mlflow.db")
    runs.refresh()
    assert runs.view().state == "ready" and len(runs.table()) == 1


def test_an_unknown_run_has_neither_row_nor_files(runs):
    assert runs.row("none") is None
    assert runs.evaluation("none") is None and runs.epochs("none") == [] and runs.text("none", "model/README.md") == ""


def test_what_a_run_holds_is_read_once(filled_store, monkeypatch):
    runs = Runs(f"sqlite:///{filled_store}/mlflow.db", filled_store)
    runs.refresh()
    table = runs.table()
    run_id = table[table["metrics.test_macro_f1"].notna()]["run_id"].iloc[0]
    assert runs.evaluation(run_id) is runs.evaluation(run_id)
    for number in range(80):
        runs._cached(("text", str(number)), lambda: "x")
    assert len(runs._files) == 64


def test_a_store_that_was_removed_is_said_and_not_made_anew_and_comes_back(runs, store):
    _run("first", 0.5)
    runs.refresh()
    (store / "mlflow.db").rename(store / "aside.db")
    runs.refresh()
    assert runs.view().state == "away" and "was removed" in runs.view().problem and len(runs.table()) == 1
    assert not (store / "mlflow.db").exists()
    (store / "aside.db").rename(store / "mlflow.db")
    runs.refresh()
    assert runs.view().state == "ready" and runs.table()["name"].tolist() == ["first"]


def test_a_store_that_no_command_has_made_yet_holds_no_runs_and_is_not_made_by_looking(store):
    (store / "mlflow.db").rename(store / "aside.db")
    runs = Runs(f"sqlite:///{store}/mlflow.db", store)
    runs.refresh()
    assert runs.view().state == "ready" and runs.view().whole and runs.table().empty
    with pytest.raises(StoreProblem):
        runs.reader()
    assert not (store / "mlflow.db").exists()
    (store / "aside.db").rename(store / "mlflow.db")
    _run("first", 0.5)
    runs.refresh()
    assert runs.table()["name"].tolist() == ["first"]
    elsewhere = Runs(f"sqlite:///{store}/no/folder/mlflow.db", store)
    elsewhere.refresh()
    assert elsewhere.view().state == "away"


def test_a_store_that_is_removed_while_it_is_first_read_or_before_it_is_missed_is_not_made_anew(runs, store):
    _run("first", 0.5)
    runs.refresh()
    early = Runs(f"sqlite:///{store}/mlflow.db", store)
    early._watch = lambda: None  # its thread has not begun to read
    early.start()
    (store / "mlflow.db").rename(store / "aside.db")
    early.refresh()
    assert early.view().state == "away" and "was removed" in early.view().problem
    assert runs.view().state == "ready"  # its thread has not looked since
    with pytest.raises(StoreProblem, match="was removed"):
        runs.evaluation("any")
    assert not (store / "mlflow.db").exists()


def test_a_store_that_was_replaced_shows_what_the_new_one_holds(runs, store):
    shutil.copy(store / "mlflow.db", store / "empty.db")
    _run("other", 0.9)
    shutil.copy(store / "mlflow.db", store / "other.db")
    runs.refresh()
    os.replace(store / "empty.db", store / "mlflow.db")
    runs.refresh()
    assert runs.view().state == "ready" and runs.table().empty
    os.replace(store / "other.db", store / "mlflow.db")
    runs.refresh()
    assert runs.table()["name"].tolist() == ["other"]


def test_a_newest_run_that_is_gone_means_reading_everything(runs):
    _run("first", 0.5)
    gone = _run("second", 0.6)
    runs.refresh()
    connect(to_write=True).delete_run(gone)
    runs.refresh()
    assert runs.table()["name"].tolist() == ["first"]


def test_a_locked_store_is_away_within_seconds(runs, store):
    _run("first", 0.5)
    runs.refresh()
    holder = sqlite3.connect(store / "mlflow.db")
    holder.execute("BEGIN EXCLUSIVE")
    began = time.monotonic()
    runs.refresh()
    holder.close()
    assert runs.view().state == "away" and "locked" in runs.view().problem and time.monotonic() - began < 14
    runs.refresh()
    assert runs.view().state == "ready"


def test_a_store_that_does_not_answer_counts_as_away_and_is_ready_again_when_it_has(runs):
    _run("first", 0.5)
    runs.refresh()
    runs._asked = time.monotonic() - 60
    view = runs.view()
    assert view.state == "away" and "has not answered" in view.problem and view.read.startswith("20")
    runs.refresh()
    assert runs.view().state == "ready"
    unread = Runs()
    unread._asked = time.monotonic() - 60
    assert unread.view().state == "away"


def test_what_a_store_that_is_away_holds_is_not_known_and_not_taken_for_missing(runs, store):
    run_id = _run("first", 0.5)
    runs.refresh()
    assert runs.evaluation(run_id) is None  # known: it has none
    (store / "mlflow.db").rename(store / "aside.db")
    runs.refresh()
    for ask in (
        runs.evaluation,
        lambda name: runs.text(name, "dataset_info.json"),
        lambda name: runs.predictions(name, "x"),
    ):
        with pytest.raises(StoreProblem):
            ask(run_id)


def test_a_run_whose_process_was_killed_shows_no_sign_of_life(runs):
    with RunWriter("shop", "killed") as run:
        run.metrics({"validation_macro_f1": 0.1}, step=2)
        run.params({"epochs": "10"})
        run.tags({"process": f"{platform.node()}:1:1.00"})  # of a process that ended
        runs.refresh()
        row = runs.row(run.run_id)
        assert row["lost"] and row["live"].startswith("no sign of life since") and row["live"].endswith("epoch 2 of 10")
        run.tags({"process": process_tag()})
        runs.refresh()
        assert not runs.row(run.run_id)["lost"] and runs.row(run.run_id)["live"] == "epoch 2 of 10"

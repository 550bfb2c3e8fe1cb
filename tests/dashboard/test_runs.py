"""The table that a thread reads beside the pages, over real stores that fill, change and go away."""

import shutil

import pytest

from dashboard.runs import Runs
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

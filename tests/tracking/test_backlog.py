"""A run whose store is locked or away trains on: its epochs are kept, and logged when the store is back."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest

from tests.messages import collected_messages
from tests.tracking.made import make_report
from vlm_core.errors import UserError
from vlm_core.tracking import opening, patience
from vlm_core.tracking.backlog import Backlog, LoggedEpoch
from vlm_core.tracking.reader import RunReader
from vlm_core.tracking.store import connect
from vlm_core.tracking.writer import RunWriter

URI = "postgresql://me:hunter2@host/db"
LOCKED, AWAY = "database is locked", "connection refused"


class _Store:
    """Takes epochs, or raises the error that it was given."""

    def __init__(self) -> None:
        self.problem = ""
        self.taken: list[int] = []

    def log(self, epoch: LoggedEpoch) -> None:
        """Take an epoch."""
        if self.problem:
            raise RuntimeError(self.problem)
        self.taken.append(epoch.epoch)


def _epoch(number: int) -> LoggedEpoch:
    return LoggedEpoch(number, 1000 * number, {"loss": float("nan"), "macro_f1": 0.5}, {}, [("logs/a.json", "logs")])


@contextmanager
def _locked_store() -> Iterator[None]:
    with closing(sqlite3.connect("mlflow.db")) as database:
        database.execute("BEGIN EXCLUSIVE")
        yield
        database.rollback()


@pytest.mark.parametrize("problem", [LOCKED, AWAY])
def test_epochs_are_kept_until_the_store_is_back_and_logged_in_order(tmp_path: Path, problem: str) -> None:
    store, path = _Store(), tmp_path / "checkpoints" / "run" / "backlog.json"
    backlog = Backlog(path, URI, store.log)
    with collected_messages() as lines:
        backlog.add(_epoch(1))
        store.problem = problem
        backlog.add(_epoch(2))
        backlog.add(_epoch(3))
        assert store.taken == [1] and path.exists()
        store.problem = ""
        backlog.add(_epoch(4))
    assert store.taken == [1, 2, 3, 4] and not path.exists()
    assert len(lines) == 2 and "hunter2" not in "".join(lines)
    assert "training continues" in lines[0] and str(path) in lines[0] and "is back" in lines[1]


def test_the_next_process_logs_what_a_killed_one_kept(tmp_path: Path) -> None:
    store, path = _Store(), tmp_path / "backlog.json"
    store.problem = AWAY
    Backlog(path, URI, store.log).add(_epoch(1))
    store.problem = ""
    found: list[LoggedEpoch] = []
    Backlog(path, URI, found.append).log()
    assert str(found) == str([_epoch(1)]) and not path.exists()


def test_a_problem_that_does_not_pass_is_raised_at_once(tmp_path: Path) -> None:
    store, path = _Store(), tmp_path / "backlog.json"
    store.problem = "no space left on device"
    with pytest.raises(UserError, match="is full"):
        Backlog(path, URI, store.log).add(_epoch(1))


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "backlog.json"
    path.write_text("[{")
    with collected_messages() as lines:
        Backlog(path, URI, _Store().log).log()
    assert f"{path} is damaged" in lines[0]


def test_a_training_goes_on_while_its_store_is_locked(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(patience.SETTING, "0.01")  # that it would wait for, and then fail
    with RunWriter("made") as run:
        run.params({"model": "git"})
        run.epoch(make_report(1))
        with _locked_store():
            run.epoch(make_report(2))
            run.epoch(make_report(3))
        run.metrics({"test_macro_f1": 0.5})
    reader = RunReader()
    assert reader.history(run.run_id, "learning_rate").to_dict("list") == {
        "step": [1, 2, 3],
        "value": [1e-4, 0.5e-4, 1e-4 / 3],
    }
    listed = connect().list_artifacts(run.run_id, "results")
    assert [Path(each.path).name.rpartition("_")[2] for each in listed] == ["1.png", "2.png", "3.png"]
    assert not list(store.glob("checkpoints/*/*"))


def test_a_stopped_training_logs_what_it_kept_when_it_is_resumed(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "_SECONDS_TO_END", 0.0)

    def train(lock: ExitStack) -> None:
        with RunWriter("made") as run:
            run_ids.append(run.run_id)
            run.epoch(make_report(1))
            lock.enter_context(_locked_store())
            run.epoch_metrics(2, {"seconds": 1.0, "learning_rate": 0.5})
            raise KeyboardInterrupt

    run_ids: list[str] = []
    with ExitStack() as lock, pytest.raises(KeyboardInterrupt):
        train(lock)
    assert connect().get_run(run_ids[0]).info.status == "RUNNING"
    connect().set_terminated(run_ids[0], "KILLED")  # as the next command does
    with RunWriter("made", resume=run_ids[0]) as run:
        run.epoch_metrics(2, {"seconds": 1.0, "learning_rate": 0.25})  # trained again: it is there
        run.epoch_metrics(3, {"seconds": 1.0, "learning_rate": 0.125})
    history = RunReader().history(run_ids[0], "learning_rate").to_dict("list")
    assert history == {"step": [1, 2, 3], "value": [1e-4, 0.5, 0.125]}


def test_a_run_that_failed_says_why_whatever_becomes_of_its_epochs(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(backlog: Backlog) -> None:
        raise RuntimeError("not this")

    with pytest.raises(ValueError, match="boom"), RunWriter("made") as run:
        monkeypatch.setattr(Backlog, "log", fail)
        raise ValueError("boom")
    assert connect().get_run(run.run_id).info.status == "FAILED"

"""A store that is locked or away in the middle of a run is waited for, with a sentence and without losing anything."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from tests.messages import collected_messages
from vlm_core.errors import UserError
from vlm_core.progress import quiet
from vlm_core.tracking import patience
from vlm_core.tracking.patience import Patient, expect, patiently, waiting_at_most
from vlm_core.tracking.reader import RunReader
from vlm_core.tracking.store import connect
from vlm_core.tracking.writer import RunWriter

URI = "postgresql://me:hunter2@host/db"
LOCKED, AWAY = "database is locked", "connection refused"
REFUSED = "401 Client Error: Unauthorized for url: http://host/api: You are not authenticated."


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is slept, and the sentence comes at once."""
    for name, value in {"SECONDS_SILENT": 0.0, "SECONDS_BETWEEN": 0.0, "SECONDS_LOCKED": 0.0}.items():
        monkeypatch.setattr(patience, name, value)
    monkeypatch.setattr(patience, "_written", set())


def _failing(times: int, text: str) -> Callable[[], str]:
    """What fails so many times with that error and then returns "done"."""
    left = [RuntimeError(text)] * times

    def work() -> str:
        if left:
            raise left.pop()
        return "done"

    return work


@pytest.mark.parametrize(
    ("text", "said"),
    [(LOCKED, "is locked by another process"), (AWAY, "does not answer"), (REFUSED, "refuses the login that it took")],
)
def test_a_store_that_was_written_to_is_waited_for_with_a_sentence(text: str, said: str) -> None:
    expect(URI)
    with collected_messages() as lines:
        assert patiently(URI, _failing(3, text)) == "done"
    assert len(lines) == 2
    assert said in lines[0] and "for up to 15 minutes (STORE_WAIT_MINUTES)" in lines[0] and "hunter2" not in lines[0]
    assert "is back" in lines[1]


def test_the_cell_of_a_study_and_the_trial_of_a_search_say_that_they_wait() -> None:
    expect(URI)
    with collected_messages() as lines, quiet():
        assert patiently(URI, _failing(3, AWAY)) == "done"
    assert len(lines) == 2
    assert "does not answer" in lines[0] and "is back" in lines[1]


@pytest.mark.parametrize("text", [AWAY, REFUSED])
def test_a_store_that_has_never_answered_is_not_waited_for(text: str) -> None:
    with pytest.raises(RuntimeError, match=text[:20]):
        patiently(URI, _failing(1, text))


def test_another_error_is_raised_at_once() -> None:
    expect(URI)
    with pytest.raises(RuntimeError, match="boom"):
        patiently(URI, _failing(1, "boom"))


def test_a_store_that_was_waited_for_in_vain_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    expect(URI)
    clock = iter(range(0, 100_000, 400))
    monkeypatch.setattr(patience.time, "monotonic", lambda: float(next(clock)))
    with pytest.raises(RuntimeError, match=LOCKED):
        patiently(URI, _failing(99, LOCKED))
    assert next(clock) == 1600  # it began at 0 and tried until 1200: 15 minutes are 900 seconds
    with pytest.raises(RuntimeError, match=AWAY):
        patiently(URI, _failing(1, AWAY))


def test_the_wait_is_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(patience.SETTING, "0")
    expect(URI)
    with pytest.raises(RuntimeError, match=AWAY):
        patiently(URI, _failing(1, AWAY))
    monkeypatch.setenv(patience.SETTING, "long")
    with pytest.raises(UserError, match="STORE_WAIT_MINUTES=long is not a number of minutes"):
        expect(URI)


def test_a_run_that_was_stopped_does_not_wait() -> None:
    expect(URI)
    with waiting_at_most(0.0), pytest.raises(RuntimeError, match=LOCKED):
        patiently(URI, _failing(1, LOCKED))
    assert patiently(URI, _failing(1, LOCKED)) == "done"


def test_a_run_that_was_stopped_waits_for_all_its_calls_together(monkeypatch: pytest.MonkeyPatch) -> None:
    expect(URI)
    clock = [0.0]
    monkeypatch.setattr(patience.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(patience.time, "sleep", lambda seconds: clock.__setitem__(0, clock[0] + 1))
    with waiting_at_most(5.0):
        for _ in range(3):
            with pytest.raises(RuntimeError, match=LOCKED):
                patiently(URI, _failing(99, LOCKED))
    assert clock[0] == 5.0


class _Releasing(logging.Handler):
    """Ends the lock on a database when the wait for it is announced."""

    def __init__(self, database: sqlite3.Connection) -> None:
        super().__init__()
        self.database = database

    def emit(self, record: logging.LogRecord) -> None:
        """End the lock."""
        self.database.rollback()


def test_what_is_logged_while_the_store_is_locked_is_there_afterwards(store: Path) -> None:
    handler, log = None, logging.getLogger("vlm_core.tracking.patience")
    with RunWriter("made") as run, closing(sqlite3.connect("mlflow.db")) as database:
        database.execute("BEGIN EXCLUSIVE")
        handler = _Releasing(database)
        log.addHandler(handler)
        try:
            run.metrics({"macro_f1": 0.5}, step=3)
        finally:
            log.removeHandler(handler)
    history = RunReader().history(run.run_id, "macro_f1")
    assert history.to_dict("list") == {"step": [3], "value": [0.5]}


def test_no_lock_keeps_a_signal_waiting_for_mlflows_20_seconds(store: Path) -> None:
    client = connect()
    assert isinstance(client, Patient)
    with client._tracking_client.store.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA busy_timeout = 20000;")
        assert connection.exec_driver_sql("PRAGMA busy_timeout").scalar() == 1000

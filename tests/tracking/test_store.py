"""The default place, as MLflow's own commands see it, and one sentence for each way a store can be unusable."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import sqlite3
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import pytest
import sqlalchemy
from sqlalchemy.pool import NullPool

from tests.stores import copy_database
from vlm_core.errors import UserError
from vlm_core.tracking import patience
from vlm_core.tracking.opening import prepare_store
from vlm_core.tracking.problems import _SENTENCES
from vlm_core.tracking.store import connect, open_mlflow, short_timeouts, store_errors, store_uri
from vlm_core.tracking.writer import RunWriter


def test_the_default_is_the_place_where_every_mlflow_command_looks(store: Path) -> None:
    mlflow = open_mlflow()
    assert store_uri() == f"sqlite:///{store}/mlflow.db" == mlflow.get_tracking_uri()
    with RunWriter("made") as run:
        pass
    info = mlflow.MlflowClient().get_run(run.run_id).info
    assert info.artifact_uri.startswith(f"{store}/mlruns/")


def test_the_variable_names_another_place(store: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    other = f"sqlite:///{tmp_path}/other.db"
    shutil.copy(store / "mlflow.db", tmp_path / "other.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", other)
    assert store_uri() == other
    with RunWriter("made") as run:
        pass
    with closing(sqlite3.connect(tmp_path / "other.db")) as database:
        assert database.execute("SELECT run_uuid FROM runs").fetchall() == [(run.run_id,)]


def test_knocking_leaves_no_trace(store: Path) -> None:
    before = (store / "mlflow.db").read_bytes()
    connect(to_write=True)
    assert (store / "mlflow.db").read_bytes() == before


@contextmanager
def _as_nobody() -> Iterator[None]:
    """Root may write everywhere: give that up for a while."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def read_only(empty_database: Path) -> Iterator[Path]:
    """A store that anybody may read and nobody may write."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    path = copy_database(empty_database, folder)
    path.chmod(0o444)
    folder.chmod(0o555)
    yield path
    folder.chmod(stat.S_IRWXU)
    shutil.rmtree(folder)


@pytest.mark.slow
def test_a_reader_and_a_writer_that_make_the_store_at_once_both_succeed(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    openers = [get_context("fork").Process(target=partial(connect, uri, to_write=write)) for write in (False, True)]
    for opener in openers:
        opener.start()
    for opener in openers:
        opener.join(120)
    assert [opener.exitcode for opener in openers] == [0, 0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mlflow.db", "mlflow.db.lock"]


def test_a_read_only_store_is_refused_for_writing_and_can_be_read(read_only: Path) -> None:
    with _as_nobody():
        with pytest.raises(UserError, match=r"cannot be written to.*MLFLOW_TRACKING_URI"):
            connect(f"sqlite:///{read_only}", to_write=True)
        assert connect(f"sqlite:///{read_only}").search_experiments(max_results=1)[0].name == "Default"


def test_a_folder_that_takes_no_new_file_is_refused(read_only: Path) -> None:
    with _as_nobody(), pytest.raises(UserError, match="cannot be"):
        connect(f"sqlite:///{read_only.parent}/new.db", to_write=True)


def test_a_full_disk_is_named_and_loses_nothing_that_was_logged(store: Path) -> None:
    from sqlalchemy import event
    from sqlalchemy.pool import Pool

    def fill(connection: sqlite3.Connection, record: object) -> None:
        connection.execute("PRAGMA max_page_count = 1")  # SQLite takes the pages there are as the least

    with RunWriter("made") as run:
        run.metrics({"kept": 1.0})
    event.listen(Pool, "connect", fill)
    try:
        with pytest.raises(UserError, match=r"is full: free some space.*resume="):
            shutil.copy(store / "mlflow.db", store / "full.db")
            os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{store}/full.db"
            with RunWriter("made", "second") as second:
                for step in range(3000):
                    second.metrics({f"metric {step} {number}": 1.0 for number in range(200)})
    finally:
        os.environ.pop("MLFLOW_TRACKING_URI")
        event.remove(Pool, "connect", fill)
    assert connect(f"sqlite:///{store}/full.db").get_run(run.run_id).data.metrics["kept"] == 1.0


def test_an_artifact_that_finds_no_room_is_named(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def find_no_room(*given: object, **named: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (store / "note.txt").write_text("x")
    with RunWriter("made") as run:
        monkeypatch.setattr(shutil, "copyfileobj", find_no_room)
        with pytest.raises(UserError, match="is full"):
            run.artifact(store / "note.txt")


def test_a_store_of_another_version_says_how_to_upgrade(store: Path) -> None:
    with closing(sqlite3.connect("mlflow.db")) as database:
        database.execute("UPDATE alembic_version SET version_num = '0123456789ab'")
        database.commit()
    with pytest.raises(UserError, match=r"another version of MLflow.*mlflow db upgrade sqlite:///"):
        connect()


def test_a_file_that_is_no_database(store: Path) -> None:
    Path("mlflow.db").write_text("not a database, and long enough to be looked at " * 30)
    with pytest.raises(UserError, match="not an MLflow database"):
        connect()


def test_a_locked_store(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "SECONDS_LOCKED", 0.0)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store}/mlflow.db?timeout=0.05")
    with closing(sqlite3.connect("mlflow.db")) as database:
        database.execute("BEGIN EXCLUSIVE")
        with pytest.raises(UserError, match="locked by another process"):
            connect()


@pytest.mark.parametrize("uri", ["./mlruns", "file:///tmp/somewhere"])
def test_a_folder_is_no_store_any_more(uri: str) -> None:
    with pytest.raises(UserError, match="can no longer be a tracking store"):
        connect(uri)


@pytest.mark.parametrize(
    "uri", ["postgresql://host/db?password=hunter2", "postgresql://me:hun/ter2@host:x/db", "nosuch://me:hunter2@host"]
)
def test_no_sentence_shows_a_password(uri: str) -> None:
    for signs, _ in _SENTENCES:
        with pytest.raises(UserError) as raised, store_errors(uri):
            raise OSError(f"{signs[0]} {uri}")
        assert "ter2" not in str(raised.value) and "me:" not in str(raised.value)


@pytest.mark.parametrize("scheme", ["http", "postgresql", "mysql+pymysql"])
def test_a_store_that_is_away_is_noticed_at_once(scheme: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        uri = f"{scheme}://user:secret@127.0.0.1:{taken.getsockname()[1]}/db"
        started = time.monotonic()
        with pytest.raises(UserError, match="does not answer") as raised:
            connect(uri)
    assert time.monotonic() - started < 5
    assert "secret" not in str(raised.value)


@contextmanager
def _without(module: str) -> Iterator[None]:
    """Hide a library that may be installed."""

    class Hidden:
        @staticmethod
        def find_spec(name: str, *rest: object) -> None:
            if name == module:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "meta_path", [Hidden, *sys.meta_path])
        for name in [name for name in sys.modules if name.partition(".")[0] == module]:
            patch.delitem(sys.modules, name)
        yield


@pytest.mark.parametrize(
    ("scheme", "module", "way_out"),
    [
        ("postgresql", "psycopg", "[postgres]', or make setup EXTRAS=postgres"),
        ("postgresql+psycopg", "psycopg", "run pip install 'vlm-product-categorisation[postgres]'"),
        ("postgresql+psycopg2", "psycopg2", "run pip install psycopg2-binary."),
        ("mysql+pymysql", "pymysql", "run pip install pymysql."),
    ],
)
def test_a_missing_driver_is_named(scheme: str, module: str, way_out: str) -> None:
    with _without(module), socket.create_server(("127.0.0.1", 0)) as server, pytest.raises(UserError) as raised:
        connect(f"{scheme}://user:secret@127.0.0.1:{server.getsockname()[1]}/db")
    assert f"need {module}, which is not installed: " in str(raised.value)
    assert way_out in str(raised.value)


def test_a_missing_library_of_artifacts_is_named(store: Path) -> None:
    connect(to_write=True).create_experiment("in a bucket", artifact_location="s3://bucket/runs")
    with _without("boto3"), pytest.raises(UserError, match=r"need boto3, which is not installed: .*\[s3\]', or make"):
        prepare_store("in a bucket")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('FATAL:  password authentication failed for user "me"', "refuses user or password"),
        ('FATAL:  database "db" does not exist', "does not exist: create it"),
        ("(1045, \"Access denied for user 'me'@'host'\")", "refuses user or password"),
        ("terminating connection due to administrator command", "does not answer"),
        ("API request to endpoint /api failed with error code 401 != 200", "refuses the credentials"),
        ("Unable to locate credentials", "set AWS_ACCESS_KEY_ID"),
    ],
)
def test_what_a_database_and_an_artifact_store_say_is_a_sentence(text: str, said: str) -> None:
    with pytest.raises(UserError, match=said), store_errors("postgresql://host/db"):
        raise RuntimeError(text)


def test_a_store_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with socket.create_server(("127.0.0.1", 0)) as mute, pytest.raises(UserError, match="does not answer"):
        connect(f"http://127.0.0.1:{mute.getsockname()[1]}")


def test_impatience_ends_and_respects_what_the_user_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "33")
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", raising=False)
    with short_timeouts():
        assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "33"
        assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "1"
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "33"
    assert "MLFLOW_HTTP_REQUEST_MAX_RETRIES" not in os.environ


def test_a_signal_while_a_connection_is_closed_leaves_no_traceback(caplog: pytest.LogCaptureFixture) -> None:
    class Interrupted(sqlite3.Connection):
        def close(self) -> None:
            super().close()
            raise KeyboardInterrupt

    open_mlflow()
    engine = sqlalchemy.create_engine("sqlite://", poolclass=NullPool, connect_args={"factory": Interrupted})
    with pytest.raises(KeyboardInterrupt), engine.connect():
        pass
    assert caplog.records == []


def test_a_mistake_of_ours_keeps_its_own_type() -> None:
    with pytest.raises(ZeroDivisionError), store_errors("sqlite:///mlflow.db"):
        _ = 1 / 0


def test_nothing_is_printed_from_the_first_opening_to_the_end(empty_database: Path) -> None:
    assert empty_database.with_suffix(".printed").read_text() == ""

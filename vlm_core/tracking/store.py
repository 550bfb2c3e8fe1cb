"""The tracking store, opened quietly, with one clear sentence for whatever can be wrong with it.

The place is MLflow's own: `MLFLOW_TRACKING_URI` if set, else `mlflow.db` in the working directory with artifacts
under `mlruns/`, so that `mlflow ui`, `mlflow run .` and `mlflow models serve` meet there with no variable set.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, Final, cast

from vlm_core.errors import UserError
from vlm_core.tracking.database_file import whole_database
from vlm_core.tracking.patience import Patient, expect, patiently
from vlm_core.tracking.problems import problem_sentence

if TYPE_CHECKING:
    from mlflow import MlflowClient

SECONDS_TO_ANSWER: Final = 10


class StoreProblem(UserError):
    """The store itself cannot be read or written now: whether it holds what was asked for is not known."""


_DATABASE_PORTS: Final = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
_QUIET: Final = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
}
_LEVELS: Final = {
    "mlflow": logging.WARNING,  # it may have been imported before, with its INFO lines on
    "alembic": logging.WARNING,
    "mlflow.store.db.utils": logging.CRITICAL,  # logs each database error with its traceback before it raises it
    # logs, with its traceback, what a signal raises while it closes a connection, and raises it again
    "sqlalchemy.pool": logging.CRITICAL,
    "psycopg": logging.ERROR,  # warns of each insertion that the database refused, which is raised and handled
    "urllib3.connectionpool": logging.ERROR,  # reports every retry; `store_errors` reports once
}
# MLflow's defaults are 120 seconds and 7 retries, which is right in the middle of a run and too long at its start.
_SHORT_TIMEOUTS: Final = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": str(SECONDS_TO_ANSWER),
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
}


def open_mlflow() -> Any:
    """Return the mlflow module, without its notes on migrations, uploads and addresses on the user's console.

    Variables the user has set are left alone. The first call costs 3 s.
    """
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    import mlflow

    if os.environ["MLFLOW_LOGGING_LEVEL"] == "WARNING":
        for name, level in _LEVELS.items():
            logger = logging.getLogger(name)
            if logger.level != level:  # setting it goes through all loggers there are
                logger.setLevel(level)
    return mlflow


@cache
def _hear_signals_while_locked() -> None:
    """Let SQLite wait for a lock for one second at a time, instead of MLflow's 20, in which no signal is heard.

    `patience` waits longer.
    """
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    def shorten(
        connection: Any, cursor: Any, statement: str, parameters: Any, context: Any, executemany: bool
    ) -> tuple[str, Any]:
        is_wait = statement.startswith("PRAGMA busy_timeout")
        return "PRAGMA busy_timeout = 1000" if is_wait else statement, parameters

    event.listen(Engine, "before_cursor_execute", shorten, retval=True)


def store_uri() -> str:
    """Return the address of the tracking store that every MLflow command in this folder would use."""
    return str(open_mlflow().get_tracking_uri())


def connect(uri: str = "", *, to_write: bool = False) -> MlflowClient:
    """Return a client of the store at `uri` (empty: `store_uri()`), after checking that the store responds.

    From then on a store that is opened `to_write` is waited for when it is locked or away (see `patience`).
    Raises StoreProblem if the store is away, locked, damaged, made by another MLflow version or, when it is opened
    `to_write`, read-only or on a full disk.
    """
    open_mlflow()
    uri = uri or store_uri()
    with store_errors(uri), short_timeouts():
        client = patiently(uri, _open, uri, to_write)
    if to_write:
        expect(uri)
        if uri.startswith("http"):  # MLflow would try again for minutes without a word
            os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", _SHORT_TIMEOUTS["MLFLOW_HTTP_REQUEST_MAX_RETRIES"])
    return cast("MlflowClient", Patient(client, uri))


def _open(uri: str, to_write: bool) -> MlflowClient:
    _hear_signals_while_locked()
    with whole_database(uri, to_write=to_write):
        _probe(uri, to_write)
        client: MlflowClient = open_mlflow().MlflowClient(tracking_uri=uri, registry_uri=uri)
        client.search_experiments(max_results=1)
    return client


@contextmanager
def short_timeouts() -> Iterator[None]:
    """Give an HTTP store ten seconds to respond inside the block; what the user has set stays."""
    changed = [name for name in _SHORT_TIMEOUTS if name not in os.environ]
    os.environ.update({name: _SHORT_TIMEOUTS[name] for name in changed})
    try:
        yield
    finally:
        for name in changed:
            os.environ.pop(name, None)


def _probe(uri: str, to_write: bool) -> None:
    """Raise at once where MLflow would retry for minutes (a database that is down) or fail late."""
    if uri.startswith("sqlite"):
        _probe_file(uri, to_write)
        return
    import sqlalchemy
    from sqlalchemy.engine import make_url
    from sqlalchemy.pool import NullPool

    scheme = uri.split(":", 1)[0].split("+")[0]
    if scheme not in _DATABASE_PORTS:
        return
    url = make_url(uri)
    if url.host:
        socket.create_connection((url.host, url.port or _DATABASE_PORTS[scheme]), SECONDS_TO_ANSWER).close()
    sqlalchemy.create_engine(uri, poolclass=NullPool).connect().close()  # names a missing driver and a wrong password


def _probe_file(uri: str, to_write: bool) -> None:
    import sqlalchemy
    from sqlalchemy.pool import NullPool

    with sqlalchemy.create_engine(uri, poolclass=NullPool).connect() as connection:
        connection.exec_driver_sql("PRAGMA schema_version")
        if to_write:
            # only a real write detects a read-only folder, file or disk; rolled back, it leaves no trace
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            connection.exec_driver_sql("CREATE TABLE vlm_core_probe (x INTEGER)")
            connection.exec_driver_sql("ROLLBACK")


@contextmanager
def store_errors(uri: str) -> Iterator[None]:
    """Turn what MLflow, SQLAlchemy and the system raise about the store at `uri` into a StoreProblem.

    What no user could fix passes unchanged: it is a bug of ours.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        sentence = problem_sentence(error, uri)
        if sentence is None:
            raise
        raise StoreProblem(sentence) from error


def forget_connections(uri: str) -> None:
    """Close this process's open connections to a database: they would keep reading a file that was replaced."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    engine = SqlAlchemyStore._engine_map.get(uri)
    if engine is not None:
        engine.dispose()

"""The tracking store, opened quietly, with one clear sentence for whatever can be wrong with it.

The place is MLflow's own: `MLFLOW_TRACKING_URI` if set, else `mlflow.db` in the working directory with artifacts
under `mlruns/`, so that `mlflow ui`, `mlflow run .` and `mlflow models serve` meet there with no variable set.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from vlm_core.errors import UserError, redact
from vlm_core.tracking.database_file import whole_database

if TYPE_CHECKING:
    from mlflow import MlflowClient

SECONDS_TO_ANSWER: Final = 10
_DATABASE_PORTS: Final = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
_QUIET: Final = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
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
        # mlflow may have been imported before, with its INFO lines on
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        logging.getLogger("alembic").setLevel(logging.WARNING)
        # logs each database error with its traceback before it raises it
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
        # urllib3 reports every retry; `store_errors` reports once
        logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
    return mlflow


def store_uri() -> str:
    """Return the address of the tracking store that every MLflow command in this folder would use."""
    return str(open_mlflow().get_tracking_uri())


def connect(uri: str = "", *, to_write: bool = False) -> MlflowClient:
    """Return a client of the store at `uri` (empty: `store_uri()`), after checking that the store responds.

    Raises UserError if the store is away, locked, damaged, made by another MLflow version or, when it is opened
    `to_write`, read-only or on a full disk.
    """
    mlflow = open_mlflow()
    uri = uri or store_uri()
    with store_errors(uri), short_timeouts(), whole_database(uri, to_write=to_write):
        _probe(uri, to_write)
        client: MlflowClient = mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)
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
    from sqlalchemy.engine import make_url

    scheme = uri.split(":", 1)[0].split("+")[0]
    if scheme not in _DATABASE_PORTS:
        return
    url = make_url(uri)
    if url.host:
        socket.create_connection((url.host, url.port or _DATABASE_PORTS[scheme]), SECONDS_TO_ANSWER).close()


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
    """Turn what MLflow, SQLAlchemy and the system raise about the store at `uri` into a UserError.

    What no user could fix passes unchanged: it is a bug of ours.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        sentence = _sentence(error, uri)
        if sentence is None:
            raise
        raise UserError(sentence) from error


def _sentence(error: BaseException, uri: str) -> str | None:
    text = _whole_text(error)
    place = redact(uri)
    for signs, sentence in _SENTENCES:
        if any(sign in text for sign in signs):
            return sentence.format(place=place)
    return None


def _whole_text(error: BaseException | None) -> str:
    """Return the lower-case messages of an error and of its causes, with system error names."""
    parts = []
    while error is not None:
        parts.append(str(error))
        if isinstance(error, OSError) and error.errno is not None:
            parts.append(f"[{errno.errorcode.get(error.errno, '')}]")
        error = error.__cause__ or error.__context__
    return "\n".join(parts).lower()


# First match wins: the system's precise messages come before a library's broad ones.
_SENTENCES: Final = (
    (
        ("[enospc]", "no space left", "database or disk is full", "[edquot]"),
        "the disk of the tracking store {place} or of its artifacts is full: free some space, then continue with "
        "resume=<run id>; what was logged is kept.",
    ),
    (
        ("readonly database", "read-only", "[erofs]", "[eacces]", "[eperm]", "permission denied"),
        "the tracking store {place} or its artifacts folder cannot be written to: make it writable, or set "
        "MLFLOW_TRACKING_URI to another one, such as sqlite:////tmp/mlflow.db.",
    ),
    (
        ("out-of-date database schema", "can't locate revision"),
        "the tracking store {place} was made by another version of MLflow: copy the file as a backup, then run "
        "`mlflow db upgrade {place}` with the newest of the two, or set MLFLOW_TRACKING_URI to a new store.",
    ),
    (
        ("database is locked",),
        "the tracking store {place} is locked by another process: wait for it to end, then try again.",
    ),
    (
        ("file is not a database", "database disk image is malformed"),
        "the tracking store {place} is not an MLflow database, or is damaged: move the file away, or set "
        "MLFLOW_TRACKING_URI to another store.",
    ),
    (
        ("unable to open database file", "[enoent]", "[enotdir]", "[eisdir]"),
        "the tracking store {place} or a file of its artifacts cannot be opened: check the path, or set "
        "MLFLOW_TRACKING_URI to another store.",
    ),
    (
        ("filesystem tracking backend", "file store"),
        "a folder such as {place} can no longer be a tracking store: set MLFLOW_TRACKING_URI=sqlite:///mlflow.db, or "
        "move its runs there with `mlflow migrate-filestore`.",
    ),
    (
        ("unauthenticated", "invalid credentials", "error code 401", "error code 403", "status code 401"),
        "the tracking store {place} refuses the credentials: set MLFLOW_TRACKING_USERNAME and "
        "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN.",
    ),
    (
        (
            *("max retries exceeded", "connection refused", "timed out", "failed to resolve", "could not connect"),
            *("can't connect", "connection reset", "[econnrefused]", "network is unreachable", "name or service not"),
            *("error code 502", "error code 503", "error code 504", "api request to"),
        ),
        "the tracking store {place} does not answer: start its server, or unset MLFLOW_TRACKING_URI to keep runs in "
        "mlflow.db here.",
    ),
    (
        ("no module named", "can't load plugin", "model registry functionality is unavailable", "unsupported uri"),
        "the tracking store {place} is of a kind that is not installed: install its database driver, or set "
        "MLFLOW_TRACKING_URI=sqlite:///mlflow.db.",
    ),
    (
        ("create table", "alter table", "duplicate column name", "no such table", "no such column"),
        "the tracking store {place} is incomplete, because a program was stopped while it made or changed its tables: "
        "if it holds no runs yet, delete the file, and the next command makes a new one; else bring back a backup, or "
        "set MLFLOW_TRACKING_URI to another store.",
    ),
)

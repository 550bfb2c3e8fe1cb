"""The file of an SQLite store: made whole or not at all, whoever opens it first and wherever they are killed."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

_SECONDS_AT_REST: Final = 5.0  # without a change, after which nobody else is making a file's tables
_SECONDS_TO_WAIT: Final = 60.0  # for another program, such as `mlflow ui`, to make them


def sqlite_path(uri: str) -> Path | None:
    """Return the database file of an SQLite address; None for other stores, memory and `file:` addresses."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        url = make_url(uri)
    except (ArgumentError, ValueError):
        return None
    name = url.database or ""
    is_file = url.drivername.startswith("sqlite") and name not in ("", ":memory:") and not name.startswith("file:")
    return Path(name) if is_file else None


@contextmanager
def whole_database(uri: str, *, to_write: bool) -> Iterator[None]:
    """Make the database file of the address if there is none; inside the block no other process of ours makes tables.

    MLflow makes tables wherever one is missing, for readers as well, and two that do so at once both fail. A new
    database is built beside its place and takes it when it is whole. One of an earlier MLflow is changed in place, by
    MLflow, inside the block. Only `to_write` are folders made. Raises OSError and what SQLAlchemy and MLflow raise.
    """
    path = sqlite_path(uri)
    if path is not None and not to_write and not path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "unable to open database file", str(path))
    if path is None or _is_whole(uri, path):
        yield
        return
    from filelock import FileLock

    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f"{path.name}.lock")):
        if _is_empty(path):
            _build(uri, path)
        _wait_for_others(uri, path)
        yield


def _build(uri: str, path: Path) -> None:
    from sqlalchemy.engine import make_url

    partial = path.with_name(f".{path.name}.new")  # under the lock, what has this name was left by a killed process
    _remove(partial)
    try:
        _make_tables(make_url(uri).set(database=str(partial)).render_as_string(hide_password=False))
        if _is_empty(path):  # still: `mlflow ui` knows nothing of our lock
            os.replace(partial, path)
    finally:
        _remove(partial)


def _make_tables(uri: str) -> None:
    from mlflow.store.tracking import DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    store_type: Any = SqlAlchemyStore  # MLflow ships no types for it
    store_type(uri, DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH).engine.dispose()


def _wait_for_others(uri: str, path: Path) -> None:
    """Wait while another program is making the tables of the file."""
    end = time.monotonic() + _SECONDS_TO_WAIT
    while time.time() - path.stat().st_mtime < _SECONDS_AT_REST and time.monotonic() < end:
        if _is_whole(uri, path):
            return
        time.sleep(0.1)


def _is_whole(uri: str, path: Path) -> bool:
    """Return whether the file has all tables, so that MLflow makes none."""
    if _is_empty(path):
        return False
    import sqlalchemy
    from mlflow.store.db import utils
    from sqlalchemy.pool import NullPool

    mlflow: Any = utils  # ships no types for it
    return bool(mlflow._all_tables_exist(sqlalchemy.create_engine(uri, poolclass=NullPool)))


def _is_empty(path: Path) -> bool:
    return not path.exists() or path.stat().st_size == 0


def _remove(partial: Path) -> None:
    for ending in ("", "-journal", "-wal", "-shm"):
        partial.with_name(partial.name + ending).unlink(missing_ok=True)

"""The first opening of a store, killed and raced at its worst moments."""

from __future__ import annotations

import os
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import NoReturn

import pytest

from tests.stub_training import kill_at
from vlm_core.errors import UserError
from vlm_core.tracking import database_file
from vlm_core.tracking.database_file import sqlite_path
from vlm_core.tracking.store import connect

MAKE_TABLES = "vlm_core.tracking.database_file._make_tables"


@pytest.fixture
def quick_builds(empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow's tables are copied: to make them takes seconds."""
    monkeypatch.setattr(MAKE_TABLES, lambda uri: shutil.copy(empty_database, _new_file(uri)))


def _new_file(uri: str) -> Path:
    path = sqlite_path(uri)
    assert path and not path.exists()
    return path


@pytest.mark.parametrize("moment", ["half built", "before its name"])
@pytest.mark.usefixtures("hasty_mlflow", "quick_builds")
def test_a_first_opening_that_is_killed_leaves_the_next_one_all_there_is_to_do(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"

    def work(here: Callable[[], NoReturn]) -> None:
        if moment == "half built":

            def make(address: str) -> NoReturn:
                path = _new_file(address)
                path.write_bytes(b"SQLite format 3\0 and no more")
                path.with_name(f"{path.name}-journal").write_bytes(b"undone")
                here()

            monkeypatch.setattr(MAKE_TABLES, make)
        else:
            monkeypatch.setattr(os, "replace", lambda *paths: here())
        connect(uri, to_write=True)

    kill_at(work)
    assert not (tmp_path / "mlflow.db").exists()
    assert connect(uri).search_experiments(max_results=1)[0].name == "Default"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mlflow.db", "mlflow.db.lock"]


@pytest.mark.usefixtures("hasty_mlflow", "quick_builds")
def test_an_empty_file_is_no_database_yet(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").touch()
    assert connect(f"sqlite:///{tmp_path}/mlflow.db").search_experiments(max_results=1)


@pytest.mark.usefixtures("hasty_mlflow")
def test_a_database_that_another_program_is_making_is_waited_for(empty_database: Path, tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE experiments (x)")

    def finish() -> None:
        time.sleep(0.1)
        shutil.copy(empty_database, tmp_path / "whole")
        os.replace(tmp_path / "whole", path)

    thread = threading.Thread(target=finish)
    thread.start()
    assert connect(f"sqlite:///{path}").search_experiments(max_results=1)
    thread.join()


@pytest.mark.usefixtures("store")
def test_a_database_that_was_left_half_made_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database_file, "_SECONDS_AT_REST", 0.0)
    with closing(sqlite3.connect("mlflow.db")) as database:  # as MLflow leaves it: tables of a version it has not noted
        database.execute("DROP TABLE workspaces")
        database.execute("UPDATE alembic_version SET version_num = '451aebb31d03'")
        database.commit()
    for to_write in (False, True):
        with pytest.raises(UserError, match=r"is incomplete.*delete the file"):
            connect(to_write=to_write)


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("sqlite:///mlflow.db", "mlflow.db"),
        ("sqlite:////tmp/mlflow.db?timeout=1", "/tmp/mlflow.db"),
        ("sqlite+pysqlite:///x.db", "x.db"),
        ("sqlite://", ""),
        ("sqlite:///:memory:", ""),
        ("sqlite:///file:x.db?mode=ro&uri=true", ""),
        ("postgresql://host/db", ""),
        ("./mlruns", ""),
    ],
)
def test_the_file_of_an_address(uri: str, path: str) -> None:
    assert sqlite_path(uri) == (Path(path) if path else None)

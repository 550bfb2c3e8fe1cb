"""A project folder that was moved: what is said, what is never written, and how its store is mended."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from experiments import relocate as command
from tests.stores import copy_database
from vlm_core.errors import UserError
from vlm_core.tracking.opening import prepare_store
from vlm_core.tracking.reader import RunReader
from vlm_core.tracking.registry import resolve
from vlm_core.tracking.relocation import find_move, relocate
from vlm_core.tracking.store import connect, store_uri
from vlm_core.tracking.writer import RunWriter

EXPERIMENT = "made"


@pytest.fixture
def laptop(store: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project folder with spaces, whose store holds a run with a file and a model's address."""
    folder = store / "my laptop"
    folder.mkdir()
    copy_database(empty_database, folder)
    monkeypatch.chdir(folder)
    return folder


def _log() -> str:
    Path("note.txt").write_text("kept")
    with RunWriter(EXPERIMENT, "first") as run:
        run.artifact(Path("note.txt"))
    return run.run_id


def _move(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    server = folder.with_name("server")
    monkeypatch.chdir("/")
    folder.rename(server)
    monkeypatch.chdir(server)
    return server


def test_a_moved_store_says_so_and_is_mended_by_one_command(
    laptop: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_id = _log()
    assert RunReader().text(run_id, "note.txt") == "kept"
    server = _move(laptop, monkeypatch)
    said = rf"points to artifacts in {laptop}/mlruns.*moved.* to {server}: .*relocate --old '{laptop}' --new {server}"
    with pytest.raises(UserError, match=said):
        RunReader().text(run_id, "note.txt")
    with pytest.raises(UserError, match=said):
        prepare_store(EXPERIMENT)
    with pytest.raises(UserError, match=said), RunWriter(EXPERIMENT):
        pass
    monkeypatch.setenv("MLFLOW_RUN_ID", connect().create_run("1").info.run_id)
    with pytest.raises(UserError, match=said), RunWriter(EXPERIMENT):
        pass
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    assert not laptop.exists()
    command.main(["--old", str(laptop), "--new", str(server)])
    assert f"which begin with {server} now" in capsys.readouterr().out
    assert RunReader().text(run_id, "note.txt") == "kept"
    prepare_store(EXPERIMENT)
    second = _log()
    assert list((server / "mlruns").rglob(f"{second}/artifacts/note.txt"))
    assert not laptop.exists()
    with pytest.raises(UserError, match="no address.*check old="):
        relocate(laptop, server)


def test_a_copy_does_not_write_into_the_original(laptop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _log()
    copy = laptop.with_name("copy")
    shutil.copytree(laptop, copy)
    monkeypatch.chdir(copy)
    with pytest.raises(UserError, match="moved or copied"):
        prepare_store(EXPERIMENT)
    relocate(laptop, copy)
    _log()
    assert len(list((laptop / "mlruns").rglob("note.txt"))) == 1
    assert len(list((copy / "mlruns").rglob("note.txt"))) == 2


def test_a_new_experiment_of_a_moved_store_is_written_where_it_is(
    laptop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _log()
    server = _move(laptop, monkeypatch)
    with RunWriter("another") as run:
        run.artifact(Path("note.txt"))
    assert list((server / "mlruns").rglob(f"{run.run_id}/artifacts/note.txt"))
    assert not laptop.exists()


def test_a_run_of_a_moved_store_is_not_resumed_into_the_old_place(
    laptop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ZeroDivisionError), RunWriter(EXPERIMENT) as run:
        raise ZeroDivisionError
    _move(laptop, monkeypatch)
    with pytest.raises(UserError, match="relocate"), RunWriter(EXPERIMENT, resume=run.run_id):
        pass


def test_a_model_of_a_moved_store_is_found_again(
    filled_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(filled_store / "mlruns", moved / "mlruns")
    shutil.copy(filled_store / "mlflow.db", moved)
    monkeypatch.chdir(moved)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    relocate(filled_store, tmp_path / "gone")  # as if the folder that it came from had been there
    runs = RunReader().runs()
    run_id = runs.loc[runs["params.model"] == "baseline", "run_id"].iloc[0]
    alias = "models:/categoriser-baseline@champion"
    for address in (run_id, f"runs:/{run_id}/model", alias):
        with pytest.raises(UserError, match="relocate --old"):
            resolve(address)
    relocate(tmp_path / "gone", moved)
    for address in (run_id, f"runs:/{run_id}/model", alias):
        assert resolve(address).is_relative_to(moved)


@pytest.mark.parametrize(
    "location",
    ["{here}/mlruns/1", "file://{here}/mlruns/1", "{here}/elsewhere/1", "s3://bucket/mlruns/1", "mlflow-artifacts:/1"],
)
def test_artifacts_that_were_put_where_they_are_have_not_moved(tmp_path: Path, location: str) -> None:
    assert find_move(f"sqlite:///{tmp_path}/mlflow.db", location.format(here=tmp_path)) is None
    assert find_move("http://127.0.0.1:5000", location.format(here="/gone")) is None


def test_a_server_knows_its_place_itself(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    with pytest.raises(UserError, match="is no SQLite file"):
        relocate(store, store)
    assert store_uri() == "http://127.0.0.1:1"

"""What is listed as left behind is what nobody needs, and only that is removed, when told to."""

from __future__ import annotations

import os
import platform
import shutil
import time
from collections.abc import Callable
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments import clean
from experiments.cli import run_command
from vlm_core.files.atomic import building, own_temporary_folder
from vlm_core.tracking import tags
from vlm_core.tracking.store import connect
from vlm_core.training.feature_cache import FeatureCache

DEAD = f"{platform.node()}:{2**22 + 1}:1.00"  # above the largest number of a process


def _die(work: Callable[[], None]) -> None:
    def work_and_die() -> None:
        work()
        os._exit(9)

    process = get_context("fork").Process(target=work_and_die)
    process.start()
    process.join()
    assert process.exitcode == 9


def _leave_unfinished(target: Path) -> None:
    def leave() -> None:
        folder = building(target).__enter__()
        folder.mkdir()
        (folder / "file").write_bytes(bytes(5000))

    _die(leave)


def _run(status: str, **own: str) -> str:
    client = connect(to_write=True)
    run = client.create_run("0", tags={tags.ROLE: tags.RUN, tags.PROCESS: DEAD, **own})
    if status != "RUNNING":
        client.set_terminated(run.info.run_id, status)
    return str(run.info.run_id)


def _checkpoints(root: Path, run_id: str) -> Path:
    folder = root / "checkpoints" / run_id
    folder.mkdir(parents=True)
    (folder / "position.json").write_text("{}")
    return folder


def _features(root: Path, view: str, *, days: float = 0) -> Path:
    entry = FeatureCache(root / "cache", 2**20).entry({"view": view}, 4)
    entry.fill(np.arange(4), lambda rows: iter([(rows, (torch.zeros(len(rows), 3),))]))
    then = time.time() - days * 24 * 60 * 60
    os.utime(entry.folder / "key.json", (then, then))
    return entry.folder


def _clean(capsys: pytest.CaptureFixture[str], *flags: str) -> tuple[int, str]:
    code = run_command(lambda: clean.main(flags), sweep=False)
    printed = capsys.readouterr()
    return code, " ".join((printed.out + printed.err).split())


def test_what_killed_commands_left_is_listed_with_its_size_and_goes_when_told_to(
    store: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path_factory.mktemp("temporary")))
    client = connect(to_write=True)
    dead, killed, finished = _run("RUNNING"), _run("KILLED"), _run("FINISHED")
    alive = _run("RUNNING", **{tags.PROCESS: tags.process_tag()})
    trial = _run("KILLED", **{tags.KIND: "trial"})
    models = {
        name: client.create_logged_model("0", name="model", source_run_id=run_id)
        for name, run_id in {"half": killed, "being written": alive, "whole": finished}.items()
    }
    for model in models.values():
        client.log_model_artifacts(model.model_id, str(_folder_with(store / "weights", 3000)))
    client.finalize_logged_model(models["whole"].model_id, "READY")
    kept = [
        *(_checkpoints(store, run_id) for run_id in (dead, killed, alive, "f" * 32)),
        *(_features(store, "in use"), store / "weights", Path(models["whole"].artifact_location)),
        Path(models["being written"].artifact_location),
        *(_folder_with(store / name, 4096) for name in (".shards.packing", ".out.predicting")),
    ]
    _leave_unfinished(store / "data/processed/shop-0123456789abcdef")
    (store / "data/processed/.shop-0123456789abcdef.of_today").mkdir()
    earlier = _folder_with(store / "data/processed/.shop-0123456789abcdef.k2h_31xz", 2000)
    for path in (earlier, earlier / "file"):
        os.utime(path, (1e9, 1e9))
    _die(lambda: own_temporary_folder().__enter__())
    other = _features(store, "of another version")
    (other / "key.json").write_text('{"schema": "1"}')
    left = [
        *(_checkpoints(store, run_id) for run_id in (finished, trial)),
        *(other, _features(store, "not used any more", days=31), earlier, Path(models["half"].artifact_location)),
    ]

    code, listed = _clean(capsys)
    assert code == 0
    for sign in ("repeat the command with --remove", f"run {dead}", models["half"].model_id, f"checkpoints/{trial}"):
        assert sign in listed
    assert f"model {models['half'].model_id} │ not logged whole │ 3 kB │" in listed
    assert "Kept to be completed: " in listed and ".out.predicting. Repeat the command that began it" in listed
    assert ".shards.packing. Repeat the command that began it, or remove this folder yourself." in listed
    assert "Kept to resume runs from: " in listed and "Kept for runs that this store does not have: " in listed
    assert all(path.exists() for path in (*kept, *left))
    assert client.get_run(dead).info.status == "RUNNING"

    code, removed = _clean(capsys, "--remove")
    assert code == 0 and "Removed " in removed
    assert [path for path in kept if not path.exists()] == [path for path in left if path.exists()] == []
    assert sorted(path.name for path in (store / "data/processed").iterdir()) == [".shop-0123456789abcdef.of_today"]
    assert client.get_run(dead).info.status == "KILLED"
    assert client.get_run(alive).info.status == "RUNNING"
    assert {model.model_id for model in client.search_logged_models(["0"])} == {
        models[name].model_id for name in ("being written", "whole")
    }
    assert "Nothing is left behind." in _clean(capsys, "--remove")[1]


def _folder_with(folder: Path, size: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "file").write_bytes(bytes(size))
    return folder


def test_a_folder_without_a_store_gets_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    _checkpoints(tmp_path, "f" * 32)
    code, listed = _clean(capsys, "--remove")
    assert code == 0
    assert "Nothing is left behind." in listed and "Set MLFLOW_TRACKING_URI" in listed
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoints"]


def test_what_cannot_be_removed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    _leave_unfinished(tmp_path / "data/processed/shop")
    monkeypatch.setattr("vlm_core.workflows.clean.remove", lambda path: None)  # root may remove anything
    code, printed = _clean(capsys, "--remove")
    assert code == 1
    assert "1 of 1 could not be removed, the first data/processed/.shop." in printed


def test_a_folder_that_was_copied_says_how_its_store_is_mended_and_loses_nothing(
    store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = store / "first"
    shutil.copytree(store, first, ignore=shutil.ignore_patterns("first"))
    monkeypatch.chdir(first)
    client = connect(to_write=True)
    run = client.create_run(client.create_experiment("made"), tags={tags.ROLE: tags.RUN})
    client.log_text(run.info.run_id, "kept", "note.txt")
    client.set_terminated(run.info.run_id)
    folder = _checkpoints(first, run.info.run_id)
    shutil.copytree(first, store / "second")
    monkeypatch.chdir(store / "second")
    said = f"points to artifacts in {first}/mlruns"
    assert run_command(partial(clean.main, [])) == 0 and said in capsys.readouterr().out
    assert run_command(partial(clean.main, ["--remove"])) == 1 and said in capsys.readouterr().err
    assert folder.exists() and Path("checkpoints", run.info.run_id).exists()

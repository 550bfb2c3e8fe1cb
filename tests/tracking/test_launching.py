"""A run that `mlflow run` made before it started us: taken over, or kept apart from what it only launched."""

from __future__ import annotations

import os
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path

import pytest

from tests.messages import collected_messages
from vlm_core.errors import UserError
from vlm_core.tracking.reader import RunReader
from vlm_core.tracking.store import connect, open_mlflow
from vlm_core.tracking.writer import RunWriter


def _status(run_id: str) -> str:
    return str(connect().get_run(run_id).info.status)


def _stopped() -> str:
    """The id of a run that was stopped."""
    with suppress(KeyboardInterrupt), RunWriter("made") as run:
        raise KeyboardInterrupt
    return run.run_id


@pytest.fixture
def launched(store: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A run as `mlflow run` makes one before it starts us."""
    run_id: str = connect().create_run("0").info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    return run_id


def test_the_run_that_mlflow_made_is_taken_over_once(launched: str) -> None:
    with RunWriter("made", "a name") as run:
        assert run.run_id == launched
        assert not run.resumed
        assert "MLFLOW_RUN_ID" not in os.environ
        with RunWriter("made", "below", parent=launched) as child:
            pass
    kept = connect().get_run(launched)
    assert (kept.info.run_name, kept.info.status) == ("a name", "FINISHED")
    assert connect().get_run(child.run_id).data.tags["mlflow.parentRunId"] == launched


def test_a_password_that_mlflow_run_has_logged_is_named_and_not_shown(launched: str) -> None:
    connect().log_param(launched, "storage", "postgresql://seeker:hunter2@host/db")
    with collected_messages() as lines, RunWriter("made") as run:
        run.params({"storage": "postgresql://host/db"})
    assert "holds the password of storage" in " ".join(lines) and "hunter2" not in " ".join(lines)
    assert RunReader().params(launched) == {"storage": "postgresql://host/db"}
    connect().delete_tag(launched, "setting.storage")
    assert "hunter2" not in RunReader().runs().to_string()


def test_a_name_given_to_mlflow_run_stays(launched: str) -> None:
    connect().set_tag(launched, "mlflow.runName", "given with --run-name")
    with RunWriter("made", "ours"):
        pass
    assert connect().get_run(launched).info.run_name == "given with --run-name"


def test_a_child_leaves_the_launched_run_alone(launched: str) -> None:
    with RunWriter("made", parent=launched) as child:
        assert child.run_id != launched
        assert os.environ["MLFLOW_RUN_ID"] == launched


def test_a_launched_run_that_is_over_or_unknown(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with RunWriter("made") as run:
        pass
    for run_id in (run.run_id, "0" * 32):
        monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
        with pytest.raises(UserError, match="unset MLFLOW_RUN_ID"), RunWriter("made"):
            pass


@pytest.mark.parametrize(("error", "status"), [(None, "FINISHED"), (ValueError("boom"), "FAILED")])
def test_the_launcher_of_a_run_that_is_gone_on_with(
    store: Path, monkeypatch: pytest.MonkeyPatch, error: Exception | None, status: str
) -> None:
    run_id = _stopped()
    launcher = connect().create_run("0").info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", launcher)
    with suppress(ValueError), RunWriter("made", resume=run_id) as run:
        assert run.run_id == run_id
        if error:
            raise error
    kept = connect().get_run(launcher)
    assert (_status(run_id), kept.info.status) == (status, status)
    assert kept.data.tags["launched_run"] == run_id
    assert RunReader().runs()["run_id"].tolist() == [run_id]
    with pytest.raises(UserError, match=f"use resume={run_id}"), RunWriter("made", resume=launcher):
        pass


def test_files_that_only_a_server_could_take_move_the_run_elsewhere(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `mlflow ui` makes of the Default experiment when it is the first to open a folder."""
    client = connect()
    proxied = client.create_experiment("made by mlflow ui", artifact_location="mlflow-artifacts:/5")
    launcher = client.create_run(proxied).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", launcher)
    (store / "note.txt").write_text("x")
    with RunWriter("made", "a name") as run:
        run.artifact(store / "note.txt")
    assert run.run_id != launcher
    assert RunReader().artifact(run.run_id, "note.txt").read_text() == "x"
    assert client.get_run(launcher).data.tags["launched_run"] == run.run_id
    with pytest.raises(UserError, match="choose another name"), RunWriter("made by mlflow ui"):
        pass


def _work_as_asked(project: Path) -> None:
    """Do what the project's command is given, in this process, a fork: one of its own would import for seconds."""
    code = 1
    try:
        run_id, *words = (project / "asked").read_text().split()  # once the command has written it
        os.environ["MLFLOW_RUN_ID"] = run_id
        given = dict(word.removeprefix("--").split("=", 1) for word in words)
        with RunWriter("made", "inner", resume=given["resume"]) as run:
            run.params({"learning_rate": "0.0001", "model": "clip"})
        code = 0
    finally:
        (project / "answered").write_text(f"{code}\n")


@pytest.mark.slow
def test_a_real_mlflow_project_goes_on_with_a_run(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_id = _stopped()
    project = store / "project"
    project.mkdir()
    (project / "MLproject").write_text(
        "name: made\nentry_points:\n  main:\n    parameters:\n      resume: {type: string}\n"
        "      learning_rate: {type: float}\n"
        "    command: echo $MLFLOW_RUN_ID --resume={resume} --learning_rate={learning_rate} > asked;"
        " read code < answered; exit $code\n"
    )
    for name in ("asked", "answered"):
        os.mkfifo(project / name)
    worker = get_context("fork").Process(target=_work_as_asked, args=[project], daemon=True)
    worker.start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store}/mlflow.db")
    submitted = open_mlflow().projects.run(
        str(project), env_manager="local", parameters={"resume": run_id, "learning_rate": "1e-4"}
    )
    worker.join()
    launcher = connect().get_run(submitted.run_id)
    assert launcher.info.status == "FINISHED"
    assert launcher.data.tags["launched_run"] == run_id
    assert launcher.data.params["learning_rate"] == "1e-4"
    assert _status(run_id) == "FINISHED"
    assert connect().get_run(run_id).data.params["learning_rate"] == "0.0001"

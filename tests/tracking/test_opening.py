"""How runs begin, end and are gone on with, whatever happens to their process."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import pytest

from tests.tracking.made import make_report
from vlm_core.errors import UserError
from vlm_core.tracking.reader import RunReader
from vlm_core.tracking.signals import Terminated
from vlm_core.tracking.store import connect, open_mlflow
from vlm_core.tracking.writer import RunWriter


def _status(run_id: str) -> str:
    return str(connect().get_run(run_id).info.status)


def _ended_with(error: BaseException) -> str:
    with suppress(BaseException), RunWriter("made") as run:
        raise error
    return run.run_id


@pytest.mark.parametrize(
    ("error", "status", "failure"),
    [
        (ValueError("boom"), "FAILED", "ValueError: boom"),
        (UserError("lower the rate."), "FAILED", "UserError: lower the rate."),
        (SystemExit(3), "FAILED", "SystemExit: 3"),
        (SystemExit(0), "FINISHED", ""),
        (KeyboardInterrupt(), "KILLED", "Ctrl-C"),
        (Terminated("SIGTERM"), "KILLED", "SIGTERM"),
    ],
)
def test_a_run_ends_as_what_ended_it(store: Path, error: BaseException, status: str, failure: str) -> None:
    run_id = _ended_with(error)
    assert _status(run_id) == status
    assert connect().get_run(run_id).data.tags["failure"] == failure


def test_an_error_passes_through_unchanged(store: Path) -> None:
    with pytest.raises(ZeroDivisionError), RunWriter("made"):
        _ = 1 / 0


def _in_a_child(work: Callable[[RunWriter], object]) -> tuple[int, str]:
    """Process number and run id of a child that has opened a run, says so and then does `work`."""
    reading, writing = os.pipe()
    number = os.fork()
    if number == 0:
        _be_the_child(work, writing)
    os.close(writing)
    with os.fdopen(reading) as said:
        run_id = said.readline().strip()
    assert run_id, "the child did not open a run"
    return number, run_id


def _be_the_child(work: Callable[[RunWriter], object], said: int) -> NoReturn:
    code = 1
    try:
        with RunWriter("made") as run:
            work(run)
            os.write(said, f"{run.run_id}\n".encode())
            time.sleep(30)
        code = 0
    except Terminated:
        code = 143
    except KeyboardInterrupt:
        code = 130
    finally:
        os._exit(code)  # the rest of the test suite is the parent's


def _exit_code(number: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])


@pytest.mark.parametrize(
    ("sent", "code", "reason"),
    [
        ([signal.SIGTERM], 143, "SIGTERM"),
        ([signal.SIGINT], 130, "Ctrl-C"),
        # `mlflow run` sends the second one when a terminal has sent the first one to both
        ([signal.SIGINT, signal.SIGTERM], 130, "Ctrl-C"),
        ([signal.SIGTERM, signal.SIGTERM], 143, "SIGTERM"),
    ],
)
def test_a_process_that_is_stopped_leaves_a_killed_run(
    store: Path, sent: list[signal.Signals], code: int, reason: str
) -> None:
    number, run_id = _in_a_child(lambda run: None)
    for each in sent:
        os.kill(number, each)
        time.sleep(0.01)
    assert _exit_code(number) == code
    assert _status(run_id) == "KILLED"
    assert connect().get_run(run_id).data.tags["failure"] == reason


def test_handlers_are_given_back(store: Path) -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with RunWriter("made"):
        assert signal.getsignal(signal.SIGTERM) is not before[0]
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    with pytest.raises(UserError), RunWriter("made", resume="0" * 32):
        pass
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_a_killed_process_leaves_a_run_that_can_be_gone_on_with(store: Path) -> None:
    def work(run: RunWriter) -> None:
        run.params({"model": "clip", "epochs": "3"})
        run.epoch(make_report(1))
        run.epoch(make_report(2))

    number, run_id = _in_a_child(work)
    os.kill(number, signal.SIGKILL)
    assert _exit_code(number) == -signal.SIGKILL
    assert _status(run_id) == "RUNNING"
    with RunWriter("made", resume=run_id) as run:
        assert run.resumed
        assert run.run_id == run_id
        run.params({"model": "clip", "epochs": "3"})
        run.epoch(make_report(2))  # its checkpoint was not kept: it was trained again, to the same end
        run.epoch(make_report(3))
    assert _status(run_id) == "FINISHED"
    points = connect().get_metric_history(run_id, "train_loss")
    assert [(point.step, point.value) for point in points] == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
    (log,) = (store / "logs").iterdir()
    assert [entry["epoch"] for entry in json.loads(log.read_text())["epochs"]] == [1, 2, 3]


def test_a_log_that_is_lost_with_its_machine_comes_from_the_store(store: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    with pytest.raises(ValueError, match="boom"), RunWriter("made") as run:
        run.params({"model": "clip"})
        run.epoch(make_report(1))
        raise ValueError("boom")
    with RunWriter("made", resume=run.run_id, folder=elsewhere) as again:
        again.epoch(make_report(2))
    (first,) = (store / "logs").iterdir()
    (second,) = (elsewhere / "logs").iterdir()
    assert first.name == second.name
    assert [entry["epoch"] for entry in json.loads(second.read_text())["epochs"]] == [1, 2]


def test_a_run_that_failed_or_was_stopped_can_be_gone_on_with(store: Path) -> None:
    for error in (ValueError("boom"), KeyboardInterrupt()):
        run_id = _ended_with(error)
        with RunWriter("another experiment", resume=run_id):
            assert _status(run_id) == "RUNNING"
        kept = connect().get_run(run_id)
        assert (kept.info.status, kept.data.tags["failure"]) == ("FINISHED", "")


@pytest.mark.parametrize("run_id", ["0" * 32, "no such run!", "models:/x"])
def test_going_on_with_an_unknown_run(store: Path, run_id: str) -> None:
    with pytest.raises(UserError, match="no such run.*mlflow ui"), RunWriter("made", resume=run_id):
        pass


def test_going_on_with_a_finished_run(store: Path) -> None:
    with RunWriter("made") as run:
        pass
    with pytest.raises(UserError, match="is finished: start a new one"), RunWriter("made", resume=run.run_id):
        pass
    assert _status(run.run_id) == "FINISHED"


def test_going_on_with_a_deleted_run(store: Path) -> None:
    run_id = _ended_with(ValueError("boom"))
    connect().delete_run(run_id)
    with pytest.raises(UserError, match="was deleted: `mlflow runs restore"), RunWriter("other", resume=run_id):
        pass


def test_going_on_with_a_run_of_another_program(store: Path) -> None:
    run_id = connect().create_run("0").info.run_id
    with pytest.raises(UserError, match="not begun by this program"), RunWriter("made", resume=run_id):
        pass


def test_going_on_with_a_run_whose_process_is_at_work(store: Path) -> None:
    with RunWriter("made") as run:
        with pytest.raises(UserError, match=f"process {os.getpid()} is still at that run"):
            RunWriter("made", resume=run.run_id).__enter__()
        assert _status(run.run_id) == "RUNNING"


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
    run_id = _ended_with(KeyboardInterrupt())
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


def test_a_deleted_experiment(store: Path) -> None:
    client = connect()
    client.delete_experiment(client.create_experiment("gone"))
    with pytest.raises(UserError, match="mlflow experiments restore"), RunWriter("gone"):
        pass


PROJECT = """
import sys
from pathlib import Path
from vlm_core.tracking.writer import RunWriter

given = dict(word.removeprefix("--").split("=", 1) for word in sys.argv[1:])
with RunWriter("made", "inner", resume=given["resume"]) as run:
    run.params({"learning_rate": "0.0001", "model": "clip"})
"""


def test_a_real_mlflow_project_goes_on_with_a_run(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_id = _ended_with(ValueError("boom"))
    project = store / "project"
    project.mkdir()
    (project / "door.py").write_text(PROJECT)
    (project / "MLproject").write_text(
        "name: made\nentry_points:\n  main:\n    parameters:\n      resume: {type: string}\n"
        "      learning_rate: {type: float}\n"
        f"    command: exec {sys.executable} door.py --resume={{resume}} --learning_rate={{learning_rate}}\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[2]))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store}/mlflow.db")
    submitted = open_mlflow().projects.run(
        str(project), env_manager="local", parameters={"resume": run_id, "learning_rate": "1e-4"}
    )
    launcher = connect().get_run(submitted.run_id)
    assert launcher.info.status == "FINISHED"
    assert launcher.data.tags["launched_run"] == run_id
    assert launcher.data.params["learning_rate"] == "1e-4"
    assert _status(run_id) == "FINISHED"
    assert connect().get_run(run_id).data.params["learning_rate"] == "0.0001"

"""How runs begin, end and are resumed, whatever happens to their process."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import pytest

from tests.messages import collected_messages
from tests.tracking.made import make_report
from vlm_core.config import Config, PretrainingConfig, SearchConfig, StudyConfig
from vlm_core.errors import UserError
from vlm_core.study.running import run_study
from vlm_core.tracking import patience
from vlm_core.tracking.opening import open_run, prepare_store
from vlm_core.tracking.signals import Terminated
from vlm_core.tracking.store import connect, store_uri
from vlm_core.tracking.tags import process_tag
from vlm_core.tracking.writer import RunWriter
from vlm_core.workflows.evaluate import run_evaluation
from vlm_core.workflows.pretrain import run_pretraining
from vlm_core.workflows.train import run_training
from vlm_core.workflows.tune import run_search


def train(root: Path) -> object:
    return run_training(Config.build({"data": "/nowhere"}), root)


def tune(root: Path) -> object:
    return run_search(SearchConfig.build({"data": "/nowhere"}), root)


def study(root: Path) -> object:
    return run_study(StudyConfig.build({"data": "/nowhere"}), root)


def pretrain(root: Path) -> object:
    return run_pretraining(PretrainingConfig.build({"data": "/nowhere"}), root)


def evaluate(root: Path) -> object:
    return run_evaluation("0" * 32, Config.build({"data": "/nowhere"}), root)


COMMANDS = (train, tune, study, pretrain, evaluate)


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


def test_the_next_command_ends_runs_that_died_and_no_others(store: Path) -> None:
    number, run_id = _in_a_child(lambda run: None)
    os.kill(number, signal.SIGKILL)
    assert _exit_code(number) == -signal.SIGKILL
    with RunWriter("made") as alive:
        with collected_messages() as lines:
            prepare_store("another experiment")
        assert (_status(run_id), _status(alive.run_id)) == ("KILLED", "RUNNING")
    assert len(lines) == 1 and f"resume={run_id} continues" in lines[0]


def test_the_next_command_removes_checkpoints_of_finished_runs_and_no_others(store: Path) -> None:
    with RunWriter("made") as finished:
        pass
    names = {finished.run_id: False, _ended_with(ValueError("boom")): True, "mine": True, "0" * 32: True}
    for name in names:
        (store / "checkpoints" / name).mkdir(parents=True)
    prepare_store(root=store)
    assert {name: (store / "checkpoints" / name).exists() for name in names} == names


@pytest.mark.parametrize("given", [{}, {"resume": True}, {"launched": True}])
def test_a_run_that_is_running_always_names_its_process(
    store: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, bool]
) -> None:
    run_id = _ended_with(ValueError("boom")) if "resume" in given else ""
    if "launched" in given:
        monkeypatch.setenv("MLFLOW_RUN_ID", connect().create_run("0").info.run_id)
    client = connect()
    run = open_run(client, store_uri(), experiment="made", name="", resume=run_id, parent="")
    found = client.get_run(run.run_id)
    assert (found.info.status, found.data.tags["process"]) == ("RUNNING", process_tag())


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.__name__)
def test_a_store_that_cannot_be_used_is_named_before_data_and_weights_are_loaded(
    command: Callable[[Path], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mlflow.db").write_text("not a database, and long enough to be looked at " * 30)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    with pytest.raises(UserError, match="not an MLflow database"):
        command(tmp_path)


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


def test_a_log_that_cannot_be_read_comes_from_the_store_too(store: Path) -> None:
    with pytest.raises(ValueError, match="boom"), RunWriter("made") as run:
        run.epoch(make_report(1))
        raise ValueError("boom")
    (log,) = (store / "logs").iterdir()
    log.write_text("")
    with RunWriter("made", resume=run.run_id) as again:
        again.epoch(make_report(2))
    assert [entry["epoch"] for entry in json.loads(log.read_text())["epochs"]] == [1, 2]


def test_a_run_that_failed_or_was_stopped_can_be_gone_on_with(store: Path) -> None:
    for error in (ValueError("boom"), KeyboardInterrupt()):
        run_id = _ended_with(error)
        with RunWriter("another experiment", resume=run_id):
            assert _status(run_id) == "RUNNING"
            assert connect().get_run(run_id).data.tags["failure"] == ""  # as the pages show it
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
    with pytest.raises(UserError, match="not started by this program"), RunWriter("made", resume=run_id):
        pass


def test_going_on_with_a_run_whose_process_is_at_work(store: Path) -> None:
    with RunWriter("made") as run:
        with pytest.raises(UserError, match=f"process {os.getpid()} is still writing that run"):
            RunWriter("made", resume=run.run_id).__enter__()
        assert _status(run.run_id) == "RUNNING"


def test_a_deleted_experiment(store: Path) -> None:
    client = connect()
    client.delete_experiment(client.create_experiment("gone"))
    with pytest.raises(UserError, match="mlflow experiments restore"), RunWriter("gone"):
        pass


def test_a_run_whose_answer_was_lost_is_there_once(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    monkeypatch.setattr(patience, "SECONDS_BETWEEN", 0.0)
    create, asked = MlflowClient.create_run, []

    def create_first_in_vain(*given: Any, **named: Any) -> Any:
        created = create(*given, **named)
        asked.append(created.info.run_id)
        if len(asked) % 2:
            raise ConnectionError("Connection aborted")
        return created

    monkeypatch.setattr(MlflowClient, "create_run", create_first_in_vain)
    with RunWriter("made", "leader") as leader, RunWriter("made", "child", parent=leader.run_id) as child:
        pass
    listed = connect().search_runs(["1"])
    assert len(asked) == 4
    assert {run.info.run_id: run.info.status for run in listed} == dict.fromkeys(
        (leader.run_id, child.run_id), "FINISHED"
    )

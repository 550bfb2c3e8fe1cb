"""Tasks in processes of this machine, which watch the process that started them before they import anything."""

import os
import subprocess
import sys
from multiprocessing import get_context
from pathlib import Path
from typing import NoReturn

import pytest

from tests.engine.stubs import double, fail_at_two, same, say_where
from tests.stores import ROOT
from vlm_core.engine import local_processes
from vlm_core.engine.local_processes import Processes
from vlm_core.errors import UserError

_HEAVY = ("torch", "pandas", "mlflow", "optuna", "numpy", "ray", "pydantic")


def test_a_worker_watches_before_it_imports_anything_heavy() -> None:
    script = f"import sys, vlm_core.engine.local_processes; print(*[name for name in {_HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "\n"


def test_a_worker_watches_its_leader(monkeypatch: pytest.MonkeyPatch) -> None:
    watched: list[int] = []
    monkeypatch.setattr(local_processes, "end_with", watched.append)
    local_processes.start_worker(4711, messages=False)
    assert watched == [4711]


def _stop(_: object) -> NoReturn:
    raise KeyboardInterrupt


def test_a_worker_that_is_stopped_begins_no_other_task() -> None:
    worker = get_context("fork").Process(target=local_processes._attempt, args=(_stop, None))
    worker.start()
    worker.join()
    assert worker.exitcode == 130


def test_one_worker_is_this_process_with_all_threads() -> None:
    engine = Processes(1, 8)
    assert engine.threads(5) == Processes(4, 8).threads(1) == 8
    (ended,) = engine.run(lambda task: os.getpid(), ["only"], same)
    assert (ended.task, ended.result, ended.error) == ("only", os.getpid(), "") and ended.seconds >= 0


def test_an_error_is_a_value_and_the_others_go_on() -> None:
    ends = {ended.task: (ended.result, ended.error) for ended in Processes(1, 1).run(fail_at_two, [1, 2, 3], same)}
    assert ends[1] == (1, "") and ends[3] == (3, "")
    assert ends[2][0] is None and ends[2][1].startswith("MissingExtra: two is not installed")


def test_several_share_the_threads_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert [Processes(workers, 16).threads(10) for workers in (2, 3, 64)] == [4, 2, 1]
    assert Processes(2, 1).threads(10) == 1


@pytest.mark.slow
def test_two_processes_do_all_tasks_and_errors_come_back_as_texts() -> None:
    ends = [*Processes(2, 1).run(fail_at_two, [1, 2, 3], same)]
    assert sorted(ended.task for ended in ends) == [1, 2, 3]
    assert [ended.result for ended in ends if not ended.error] and sum(bool(ended.error) for ended in ends) == 1


@pytest.mark.slow
def test_a_killed_process_is_one_sentence() -> None:
    from tests.engine.stubs import always_die

    with pytest.raises(UserError, match="A worker process was killed. Run the same command again to resume"):
        [*Processes(2, 1).run(always_die, ["dies", "lives"], same)]


def test_nothing_is_handed_to_a_single_worker_that_it_does_not_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "here")
    (ended,) = Processes(1, 1).run(say_where, ["MLFLOW_TRACKING_URI"], same)
    assert ended.result == (str(Path.cwd()), "here")
    assert [ended.result for ended in Processes(1, 1).run(double, [2], same)] == [4]

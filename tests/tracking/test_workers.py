"""Workers watch the process that started them before they import what they work with."""

import subprocess
import sys

import pytest

from tests.stores import ROOT
from vlm_core.tracking import workers

_HEAVY = ("torch", "pandas", "mlflow", "optuna", "numpy")


def test_a_worker_watches_before_it_imports_anything_heavy() -> None:
    script = f"import sys, vlm_core.tracking.workers; print(*[name for name in {_HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "\n"


def test_a_worker_watches_its_leader_from_its_first_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[object] = []
    monkeypatch.setattr(workers, "end_with", steps.append)
    monkeypatch.setattr(workers, "import_module", lambda name: steps.append(name) or sys.modules[name])
    monkeypatch.setattr(sys.modules[__name__], "work", steps.append, raising=False)
    workers.run_worker(4711, False, __name__, "work", "trials")
    assert steps == [4711, __name__, "trials"]


def test_searches_and_studies_start_their_workers_like_that() -> None:
    from vlm_core.study import running
    from vlm_core.workflows import tune

    assert running.start_worker is workers.start_worker and tune.run_worker is workers.run_worker

"""Workers watch the process that started them before they import what they work with."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.stores import ROOT
from vlm_core.config import SearchConfig
from vlm_core.tracking import workers
from vlm_core.workflows.search_worker import run_search_worker

_HEAVY = ("torch", "pandas", "mlflow", "optuna", "numpy")


def test_a_worker_watches_before_it_imports_anything_heavy() -> None:
    script = f"import sys, vlm_core.workflows.search_worker; print(*[name for name in {_HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "\n"


def test_a_worker_watches_its_leader_from_its_first_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[object] = []
    monkeypatch.setattr(workers, "end_with", steps.append)
    monkeypatch.setattr("vlm_core.workflows.tune.run_trials", lambda *given: steps.append(given))
    run_search_worker(4711, False, SearchConfig(), Path(), "run", 2)
    assert steps == [4711, (SearchConfig(), Path(), "run", 2)]


def test_searches_and_studies_start_their_workers_like_that() -> None:
    from vlm_core.study import running
    from vlm_core.workflows import tune

    assert running.start_worker is workers.start_worker and tune.run_search_worker is run_search_worker

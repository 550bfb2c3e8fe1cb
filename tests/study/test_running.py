"""Whole studies of a small shop: run once, resumed after a kill, and reported when a cell fails."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.stores import ROOT
from vlm_core.config import Config, StudyConfig, build_config
from vlm_core.errors import UserError
from vlm_core.study.plan import plan_study
from vlm_core.study.running import find_pending, run_study
from vlm_core.tracking.reader import RunReader
from vlm_core.workflows.train import run_training

SMALL = {
    "preset": "demo",
    "families": "clip",
    "modes": "probe",
    "objectives": "classify",
    "seeds": 1,
    "protocols": "holdout",
    "parts": "families",
    "per_category": 60,
    "train_per_category": 30,
    "min_products": 20,
    "views": 0,
    "resamples": 100,
}


def small(shop: Path, **given: object) -> StudyConfig:
    return StudyConfig.build({**SMALL, "data": str(shop), **given})


@pytest.fixture
def cheap_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Costs are measured by few calls and without a process of their own, which starts for seconds.

    That they are right is held where they are measured.
    """
    here = SimpleNamespace(get_context=lambda method: SimpleNamespace(Pool=ThreadPool))
    for name, value in {"multiprocessing": here, "CALLS": 3, "BATCHES": 1, "_WATCHED_SECONDS": 0.05}.items():
        monkeypatch.setattr(f"vlm_core.benchmark.cost.{name}", value)


@pytest.mark.slow
@pytest.mark.usefixtures("cheap_costs")
def test_a_study_ends_in_a_report_whose_figures_are_those_of_its_runs(shop: Path, stocked: Path) -> None:
    config = small(shop, protocols="holdout,original", parts="families,cost,labels")
    outcome = run_study(config, stocked)
    reader, results = RunReader(), outcome.results
    children = reader.children(outcome.run_id)
    assert (len(children), results.cells_finished, results.cells_planned) == (4, 4, 4)
    assert set(children["status"]) == {"FINISHED"}
    (probe,) = [row for row in results.scores if row.configuration == "clip/probe/classify/holdout"]
    scores = [reader.metrics(run_id)["test_macro_f1"] for run_id in probe.run_ids]
    assert probe.macro_f1.value == pytest.approx(scores[0])
    assert {row.label for row in results.scores if row.kind == "baseline"} >= {
        "HOG + colour",
        "majority",
        "nearest class mean, clip features",
        "nearest neighbours, clip features",
    }
    assert [(pair.a, pair.b) for pair in results.pairs] == [("HOG + colour", "clip probe")]
    assert {row.label for row in results.leak} == {"HOG + colour", "clip probe"}
    html = reader.text(outcome.run_id, "study/report.html")
    assert f"{probe.macro_f1.value:.3f}" in html
    assert all(run_id in html for row in results.scores for run_id in row.run_ids)
    assert "<script" not in html and 'src="http' not in html
    kept = json.loads(reader.text(outcome.run_id, "study/results.json"))
    assert kept["cells_finished"] == 4
    assert reader.text(outcome.run_id, "study/report.md").startswith("# Study demo")


@pytest.mark.slow
def test_a_failed_cell_is_told_and_repeated_while_what_is_done_stays(
    shop: Path, stocked: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vlm_core.study import measurements

    config = small(shop)

    def fail(trained: object) -> None:
        raise RuntimeError("no simple rule today")

    with monkeypatch.context() as patch:
        patch.setitem(measurements.MEASUREMENTS, "simple_baselines", fail)
        with pytest.raises(UserError, match=r"1 of 2 cells failed.*no simple rule today"):
            run_study(config, stocked)
    (before,) = RunReader().studies("demo")["run_id"]
    trained = dict(zip(*(RunReader().children(before)[name] for name in ("name", "run_id")), strict=True))
    outcome = run_study(config, stocked)
    assert outcome.run_id == before
    children = RunReader().children(outcome.run_id)
    assert dict(zip(children["name"], children["run_id"], strict=True)) == trained
    assert outcome.results.failed == {}


@pytest.mark.slow
def test_a_killed_study_goes_on_and_ends_with_the_same_scores(shop: Path, stocked: Path) -> None:
    given = {**SMALL, "data": str(shop)}
    command = [sys.executable, "-m", "experiments.study", *(f"--{name}={value}" for name, value in given.items())]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    begun = subprocess.Popen(command, cwd=stocked, env=environment, stdout=subprocess.PIPE, text=True)
    assert begun.stdout is not None
    assert any(line.startswith("[1/2]") for line in iter(begun.stdout.readline, ""))
    time.sleep(1.5)  # into the second cell
    begun.send_signal(signal.SIGKILL)
    begun.wait()
    outcome = run_study(small(shop), stocked)
    children = RunReader().children(outcome.run_id)
    assert sorted(children["name"][children["status"] == "FINISHED"]) == [
        "baseline/full/classify/holdout/0",
        "clip/probe/classify/holdout/0",
    ]
    assert "RUNNING" not in set(children["status"])
    alone = run_training(
        build_config(
            {"preset": "demo", "model": "clip", **{name: given[name] for name in Config.model_fields if name in given}}
        ),
        stocked,
    )
    (probe,) = [row for row in outcome.results.scores if row.configuration == "clip/probe/classify/holdout"]
    assert probe.macro_f1.value == alone.evaluation.macro_f1.value


def _work_until_stopped() -> None:
    from vlm_core.study import running

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    running.run_cell = stop  # type: ignore[assignment]
    running._work(None, None, None, "")  # type: ignore[arg-type]


def test_a_worker_that_is_stopped_begins_no_other_cell() -> None:
    worker = multiprocessing.get_context("spawn").Process(target=_work_until_stopped)
    worker.start()
    worker.join()
    assert worker.exitcode == 130


@pytest.mark.slow
def test_other_settings_do_not_go_on_with_a_study(shop: Path, stocked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vlm_core.study import running

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(running, "_run_cells", stop)
        with pytest.raises(KeyboardInterrupt):
            run_study(small(shop), stocked)
    with pytest.raises(
        UserError, match=r"was started with seeds=1, not 3: resume it with its settings, or name another"
    ):
        run_study(small(shop, seeds=3), stocked)


def test_all_is_to_do_where_nothing_was_run(shop: Path) -> None:
    import pandas as pd

    plan = plan_study(small(shop), ())
    nothing = pd.DataFrame(columns=["run_id", "name", "status"])
    assert [pending.cell for pending in find_pending(plan, nothing)] == list(plan.cells)

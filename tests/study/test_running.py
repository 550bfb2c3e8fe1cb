"""A whole study of a small shop; and, with trainings that learn nothing, studies that fail, are resumed or refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

import pandas as pd
import pytest

from tests.messages import collected_messages
from tests.models.families import make_tiny
from tests.stub_training import kill_at, train_nothing
from vlm_core.config import Config, StudyConfig
from vlm_core.errors import UserError
from vlm_core.study import measurements, running
from vlm_core.study.cells import PendingCell
from vlm_core.study.plan import Cell, plan_study
from vlm_core.study.running import find_pending, run_study
from vlm_core.tracking.reader import RunReader
from vlm_core.workflows.train import run_training

SMALL = {
    "preset": "demo",
    "families": "clip",
    "modes": "probe",
    "epochs": 2,
    "objectives": "classify",
    "seeds": 1,
    "protocols": "holdout",
    "parts": "families",
    "per_category": 20,
    "train_per_category": 12,
    "min_products": 20,
    "views": 0,
    "resamples": 100,
}
BASELINE, PROBE = "baseline/full/classify/holdout/0", "clip/probe/classify/holdout/0"


def small(shop: Path, **given: object) -> StudyConfig:
    return StudyConfig.build({**SMALL, "data": str(shop), **given})


def run_ids(study: str) -> dict[str, str]:
    """The runs below a study's, by their cells."""
    children = RunReader().children(study)
    return dict(zip(children["name"], children["run_id"], strict=True))


@pytest.fixture
def cheap_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Costs are measured by few calls and without a process of their own, which starts for seconds.

    That they are correct is held where they are measured.
    """
    here = SimpleNamespace(get_context=lambda method: SimpleNamespace(Pool=ThreadPool))
    for name, value in {"multiprocessing": here, "CALLS": 3, "BATCHES": 1, "_MEMORY_SECONDS": 0.05}.items():
        monkeypatch.setattr(f"vlm_core.study.cost.{name}", value)


@pytest.fixture
def nothing_learnt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cells are trained in moments and leave no model, of which nothing is measured; reports have empty plots."""
    monkeypatch.setattr("vlm_core.study.report.plot_svg", lambda plot: "<svg></svg>")
    monkeypatch.setattr("vlm_core.workflows.train.run_training", train_nothing())
    monkeypatch.setattr("vlm_core.tracking.registry.resolve", lambda run_id: Path())
    monkeypatch.setattr("vlm_core.models.saved.load_categoriser", lambda folder: None)
    for name in measurements.MEASUREMENTS:
        monkeypatch.setitem(measurements.MEASUREMENTS, name, lambda trained: None)


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
    families, held_out = results.pairs
    assert (families.group, families.a, families.b) == ("families", "HOG + colour", "clip probe")
    assert held_out.group == "held_out" and held_out.test.products > families.test.products
    assert {row.label for row in results.leak} == {"HOG + colour", "clip probe"}
    html = reader.text(outcome.run_id, "study/report.html")
    assert f"{probe.macro_f1.value:.3f}" in html
    assert all(run_id in html for row in results.scores for run_id in row.run_ids)
    assert "<script" not in html and 'src="http' not in html
    kept = json.loads(reader.text(outcome.run_id, "study/results.json"))
    assert kept["cells_finished"] == 4
    assert reader.text(outcome.run_id, "study/report.md").startswith("# Study demo")
    own = {name: value for name, value in SMALL.items() if name in Config.model_fields}
    alone = run_training(Config.build({"preset": "demo", "model": "clip", "data": str(shop), **own}), stocked)
    assert probe.macro_f1.value == alone.evaluation.macro_f1.value


@pytest.mark.usefixtures("nothing_learnt")
def test_a_failed_cell_is_told_and_repeated_while_what_is_done_stays(
    shop: Path, stocked: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(trained: object) -> None:
        raise RuntimeError("no simple rule today")

    with monkeypatch.context() as patch:
        patch.setitem(measurements.MEASUREMENTS, "simple_baselines", fail)
        with pytest.raises(UserError, match=r"1 of 2 cells failed.*no simple rule today"):
            run_study(small(shop), stocked)
    (before,) = RunReader().studies("demo")["run_id"]
    trained = run_ids(before)
    outcome = run_study(small(shop), stocked)
    assert outcome.run_id == before
    assert run_ids(before) == trained and trained.keys() == {BASELINE, PROBE}
    assert outcome.results.failed == {}


@pytest.mark.usefixtures("nothing_learnt")
def test_a_killed_study_is_resumed_and_so_is_the_cell_that_it_was_at(
    shop: Path, stocked: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(here: Callable[[], NoReturn]) -> None:
        def stop_at_the_second_cell(config: Config, epoch: int) -> None:
            if config.run_name == PROBE:
                here()

        monkeypatch.setattr("vlm_core.workflows.train.run_training", train_nothing(stop_at_the_second_cell))
        run_study(small(shop), stocked)

    kill_at(work)
    (killed,) = RunReader().studies("demo")["run_id"]
    begun = RunReader().children(killed).set_index("name")
    assert begun["status"].to_dict() == {BASELINE: "FINISHED", PROBE: "RUNNING"}
    with collected_messages() as lines:
        outcome = run_study(small(shop), stocked)
    assert outcome.run_id == killed and any("2 cells, 1 of them already finished" in line for line in lines)
    resumed = RunReader().children(killed).set_index("name")
    assert resumed["run_id"].to_dict() == begun["run_id"].to_dict()
    assert set(resumed["status"]) == {"FINISHED"}
    assert RunReader().history(resumed["run_id"][PROBE], "seconds")["step"].tolist() == [1, 2]
    assert outcome.results.cells_finished == 2


@pytest.mark.usefixtures("nothing_learnt")
def test_a_cell_that_was_killed_before_its_first_epoch_begins_anew(shop: Path, stocked: Path) -> None:
    config = small(shop)
    plan = plan_study(config, ())
    children = pd.DataFrame(
        {
            "run_id": ["a", "b"],
            "name": [BASELINE, PROBE],
            "status": ["KILLED", "FINISHED"],
            "tags.study_parts": [None, ",".join(plan.measurements(Cell.of(PROBE)))],
        }
    )
    (pending,) = find_pending(plan, children)
    assert (pending.cell.key, pending.run_id, pending.trained) == (BASELINE, "", False)


def _stop(*_: object) -> NoReturn:
    raise KeyboardInterrupt


@pytest.mark.usefixtures("nothing_learnt")
def test_a_cell_whose_node_died_goes_on_with_the_run_that_it_had(
    shop: Path, stocked: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = run_study(small(shop), stocked).run_id
    plan, begun = plan_study(small(shop), ()), PendingCell(Cell.of(PROBE), "", trained=False)
    finished = run_ids(study)[PROBE]
    assert running._retry_of(begun, plan, study) == PendingCell(begun.cell, finished, trained=True)
    client = RunReader()._client
    client.set_tag(finished, "process", "another-machine:1:1.00")
    client.update_run(finished, status="RUNNING")
    assert running._retry_of(begun, plan, study) == PendingCell(begun.cell, finished, trained=False)
    assert client.get_run(finished).info.status == "KILLED"


def test_other_settings_do_not_resume_a_study(shop: Path, stocked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(running, "_run_cells", _stop)
        with pytest.raises(KeyboardInterrupt):
            run_study(small(shop), stocked)
    with pytest.raises(
        UserError, match=r"was started with seeds=1, not 3: resume it with its settings, or name another"
    ):
        run_study(small(shop, seeds=3), stocked)


def test_a_study_goes_on_with_the_tower_that_it_began_with(
    shop: Path, stocked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "own"
    for part in make_tiny("git"):
        part.save_pretrained(folder)
    config = small(shop, parts="ablation", towers=str(folder))
    monkeypatch.setattr(running, "_run_cells", _stop)
    with pytest.raises(KeyboardInterrupt):
        run_study(config, stocked)
    (folder / "config.json").write_text((folder / "config.json").read_text() + "\n")
    with pytest.raises(UserError, match="own has other files than when the study began: put those back"):
        run_study(config, stocked)


def test_all_is_to_do_where_nothing_was_run(shop: Path) -> None:
    plan = plan_study(small(shop), ())
    nothing = pd.DataFrame(columns=["run_id", "name", "status"])
    assert [pending.cell for pending in find_pending(plan, nothing)] == list(plan.cells)
    assert [Cell.of(key) for key in (BASELINE, PROBE)] == list(plan.cells)

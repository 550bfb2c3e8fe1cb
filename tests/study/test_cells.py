"""One cell: trained and measured, resumed, or only measured; an error becomes its outcome."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from vlm_core.config import Config, StudyConfig
from vlm_core.study import cells, measurements
from vlm_core.study.cells import CellOutcome, PendingCell, run_cell
from vlm_core.study.plan import Cell, StudyPlan, plan_study

PROBE = Cell("clip", "probe", "classify", "holdout", 3)


@pytest.fixture
def plan() -> StudyPlan:
    return plan_study(StudyConfig.build({"preset": "demo", "seed": 3, "seeds": 1, "families": "clip"}), ("mean-pool",))


@pytest.fixture
def steps(monkeypatch):
    """What is done for a cell, without doing it."""
    done = []

    def train(config, root, *, data, parent, register_model):
        done.append(("train", config.model, config.seed, config.resume, parent, data, register_model))
        return SimpleNamespace(run_id="trained")

    def measure(names, run_id, config, data):
        done.append(("measure", names, run_id, data))

    monkeypatch.setattr(cells, "_load", lambda config, root: "data")
    monkeypatch.setattr("vlm_core.workflows.train.run_training", train)
    monkeypatch.setattr(measurements, "measure", measure)
    monkeypatch.setattr(cells, "_run_mechanism", lambda cell, plan, root, parent: f"{cell.mode} of {parent}")
    return done


def outcome(pending, plan) -> CellOutcome:
    result = run_cell(pending, plan, Path(), "study")
    assert result.key == pending.cell.key and result.seconds >= 0
    return result


@pytest.mark.parametrize("stopped", ["", "stopped run"])
def test_a_cell_is_trained_or_resumed_and_then_measured(plan, steps, stopped):
    result = outcome(PendingCell(PROBE, stopped, trained=False), plan)
    assert (result.run_id, result.error) == ("trained", "")
    assert steps == [
        ("train", "clip", 3, stopped, "study", "data", False),
        ("measure", ("simple_baselines",), "trained", "data"),
    ]


def test_a_trained_cell_is_only_measured(plan, steps):
    assert outcome(PendingCell(PROBE, "run", trained=True), plan).run_id == "run"
    assert steps == [("measure", ("simple_baselines",), "run", "data")]


def test_a_cell_of_the_ablation_trains_its_mechanism(plan, steps):
    mechanism = Cell("mechanism", "mean-pool", "classify", "holdout", 3)
    assert outcome(PendingCell(mechanism, "", trained=False), plan).run_id == "mean-pool of study"
    assert steps == []


def test_an_error_is_the_outcome_of_its_cell(plan, steps, monkeypatch):
    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(measurements, "measure", fail)
    result = outcome(PendingCell(PROBE, "", trained=False), plan)
    assert (result.run_id, result.error) == ("", "RuntimeError: out of memory")


def test_an_interruption_is_no_outcome(plan, steps, monkeypatch):
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(measurements, "measure", stop)
    with pytest.raises(KeyboardInterrupt):
        run_cell(PendingCell(PROBE, "", trained=False), plan, Path(), "study")


def test_the_catalogue_is_read_once_for_all_cells(monkeypatch):
    read = []
    monkeypatch.setattr(cells, "load_catalogue", lambda config, root: read.append(config.data) or config.data)
    monkeypatch.setattr(cells, "load_data", lambda config, root, catalogue: (config.seed, catalogue))
    cells._catalogue.cache_clear()
    try:
        loaded = [cells._load(Config.build({"data": "shop", "seed": seed}), Path()) for seed in (0, 1)]
    finally:
        cells._catalogue.cache_clear()
    assert loaded == [(0, "shop"), (1, "shop")] and read == ["shop"]

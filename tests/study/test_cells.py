"""One cell: trained and measured, resumed, or only measured."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from vlm_core.config import Config, StudyConfig
from vlm_core.study import cells, measurements
from vlm_core.study.cells import PendingCell, run_cell
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


@pytest.mark.parametrize("stopped", ["", "stopped run"])
def test_a_cell_is_trained_or_resumed_and_then_measured(plan, steps, stopped):
    assert run_cell(PendingCell(PROBE, stopped, trained=False), plan, Path(), "study") == "trained"
    assert steps == [
        ("train", "clip", 3, stopped, "study", "data", False),
        ("measure", ("simple_baselines",), "trained", "data"),
    ]


def test_a_trained_cell_is_only_measured(plan, steps):
    assert run_cell(PendingCell(PROBE, "run", trained=True), plan, Path(), "study") == "run"
    assert steps == [("measure", ("simple_baselines",), "run", "data")]


def test_a_cell_of_the_ablation_trains_its_mechanism(plan, steps):
    mechanism = Cell("mechanism", "mean-pool", "classify", "holdout", 3)
    assert run_cell(PendingCell(mechanism, "", trained=False), plan, Path(), "study") == "mean-pool of study"
    assert steps == []


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

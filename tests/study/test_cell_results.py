"""Finished cells: grouped over their seeds, and read back from the tracking store."""

import pytest

from tests.study.made_cells import GOOD, make_cell, make_cells, make_evaluation, make_predictions
from vlm_core.evaluation.decoding_scores import DecodingScore
from vlm_core.study.cell_results import read_cell_results
from vlm_core.study.plan import Cell, StudyPlan
from vlm_core.tracking.writer import RunWriter

KEYS = (
    "baseline/full/classify/holdout/0",
    "clip/probe/classify/holdout/0",
    "clip/full/classify/holdout/0",
    "clip/full/classify/holdout/1",
    "git/fusion/generate/holdout/0",
    "mechanism/mean-pool/classify/holdout/0",
)


@pytest.fixture
def cells(tmp_path):
    return make_cells(*(make_cell(tmp_path, key) for key in KEYS))


def test_the_seeds_of_a_configuration_stand_together(cells):
    seeds = {name: [cell.cell.seed for cell in each] for name, each in cells.by_configuration.items()}
    assert seeds["clip/full/classify/holdout"] == [0, 1]
    assert len(seeds) == 5


def test_the_main_configurations_are_the_baseline_and_the_main_mode(cells):
    assert list(cells.main("holdout")) == ["HOG + colour", "clip full"]
    assert [cell.cell.seed for cell in cells.main("holdout")["clip full"]] == [0, 1]
    assert cells.main("original") == {}
    assert list(cells.mechanisms()) == ["mean-pool, patches only"]


def test_a_measurement_is_read_by_its_name_or_its_former_one(tmp_path):
    scores = {"free text": DecodingScore(9, 0.8, 0.7, 0.1, 0.9, None)}
    new = make_cell(tmp_path / "new", KEYS[4], decoding=scores)
    old = make_cell(tmp_path / "old", KEYS[4], rules=scores, unknown=make_predictions(GOOD))
    for cell in (new, old):
        assert cell.measurement("decoding", dict[str, DecodingScore]) == scores
    assert new.measurement("robustness", dict[str, float]) is None
    assert new.predictions("unknown") is None and len(old.predictions("unknown")) == 20


def test_finished_cells_are_read_from_the_store(store):
    cells = tuple(Cell.of(key) for key in KEYS[:3])
    with RunWriter("shop", "study x", folder=store) as study:
        for cell in cells[:2]:
            with RunWriter("shop", cell.key, folder=store, parent=study.run_id) as run:
                run.evaluation(make_evaluation(GOOD))
                run.predictions(make_predictions(GOOD), "validation")
                run.metrics({"train_seconds": 2.0})
                if cell is cells[0]:
                    (store / "leak.json").write_text("[1, 2]")
                    run.artifact(store / "leak.json", "study")
        with (
            pytest.raises(RuntimeError),
            RunWriter("shop", cells[2].key, folder=store, parent=study.run_id),
        ):
            raise RuntimeError("no")
    plan = StudyPlan(cells, frozenset(), "full", 0, {})
    baseline, probe = read_cell_results(study.run_id, plan, store / "copies").cells
    assert (baseline.cell, probe.cell) == cells[:2]
    assert baseline.evaluation.accuracy.value == 1.0 and len(probe.validation) == 20
    assert probe.row["metrics.train_seconds"] == 2.0
    assert baseline.measurement("leak", tuple[int, ...]) == (1, 2)
    assert probe.measurement("leak", tuple[int, ...]) is None

"""Finished cells made up by hand: two categories, ten test products each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tests.evaluation.made_predictions import predictions_of
from vlm_core.evaluation.evaluation import Evaluation, evaluate
from vlm_core.evaluation.predictions import Predictions
from vlm_core.study.cell_results import CellResult, CellResults
from vlm_core.study.plan import Cell, StudyPlan
from vlm_core.study.results_json import to_json

Confusion = tuple[tuple[int, int], ...]  # rows: true category
NAMES = ("A", "B", "C")
GOOD = ((10, 0), (0, 10))
# accuracy 14/20; F1 of A 2·8/(10+12) = 8/11, of B 2·6/(10+8) = 2/3; recalls 0.8 and 0.6
FAIR = ((8, 2), (4, 6))


def make_predictions(confusion: Confusion) -> Predictions:
    return predictions_of(np.array(confusion), NAMES[: len(confusion)])


def make_evaluation(confusion: Confusion) -> Evaluation:
    predictions, prior = make_predictions(confusion), np.full(len(confusion), 1 / len(confusion))
    return evaluate(predictions, pd.DataFrame(index=range(len(predictions))), prior, resamples=50, seed=0)


def make_cell(
    folder: Path,
    key: str,
    confusion: Confusion = FAIR,
    row: dict[str, Any] | None = None,
    **json: Any,
) -> CellResult:
    """Return a finished cell whose measurements are the keywords, as files below `folder`."""
    measured = folder / key.replace("/", "-")
    measured.mkdir(parents=True)
    for name, value in json.items():
        if isinstance(value, Predictions):
            file_name = name if name == "held_out" else name.replace("_", " ")
            value.write(measured / f"{file_name}.npz")
        else:
            (measured / f"{name}.json").write_text(to_json(value))
    cell, evaluation = Cell.of(key), make_evaluation(confusion)
    return CellResult(cell, f"run of {key}", row or {}, evaluation, evaluation.predictions, measured)


def make_cells(*cells: CellResult, main_mode: str = "full") -> CellResults:
    plan = StudyPlan(tuple(cell.cell for cell in cells), frozenset({"families"}), main_mode, 0, {})
    return CellResults(plan, cells, len(cells))

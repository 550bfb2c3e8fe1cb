"""The finished cells of a study, read back: what was tested and measured in each of their runs."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm_core.errors import UserError
from vlm_core.evaluation.evaluation import Evaluation
from vlm_core.evaluation.predictions import Predictions
from vlm_core.study.measurements import FOLDER
from vlm_core.study.plan import MECHANISM, Cell, StudyPlan
from vlm_core.tracking.reader import RunReader

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class CellResult:
    """One finished cell: its run, and what was tested and measured."""

    cell: Cell
    run_id: str
    facts: Mapping[str, Any]  # its row of RunReader.runs
    evaluation: Evaluation
    validation: Predictions
    measured: Path  # folder of measurements, which may lack

    def json(self, name: str) -> Any:
        """A measurement, or None where it was not made."""
        path = self.measured / f"{name}.json"
        return json.loads(path.read_text()) if path.exists() else None

    def answers(self, name: str) -> Predictions | None:
        """Answers that were kept under that name, or None."""
        path = self.measured / f"{name}.npz"
        return Predictions.read(path) if path.exists() else None


@dataclass(frozen=True)
class CellResults:
    """All finished cells of a study."""

    plan: StudyPlan
    trials: tuple[CellResult, ...]

    @cached_property
    def by_configuration(self) -> dict[str, list[CellResult]]:
        """The trials of each configuration, by seed, in the plan's order."""
        found: dict[str, list[CellResult]] = defaultdict(list)
        for trial in self.trials:
            found[trial.cell.configuration].append(trial)
        return dict(found)

    def main(self, protocol: str) -> dict[str, list[CellResult]]:
        """Label -> trials of the configurations that are compared most closely."""
        return {
            trials[0].cell.label: trials
            for trials in self.by_configuration.values()
            if self.plan.is_main(trials[0].cell) and trials[0].cell.protocol == protocol
        }

    def mechanisms(self) -> dict[str, list[CellResult]]:
        """Mechanism -> trials of the ablation."""
        return {
            trials[0].cell.label: trials
            for trials in self.by_configuration.values()
            if trials[0].cell.model == MECHANISM
        }


def read_cell_results(parent: str, plan: StudyPlan, folder: Path) -> CellResults:
    """The finished cells of the study whose run is `parent`; artifacts are copied into `folder`."""
    reader = RunReader()
    children = reader.children(parent)
    found = []
    for cell in plan.cells:
        runs = children[(children["name"] == cell.key) & (children["status"] == "FINISHED")]
        if len(runs):
            row = runs.iloc[0]
            found.append(_read_trial(reader, cell, row, folder / str(row["run_id"])))
    return CellResults(plan, tuple(found))


def _read_trial(reader: RunReader, cell: Cell, row: pd.Series[Any], folder: Path) -> CellResult:
    run_id = str(row["run_id"])
    folder.mkdir(parents=True)
    try:
        measured = reader.artifact(run_id, FOLDER, folder)
    except UserError:
        measured = folder / FOLDER
    facts = {str(name): value for name, value in row.items()}
    return CellResult(
        cell, run_id, facts, reader.evaluation(run_id), reader.predictions(run_id, "validation"), measured
    )

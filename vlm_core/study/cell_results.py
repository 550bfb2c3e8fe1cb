"""The finished cells of a study, read back: what was tested and measured in each of their runs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm_core.errors import UserError
from vlm_core.evaluation.evaluation import Evaluation
from vlm_core.evaluation.predictions import Predictions
from vlm_core.progress import track
from vlm_core.study.measurements import FOLDER, FORMER_NAMES
from vlm_core.study.plan import MECHANISM, READER, Cell, StudyPlan
from vlm_core.study.results_json import read_json
from vlm_core.tracking.reader import RunReader

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class CellResult:
    """One finished cell: its run, and what was tested and measured."""

    cell: Cell
    run_id: str
    row: Mapping[str, Any]  # of RunReader.runs
    evaluation: Evaluation
    validation: Predictions
    folder: Path  # of measurements; may be missing

    def measurement(self, name: str, kind: Any) -> Any:
        """Return a measurement as a value of type `kind`, or None where it was not made."""
        paths = (self.folder / f"{each}.json" for each in (name, FORMER_NAMES.get(name, name)))
        path = next(filter(Path.exists, paths), None)
        return read_json(kind, path.read_text()) if path else None

    def predictions(self, name: str) -> Predictions | None:
        """Return predictions that were measured under this name, or None."""
        path = self.folder / f"{name}.npz"
        return Predictions.read(path) if path.exists() else None


@dataclass(frozen=True)
class CellResults:
    """All finished cells of a study but for readers, which only their own section compares."""

    plan: StudyPlan
    cells: tuple[CellResult, ...]
    finished: int  # cells, readers among them

    @cached_property
    def by_configuration(self) -> dict[str, list[CellResult]]:
        """The cells of each configuration, one per seed, in the plan's order."""
        seeds: dict[str, list[CellResult]] = defaultdict(list)
        for result in self.cells:
            seeds[result.cell.configuration].append(result)
        return dict(seeds)

    def main(self, protocol: str) -> dict[str, list[CellResult]]:
        """Return label -> cells of the main configurations (see `StudyPlan.is_main`) under a protocol."""
        return {
            seeds[0].cell.label: seeds
            for seeds in self.by_configuration.values()
            if self.plan.is_main(seeds[0].cell) and seeds[0].cell.protocol == protocol
        }

    def mechanisms(self) -> dict[str, list[CellResult]]:
        """Return mechanism -> cells of the ablation."""
        return {
            seeds[0].cell.label: seeds for seeds in self.by_configuration.values() if seeds[0].cell.model == MECHANISM
        }


def read_cell_results(parent: str, plan: StudyPlan, folder: Path) -> CellResults:
    """Read the finished cells of the study whose run is `parent`; artifacts are copied into `folder`."""
    reader = RunReader()
    runs = finished_runs(reader, parent, plan.cells)
    results = [
        _read_cell_result(reader, cell, row, folder / str(row["run_id"]))
        for cell, row in track(runs, "reading the study's runs", len(runs))
        if cell.model != READER
    ]
    return CellResults(plan, tuple(results), len(runs))


def finished_runs(reader: RunReader, parent: str, cells: Sequence[Cell]) -> list[tuple[Cell, pd.Series[Any]]]:
    """Return those of the cells that are finished, each with the row of its run, a child of `parent`."""
    children = reader.children(parent)
    if not len(children):
        return []
    finished = children[children["status"] == "FINISHED"].drop_duplicates("name")
    rows = {str(row["name"]): row for _, row in finished.iterrows()}
    return [(cell, rows[cell.key]) for cell in cells if cell.key in rows]


def _read_cell_result(reader: RunReader, cell: Cell, row: pd.Series[Any], folder: Path) -> CellResult:
    run_id = str(row["run_id"])
    folder.mkdir(parents=True)
    try:
        measured = reader.artifact(run_id, FOLDER, folder)
    except UserError:
        measured = folder / FOLDER
    values = {str(name): value for name, value in row.items()}
    return CellResult(
        cell, run_id, values, reader.evaluation(run_id), reader.predictions(run_id, "validation"), measured
    )

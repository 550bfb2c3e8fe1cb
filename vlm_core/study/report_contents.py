"""What a report is made of: sections with texts, tables and plots, as data that any renderer can draw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from vlm_core.attention.faithfulness import Faithfulness
from vlm_core.evaluation.bootstrap import Estimate
from vlm_core.study.results import CalibrationRow, CostRow, LeakRow, RobustnessRow, Suspect


@dataclass(frozen=True)
class RunLink:
    """A table cell that leads to the runs behind its row."""

    text: str
    run_ids: tuple[str, ...]


TableCell = str | RunLink


@dataclass(frozen=True)
class Table:
    """A table; the first column names the row."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[TableCell, ...], ...]


@dataclass(frozen=True)
class Tile:
    """One number large, with what it is and its interval or unit."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class IntervalPlot:
    """A value with its interval per row, the first on top."""

    caption: str
    axis: str
    rows: tuple[tuple[str, Estimate], ...]  # (label, value)
    differences: bool = False  # a line marks zero


@dataclass(frozen=True)
class LeakPlot:
    """F1 of each category under both protocols, a panel per model."""

    caption: str
    rows: tuple[LeakRow, ...]


@dataclass(frozen=True)
class RobustnessPlot:
    """Relative drop of macro-F1 of each model under each corruption."""

    caption: str
    rows: tuple[RobustnessRow, ...]


@dataclass(frozen=True)
class RiskPlot:
    """Risk over coverage, a line per model."""

    x_axis: ClassVar[str] = "coverage, most confident first"
    y_axis: ClassVar[str] = "risk"
    caption: str
    rows: tuple[CalibrationRow, ...]


@dataclass(frozen=True)
class FaithfulnessPlot:
    """Deletion and insertion curves, two panels per model."""

    x_axis: ClassVar[str] = "share of the grid cells"
    y_axis: ClassVar[str] = "probability"
    caption: str
    models: dict[str, Faithfulness]  # by label


@dataclass(frozen=True)
class CostPlot:
    """Macro-F1 against latency, a point per model."""

    x_axis: ClassVar[str] = "latency of one image, ms (median)"
    y_axis: ClassVar[str] = "macro-F1"
    caption: str
    rows: tuple[CostRow, ...]


Plot = IntervalPlot | LeakPlot | RobustnessPlot | RiskPlot | FaithfulnessPlot | CostPlot


@dataclass(frozen=True)
class Section:
    """One part of a report, in the order of its fields."""

    key: str  # the same in every study
    title: str
    paragraphs: tuple[str, ...]
    tiles: tuple[Tile, ...] = ()
    failures: tuple[str, ...] = ()  # cells that the results leave out, and why
    conclusions: tuple[str, ...] = ()
    plots: tuple[Plot, ...] = ()
    tables: tuple[Table, ...] = ()
    suspects: tuple[Suspect, ...] = ()  # products to show as pictures


def linked_row(label: str, run_ids: tuple[str, ...], *texts: str) -> tuple[TableCell, ...]:
    """Return a table's row whose label leads to its runs."""
    return (RunLink(label, run_ids), *texts)


def cell_texts(row: Sequence[TableCell]) -> tuple[str, ...]:
    """Return the texts of a row's cells."""
    return tuple(cell if isinstance(cell, str) else cell.text for cell in row)

"""What a report is made of, and how its figures are written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vlm_core.evaluation.bootstrap import Estimate


@dataclass(frozen=True)
class Table:
    """A table of texts; the first column names the row."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Section:
    """One part of the report; `says` are paragraphs, `figures` are SVG with a caption each."""

    title: str
    says: tuple[str, ...]
    tables: tuple[Table, ...] = ()
    figures: tuple[tuple[str, str], ...] = ()  # (caption, SVG)


def share(value: float) -> str:
    """A share as text; empty where it is not known."""
    return "" if value != value else f"{value:.1%}"


def interval(value: Mapping[str, float]) -> str:
    """An estimate read from JSON as text."""
    return shown(Estimate(value["value"], value["low"], value["high"]))


def shown(estimate: Estimate, *, signed: bool = False, percent: bool = False) -> str:
    """A figure and its interval as text; without interval where there is none."""
    form = "{:+.3f}" if signed else "{:.1%}" if percent else "{:.3f}"
    value = form.format(estimate.value)
    if estimate.low != estimate.low:
        return value
    return f"{value} ({form.format(estimate.low)} to {form.format(estimate.high)})"


def p_value(p: float | None) -> str:
    """A p-value as text, a dash where nothing was tested."""
    return "–" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"

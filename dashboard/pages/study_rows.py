"""How the rows of a study's tables are written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dash import dcc
from dash.development.base_component import Component

from dashboard.evidence import runs_address

Row = Mapping[str, Any]


def linked(row: Row) -> Component:
    """The row's label, which leads to the runs behind its figures."""
    run_ids = list(row.get("run_ids") or [row["run_id"]])
    return dcc.Link(row["label"], href=runs_address(run_ids), className="cell-link", title="the runs behind this row")


def share(value: float | None) -> str:
    """A share as text, a dash where it is not known."""
    return "–" if value is None else f"{value:.1%}"


def p_value(value: float | None) -> str:
    """A p-value as text, a dash where nothing was tested."""
    return "–" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"

"""How the rows of a study's tables are written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dashboard.components import cell_link
from dashboard.studies import runs_address

Row = Mapping[str, Any]


def linked(row: Row) -> dict[str, str]:
    """The row's label, which leads to the runs behind its figures."""
    run_ids = list(row.get("run_ids") or [row["run_id"]])
    return cell_link(row["label"], runs_address(run_ids), "the runs behind this row")


def share(value: float | None) -> str:
    """A share as text, a dash where it is not known."""
    return "–" if value is None else f"{value:.1%}"

"""The leaderboard's grid."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

import dash_ag_grid as dag
from dash import html
from dash.development.base_component import Component

from dashboard.components import GRID_OPTIONS, aria, listed
from dashboard.leaderboard import TestSet

MOST_COLUMNS: Final = 12  # categories with a column each; more share one strip
ROW_PIXELS: Final = 40

OPTIONS: Final[dict[str, Any]] = {
    **GRID_OPTIONS,
    "rowHeight": ROW_PIXELS,
    "headerHeight": ROW_PIXELS,
    "rowSelection": {"mode": "multiRow", "isRowSelectable": {"function": "params.data.heading == null"}},
    "isFullWidthRow": {"function": "params.rowNode.data.heading != null"},
    "fullWidthCellRenderer": "BandHeading",
    "postSortRows": {"function": "keepBands(params)"},
    "suppressCellFocus": False,
}


def height(rows: int) -> dict[str, str]:
    """As high as its rows and the bar below them, up to most of the screen."""
    return {"height": f"min({ROW_PIXELS * (rows + 1) + 24}px, 74vh)", "minHeight": "220px"}


def grid(columns: list[dict[str, Any]], rows: list[dict[str, Any]], filters: str | None) -> Component:
    """The grid with its first rows; `filters` is AG Grid's model of them as JSON, from the address."""
    table = dag.AgGrid(
        id="leaderboard-grid",
        rowData=rows,
        columnDefs=columns,
        filterModel=_filter_model(filters),
        getRowId="params.data.run_id",
        dashGridOptions=OPTIONS,
        defaultColDef={"sortable": True, "resizable": True, "filter": True, "suppressHeaderMenuButton": False},
        style=height(12),
    )
    return html.Div(table, role="region", **aria(label="Runs"))


def columns_of(rows: Sequence[dict[str, Any]], sets: Sequence[TestSet], sort: str | None = "") -> list[dict[str, Any]]:
    """The columns, with those of F1 that the test sets have, and one scale for the intervals of all rows.

    `sort` is what they are sorted by at first, such as "latency:asc,name:desc"; later the reader's choice stays.
    """
    asked = [part.rsplit(":", 1) for part in listed(sort) if part.endswith((":asc", ":desc"))] or [["score", "desc"]]
    first = {
        name: {"initialSort": direction, "initialSortIndex": place} for place, (name, direction) in enumerate(asked)
    }
    return [{**column, **first.get(column.get("field", ""), {})} for column in _columns(rows, sets)]


def _filter_model(text: str | None) -> dict[str, Any]:
    try:
        model = json.loads(text or "{}")
    except ValueError:
        return {}
    return model if isinstance(model, dict) and all(isinstance(each, dict) for each in model.values()) else {}


def _columns(rows: Sequence[dict[str, Any]], sets: Sequence[TestSet]) -> list[dict[str, Any]]:
    scores = [row for row in rows if row.get("score") is not None]
    low = min((row.get("low", row["score"]) for row in scores), default=0.0)
    high = max((row.get("high", row["score"]) for row in scores), default=1.0)
    slugs = sorted({slug for each in sets for slug in each.categories})
    heat: list[dict[str, Any]] = [
        {
            "field": f"f1_{slug}",
            "headerName": slug.replace("_", " ").title(),
            "cellRenderer": "Heat",
            "width": 104,
            "filter": False,
        }
        for slug in slugs
    ]
    if len(slugs) > MOST_COLUMNS:
        strip = {"slugs": slugs}
        heat = [{"headerName": "F1 a category", "cellRenderer": "HeatStrip", "cellRendererParams": strip, "width": 280}]
    return [
        {
            **{"field": "rank", "headerName": "#", "width": 86, "pinned": "left", "cellRenderer": "Rank"},
            **{"filter": False, "cellStyle": {"padding": "0 8px"}, "resizable": False},
        },
        {"field": "name", "headerName": "Run", "minWidth": 176, "flex": 1, "cellRenderer": "RunLink"},
        {
            **{"field": "score", "headerName": "Macro-F1", "width": 250, "cellRenderer": "Interval"},
            "cellRendererParams": {"low": low, "high": high},
            "equals": {"function": "false"},  # it also draws what is no score yet: always anew
            "filter": "agNumberColumnFilter",
        },
        {"field": "family", "headerName": "Model", "width": 120, "cellRenderer": "Family"},
        {"field": "mode", "headerName": "Mode", "width": 110},
        *heat,
        _number("train", "Training, s", "d3.format(',.3~s')(params.value)"),
        _number("latency", "Latency, ms", "d3.format('.3~r')(params.value)"),
        _number("weights", "Trained weights", "d3.format('.3~s')(params.value)"),
        {
            "field": "weights_source",
            "headerName": "Weights",
            "width": 140,
            "valueGetter": {"function": "params.data.weights"},
        },
        {"field": "seed", "headerName": "Seed", "width": 90},
        {"field": "status", "headerName": "Status", "width": 120, "cellRenderer": "Status"},
        {"field": "started", "headerName": "Started (UTC)", "width": 150},
    ]


def _number(name: str, title: str, shown: str) -> dict[str, Any]:
    return {
        **{"field": name, "headerName": title, "width": 130, "type": "rightAligned", "filter": "agNumberColumnFilter"},
        "valueFormatter": {"function": f"params.value == null ? '–' : {shown}"},
    }

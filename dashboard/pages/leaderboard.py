"""The leaderboard: all runs, those that can be compared together, live."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from typing import Any, Final
from urllib.parse import quote

import dash_ag_grid as dag
import dash_mantine_components as dmc
from dash import Dash, Input, Output, State, dcc, html, no_update
from dash.development.base_component import Component

from dashboard.boards import COSTS, GROUPINGS, Board, TestSet, banded, make_board, most_compared, rows_of
from dashboard.components import (
    GRID_OPTIONS,
    address_store,
    aria,
    card,
    graph,
    keep_in_url,
    notice,
    page_header,
    store_state,
)
from dashboard.figures.leaderboard import score_against_cost
from dashboard.runs import Runs, View
from dashboard.theme import layout as figure_layout

NAME: Final = "Leaderboard"
PATH: Final = "/"
ICON: Final = "trophy"
IN_NAVIGATION: Final = True
MOST_COLUMNS: Final = 12  # categories with a column each; more share one strip
MOST_COMPARED: Final = 6
ROW_PIXELS: Final = 40


def layout(runs: Runs, query: Mapping[str, str]) -> Component:
    """The page, with the board as it stands now."""
    view = runs.view()
    board = _board(runs, view)
    chosen = query.get("set", "")
    return html.Div(
        [
            page_header(
                "Leaderboard",
                "Test macro-F1 with its 95 % interval. Only runs tested on the same products are ranked together.",
                dcc.Link(
                    dmc.Button("Compare selected", id="leaderboard-compare", disabled=True),
                    href="/compare",
                    id="leaderboard-compare-link",
                ),
            ),
            address_store("leaderboard"),
            html.Div(store_state(view), id="leaderboard-state"),
            html.Div(
                [
                    _controls(board, query),
                    html.Div(_leak_notice(board.sets, chosen), id="leaderboard-leak"),
                    _grid(),
                    _scatter_card(query.get("cost", "train")),
                ],
                id="leaderboard-content",
                hidden=not board.rows,
            ),
        ]
    )


def register(app: Dash, runs: Runs) -> None:
    """Bind the page's callbacks."""
    controls = [Input(f"leaderboard-{name}", "value") for name in ("set", "group")]
    hide = Input("leaderboard-all", "checked")
    version = Input("shell-version", "data")
    app.callback(
        Output("leaderboard-grid", "rowData"),
        Output("leaderboard-grid", "columnDefs"),
        Output("leaderboard-grid", "style"),
        Output("leaderboard-leak", "children"),
        version,
        *controls,
        hide,
        State("leaderboard-grid", "columnDefs"),
    )(partial(update_grid, runs))
    app.callback(Output("leaderboard-scatter", "figure"), version, controls[0], Input("leaderboard-cost", "value"))(
        partial(update_scatter, runs)
    )
    app.callback(
        Output("leaderboard-state", "children"),
        Output("leaderboard-content", "hidden"),
        Output("leaderboard-set", "data"),
        version,
        State("leaderboard-set", "value"),
    )(partial(update_state, runs))
    app.callback(
        Output("leaderboard-compare-link", "href"),
        Output("leaderboard-compare", "disabled"),
        Output("leaderboard-compare", "children"),
        Input("leaderboard-grid", "selectedRows"),
    )(update_compare)
    app.callback(Output("leaderboard-grid", "dashGridOptions"), Input("leaderboard-find", "value"))(find)
    keep_in_url(app, "leaderboard", ("set", "group", "cost", "find"))
    keep_in_url(app, "leaderboard", ("all",), "checked")


def update_grid(
    runs: Runs, version: int | None, chosen: str | None, grouping: str | None, everything: bool, columns: Any
) -> tuple[Any, Any, Any, Any]:
    """Rows, columns (where they changed), the grid's height and the warning that belong to the controls."""
    board = _board(runs, runs.view())
    rows = rows_of(board, chosen or "", hide_failed=not everything)
    made = _columns(rows, [each for each in board.sets if not chosen or each.key == chosen])
    shown = banded(rows, board.sets, grouping or "")
    return (
        shown,
        no_update if made == columns else made,
        _height(len(shown)),
        _leak_notice(board.sets, chosen or ""),
    )


def update_scatter(runs: Runs, version: int | None, chosen: str | None, cost: str | None) -> Any:
    """The figure of the chosen test set, or of that with most runs: scores of two test sets share no axis."""
    board = _board(runs, runs.view())
    rows = rows_of(board, chosen or most_compared(board), hide_failed=True)
    return score_against_cost(rows, cost if cost in COSTS else "train")


def update_state(runs: Runs, version: int | None, chosen: str | None) -> tuple[Any, bool, Any]:
    """What stands in the board's place while the store gives none, and the test sets to choose from."""
    view = runs.view()
    board = _board(runs, view)
    state = store_state(view)
    if state is None and view.state == "away":
        state = notice(
            "The tracking store does not answer", f"What was last seen stands below. {view.problem}", "warning"
        )
    return state, not board.rows, _choices(board, chosen)


def update_compare(selected: list[dict[str, Any]] | None) -> tuple[str, bool, str]:
    """The address of the comparison of the selected runs."""
    names = [row["run_id"] for row in selected or () if "heading" not in row][:MOST_COMPARED]
    text = f"Compare {len(names)} runs" if len(names) > 1 else "Select runs to compare"
    return "/compare?runs=" + ",".join(map(quote, names)), len(names) < 2, text


def find(text: str | None) -> dict[str, Any]:
    """The grid's options with a text that rows must hold."""
    return {**_OPTIONS, "quickFilterText": text or ""}


@lru_cache(maxsize=8)
def _board_of(runs: Runs, version: int) -> Board:
    return make_board(runs.table())


def _board(runs: Runs, view: View) -> Board:
    return _board_of(runs, view.version)


def _choices(board: Board, chosen: str | None) -> list[dict[str, str]]:
    named = [
        {"value": each.key, "label": f"{each.name} ({each.runs} runs{', leaking' if each.leaking else ''})"}
        for each in board.sets
    ]
    known = {each.key for each in board.sets}
    missing = [{"value": chosen, "label": chosen}] if chosen and chosen not in known else []
    return [{"value": "", "label": f"All test sets ({len(board.rows):,} runs)"}, *named, *missing]


def _controls(board: Board, query: Mapping[str, str]) -> Component:
    groupings = [{"value": "", "label": "Test set alone"}, *({"value": name, "label": name} for name in GROUPINGS)]
    return dmc.Group(
        [
            dmc.Select(
                id="leaderboard-set",
                label="Test set",
                data=_choices(board, query.get("set")),
                value=query.get("set", ""),
                searchable=True,
                allowDeselect=False,
                w={"base": "100%", "sm": 420},
            ),
            dmc.Select(
                id="leaderboard-group",
                label="Group by",
                data=groupings,
                value=query.get("group", ""),
                allowDeselect=False,
                w={"base": "100%", "sm": 160},
            ),
            dmc.TextInput(
                id="leaderboard-find",
                label="Find",
                placeholder="name, model, weights …",
                value=query.get("find", ""),
                debounce=250,
                w={"base": "100%", "sm": 220},
            ),
            dmc.Switch(
                id="leaderboard-all", label="Failed runs too", checked=query.get("all") == "true", mb=8, size="sm"
            ),
        ],
        align="flex-end",
        mb="md",
    )


def _leak_notice(sets: Sequence[TestSet], chosen: str) -> Component | None:
    leaking = [each for each in sets if each.leaking and chosen in ("", each.key)]
    if not leaking:
        return None
    text = (
        "Under this protocol test products, or near-copies of them, stand in training too: scores reward memory. "
        "These runs carry a red mark and are not ranked."
    )
    one = "This test set leaks" if chosen else f"{len(leaking)} of {len(sets)} test sets leak"
    return dmc.Box(notice(one, text, "error"), mb="md")


_OPTIONS: Final[dict[str, Any]] = {
    **GRID_OPTIONS,
    "rowHeight": ROW_PIXELS,
    "headerHeight": ROW_PIXELS,
    "rowSelection": {"mode": "multiRow", "isRowSelectable": {"function": "params.data.heading == null"}},
    "isFullWidthRow": {"function": "params.rowNode.data.heading != null"},
    "fullWidthCellRenderer": "BandHeading",
    "postSortRows": {"function": "keepBands(params)"},
    "suppressCellFocus": False,
}


def _height(rows: int) -> dict[str, str]:
    """As high as its rows and the bar below them, up to most of the screen."""
    return {"height": f"min({ROW_PIXELS * (rows + 1) + 24}px, 74vh)", "minHeight": "220px"}


def _grid() -> Component:
    grid = dag.AgGrid(
        id="leaderboard-grid",
        rowData=[],
        columnDefs=[],
        getRowId="params.data.run_id",
        dashGridOptions=_OPTIONS,
        defaultColDef={"sortable": True, "resizable": True, "filter": True, "suppressHeaderMenuButton": False},
        style=_height(12),
    )
    return html.Div(grid, role="region", **aria(label="Runs"))


def _columns(rows: Sequence[dict[str, Any]], sets: Sequence[TestSet]) -> list[dict[str, Any]]:
    scores = [row for row in rows if row.get("score") is not None]
    low = min((row.get("low", row["score"]) for row in scores), default=0.0)
    high = max((row.get("high", row["score"]) for row in scores), default=1.0)
    slugs = sorted({slug for each in sets for slug in each.categories})
    heat: list[dict[str, Any]] = [
        {
            "field": f"f1_{slug}",
            "headerName": slug.replace("_", " "),
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
        {"field": "rank", "headerName": "#", "width": 96, "pinned": "left", "cellRenderer": "Rank", "filter": False},
        {"field": "name", "headerName": "Run", "minWidth": 170, "flex": 1, "cellRenderer": "RunLink"},
        {"field": "family", "headerName": "Model", "width": 120, "cellRenderer": "Family"},
        {"field": "mode", "headerName": "Mode", "width": 110},
        {
            **{"field": "score", "headerName": "Macro-F1", "width": 250, "cellRenderer": "Interval", "sort": "desc"},
            "cellRendererParams": {"low": low, "high": high},
            "equals": {"function": "false"},  # it also draws what is no score yet: always anew
            "filter": "agNumberColumnFilter",
        },
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


def _scatter_card(cost: str) -> Component:
    choice = dmc.SegmentedControl(
        id="leaderboard-cost",
        data=[{"value": name, "label": label} for name, label in _COST_LABELS.items()],
        value=cost if cost in COSTS else "train",
        size="xs",
        **aria(label="Cost"),
    )
    figure = {"data": [], "layout": figure_layout()}
    return card(
        "Score against cost",
        graph("leaderboard-scatter", figure, "Macro-F1 of each run against what it costs, with the Pareto front"),
        note="The chosen test set, or that with most runs. Dotted: runs that none beats in both. "
        "Diamonds are probes, squares lp-ft, stars LoRA.",
        actions=[choice],
        mt="lg",
    )


_COST_LABELS: Final = {"train": "Training time", "latency": "Latency", "weights": "Trained weights"}

"""The leaderboard: all runs, live, ranked among those tested on the same products."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Final
from urllib.parse import quote

import dash_ag_grid as dag
import dash_mantine_components as dmc
from dash import ClientsideFunction, Dash, Input, Output, State, dcc, html, no_update
from dash.development.base_component import Component
from dash.exceptions import PreventUpdate

from dashboard.components import (
    GRID_OPTIONS,
    aria,
    button_link,
    card,
    graph,
    keep_in_url,
    notice,
    page_header,
    parse_list,
    skeleton,
    store_state,
)
from dashboard.figures.leaderboard import score_against_cost
from dashboard.leaderboard import COSTS, GROUPINGS, Leaderboard, TestSet, largest_test_set, select_rows, with_headings
from dashboard.runs import Runs

NAME: Final = "Leaderboard"
PATH: Final = "/"
ICON: Final = "trophy"
IN_NAVIGATION: Final = True
MOST_COMPARED: Final = 6
SCATTER_PIXELS: Final = 340
FIRST_ROWS: Final = 20  # a screen of them comes with the page; the others and the scatter follow
MOST_COLUMNS: Final = 12  # categories with a column each; more share one strip
ROW_PIXELS: Final = 40
COST_LABELS: Final = {"train": "Training time", "latency": "Latency", "weights": "Trained weights"}
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


def layout(runs: Runs, query: Mapping[str, str]) -> Component:
    """Return the page, with the leaderboard as it is now."""
    view = runs.view()
    leaderboard = view.leaderboard
    chosen, sort = query.get("set", ""), query.get("sort", "")
    rows = select_rows(leaderboard, chosen, hide_failed=query.get("all") != "true")
    first = with_headings(rows, leaderboard.sets, query.get("group", ""))
    if not sort and not query.get("filter"):
        first = first[:FIRST_ROWS]
    return html.Div(
        [
            page_header(
                "Leaderboard",
                "Test macro-F1 with its 95 % interval. Runs are ranked only against runs tested on the same products.",
                html.Div(update_compare(None), id="leaderboard-compare"),
            ),
            dcc.Store(id="leaderboard-sort", data=sort),
            dcc.Store(id="leaderboard-rendered", data=False),
            html.Div(store_state(view), id="leaderboard-state"),
            html.Div(
                [
                    _controls(leaderboard, query),
                    html.Div(_leak_notice(leaderboard.sets, chosen), id="leaderboard-leak"),
                    _grid(_sorted_columns(rows, _sets(leaderboard, chosen), sort), first, query.get("filter")),
                    _scatter_card(query.get("cost", "train")),
                ],
                id="leaderboard-content",
                hidden=not leaderboard.rows,
            ),
        ]
    )


def register(app: Dash, runs: Runs) -> None:
    """Bind the page's callbacks."""
    controls = [Input(f"leaderboard-{name}", "value") for name in ("set", "group")]
    hide = Input("leaderboard-all", "checked")
    version, rendered = Input("shell-version", "data"), Input("leaderboard-rendered", "data")
    app.callback(
        Output("leaderboard-grid", "rowData"),
        Output("leaderboard-grid", "columnDefs"),
        Output("leaderboard-grid", "style"),
        Output("leaderboard-leak", "children"),
        rendered,
        version,
        *controls,
        hide,
        State("leaderboard-grid", "columnDefs"),
        State("leaderboard-sort", "data"),
    )(partial(update_grid, runs))
    scatter = (rendered, version, controls[0], Input("leaderboard-cost", "value"))
    app.callback(Output("leaderboard-scatter", "children"), *scatter)(partial(update_scatter, runs))
    app.callback(
        Output("leaderboard-state", "children"),
        Output("leaderboard-content", "hidden"),
        Output("leaderboard-set", "data"),
        version,
        State("leaderboard-set", "value"),
    )(partial(update_state, runs))
    app.callback(Output("leaderboard-compare", "children"), Input("leaderboard-grid", "selectedRows"))(update_compare)
    app.callback(Output("leaderboard-grid", "dashGridOptions"), Input("leaderboard-find", "value"))(quick_filter)
    keep_in_url(app, "leaderboard", ("set", "group", "cost", "find"))
    keep_in_url(app, "leaderboard", ("all",), "checked")
    grid_state = [Input("leaderboard-grid", name) for name in ("columnState", "filterModel")]
    app.clientside_callback(ClientsideFunction("address", "keepGrid"), grid_state)
    app.clientside_callback(
        ClientsideFunction("later", "whenRendered"),
        Output("leaderboard-rendered", "data"),
        grid_state[0],
        State("leaderboard-rendered", "data"),
    )


def update_grid(
    runs: Runs,
    rendered: bool,
    version: int | None,
    chosen: str | None,
    grouping: str | None,
    everything: bool,
    columns: Any,
    sort: str | None = "",
) -> tuple[Any, Any, Any, Any]:
    """Return rows, columns (where they changed), the grid's height and the warning that belong to the controls.

    Updates nothing until the browser has rendered the first rows, which come with the page.
    """
    if not rendered:
        raise PreventUpdate
    leaderboard = runs.view().leaderboard
    rows = select_rows(leaderboard, chosen or "", hide_failed=not everything)
    new_columns = _sorted_columns(rows, _sets(leaderboard, chosen or ""), sort)
    grid_rows = with_headings(rows, leaderboard.sets, grouping or "")
    return (
        grid_rows,
        no_update if new_columns == columns else new_columns,
        _height(len(grid_rows)),
        _leak_notice(leaderboard.sets, chosen or ""),
    )


def update_scatter(runs: Runs, rendered: bool, version: int | None, chosen: str | None, cost: str | None) -> Any:
    """Return the figure of the chosen test set, or of that with most runs: scores of two test sets share no axis.

    It waits for the grid's first rows: the browser takes longer over Plotly than over all of the grid.
    """
    if not rendered:
        raise PreventUpdate
    leaderboard = runs.view().leaderboard
    rows = select_rows(leaderboard, chosen or largest_test_set(leaderboard), hide_failed=True)
    figure = score_against_cost(rows, cost if cost in COSTS else "train")
    label = "Macro-F1 of each run against its cost, with the Pareto front"
    return graph("leaderboard-figure", figure, label, SCATTER_PIXELS)


def update_state(runs: Runs, version: int | None, chosen: str | None) -> tuple[Any, bool, Any]:
    """Return what takes the leaderboard's place without runs, and the test sets to choose from."""
    view = runs.view()
    leaderboard = view.leaderboard
    state = store_state(view)
    if state is None and view.state == "away":
        state = notice("The tracking store is unavailable", f"These runs are from before. {view.problem}", "warning")
    return state, not leaderboard.rows, _choices(leaderboard, chosen)


def update_compare(selected: list[dict[str, Any]] | None) -> Any:
    """Return the link to the comparison of the selected runs; below two, a disabled button that says what to do."""
    names = [row["run_id"] for row in selected or () if "heading" not in row][:MOST_COMPARED]
    if len(names) < 2:
        return dmc.Button("Select runs to compare", disabled=True)
    return button_link(f"Compare {len(names)} runs", "/compare?runs=" + ",".join(map(quote, names)), primary=True)


def quick_filter(text: str | None) -> dict[str, Any]:
    """Return the grid's options with a text that rows must contain."""
    return {**OPTIONS, "quickFilterText": text or ""}


def _sets(leaderboard: Leaderboard, chosen: str) -> list[TestSet]:
    return [each for each in leaderboard.sets if not chosen or each.key == chosen]


def _choices(leaderboard: Leaderboard, chosen: str | None) -> list[dict[str, str]]:
    named = [
        {"value": each.key, "label": f"{each.name} ({each.runs} runs{', leaking' if each.leaking else ''})"}
        for each in leaderboard.sets
    ]
    known = {each.key for each in leaderboard.sets}
    missing = [{"value": chosen, "label": chosen}] if chosen and chosen not in known else []
    return [{"value": "", "label": f"All test sets ({len(leaderboard.rows):,} runs)"}, *named, *missing]


def _controls(leaderboard: Leaderboard, query: Mapping[str, str]) -> Component:
    groupings = [{"value": "", "label": "Test set only"}, *({"value": name, "label": name} for name in GROUPINGS)]
    return dmc.Group(
        [
            dmc.Select(
                id="leaderboard-set",
                label="Test set",
                data=_choices(leaderboard, query.get("set")),
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
                id="leaderboard-all", label="Include failed runs", checked=query.get("all") == "true", mb=8, size="sm"
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
        "Some test products, or near-duplicates of them, are also in the training data, so scores reward memorisation. "
        "These runs are marked in red and not ranked."
    )
    title = "This test set leaks" if chosen else f"{len(leaking)} of {len(sets)} test sets leak"
    return dmc.Box(notice(title, text, "error"), mb="md")


def _scatter_card(cost: str) -> Component:
    choice = dmc.SegmentedControl(
        id="leaderboard-cost",
        data=[{"value": name, "label": label} for name, label in COST_LABELS.items()],
        value=cost if cost in COSTS else "train",
        size="xs",
        **aria(label="Cost"),
    )
    return card(
        "Score against cost",
        html.Div(skeleton(SCATTER_PIXELS), id="leaderboard-scatter"),
        note="The chosen test set, or the one with the most runs. Dotted: Pareto front. "
        "Diamonds are probes, squares lp-ft, stars LoRA.",
        actions=[choice],
        mt="lg",
    )


def _height(rows: int) -> dict[str, str]:
    """Return a height for the rows and the bar below them, up to most of the screen."""
    return {"height": f"min({ROW_PIXELS * (rows + 1) + 24}px, 74vh)", "minHeight": "220px"}


def _grid(columns: list[dict[str, Any]], rows: list[dict[str, Any]], filters: str | None) -> Component:
    """Return the grid with its first rows; `filters` is AG Grid's filter model as JSON, from the address."""
    table = dag.AgGrid(
        id="leaderboard-grid",
        rowData=rows,
        columnDefs=columns,
        filterModel=_filter_model(filters),
        getRowId="params.data.run_id",
        dashGridOptions=OPTIONS,
        defaultColDef={"sortable": True, "resizable": True, "filter": True, "suppressHeaderMenuButton": False},
        style=_height(12),
    )
    return html.Div(table, role="region", **aria(label="Runs"))


def _sorted_columns(
    rows: Sequence[dict[str, Any]], sets: Sequence[TestSet], sort: str | None = ""
) -> list[dict[str, Any]]:
    """Return the columns, with an F1 for each category of the test sets, and one scale for the intervals of all rows.

    `sort` is the first order, such as "latency:asc,name:desc"; later the reader's choice stays.
    """
    orders = [part.rsplit(":", 1) for part in parse_list(sort) if part.endswith((":asc", ":desc"))]
    first = {
        name: {"initialSort": direction, "initialSortIndex": place}
        for place, (name, direction) in enumerate(orders or [["score", "desc"]])
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
        heat = [
            {"headerName": "F1 per category", "cellRenderer": "HeatStrip", "cellRendererParams": strip, "width": 280}
        ]
    return [
        {
            **{"field": "rank", "headerName": "#", "width": 86, "pinned": "left", "cellRenderer": "Rank"},
            **{"filter": False, "cellStyle": {"padding": "0 8px"}, "resizable": False},
        },
        {"field": "name", "headerName": "Run", "minWidth": 176, "flex": 1, "cellRenderer": "RunLink"},
        {
            **{"field": "score", "headerName": "Macro-F1", "width": 250, "cellRenderer": "Interval"},
            "cellRendererParams": {"low": low, "high": high},
            "equals": {"function": "false"},  # render always: the cell also shows scores that are not in this field yet
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


def _number(name: str, title: str, form: str) -> dict[str, Any]:
    return {
        **{"field": name, "headerName": title, "width": 130, "type": "rightAligned", "filter": "agNumberColumnFilter"},
        "valueFormatter": {"function": f"params.value == null ? '–' : {form}"},
    }

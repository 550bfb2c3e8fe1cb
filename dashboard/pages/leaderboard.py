"""The leaderboard: all runs, live, ranked among those tested on the same products."""

from __future__ import annotations

import json
from collections import Counter
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
    KEYBOARD,
    aria,
    button_link,
    card,
    counted,
    graph,
    keep_in_url,
    notice,
    page_header,
    parse_list,
    skeleton,
    store_state,
)
from dashboard.figures.leaderboard import score_against_cost
from dashboard.leaderboard import (
    COSTS,
    GROUPINGS,
    Leaderboard,
    TestSet,
    largest_test_set,
    select_rows,
    shown_categories,
    with_headings,
)
from dashboard.leaks import MEMORISED, percent
from dashboard.runs import Runs

NAME: Final = "Leaderboard"
PATH: Final = "/"
ICON: Final = "trophy"
IN_NAVIGATION: Final = True
MOST_COMPARED: Final = 6
SCATTER_PIXELS: Final = 340
FIRST_ROWS: Final = 20  # a screen of them comes with the page; the others and the scatter follow
MOST_COLUMNS: Final = 12  # categories with a column each while several test sets are in view
ROW_PIXELS: Final = 40
HEAD_PIXELS: Final = 46  # two lines
COST_LABELS: Final = {"train": "Training time", "latency": "Latency", "trained_weights": "Trained weights"}
_NUMBER_FILTER: Final[dict[str, Any]] = {
    "filter": "agNumberColumnFilter",
    "filterParams": {"defaultOption": "greaterThanOrEqual"},
}
_NO_BUTTON: Final = {"suppressHeaderFilterButton": True}  # where it would leave no room for the name
OPTIONS: Final[dict[str, Any]] = {
    **GRID_OPTIONS,
    "rowHeight": ROW_PIXELS,
    "headerHeight": HEAD_PIXELS,
    "alwaysShowHorizontalScroll": True,  # at its right end are the F1 of the categories
    "selectionColumnDef": {"width": 40, "pinned": None},
    "rowSelection": {"mode": "multiRow", "isRowSelectable": {"function": "params.data.heading == null"}},
    "isFullWidthRow": {"function": "params.rowNode.data.heading != null"},
    "fullWidthCellRenderer": "BandHeading",
    "postSortRows": {"function": "keepBands(params)"},
}


def layout(runs: Runs, query: Mapping[str, str]) -> Component:
    """Return the page, with the leaderboard as it is now."""
    view = runs.view()
    leaderboard = view.leaderboard
    chosen, sort, selected = query.get("set", ""), query.get("sort", ""), parse_list(query.get("selected"))
    rows = select_rows(leaderboard, chosen, hide_failed=query.get("all") != "true")
    first = with_headings(rows, leaderboard.sets, query.get("group", ""))
    if not sort and not query.get("filter") and not selected:
        first = first[:FIRST_ROWS]
    return html.Div(
        [
            page_header(
                "Leaderboard",
                "Test macro-F1 with its 95 % interval. Runs are ranked only against runs tested on the same products.",
                html.Div(update_compare({"ids": selected}), id="leaderboard-compare", role="status"),
            ),
            dcc.Store(id="leaderboard-sort", data=sort),
            dcc.Store(id="leaderboard-rendered", data=False),
            html.Div(store_state(view), id="leaderboard-state"),
            html.Div(
                [
                    _controls(leaderboard, query),
                    html.Div(_leak_notice(leaderboard.sets, chosen), id="leaderboard-leak"),
                    _grid(
                        _sorted_columns(rows, _sets(leaderboard, chosen), sort), first, query.get("filter"), selected
                    ),
                    _scatter_card(_cost(query.get("cost"))),
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
        hide,
    )(partial(update_state, runs))
    app.callback(Output("leaderboard-compare", "children"), Input("leaderboard-grid", "selectedRows"))(update_compare)
    app.callback(Output("leaderboard-grid", "dashGridOptions"), Input("leaderboard-find", "value"))(quick_filter)
    keep_in_url(app, "leaderboard", ("set", "group", "cost", "find"))
    keep_in_url(app, "leaderboard", ("all",), "checked")
    grid_state = [Input("leaderboard-grid", name) for name in ("columnState", "filterModel")]
    app.clientside_callback(
        ClientsideFunction("address", "keepGrid"),
        [*grid_state, Input("leaderboard-grid", "selectedRows"), Input("leaderboard-find", "value")],
    )
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
    figure = score_against_cost(rows, _cost(cost))
    label = "Macro-F1 of each run against its cost, with the Pareto front"
    return graph("leaderboard-figure", figure, label, SCATTER_PIXELS)


def update_state(
    runs: Runs, version: int | None, chosen: str | None, everything: bool = False
) -> tuple[Any, bool, Any]:
    """Return what takes the leaderboard's place without runs, and the test sets to choose from."""
    view = runs.view()
    return store_state(view), not view.leaderboard.rows, _choices(view.leaderboard, chosen, everything)


def update_compare(selected: Any) -> Any:
    """Return the link to the comparison of the selected runs or, where their number does not fit, what to do.

    `selected` are rows of the grid, or {"ids": [...]} as an address gives them.
    """
    rows = [{"run_id": name} for name in selected["ids"]] if isinstance(selected, dict) else selected or ()
    names = [row["run_id"] for row in rows if "heading" not in row]
    if len(names) < 2:
        return dmc.Button("Select two to six runs to compare", disabled=True)
    if len(names) > MOST_COMPARED:
        return dmc.Button(f"{len(names)} runs selected: choose six at most", disabled=True)
    return button_link(f"Compare {len(names)} runs", "/compare?runs=" + ",".join(map(quote, names)), primary=True)


def quick_filter(text: str | None) -> dict[str, Any]:
    """Return the grid's options with a text that rows must contain."""
    return {**OPTIONS, "quickFilterText": text or ""}


def _sets(leaderboard: Leaderboard, chosen: str) -> list[TestSet]:
    return [each for each in leaderboard.sets if not chosen or each.key == chosen]


def _choices(leaderboard: Leaderboard, chosen: str | None, everything: bool) -> list[dict[str, str]]:
    """Return the test sets, each with the number of its runs that the grid shows."""
    shown = Counter(row["set"] for row in select_rows(leaderboard, "", hide_failed=not everything))
    named = [
        {
            "value": each.key,
            "label": f"{each.name} ({counted(shown[each.key], 'run')}{', leaking' if each.leaking else ''})",
        }
        for each in leaderboard.sets
    ]
    known = {each.key for each in leaderboard.sets}
    missing = [{"value": chosen, "label": chosen}] if chosen and chosen not in known else []
    return [{"value": "", "label": f"All test sets ({counted(shown.total(), 'run')})"}, *named, *missing]


def _controls(leaderboard: Leaderboard, query: Mapping[str, str]) -> Component:
    groupings = [{"value": "", "label": "Test set only"}, *({"value": name, "label": name} for name in GROUPINGS)]
    return dmc.Group(
        [
            dmc.Select(
                id="leaderboard-set",
                label="Test set",
                data=_choices(leaderboard, query.get("set"), query.get("all") == "true"),
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
                id="leaderboard-all", label="Show failed runs", checked=query.get("all") == "true", mb=8, size="sm"
            ),
        ],
        align="flex-end",
        mb="md",
    )


def _leak_notice(sets: Sequence[TestSet], chosen: str) -> Component | None:
    """Return what leaks in the test sets in view, a sentence for each kind of leak."""
    shown = [each for each in sets if chosen in ("", each.key)]
    leaking = [each for each in shown if each.leaking]
    if not leaking:
        return None
    kinds = {
        "evaluated products, or near-duplicates of them, also appear in training": [x.in_training for x in leaking],
        "the weights of some runs may have seen evaluated products in pretraining": [x.in_pretraining for x in leaking],
    }
    lines = []
    for kind, shares in kinds.items():
        found = [share for share in shares if share > 0]
        if found:
            where = "Here" if chosen else f"In {len(found)} of {counted(len(shown), 'test set')}"
            lines.append(f"{where}, {kind} (up to {percent(max(found))}).")
    lines = lines or ["The protocol allows leaks; whether there are any was not logged, or there are none."]
    lines.append(f"{MEMORISED} These runs are marked in red, listed last and not ranked.")
    title = "This test set leaks" if chosen else f"{len(leaking)} of {counted(len(shown), 'test set')} may leak"
    return dmc.Box(notice(title, html.Div("\n".join(lines), className="lines"), "error"), mb="md")


def _cost(name: str | None) -> str:
    """Return a known cost; older addresses call the trained weights "weights"."""
    name = "trained_weights" if name == "weights" else name
    return name if name in COSTS else "train"


def _scatter_card(cost: str) -> Component:
    choice = dmc.SegmentedControl(
        id="leaderboard-cost",
        data=[{"value": name, "label": label} for name, label in COST_LABELS.items()],
        value=cost,
        size="xs",
        **aria(label="Cost"),
    )
    return card(
        "Score against cost",
        html.Div(skeleton(SCATTER_PIXELS), id="leaderboard-scatter"),
        note="The chosen test set, or the one with the most runs. Dotted: Pareto front. Diamonds are probes, squares "
        "lp-ft, stars LoRA. Training time includes the frozen layers, even where their features came from the cache. "
        "Hollow points did not log that part, and are left out of the front.",
        actions=[choice],
        mt="lg",
    )


def _height(rows: int) -> dict[str, str]:
    """Return a height for the rows and the bar below them, up to most of the screen."""
    return {"height": f"min({ROW_PIXELS * rows + HEAD_PIXELS + 24}px, 74vh)", "minHeight": "220px"}


def _grid(
    columns: list[dict[str, Any]], rows: list[dict[str, Any]], filters: str | None, selected: Sequence[str]
) -> Component:
    """Return the grid with its first rows; `filters` is AG Grid's filter model as JSON, from the address."""
    table = dag.AgGrid(
        id="leaderboard-grid",
        rowData=rows,
        columnDefs=columns,
        filterModel=_filter_model(filters),
        selectedRows={"ids": list(selected)},
        getRowId="params.data.run_id",
        dashGridOptions=OPTIONS,
        eventListeners=KEYBOARD,
        defaultColDef={"sortable": True, "resizable": True, "filter": True, "wrapHeaderText": True},
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
    shown = shown_categories(sets, MOST_COLUMNS)
    names = {slug: slug.replace("_", " ").title() for slug in shown} | {
        slug: name for each in reversed(sets) for slug, name in each.names.items()
    }
    heat: list[dict[str, Any]] = [
        {
            "field": f"f1_{slug}",
            "headerName": names[slug],
            "cellRenderer": "Heat",
            "width": 92,
            "headerTooltip": f"F1 of {names[slug]}",
            "filter": False,
        }
        for slug in shown
    ]
    return [
        {
            **{"field": "rank", "headerName": "#", "width": 66, "pinned": "left", "cellRenderer": "Rank"},
            **{"filter": False, "cellStyle": {"padding": "0 4px 0 8px"}, "resizable": False},
        },
        {"field": "name", "headerName": "Run", "width": 142, "pinned": "left", "cellRenderer": "RunLink"},
        {
            **{"field": "score", "headerName": "Macro-F1", "width": 150, "cellRenderer": "Interval"},
            "cellRendererParams": {"low": low, "high": high},
            "equals": {"function": "false"},  # render always: the cell also shows scores that are not in this field yet
            **_NUMBER_FILTER,
        },
        # stands in for the headings where a search or a filter leaves none (assets/address.js shows it then)
        {"field": "test_set", "headerName": "Test set", "width": 300, "initialHide": True, "tooltipField": "test_set"},
        {"field": "family", "headerName": "Model", "width": 98, "cellRenderer": "Family"},
        {"field": "mode", "headerName": "Mode", "width": 84, **_NO_BUTTON},
        _number("train", "Training, s", "d3.format(',.3~r')(params.value)"),
        _number("latency", "Latency, ms", "d3.format(',.3~r')(params.value)"),
        _number("trained_weights", "Trained weights", "d3.format('.3~s')(params.value)"),
        {"field": "weights", "headerName": "Weights", "width": 106, "tooltipField": "weights"},
        {"field": "seed", "headerName": "Seed", "width": 56, **_NO_BUTTON},
        {
            "field": "status",
            "headerName": "Status",
            "width": 112,
            "cellRenderer": "Status",
            "tooltipField": "live",
            **_NO_BUTTON,
        },
        {"field": "started", "headerName": "Started (UTC)", "width": 84, "cellRenderer": "Started", **_NO_BUTTON},
        *heat,
    ]


def _number(name: str, title: str, form: str) -> dict[str, Any]:
    return {
        **{"field": name, "headerName": title, "width": 80, "type": "rightAligned", **_NUMBER_FILTER},
        **_NO_BUTTON,
        "valueFormatter": {"function": f"params.value == null ? '–' : {form}"},
    }

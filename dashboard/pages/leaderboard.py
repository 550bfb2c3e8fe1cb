"""The leaderboard: all runs, those that can be compared together, live."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Final
from urllib.parse import quote

import dash_mantine_components as dmc
from dash import ClientsideFunction, Dash, Input, Output, State, dcc, html, no_update
from dash.development.base_component import Component
from dash.exceptions import PreventUpdate

from dashboard.components import (
    aria,
    button_link,
    card,
    graph,
    keep_in_url,
    notice,
    page_header,
    skeleton,
    store_state,
)
from dashboard.figures.leaderboard import score_against_cost
from dashboard.leaderboard import COSTS, GROUPINGS, Leaderboard, TestSet, banded, most_compared, rows_of
from dashboard.pages.leaderboard_parts import OPTIONS, columns_of, grid, height
from dashboard.runs import Runs

NAME: Final = "Leaderboard"
PATH: Final = "/"
ICON: Final = "trophy"
IN_NAVIGATION: Final = True
MOST_COMPARED: Final = 6
SCATTER_PIXELS: Final = 340
FIRST_ROWS: Final = 20  # a screen of them comes with the page; the others and the scatter follow


def layout(runs: Runs, query: Mapping[str, str]) -> Component:
    """The page, with the board as it stands now."""
    view = runs.view()
    board = view.board
    chosen, sort = query.get("set", ""), query.get("sort", "")
    rows = rows_of(board, chosen, hide_failed=query.get("all") != "true")
    first = banded(rows, board.sets, query.get("group", ""))
    if not sort and not query.get("filter"):
        first = first[:FIRST_ROWS]
    return html.Div(
        [
            page_header(
                "Leaderboard",
                "Test macro-F1 with its 95 % interval. Only runs tested on the same products are ranked together.",
                html.Div(update_compare(None), id="leaderboard-compare"),
            ),
            dcc.Store(id="leaderboard-sort", data=sort),
            dcc.Store(id="leaderboard-drawn", data=False),
            html.Div(store_state(view), id="leaderboard-state"),
            html.Div(
                [
                    _controls(board, query),
                    html.Div(_leak_notice(board.sets, chosen), id="leaderboard-leak"),
                    grid(columns_of(rows, _sets(board, chosen), sort), first, query.get("filter")),
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
    version, drawn = Input("shell-version", "data"), Input("leaderboard-drawn", "data")
    app.callback(
        Output("leaderboard-grid", "rowData"),
        Output("leaderboard-grid", "columnDefs"),
        Output("leaderboard-grid", "style"),
        Output("leaderboard-leak", "children"),
        drawn,
        version,
        *controls,
        hide,
        State("leaderboard-grid", "columnDefs"),
        State("leaderboard-sort", "data"),
    )(partial(update_grid, runs))
    scatter = (drawn, version, controls[0], Input("leaderboard-cost", "value"))
    app.callback(Output("leaderboard-scatter", "children"), *scatter)(partial(update_scatter, runs))
    app.callback(
        Output("leaderboard-state", "children"),
        Output("leaderboard-content", "hidden"),
        Output("leaderboard-set", "data"),
        version,
        State("leaderboard-set", "value"),
    )(partial(update_state, runs))
    app.callback(Output("leaderboard-compare", "children"), Input("leaderboard-grid", "selectedRows"))(update_compare)
    app.callback(Output("leaderboard-grid", "dashGridOptions"), Input("leaderboard-find", "value"))(find)
    keep_in_url(app, "leaderboard", ("set", "group", "cost", "find"))
    keep_in_url(app, "leaderboard", ("all",), "checked")
    grid_state = [Input("leaderboard-grid", name) for name in ("columnState", "filterModel")]
    app.clientside_callback(ClientsideFunction("address", "keepGrid"), grid_state)
    app.clientside_callback(
        ClientsideFunction("later", "whenDrawn"),
        Output("leaderboard-drawn", "data"),
        grid_state[0],
        State("leaderboard-drawn", "data"),
    )


def update_grid(
    runs: Runs,
    drawn: bool,
    version: int | None,
    chosen: str | None,
    grouping: str | None,
    everything: bool,
    columns: Any,
    sort: str | None = "",
) -> tuple[Any, Any, Any, Any]:
    """Rows, columns (where they changed), the grid's height and the warning that belong to the controls.

    Nothing before the first rows, which came with the page, are drawn.
    """
    if not drawn:
        raise PreventUpdate
    board = runs.view().board
    rows = rows_of(board, chosen or "", hide_failed=not everything)
    made = columns_of(rows, _sets(board, chosen or ""), sort)
    shown = banded(rows, board.sets, grouping or "")
    return (
        shown,
        no_update if made == columns else made,
        height(len(shown)),
        _leak_notice(board.sets, chosen or ""),
    )


def update_scatter(runs: Runs, drawn: bool, version: int | None, chosen: str | None, cost: str | None) -> Any:
    """The figure of the chosen test set, or of that with most runs: scores of two test sets share no axis.

    It waits for the grid's first rows: the browser takes longer over Plotly than over all of the grid.
    """
    if not drawn:
        raise PreventUpdate
    board = runs.view().board
    rows = rows_of(board, chosen or most_compared(board), hide_failed=True)
    figure = score_against_cost(rows, cost if cost in COSTS else "train")
    label = "Macro-F1 of each run against what it costs, with the Pareto front"
    return graph("leaderboard-figure", figure, label, SCATTER_PIXELS)


def update_state(runs: Runs, version: int | None, chosen: str | None) -> tuple[Any, bool, Any]:
    """What stands in the board's place while the store gives none, and the test sets to choose from."""
    view = runs.view()
    board = view.board
    state = store_state(view)
    if state is None and view.state == "away":
        state = notice(
            "The tracking store does not answer", f"What was last seen stands below. {view.problem}", "warning"
        )
    return state, not board.rows, _choices(board, chosen)


def update_compare(selected: list[dict[str, Any]] | None) -> Any:
    """The link to the comparison of the selected runs; below two, a disabled button that says what to do."""
    names = [row["run_id"] for row in selected or () if "heading" not in row][:MOST_COMPARED]
    if len(names) < 2:
        return dmc.Button("Select runs to compare", disabled=True)
    return button_link(f"Compare {len(names)} runs", "/compare?runs=" + ",".join(map(quote, names)), primary=True)


def find(text: str | None) -> dict[str, Any]:
    """The grid's options with a text that rows must hold."""
    return {**OPTIONS, "quickFilterText": text or ""}


def _sets(board: Leaderboard, chosen: str) -> list[TestSet]:
    return [each for each in board.sets if not chosen or each.key == chosen]


def _choices(board: Leaderboard, chosen: str | None) -> list[dict[str, str]]:
    named = [
        {"value": each.key, "label": f"{each.name} ({each.runs} runs{', leaking' if each.leaking else ''})"}
        for each in board.sets
    ]
    known = {each.key for each in board.sets}
    missing = [{"value": chosen, "label": chosen}] if chosen and chosen not in known else []
    return [{"value": "", "label": f"All test sets ({len(board.rows):,} runs)"}, *named, *missing]


def _controls(board: Leaderboard, query: Mapping[str, str]) -> Component:
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


def _scatter_card(cost: str) -> Component:
    choice = dmc.SegmentedControl(
        id="leaderboard-cost",
        data=[{"value": name, "label": label} for name, label in _COST_LABELS.items()],
        value=cost if cost in COSTS else "train",
        size="xs",
        **aria(label="Cost"),
    )
    return card(
        "Score against cost",
        html.Div(skeleton(SCATTER_PIXELS), id="leaderboard-scatter"),
        note="The chosen test set, or that with most runs. Dotted: runs that none beats in both. "
        "Diamonds are probes, squares lp-ft, stars LoRA.",
        actions=[choice],
        mt="lg",
    )


_COST_LABELS: Final = {"train": "Training time", "latency": "Latency", "weights": "Trained weights"}

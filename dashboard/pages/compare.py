"""Two to six runs side by side, and whether they differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from typing import Any, Final

import dash_mantine_components as dmc
from dash import Dash, Input, Output, State, dcc, html, no_update
from dash.development.base_component import Component

from dashboard.comparison import ALL, RunComparison, compare_runs
from dashboard.components import empty_state, keep_in_url, listed, page_header, skeleton, store_state
from dashboard.figures.compare import confusion_difference
from dashboard.leaderboard import SCORE, run_choices
from dashboard.pages.compare_parts import comparison_cards, disagreement_gallery
from dashboard.runs import Runs

NAME: Final = "Compare"
PATH: Final = "/compare"
ICON: Final = "compare"
IN_NAVIGATION: Final = True
MOST: Final = 6


def layout(runs: Runs, query: Mapping[str, str]) -> Component:
    """The page's frame, with the runs that the address names."""
    view = runs.view()
    chosen = listed(query.get("runs"))[:MOST]
    return html.Div(
        [
            page_header(
                "Compare",
                "Two to six runs side by side. Those tested on the same products are tested against each other.",
            ),
            dcc.Store(id="compare-known"),
            dcc.Store(id="compare-asked", data={name: query.get(name) for name in ("pair", "right")}),
            html.Div(store_state(view), id="compare-state"),
            html.Div(
                [
                    dmc.MultiSelect(
                        id="compare-runs",
                        label="Runs",
                        description="Up to six, searched by name, model or test set",
                        data=run_choices(runs.table(), chosen),
                        value=chosen,
                        maxValues=MOST,
                        searchable=True,
                        clearable=True,
                        hidePickedOptions=True,
                        nothingFoundMessage="No run of that name",
                        mb="lg",
                        debounce=200,
                    ),
                    dcc.Loading(
                        html.Div(id="compare-body", style={"minHeight": 320}),
                        custom_spinner=skeleton(320),
                        delay_show=200,
                    ),
                ],
                id="compare-content",
                hidden=view.table.empty,
            ),
        ]
    )


def register(app: Dash, runs: Runs) -> None:
    """Bind the page's callbacks."""
    chosen = Input("compare-runs", "value")
    app.callback(
        Output("compare-state", "children"),
        Output("compare-content", "hidden"),
        Output("compare-runs", "data"),
        Output("compare-known", "data"),
        Input("shell-version", "data"),
        State("compare-runs", "value"),
        State("compare-known", "data"),
    )(partial(update_state, runs))
    app.callback(
        Output("compare-body", "children"), chosen, Input("compare-known", "data"), State("compare-asked", "data")
    )(partial(update_body, runs))
    app.callback(
        Output("compare-difference", "figure"), Input("compare-pair", "value"), State("compare-runs", "value")
    )(partial(update_difference, runs))
    app.callback(
        Output("compare-gallery", "children"), Input("compare-right", "value"), State("compare-runs", "value")
    )(partial(update_gallery, runs))
    keep_in_url(app, "compare", ("runs",))
    keep_in_url(app, "compare", ("pair", "right"))


def update_state(
    runs: Runs, version: int | None, chosen: Sequence[str] | None, known: Sequence[str] | None
) -> tuple[Any, bool, Any, Any]:
    """What stands in the page's place, the runs to choose from, and those of the chosen ones that can be compared."""
    state = store_state(runs.view())
    tested = list(_tested(runs, chosen or ()))
    return state, state is not None, run_choices(runs.table(), chosen), no_update if tested == known else tested


def update_body(
    runs: Runs,
    chosen: Sequence[str] | None,
    known: Sequence[str] | None = None,
    asked: Mapping[str, str | None] | None = None,
) -> Any:
    """The comparison of the chosen runs; `asked` is what the address says of its parts: `pair` and `right`."""
    names = list(chosen or ())[:MOST]
    if len(names) < 2:
        return empty_state(
            "Choose two runs", "Or select them on the leaderboard, and press Compare.", picture="compare"
        )
    found = _compared(runs, _tested(runs, names))
    if len(found.runs) < 2:
        missing = (
            "These runs have no evaluation on a test split: they have not finished, or are no longer in the store."
        )
        return empty_state("Nothing to compare yet", missing, picture="compare")
    return comparison_cards(found, asked or {})


def update_difference(runs: Runs, pair: str, chosen: Sequence[str] | None) -> Any:
    """The confusion matrix of one run minus that of the other."""
    found = _compared(runs, _tested(runs, chosen or ()))
    one, other = map(int, pair.split("-"))
    if max(one, other) >= len(found.runs):
        return no_update
    return confusion_difference(found.runs[one].evaluation, found.runs[other].evaluation)


def update_gallery(runs: Runs, who: str | None, chosen: Sequence[str] | None) -> Any:
    """Pictures on which the runs disagree, of those where `who` is right."""
    return disagreement_gallery(runs, _compared(runs, _tested(runs, chosen or ())), who or ALL)


@lru_cache(maxsize=16)
def _compared(runs: Runs, names: tuple[str, ...]) -> RunComparison:
    return compare_runs(runs, names)


def _tested(runs: Runs, chosen: Sequence[str]) -> tuple[str, ...]:
    """Those of the chosen runs that have been seen with a score on their test split."""
    return tuple(name for name in list(chosen)[:MOST] if SCORE in (runs.row(name) or {}))

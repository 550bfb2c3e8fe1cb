"""A study's evidence: its cells while they run, and what can be said of them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Final

import dash_mantine_components as dmc
from dash import Dash, Input, Output, State, dcc, html, no_update
from dash.development.base_component import Component

from dashboard.components import (
    empty_state,
    keep_in_url,
    page_header,
    skeleton,
    store_state,
    take_first,
)
from dashboard.pages.study_parts import first_cards, further_cards, progress_cards
from dashboard.runs import Runs
from dashboard.studies import read_study, study_choices

NAME: Final = "Study"
PATH: Final = "/study"
ICON: Final = "study"
IN_NAVIGATION: Final = True


def layout(runs: Runs, query: Mapping[str, str]) -> Component:
    """The page, with the study that the address names or the newest one."""
    choices = study_choices(runs.table())
    return html.Div(
        [
            page_header(
                "Study", "The same configurations over several seeds: what differs, by how much, and how sure that is."
            ),
            html.Div(id="study-state"),
            html.Div(
                [
                    dmc.Select(
                        id="study-study",
                        label="Study",
                        data=choices,
                        value=query.get("study") or (choices[0]["value"] if choices else None),
                        searchable=True,
                        allowDeselect=False,
                        w={"base": "100%", "sm": 420},
                        mb="lg",
                    ),
                    html.Div(id="study-progress", style={"minHeight": 120}),
                    dcc.Store(id="study-results"),
                    dcc.Loading(
                        html.Div(id="study-body", style={"minHeight": 240}),
                        custom_spinner=skeleton(420),
                        delay_show=200,
                    ),
                    dcc.Store(id="study-begun"),
                    html.Div(id="study-rest", style={"marginTop": "var(--mantine-spacing-lg)"}),
                ],
                id="study-content",
            ),
        ]
    )


def register(app: Dash, runs: Runs) -> None:
    """Bind the page's callbacks."""
    version, chosen = Input("shell-version", "data"), Input("study-study", "value")
    app.callback(
        Output("study-state", "children"),
        Output("study-content", "hidden"),
        Output("study-study", "data"),
        version,
    )(partial(update_state, runs))
    app.callback(
        Output("study-progress", "children"),
        Output("study-results", "data"),
        version,
        chosen,
        State("study-results", "data"),
    )(partial(update_progress, runs))
    app.callback(
        Output("study-body", "children"),
        Output("study-begun", "data"),
        Input("study-results", "data"),
        State("study-study", "value"),
    )(partial(update_body, runs))
    app.callback(Output("study-rest", "children"), Input("study-begun", "data"), State("study-study", "value"))(
        partial(update_rest, runs)
    )
    take_first(app, "study-study")
    keep_in_url(app, "study", ("study",))


def update_state(runs: Runs, version: int | None) -> tuple[Any, bool, Any]:
    """What stands in the page's place without a study, and the studies to choose from."""
    choices = study_choices(runs.table())
    missing = "A study trains every family several times, tests what differs, and can be watched here."
    state = store_state(runs.view()) or (None if choices else empty_state("No study yet", missing, "make study"))
    return state, state is not None, choices


def update_progress(runs: Runs, version: int | None, run_id: str | None, known: Any = None) -> tuple[Any, Any]:
    """The cells as they stand, and by what the results are known: study, cells in them, and how the study stands."""
    found = read_study(runs, run_id or "")
    if found is None:
        return None, None
    now = [found.run_id, found.results.get("done"), found.status]
    return progress_cards(found), no_update if now == known else now


def update_body(runs: Runs, known: Any, run_id: str | None) -> tuple[Any, Any]:
    """What the results begin with, drawn anew only when there are others; and that they are there, for the rest."""
    found = read_study(runs, run_id or "")
    if found is None:
        return None, known
    if not found.results:
        missing = "They come when all cells of the first seed have ended, and grow by seed."
        return empty_state("No results yet", missing), known
    return first_cards(runs, found), known


def update_rest(runs: Runs, begun: Any, run_id: str | None) -> Any:
    """The rest of what the results say: it takes the browser seconds, so it comes when the first cards are drawn."""
    found = read_study(runs, run_id or "")
    return further_cards(runs, found) if found is not None and found.results else None

"""The Study page: a study's cells while they run, and the sections of its report."""

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
from dashboard.pages.study_parts import first_cards, further_cards, progress_card
from dashboard.runs import Runs
from dashboard.studies import read_study, study_choices

NAME: Final = "Study"
PATH: Final = "/study"
ICON: Final = "study"
IN_NAVIGATION: Final = True


def layout(runs: Runs, query: Mapping[str, str]) -> Component:
    """Return the page, with the study that the address names or the newest one."""
    choices = study_choices(runs.table())
    return html.Div(
        [
            page_header(
                "Study",
                "The same configurations over several seeds: which differ, by how much, and with what confidence.",
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
    """Return what the page shows without a study, whether its content is hidden, and the studies to choose from."""
    choices = study_choices(runs.table())
    text = "A study trains every family several times and tests which differ. Watch it here while it runs."
    state = store_state(runs.view()) or (None if choices else empty_state("No study yet", text, "make study"))
    return state, state is not None, choices


def update_progress(runs: Runs, version: int | None, run_id: str | None, known: Any = None) -> tuple[Any, Any]:
    """Return the cells, and what identifies the results: study, finished cells in them, and the study's status."""
    study = read_study(runs, run_id or "")
    if study is None:
        return None, None
    now = [study.run_id, study.results.cells_finished if study.results else None, study.status]
    return progress_card(study), no_update if now == known else now


def update_body(runs: Runs, known: Any, run_id: str | None) -> tuple[Any, Any]:
    """Return the first cards, and what starts the rest; called only when the results have changed."""
    study = read_study(runs, run_id or "")
    if study is None:
        return None, known
    if study.results is None:
        of_runs = "They appear when all runs of the first seed have finished, and grow with each seed."
        text = of_runs if study.cells or study.runs else "They appear when the study has finished."
        return empty_state("No results yet", text), known
    return first_cards(runs, study, study.results), known


def update_rest(runs: Runs, begun: Any, run_id: str | None) -> Any:
    """Return the further cards, which take the browser seconds: they come when the first cards are there."""
    study = read_study(runs, run_id or "")
    return further_cards(runs, study, study.results) if study is not None and study.results else None

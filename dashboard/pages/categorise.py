"""Categories for pictures that are dropped, pasted or clicked, by several models side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Final

import dash_mantine_components as dmc
from dash import Dash, Input, Output, State, dcc, html, no_update
from dash.development.base_component import Component

from dashboard.components import (
    card,
    graph,
    keep_in_url,
    listed,
    page_header,
    skeleton,
    store_state,
)
from dashboard.dropzone import dropzone, register_dropzone
from dashboard.figures.categorise import coverage_at, coverage_curves
from dashboard.figures.compare import run_styles
from dashboard.leaderboard import best_run, run_choices
from dashboard.model_cache import ModelCache, Uploads
from dashboard.pages.categorise_parts import result_cards
from dashboard.predictions import as_csv, categorise
from dashboard.runs import Runs

NAME: Final = "Categorise"
PATH: Final = "/categorise"
ICON: Final = "camera"
IN_NAVIGATION: Final = True
MOST_MODELS: Final = 4


def layout(runs: Runs, query: Mapping[str, str]) -> Component:
    """The page; no model is loaded before there is a picture."""
    view = runs.view()
    models = listed(query.get("models")) or [name for name in [best_run(view.board)] if name]
    return html.Div(
        [
            page_header("Categorise", "Drop pictures of products and see what each model makes of them."),
            dcc.Store(id="categorise-results"),
            dcc.Download(id="categorise-download"),
            html.Div(store_state(view), id="categorise-state"),
            html.Div(
                [
                    dmc.SimpleGrid(
                        [_picture_card(), _model_card(runs, models, query.get("threshold"))], cols={"base": 1, "lg": 2}
                    ),
                    dcc.Loading(
                        html.Div(id="categorise-cards", style={"minHeight": 120}, role="status"),
                        custom_spinner=skeleton(240),
                        delay_show=200,
                    ),
                ],
                id="categorise-content",
                hidden=view.table.empty,
            ),
        ]
    )


def register(app: Dash, runs: Runs) -> None:
    """Bind the page's callbacks."""
    models, uploads = app.server.config["MODELS"], app.server.config["UPLOADS"]
    app.callback(
        Output("categorise-state", "children"),
        Output("categorise-content", "hidden"),
        Output("categorise-models", "data"),
        Input("shell-version", "data"),
        State("categorise-models", "value"),
    )(partial(update_state, runs))
    register_dropzone(app, "categorise", uploads)
    app.callback(
        Output("categorise-results", "data"),
        Input("categorise-pictures", "data"),
        Input("categorise-models", "value"),
        prevent_initial_call=True,
    )(partial(update_results, models, uploads))
    threshold = Input("categorise-threshold", "value")
    app.callback(Output("categorise-cards", "children"), Input("categorise-results", "data"), threshold)(
        partial(update_cards, runs)
    )
    app.callback(
        Output("categorise-coverage", "figure"),
        Output("categorise-coverage-note", "children"),
        Input("categorise-models", "value"),
        threshold,
        Input("shell-version", "data"),
    )(partial(update_coverage, runs))
    app.callback(
        Output("categorise-download", "data"),
        Input("categorise-csv", "n_clicks"),
        State("categorise-results", "data"),
        State("categorise-threshold", "value"),
        prevent_initial_call=True,
    )(partial(download, runs))
    keep_in_url(app, "categorise", ("models", "threshold"))


def update_state(runs: Runs, version: int | None, chosen: Sequence[str] | None) -> tuple[Any, bool, Any]:
    """What stands in the page's place while the store gives none, and the models to choose from."""
    state = store_state(runs.view())
    return state, state is not None, run_choices(runs.table(), chosen)


def update_results(models: ModelCache, uploads: Uploads, pictures: Any, chosen: Sequence[str] | None) -> Any:
    """What the chosen models say of the pictures."""
    return categorise(models, uploads, pictures or [], list(chosen or ())[:MOST_MODELS])


def update_cards(runs: Runs, results: Any, threshold: float) -> Any:
    """The results as cards, drawn anew as the threshold moves; nothing is predicted again."""
    return result_cards(runs, results or [], threshold)


def update_coverage(
    runs: Runs, chosen: Sequence[str] | None, threshold: float, version: int | None = None
) -> tuple[Any, Any]:
    """What the threshold costs on the validation split of each model that kept its answers there."""
    names = [name for name in list(chosen or ())[:MOST_MODELS] if runs.row(name)]
    rows = [runs.row(name) or {} for name in names]
    kept = [(row, runs.predictions(name, "validation")) for name, row in zip(names, rows, strict=True)]
    known = [(row, predictions) for row, predictions in kept if predictions is not None]
    looks = run_styles(
        [str(row.get("name")) for row, _ in known], [str(row.get("params.model", "")) for row, _ in known]
    )
    said = [_said(str(row.get("name")), predictions, threshold) for row, predictions in kept]
    return coverage_curves(looks, [each for _, each in known], threshold), [html.Div(line) for line in said]


def download(runs: Runs, clicks: int | None, results: Any, threshold: float) -> Any:
    """The results as a CSV file."""
    if not clicks or not results:
        return no_update
    run_ids = {run_id for result in results for run_id in result.get("answers", {})}
    names = {run_id: str((runs.row(run_id) or {}).get("name", run_id)) for run_id in run_ids}
    return {"content": as_csv(results, names, threshold), "filename": "categories.csv", "type": "text/csv"}


def _said(name: str, predictions: Any, threshold: float) -> str:
    if predictions is None:
        return f"{name}: kept no answers on its validation split, so the cost of a threshold is not known."
    coverage, right = coverage_at(predictions, threshold)
    answered = f"{name}: answers {coverage:.1%} of {len(predictions):,} validation products"
    return f"{answered}, {right:.1%} of these rightly." if coverage else f"{answered}."


def _picture_card() -> Component:
    return card("Pictures", dropzone("categorise"), note="They stay in memory, never on disk.")


def _model_card(runs: Runs, chosen: Sequence[str], threshold: str | None) -> Component:
    try:
        value = min(1.0, max(0.0, float(threshold or 0)))
    except ValueError:
        value = 0.0
    select = dmc.MultiSelect(
        id="categorise-models",
        label="Models",
        data=run_choices(runs.table(), chosen),
        value=list(chosen)[:MOST_MODELS],
        maxValues=MOST_MODELS,
        searchable=True,
        hidePickedOptions=True,
        debounce=200,
    )
    slider = dmc.Slider(
        id="categorise-threshold",
        min=0,
        max=1,
        step=0.01,
        value=value,
        updatemode="drag",
        thumbLabel="Threshold for Unknown",
        marks=[{"value": place, "label": f"{place:.0%}"} for place in (0, 0.25, 0.5, 0.75, 1)],
        mb="xl",
        mt=4,
        mx="sm",
    )
    return card(
        "Models and threshold",
        select,
        html.Div([dmc.Text("Answer “Unknown Category” below this confidence", size="sm", fw=500), slider]),
        dmc.Text(id="categorise-coverage-note", size="sm"),
        graph("categorise-coverage", {"data": [], "layout": {}}, "Coverage and accuracy over the threshold", 280),
    )

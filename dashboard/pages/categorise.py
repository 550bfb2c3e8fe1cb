"""Categories of dropped, pasted or sample pictures, by several models side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import dash_mantine_components as dmc
from dash import Dash, Input, Output, State, dcc, html, no_update
from dash.development.base_component import Component

from dashboard.components import (
    card,
    family_dot,
    graph,
    icon,
    keep_in_url,
    notice,
    page_header,
    parse_list,
    skeleton,
    store_state,
    too_many,
)
from dashboard.dropzone import dropzone, register_dropzone
from dashboard.figures.categorise import coverage_at, coverage_curves
from dashboard.figures.compare import run_styles
from dashboard.leaderboard import best_run, names_by_run, run_choices
from dashboard.model_cache import ModelCache, Uploads
from dashboard.runs import Runs
from dashboard.theme import family_colour, waiting
from dashboard.upload_predictions import as_csv, categorise, predicted_category
from vlm_core.evaluation.category_matching import UNKNOWN_CATEGORY

if TYPE_CHECKING:
    from vlm_core.evaluation.predictions import Predictions

NAME: Final = "Categorise"
PATH: Final = "/categorise"
ICON: Final = "camera"
IN_NAVIGATION: Final = True
MOST_MODELS: Final = 4
KEPT_STORES: Final = ("categorise-pictures", "categorise-results")  # in the shell: Back brings both again


def layout(runs: Runs, query: Mapping[str, str]) -> Component:
    """Return the page; no model is loaded before there is a picture."""
    view = runs.view()
    named = list(dict.fromkeys(parse_list(query.get("models"))))
    models = named or _suggested_model(runs)
    return html.Div(
        [
            page_header("Categorise", "Drop in product images and compare the models' predictions."),
            dcc.Download(id="categorise-download"),
            html.Div(store_state(view), id="categorise-state"),
            html.Div(
                [
                    too_many(len(named), MOST_MODELS, "model", "shown"),
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
        Output("categorise-models", "value"),
        Input("shell-version", "data"),
        State("categorise-models", "value"),
        State("categorise-models", "data"),
    )(partial(update_state, runs))
    register_dropzone(app, "categorise", uploads)
    app.callback(
        Output("categorise-results", "data"),
        Input("categorise-pictures", "data"),
        Input("categorise-models", "value"),
        Input("categorise-title", "value"),
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


def update_state(
    runs: Runs, version: int | None, chosen: Sequence[str] | None, known: Sequence[Any] | None
) -> tuple[Any, bool, Any, Any]:
    """Return what takes the page's place without a run, the models to choose from, and one for who has none yet.

    A model is suggested once, when the first runs are read; who has removed all models is left without one.
    """
    state = store_state(runs.view())
    suggested = [] if chosen or known else _suggested_model(runs)
    return state, state is not None, run_choices(runs.table(), chosen), suggested or no_update


def _suggested_model(runs: Runs) -> list[str]:
    """Return the best honest run, or else the newest tested one; none without any."""
    tested = [choice["value"] for choice in run_choices(runs.table())]
    return [best_run(runs.view().leaderboard) or tested[0]] if tested else []


def update_results(
    models: ModelCache, uploads: Uploads, pictures: Any, chosen: Sequence[str] | None, title: str | None = None
) -> Any:
    """Return the chosen models' predictions for the pictures and, where they read texts, the title."""
    return categorise(models, uploads, pictures or [], list(chosen or ())[:MOST_MODELS], str(title or "").strip())


def update_cards(runs: Runs, results: Any, threshold: float) -> Component | None:
    """Return a card per picture, with a column per model; a new threshold needs no new predictions."""
    if not results:
        return None
    rows = {run_id: runs.row(run_id) or {} for result in results for run_id in result.get("predictions", {})}
    csv_button = dmc.Button(
        "Download CSV", id="categorise-csv", leftSection=icon("download", 16), variant="default", size="sm"
    )
    heading = dmc.Group(
        [dmc.Title("Results", order=2, size="h4"), csv_button], justify="space-between", mt="xl", mb="md"
    )
    named = {run_id: {**rows[run_id], "name": name} for run_id, name in names_by_run(rows).items()}
    return html.Div([heading, dmc.Stack([_result_card(named, result, threshold) for result in results])])


def update_coverage(
    runs: Runs, chosen: Sequence[str] | None, threshold: float, version: int | None = None
) -> tuple[Any, Any]:
    """Return what the threshold costs on the validation split of each model that stored its predictions there."""
    rows = {run_id: row for run_id in list(chosen or ())[:MOST_MODELS] if (row := runs.row(run_id))}
    names = names_by_run(rows)
    stored = {run_id: runs.predictions(run_id, "validation") for run_id in rows}
    known = {run_id: predictions for run_id, predictions in stored.items() if predictions is not None}
    styles = run_styles(
        [names[run_id] for run_id in known], [str(rows[run_id].get("params.model", "")) for run_id in known]
    )
    lines = [_coverage_sentence(names[run_id], predictions, threshold) for run_id, predictions in stored.items()]
    figure = coverage_curves(styles, list(known.values()), threshold)
    return figure, [html.Div(line) for line in lines]


def download(runs: Runs, clicks: int | None, results: Any, threshold: float) -> Any:
    """Return the results as a CSV file."""
    if not clicks or not results:
        return no_update
    run_ids = {run_id for result in results for run_id in result.get("predictions", {})}
    names = names_by_run({run_id: runs.row(run_id) or {} for run_id in sorted(run_ids)})
    return {"content": as_csv(results, names, threshold), "filename": "categories.csv", "type": "text/csv"}


def _coverage_sentence(name: str, predictions: Predictions | None, threshold: float) -> str:
    if predictions is None:
        return f"{name}: no validation predictions are stored, so the effect of a threshold is unknown."
    coverage, accuracy = coverage_at(predictions, threshold)
    sentence = f"{name}: predicts a category for {coverage:.1%} of {len(predictions):,} validation products"
    return f"{sentence}; correct on {accuracy:.1%} of these." if coverage else f"{sentence}."


def _picture_card() -> Component:
    note = "Uploads stay in memory for a while; only this browser can open them."
    title = dmc.TextInput(
        id="categorise-title",
        label="Title of the product",
        description="Read with each image by models that read texts; others look at the image alone.",
        debounce=600,
    )
    return card("Images", dropzone("categorise", in_shell=True), title, note=note)


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
        thumbLabel="Confidence threshold",
        marks=[{"value": place, "label": f"{place:.0%}"} for place in (0, 0.25, 0.5, 0.75, 1)],
        mb="xl",
        mt=4,
        mx="sm",
    )
    return card(
        "Models and threshold",
        select,
        html.Div([dmc.Text("Predict “Unknown Category” below this confidence", size="sm", fw=500), slider]),
        dmc.Text(id="categorise-coverage-note", size="sm"),
        dmc.Text(
            "Solid: coverage, the share of products with a prediction. Dotted: accuracy where predicted.",
            size="xs",
            c="dimmed",
        ),
        graph("categorise-coverage", waiting(), "Coverage and accuracy at each threshold", 280),
    )


def _result_card(rows: Mapping[str, Mapping[str, Any]], result: Mapping[str, Any], threshold: float) -> Component:
    name = html.Div(str(result["name"]), className="file-name truncate", title=str(result["name"]))
    if "error" in result:
        return dmc.Paper(
            [name, dmc.Box(notice("This image cannot be used", result["error"], "error"), mt="xs")],
            withBorder=True,
            p="lg",
        )
    picture = html.Img(src=result["thumbnail"], alt=f"Uploaded image {result['name']}", className="uploaded")
    columns = [
        _prediction(rows[run_id], prediction, threshold, run_id, result["source"])
        for run_id, prediction in result["predictions"].items()
    ]
    if not columns:
        columns = [dmc.Text("Choose a model.", c="dimmed")]
    return dmc.Paper(
        html.Div(
            [html.Div([picture, name], className="upload"), html.Div(columns, className="predictions")],
            className="result",
        ),
        withBorder=True,
        p="lg",
    )


def _prediction(
    row: Mapping[str, Any], prediction: Mapping[str, Any], threshold: float, run_id: str, source: str
) -> Component:
    model = str(row.get("params.model", ""))
    label = dmc.Text(str(row.get("name", "model")), size="sm", fw=600, className="truncate")
    title = dmc.Group([family_dot(model), label], gap=6, wrap="nowrap")
    if "error" in prediction:
        return html.Div([title, notice("No prediction", prediction["error"], "error")])
    category = predicted_category(prediction, threshold)
    unknown = " unknown" if category == UNKNOWN_CATEGORY else ""
    parts = [
        title,
        dmc.Text(category, size="lg", fw=650, className=f"prediction{unknown}"),
        html.Div([_bar(name, value, family_colour(model)) for name, value in prediction["top"]], className="bars"),
    ]
    parts[1:1] = [_level(*level) for level in prediction.get("levels", [])]
    if "text" in prediction:
        parts.append(
            html.Div(
                [html.Q(str(prediction["text"])), " → ", html.B(str(prediction["text_category"]))], className="written"
            )
        )
    if "read" in prediction:
        sources = {"image": "From the image: no title.", "text": "From the title alone."}
        read = sources.get(prediction["read"], "From image and title.")
        words = ", ".join(f"{word} {fall:+.2f}" for word, fall in prediction["words"])
        parts.append(dmc.Text(f"{read} Drop in log odds without each: {words}.", size="xs", c="dimmed"))
    parts.append(_model_views(prediction, run_id, source))
    return html.Div(parts)


def _level(label: str, category: str, confidence: float) -> Component:
    """Return the category of a label above the predicted one."""
    return dmc.Text(f"{label}: {category} ({confidence:.0%})", size="sm", c="dimmed")


def _model_views(prediction: Mapping[str, Any], run_id: str, source: str) -> Component:
    """Return the picture as the model sees it and, where it has attention, what its prediction depends on."""
    views = [_captioned(prediction["seen"], "The image as the model sees it", "what the model sees")]
    if prediction["map"]:
        heatmap = _captioned(prediction["map"], "What the prediction is based on", "what it is based on")
        href = f"/attention?models={quote(run_id)}&picture={quote(source)}"
        views.append(heatmap if "read" in prediction else dcc.Link(heatmap, href=href))  # that page reads no titles
    milliseconds = dmc.Text(f"{prediction['ms']:.0f} ms", size="xs", c="dimmed", className="numbers", mt="xs")
    return html.Div([html.Div(views, className="model-views"), milliseconds])


def _captioned(source: str, alt: str, caption: str) -> Component:
    return html.Figure([html.Img(src=source, alt=alt, className="seen"), html.Figcaption(caption)])


def _bar(name: str, value: float, colour: str) -> Component:
    return html.Div(
        [
            html.Span(name, className="truncate", title=name),
            html.Span(html.Span(style={"width": f"{value:.2%}", "background": colour}), className="track"),
            html.Span(f"{value:.1%}", className="numbers"),
        ],
        className="bar",
    )

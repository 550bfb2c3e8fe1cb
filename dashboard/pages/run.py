"""One run: how it learnt, how well it does, where it fails, and its settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import dash_mantine_components as dmc
import numpy as np
from dash import ClientsideFunction, Dash, Input, Output, State, dcc, html, no_update
from dash.development.base_component import Component
from flask import current_app
from numpy.typing import NDArray

from dashboard.components import (
    aria,
    button_link,
    card,
    counted,
    empty_state,
    family_label,
    graph,
    icon,
    keep_in_url,
    leak_badge,
    notice,
    number_tile,
    page_header,
    parse_number,
    skeleton,
    status_badge,
    store_state,
    wide,
)
from dashboard.extensions import extension_of_run
from dashboard.figures.run import confusion, confusion_size, learning_curves, reliability, subgroups
from dashboard.leaderboard import SCORE, training_seconds
from dashboard.leaks import leak_of_run
from dashboard.live import LIVE, LOST, duration
from dashboard.pages.run_tables import category_table, interval_text, levels_card, long_tail_card, subsets_card
from dashboard.picture_server import has_pictures, picture_address
from dashboard.run_settings import differing_params, effective_settings
from dashboard.runs import Runs
from dashboard.theme import family_colour, no_data, waiting
from vlm_core.config.families import family_of

if TYPE_CHECKING:
    from vlm_core.evaluation.evaluation import Evaluation

NAME: Final = "Run"
PATH: Final = "/run"
ICON: Final = "run"
IN_NAVIGATION: Final = False
KINDS: Final = {"counts": "Counts", "share": "Row share", "difference": "Change from previous epoch"}
MOST_MISTAKES: Final = 24
SIDE_BY_SIDE: Final = {"base": 1, "lg": 2}  # figures, by the width of the page


@dataclass(frozen=True)
class EpochMatrix:
    """A confusion matrix, and that of the epoch before."""

    title: str
    categories: tuple[str, ...]  # (C,)
    matrix: NDArray[np.int64]  # (C, C), rows = true category
    before: NDArray[np.int64] | None  # (C, C)


def layout(runs: Runs, query: Mapping[str, str]) -> Component:
    """Return the page's frame; callbacks fill it in."""
    run_id = query.get("run", "")
    kind = query.get("matrix", "counts")
    return html.Div(
        [
            dcc.Store(id="run-id", data=run_id),
            html.Div(_head(runs, run_id), id="run-head"),
            html.Div(
                [
                    dmc.Box(skeleton(92), id="run-scores"),
                    _matrix_and_curves(kind if kind in KINDS else "counts", parse_number(query.get("epoch"), least=0)),
                    dmc.Box(skeleton(260), id="run-details"),
                ],
                id="run-body",
                hidden=not run_id,
            ),
        ]
    )


def register(app: Dash, runs: Runs) -> None:
    """Bind the page's callbacks."""
    run_id, version = Input("run-id", "data"), Input("shell-version", "data")
    # without an output it would not run for what comes with the page
    app.clientside_callback(
        ClientsideFunction("address", "title"), Output("run-titled", "data"), Input("run-title", "data")
    )
    app.callback(Output("run-head", "children"), Output("run-body", "hidden"), version, run_id)(
        partial(update_head, runs)
    )
    app.callback(
        Output("run-curves", "figure"),
        Output("run-epoch", "max"),
        Output("run-epoch", "value"),
        Output("run-epoch", "marks"),
        version,
        run_id,
        State("run-epoch", "value"),
        State("run-epoch", "max"),
    )(partial(update_curves, runs))
    app.callback(
        Output("run-confusion", "figure"),
        Output("run-confusion-note", "children"),
        Output("run-confusion", "style"),
        Output("run-figures", "cols"),
        Input("run-epoch", "value"),
        Input("run-matrix", "value"),
        version,
        run_id,
    )(partial(update_confusion, runs))
    app.callback(
        Output("run-scores", "children"),
        Output("run-details", "children"),
        run_id,
        Input("run-ended", "data"),
        Input("shell-state", "data"),
    )(partial(update_details, runs))
    keep_in_url(app, "run", ("matrix",))
    epoch = [Input("run-epoch", name) for name in ("value", "max")]
    app.clientside_callback(ClientsideFunction("address", "keepEpoch"), epoch)


def update_head(runs: Runs, version: int | None, run_id: str) -> tuple[Any, bool]:
    """Return name, state and links of the run, and whether to hide the rest."""
    return _head(runs, run_id), runs.row(run_id) is None


def update_curves(runs: Runs, version: int | None, run_id: str, epoch: int | None, last: int | None) -> tuple[Any, ...]:
    """Return the curves, and the slider's end, value and marks; a slider at its end stays there.

    Its end is the test split, once that was evaluated, and the last epoch before.
    """
    epochs = runs.epochs(run_id)
    row = runs.row(run_id) or {}
    tested = _is_tested(runs, run_id)
    end = len(epochs) + tested or 1
    value = end if epoch is None or epoch == last or epoch > end else epoch
    step = max(1, -(-len(epochs) // 8))  # as many labels as a phone has room for
    marks = [{"value": number, "label": str(number)} for number in range(step, end + 1 - step, step)]
    marks.append({"value": end, "label": "test" if tested else str(end)})
    if epochs:
        figure = learning_curves(epochs, family_colour(row.get("params.model", "")))
    else:
        running = row.get("status") == "RUNNING" and not tested
        without = "The first epoch has not finished yet" if running else "This run was not trained in epochs"
        missing = "" if extension_of_run(row) else _missing_files(row)  # an extension has no epochs to miss
        figure = no_data(missing or without)
    return figure, end, value, marks


def update_confusion(runs: Runs, epoch: int, kind: str, version: int | None, run_id: str) -> tuple[Any, str, Any, Any]:
    """Return the matrix of an epoch's validation or, after the last epoch, of the test split, and what it is of.

    Further, its size and how many figures stand side by side: one of many categories has the page for itself.
    """
    at_epoch = epoch_matrix(runs, run_id, epoch)
    if at_epoch is None:
        missing = _missing_files(runs.row(run_id) or {})
        nothing = no_data(missing or "No epoch has finished, and the test split was not evaluated")
        return nothing, "", no_update, no_update
    size = confusion_size(len(at_epoch.categories))
    figure = confusion(at_epoch.matrix, at_epoch.categories, kind, at_epoch.before)
    style = {"height": f"{size.height}px", "minWidth": f"{size.width}px"}
    return figure, at_epoch.title, style, 1 if size.cell else SIDE_BY_SIDE


def update_details(runs: Runs, run_id: str, ended: str | None, state: str | None = None) -> tuple[Any, Any]:
    """Return the test scores as tiles, and all cards below the curves."""
    row = runs.row(run_id)
    if row is None:
        return None, None
    evaluation = runs.evaluation(run_id)
    if evaluation is None:
        return _untested(row), dmc.Stack([_settings_card(row)])
    colour = family_colour(row.get("params.model", ""))
    attributes = list(dict.fromkeys(group.attribute for group in evaluation.subgroups))
    groups = [
        card(
            f"By {attribute}",
            graph(
                f"run-subgroups-{number}",
                subgroups(
                    [each for each in evaluation.subgroups if each.attribute == attribute][:12],
                    colour,
                    evaluation.accuracy.value,
                ),
                f"Accuracy by {attribute}, with intervals",
            ),
            note="Accuracy with its 95 % interval (Wilson); hollow: fewer than 20 products.",
        )
        for number, attribute in enumerate(attributes)
    ]
    calibration = evaluation.calibration
    parts = [
        dmc.SimpleGrid(
            [
                card("Per class", category_table(evaluation), note="Test split; F1 with its 95 % interval."),
                card(
                    "Calibration",
                    graph(
                        "run-reliability", reliability(calibration.curve, colour), "Accuracy at each confidence", 380
                    ),
                    note=f"ECE {calibration.ece:.3f} · Brier {calibration.brier:.3f} · NLL {calibration.nll:.3f}",
                ),
            ],
            cols={"base": 1, "lg": 2},
        ),
        *levels_card(evaluation),
        *subsets_card(evaluation),
        *long_tail_card(evaluation),
        card(
            "Worst mistakes",
            _mistakes_gallery(runs, row, evaluation),
            note="Incorrect predictions on the test split, most confident first.",
        ),
        dmc.SimpleGrid(groups, cols={"base": 1, "md": 2, "xl": 3}),
        _settings_card(row),
        _model_card(runs, run_id),
    ]
    return _score_tiles(evaluation, row), dmc.Stack(parts, gap="lg")


def _is_tested(runs: Runs, run_id: str) -> bool:
    """Return whether the test split was evaluated; without asking for the evaluation, which a running run lacks."""
    return SCORE in (runs.row(run_id) or {})


def _missing_files(row: Mapping[str, Any]) -> str:
    """Return why there are no files of what the store says that the run has done; "" if it says nothing of the kind."""
    if row.get("tags.kind") == "trial":
        return "A trial keeps no files: its metrics are in MLflow"
    if SCORE in row or ("tags.training_log" in row and row.get("status") == "FINISHED"):
        return "The files of this run were not found"
    return ""


def _untested(row: Mapping[str, Any]) -> Component:
    """Return why the run has no evaluation to show."""
    if SCORE in row:
        text = (
            f"The store holds a macro-F1 of {row[SCORE]:.4f} on the test split, but the files of its evaluation were "
            "not found. If the project's folder was moved, `python -m experiments.relocate` mends the store."
        )
        return notice("Evaluation not found", text, "warning")
    if kind := {"trial": "A trial", "search": "A search"}.get(row.get("tags.kind", "")):
        return notice("Not tested", f"{kind} is judged on validation: only the winner of a search is tested.")
    if row["status"] == "RUNNING" and not row.get(LOST):
        return notice("Not tested yet", "Test scores appear when the run has finished.")
    way_out = f"`python -m experiments.train --resume {row['run_id']}` continues a training."
    return notice("Not tested", f"This run ended before its test split was evaluated. {way_out}", "warning")


def _head(runs: Runs, run_id: str) -> Component:
    view = runs.view()
    row = runs.row(run_id)
    if row is None:
        missing = empty_state(
            "Run not found", "It may have been deleted, or the address is incomplete. Choose a run on the leaderboard."
        )
        return html.Div([dcc.Store(id="run-ended"), page_header("Run", ""), store_state(view) or missing])
    address = (
        f"{current_app.config['MLFLOW_UI'].rstrip('/')}/#/experiments/{row.get('experiment_id', '0')}/runs/{run_id}"
    )
    mlflow = html.A(
        ["MLflow", icon("external", 14)],
        href=address,
        className="button-link",
        target="_blank",
        rel="noopener noreferrer",
        **aria(label="This run in the MLflow UI, which `mlflow ui` starts"),
    )
    compare = button_link("Compare", f"/compare?runs={run_id}")
    header = page_header(
        str(row.get("name", "Run")), f"{run_id} · started {row['started']:%Y-%m-%d %H:%M} UTC", compare, mlflow
    )
    stores = [
        dcc.Store(id="run-ended", data=str(row.get("ended", ""))),
        dcc.Store(id="run-title", data=f"{row.get('name', 'Run')} · Run"),
        dcc.Store(id="run-titled"),
    ]
    return html.Div([*stores, header, dmc.Box(_badges(row), mb="lg"), _leak_notice(row), _extension_notice(row)])


def _leak_notice(row: Mapping[str, Any]) -> Component | None:
    leak = leak_of_run(row)
    if not leak.leaking or "tags.split" not in row:
        return None
    lines = html.Div("\n".join(leak.sentences()), className="lines")
    title = "This score may be memorised" if SCORE in row else "This test set leaks"
    return dmc.Box(notice(title, lines, "error"), mb="lg")


def _extension_notice(row: Mapping[str, Any]) -> Component | None:
    text = extension_of_run(row)
    return dmc.Box(notice("This run extends another run", text), mb="lg") if text else None


def _matrix_and_curves(kind: str, epoch: int) -> Component:
    kinds = dmc.SegmentedControl(
        id="run-matrix",
        data=[{"value": name, "label": label} for name, label in KINDS.items()],
        value=kind,
        size="xs",
        **aria(label="Values in the matrix"),
    )
    slider = dmc.Slider(
        id="run-epoch",
        min=1,
        max=epoch + 1,  # until the epochs are known; a slider at its end follows them
        value=epoch or 1,
        step=1,
        marks=[],
        mb="xl",
        px="sm",
        thumbLabel="Epoch",
        label=None,
    )
    return dmc.SimpleGrid(
        [
            card(
                "Learning curves",
                graph("run-curves", waiting(), "Loss and macro-F1 over the epochs", 420),
                note="Training dotted, validation solid.",
            ),
            card(
                "Confusion matrix",
                dmc.Text(id="run-confusion-note", size="xs", c="dimmed"),
                slider,
                wide(graph("run-confusion", waiting(), "Confusion matrix", 420), "Confusion matrix, in full", 0),
                actions=[kinds],
            ),
        ],
        id="run-figures",
        cols=SIDE_BY_SIDE,
        my="lg",
    )


def _settings_card(row: Mapping[str, Any]) -> Component:
    """Return the settings that differ from the preset for this model, and behind them all of them."""
    differing, preset = differing_params(row), f"preset={row.get('params.preset', '?')}"
    preset = f"{preset} for {row.get('params.model', '?')}"
    if differing:
        data = {"head": ["Setting", "This run", preset], "body": [list(line) for line in differing]}
        first: Component = html.Div(dmc.Table(data=data, striped="odd"), className="scroll-x", tabIndex=0)
    else:
        first = dmc.Text(f"All settings are those of {preset}.", size="sm")
    every = [[name, value or "(empty)"] for name, value in effective_settings(row).items()]
    table = dmc.Table(data={"head": ["Setting", "Value"], "body": every}, striped="odd")
    whole = html.Details(
        [
            html.Summary(f"All {len(every)} settings that this run used"),
            html.Div(table, className="scroll-x", tabIndex=0),
        ]
    )
    return card("Settings", first, whole, note=f"Settings that differ from {preset} come first." if differing else "")


def _model_card(runs: Runs, run_id: str) -> Component:
    text = runs.text(run_id, "model/README.md")
    if not text:
        return card("Model card", dmc.Text("This run has no stored model.", size="sm"))
    body = text.split("---", 2)[-1] if text.startswith("---") else text
    return dmc.Accordion(
        dmc.AccordionItem(
            [
                dmc.AccordionControl("Model card"),
                dmc.AccordionPanel(dcc.Markdown(body, dangerously_allow_html=False, className="model-card")),
            ],
            value="card",
        ),
        variant="separated",
    )


def epoch_matrix(runs: Runs, run_id: str, epoch: int) -> EpochMatrix | None:
    """Return the matrix of an epoch's validation, counted from 1; after the last epoch that of the test split."""
    epochs = runs.epochs(run_id)
    if epoch > len(epochs):
        evaluation = runs.evaluation(run_id)
        if evaluation is not None:
            title = f"Test split, {counted(evaluation.n, 'product')}"
            return EpochMatrix(title, evaluation.categories, evaluation.confusion, None)
    if not epochs:
        return None
    index = min(max(epoch, 1), len(epochs)) - 1
    matrices = [
        np.array(entry["validation_summary"]["confusion_matrix"]) for entry in epochs[max(0, index - 1) : index + 1]
    ]
    categories = tuple(epochs[index]["validation_summary"]["per_class_f1"])
    title = f"Validation after epoch {epochs[index]['epoch']}"
    return EpochMatrix(title, categories, matrices[-1], matrices[0] if index else None)


def _badges(row: Mapping[str, Any]) -> Component:
    """Return family, state, mode, data and protocol of the run in one line."""
    model = row.get("params.model", "")
    of_network = [] if model == "baseline" else [row.get("params.mode"), row.get("tags.weights_source")]
    facts = [
        model if model != family_of(model) else None,
        *of_network,
        row.get("tags.catalogue"),
        row.get("tags.labels") or row.get("tags.label"),
        f"protocol {row['tags.protocol']}" if "tags.protocol" in row else None,
        f"seed {row['params.seed']}" if "params.seed" in row else None,
    ]
    badges = [dmc.Badge(str(fact), variant="default", size="md", tt="none", fw=500) for fact in facts if fact]
    leaks = [leak_badge()] if row.get("tags.leaking") == "true" else []
    live = dmc.Text(row[LIVE], size="sm") if row.get(LIVE) else None
    failure = dmc.Text(str(row["tags.failure"]), size="sm", c="dimmed") if row.get("tags.failure") else None
    status = status_badge(row["status"], lost=bool(row.get(LOST)))
    return dmc.Group([family_label(model), status, live, *leaks, *badges, failure], gap="xs")


def _score_tiles(evaluation: Evaluation, row: Mapping[str, Any]) -> Component:
    worst = evaluation.worst_recall
    tested = next(score.support for score in evaluation.per_category if score.category == worst.category)
    tiles = [
        number_tile("Macro-F1", f"{evaluation.macro_f1.value:.3f}", interval_text(evaluation.macro_f1)),
        number_tile("Accuracy", f"{evaluation.accuracy.value:.3f}", interval_text(evaluation.accuracy)),
        number_tile(f"Worst recall: {worst.category}", f"{worst.recall:.3f}", f"of {counted(tested, 'product')}"),
        number_tile(
            "Macro-F1, natural prior",
            f"{evaluation.natural.macro_f1.value:.3f}",
            interval_text(evaluation.natural.macro_f1),
        ),
        number_tile("Test products", f"{evaluation.n:,}", f"{len(evaluation.categories)} categories"),
        number_tile("Training", _training_time(row), _training_note(row)),
    ]
    return dmc.SimpleGrid(tiles, cols={"base": 2, "sm": 3, "lg": 6}, spacing="md")


def _mistakes_gallery(runs: Runs, row: Mapping[str, Any], evaluation: Evaluation) -> Component:
    """Return incorrect predictions, most confident first, with their pictures where these are on this machine."""
    fingerprint = str(row.get("tags.fingerprint", ""))
    table = evaluation.predictions.to_frame()
    mistakes = table[(table["true"] != "") & (table["true"] != table["predicted"])]
    mistakes = mistakes.sort_values("confidence", ascending=False).head(MOST_MISTAKES)
    if mistakes.empty:
        return empty_state("No mistakes", "The model is correct on every test product.")
    here = has_pictures(runs.root, fingerprint)
    cards = [
        html.Figure(
            [
                html.Img(
                    src=picture_address(fingerprint, product),
                    alt=f"Product {product}: {true}",
                    width=132,
                )
                if here
                else None,
                html.Figcaption(
                    [
                        *("true ", html.B(true), "\npredicted ", html.B(predicted, className="incorrect")),
                        f"\nconfidence {confidence:.0%}\n{product}",
                    ],
                    className="lines",
                ),
            ]
        )
        for product, true, predicted, confidence in mistakes[
            ["product_id", "true", "predicted", "confidence"]
        ].itertuples(index=False)
    ]
    missing = "The catalogue's images are not on this machine; prepare the catalogue here to see them."
    return dmc.Stack([None if here else dmc.Text(missing, size="sm", c="dimmed"), html.Div(cards, className="gallery")])


def _training_time(row: Mapping[str, Any]) -> str:
    """Return the run's training time as the leaderboard counts it."""
    seconds = training_seconds(row)
    return "–" if seconds is None else duration(seconds)


def _training_note(row: Mapping[str, Any]) -> str:
    """Return what of the time came from the feature cache, and how many weights were trained."""
    full, spent = row.get("metrics.train_seconds_full"), row.get("metrics.train_seconds")
    saved = 0.0 if full is None or spent is None else float(full) - float(spent)
    cached = f"{duration(saved)} of this saved by the feature cache" if saved >= 0.1 else ""
    weights = row.get("tags.weights_trained")
    trained = "" if weights is None else f"{int(weights):,} weights trained"
    return ", ".join(filter(None, (trained, cached)))

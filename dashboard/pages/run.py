"""One run: what it learnt, how well, where it fails, and what made it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Final

import dash_mantine_components as dmc
from dash import ClientsideFunction, Dash, Input, Output, State, dcc, html, no_update
from dash.development.base_component import Component
from flask import current_app

from dashboard.components import (
    aria,
    button_link,
    card,
    counted,
    empty_state,
    graph,
    icon,
    keep_in_url,
    notice,
    page_header,
    skeleton,
    store_state,
)
from dashboard.figures.run import confusion, learning_curves, reliability, subgroups
from dashboard.pages.run_parts import (
    badges,
    category_table,
    confusion_of,
    differing_params,
    mistakes_gallery,
    score_tiles,
)
from dashboard.runs import Runs
from dashboard.theme import family_colour

NAME: Final = "Run"
PATH: Final = "/run"
ICON: Final = "run"
IN_NAVIGATION: Final = False
KINDS: Final = {"counts": "Counts", "share": "Row share", "difference": "Change since last epoch"}


def layout(runs: Runs, query: Mapping[str, str]) -> Component:
    """The page's frame; its parts come one by one."""
    run_id = query.get("run", "")
    kind = query.get("matrix", "counts")
    return html.Div(
        [
            dcc.Store(id="run-id", data=run_id),
            html.Div(_head(runs, run_id), id="run-head"),
            html.Div(
                [
                    dmc.Box(skeleton(92), id="run-scores"),
                    _matrix_and_curves(kind if kind in KINDS else "counts", counted(query.get("epoch"), least=0)),
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
        Input("run-epoch", "value"),
        Input("run-matrix", "value"),
        version,
        run_id,
    )(partial(update_confusion, runs))
    app.callback(
        Output("run-scores", "children"), Output("run-details", "children"), run_id, Input("run-ended", "data")
    )(partial(update_details, runs))
    keep_in_url(app, "run", ("matrix",))
    epoch = [Input("run-epoch", name) for name in ("value", "max")]
    app.clientside_callback(ClientsideFunction("address", "keepEpoch"), epoch)


def update_head(runs: Runs, version: int | None, run_id: str) -> tuple[Any, bool]:
    """Name, state and links of the run."""
    return _head(runs, run_id), runs.row(run_id) is None


def update_curves(runs: Runs, version: int | None, run_id: str, epoch: int | None, last: int | None) -> tuple[Any, ...]:
    """The curves so far; a slider that stood at the last epoch moves on with it, 0 is the test split."""
    epochs = runs.epochs(run_id)
    row = runs.row(run_id) or {}
    top = len(epochs)
    place = top + 1 if epoch is None or epoch == last or epoch > top + 1 else epoch
    step = max(1, -(-top // 8))  # so many labels as a phone has room for
    marks = [{"value": number, "label": str(number)} for number in range(step, top + 2 - step, step)]
    marks.append({"value": top + 1, "label": "test"})
    return learning_curves(epochs, family_colour(row.get("params.model", ""))), top + 1, place, marks


def update_confusion(runs: Runs, epoch: int, kind: str, version: int | None, run_id: str) -> tuple[Any, str]:
    """The matrix of an epoch's validation or, behind the last one, of the test split."""
    found = confusion_of(runs, run_id, epoch)
    if found is None:
        return no_update, "No matrix yet: the first epoch is still on its way."
    return confusion(found.matrix, found.categories, kind, found.before), found.title


def update_details(runs: Runs, run_id: str, ended: str | None) -> tuple[Any, Any]:
    """What the evaluation on the test split and the settings say."""
    row = runs.row(run_id)
    if row is None:
        return None, None
    evaluation = runs.evaluation(run_id)
    if evaluation is None:
        waiting = notice("Not tested yet", "Scores on the test split come when the run has finished.")
        return waiting, dmc.Stack([_settings_card(row)])
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
                f"Accuracy of each {attribute} with its interval",
            ),
            note="Accuracy with Wilson's 95 % interval; hollow: fewer than 20 products.",
        )
        for number, attribute in enumerate(attributes)
    ]
    calibration = evaluation.calibration
    parts = [
        dmc.SimpleGrid(
            [
                card("Per category", category_table(evaluation), note="Test split; F1 with its 95 % interval."),
                card(
                    "Calibration",
                    graph(
                        "run-reliability", reliability(calibration.curve, colour), "Share right at each confidence", 380
                    ),
                    note=f"ECE {calibration.ece:.3f} · Brier {calibration.brier:.3f} · NLL {calibration.nll:.3f}",
                ),
            ],
            cols={"base": 1, "lg": 2},
        ),
        card(
            "Worst mistakes",
            mistakes_gallery(runs, row, evaluation),
            note="Wrong answers on the test split, the most confident first.",
        ),
        dmc.SimpleGrid(groups, cols={"base": 1, "md": 2, "xl": 3}),
        _settings_card(row),
        _model_card(runs, run_id),
    ]
    return score_tiles(evaluation, row), dmc.Stack(parts, gap="lg")


def _head(runs: Runs, run_id: str) -> Component:
    view = runs.view()
    row = runs.row(run_id)
    if row is None:
        missing = empty_state(
            "No such run", "It may have been deleted, or the address is incomplete. Choose one from the leaderboard."
        )
        return html.Div([dcc.Store(id="run-ended"), page_header("Run", ""), store_state(view) or missing])
    place = f"{current_app.config['MLFLOW_UI'].rstrip('/')}/#/experiments/{row.get('experiment_id', '0')}/runs/{run_id}"
    mlflow = html.A(
        ["MLflow", icon("external", 14)],
        href=place,
        className="button-link",
        target="_blank",
        rel="noopener noreferrer",
        **aria(label="This run in MLflow's own pages, which `mlflow ui` serves"),
    )
    compare = button_link("Compare", f"/compare?runs={run_id}")
    header = page_header(
        str(row.get("name", "Run")), f"{run_id} · started {row['started']:%Y-%m-%d %H:%M} UTC", compare, mlflow
    )
    return html.Div([dcc.Store(id="run-ended", data=str(row.get("ended", ""))), header, dmc.Box(badges(row), mb="lg")])


def _matrix_and_curves(kind: str, epoch: int) -> Component:
    choice = dmc.SegmentedControl(
        id="run-matrix",
        data=[{"value": name, "label": label} for name, label in KINDS.items()],
        value=kind,
        size="xs",
        **aria(label="What the cells show"),
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
    empty: dict[str, Any] = {"data": [], "layout": {}}
    return dmc.SimpleGrid(
        [
            card(
                "Learning curves",
                graph("run-curves", empty, "Loss and macro-F1 over the epochs", 420),
                note="Training dotted, validation solid.",
            ),
            card(
                "Confusion matrix",
                dmc.Text(id="run-confusion-note", size="xs", c="dimmed"),
                slider,
                graph("run-confusion", empty, "Confusion matrix", 420),
                actions=[choice],
            ),
        ],
        cols={"base": 1, "lg": 2},
        my="lg",
    )


def _settings_card(row: Mapping[str, Any]) -> Component:
    differing = differing_params(row)
    preset = row.get("params.preset", "?")
    if not differing:
        return card("Settings", dmc.Text(f"All as preset={preset} has them.", size="sm"))
    table = dmc.Table(
        data={"head": ["Setting", "This run", f"preset={preset}"], "body": [list(line) for line in differing]},
        striped="odd",
        withTableBorder=False,
    )
    return card(
        "Settings", html.Div(table, className="scroll-x", tabIndex=0), note=f"Where they differ from preset={preset}."
    )


def _model_card(runs: Runs, run_id: str) -> Component:
    text = runs.text(run_id, "model/README.md")
    if not text:
        return card("Model card", dmc.Text("This run holds no model.", size="sm"))
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

"""What models' predictions depend on in a picture: their maps side by side, layer by layer and head by head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import dash_mantine_components as dmc
import numpy as np
from dash import Dash, Input, Output, State, ctx, dcc, html, no_update
from dash.development.base_component import Component
from numpy.typing import NDArray

from dashboard.attention import METHODS, AttentionExplainer, AttentionView
from dashboard.components import (
    aria,
    card,
    empty_state,
    family_dot,
    graph,
    keep_in_url,
    notice,
    page_header,
    parse_list,
    parse_number,
    skeleton,
    store_state,
    too_many,
    wide,
)
from dashboard.dropzone import dropzone, register_dropzone
from dashboard.figures.attention import faithfulness_curves, picture_curves
from dashboard.figures.compare import run_styles
from dashboard.heatmaps import describe_map, overlay, picture_url
from dashboard.leaderboard import best_run, names_by_run, run_choices
from dashboard.runs import Runs
from vlm_core.errors import UserError

if TYPE_CHECKING:
    from vlm_core.attention.faithfulness import PictureCurves

NAME: Final = "Attention"
PATH: Final = "/attention"
ICON: Final = "attention"
IN_NAVIGATION: Final = True
MOST_MODELS: Final = 4
MOST_PRODUCTS: Final = 400
MOST_WORDS: Final = 8
FIRST_PICTURE: Final = "sample:2"
FAITHFULNESS: Final = "study/faithfulness.json"  # of a run that a study measured
_PREDICTED: Final = "the predicted category"
_KINDS: Final = {"vision": "attention of the class token", "cross": "text to image", "joint": "text to image"}
_OF_PATCHES: Final = "mean attention of the patches"  # in a tower that does not read its class token, if it has one


@dataclass(frozen=True)
class AttentionPanel:
    """One model's explanation of a picture, or why there is none."""

    run_id: str
    view: AttentionView | None = None
    heat: NDArray[np.float32] | None = None  # (H, W), the map on show
    caption: str = ""
    layers: int = 0
    heads: int = 0
    error: str = ""
    of_layer: bool = False  # the map is of one layer's attention, whatever the method
    of_category: bool = True  # the map depends on the category


def layout(runs: Runs, query: Mapping[str, str]) -> Component:
    """Return the page, with the picture and the models that the address names."""
    view = runs.view()
    named = list(dict.fromkeys(parse_list(query.get("models"))))
    models = named or [name for name in [best_run(view.leaderboard, to_explain=True)] if name]
    return html.Div(
        [
            page_header("Attention", "See which parts of an image each model's prediction depends on, side by side."),
            dcc.Store(id="attention-picture", data=query.get("picture") or FIRST_PICTURE),
            html.Div(store_state(view), id="attention-state"),
            html.Div(
                [
                    too_many(len(named), MOST_MODELS, "model", "shown"),
                    dmc.SimpleGrid(
                        [_picture_card(), _choice_card(runs, models[:MOST_MODELS], query)], cols={"base": 1, "lg": 2}
                    ),
                    dcc.Loading(
                        html.Div(id="attention-maps", style={"minHeight": 320}, role="status"),
                        custom_spinner=skeleton(420),
                        delay_show=200,
                    ),
                    dcc.Loading(
                        html.Div(id="attention-measured", style={"minHeight": 120}),
                        custom_spinner=skeleton(240),
                        delay_show=200,
                    ),
                    html.Div(id="attention-curves"),
                ],
                id="attention-content",
                hidden=view.table.empty,
            ),
        ]
    )


def register(app: Dash, runs: Runs) -> None:
    """Bind the page's callbacks."""
    models, uploads = app.server.config["MODELS"], app.server.config["UPLOADS"]
    app.callback(
        Output("attention-state", "children"),
        Output("attention-content", "hidden"),
        Output("attention-models", "data"),
        Input("shell-version", "data"),
        State("attention-models", "value"),
    )(partial(update_state, runs))
    register_dropzone(app, "attention", uploads)
    app.callback(Output("attention-product", "data"), Input("attention-models", "value"))(
        partial(update_products, runs)
    )
    app.callback(
        Output("attention-picture", "data"),
        Output("attention-notice", "children"),
        Input("attention-pictures", "data"),
        Input("attention-product", "value"),
        prevent_initial_call=True,
    )(choose_picture)
    choices = [Input(f"attention-{name}", "value") for name in ("models", "method", "category", "layer", "head")]
    explainer = AttentionExplainer(runs.root, models, uploads)
    app.callback(
        Output("attention-maps", "children"),
        Output("attention-category", "data"),
        Output("attention-layer", "max"),
        Output("attention-head", "max"),
        Output("attention-method", "disabled"),
        Output("attention-category", "disabled"),
        Output("attention-method-note", "children"),
        Input("attention-picture", "data"),
        *choices,
    )(partial(update_maps, runs, explainer))
    app.callback(
        Output("attention-measured", "children"),
        Input("attention-maps", "children"),  # after the maps, which one model at a time makes, too
        State("attention-picture", "data"),
        *(State(choice.component_id, "value") for choice in choices[:4]),
    )(partial(update_picture_curves, runs, explainer))
    app.callback(
        Output("attention-curves", "children"), Input("attention-models", "value"), Input("shell-state", "data")
    )(partial(update_curves, runs))
    keep_in_url(app, "attention", ("models", "method", "category", "layer", "head"))
    keep_in_url(app, "attention", ("picture",), "data")


def update_state(runs: Runs, version: int | None, chosen: Sequence[str] | None) -> tuple[Any, bool, Any]:
    """Return what takes the page's place without a run, and the models to choose from."""
    state = store_state(runs.view())
    return state, state is not None, run_choices(runs.table(), chosen)


def update_products(runs: Runs, chosen: Sequence[str] | None) -> list[dict[str, str]]:
    """Return the test products of the first model to choose from, incorrect predictions first."""
    run_id = next(iter(chosen or ()), "")
    row, evaluation = runs.row(run_id), runs.evaluation(run_id)
    if row is None or evaluation is None:
        return []
    table = evaluation.predictions.to_frame()
    table = table.assign(incorrect=table["true"] != table["predicted"]).sort_values(
        ["incorrect", "confidence"], ascending=False
    )
    return [
        {
            "value": f"product:{row.get('tags.fingerprint', '')}:{product}",
            "label": f"{product} · {true or 'unlabelled'}, predicted {predicted}",
        }
        for product, true, predicted in table[["product_id", "true", "predicted"]]
        .head(MOST_PRODUCTS)
        .itertuples(index=False)
    ]


def choose_picture(pictures: Sequence[Mapping[str, str]] | None, product: str | None) -> tuple[Any, Any]:
    """Return the source of the latest picture, and a notice where it cannot be used."""
    if ctx.triggered_id == "attention-product":
        return product or no_update, None
    entry = next(iter(pictures or ()), None)
    if entry is None:
        return no_update, None
    if "error" in entry:
        return no_update, notice(entry["name"], entry["error"], "error")
    return f"sample:{entry['sample']}" if "sample" in entry else f"upload:{entry['token']}", None


def update_maps(
    runs: Runs,
    explainer: AttentionExplainer,
    source: str | None,
    chosen: Sequence[str] | None,
    method: str,
    category: str | None,
    layer: int,
    head: int,
) -> tuple[Any, Any, int, int, bool, bool, str]:
    """Return the models' maps as cards, the categories to explain, and how many layers and heads there are.

    Further, whether method and category have no effect on what is shown, and why.
    """
    if not chosen or not source:
        missing = empty_state("Choose a model", "Its map appears here.", picture="attention")
        return missing, no_update, 1, 1, False, False, ""
    method = method if method in METHODS else "gradient"
    panels = [
        attention_panel(explainer, run_id, source, method, category or "", layer, head)
        for run_id in chosen[:MOST_MODELS]
    ]
    names = list(dict.fromkeys(name for panel in panels if panel.view for name in panel.view.categories))
    choices = [{"value": "", "label": _PREDICTED}, *({"value": name, "label": name} for name in names)]
    layers, heads = max(panel.layers for panel in panels), max(panel.heads for panel in panels)
    of_category = any(panel.of_category for panel in panels if panel.view) or not layer
    note = "The map of a layer is its attention: the method has no effect on it." if layer else ""
    cards = _panel_cards(runs, panels)
    return cards, choices, max(1, layers), max(1, heads), bool(layer), not of_category, note


def update_picture_curves(
    runs: Runs,
    explainer: AttentionExplainer,
    maps: Any,
    source: str | None,
    chosen: Sequence[str] | None,
    method: str,
    category: str | None,
    layer: int,
) -> Component | None:
    """Return deletion and insertion of this picture's maps, of every model however slow; None for a layer's map."""
    if not chosen or not source or layer:
        return None
    method = method if method in METHODS else "gradient"
    curves = []
    for run_id in chosen[:MOST_MODELS]:
        try:
            curves.append((run_id, explainer.curves(run_id, source, method, category or "")))  # type: ignore[arg-type]
        except UserError:  # its card says why
            continue
    return _picture_curves_card(runs, curves) if curves else None


def update_curves(runs: Runs, chosen: Sequence[str] | None, state: str | None = None) -> Any:
    """Return how faithful the maps of the chosen runs are over many pictures, where a study has measured it."""
    from vlm_core.attention.faithfulness import Faithfulness
    from vlm_core.study.results_json import read_json

    names = _names(runs, list(chosen or ())[:MOST_MODELS])
    texts = {name: runs.text(run_id, FAITHFULNESS) for run_id, name in names.items()}
    measurements = {name: read_json(Faithfulness, text) for name, text in texts.items() if text}
    if not measurements:
        return None
    height = 80 + 270 * len(measurements)
    figure = graph("attention-figure", faithfulness_curves(measurements), "Deletion and insertion curves", height)
    return card(
        "Faithfulness of attention maps",
        wide(figure, "Deletion and insertion curves"),
        note="Measured by a study on its test products. Good maps have low deletion and high insertion curves; "
        "grey lines are controls that ignore the image.",
        mt="lg",
    )


def attention_panel(
    explainer: AttentionExplainer, run_id: str, source: str, method: Any, category: str, layer: int, head: int
) -> AttentionPanel:
    """Return the method's map for the run's model, or that of a layer (from 1) and head (from 1; 0 for their mean)."""
    try:
        view = explainer.explain(run_id, source, method, category)
        layers = explainer.layers(run_id, source, category)
    except UserError as error:
        return AttentionPanel(run_id, error=str(error))
    heads = max((each.maps.shape[1] for each in layers), default=1)
    if not layer:
        return AttentionPanel(run_id, view, view.map, f"method: {METHODS[method].lower()}", len(layers), heads)
    if layer > len(layers):
        missing = f"This model has {len(layers)} layers." if layers else "This model has no attention layers."
        return AttentionPanel(run_id, layers=len(layers), heads=heads, error=missing)
    shown = layers[layer - 1]
    maps = shown.maps[0]
    if head > len(maps):
        return AttentionPanel(run_id, layers=len(layers), heads=heads, error=f"This layer has {len(maps)} heads.")
    part = f"head {head} of {len(maps)}" if head else f"mean of {len(maps)} heads"
    attention = _OF_PATCHES if shown.of_patches else _KINDS.get(shown.kind, shown.kind)
    caption = f"layer {layer} of {len(layers)} ({shown.name}), {part}: {attention}"
    heat = maps[head - 1] if head else maps.mean(axis=0)
    of_category = shown.kind != "vision"
    return AttentionPanel(run_id, view, heat, caption, len(layers), heads, of_layer=True, of_category=of_category)


def _panel_cards(runs: Runs, panels: Sequence[AttentionPanel]) -> Component:
    """Return one card per model, and the colour scale."""
    ramp = [html.Span("low relevance"), html.Span(className="ramp"), html.Span("high relevance")]
    scale = html.Div(ramp, className="scale")
    columns = {"base": 1, "xs": 2, "lg": min(4, max(2, len(panels)))}
    names = _names(runs, [panel.run_id for panel in panels])
    cards = [_panel_card(runs, panel, names[panel.run_id]) for panel in panels]
    grid = dmc.SimpleGrid(cards, cols=columns, spacing="md")
    heading = dmc.Group([dmc.Title("Maps", order=2, size="h4"), scale], justify="space-between", mt="xl", mb="md")
    return html.Div([heading, grid])


def _names(runs: Runs, run_ids: Sequence[str]) -> dict[str, str]:
    return names_by_run({run_id: runs.row(run_id) or {} for run_id in run_ids})


def _picture_curves_card(runs: Runs, curves: Sequence[tuple[str, PictureCurves]]) -> Component:
    """Return the deletion and insertion curves of this picture's maps, by run."""
    models = [str((runs.row(run_id) or {}).get("params.model", "")) for run_id, _ in curves]
    styles = run_styles(list(_names(runs, [run_id for run_id, _ in curves]).values()), models)
    figure = picture_curves(styles, [each for _, each in curves])
    return card(
        "Is the map faithful here?",
        wide(graph("attention-picture-curves", figure, "Deletion and insertion curves", 320), "Deletion and insertion"),
        note="Parts of the image are removed or restored, most important first. With a good map, the probability falls "
        "quickly under deletion and rises quickly under insertion.",
        mt="lg",
    )


def _panel_card(runs: Runs, panel: AttentionPanel, run_name: str) -> Component:
    row = runs.row(panel.run_id) or {}
    name = dcc.Link(run_name, href=f"/run?run={panel.run_id}", className="cell-link")
    label = dmc.Text(name, size="sm", fw=600, className="truncate")
    title = dmc.Group([family_dot(str(row.get("params.model", ""))), label], gap=6, wrap="nowrap")
    view = panel.view
    if view is None or panel.heat is None:
        return dmc.Paper([title, dmc.Box(notice("No map", panel.error, "warning"), mt="sm")], withBorder=True, p="md")
    description = describe_map(panel.heat)
    predicted = int(view.probabilities.argmax())
    lines = [_probability("predicts", view, predicted)]
    if not panel.of_category:
        lines.append(dmc.Text("The map below does not depend on a category.", size="xs", c="dimmed"))
    elif view.target != predicted:
        lines.append(_probability("map explains", view, view.target))
    alt = f"Map of {panel.caption if panel.of_layer else view.categories[view.target]}: {description}"
    return dmc.Paper(
        [
            title,
            *lines,
            html.Img(src=overlay(view.picture, panel.heat), alt=alt, className="map"),
            dmc.Text(panel.caption, size="xs", fw=550, mt="xs"),
            dmc.Text(f"{description[0].upper()}{description[1:]}.", size="xs", c="dimmed"),
            None if panel.of_layer else _words(view),
            html.Details(
                [html.Summary("Image without map"), html.Img(src=picture_url(view.picture), alt="", className="map")]
            ),
        ],
        withBorder=True,
        p="md",
    )


def _probability(verb: str, view: AttentionView, category: int) -> Component:
    share = f" {view.probabilities[category]:.1%}"
    return dmc.Text([f"{verb} ", html.B(view.categories[category]), share], size="sm", className="numbers")


def _words(view: AttentionView) -> Component | None:
    """Return each generated word with its map; None for a model that writes nothing."""
    if not view.words:
        return None
    maps = [
        html.Figure(
            [html.Img(src=overlay(view.picture, heat), alt=f"{word}: {describe_map(heat)}"), html.Figcaption(word)]
        )
        for word, heat in view.words[:MOST_WORDS]
    ]
    return html.Div([dmc.Text("Generated text", size="xs", fw=550, mt="sm", mb=4), html.Div(maps, className="words")])


def _picture_card() -> Component:
    product = dmc.Select(
        id="attention-product",
        label="Or a test product of the first model",
        description="Incorrect predictions come first",
        data=[],
        searchable=True,
        clearable=True,
        nothingFoundMessage="No matching product",
        limit=100,
    )
    return card(
        "Image",
        dropzone("attention"),
        product,
        html.Div(id="attention-notice", role="status"),
        note="The first image is used if you drop several. Uploads stay in memory; only this browser can open them.",
    )


def _choice_card(runs: Runs, chosen: Sequence[str], query: Mapping[str, str]) -> Component:
    method, category = query.get("method", "gradient"), query.get("category", "")
    return card(
        "What to show",
        dmc.MultiSelect(
            id="attention-models",
            label="Models",
            data=run_choices(runs.table(), chosen),
            value=list(chosen),
            maxValues=MOST_MODELS,
            searchable=True,
            hidePickedOptions=True,
            debounce=200,
        ),
        dmc.Select(
            id="attention-category",
            label="Category to explain",
            data=[{"value": category, "label": category or _PREDICTED}],
            value=category,
            allowDeselect=False,
        ),
        _labelled(
            "Method",
            dmc.SegmentedControl(
                id="attention-method",
                data=[{"value": name, "label": label} for name, label in METHODS.items()],
                value=method if method in METHODS else "gradient",
                size="xs",
                fullWidth=True,
                **aria(label="Method"),
            ),
        ),
        dmc.Text(id="attention-method-note", size="xs", c="dimmed"),
        _slider("layer", "Layer (0: all layers, combined by the method)", parse_number(query.get("layer"), least=0)),
        _slider("head", "Head of that layer (0: mean of all heads)", parse_number(query.get("head"), least=0)),
    )


def _slider(name: str, label: str, value: int) -> Component:
    slider = dmc.Slider(
        id=f"attention-{name}",
        min=0,
        max=max(1, value),
        value=value,
        step=1,
        thumbLabel=label,
        mx="sm",
        mb="sm",
        updatemode="mouseup",
    )
    return _labelled(label, slider)


def _labelled(label: str, control: Component) -> Component:
    return html.Div([dmc.Text(label, size="sm", fw=500, mb=4), control])

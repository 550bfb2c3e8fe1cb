"""Where models looked in a picture: their maps side by side, layer by layer and head by head."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Final

import dash_mantine_components as dmc
from dash import Dash, Input, Output, State, ctx, dcc, html, no_update
from dash.development.base_component import Component

from dashboard.attention import METHODS, AttentionExplainer
from dashboard.components import (
    aria,
    card,
    counted,
    empty_state,
    graph,
    keep_in_url,
    listed,
    notice,
    page_header,
    skeleton,
    store_state,
    wide,
)
from dashboard.dropzone import dropzone, register_dropzone
from dashboard.figures.attention import faithfulness_curves
from dashboard.leaderboard import best_run, run_choices
from dashboard.pages.attention_parts import ask, view_cards
from dashboard.runs import Runs

NAME: Final = "Attention"
PATH: Final = "/attention"
ICON: Final = "attention"
IN_NAVIGATION: Final = True
MOST_MODELS: Final = 4
MOST_PRODUCTS: Final = 400
FIRST_PICTURE: Final = "sample:2"
FAITHFULNESS: Final = "study/faithfulness.json"  # of a run that a study measured


def layout(runs: Runs, query: Mapping[str, str]) -> Component:
    """The page, with the picture and the models that the address names."""
    view = runs.view()
    models = listed(query.get("models")) or [name for name in [best_run(view.board, but="baseline")] if name]
    return html.Div(
        [
            page_header("Attention", "What spoke for each model's answer, over the picture, side by side."),
            dcc.Store(id="attention-picture", data=query.get("picture") or FIRST_PICTURE),
            html.Div(store_state(view), id="attention-state"),
            html.Div(
                [
                    dmc.SimpleGrid(
                        [_picture_card(), _choice_card(runs, models[:MOST_MODELS], query)], cols={"base": 1, "lg": 2}
                    ),
                    dcc.Loading(
                        html.Div(id="attention-maps", style={"minHeight": 320}, role="status"),
                        custom_spinner=skeleton(420),
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
    app.callback(
        Output("attention-maps", "children"),
        Output("attention-category", "data"),
        Output("attention-layer", "max"),
        Output("attention-head", "max"),
        Input("attention-picture", "data"),
        *choices,
    )(partial(update_maps, runs, AttentionExplainer(runs.root, models, uploads)))
    app.callback(Output("attention-curves", "children"), Input("attention-models", "value"))(
        partial(update_curves, runs)
    )
    keep_in_url(app, "attention", ("models", "method", "category", "layer", "head"))
    keep_in_url(app, "attention", ("picture",), "data")


def update_state(runs: Runs, version: int | None, chosen: Sequence[str] | None) -> tuple[Any, bool, Any]:
    """What stands in the page's place without a run, and the models to choose from."""
    state = store_state(runs.view())
    return state, state is not None, run_choices(runs.table(), chosen)


def update_products(runs: Runs, chosen: Sequence[str] | None) -> list[dict[str, str]]:
    """Test products of the first of the models to choose from, its mistakes first."""
    run_id = next(iter(chosen or ()), "")
    row, evaluation = runs.row(run_id), runs.evaluation(run_id)
    if row is None or evaluation is None:
        return []
    table = evaluation.predictions.to_frame()
    table = table.assign(wrong=table["true"] != table["predicted"]).sort_values(
        ["wrong", "confidence"], ascending=False
    )
    return [
        {
            "value": f"product:{row.get('tags.fingerprint', '')}:{product}",
            "label": f"{product} · is {true or 'not known'}, answered {predicted}",
        }
        for product, true, predicted in table[["product_id", "true", "predicted"]]
        .head(MOST_PRODUCTS)
        .itertuples(index=False)
    ]


def choose_picture(pictures: Sequence[Mapping[str, str]] | None, product: str | None) -> tuple[Any, Any]:
    """The name of the picture that came last, and what was wrong with it."""
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
    looker: AttentionExplainer,
    source: str | None,
    chosen: Sequence[str] | None,
    method: str,
    category: str | None,
    layer: int,
    head: int,
) -> tuple[Any, Any, int, int]:
    """The models' maps as cards, the categories to explain, and how many layers and heads there are."""
    if not chosen or not source:
        return empty_state("Choose a model", "Its map appears here.", picture="attention"), no_update, 1, 1
    views = [
        ask(looker, run_id, source, method if method in METHODS else "gradient", category or "", layer, head)
        for run_id in chosen[:MOST_MODELS]
    ]
    names = list(dict.fromkeys(name for view in views if view.look for name in view.look.categories))
    choices = [
        {"value": "", "label": "what each model answers"},
        *({"value": name, "label": name} for name in names),
    ]
    most = [
        max((count for view in views for count in [getattr(view, name)]), default=1) for name in ("layers", "heads")
    ]
    return view_cards(runs, views), choices, max(1, most[0]), max(1, most[1])


def update_curves(runs: Runs, chosen: Sequence[str] | None) -> Any:
    """What the maps of the chosen runs are worth over many pictures, where a study has measured it."""
    names = {run_id: str((runs.row(run_id) or {}).get("name", run_id)) for run_id in list(chosen or ())[:MOST_MODELS]}
    texts = {name: runs.text(run_id, FAITHFULNESS) for run_id, name in names.items()}
    measured = {name: json.loads(text) for name, text in texts.items() if text}
    if not measured:
        return None
    drawn = graph("attention-figure", faithfulness_curves(measured), "Curves", 80 + 270 * len(measured))
    note = "Over a study's test products: low deletion and high insertion are good; grey lines know nothing."
    return card("What these maps are worth", wide(drawn, "Deletion and insertion curves"), note=note, mt="lg")


def _picture_card() -> Component:
    product = dmc.Select(
        id="attention-product",
        label="Or a test product of the first model",
        description="Its mistakes come first",
        data=[],
        searchable=True,
        clearable=True,
        nothingFoundMessage="No product of that name",
        limit=100,
    )
    return card(
        "Picture",
        dropzone("attention"),
        product,
        html.Div(id="attention-notice", role="status"),
        note="Of several the first. Uploads stay in memory, never on disk, and are not part of the address.",
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
            label="What speaks for",
            data=[{"value": category, "label": category or "what each model answers"}],
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
        _slider("layer", "Layer (0: all, by the method)", counted(query.get("layer"), least=0)),
        _slider("head", "Head (0: mean of all; of a chosen layer)", counted(query.get("head"), least=0)),
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

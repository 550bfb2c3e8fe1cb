"""The cards of where models looked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import dash_mantine_components as dmc
import numpy as np
from dash import dcc, html
from dash.development.base_component import Component
from numpy.typing import NDArray

from dashboard.attention import METHODS, AttentionExplainer, AttentionView
from dashboard.components import card, family_dot, graph, notice, wide
from dashboard.figures.attention import followed_curves
from dashboard.figures.compare import run_styles
from dashboard.heatmaps import in_words, overlay, plain
from dashboard.runs import Runs
from vlm_core.errors import UserError

MOST_WORDS: Final = 8
_KINDS: Final = {"vision": "what the class token attends to", "cross": "text to picture", "joint": "text to picture"}


@dataclass(frozen=True)
class AttentionPanel:
    """One model's look at a picture, or why there is none."""

    run_id: str
    look: AttentionView | None = None
    heat: NDArray[np.float32] | None = None  # (H, W), what is shown
    caption: str = ""
    layers: int = 0
    heads: int = 0
    error: str = ""


def ask(
    looker: AttentionExplainer, run_id: str, source: str, method: Any, category: str, layer: int, head: int
) -> AttentionPanel:
    """What the run's model shows: the method's map, or of a layer (from 1) a head (from 1; 0 is the mean of all)."""
    try:
        look = looker.look(run_id, source, method, category)
        layers = looker.layers(run_id, source, category)
    except UserError as error:
        return AttentionPanel(run_id, error=str(error))
    heads = max(each.maps.shape[1] for each in layers)
    if not layer:
        return AttentionPanel(run_id, look, look.map, f"method: {METHODS[method].lower()}", len(layers), heads)
    chosen = layers[min(layer, len(layers)) - 1]
    maps = chosen.maps[0]
    place = min(head, len(maps))
    part = f"head {place} of {len(maps)}" if place else f"mean of {len(maps)} heads"
    caption = f"{chosen.name}, {part}: {_KINDS.get(chosen.kind, chosen.kind)}"
    return AttentionPanel(run_id, look, maps[place - 1] if place else maps.mean(axis=0), caption, len(layers), heads)


def view_cards(runs: Runs, views: Sequence[AttentionPanel]) -> Component:
    """A card a model, and what the colours mean."""
    ramp = [html.Span("matters little"), html.Span(className="ramp"), html.Span("matters most")]
    scale = html.Div(ramp, className="scale")
    columns = {"base": 1, "xs": 2, "lg": min(4, max(2, len(views)))}
    cards = dmc.SimpleGrid([_card(runs, view) for view in views], cols=columns, spacing="md")
    head = dmc.Group([dmc.Title("Maps", order=2, size="h4"), scale], justify="space-between", mt="xl", mb="md")
    return html.Div([head, cards, _followed(runs, views)])


def _followed(runs: Runs, views: Sequence[AttentionPanel]) -> Component | None:
    """What becomes of each model's answer as its map's cells go or come back."""
    found = [(view.run_id, view.look.followed) for view in views if view.look and view.look.followed]
    if not found:
        return None
    rows = [runs.row(run_id) or {} for run_id, _ in found]
    looks = run_styles([str(row.get("name", "")) for row in rows], [str(row.get("params.model", "")) for row in rows])
    figure = followed_curves(looks, [followed for _, followed in found])
    note = "Cells of the method's map, most important first: a good one falls fast as they go and rises as they come."
    shown = wide(graph("attention-followed", figure, "Deletion and insertion", 320), "Deletion and insertion")
    return card("Is it so, in this picture?", shown, note=note, mt="lg")


def _card(runs: Runs, view: AttentionPanel) -> Component:
    row = runs.row(view.run_id) or {}
    name = dcc.Link(str(row.get("name", view.run_id[:8])), href=f"/run?run={view.run_id}", className="cell-link")
    title = dmc.Group([family_dot(str(row.get("params.model", ""))), dmc.Text(name, size="sm", fw=600)], gap=6)
    if view.look is None or view.heat is None:
        return dmc.Paper([title, dmc.Box(notice("No map", view.error, "warning"), mt="sm")], withBorder=True, p="md")
    look, said = view.look, in_words(view.heat)
    answer = int(look.probabilities.argmax())
    lines = [_said("answers", look, answer)]
    if look.target != answer:
        lines.append(_said("shown: what speaks for", look, look.target))
    alt = f"Map of {look.categories[look.target]}: {said}"
    return dmc.Paper(
        [
            title,
            *lines,
            html.Img(src=overlay(look.picture, view.heat), alt=alt, className="map"),
            dmc.Text(view.caption, size="xs", fw=550, mt="xs"),
            dmc.Text(f"{said[0].upper()}{said[1:]}.", size="xs", c="dimmed"),
            _words(look),
            html.Details(
                [html.Summary("The picture alone"), html.Img(src=plain(look.picture), alt="", className="map")]
            ),
        ],
        withBorder=True,
        p="md",
    )


def _said(verb: str, look: AttentionView, category: int) -> Component:
    share = f" {look.probabilities[category]:.1%}"
    return dmc.Text([f"{verb} ", html.B(look.categories[category]), share], size="sm", className="figures")


def _words(look: AttentionView) -> Component | None:
    """Each word that the model writes, with what it was written from."""
    if not look.words:
        return None
    figures = [
        html.Figure([html.Img(src=overlay(look.picture, heat), alt=f"{word}: {in_words(heat)}"), html.Figcaption(word)])
        for word, heat in look.words[:MOST_WORDS]
    ]
    return html.Div([dmc.Text("It writes", size="xs", fw=550, mt="sm", mb=4), html.Div(figures, className="words")])

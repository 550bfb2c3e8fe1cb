"""What a study says of its models' attention: whether maps are to be believed, and what layers do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from dash import dcc, html
from dash.development.base_component import Component

from dashboard.components import card, graph, table, wide
from dashboard.figures.attention import faithfulness_curves
from dashboard.runs import Runs
from dashboard.studies import StoredStudy, shown

_STATISTICS: Final = (
    "entropy",
    "relative_entropy",
    "distance_patches",
    "class_share",
    "product_share",
    "product_area",
    "head_diversity",
)


def attention_card(runs: Runs, found: StoredStudy) -> Component | None:
    """Verdicts, curves, areas, the check with shuffled weights, and each layer's figures; None where none were made."""
    measured: Mapping[str, Any] = found.results.get("faithfulness") or {}
    if not measured:
        return None
    verdicts = [each["verdict"] for of_model in measured.values() for each in of_model["comparisons"]]
    areas = [
        [label, each["map"], shown(each["deletion_area"]), shown(each["insertion_area"])]
        for label, of_model in measured.items()
        for each in of_model["curves"]
    ]
    shuffled = [
        [label, each["method"], shown(each["correlation"], ".2f")]
        for label, of_model in measured.items()
        for each in of_model["randomised"]
    ]
    n = next(iter(measured.values()))["n"]
    return card(
        "What attention maps are worth",
        html.Div("\n".join(verdicts), className="said scrolled", tabIndex=0),
        wide(
            graph("study-faithfulness", faithfulness_curves(measured), "Curves", 80 + 270 * len(measured)),
            "Deletion and insertion curves",
        ),
        table(["", "Map", "Deletion area, low is good", "Insertion area, high is good"], areas, "Areas", 360),
        table(["", "Map", "Likeness to the map of shuffled weights"], shuffled, "Shuffled weights"),
        *_layers(found),
        html.P(dcc.Link("See the maps over pictures", href="/attention", className="cell-link")),
        note=f"{n} test products of the first seed; grey lines know nothing of the picture or of the model.",
    )


def _layers(found: StoredStudy) -> list[Component]:
    """The table of each layer's figures."""
    measured: Mapping[str, Any] = found.results.get("mechanism") or {}
    body = [
        [f"{label}, {layer['name']}", layer["kind"], *(_figure(layer[name]) for name in _STATISTICS)]
        for label, layers in measured.items()
        for layer in layers
    ]
    head = [
        "Layer",
        "Who asks",
        "Entropy, nats",
        "of even",
        "Distance, patches",
        "On the class token",
        "On the product",
        "Its area",
        "Heads differ",
    ]
    return [table(head, body, "Layers", 420)] if body else []


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"

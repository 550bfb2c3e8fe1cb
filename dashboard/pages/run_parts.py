"""What a run's page is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import dash_mantine_components as dmc
import numpy as np
from dash import html
from dash.development.base_component import Component
from numpy.typing import NDArray

from dashboard.components import empty_state, family_label, leak_badge, number_tile, status_badge
from dashboard.pictures import has_pictures, picture_address
from dashboard.theme import family_of
from vlm_core.config import FINE_TUNING, build_config
from vlm_core.errors import UserError

if TYPE_CHECKING:
    from dashboard.runs import Runs
    from vlm_core.evaluation.bootstrap import Estimate
    from vlm_core.evaluation.evaluation import Evaluation

MOST_MISTAKES: Final = 24
_OWN: Final = ("preset", "run_name", "resume", "experiment")  # of the run, not of how it learns


@dataclass(frozen=True)
class EpochMatrix:
    """A confusion matrix with what stood there an epoch before."""

    title: str
    categories: tuple[str, ...]  # (C,)
    matrix: NDArray[np.int64]  # (C, C), rows = true category
    before: NDArray[np.int64] | None  # (C, C)


def confusion_of(runs: Runs, run_id: str, epoch: int) -> EpochMatrix | None:
    """The matrix of an epoch's validation, counted from 1; behind the last epoch that of the test split, if any."""
    epochs = runs.epochs(run_id)
    if epoch > len(epochs):
        evaluation = runs.evaluation(run_id)
        if evaluation is not None:
            title = f"Test split, {evaluation.n:,} products"
            return EpochMatrix(title, evaluation.categories, evaluation.confusion, None)
    if not epochs:
        return None
    place = min(max(epoch, 1), len(epochs)) - 1
    matrices = [
        np.array(entry["validation_summary"]["confusion_matrix"]) for entry in epochs[max(0, place - 1) : place + 1]
    ]
    categories = tuple(epochs[place]["validation_summary"]["per_class_f1"])
    title = f"Validation after epoch {epochs[place]['epoch']}"
    return EpochMatrix(title, categories, matrices[-1], matrices[0] if place else None)


def badges(row: Mapping[str, Any]) -> Component:
    """Family, state, mode, data and protocol of the run in one line."""
    model = row.get("params.model", "")
    facts = [
        model if model != family_of(model) else None,
        row.get("params.mode"),
        row.get("tags.weights_source"),
        row.get("tags.catalogue"),
        row.get("tags.label"),
        f"protocol {row['tags.protocol']}" if "tags.protocol" in row else None,
        f"seed {row['params.seed']}" if "params.seed" in row else None,
    ]
    marks = [dmc.Badge(str(fact), variant="default", size="md", tt="none", fw=500) for fact in facts if fact]
    leaks = [leak_badge()] if row.get("tags.leaking") == "true" else []
    failure = dmc.Text(str(row["tags.failure"]), size="sm", c="dimmed") if row.get("tags.failure") else None
    return dmc.Group([family_label(model), status_badge(row["status"]), *leaks, *marks, failure], gap="xs")


def score_tiles(evaluation: Evaluation, row: Mapping[str, Any]) -> Component:
    """The run's main figures, with intervals."""
    worst = evaluation.worst_recall
    tested = next(score.support for score in evaluation.per_category if score.category == worst.category)
    tiles = [
        number_tile("Macro-F1", f"{evaluation.macro_f1.value:.3f}", interval(evaluation.macro_f1)),
        number_tile("Accuracy", f"{evaluation.accuracy.value:.3f}", interval(evaluation.accuracy)),
        number_tile(f"Worst recall: {worst.category}", f"{worst.recall:.3f}", f"of {tested:,} products"),
        number_tile(
            "Macro-F1, natural prior", f"{evaluation.natural.macro_f1.value:.3f}", interval(evaluation.natural.macro_f1)
        ),
        number_tile("Test products", f"{evaluation.n:,}", f"{len(evaluation.categories)} categories"),
        number_tile("Training", _seconds(row.get("metrics.train_seconds")), _weights(row.get("tags.weights_trained"))),
    ]
    return dmc.SimpleGrid(tiles, cols={"base": 2, "sm": 3, "lg": 6}, spacing="md")


def interval(figure: Estimate) -> str:
    """The interval of 95 % in words."""
    return f"{figure.low:.3f} to {figure.high:.3f}"


def category_table(evaluation: Evaluation) -> Component:
    """One row a category, the weakest first."""
    scores = sorted(evaluation.per_category, key=lambda score: score.f1.value)
    body = [
        [
            score.category,
            f"{score.support:,}",
            f"{score.precision:.3f}",
            f"{score.recall:.3f}",
            f"{score.f1.value:.3f} ({interval(score.f1)})" if score.support else "–",
        ]
        for score in scores
    ]
    table = dmc.Table(
        data={"head": ["Category", "n", "Precision", "Recall", "F1 (95 %)"], "body": body},
        highlightOnHover=True,
        stickyHeader=True,
    )
    return html.Div(table, className="scroll-x", style={"maxHeight": "420px", "overflowY": "auto"}, tabIndex=0)


def differing_params(row: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Name, the run's value and the preset's, of the settings that differ from its preset; [] for an unknown preset."""
    try:
        preset = build_config({"preset": row.get("params.preset", "")}).to_params(FINE_TUNING)
    except UserError:
        return []
    ours = {name: str(row[f"params.{name}"]) for name in preset if f"params.{name}" in row and name not in _OWN}
    return [
        (name, value or "(empty)", preset[name] or "(empty)") for name, value in ours.items() if value != preset[name]
    ]


def mistakes_gallery(runs: Runs, row: Mapping[str, Any], evaluation: Evaluation) -> Component:
    """Pictures of the wrong answers, the most confident first; the answers alone where the pictures are not here."""
    fingerprint = str(row.get("tags.fingerprint", ""))
    table = evaluation.predictions.to_frame()
    wrong = table[(table["true"] != "") & (table["true"] != table["predicted"])]
    wrong = wrong.sort_values("confidence", ascending=False).head(MOST_MISTAKES)
    if wrong.empty:
        return empty_state("No mistakes", "Every product of the test split was answered rightly.")
    here = has_pictures(runs.root, fingerprint)
    cards = [
        html.Figure(
            [
                html.Img(
                    src=picture_address(fingerprint, product),
                    alt=f"Product {product}, a {true}",
                    width=132,
                )
                if here
                else None,
                html.Figcaption(
                    [
                        *("is ", html.B(true), "\nanswer ", html.B(predicted, className="wrong")),
                        f"\n{confidence:.0%} sure · {product}",
                    ],
                    className="lines",
                ),
            ]
        )
        for product, true, predicted, confidence in wrong[["product_id", "true", "predicted", "confidence"]].itertuples(
            index=False
        )
    ]
    missing = "The catalogue's pictures are not on this machine: prepare it here to see them."
    return dmc.Stack([None if here else dmc.Text(missing, size="sm", c="dimmed"), html.Div(cards, className="gallery")])


def _seconds(value: Any) -> str:
    return "–" if value is None else f"{float(value):,.0f} s" if float(value) >= 10 else f"{float(value):.1f} s"


def _weights(value: Any) -> str:
    return "" if value is None else f"{int(value):,} weights trained"

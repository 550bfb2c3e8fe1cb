"""Tables of the Run page: scores by category, of frequent and rare categories, and of products new to the model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import dash_mantine_components as dmc
from dash import html
from dash.development.base_component import Component

from dashboard.components import card
from vlm_core.evaluation.long_tail import RANGES
from vlm_core.evaluation.subsets import MEANING

if TYPE_CHECKING:
    from vlm_core.evaluation.bootstrap import Estimate
    from vlm_core.evaluation.evaluation import Evaluation


def interval_text(score: Estimate) -> str:
    """Return the ends of an interval."""
    return f"{score.low:.3f} to {score.high:.3f}"


def category_table(evaluation: Evaluation) -> Component:
    """Return one row per category, the weakest first."""
    scores = sorted(evaluation.per_category, key=lambda score: score.f1.value)
    body = [
        [
            score.category,
            f"{score.support:,}",
            f"{score.precision:.3f}",
            f"{score.recall:.3f}",
            f"{score.f1.value:.3f} ({interval_text(score.f1)})" if score.support else "–",
        ]
        for score in scores
    ]
    table = dmc.Table(
        data={"head": ["Category", "n", "Precision", "Recall", "F1 (95 % interval)"], "body": body},
        highlightOnHover=True,
        stickyHeader=True,
        horizontalSpacing="xs",
        fz="xs",
    )
    return html.Div(table, className="scroll-x", style={"maxHeight": "420px", "overflowY": "auto"}, tabIndex=0)


def levels_card(evaluation: Evaluation) -> list[Component]:
    """Return the scores of each label level; nothing for a run of one label."""
    score = evaluation.levels
    if score is None:
        return []
    body = [
        [
            level.label,
            f"{level.categories:,}",
            f"{level.accuracy.value:.3f} ({interval_text(level.accuracy)})",
            f"{level.accuracy_without_rule:.3f}",
            f"{level.macro_f1.value:.3f} ({interval_text(level.macro_f1)})",
            f"{level.macro_f1_without_rule:.3f}",
        ]
        for level in score.levels
    ]
    head = ["Label", "Categories", "Accuracy (95 % interval)", "without the rule"]
    head += ["Macro-F1 (95 % interval)", "without the rule"]
    table = html.Div(dmc.Table(data={"head": head, "body": body}), className="scroll-x", tabIndex=0)
    note = (
        f"{score.summary(3)} In an inconsistent prediction a category stands below one that it never stands below in "
        f"training. All else on this page is about {score.levels[-1].label}."
    )
    return [card("Label levels", table, note=note)]


def subsets_card(evaluation: Evaluation) -> list[Component]:
    """Return the scores on test products that are new to the model; nothing where all are."""
    body = [
        [
            MEANING[name],
            f"{score.products:,} of {evaluation.n:,}",
            f"{score.accuracy.value:.3f} ({interval_text(score.accuracy)})",
            f"{score.macro_f1.value:.3f} ({interval_text(score.macro_f1)})",
        ]
        for name, score in evaluation.subsets.items()
    ]
    if not body:
        return []
    head = ["Test products", "Products", "Accuracy (95 % interval)", "Macro-F1 (95 % interval)"]
    table = html.Div(dmc.Table(data={"head": head, "body": body}), className="scroll-x", tabIndex=0)
    note = "Models may remember the other test products. split/test_products.csv of the run says which is which."
    return [card("Products that are new to the model", table, note=note)]


def long_tail_card(evaluation: Evaluation) -> list[Component]:
    """Return the scores of frequent and rare categories apart; nothing where all are of one kind."""
    body = [
        [
            part.part,
            RANGES[part.part],
            f"{part.categories:,}",
            f"{part.products:,}",
            f"{part.macro_f1.value:.3f} ({interval_text(part.macro_f1)})",
        ]
        for part in evaluation.long_tail
    ]
    if not body:
        return []
    head = ["Part", "Training products", "Categories", "Test products", "Macro-F1 (95 % interval)"]
    table = html.Div(dmc.Table(data={"head": head, "body": body}), className="scroll-x", tabIndex=0)
    return [card("Frequent and rare categories", table, note="By the products that each category was trained on.")]

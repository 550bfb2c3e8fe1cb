"""Closer looks at the models that a study compares: spoilt pictures, confidence, subgroups, text and cost."""

from __future__ import annotations

from typing import Final

from dash.development.base_component import Component

from dashboard.components import card, graph, table, wide
from dashboard.figures import study as figures
from dashboard.pages.study_rows import Row, linked
from dashboard.runs import Runs
from dashboard.studies import StoredStudy, shown
from vlm_core.study.formatting import p_value

_RULES: Final = ("macro_f1", "accuracy", "unknown_rate", "coverage", "covered_accuracy")


def robustness_card(runs: Runs, found: StoredStudy) -> Component | None:
    """How much spoilt pictures cost each model; None where that was not measured."""
    rows = found.part("robustness")
    if not rows:
        return None
    figure = figures.drops(rows)
    drawn = graph("study-drops", figure, "Relative drop by corruption", figures.height_of(len(rows)) + 60)
    return card(
        "Robustness",
        wide(drawn, "Relative drop"),
        table(["", "Mean drop"], [[linked(row), shown(row["mean_drop"], ".1%")] for row in rows], "Mean drop"),
        note="Relative drop of macro-F1 on spoilt pictures, mean over three severities; none was trained on.",
    )


def calibration_card(runs: Runs, found: StoredStudy) -> Component | None:
    """What probabilities are worth, and whether they tell the unknown; None where that was not measured."""
    rows = found.part("calibration")
    if not rows:
        return None
    names = ("temperature", "ece", "ece_scaled", "nll", "nll_scaled", "aurc", "auroc_unknown", "auroc_products")
    head = [
        "",
        "Temperature",
        "ECE",
        "scaled",
        "NLL",
        "scaled",
        "AURC",
        "AUROC, seeds",
        "AUROC, products",
        "Unknown, n",
    ]
    body = [[linked(row), *(shown(row[name]) for name in names), f"{row['unknown']:,}"] for row in rows]
    return card(
        "Calibration and the unknown",
        graph("study-risk", figures.risk_curves(rows), "Risk over coverage", 340),
        table(head, body, "Calibration"),
        note="Temperature is fitted on validation. AUROC is of telling, by confidence, products of categories that no "
        "model learnt: over the seeds, and of one seed over its products.",
    )


def gaps_card(runs: Runs, found: StoredStudy) -> Component | None:
    """How unequally products are served; None where that was not measured."""
    rows = [(row, gap) for row in found.part("gaps") for gap in row["gaps"]]
    if not rows:
        return None
    body = [
        [
            linked(row),
            gap["attribute"],
            shown(gap["accuracy_gap"], ".1%"),
            f"{gap['best']}, {gap['worst']}" if gap["best"] else "–",
            p_value(gap["p_holm"]),
            p_value(gap["p_within_categories"]),
            ", ".join(_served(value) for value in gap["values"]),
        ]
        for row, gap in rows
    ]
    head = [
        "",
        "Attribute",
        "Gap of accuracy",
        "Best and worst",
        "p, Holm",
        "p, within categories",
        "Accuracy by value",
    ]
    note = "Each product counted once; values of fewer than 20 products are marked * and left out of the gap."
    return card("Subgroup gaps", table(head, body, "Subgroup gaps", most_pixels=480), note=note)


def _served(value: Row) -> str:
    return f"{value['value'] or 'not given'}{'*' * value['thin']} {value['accuracy']['value']:.1%} (n {value['n']:,})"


def rules_card(runs: Runs, found: StoredStudy) -> Component | None:
    """Ways from written text to a category; None where no model writes."""
    rows = found.part("rules")
    if not rows:
        return None
    body = [
        [linked(row), rule, *("–" if score[name] is None else f"{score[name]:.3f}" for name in _RULES)]
        for row in rows
        for rule, score in row["rules"].items()
    ]
    head = ["", "Rule", "Macro-F1", "Accuracy", "Unknown", "Coverage", "Right of the covered"]
    note = "Models that learnt to write the category, asked in several ways; an Unknown Category counts as wrong."
    return card("Decision rules of models that write", table(head, body, "Decision rules"), note=note)


def costs_card(runs: Runs, found: StoredStudy) -> Component | None:
    """What an answer costs, and which models are worth it; None where that was not measured."""
    rows = found.part("cost")
    if not rows:
        return None
    head = ["", "Macro-F1", "Weights", "GFLOP", "p50, ms", "p95, ms", "Pictures a second", "Peak, MiB", "On the front"]
    body = [
        [
            linked(row),
            f"{row['macro_f1']:.3f}",
            f"{cost['weights']:,}",
            "–" if cost["flops"] is None else f"{cost['flops'] / 1e9:.3f}",
            f"{1000 * cost['p50_seconds']:.1f}",
            f"{1000 * cost['p95_seconds']:.1f}",
            f"{cost['pictures_a_second']:.0f}",
            f"{cost['peak_mib']:.0f}",
            "yes" if row["on_front"] else "",
        ]
        for row in rows
        for cost in [row["cost"]]
    ]
    note = f"One picture at a time, {rows[0]['cost']['threads']} threads; filled: no other is both faster and better."
    drawn = graph("study-costs", figures.costs(rows), "Macro-F1 against latency", 360)
    return card("Cost", drawn, table(head, body, "Cost of an answer"), note=note)

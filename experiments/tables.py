"""Rows of the tables that commands print."""

from __future__ import annotations

from math import isnan
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

    from vlm_core.evaluation.bootstrap import Estimate
    from vlm_core.evaluation.evaluation import Evaluation
    from vlm_core.study.results import Results
    from vlm_core.workflows.export import ExportComparison

LEADERBOARD_COLUMNS = ("model", "protocol", "test macro-F1", "95 % interval", "accuracy", "weights", "run")


def evaluation_rows(evaluation: Evaluation) -> list[tuple[str, str, str]]:
    """Name, value and interval of the main figures and of each category's F1."""
    figures: list[tuple[str, Estimate]] = [
        ("macro-F1", evaluation.macro_f1),
        ("accuracy", evaluation.accuracy),
        ("macro-F1, natural prior", evaluation.natural.macro_f1),
        ("accuracy, natural prior", evaluation.natural.accuracy),
        *((f"F1 {score.category} (n={score.support})", score.f1) for score in evaluation.per_category if score.support),
    ]
    rows = [(name, f"{figure.value:.4f}", f"{figure.low:.4f} to {figure.high:.4f}") for name, figure in figures]
    calibration = evaluation.calibration
    worst = evaluation.worst_recall
    rows.append((f"worst recall ({worst.category})", f"{worst.recall:.4f}", ""))
    rows += [(name, f"{getattr(calibration, name.lower()):.4f}", "") for name in ("NLL", "Brier", "ECE")]
    if evaluation.text_rule is not None:
        rule = evaluation.text_rule
        rows += [
            ("macro-F1 of the written text", f"{rule.macro_f1:.4f}", ""),
            ("Unknown Category", f"{rule.unknown_rate:.1%}", ""),
        ]
    return rows


def leaderboard_rows(board: pd.DataFrame) -> list[tuple[str, ...]]:
    """One row a run, in the order given; figures of a leaking run carry a mark."""
    return [
        (
            str(run["model"]),
            f"{run['protocol']} LEAKS" if run["leaking"] else str(run["protocol"]),
            f"{run['test_macro_f1']:.4f}",
            f"{run['test_macro_f1_low']:.4f} to {run['test_macro_f1_high']:.4f}",
            f"{run['test_accuracy']:.4f}",
            str(run["weights_source"]),
            str(run["run_id"])[:8],
        )
        for _, run in board.iterrows()
    ]


def export_rows(comparisons: Sequence[ExportComparison]) -> list[tuple[str, ...]]:
    """One row a form of the model: size, distance from PyTorch, and seconds a picture at each batch."""
    return [
        (
            each.form,
            f"{each.megabytes:.1f}",
            f"{each.largest_difference:.2g}",
            f"{each.equal_answers:.1%}",
            *(f"{seconds:.5f}" for seconds in each.seconds.values()),
        )
        for each in comparisons
    ]


def score_rows(results: Results) -> list[tuple[str, ...]]:
    """One row a configuration of a study, best first within each protocol."""
    rows = sorted(results.scores, key=lambda row: (row.protocol, row.kind == "mechanism", -row.macro_f1.value))
    return [
        (
            row.label,
            f"{row.protocol} LEAKS" if row.protocol == "study" else row.protocol,
            f"{row.macro_f1.value:.4f}",
            "one seed has none" if isnan(row.macro_f1.low) else f"{row.macro_f1.low:.4f} to {row.macro_f1.high:.4f}",
        )
        for row in rows
    ]

"""Rows of the tables that commands print."""

from __future__ import annotations

from math import isnan
from typing import TYPE_CHECKING, Any

from vlm_core.catalogue.reading import number_of
from vlm_core.evaluation.text_leak import is_unmasked

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

    from vlm_core.evaluation.bootstrap import Estimate
    from vlm_core.evaluation.evaluation import Evaluation
    from vlm_core.evaluation.level_scores import LevelsScore
    from vlm_core.study.results import FusionResults, Results
    from vlm_core.workflows.clean import Leftover
    from vlm_core.workflows.export import ExportComparison

LEADERBOARD_COLUMNS = ("model", "protocol", "test macro-F1", "95 % interval", "accuracy", "weights", "run")


def evaluation_rows(evaluation: Evaluation) -> list[tuple[str, str, str]]:
    """Return name, value and interval of the main metrics and of each category's F1."""
    metrics: list[tuple[str, Estimate]] = [
        ("macro-F1", evaluation.macro_f1),
        ("accuracy", evaluation.accuracy),
        ("macro-F1, natural prior", evaluation.natural.macro_f1),
        ("accuracy, natural prior", evaluation.natural.accuracy),
        *(
            (f"macro-F1, {part.part} ({number_of(part.categories, 'category', 'categories')})", part.macro_f1)
            for part in evaluation.long_tail
        ),
        *((f"F1 {score.category} (n={score.support})", score.f1) for score in evaluation.per_category if score.support),
    ]
    rows = [(name, f"{metric.value:.4f}", f"{metric.low:.4f} to {metric.high:.4f}") for name, metric in metrics]
    calibration = evaluation.calibration
    worst = evaluation.worst_recall
    rows.append((f"lowest recall ({worst.category})", f"{worst.recall:.4f}", ""))
    rows += [(name, f"{getattr(calibration, name.lower()):.4f}", "") for name in ("NLL", "Brier", "ECE")]
    if evaluation.levels is not None:
        rows += level_rows(evaluation.levels)
    for subset, part in evaluation.subsets.items():
        for kind, metric in ((f"accuracy, {subset}", part.accuracy), (f"macro-F1, {subset}", part.macro_f1)):
            name = f"{kind} (n={part.products:,})"
            rows.append((name, f"{metric.value:.4f}", f"{metric.low:.4f} to {metric.high:.4f}"))
    if evaluation.text_rule is not None:
        rule = evaluation.text_rule
        rows += [
            ("macro-F1 of the generated text", f"{rule.macro_f1:.4f}", ""),
            ("Unknown Category", f"{rule.unknown_rate:.1%}", ""),
        ]
    return rows


def level_rows(score: LevelsScore) -> list[tuple[str, str, str]]:
    """Return name, value and interval of each level's scores, and of all levels together."""
    rows = [
        (f"{name}, {level.label}", f"{metric.value:.4f}", f"{metric.low:.4f} to {metric.high:.4f}")
        for level in score.levels
        for name, metric in (("macro-F1", level.macro_f1), ("accuracy", level.accuracy))
    ]
    rows.append(("hierarchical F1", f"{score.hierarchical_f1:.4f}", ""))
    rows.append(("inconsistent without the rule", f"{score.inconsistent_without_rule:.2%}", ""))
    return rows


def leaderboard_rows(leaderboard: pd.DataFrame) -> list[tuple[str, ...]]:
    """Return one row per run, in the order of `leaderboard`; leaking protocols are marked."""
    return [
        (
            f"{run['model']}{_read_text(run)}",
            f"{run['protocol']} LEAKS" if run["leaking"] else str(run["protocol"]),
            f"{run['test_macro_f1']:.4f}",
            f"{run['test_macro_f1_low']:.4f} to {run['test_macro_f1_high']:.4f}",
            f"{run['test_accuracy']:.4f}",
            str(run["weights_source"]),
            str(run["run_id"])[:8],
        )
        for _, run in leaderboard.iterrows()
    ]


def _read_text(run: pd.Series[Any]) -> str:
    """Return what a run read besides pictures, marked where its texts may name the category; "" for nothing."""
    if run["inputs"] not in ("text", "image+text"):
        return ""
    return f" {run['inputs']}{' UNMASKED' if is_unmasked(run['inputs'], run['mask_label_words']) else ''}"


def export_rows(comparisons: Sequence[ExportComparison]) -> list[tuple[str, ...]]:
    """Return one row per form of the model: size, differences from PyTorch and by batch, seconds per image."""
    return [
        (
            each.form,
            f"{each.megabytes:.1f}",
            f"{each.largest_difference:.2g}",
            f"{each.same_category:.1%}",
            f"{each.batch_effect:.2g}",
            *(f"{seconds:.5f}" for seconds in each.seconds.values()),
        )
        for each in comparisons
    ]


def leftover_rows(leftovers: Sequence[Leftover]) -> list[tuple[str, str, str]]:
    """Return one row for each thing that nobody needs."""
    return [(each.place, each.what, size_text(each.bytes)) for each in leftovers]


def size_text(size: float) -> str:
    """Return a size in bytes as text."""
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def score_rows(results: Results) -> list[tuple[str, ...]]:
    """Return one row per configuration of a study, best first within each protocol, by the headline's macro-F1."""
    rows = sorted(results.scores, key=lambda row: (row.protocol, row.kind == "mechanism", -row.headline_macro_f1.value))
    return [
        (
            row.label,
            f"{row.protocol} LEAKS" if row.protocol == "original" else row.protocol,
            *_with_interval(row.headline_macro_f1),
        )
        for row in rows
    ]


def fusion_rows(fusion: FusionResults) -> list[tuple[str, ...]]:
    """Return one row per reader of pictures, texts or both, best first; texts as they are are marked."""
    rows = sorted(fusion.rows, key=lambda row: (row.masked, -row.headline_macro_f1.value))
    return [
        (
            row.label,
            "" if row.inputs == "image" else "masked" if row.masked else "UNMASKED",
            *_with_interval(row.headline_macro_f1),
        )
        for row in rows
    ]


def _with_interval(score: Estimate) -> tuple[str, str]:
    interval = "none with one seed" if isnan(score.low) else f"{score.low:.4f} to {score.high:.4f}"
    return f"{score.value:.4f}", interval

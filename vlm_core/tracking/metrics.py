"""Names and values of the metrics that a run logs for each epoch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from vlm_core.evaluation.slugs import category_slugs

if TYPE_CHECKING:
    from vlm_core.evaluation.summary import Summary
    from vlm_core.training.loop import EpochReport


def epoch_metrics(report: EpochReport[Summary]) -> dict[str, float]:
    """Return one epoch's metrics: `train_...`, `validation_...` (categories as slugs), learning rate and seconds."""
    validation = report.validation
    return {
        "learning_rate": report.learning_rate,
        **_summary_metrics("train", report.training),
        **_by_category("validation_precision", validation.precision),
        **_by_category("validation_recall", validation.recall),
        **_summary_metrics("validation", validation),
        "seconds": report.seconds,  # last: a run that has it has the whole epoch
    }


def _summary_metrics(prefix: str, summary: Summary) -> dict[str, float]:
    return {
        f"{prefix}_loss": summary.loss,
        f"{prefix}_accuracy": summary.accuracy,
        **_by_category(f"{prefix}_f1", summary.per_category_f1),
        f"{prefix}_macro_f1": summary.macro_f1,
    }


def _by_category(prefix: str, values: Mapping[str, float]) -> dict[str, float]:
    return {
        f"{prefix}_{slug}": value for slug, value in zip(category_slugs(tuple(values)), values.values(), strict=True)
    }


def epoch_line(report: EpochReport[Summary]) -> str:
    """Return an epoch in one line for people, with how long those that are left may take, from a minute on."""
    left = 0.0 if report.stop else (report.epochs - report.epoch) * report.seconds
    return (
        f"Epoch {report.epoch}/{report.epochs}: "
        f"training loss {report.training.loss:.4f}, macro-F1 {report.training.macro_f1:.4f}; "
        f"validation loss {report.validation.loss:.4f}, macro-F1 {report.validation.macro_f1:.4f} "
        f"({report.seconds:.0f} s). {report.early_stopping}"
        + (f" Up to {left / 60:.0f} min left." if left >= 60 else "")
    )

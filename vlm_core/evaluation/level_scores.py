"""Predictions at several label levels, and how good they are with and without the rule that makes them consistent."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from vlm_core.evaluation.bootstrap import Estimate, corrected_estimate, resample_metrics
from vlm_core.evaluation.hierarchy import Hierarchy
from vlm_core.evaluation.summary import summarise

_HIERARCHY: Final = TypeAdapter(Hierarchy)
_ARRAYS: Final = ("own", "chosen", "confidence")
_NO_NAME: Final = re.compile(r"[^A-Za-z0-9_.-]")


@dataclass(frozen=True)
class LevelPredictions:
    """Categories of products at each level of a hierarchy, as indices."""

    hierarchy: Hierarchy
    own: NDArray[np.int64]  # (n, L) the most probable of each level by itself
    chosen: NDArray[np.int64]  # (n, L) by the rule, so that neighbours stand together in training
    confidence: NDArray[np.float32]  # (n, L) of what was chosen
    labels: NDArray[np.int64] | None = None  # (n, L) true categories, -1 where they are not known

    def __post_init__(self) -> None:
        shape = self.own.shape
        others = [self.chosen.shape, self.confidence.shape, *([] if self.labels is None else [self.labels.shape])]
        if len(shape) != 2 or shape[1] != len(self.hierarchy.labels) or set(others) != {shape}:
            raise ValueError("predictions of levels need one row for each product, and one column for each level")

    @classmethod
    def joined(cls, parts: Sequence[LevelPredictions], labels: NDArray[np.int64] | None) -> LevelPredictions | None:
        """Return batches as one, with true categories (n, L) if they are known; None of no batch."""
        if not parts:
            return None
        joined = {name: np.concatenate([getattr(part, name) for part in parts]) for name in _ARRAYS}
        return cls(parts[0].hierarchy, **joined, labels=labels)

    def columns(self) -> dict[str, NDArray[Any]]:
        """Return the columns of a table for the levels above the last: true_, category_ and confidence_<label>."""
        columns: dict[str, NDArray[Any]] = {}
        for level, label in enumerate(self.hierarchy.labels[:-1]):
            names = np.array([*self.hierarchy.categories[level], ""], dtype=object)  # index -1 is the last one
            if self.labels is not None:
                columns[f"true_{label}"] = names[self.labels[:, level]]
            columns[f"category_{label}"] = names[self.chosen[:, level]]
            columns[f"confidence_{label}"] = self.confidence[:, level].astype(np.float64)
        return columns

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Return arrays that `from_arrays` reads."""
        arrays = {f"levels_{name}": getattr(self, name) for name in (*_ARRAYS, "labels")}
        hierarchy = np.frombuffer(_HIERARCHY.dump_json(self.hierarchy), dtype=np.uint8)
        return {"levels_hierarchy": hierarchy, **{name: each for name, each in arrays.items() if each is not None}}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> LevelPredictions | None:
        """Return the predictions that `to_arrays` gave; None where there are none."""
        if "levels_hierarchy" not in arrays:
            return None
        return cls(
            hierarchy=_HIERARCHY.validate_json(arrays["levels_hierarchy"].tobytes()),
            **{name: arrays[f"levels_{name}"] for name in _ARRAYS},
            labels=arrays.get("levels_labels"),
        )


@dataclass(frozen=True)
class LevelScore:
    """Scores of one level, on the products whose category of that level is known."""

    label: str
    categories: int
    products: int
    accuracy: Estimate
    macro_f1: Estimate
    accuracy_without_rule: float
    macro_f1_without_rule: float


@dataclass(frozen=True)
class LevelsScore:
    """Scores of all levels; hierarchical F1 is that of the products whose categories of all levels are known."""

    levels: tuple[LevelScore, ...]
    products: int  # with known categories of all levels
    hierarchical_f1: float
    hierarchical_f1_without_rule: float
    inconsistent: float  # share of all products
    inconsistent_without_rule: float

    def metrics(self, prefix: str) -> dict[str, float]:
        """Return scalars by name, e.g. `subCategory_test_macro_f1` and `test_hierarchical_f1` for `test_`."""
        values = {
            f"{prefix}{name}": getattr(self, name)
            for name in (
                *("hierarchical_f1", "hierarchical_f1_without_rule"),
                *("inconsistent", "inconsistent_without_rule"),
            )
        }
        for name, level in zip(metric_names([level.label for level in self.levels]), self.levels, strict=True):
            for kind, estimate in (("accuracy", level.accuracy), ("macro_f1", level.macro_f1)):
                full = f"{name}_{prefix}{kind}"
                values |= {full: estimate.value, f"{full}_low": estimate.low, f"{full}_high": estimate.high}
            values[f"{name}_{prefix}accuracy_without_rule"] = level.accuracy_without_rule
            values[f"{name}_{prefix}macro_f1_without_rule"] = level.macro_f1_without_rule
        return values

    def summary(self, digits: int) -> str:
        """Return in words what the rule changes over all levels, with so many digits."""
        return (
            f"Hierarchical F1 {self.hierarchical_f1:.{digits}f} ({self.hierarchical_f1_without_rule:.{digits}f} "
            f"without the rule). Inconsistent predictions: {self.inconsistent:.2%} "
            f"({self.inconsistent_without_rule:.2%} without the rule)."
        )


def metric_names(labels: list[str]) -> tuple[str, ...]:
    """Return what each column is called in names of metrics: all but letters, digits, _, - and . become _."""
    names: list[str] = []
    for label in labels:
        name = _NO_NAME.sub("_", label)
        names.append(name if name not in names else f"{name}_{len(names) + 1}")
    return tuple(names)


def score_levels(predictions: LevelPredictions, *, resamples: int, seed: int) -> LevelsScore | None:
    """Return the scores of each level; None where no product's categories of all levels are known."""
    labels, hierarchy = predictions.labels, predictions.hierarchy
    known = np.zeros(0, dtype=bool) if labels is None else (labels >= 0).all(axis=1)
    if labels is None or not known.any():
        return None
    return LevelsScore(
        levels=tuple(_score(predictions, level, resamples, seed) for level in range(len(hierarchy.labels))),
        products=int(known.sum()),
        hierarchical_f1=hierarchy.hierarchical_f1(labels[known], predictions.chosen[known]),
        hierarchical_f1_without_rule=hierarchy.hierarchical_f1(labels[known], predictions.own[known]),
        inconsistent=float(1 - hierarchy.is_consistent(predictions.chosen).mean()),
        inconsistent_without_rule=float(1 - hierarchy.is_consistent(predictions.own).mean()),
    )


def _score(predictions: LevelPredictions, level: int, resamples: int, seed: int) -> LevelScore:
    assert predictions.labels is not None
    names = predictions.hierarchy.categories[level]
    known = predictions.labels[:, level] >= 0
    labels = predictions.labels[known, level]
    chosen, own = (
        summarise(labels, each[known, level], names, loss=0.0) for each in (predictions.chosen, predictions.own)
    )
    shares = chosen.confusion.sum(axis=1) / len(labels)
    resampled = resample_metrics(chosen.confusion, shares, resamples=resamples, seed=seed)
    return LevelScore(
        label=predictions.hierarchy.labels[level],
        categories=len(names),
        products=len(labels),
        accuracy=corrected_estimate(chosen.accuracy, resampled.accuracy),
        macro_f1=corrected_estimate(chosen.macro_f1, resampled.macro_f1),
        accuracy_without_rule=own.accuracy,
        macro_f1_without_rule=own.macro_f1,
    )


def level_columns(labels: Sequence[str]) -> tuple[str, ...]:
    """Return the columns with a product's category of each level above the last one, and with its confidence."""
    return tuple(f"{kind}_{label}" for label in labels[:-1] for kind in ("category", "confidence"))


def level_records(predictions: LevelPredictions) -> list[dict[str, str | float]]:
    """Return the `level_columns` of each product."""
    columns = {name: predictions.columns()[name].tolist() for name in level_columns(predictions.hierarchy.labels)}
    return [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]

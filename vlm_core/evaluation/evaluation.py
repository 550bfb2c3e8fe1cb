"""The evaluation of a model on a labelled split."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import InstanceOf, PlainSerializer, PlainValidator, TypeAdapter, ValidationError

from vlm_core.errors import UserError
from vlm_core.evaluation.bootstrap import (
    LEVEL,
    Estimate,
    ResampledMetrics,
    corrected_estimate,
    estimate,
    resample_metrics,
)
from vlm_core.evaluation.calibration import Calibration, measure_calibration
from vlm_core.evaluation.level_scores import LevelsScore, score_levels
from vlm_core.evaluation.long_tail import TailPart, long_tail_scores
from vlm_core.evaluation.predictions import Predictions
from vlm_core.evaluation.slugs import category_slugs
from vlm_core.evaluation.subgroups import Subgroup, subgroup_table
from vlm_core.evaluation.subsets import SubsetScore, score_subsets
from vlm_core.evaluation.summary import Summary, macro_f1, summarise
from vlm_core.files.atomic import write_atomically

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = 2
Matrix = Annotated[
    NDArray[np.int64],
    PlainValidator(lambda rows: np.asarray(rows, dtype=np.int64)),
    PlainSerializer(lambda matrix: matrix.tolist()),
]


@dataclass(frozen=True)
class CategoryScore:
    """One category's metrics; all are 0, and F1 has no interval, where it has no support."""

    category: str
    support: int  # products that truly belong to it
    precision: float
    recall: float
    f1: Estimate


@dataclass(frozen=True)
class WorstRecall:
    """The category with the lowest recall, of those with support.

    It has no interval: the lowest of several recalls is biased downwards, the more so the closer they are, and its
    bootstrap interval held the truth in 80 to 97 % of simulations only.
    """

    category: str
    recall: float


@dataclass(frozen=True)
class NaturalPrior:
    """Metrics with each category weighted by its share of the catalogue."""

    accuracy: Estimate
    macro_f1: Estimate
    shares: tuple[float, ...]  # (C,) each category's share of the catalogue
    covered: float  # share of the catalogue in categories with support, to which the weights are scaled


@dataclass(frozen=True)
class TextScore:
    """Scores of the categories that the generated texts map to; Unknown Category counts as incorrect."""

    unknown_rate: float
    coverage: float  # 1 - unknown_rate
    accuracy: float
    macro_f1: float


@dataclass(frozen=True)
class Evaluation:
    """Metrics of the products whose true category is known; F1 means are over the categories with support."""

    n: int
    unlabelled: int  # products left out because their true category is unknown
    accuracy: Estimate
    macro_f1: Estimate
    worst_recall: WorstRecall
    natural: NaturalPrior
    per_category: tuple[CategoryScore, ...]  # (C,)
    confusion: Matrix  # (C, C), rows = true category
    calibration: Calibration
    subgroups: tuple[Subgroup, ...]
    values_left_out: dict[str, int]  # attribute -> number of its rarest values that have no subgroup
    text_rule: TextScore | None  # None where the model generates no text
    resamples: int
    seed: int
    predictions: InstanceOf[Predictions]  # of all products, the unlabelled ones too
    long_tail: tuple[TailPart, ...] = ()  # none where all categories are in one part, or in files of earlier versions
    levels: LevelsScore | None = None  # of a model of several labels
    subsets: dict[str, SubsetScore] = field(default_factory=dict)  # test products that are new to the model, by what to

    @property
    def categories(self) -> tuple[str, ...]:
        """Return the categories (C,), in the order of every array."""
        return self.predictions.categories

    @property
    def majority_macro_f1(self) -> float:
        """Return the macro-F1 of predicting the most frequent category throughout: 2p / (1 + p) over C, p its share."""
        supports = self.confusion.sum(axis=1)
        share = float(supports.max() / supports.sum())
        return 2 * share / (1 + share) / int((supports > 0).sum())

    def metrics(self, prefix: str) -> dict[str, float]:
        """Return scalars by name, e.g. `test_macro_f1`, `test_macro_f1_low` and `test_f1_free_items` for `test_`.

        Categories without support are left out.
        """
        values: dict[str, float] = {"products": self.n, "worst_recall": self.worst_recall.recall}
        values["majority_macro_f1"] = self.majority_macro_f1
        for name, metric in (
            ("accuracy", self.accuracy),
            ("macro_f1", self.macro_f1),
            ("natural_accuracy", self.natural.accuracy),
            ("natural_macro_f1", self.natural.macro_f1),
        ):
            values |= {name: metric.value, f"{name}_low": metric.low, f"{name}_high": metric.high}
        values |= {name: getattr(self.calibration, name) for name in ("nll", "brier", "ece")}
        for slug, score in zip(category_slugs(self.categories), self.per_category, strict=True):
            if score.support:
                values |= {
                    f"precision_{slug}": score.precision,
                    f"recall_{slug}": score.recall,
                    f"f1_{slug}": score.f1.value,
                }
        for part in self.long_tail:
            name, metric = f"macro_f1_{part.part}", part.macro_f1
            values |= {name: metric.value, f"{name}_low": metric.low, f"{name}_high": metric.high}
        for name, subset in self.subsets.items():
            values[f"{name}_products"] = subset.products
            for kind, metric in (("accuracy", subset.accuracy), ("macro_f1", subset.macro_f1)):
                full = f"{name}_{kind}"
                values |= {full: metric.value, f"{full}_low": metric.low, f"{full}_high": metric.high}
        if self.text_rule is not None:
            values |= {f"text_{name}": value for name, value in asdict(self.text_rule).items()}
        levels = self.levels.metrics(prefix) if self.levels else {}
        return {f"{prefix}{name}": float(value) for name, value in values.items()} | levels

    def to_dict(self) -> dict[str, Any]:
        """Return all but the predictions, for JSON."""
        content = _adapter().dump_python(self, mode="json", exclude={"predictions"})
        return {"schema": SCHEMA, "interval_level": LEVEL, "categories": list(self.categories), **content}

    def write(self, folder: Path) -> None:
        """Write `predictions.npz` and `evaluation.json` into a folder, each atomically."""
        self.predictions.write(folder / "predictions.npz")
        text = json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False)
        write_atomically(folder / "evaluation.json", lambda file: file.write(text.encode("utf-8", "surrogatepass")))

    @classmethod
    def read(cls, folder: Path) -> Evaluation:
        """Return the evaluation in a folder. Raises UserError when files are missing, damaged or of another schema."""
        path = folder / "evaluation.json"
        try:
            content = json.loads(path.read_bytes().decode("utf-8", "surrogatepass"))
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read as an evaluation ({error}): evaluate the run again.") from error
        if not isinstance(content, dict) or content.get("schema") != SCHEMA:
            raise UserError(f"{path} is not in schema {SCHEMA}: evaluate the run again with this version.")
        predictions = Predictions.read(folder / "predictions.npz")
        try:
            return _adapter().validate_python({**content, "predictions": predictions})
        except ValidationError as error:
            raise UserError(f"{path} is damaged: evaluate the run again.") from error


@cache
def _adapter() -> TypeAdapter[Evaluation]:
    return TypeAdapter(Evaluation)


def evaluate(
    predictions: Predictions,
    attributes: pd.DataFrame,
    prior: NDArray[np.float64],
    *,
    resamples: int,
    seed: int,
    trained: NDArray[np.int64] | None = None,
    subsets: Mapping[str, NDArray[np.bool_]] | None = None,
) -> Evaluation:
    """Evaluate the predictions whose true category is known.

    `attributes` has a row for each prediction and a column for each attribute to report subgroups of; `prior` (C,)
    is each category's share of the catalogue; `trained` (C,) are the products that the model was trained on, for scores
    of frequent and rare categories; `subsets` (n,) mark predictions to score apart as well. Intervals cover 95 %: see
    `vlm_core.evaluation.bootstrap`.
    Raises UserError when no true category is known, ValueError when shapes do not fit.
    """
    if len(attributes) != len(predictions):
        raise ValueError(f"{len(attributes)} rows of attributes do not fit {len(predictions)} predictions")
    known = predictions.labels >= 0
    if not known.any():
        raise UserError("none of the products has one of the model's categories: name the column with `label`.")
    labels, predicted = predictions.labels[known], predictions.predicted[known]
    logs = predictions.log_probabilities[known]
    calibration = measure_calibration(labels, logs)
    summary = summarise(labels, predicted, predictions.categories, calibration.nll)
    support = summary.confusion.sum(axis=1)
    shares, covered = _shares(np.asarray(prior, dtype=np.float64), support)
    resampled = resample_metrics(summary.confusion, shares, resamples=resamples, seed=seed)
    groups, left_out = subgroup_table(labels, predicted, attributes.loc[known], predictions.categories)
    weights = (shares / np.maximum(support, 1))[labels]  # (n,), sum to one
    return Evaluation(
        n=len(labels),
        unlabelled=int(len(predictions) - len(labels)),
        accuracy=corrected_estimate(summary.accuracy, resampled.accuracy),
        macro_f1=corrected_estimate(summary.macro_f1, resampled.macro_f1),
        worst_recall=_worst(summary, support),
        natural=NaturalPrior(
            accuracy=corrected_estimate(_weighted_accuracy(labels, predicted, weights), resampled.natural_accuracy),
            macro_f1=estimate(_weighted_macro_f1(labels, predicted, weights), resampled.natural_macro_f1),
            shares=tuple(np.asarray(prior, dtype=np.float64).tolist()),
            covered=covered,
        ),
        per_category=_category_scores(summary, support, resampled),
        confusion=summary.confusion,
        calibration=calibration,
        subgroups=groups,
        values_left_out=left_out,
        text_rule=_score_texts(labels, predictions.text_categories, known),
        resamples=resamples,
        seed=seed,
        predictions=predictions,
        levels=score_levels(predictions.levels, resamples=resamples, seed=seed) if predictions.levels else None,
        subsets=score_subsets(
            labels,
            predicted,
            predictions.categories,
            {name: rows[known] for name, rows in (subsets or {}).items()},
            resamples=resamples,
            seed=seed,
        ),
        long_tail=() if trained is None else long_tail_scores(trained, summary, resampled),
    )


def _shares(prior: NDArray[np.float64], support: NDArray[np.int64]) -> tuple[NDArray[np.float64], float]:
    """Return shares (C,) that sum to one over the categories with support, and the share of the catalogue in these."""
    if prior.shape != support.shape or (prior < 0).any() or not np.isclose(prior.sum(), 1):
        raise ValueError(f"the prior must be {len(support)} shares that sum to one, not {prior}")
    if (prior[support > 0] == 0).any():
        raise ValueError("a category with products in the split cannot have no share of the catalogue")
    covered = float(prior[support > 0].sum())
    return np.where(support > 0, prior, 0.0) / covered, covered


def _weighted_accuracy(labels: NDArray[np.int64], predicted: NDArray[np.int64], weights: NDArray[np.float64]) -> float:
    from sklearn.metrics import accuracy_score

    return float(accuracy_score(labels, predicted, sample_weight=weights))


def _weighted_macro_f1(labels: NDArray[np.int64], predicted: NDArray[np.int64], weights: NDArray[np.float64]) -> float:
    from sklearn.metrics import f1_score

    present = np.unique(labels)
    return float(f1_score(labels, predicted, labels=present, average="macro", sample_weight=weights, zero_division=0))


def _worst(summary: Summary, support: NDArray[np.int64]) -> WorstRecall:
    recalls = np.where(support > 0, list(summary.recall.values()), np.inf)
    index = int(recalls.argmin())
    return WorstRecall(list(summary.recall)[index], float(recalls[index]))


def _category_scores(
    summary: Summary, support: NDArray[np.int64], resampled: ResampledMetrics
) -> tuple[CategoryScore, ...]:
    return tuple(
        CategoryScore(
            category=category,
            support=int(support[index]),
            precision=summary.precision[category],
            recall=summary.recall[category],
            f1=estimate(f1, resampled.f1[:, index]),
        )
        for index, (category, f1) in enumerate(summary.per_category_f1.items())
    )


def _score_texts(
    labels: NDArray[np.int64], text_categories: NDArray[np.int64] | None, known: NDArray[np.bool_]
) -> TextScore | None:
    if text_categories is None:
        return None
    predicted = text_categories[known]
    unknown = float((predicted < 0).mean())
    accuracy = float((predicted == labels).mean())
    return TextScore(unknown, 1 - unknown, accuracy, macro_f1(labels, predicted))

"""What a model forgets when it learns more: old categories before and after, and the scores of a sequence of steps."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vlm_core.evaluation.paired import PairedTest, paired_test
from vlm_core.evaluation.predictions import Predictions
from vlm_core.evaluation.summary import macro_f1

_IMPOSSIBLE: Final = -30.0  # log-probability of a category that a model does not know: finite, below 1e-13


@dataclass(frozen=True)
class Forgetting:
    """Old categories' scores on their old test products, before and after a model learnt more."""

    products: int
    categories: int
    before: float  # macro-F1 over the old categories
    after: float
    accuracy_before: float
    accuracy_after: float
    test: PairedTest  # of before against after: its difference is what was forgotten

    def metrics(self) -> dict[str, float]:
        """Return scalars by name; `forgetting` is macro-F1 before minus after."""
        difference = self.test.difference
        return {
            "forgetting": difference.value,
            "forgetting_low": difference.low,
            "forgetting_high": difference.high,
            "forgetting_p": self.test.p_bootstrap,
            "forgetting_p_mcnemar": self.test.p_mcnemar,
            "old_macro_f1_before": self.before,
            "old_macro_f1_after": self.after,
            "old_accuracy_before": self.accuracy_before,
            "old_accuracy_after": self.accuracy_after,
            "old_test_products": self.products,
        }


def measure_forgetting(before: Predictions, after: Predictions, *, resamples: int, seed: int) -> Forgetting:
    """Compare the predictions of two models for the same products, of which the second knows more categories.

    Raises UserError when products or their true categories differ, ValueError when the second lacks a category.
    """
    before = widened(before, after.categories)
    test = paired_test(before, after, resamples=resamples, seed=seed)
    scores = [
        (macro_f1(each.labels, each.predicted), (each.predicted == each.labels).mean()) for each in (before, after)
    ]
    return Forgetting(
        products=test.n,
        categories=len(np.unique(before.labels)),
        before=scores[0][0],
        after=scores[1][0],
        accuracy_before=float(scores[0][1]),
        accuracy_after=float(scores[1][1]),
        test=test,
    )


def widened(predictions: Predictions, categories: tuple[str, ...]) -> Predictions:
    """Return the predictions over more categories, of which those the model did not know are all but impossible.

    Raises ValueError unless the first of `categories` are the model's own.
    """
    known = len(predictions.categories)
    if categories[:known] != predictions.categories:
        raise ValueError("the categories that a model knew must come first, in their order")
    unknown = np.full((len(predictions), len(categories) - known), _IMPOSSIBLE, np.float32)
    logs = np.concatenate([predictions.log_probabilities, unknown], axis=1)
    return replace(predictions, categories=categories, log_probabilities=logs, texts=None, text_categories=None)


@dataclass(frozen=True)
class SequenceScores:
    """The scores of a method that learnt one set of categories after another."""

    average_accuracy: float  # mean over steps of the accuracy on all that was learnt so far (Rebuffi et al. 2017)
    final_accuracy: float  # on all steps, after the last
    forgetting: float  # mean of what earlier steps lost from their best (Chaudhry et al. 2018)
    backward_transfer: float  # mean change of earlier steps since they were learnt (Lopez-Paz & Ranzato 2017)
    forward_transfer: float  # mean accuracy on the next step before it is learnt, above that of an untrained model


def score_sequence(accuracies: NDArray[np.float64], untrained: NDArray[np.float64]) -> SequenceScores:
    """Return the scores of accuracies (T, T): in row i those on each step's test products, after step i was learnt.

    `untrained` (T,) are the accuracies of a model that has learnt nothing. Definitions: average incremental accuracy,
    https://arxiv.org/abs/1611.07725; forgetting, https://arxiv.org/abs/1801.10112; both transfers,
    https://arxiv.org/abs/1706.08840. With one step nothing can be forgotten or transferred: 0.
    """
    steps = len(accuracies)
    seen = [accuracies[step, : step + 1].mean() for step in range(steps)]
    last, own = accuracies[-1, :-1], np.diag(accuracies)[:-1]
    best = [accuracies[step : steps - 1, step].max() for step in range(steps - 1)]
    ahead = np.diag(accuracies, k=1) - untrained[1:]
    return SequenceScores(
        average_accuracy=float(np.mean(seen)),
        final_accuracy=float(accuracies[-1].mean()),
        forgetting=_mean(np.array(best) - last),
        backward_transfer=_mean(last - own),
        forward_transfer=_mean(ahead),
    )


def _mean(values: NDArray[np.float64]) -> float:
    return float(values.mean()) if len(values) else 0.0

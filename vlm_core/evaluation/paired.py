"""Tests of two models on the same products: exact McNemar, a paired bootstrap, Holm's correction, agreement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from vlm_core.errors import UserError
from vlm_core.evaluation.bootstrap import Estimate, estimate
from vlm_core.evaluation.paired_bootstrap import PairedPredictions, macro_f1_differences, resample_differences
from vlm_core.evaluation.predictions import Predictions


class Comparison(Protocol):
    """What is known of a against b; `difference` is above zero where a is better."""

    @property
    def difference(self) -> Estimate:
        """Return the score of a minus that of b."""

    def swapped(self) -> Self:
        """Return the same of b against a."""


K = TypeVar("K")
C = TypeVar("C", bound=Comparison)


@dataclass(frozen=True)
class PairedTest:
    """Model a against model b on the same products."""

    n: int
    only_a_correct: int  # products that a alone predicts correctly
    only_b_correct: int
    p_mcnemar: float  # exact, two-sided, of equal accuracies
    p_mcnemar_mid: float  # the same with mid-p
    difference: Estimate  # macro-F1 of a minus that of b, with its percentile interval of 95 %
    p_bootstrap: float  # two-sided, of equal macro-F1
    p_holm: float  # p_bootstrap, corrected over all pairs tested together
    agreement: float  # share of products with the same prediction
    kappa: float  # Cohen's, of the predictions; NaN where chance agreement is complete

    def swapped(self) -> PairedTest:
        """Return the same test of b against a."""
        only_a, only_b = self.only_b_correct, self.only_a_correct
        return replace(self, only_a_correct=only_a, only_b_correct=only_b, difference=-self.difference)


def better_first(a: K, b: K, test: C) -> tuple[K, K, C]:
    """Return the pair, better one first, and the test in that order: what is said of them has one direction."""
    return (b, a, test.swapped()) if test.difference.value < 0 else (a, b, test)


def paired_test(a: Predictions, b: Predictions, *, resamples: int = 2000, seed: int = 0) -> PairedTest:
    """Test two runs on the same labelled products, which are matched by id.

    The tests are those of `exact_mcnemar`, `mid_mcnemar` and
    `vlm_core.evaluation.paired_bootstrap.resample_differences`.
    Raises UserError when products or categories differ.
    """
    from sklearn.metrics import cohen_kappa_score

    labels, first, second = _matched(a, b)
    correct_a, correct_b = first == labels, second == labels
    only_a, only_b = int((correct_a & ~correct_b).sum()), int((~correct_a & correct_b).sum())
    once = np.ones((len(labels), 1), dtype=np.int64)
    paired = PairedPredictions(labels, once, first[:, None], second[:, None], len(a.categories))
    differences = resample_differences(paired, resamples=resamples, seed=seed)
    p_value = bootstrap_p(differences)
    with np.errstate(invalid="ignore", divide="ignore"):
        kappa = float(cohen_kappa_score(first, second, labels=np.arange(len(a.categories))))
    return PairedTest(
        n=len(labels),
        only_a_correct=only_a,
        only_b_correct=only_b,
        p_mcnemar=exact_mcnemar(only_a, only_b),
        p_mcnemar_mid=mid_mcnemar(only_a, only_b),
        difference=estimate(macro_f1_differences(paired)[0], differences),
        p_bootstrap=p_value,
        p_holm=p_value,
        agreement=float((first == second).mean()),
        kappa=kappa,
    )


def paired_tests(
    runs: Sequence[Predictions], *, resamples: int = 2000, seed: int = 0
) -> dict[tuple[int, int], PairedTest]:
    """Test every pair (i, j), i < j, with p-values corrected over all pairs.

    Raises UserError as `paired_test` does.
    """
    tests = {
        (i, j): paired_test(runs[i], runs[j], resamples=resamples, seed=seed)
        for i, j in combinations(range(len(runs)), 2)
    }
    corrected = holm([test.p_bootstrap for test in tests.values()])
    return {pair: replace(test, p_holm=p) for (pair, test), p in zip(tests.items(), corrected, strict=True)}


def exact_mcnemar(only_a_correct: int, only_b_correct: int) -> float:
    """Return the two-sided p-value of equal accuracies, from the products that one model alone predicts correctly.

    McNemar 1947, https://doi.org/10.1007/BF02295996, as the exact binomial test; 1 where there is no such product.
    Where nothing differs it never rejects more than 5 % of the time, and because counts are discrete 2 to 4.4 %.
    """
    from statsmodels.stats.contingency_tables import mcnemar

    if only_a_correct + only_b_correct == 0:
        return 1.0
    return float(mcnemar([[0, only_a_correct], [only_b_correct, 0]], exact=True).pvalue)


def mid_mcnemar(only_a_correct: int, only_b_correct: int) -> float:
    """Return the same with mid-p, which takes off half the probability of the observed counts.

    Where nothing differs it rejects 3.5 to 6.5 % of the time.
    Fagerland, Lydersen & Laake 2013, https://doi.org/10.1186/1471-2288-13-91.
    """
    from scipy.stats import binom

    if only_a_correct + only_b_correct == 0:
        return 1.0
    observed = float(binom.pmf(only_a_correct, only_a_correct + only_b_correct, 0.5))
    return (
        1 - observed / 2
        if only_a_correct == only_b_correct
        else exact_mcnemar(only_a_correct, only_b_correct) - observed
    )


def bootstrap_p(differences: NDArray[np.float64]) -> float:
    """Return the two-sided p-value of a zero difference, from its resamples (R,).

    Twice the smaller share of resamples beyond zero, with one added to either side (Davison & Hinkley 1997, 4.2).
    """
    below, above = int((differences <= 0).sum()), int((differences >= 0).sum())
    return min(1.0, 2 * (min(below, above) + 1) / (len(differences) + 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p-values, corrected for multiple testing (Holm 1979, https://www.jstor.org/stable/4615733)."""
    from statsmodels.stats.multitest import multipletests

    return [float(p) for p in multipletests(p_values, method="holm")[1]] if len(p_values) else []


def match_rows(a: Predictions, b: Predictions) -> NDArray[np.int64]:
    """Return the row (n,) of b for each row of a, matched by product id.

    Raises UserError when products or categories differ.
    """
    if a.categories != b.categories or sorted(a.product_ids) != sorted(b.product_ids):
        raise UserError(
            "the two runs were not tested on the same products and categories: choose runs of one test set."
        )
    order = np.argsort(b.product_ids, kind="stable")
    rows: NDArray[np.int64] = order[np.searchsorted(b.product_ids[order], a.product_ids)]
    if not np.array_equal(a.labels, b.labels[rows]):
        raise UserError("the two runs give the same products other true categories: choose runs of one test set.")
    return rows


def _matched(a: Predictions, b: Predictions) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return the true categories, a's predictions and b's predictions (n,) of the labelled products."""
    rows = match_rows(a, b)
    known = a.labels >= 0
    if not known.any():
        raise UserError("none of the products has a known category: there is nothing to compare.")
    return a.labels[known], a.predicted[known], b.predicted[rows][known]

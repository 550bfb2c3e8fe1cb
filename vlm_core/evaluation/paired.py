"""Tests of two models on the same products: exact McNemar, a paired bootstrap, Holm's correction, agreement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from math import comb, nan
from typing import Final, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from vlm_core.errors import UserError
from vlm_core.evaluation.bootstrap import Estimate, estimate
from vlm_core.evaluation.paired_bootstrap import PairedPredictions, macro_f1_differences, resample_differences
from vlm_core.evaluation.predictions import Predictions

SIGNIFICANT: Final = 0.05


class Comparison(Protocol):
    """What is known of a against b; `difference` is above zero where a is better."""

    @property
    def difference(self) -> Estimate:
        """Return the macro-F1 of a minus that of b."""

    @property
    def only_a_correct(self) -> int:
        """Return how many products a alone predicts correctly."""

    @property
    def only_b_correct(self) -> int:
        """Return how many products b alone predicts correctly."""

    @property
    def p_bootstrap_holm(self) -> float:
        """Return the corrected p-value of equal macro-F1."""

    @property
    def p_mcnemar_holm(self) -> float:
        """Return the corrected p-value of equal accuracies."""

    def swapped(self) -> Self:
        """Return the same of b against a."""


K = TypeVar("K")
C = TypeVar("C", bound=Comparison)
T = TypeVar("T")  # a PairedTest or a SeedComparison
P_VALUES: Final = ("p_bootstrap", "p_mcnemar", "p_mcnemar_mid")


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
    p_bootstrap_holm: float  # p_bootstrap, corrected over both tests of all pairs that are tested together
    p_mcnemar_holm: float
    p_mcnemar_mid_holm: float
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
    labels, first, second = _matched(a, b)
    correct_a, correct_b = first == labels, second == labels
    only_a, only_b = int((correct_a & ~correct_b).sum()), int((~correct_a & correct_b).sum())
    once = np.ones((len(labels), 1), dtype=np.int64)
    paired = PairedPredictions(labels, once, first[:, None], second[:, None], len(a.categories))
    differences = resample_differences(paired, resamples=resamples, seed=seed)
    p_bootstrap, p_exact, p_mid = bootstrap_p(differences), exact_mcnemar(only_a, only_b), mid_mcnemar(only_a, only_b)
    test = PairedTest(
        n=len(labels),
        only_a_correct=only_a,
        only_b_correct=only_b,
        p_mcnemar=p_exact,
        p_mcnemar_mid=p_mid,
        difference=estimate(macro_f1_differences(paired)[0], differences),
        p_bootstrap=p_bootstrap,
        p_bootstrap_holm=p_bootstrap,
        p_mcnemar_holm=p_exact,
        p_mcnemar_mid_holm=p_mid,
        agreement=float((first == second).mean()),
        kappa=cohen_kappa(first, second, len(a.categories)),
    )
    return correct_together([test])[0]


def paired_tests(
    runs: Sequence[Predictions], *, resamples: int = 2000, seed: int = 0
) -> dict[tuple[int, int], PairedTest]:
    """Test every pair (i, j), i < j, with p-values corrected over both tests of all pairs.

    Raises UserError as `paired_test` does.
    """
    tests = {
        (i, j): paired_test(runs[i], runs[j], resamples=resamples, seed=seed)
        for i, j in combinations(range(len(runs)), 2)
    }
    return dict(zip(tests, correct_together(list(tests.values())), strict=True))


def correct_together(tests: Sequence[T]) -> list[T]:
    """Return the tests of several pairs with p-values corrected as one family: of macro-F1 and accuracy, of all pairs.

    Mid-p stands in for McNemar's exact p-value in a family of its own: the two answer one question.
    """
    bootstrap, exact, mid = ([getattr(test, name) for test in tests] for name in P_VALUES)
    with_exact, with_mid = holm([*bootstrap, *exact]), holm([*bootstrap, *mid])
    count = len(tests)
    return [
        replace(  # type: ignore[type-var]
            test,
            p_bootstrap_holm=with_exact[place],
            p_mcnemar_holm=with_exact[count + place],
            p_mcnemar_mid_holm=with_mid[count + place],
        )
        for place, test in enumerate(tests)
    ]


def describe_tests(a: str, b: str, test: Comparison) -> str:
    """Say which model is better in macro-F1 and which in accuracy, by how much, and how sure that is; one sentence."""
    a, b, test = better_first(a, b, test)
    points, low, high = (100 * part for part in (test.difference.value, test.difference.low, test.difference.high))
    interval = f"95\u00a0% interval {low:.1f} to {high:.1f}; {_p_text(test.p_bootstrap_holm)}"
    counts = f"only {a} correct: {test.only_a_correct}, only {b}: {test.only_b_correct}; {_p_text(test.p_mcnemar_holm)}"
    more = a if test.only_a_correct > test.only_b_correct else b
    better, accurate = test.p_bootstrap_holm < SIGNIFICANT, test.p_mcnemar_holm < SIGNIFICANT
    if better:
        start = f"{a} beats {b} by {points:.1f} points of macro-F1 ({interval})"
        if accurate:
            return f"{start}, {'and' if more == a else 'but'} {more} predicts more products correctly ({counts})."
        return f"{start}; their accuracies do not differ significantly ({counts})."
    start = f"{a} and {b} do not differ significantly in macro-F1 ({points:.1f} points, {interval})"
    if accurate:
        return f"{start}, but {more} predicts more products correctly ({counts})."
    return f"{start}, nor in accuracy ({counts})."


def _p_text(p_value: float) -> str:
    return f"corrected p = {p_value:.3f}" if p_value >= 0.001 else "corrected p < 0.001"


def exact_mcnemar(only_a_correct: int, only_b_correct: int) -> float:
    """Return the two-sided p-value of equal accuracies, from the products that one model alone predicts correctly.

    McNemar 1947, https://doi.org/10.1007/BF02295996, as the exact binomial test; 1 where there is no such product.
    Where nothing differs it never rejects more than 5 % of the time, and because counts are discrete 2 to 4.4 %.
    """
    from scipy.special import bdtr  # all of scipy.stats takes seconds to import, and a page waits for it

    if only_a_correct + only_b_correct == 0:
        return 1.0
    fewer = min(only_a_correct, only_b_correct)
    return min(1.0, 2 * float(bdtr(fewer, only_a_correct + only_b_correct, 0.5)))


def mid_mcnemar(only_a_correct: int, only_b_correct: int) -> float:
    """Return the same with mid-p, which takes off half the probability of the observed counts.

    Where nothing differs it rejects 3.5 to 6.5 % of the time.
    Fagerland, Lydersen & Laake 2013, https://doi.org/10.1186/1471-2288-13-91.
    """
    if only_a_correct + only_b_correct == 0:
        return 1.0
    total = only_a_correct + only_b_correct
    observed: float = comb(total, only_a_correct) / 2**total  # of whole numbers, so that nothing overflows
    return (
        1 - observed / 2
        if only_a_correct == only_b_correct
        else exact_mcnemar(only_a_correct, only_b_correct) - observed
    )


def cohen_kappa(first: NDArray[np.int64], second: NDArray[np.int64], count: int) -> float:
    """Return the agreement of two predictions (n,) of `count` categories beyond chance; NaN where chance is complete.

    Cohen 1960, https://doi.org/10.1177/001316446002000104.
    """
    shares = [np.bincount(predicted, minlength=count) / len(predicted) for predicted in (first, second)]
    by_chance = float(shares[0] @ shares[1])
    return nan if by_chance >= 1 else (float((first == second).mean()) - by_chance) / (1 - by_chance)


def bootstrap_p(differences: NDArray[np.float64]) -> float:
    """Return the two-sided p-value of a zero difference, from its resamples (R,).

    Twice the smaller share of resamples beyond zero, with one added to either side (Davison & Hinkley 1997, 4.2).
    """
    below, above = int((differences <= 0).sum()), int((differences >= 0).sum())
    return min(1.0, 2 * (min(below, above) + 1) / (len(differences) + 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p-values, corrected for multiple testing (Holm 1979, https://www.jstor.org/stable/4615733).

    As statsmodels' `multipletests`, which also has Python search all memory for garbage, for a second where much is
    loaded.
    """
    values = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(values)
    corrected = np.empty_like(values)
    corrected[order] = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    return [float(p) for p in np.minimum(corrected, 1)]


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

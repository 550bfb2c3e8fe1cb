"""Whether two models that answered the same products differ: exact McNemar, a paired bootstrap, Holm, agreement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vlm_core.errors import UserError
from vlm_core.evaluation.bootstrap import LEVEL, Estimate
from vlm_core.evaluation.predictions import Predictions

_CELLS_A_PART: Final = 4_000_000  # resamples x outcomes held at once


@dataclass(frozen=True)
class PairedTest:
    """What tells model a from model b, on the products that both answered."""

    n: int
    only_a_right: int
    only_b_right: int
    p_mcnemar: float  # exact, two-sided: of the accuracies being equal
    difference: Estimate  # macro-F1 of a minus that of b, with its percentile interval of 95 %
    p_bootstrap: float  # two-sided, of the macro-F1 being equal
    p_holm: float  # p_bootstrap, corrected for all pairs it was tested with
    agreement: float  # share of products with the same answer
    kappa: float  # Cohen's, of the answers; NaN where chance leaves nothing to agree on


def paired_test(a: Predictions, b: Predictions, *, resamples: int = 2000, seed: int = 0) -> PairedTest:
    """The test of two runs on the same labelled products, which are matched by id.

    McNemar 1947, https://doi.org/10.1007/BF02295996, as the exact binomial test on the products that one alone has
    right. The bootstrap draws products within each true category, both models' answers together, so that what they
    share cancels (Berg-Kirkpatrick et al. 2012, https://aclanthology.org/D12-1091); its p-value is twice the smaller
    share of resamples beyond zero, with one resample added to either side (Davison & Hinkley 1997, 4.2).
    Raises UserError when products or categories differ.
    """
    from sklearn.metrics import cohen_kappa_score
    from statsmodels.stats.contingency_tables import mcnemar

    labels, first, second = _matched(a, b)
    right_a, right_b = first == labels, second == labels
    only_a, only_b = int((right_a & ~right_b).sum()), int((~right_a & right_b).sum())
    drawn = _differences(labels, first, second, len(a.categories), resamples, seed)
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    outcomes = np.stack([labels, first, second])
    value = _weighted_difference(outcomes, np.ones((1, len(labels))), len(a.categories))[0]
    below, above = int((drawn <= 0).sum()), int((drawn >= 0).sum())
    p_value = min(1.0, 2 * (min(below, above) + 1) / (resamples + 1))
    with np.errstate(invalid="ignore", divide="ignore"):
        kappa = float(cohen_kappa_score(first, second, labels=np.arange(len(a.categories))))
    return PairedTest(
        n=len(labels),
        only_a_right=only_a,
        only_b_right=only_b,
        p_mcnemar=float(mcnemar([[0, only_a], [only_b, 0]], exact=True).pvalue) if only_a + only_b else 1.0,
        difference=Estimate(float(value), float(low), float(high)),
        p_bootstrap=p_value,
        p_holm=p_value,
        agreement=float((first == second).mean()),
        kappa=kappa,
    )


def paired_tests(
    runs: Sequence[Predictions], *, resamples: int = 2000, seed: int = 0
) -> dict[tuple[int, int], PairedTest]:
    """The test of every pair (i, j), i < j, with p-values corrected by Holm's method over all pairs.

    Holm 1979, https://www.jstor.org/stable/4615733. Raises UserError as `paired_test` does.
    """
    from statsmodels.stats.multitest import multipletests

    tests = {
        (i, j): paired_test(runs[i], runs[j], resamples=resamples, seed=seed)
        for i, j in combinations(range(len(runs)), 2)
    }
    if not tests:
        return {}
    corrected = multipletests([test.p_bootstrap for test in tests.values()], method="holm")[1]
    return {pair: replace(test, p_holm=float(p)) for (pair, test), p in zip(tests.items(), corrected, strict=True)}


def match_rows(a: Predictions, b: Predictions) -> NDArray[np.int64]:
    """The row (n,) of b for each row of a, by product. Raises UserError when products or categories differ."""
    if a.categories != b.categories or sorted(a.product_ids) != sorted(b.product_ids):
        raise UserError(
            "the two runs were not tested on the same products and categories: choose runs of one test set."
        )
    order = np.argsort(b.product_ids, kind="stable")
    places: NDArray[np.int64] = order[np.searchsorted(b.product_ids[order], a.product_ids)]
    if not np.array_equal(a.labels, b.labels[places]):
        raise UserError("the two runs give the same products other true categories: choose runs of one test set.")
    return places


def _matched(a: Predictions, b: Predictions) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """True categories, a's answers and b's answers (n,) of the labelled products."""
    places = match_rows(a, b)
    known = a.labels >= 0
    if not known.any():
        raise UserError("none of the products has a known category: there is nothing to compare.")
    return a.labels[known], a.predicted[known], b.predicted[places][known]


def _differences(
    labels: NDArray[np.int64], a: NDArray[np.int64], b: NDArray[np.int64], count: int, resamples: int, seed: int
) -> NDArray[np.float64]:
    """Macro-F1 of a minus that of b (R,) in stratified resamples of the products.

    Products of one true category with the same pair of answers are alike: their numbers are multinomial.
    """
    generator = np.random.default_rng(seed)
    outcomes, sizes = np.unique(np.stack([labels, a, b]), axis=1, return_counts=True)  # (3, K), (K,)
    part = max(1, _CELLS_A_PART // outcomes.shape[1])
    parts = []
    for start in range(0, resamples, part):
        size = min(part, resamples - start)
        weights = np.empty((size, outcomes.shape[1]))
        for category in np.unique(outcomes[0]):
            columns = outcomes[0] == category
            n = sizes[columns].sum()
            weights[:, columns] = generator.multinomial(n, sizes[columns] / n, size)
        parts.append(_weighted_difference(outcomes, weights, count))
    return np.concatenate(parts)


def _weighted_difference(outcomes: NDArray[np.int64], weights: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """Macro-F1 of a minus that of b (R,), for weights (R, K) of the outcomes (3, K): true, a's answer, b's answer."""
    labels, a, b = (np.eye(count)[row] for row in outcomes)  # (K, C)
    support = weights @ labels  # (R, C)
    present = np.flatnonzero(labels.any(axis=0))
    scores = []
    for answers in (a, b):
        hits, chosen = weights @ (labels * answers), weights @ answers
        scores.append((2 * hits / np.maximum(support + chosen, 1))[:, present].mean(axis=1))
    return np.asarray(scores[0] - scores[1])

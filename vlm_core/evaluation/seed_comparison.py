"""Tests of two configurations over the same seeds, where a seed determines the split as well."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from math import sqrt
from typing import Final

import numpy as np

from vlm_core.errors import UserError
from vlm_core.evaluation.bootstrap import LEVEL, Estimate, estimate
from vlm_core.evaluation.paired import (
    SIGNIFICANT,
    better_first,
    bootstrap_p,
    correct_together,
    describe_tests,
    exact_mcnemar,
    match_rows,
    mid_mcnemar,
)
from vlm_core.evaluation.paired_bootstrap import PairedPredictions, macro_f1_differences, resample_differences
from vlm_core.evaluation.predictions import Predictions
from vlm_core.evaluation.seeds import DIFFERENCE, over_seeds, pool_products
from vlm_core.progress import track

POWER: Final = 0.8  # with which a detectable difference is detected


@dataclass(frozen=True)
class SeedComparison:
    """Configuration a against configuration b, on the products that both tested in the same seeds.

    The bootstrap and McNemar's test are over products, for these trained models; `over_seeds` is over seeds, and so
    over splits and trainings too.
    """

    seeds: int
    rows: int  # tested in all seeds together
    products: int  # distinct ones among these rows
    only_a_correct: int  # products that a alone predicts correctly
    only_b_correct: int
    p_mcnemar: float  # exact, two-sided, of equal accuracies
    p_mcnemar_mid: float  # the same with mid-p
    p_mcnemar_holm: float  # p_mcnemar, corrected over both tests of all pairs that are tested together
    p_mcnemar_mid_holm: float
    difference: Estimate  # mean over seeds of macro-F1 of a minus that of b, with its bootstrap interval of 95 %
    p_bootstrap: float  # two-sided, of a zero difference
    p_bootstrap_holm: float
    over_seeds: Estimate  # the same mean with its interval over seeds, corrected for all pairs; nan for one seed
    differences: tuple[float, ...]  # (S,) of each seed
    detectable_macro_f1: float  # smallest difference that a two-sided test at 5 % detects with 80 % power
    detectable_accuracy: float

    def swapped(self) -> SeedComparison:
        """Return the same comparison of b against a."""
        return replace(
            self,
            only_a_correct=self.only_b_correct,
            only_b_correct=self.only_a_correct,
            difference=-self.difference,
            over_seeds=-self.over_seeds,
            differences=tuple(-each for each in self.differences),
        )


def compare_seeds(
    a: Sequence[Predictions], b: Sequence[Predictions], *, resamples: int = 2000, seed: int = 0, pairs: int = 1
) -> SeedComparison:
    """Compare two configurations; a[s] and b[s] have the same seed and the same test products.

    The interval over seeds is corrected for the number of `pairs` that are compared together, as Bonferroni's: all of
    them contain their truths at once with 95 % (Dunn 1961, https://doi.org/10.1080/01621459.1961.10482090).

    McNemar's test assumes independent products, so a product that several seeds test counts once, as predicted by
    the first of them. The bootstrap uses all rows (see `resample_differences`). The detectable
    macro-F1 is the bootstrap's standard error times z(0.975) + z(0.8).
    Raises UserError when seeds, products or categories do not match.
    """
    from scipy.stats import norm

    paired = _align(a, b)
    pooled_a, pooled_b = pool_products(a), pool_products(b)
    correct_a, correct_b = pooled_a.predicted == pooled_a.labels, pooled_b.predicted == pooled_b.labels
    only_a, only_b = int((correct_a & ~correct_b).sum()), int((~correct_a & correct_b).sum())
    differences = macro_f1_differences(paired)
    resampled = resample_differences(paired, resamples=resamples, seed=seed)
    p_mcnemar, p_mid, p_bootstrap = exact_mcnemar(only_a, only_b), mid_mcnemar(only_a, only_b), bootstrap_p(resampled)
    return SeedComparison(
        seeds=len(a),
        rows=int(paired.times.sum()),
        products=len(pooled_a),
        only_a_correct=only_a,
        only_b_correct=only_b,
        p_mcnemar=p_mcnemar,
        p_mcnemar_mid=p_mid,
        p_mcnemar_holm=p_mcnemar,
        p_mcnemar_mid_holm=p_mid,
        difference=estimate(differences.mean(), resampled),
        p_bootstrap=p_bootstrap,
        p_bootstrap_holm=p_bootstrap,
        over_seeds=over_seeds(differences.tolist(), DIFFERENCE, intervals=pairs),
        differences=tuple(differences.tolist()),
        detectable_macro_f1=float(resampled.std(ddof=1) * (norm.ppf((1 + LEVEL) / 2) + norm.ppf(POWER))),
        detectable_accuracy=detectable_accuracy(len(pooled_a), only_a + only_b),
    )


def compare_all(
    cells: Mapping[str, Sequence[Predictions]],
    pairs: Sequence[tuple[str, str]] | None = None,
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[tuple[str, str], SeedComparison]:
    """Compare these pairs of configurations, or all of them, in order, corrected for both tests of all pairs.

    Raises UserError as `compare_seeds` does.
    """
    pairs = list(combinations(cells, 2)) if pairs is None else pairs
    tests = [
        compare_seeds(cells[a], cells[b], resamples=resamples, seed=seed, pairs=len(pairs))
        for a, b in track(pairs, "testing pairs", len(pairs))
    ]
    return dict(zip(pairs, correct_together(tests), strict=True))


def detectable_accuracy(products: int, discordant: int) -> float:
    """Return the smallest difference of two accuracies that McNemar's test at 5 % detects with 80 % power.

    `discordant` of the `products` (both counts) are predicted correctly by one model alone. A difference d needs
    n = (z(0.975) √ψ + z(0.8) √(ψ - d²))² / d² products, ψ being the discordant share (Connor 1987,
    https://doi.org/10.2307/2531961), which is solved for d. As d cannot exceed ψ, a share too small for any
    difference to be detected is replaced by the smallest sufficient one: then all discordant products favour one
    model. With three products or fewer nothing can be detected: nan.
    """
    from scipy.stats import norm

    level, power = float(norm.ppf((1 + LEVEL) / 2)), float(norm.ppf(POWER))
    if products <= level**2:
        return float("nan")
    # With ψ = d Connor's equation is quadratic in √(1 - d).
    root = sqrt((level * power) ** 2 + (products + power**2) * (products - level**2)) - level * power
    least = 1 - (root / (products + power**2)) ** 2
    share = max(discordant / products, least)
    return sqrt(share) * (level * sqrt(products) + power * sqrt(products + power**2 - level**2)) / (products + power**2)


def describe_comparison(a: str, b: str, comparison: SeedComparison) -> str:
    """Describe which configuration beats which, by how much, how certainly, and what was detectable."""
    a, b, comparison = better_first(a, b, comparison)
    detectable = f"The smallest detectable difference is {100 * comparison.detectable_macro_f1:.1f} points of macro-F1."
    differ = min(comparison.p_bootstrap_holm, comparison.p_mcnemar_holm) < SIGNIFICANT
    return f"{describe_tests(a, b, comparison)} {detectable}{_caveat(comparison) if differ else ''}"


def _caveat(comparison: SeedComparison) -> str:
    """Return why the difference may hold for these trained models only; empty if it does not."""
    if comparison.seeds == 1:
        return " Each was trained once; another seed may give another result."
    over = comparison.over_seeds
    uncertain = "The difference of macro-F1 varies so much between seeds that it may be zero with other seeds."
    return f" {uncertain}" if over.low <= 0 <= over.high else ""


def _align(a: Sequence[Predictions], b: Sequence[Predictions]) -> PairedPredictions:
    """Return both configurations' predictions for the labelled products of all seeds, sorted by id."""
    if len(a) != len(b) or not len(a):
        raise UserError(
            f"configurations with {len(a)} and {len(b)} seeds cannot be paired: run both with the same seeds."
        )
    products = pool_products(a)
    times, first, second = (np.zeros((len(products), len(a)), dtype=np.int64) for _ in range(3))
    for column, (one, other) in enumerate(zip(a, b, strict=True)):
        matching = match_rows(one, other)
        known = one.labels >= 0
        rows = np.searchsorted(products.product_ids, one.product_ids[known])
        np.add.at(times[:, column], rows, 1)
        first[rows, column] = one.predicted[known]
        second[rows, column] = other.predicted[matching][known]
    return PairedPredictions(products.labels, times, first, second, len(products.categories))

"""Whether two configurations differ that were run with the same seeds, where a seed also draws the split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from math import sqrt
from typing import Final

import numpy as np

from vlm_core.errors import UserError
from vlm_core.evaluation.bootstrap import LEVEL, Estimate, estimate
from vlm_core.evaluation.paired import bootstrap_p, exact_mcnemar, holm, match_rows, mid_mcnemar
from vlm_core.evaluation.paired_bootstrap import PairedPredictions, macro_f1_differences, resample_differences
from vlm_core.evaluation.predictions import Predictions
from vlm_core.evaluation.seeds import over_seeds, pool_products

POWER: Final = 0.8  # with which a difference that is called detectable is found


@dataclass(frozen=True)
class SeedComparison:
    """What tells configuration a from configuration b, on what both answered in the same seeds.

    The bootstrap and McNemar's test are of other products answered by these trained models; `over_seeds` is of other
    seeds, hence of other splits and trainings too.
    """

    seeds: int
    rows: int  # tested in all seeds together
    products: int  # that these rows show
    only_a_right: int  # products
    only_b_right: int
    p_mcnemar: float  # exact, two-sided: of the accuracies being equal
    p_mcnemar_mid: float  # the same with mid-p
    p_mcnemar_holm: float  # p_mcnemar, corrected for all pairs it was tested with
    p_mcnemar_mid_holm: float
    difference: Estimate  # mean over seeds of macro-F1 of a minus that of b, with its bootstrap interval of 95 %
    p_bootstrap: float  # two-sided, of the difference being zero
    p_bootstrap_holm: float
    over_seeds: Estimate  # the same mean with Student's t interval; nan of one seed
    differences: tuple[float, ...]  # (S,) of each seed
    detectable_macro_f1: float  # least difference that a two-sided test at 5 % finds with 80 % power at this n
    detectable_accuracy: float


def compare_seeds(
    a: Sequence[Predictions], b: Sequence[Predictions], *, resamples: int = 2000, seed: int = 0
) -> SeedComparison:
    """The comparison of two configurations; a[s] and b[s] are of the same seed and the same test products.

    McNemar's test takes its products for independent, which those that several seeds test are not: each counts once,
    as the first seed that tested it answered. The bootstrap uses all rows (see `resample_differences`). The detectable
    macro-F1 is the bootstrap's standard error times z(0.975) + z(0.8).
    Raises UserError when seeds, products or categories do not match.
    """
    from scipy.stats import norm

    answers = _align(a, b)
    pooled_a, pooled_b = pool_products(a), pool_products(b)
    right_a, right_b = pooled_a.predicted == pooled_a.labels, pooled_b.predicted == pooled_b.labels
    only_a, only_b = int((right_a & ~right_b).sum()), int((~right_a & right_b).sum())
    differences = macro_f1_differences(answers)
    drawn = resample_differences(answers, resamples=resamples, seed=seed)
    p_mcnemar, p_mid, p_bootstrap = exact_mcnemar(only_a, only_b), mid_mcnemar(only_a, only_b), bootstrap_p(drawn)
    return SeedComparison(
        seeds=len(a),
        rows=int(answers.times.sum()),
        products=len(pooled_a),
        only_a_right=only_a,
        only_b_right=only_b,
        p_mcnemar=p_mcnemar,
        p_mcnemar_mid=p_mid,
        p_mcnemar_holm=p_mcnemar,
        p_mcnemar_mid_holm=p_mid,
        difference=estimate(differences.mean(), drawn),
        p_bootstrap=p_bootstrap,
        p_bootstrap_holm=p_bootstrap,
        over_seeds=over_seeds(differences.tolist()),
        differences=tuple(differences.tolist()),
        detectable_macro_f1=float(drawn.std(ddof=1) * (norm.ppf((1 + LEVEL) / 2) + norm.ppf(POWER))),
        detectable_accuracy=detectable_accuracy(len(pooled_a), only_a + only_b),
    )


def compare_all(
    cells: Mapping[str, Sequence[Predictions]], *, resamples: int = 2000, seed: int = 0
) -> dict[tuple[str, str], SeedComparison]:
    """The comparison of every pair of configurations, in their order, with p-values corrected over all pairs.

    Raises UserError as `compare_seeds` does.
    """
    found = {
        (a, b): compare_seeds(cells[a], cells[b], resamples=resamples, seed=seed) for a, b in combinations(cells, 2)
    }
    tests = list(found.values())
    exact, mid, drawn = (
        holm([getattr(each, name) for each in tests]) for name in ("p_mcnemar", "p_mcnemar_mid", "p_bootstrap")
    )
    return {
        pair: replace(test, p_mcnemar_holm=exact[i], p_mcnemar_mid_holm=mid[i], p_bootstrap_holm=drawn[i])
        for i, (pair, test) in enumerate(found.items())
    }


def detectable_accuracy(products: int, discordant: int) -> float:
    """The least difference of two accuracies that McNemar's test at 5 % finds with 80 % power.

    `discordant` of the `products` (both counts) are right for one model alone. A difference d needs
    n = (z(0.975) √ψ + z(0.8) √(ψ - d²))² / d² products, ψ being the discordant share (Connor 1987,
    https://doi.org/10.2307/2531961), which is solved for d. As d cannot exceed ψ, a share too small for any difference
    to be found is replaced by the least that will do: then all discordant products speak for one model. Nothing can be
    found with three products or fewer: nan.
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
    """One or two sentences: who beats whom, by how much, how sure that is, and what would have been found."""
    value, low, high = (100 * part for part in (comparison.difference.value, *_ends(comparison.difference)))
    if value < 0:
        a, b, value, low, high = b, a, -value, -high, -low
    p = comparison.p_bootstrap_holm
    sure = f"95 % interval {low:.1f} to {high:.1f}; {f'p = {p:.3f}' if p >= 0.001 else 'p < 0.001'} after Holm"
    detectable = f"{100 * comparison.detectable_macro_f1:.1f} points were detectable."
    if p >= 1 - LEVEL:
        return f"No difference between {a} and {b} was found ({value:.1f} points of macro-F1, {sure}); {detectable}"
    return f"{a} beats {b} by {value:.1f} points of macro-F1 ({sure}); {detectable}{_reservation(comparison)}"


def _reservation(comparison: SeedComparison) -> str:
    """What keeps a difference between trained models from being one between configurations; empty if nothing."""
    if comparison.seeds == 1:
        return " It is of one training each: another seed may differ."
    low, high = _ends(comparison.over_seeds)
    return " Seeds differ more than that: over other seeds it may be zero." if low <= 0 <= high else ""


def _ends(figure: Estimate) -> tuple[float, float]:
    return figure.low, figure.high


def _align(a: Sequence[Predictions], b: Sequence[Predictions]) -> PairedPredictions:
    """Both configurations' answers for the labelled products of all seeds, sorted by id."""
    if len(a) != len(b) or not len(a):
        raise UserError(
            f"configurations of {len(a)} and {len(b)} seeds cannot be paired: run both with the same seeds."
        )
    products = pool_products(a)
    times, first, second = (np.zeros((len(products), len(a)), dtype=np.int64) for _ in range(3))
    for column, (one, other) in enumerate(zip(a, b, strict=True)):
        places = match_rows(one, other)
        known = one.labels >= 0
        rows = np.searchsorted(products.product_ids, one.product_ids[known])
        np.add.at(times[:, column], rows, 1)
        first[rows, column] = one.predicted[known]
        second[rows, column] = other.predicted[places][known]
    return PairedPredictions(products.labels, times, first, second, len(products.categories))

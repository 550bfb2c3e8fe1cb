"""Scores of frequent and rare categories apart: a mean over all of them hides what the rare ones lose."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vlm_core.evaluation.bootstrap import Estimate, ResampledMetrics, corrected_estimate
from vlm_core.evaluation.summary import Summary

# Training products of a category in each part, as in Liu et al. 2019 (arXiv 1904.05160): many, medium and few shots.
FREQUENT_ABOVE: Final = 100
RARE_BELOW: Final = 20
RANGES: Final = {
    "frequent": f"more than {FREQUENT_ABOVE}",
    "middle": f"{RARE_BELOW} to {FREQUENT_ABOVE}",
    "rare": f"fewer than {RARE_BELOW}",
}


@dataclass(frozen=True)
class TailPart:
    """The categories with many training products, some, or few, and how well they are predicted."""

    part: str  # a key of RANGES
    categories: int  # with test products
    products: int  # test products
    macro_f1: Estimate


def long_tail_scores(trained: NDArray[np.int64], summary: Summary, resampled: ResampledMetrics) -> tuple[TailPart, ...]:
    """Return macro-F1 of frequent, middle and rare categories, by their training products (C,).

    Empty if one part has all.
    """
    support = summary.confusion.sum(axis=1)
    f1 = np.array(list(summary.per_category_f1.values()))
    members = {
        "frequent": trained > FREQUENT_ABOVE,
        "middle": (trained >= RARE_BELOW) & (trained <= FREQUENT_ABOVE),
        "rare": trained < RARE_BELOW,
    }
    tested = {part: chosen & (support > 0) for part, chosen in members.items()}
    parts = tuple(
        TailPart(part, int(chosen.sum()), int(support[chosen].sum()), _macro_f1(f1, chosen, resampled))
        for part, chosen in tested.items()
        if chosen.any()
    )
    return parts if len(parts) > 1 else ()


def _macro_f1(f1: NDArray[np.float64], chosen: NDArray[np.bool_], resampled: ResampledMetrics) -> Estimate:
    samples = resampled.f1[:, chosen].mean(axis=1) + resampled.f1_shift[chosen].mean()
    return corrected_estimate(float(f1[chosen].mean()), np.clip(samples, 0, 1))

"""Scores by subgroup: by gender, usage, season or any other attribute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vlm_core.evaluation.bootstrap import LEVEL, Estimate
from vlm_core.evaluation.summary import macro_f1

THIN = 20  # categories with fewer products in a subgroup are marked
MOST_VALUES = 40  # subgroups reported per attribute, the largest first


@dataclass(frozen=True)
class Subgroup:
    """The products with one value of one attribute."""

    attribute: str
    value: str  # "" where the catalogue gives none
    n: int
    accuracy: Estimate  # with Wilson's interval
    macro_f1: float  # over the categories present
    categories_present: int
    thin_categories: tuple[str, ...]  # present with n < 20: their F1, and so the macro-F1, is unreliable


def subgroup_table(
    labels: NDArray[np.int64], predicted: NDArray[np.int64], attributes: pd.DataFrame, categories: tuple[str, ...]
) -> tuple[tuple[Subgroup, ...], dict[str, int]]:
    """Return the subgroups of true and predicted categories (n,), the largest first within each column of `attributes`.

    Each attribute has at most 40; the dictionary has the number of values left out, for attributes with more.
    """
    groups: list[Subgroup] = []
    left_out: dict[str, int] = {}
    for attribute in attributes.columns:
        column = attributes[attribute]
        values = column.astype(object).where(column.notna(), "").astype(str).to_numpy(str)
        distinct, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
        order = np.lexsort((distinct, -counts))
        if len(order) > MOST_VALUES:
            left_out[str(attribute)] = len(order) - MOST_VALUES
        for index in order[:MOST_VALUES]:
            rows = inverse == index
            value = str(distinct[index])
            groups.append(_subgroup(str(attribute), value, labels[rows], predicted[rows], categories))
    return tuple(groups), left_out


def _subgroup(
    attribute: str, value: str, labels: NDArray[np.int64], predicted: NDArray[np.int64], categories: tuple[str, ...]
) -> Subgroup:
    present, counts = np.unique(labels, return_counts=True)
    return Subgroup(
        attribute=attribute,
        value=value,
        n=len(labels),
        accuracy=wilson_interval(int((labels == predicted).sum()), len(labels)),
        macro_f1=macro_f1(labels, predicted),
        categories_present=len(present),
        thin_categories=tuple(categories[index] for index in present[counts < THIN]),
    )


def well_tested(supports: Sequence[Mapping[str, int]]) -> frozenset[str]:
    """Return the categories with at least 20 test products in each of `supports`; all where fewer than two have."""
    names = frozenset().union(*supports)
    enough = frozenset(name for name in names if all(support.get(name, 0) >= THIN for support in supports))
    return enough if len(enough) > 1 else names


def wilson_interval(correct: int, n: int) -> Estimate:
    """Return the share `correct / n` with Wilson's 95 % interval, which holds for small n and shares near 1."""
    from scipy.stats import binomtest

    interval = binomtest(correct, n).proportion_ci(LEVEL, method="wilson")
    return Estimate(correct / n, float(interval.low), float(interval.high))

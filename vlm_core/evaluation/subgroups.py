"""How a model does on each kind of product: by gender, usage, season or any other attribute."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vlm_core.evaluation.bootstrap import LEVEL, Estimate
from vlm_core.evaluation.summary import macro_f1

THIN = 20  # a category with fewer products than this in a subgroup is marked
MOST_VALUES = 40  # an attribute's largest subgroups that are reported


@dataclass(frozen=True)
class Subgroup:
    """The products with one value of one attribute."""

    attribute: str
    value: str  # "" where the catalogue gives none
    n: int
    accuracy: Estimate  # with Wilson's interval
    macro_f1: float  # over the categories present
    categories_present: int
    thin_categories: tuple[str, ...]  # present with n < 20: their F1, and so the macro-F1, is shaky


def subgroup_table(
    labels: NDArray[np.int64], predicted: NDArray[np.int64], attributes: pd.DataFrame, categories: tuple[str, ...]
) -> tuple[tuple[Subgroup, ...], dict[str, int]]:
    """The subgroups of true and predicted categories (n,), largest first within each attribute (n rows, one a column).

    At most 40 values an attribute; the dictionary says how many smaller ones were left out, for attributes with such.
    """
    groups: list[Subgroup] = []
    left_out: dict[str, int] = {}
    for attribute in attributes.columns:
        column = attributes[attribute]
        values = column.astype(object).where(column.notna(), "").astype(str).to_numpy(str)
        distinct, places, counts = np.unique(values, return_inverse=True, return_counts=True)
        order = np.lexsort((distinct, -counts))
        if len(order) > MOST_VALUES:
            left_out[str(attribute)] = len(order) - MOST_VALUES
        for index in order[:MOST_VALUES]:
            rows = places == index
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


def wilson_interval(right: int, n: int) -> Estimate:
    """The share `right / n` with Wilson's interval of 95 %, which is sound for few products and shares near 1."""
    from scipy.stats import binomtest

    interval = binomtest(right, n).proportion_ci(LEVEL, method="wilson")
    return Estimate(right / n, float(interval.low), float(interval.high))

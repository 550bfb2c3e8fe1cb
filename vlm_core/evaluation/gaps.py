"""Subgroup gaps: how far accuracy differs between the values of an attribute."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vlm_core.errors import UserError
from vlm_core.evaluation.bootstrap import LEVEL, PRIOR_PRODUCTS, Estimate
from vlm_core.evaluation.paired import holm
from vlm_core.evaluation.predictions import Predictions
from vlm_core.evaluation.seeds import pool_products
from vlm_core.evaluation.subgroups import THIN, wilson_interval
from vlm_core.evaluation.summary import macro_f1


@dataclass(frozen=True)
class ServedValue:
    """The products with one value of an attribute."""

    value: str  # "" where the catalogue gives none
    n: int
    accuracy: Estimate  # with Wilson's interval
    macro_f1: float  # over the categories present
    thin: bool  # fewer than 20 products: left out of the gap


@dataclass(frozen=True)
class Gap:
    """The gap in accuracy between an attribute's best and worst value, of those that are known and not thin."""

    attribute: str
    values: tuple[ServedValue, ...]  # largest first
    best: str  # value; "" where fewer than two values count
    worst: str
    accuracy_gap: Estimate  # nan where fewer than two values count
    p_value: float  # of equal accuracy for all values; nan where fewer than two count
    p_holm: float  # p_value, corrected for all attributes
    p_within_categories: float  # of equal accuracy within each true category


def measure_gaps(
    seeds: Sequence[Predictions], attributes: pd.DataFrame, *, resamples: int = 2000, seed: int = 0
) -> tuple[Gap, ...]:
    """Return the gap of each attribute, a column of a table indexed by product id.

    Metrics are of the distinct labelled products of all seeds, each as predicted by the first seed that tested it,
    computed by fairlearn's MetricFrame (Bird et al. 2020, https://www.microsoft.com/en-us/research/?p=661443).
    Raises UserError when a tested product is not in the table.
    """
    pooled = pool_products(seeds)
    if not attributes.index.is_unique or not pd.Index(pooled.product_ids).isin(attributes.index).all():
        raise UserError("the table of attributes does not hold each tested product once: use the runs' own catalogue.")
    table = attributes.reindex(pooled.product_ids)
    gaps = [
        _measure(str(name), table[name].fillna("").astype(str).to_numpy(str), pooled, resamples, seed)
        for name in table.columns
    ]
    tested = [index for index, gap in enumerate(gaps) if gap.best]
    for index, p in zip(tested, holm([gaps[index].p_value for index in tested]), strict=True):
        gaps[index] = replace(gaps[index], p_holm=p)
    return tuple(gaps)


def _measure(attribute: str, values: NDArray[np.str_], pooled: Predictions, resamples: int, seed: int) -> Gap:
    from fairlearn.metrics import MetricFrame, count
    from sklearn.metrics import accuracy_score

    labels, correct = pooled.labels, pooled.predicted == pooled.labels
    metrics = {"n": count, "accuracy": accuracy_score, "macro_f1": macro_f1}
    frame = MetricFrame(
        metrics=metrics, y_true=labels, y_pred=pooled.predicted, sensitive_features=pd.Series(values, name=attribute)
    )
    by_value = frame.by_group.sort_values("n", ascending=False, kind="stable")
    served = tuple(
        ServedValue(
            value=str(value),
            n=int(row["n"]),
            accuracy=wilson_interval(round(row["accuracy"] * row["n"]), int(row["n"])),
            macro_f1=float(row["macro_f1"]),
            thin=bool(row["n"] < THIN),
        )
        for value, row in by_value.iterrows()
    )
    compared = [each for each in served if each.value and not each.thin]
    if len(compared) < 2:
        nan = float("nan")
        return Gap(attribute, served, "", "", Estimate(nan, nan, nan), nan, nan, nan)
    names = [each.value for each in compared]
    rows = np.isin(values, names)
    indices = np.searchsorted(np.sort(names), values[rows])  # (m,)
    p_value = permutation_p(indices, correct[rows], np.zeros_like(indices), resamples=resamples, seed=seed)
    return Gap(
        attribute=attribute,
        values=served,
        best=max(compared, key=lambda each: each.accuracy.value).value,
        worst=min(compared, key=lambda each: each.accuracy.value).value,
        accuracy_gap=_gap(np.array([[each.accuracy.value, each.n] for each in compared]), resamples, seed),
        p_value=p_value,
        p_holm=p_value,
        p_within_categories=permutation_p(indices, correct[rows], labels[rows], resamples=resamples, seed=seed),
    )


def _gap(accuracies: NDArray[np.float64], resamples: int, seed: int) -> Estimate:
    """Return the range of accuracies of values (V, 2: accuracy and n), with an interval of 95 % or slightly more.

    An interval from resampling the gap itself would never reach 0, because chance alone makes a gap. Instead products
    are resampled within each value, and the 95 % quantile of the largest error of any difference between two values
    bounds the gap's own error (Tukey's method, with bootstrapped differences). One product is added to each value as
    in `vlm_core.evaluation.bootstrap.resample_metrics`.
    """
    accuracy, n = accuracies.T
    chances = (accuracy * n + PRIOR_PRODUCTS / 2) / (n + PRIOR_PRODUCTS)
    sampled = np.random.default_rng(seed).binomial(n.astype(np.int64), chances, (resamples, len(n))) / n
    errors = sampled - chances  # (R, V); the largest difference of two of them is their range
    reach = float(np.quantile(np.ptp(errors, axis=1), LEVEL))
    value = float(np.ptp(accuracy))
    return Estimate(value, max(0.0, value - reach), min(1.0, value + reach))


def permutation_p(
    values: NDArray[np.int64], correct: NDArray[np.bool_], strata: NDArray[np.int64], *, resamples: int, seed: int
) -> float:
    """Return the permutation p-value of correctness (m,) being independent of the value (m,) within strata (m,).

    The statistic is the sum over values of (correct - expected)² / variance, which is that of the chi-squared test
    where there is one stratum. Within a stratum every assignment of the correct predictions to its products is equally
    likely, so their counts by value are multivariate hypergeometric. One resample is added (Phipson & Smyth 2010,
    https://doi.org/10.2202/1544-6115.1585).
    """
    generator = np.random.default_rng(seed)
    observed = np.bincount(values[correct], minlength=values.max() + 1)
    sampled = np.zeros((resamples, len(observed)))
    expected, variance = np.zeros(len(observed)), np.zeros(len(observed))
    for stratum in np.unique(strata):
        rows = strata == stratum
        sizes, hits = np.bincount(values[rows], minlength=len(observed)), int(correct[rows].sum())
        sampled += generator.multivariate_hypergeometric(sizes, hits, resamples)
        share = hits / rows.sum()
        expected += sizes * share
        variance += sizes * share * (1 - share)
    varied = variance > 0
    statistics = [
        (((counts - expected)[..., varied] ** 2) / variance[varied]).sum(axis=-1) for counts in (observed, sampled)
    ]
    return float((1 + (statistics[1] >= statistics[0] * (1 - 1e-9)).sum()) / (resamples + 1))

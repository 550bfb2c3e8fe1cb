"""Several seeds of one configuration: means with intervals over seeds, and the products they tested together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from vlm_core.errors import UserError
from vlm_core.evaluation.bootstrap import LEVEL, Estimate
from vlm_core.evaluation.predictions import Predictions


def over_seeds(values: Sequence[float]) -> Estimate:
    """Return the mean over seeds (S,) with Student's 95 % t interval, which is nan for one seed.

    The interval is of the mean over all possible seeds, whose values it assumes to be normal and independent
    (Student 1908, https://doi.org/10.1093/biomet/6.1.1). Raises ValueError when there is no seed.
    """
    from scipy.stats import sem, t

    if not len(values):
        raise ValueError("a mean needs at least one seed")
    mean = float(np.mean(values))
    if len(values) == 1:
        return Estimate(mean, float("nan"), float("nan"))
    reach = float(t.ppf((1 + LEVEL) / 2, len(values) - 1) * sem(values))
    return Estimate(mean, mean - reach, mean + reach)


def pool_products(seeds: Sequence[Predictions]) -> Predictions:
    """Return the labelled products that any seed tested, each once, as predicted by the first of them; sorted by id.

    A product that several seeds tested is one observation and not several. Generated texts are dropped.
    Raises UserError when categories or a product's true category differ between seeds, or nothing is labelled.
    """
    seeds = [replace(each, texts=None, text_categories=None) for each in seeds]
    if len({each.categories for each in seeds}) != 1:
        raise UserError("the seeds do not have the same categories: choose runs of one configuration.")
    ids = np.concatenate([each.product_ids for each in seeds])
    labels = np.concatenate([each.labels for each in seeds])
    logs = np.concatenate([each.log_probabilities for each in seeds])
    ids, labels, logs = ids[labels >= 0], labels[labels >= 0], logs[labels >= 0]
    if not len(ids):
        raise UserError("none of the products has a known category: there is nothing to pool.")
    products, first, inverse = np.unique(ids, return_index=True, return_inverse=True)
    if not np.array_equal(labels, labels[first][inverse]):
        raise UserError("the seeds give the same products other true categories: choose runs of one catalogue.")
    return Predictions(products, labels[first], logs[first], seeds[0].categories)

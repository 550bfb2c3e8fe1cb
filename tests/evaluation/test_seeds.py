"""Means over seeds against statsmodels, and products of several seeds counted once."""

import math

import numpy as np
import pytest
from statsmodels.stats.weightstats import DescrStatsW

from tests.evaluation.made_predictions import sure
from vlm_core.errors import UserError
from vlm_core.evaluation.predictions import Predictions
from vlm_core.evaluation.seeds import over_seeds, pool_products


def _predictions(ids, labels, answers, names=("a", "b", "c")):
    return Predictions(np.array(ids), np.array(labels), sure(np.array(answers), len(names)), names)


def test_the_interval_is_students() -> None:
    values = [0.81, 0.79, 0.84, 0.80, 0.83]
    found = over_seeds(values)
    assert (found.low, found.high) == pytest.approx(DescrStatsW(values).tconfint_mean(0.05))
    assert found.value == pytest.approx(0.814)
    # by hand: mean 2, deviation 1, t(0.975; 2) = 4.303
    assert over_seeds([1, 2, 3]).high == pytest.approx(2 + 4.303 / math.sqrt(3), abs=1e-3)


def test_one_seed_has_no_interval_and_equal_seeds_a_point() -> None:
    one = over_seeds([0.5])
    assert one.value == 0.5 and math.isnan(one.low) and math.isnan(one.high)
    same = over_seeds([0.5, 0.5])
    assert (same.value, same.low, same.high) == (0.5, 0.5, 0.5)
    with pytest.raises(ValueError, match="one seed"):
        over_seeds([])


def test_a_product_counts_once_as_the_first_seed_that_tested_it_answered() -> None:
    first = _predictions(["z", "b", "u"], [0, 1, -1], [0, 2, 1])
    second = _predictions(["b", "a", "z"], [1, 2, 0], [1, 2, 1])
    pooled = pool_products([first, second])
    assert pooled.product_ids.tolist() == ["a", "b", "z"]
    assert pooled.labels.tolist() == [2, 1, 0]
    assert pooled.predicted.tolist() == [2, 2, 0]


def test_seeds_that_do_not_fit_are_refused() -> None:
    one = _predictions(["x"], [0], [0])
    for other, said in (
        (_predictions(["x"], [1], [0]), "other true categories"),
        (_predictions(["y"], [0], [0], ("a", "b")), "same categories"),
    ):
        with pytest.raises(UserError, match=said):
            pool_products([one, other])
    with pytest.raises(UserError, match="known category"):
        pool_products([_predictions(["x"], [-1], [0])])

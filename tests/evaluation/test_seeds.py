"""Means over seeds against statsmodels, and products of several seeds counted once."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from statsmodels.stats.weightstats import DescrStatsW

from tests.evaluation.made_predictions import sure
from vlm_core.errors import UserError
from vlm_core.evaluation.bootstrap import Estimate
from vlm_core.evaluation.predictions import Predictions
from vlm_core.evaluation.seeds import (
    ANY,
    DIFFERENCE,
    DROP,
    POSITIVE,
    SHARE,
    few_seeds,
    over_seeds,
    pool_products,
    within,
)


def _predictions(ids, labels, answers, names=("a", "b", "c")):
    return Predictions(np.array(ids), np.array(labels), sure(np.array(answers), len(names)), names)


def test_the_interval_is_students() -> None:
    values = [0.81, 0.79, 0.84, 0.80, 0.83]
    found = over_seeds(values)
    assert (found.low, found.high) == pytest.approx(DescrStatsW(values).tconfint_mean(0.05))
    assert found.value == pytest.approx(0.814)
    # by hand: mean 2, deviation 1, t(0.975; 2) = 4.303
    assert over_seeds([1, 2, 3]).high == pytest.approx(2 + 4.303 / math.sqrt(3), abs=1e-3)


def test_several_intervals_contain_their_truths_together() -> None:
    values = [0.81, 0.79, 0.84, 0.80, 0.83]
    found = over_seeds(values, intervals=3)
    assert (found.low, found.high) == pytest.approx(DescrStatsW(values).tconfint_mean(0.05 / 3))


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


@given(
    bounds=st.sampled_from([SHARE, DIFFERENCE, POSITIVE, DROP]),
    shares=st.lists(st.floats(0, 1), min_size=1, max_size=6),
)
def test_no_interval_ends_beyond_what_the_metric_can_be(bounds, shares):
    low, high = (max(bounds[0], -3), min(bounds[1], 3))
    found = over_seeds([low + share * (high - low) for share in shares], bounds)
    if len(shares) == 1:
        assert math.isnan(found.low)
    else:
        assert (
            bounds[0] - 1e-9 <= found.low <= found.value + 1e-9 and found.value - 1e-9 <= found.high <= bounds[1] + 1e-9
        )


def test_two_seeds_of_a_recall_have_a_possible_interval() -> None:
    found = over_seeds([0.0, 0.5], SHARE)  # Student's own: -2.9 to 3.4
    assert 0 < found.low < 0.001 and 0.999 < found.high < 1 and found.value == 0.25
    narrow = over_seeds([0.80, 0.81, 0.79, 0.80], SHARE)
    plain = over_seeds([0.80, 0.81, 0.79, 0.80])
    assert (narrow.low, narrow.high) == pytest.approx(
        (plain.low, plain.high), abs=1e-3
    )  # far from the bounds they agree


def test_a_symmetric_interval_is_carried_over_by_the_slope_at_its_value() -> None:
    found = within(Estimate(0.9, 0.7, 1.1), SHARE)
    logit = math.log(0.9 / 0.1)
    reach = 0.2 / (0.9 * 0.1)
    assert found.low == pytest.approx(1 / (1 + math.exp(-(logit - reach))))
    assert found.high == pytest.approx(1 / (1 + math.exp(-(logit + reach))))
    assert within(Estimate(2.0, 1.0, 3.0), POSITIVE).low == pytest.approx(2 * math.exp(-0.5))
    assert within(Estimate(0.5, -1.0, 2.0), DROP).high == pytest.approx(1 - 0.5 * math.exp(-3))
    assert within(Estimate(0.9, 0.7, 1.1), ANY) == Estimate(0.9, 0.7, 1.1)


@pytest.mark.parametrize(("seeds", "said"), [(1, "no interval"), (2, "too few"), (3, "too few"), (4, ""), (10, "")])
def test_too_few_seeds_are_said(seeds, said) -> None:
    assert said in few_seeds(seeds) and bool(few_seeds(seeds)) == (seeds < 4)

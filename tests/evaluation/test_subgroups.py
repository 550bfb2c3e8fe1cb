import numpy as np
import pandas as pd
import pytest

from vlm_core.evaluation.subgroups import subgroup_table, well_tested, wilson_interval


def test_categories_are_well_tested_with_twenty_products_in_every_seed() -> None:
    assert well_tested([{"a": 20, "b": 30, "c": 19}, {"a": 25, "b": 20, "c": 99}]) == {"a", "b"}
    assert well_tested([{"a": 20, "b": 30}, {"a": 25}]) == {"a", "b"}  # b is not tested in the second: too few remain


def test_wilsons_interval_is_that_of_the_textbook() -> None:
    # Newcombe 1998, https://doi.org/10.1002/(SICI)1097-0258(19980430)17:8<857::AID-SIM777>3.0.CO;2-E, table I, method 3
    for right, n, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611)):
        interval = wilson_interval(right, n)
        assert (round(interval.low, 4), round(interval.high, 4)) == (low, high)
        assert interval.value == right / n


def test_each_value_has_its_figures() -> None:
    labels = np.array([0] * 25 + [1] * 5 + [0] * 3)
    predicted = np.array([0] * 20 + [1] * 5 + [1] * 5 + [0] * 3)
    attributes = pd.DataFrame({"gender": ["Women"] * 30 + [""] * 3, "season": ["Summer"] * 33})
    groups, left_out = subgroup_table(labels, predicted, attributes, ("Apparel", "Footwear", "Free Items"))
    assert [(group.attribute, group.value, group.n) for group in groups] == [
        ("gender", "Women", 30),
        ("gender", "", 3),
        ("season", "Summer", 33),
    ]
    women, unknown, _ = groups
    assert women.accuracy.value == pytest.approx(25 / 30)
    assert women.macro_f1 == pytest.approx((40 / 45 + 10 / 15) / 2)
    assert (women.categories_present, women.thin_categories) == (2, ("Footwear",))
    assert unknown.macro_f1 == 1  # over the one category that is there
    assert (unknown.categories_present, unknown.thin_categories) == (1, ("Apparel",))
    assert left_out == {}


def test_missing_values_and_numbers_are_values_like_any_other() -> None:
    labels = np.zeros(4, np.int64)
    attributes = pd.DataFrame({"year": [2012.0, np.nan, 2012.0, np.nan]})
    groups, _ = subgroup_table(labels, labels, attributes, ("a", "b"))
    assert [(group.value, group.n) for group in groups] == [("", 2), ("2012.0", 2)]


def test_only_the_largest_subgroups_of_an_attribute_are_reported() -> None:
    values = [str(index) for index in range(100)] + ["large"] * 5
    labels = np.zeros(len(values), np.int64)
    groups, left_out = subgroup_table(labels, labels, pd.DataFrame({"brand": values}), ("a", "b"))
    assert len(groups) == 40
    assert groups[0].value == "large"
    assert left_out == {"brand": 61}

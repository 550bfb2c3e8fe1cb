"""Splits of runs that learn more: old parts stay, new products are divided, and copies lie on one side."""

import numpy as np
import pandas as pd
import pytest

from vlm_core.catalogue.extending import OldParts, choose_new_categories, extend_split
from vlm_core.errors import UserError

OLD = 20  # ten of A, ten of B
PARTS = {"train": np.r_[0:6, 10:16, 0], "validation": np.r_[6:8, 16:18], "test": np.r_[8:10, 18:20]}


def _split(names, *, groups=None, evaluable=None, **settings):
    """The split after products of these names were added; each has a group of its own unless others are given."""
    labels = ["A"] * 10 + ["B"] * 10 + list(names)
    products = pd.DataFrame(
        {
            "product_id": [f"p{row}" for row in range(len(labels))],
            "kind": labels,
            "picture_digest": [f"d{row}" for row in range(len(labels))],
        }
    )
    own = np.arange(len(labels))
    for row, group in (groups or {}).items():
        own[row] = group
    given = {"per_category": 0, "train_per_category": 0, "seed": 0, "removed": {}, **settings}
    old = OldParts("holdout", ("A", "B"), **PARTS, counts=np.array([10, 10]))
    counts = pd.Series(list(names)).value_counts().to_dict()
    may_test = np.ones(len(labels), bool) if evaluable is None else evaluable
    return extend_split(old, products, own, label="kind", counts=counts, evaluable=may_test, **given)


def test_old_parts_come_first_and_new_products_are_divided():
    split = _split(["C"] * 25)
    assert split.categories == ("A", "B", "C")
    for name, rows in PARTS.items():
        np.testing.assert_array_equal(getattr(split, name)[: len(rows)], rows)
    new = {name: set(getattr(split, name)[len(rows) :]) for name, rows in PARTS.items()}
    assert {name: len(rows) for name, rows in new.items()} == {"train": 16, "validation": 4, "test": 5}
    assert set.union(*new.values()) == set(range(OLD, OLD + 25))
    assert split.prior.tolist() == pytest.approx([10 / 45, 10 / 45, 25 / 45])
    assert split.originals == {"A": 10, "B": 10, "C": 25} and not split.leaking
    assert split.fingerprint != _split(["C"] * 26).fingerprint


def test_a_copy_of_an_old_training_product_is_trained_on_and_one_of_a_tested_product_is_not_used():
    groups = {OLD: 0, OLD + 1: 8, OLD + 2: 16, OLD + 5: OLD + 4}
    split = _split(["C"] * 25, groups=groups)
    assert OLD in split.train and not split.leaking
    used = np.concatenate([split.train, split.validation, split.test])
    assert OLD + 1 not in used and OLD + 2 not in used
    (side,) = {name for name in PARTS if {OLD + 4, OLD + 5} & set(getattr(split, name))}
    assert {OLD + 4, OLD + 5} <= set(getattr(split, side))


def test_what_may_not_be_tested_on_is_trained_on():
    evaluable = np.arange(OLD + 25) < OLD + 10
    split = _split(["C"] * 25, evaluable=evaluable)
    assert set(range(OLD + 10, OLD + 25)) <= set(split.train)
    assert len(split.test) > len(PARTS["test"]) and split.reserved


def test_few_new_products_of_an_old_category_are_all_trained_on():
    split = _split(["B"] * 4 + ["C"] * 10)
    assert set(range(OLD, OLD + 4)) <= set(split.train)


def test_new_training_rows_are_balanced_and_old_ones_left_alone():
    split = _split(["C"] * 25, train_per_category=30)
    assert len(split.train) == len(PARTS["train"]) + 30


def test_nothing_to_learn_or_to_test_is_said():
    with pytest.raises(UserError, match="near-copies of products that the run was selected or tested on"):
        _split(["C"] * 5, groups={OLD + row: 8 for row in range(5)})
    nothing = np.empty(0, np.int64)
    old = OldParts("holdout", ("A", "B"), nothing, nothing, nothing, np.zeros(2, np.int64))
    products = pd.DataFrame({"product_id": ["x"], "kind": ["A"], "picture_digest": ["d"]})
    with pytest.raises(UserError, match="none to test on"):
        extend_split(
            old, products, np.zeros(1, np.int64), label="kind", counts={"A": 1}, removed={}, per_category=0,
            train_per_category=0, seed=0, evaluable=np.ones(1, bool),
        )  # fmt: skip


def test_categories_that_are_too_small_are_left_out_or_refused():
    column = pd.Series(["C"] * 6 + ["D"] * 3 + ["A"] + [""], name="kind")
    groups = np.arange(len(column))
    names, removed = choose_new_categories(column, groups, ("A", "B"), (), 2)
    assert names == ("A", "C") and removed == {"D": "fewer than 5 products with different images (3 products)"}
    assert choose_new_categories(column, groups, ("A", "B"), ("A",), 2)[0] == ("A",)
    with pytest.raises(UserError, match=r"too small: D \(3\)"):
        choose_new_categories(column, groups, ("A", "B"), ("C", "D"), 2)
    with pytest.raises(UserError, match="not in the column kind"):
        choose_new_categories(column, groups, ("A", "B"), ("E",), 2)
    with pytest.raises(UserError, match="leaves no new product to learn: it has D"):
        choose_new_categories(column.where(column == "D", ""), groups, ("A", "B"), (), 2)
    with pytest.raises(UserError, match="it has none"):
        choose_new_categories(column.where(column == "E", ""), groups, ("A", "B"), (), 2)

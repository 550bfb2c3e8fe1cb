"""Splits: sizes, sides, balance, the original's leak, and what is refused."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm_core.catalogue.splitting import (
    STUDY_CATEGORIES,
    balance,
    dataset_info,
    measure_leakage,
    split_catalogue,
)
from vlm_core.errors import UserError

REAL_COUNTS = {"Accessories": 1000, "Apparel": 2000, "Footwear": 900, "Free Items": 85, "Personal Care": 760}


def _products(counts):
    names = [name for name, count in counts.items() for _ in range(count)]
    ids = [f"p{number}" for number in range(len(names))]
    return pd.DataFrame({"product_id": ids, "masterCategory": names, "picture_digest": ids})


def _split(products, groups=None, **changes):
    settings = {
        "label": "masterCategory", "categories": (), "min_products": 2, "protocol": "holdout",
        "per_category": 750, "train_per_category": 480, "seed": 0,
    }  # fmt: skip
    groups = np.arange(len(products)) if groups is None else groups
    return split_catalogue(products, groups, **{**settings, **changes})


def _counts(split, rows):
    return np.bincount(split.labels[rows], minlength=len(split.categories)).tolist()


def test_holdout_has_the_studys_sizes_and_no_product_on_two_sides():
    split = _split(_products(REAL_COUNTS))
    assert split.categories == STUDY_CATEGORIES
    assert _counts(split, split.train) == [480] * 5
    assert _counts(split, split.test) == [150, 150, 150, 17, 150]
    assert _counts(split, split.validation) == [120, 120, 120, 14, 120]
    assert split.originals["Free Items"] == 85
    sides = [set(side) for side in (split.train, split.validation, split.test)]
    assert not sides[0] & sides[1] and not sides[0] & sides[2] and not sides[1] & sides[2]
    assert split.leakage.near == 0 and not split.leaking


def test_only_training_holds_repeats():
    split = _split(_products(REAL_COUNTS))
    free = split.train[split.labels[split.train] == 3]
    assert len(np.unique(free)) == 85 - 17 - 14 and len(free) == 480
    for side in (split.validation, split.test):
        assert len(np.unique(side)) == len(side)


def test_study_balances_first_and_leaks():
    products = _products(REAL_COUNTS)
    split = _split(products, protocol="study")
    assert _counts(split, split.train) == [480] * 5 and _counts(split, split.validation) == [120] * 5
    np.testing.assert_array_equal(split.validation, split.test)
    assert split.leaking and split.leakage.near_by_category["Free Items"] > 0.95
    assert split.leakage.near_by_category["Apparel"] == 0
    info = dataset_info(products, split, "f" * 16, 5000)
    assert info["augmentation_applied"]["Free Items"] == {
        "original": 85, "augmented_added": 515, "total_after_aug": 600,
    }  # fmt: skip
    assert (info["training_samples"], info["validation_samples"]) == (2400, 600)
    assert info["total_samples_after_augmentation"] == 3000 and info["target_samples_per_class"] == 600


def test_dataset_info_has_the_originals_keys():
    products = _products(REAL_COUNTS)
    info = dataset_info(products, _split(products), "f" * 16, 4745)
    assert {
        "total_original_csv_entries", "selected_categories_original_counts", "target_samples_per_class",
        "total_samples_after_augmentation", "training_samples", "validation_samples", "augmentation_applied",
        "ethical_considerations", "class_mapping",
    } <= set(info)  # fmt: skip
    assert info["class_mapping"] == {name: index for index, name in enumerate(STUDY_CATEGORIES)}
    assert set(info["ethical_considerations"]) == {
        "balanced_sampling", "stratified_split", "data_augmentation_for_imbalance", "fairness_metrics_tracked",
    }  # fmt: skip
    assert len(info["ids"]["test"]) == 617 and info["split_fingerprint"] and info["seed"] == 0


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(12, 60), min_size=2, max_size=4),
    largest_group=st.integers(1, 4),
    seed=st.integers(0, 1000),
)
def test_groups_stay_whole_and_every_side_has_every_category(sizes, largest_group, seed):
    products = _products({f"c{number}": size for number, size in enumerate(sizes)})
    generator = np.random.default_rng(seed)
    groups = np.repeat(np.arange(len(products)), generator.integers(1, largest_group + 1, len(products)))
    groups = groups[: len(products)]  # neighbours share a group, now and then across categories
    if any(
        len(np.unique(groups[products["masterCategory"] == name])) < 5 for name in products["masterCategory"].unique()
    ):
        return
    split = _split(products, groups, seed=seed, train_per_category=0)
    sides = [set(groups[side]) for side in (split.train, split.validation, split.test)]
    assert not sides[0] & sides[1] and not sides[0] & sides[2] and not sides[1] & sides[2]
    for side in (split.train, split.test):
        assert len(side) > 0
    assert len(split.train) + len(split.validation) + len(split.test) == len(products)


def test_a_large_group_goes_to_training():
    products = _products({"a": 100, "b": 100})
    groups = np.arange(200)
    groups[:60] = 0
    split = _split(products, groups)
    assert set(range(60)) <= set(split.train) and (split.labels[split.test] == 0).sum() == 20


def test_the_seed_varies_the_split_and_the_fingerprint_and_repeats_both():
    products = _products(REAL_COUNTS)
    first, again, other = _split(products), _split(products), _split(products, seed=1)
    np.testing.assert_array_equal(first.train, again.train)
    assert first.fingerprint == again.fingerprint != other.fingerprint
    assert first.fingerprint != _split(products, protocol="study").fingerprint


def test_single_products_and_other_categories_are_removed_and_reported():
    split = _split(_products({**REAL_COUNTS, "Home": 1, "Sporting Goods": 20}))
    assert split.categories == STUDY_CATEGORIES
    assert "single product" in split.removed["Home"] and "20 products" in split.removed["Sporting Goods"]


def test_own_categories_and_prior():
    products = _products({"red": 30, "green": 60, "": 7, "blue": 1})
    split = _split(products)
    assert split.categories == ("green", "red") and split.prior.tolist() == [60 / 90, 30 / 90]
    assert (split.labels == -1).sum() == 8
    assert _split(products, categories=("red", "green")).categories == ("green", "red")


@pytest.mark.parametrize(
    ("counts", "changes", "said"),
    [
        ({"a": 50, "b": 4}, {}, "b has 4 products"),
        ({"a": 50}, {}, "leaves 1 categories"),
        ({"a": 50, "b": 50}, {"categories": ("a", "x")}, "categories=x"),
        ({"a": 50, "b": 50}, {"min_products": 51}, "leaves 0 categories"),
    ],
)
def test_what_cannot_be_split_is_refused_in_one_sentence(counts, changes, said):
    with pytest.raises(UserError, match=said):
        _split(_products(counts), **changes)


def test_unbalanced_training_keeps_the_catalogues_shares():
    split = _split(_products({"a": 1000, "b": 100}), per_category=0, train_per_category=0)
    assert _counts(split, split.train) == [640, 64] and _counts(split, split.test) == [200, 20]


def test_balance_keeps_every_small_categorys_product():
    labels = np.array([0] * 10 + [1] * 3)
    rows = balance(np.arange(13), labels, 7, np.random.default_rng(0))
    assert np.bincount(labels[rows]).tolist() == [7, 7] and {10, 11, 12} <= set(rows)


def test_leakage_by_hand():
    digests = pd.Series(["x", "y", "x", "z", "w"])
    groups = np.array([0, 1, 0, 1, 2])
    labels = np.array([0, 1, 0, 1, 1])
    leak = measure_leakage(digests, groups, labels, ("a", "b"), np.array([0, 1]), np.array([2]), np.array([3, 4]))
    assert leak.exact == pytest.approx(1 / 3) and leak.near == pytest.approx(2 / 3)
    assert leak.near_by_category == {"a": 1.0, "b": 0.5}

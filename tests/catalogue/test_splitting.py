"""Splits: sizes, sides, balance, the original's leak, and what is refused."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm_core.catalogue.exposure import RULE, allowed_for_pretraining, may_have_seen, reserved_for_evaluation
from vlm_core.catalogue.splitting import (
    ORIGINAL_CATEGORIES,
    balance,
    dataset_info,
    measure_leakage,
    split_catalogue,
)
from vlm_core.errors import UserError

REAL_COUNTS = {"Accessories": 2000, "Apparel": 4000, "Footwear": 1800, "Free Items": 85, "Personal Care": 1700}


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
    settings["evaluable"] = reserved_for_evaluation(products["product_id"], groups)
    return split_catalogue(products, groups, **{**settings, **changes})


def _counts(split, rows):
    return np.bincount(split.labels[rows], minlength=len(split.categories)).tolist()


def test_holdout_has_the_studys_sizes_and_no_product_on_two_sides():
    split = _split(_products(REAL_COUNTS))
    assert split.categories == ORIGINAL_CATEGORIES
    assert _counts(split, split.train) == [480] * 5
    kept = int(
        (reserved_for_evaluation(_products(REAL_COUNTS)["product_id"], np.arange(9585)) & (split.labels == 3)).sum()
    )
    free = round(kept * 0.2 / 0.36)
    assert kept < 31  # so that Free Items share what is reserved of them
    assert _counts(split, split.test) == [150, 150, 150, free, 150]
    assert _counts(split, split.validation) == [120, 120, 120, kept - free, 120]
    assert split.originals["Free Items"] == 85
    sides = [set(side) for side in (split.train, split.validation, split.test)]
    assert not sides[0] & sides[1] and not sides[0] & sides[2] and not sides[1] & sides[2]
    assert split.leakage.near == 0 and not split.leaking


def test_only_training_holds_repeats():
    split = _split(_products(REAL_COUNTS))
    free = split.train[split.labels[split.train] == 3]
    judged = _counts(split, split.test)[3] + _counts(split, split.validation)[3]
    assert len(np.unique(free)) == 85 - judged and len(free) == 480
    for side in (split.validation, split.test):
        assert len(np.unique(side)) == len(side)


@pytest.mark.slow
def test_evaluation_comes_from_products_that_nothing_may_be_pretrained_on():
    products = _products(REAL_COUNTS)
    groups = np.arange(len(products))
    groups[::7] = 3  # a large group across the border
    kept = reserved_for_evaluation(products["product_id"], groups)
    for seed in range(3):
        for per_category in (750, 0):
            split = _split(products, groups, seed=seed, per_category=per_category)
            assert kept[split.test].all() and kept[split.validation].all()
            assert not split.exposed(may_have_seen(RULE, products["product_id"], groups)).leaking
    assert (~kept[split.train]).any()


def test_a_category_with_nothing_reserved_is_judged_all_the_same_and_leaks_for_pretrained_weights():
    products = _products({"a": 400, "b": 12})
    allowed = allowed_for_pretraining(products["product_id"])
    products = products[(products["masterCategory"] == "a") | allowed].reset_index(drop=True)
    split = _split(products)
    assert all(count > 0 for side in (split.test, split.validation, split.train) for count in _counts(split, side))
    assert not split.leaking
    exposed = split.exposed(may_have_seen(RULE, products["product_id"], np.arange(len(products))))
    judged = np.concatenate([split.validation, split.test])
    assert exposed.leaking and exposed.leakage.pretraining == pytest.approx((split.labels[judged] == 1).mean())
    info = dataset_info(products, exposed, "f" * 16, 400)
    assert info["leaking"] and info["leakage"]["pretraining"] == exposed.leakage.pretraining


def test_study_balances_first_and_leaks():
    products = _products(REAL_COUNTS)
    split = _split(products, protocol="original")
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
    info = dataset_info(products, _split(products), "f" * 16, 9585)
    assert {
        "total_original_csv_entries", "selected_categories_original_counts", "target_samples_per_class",
        "total_samples_after_augmentation", "training_samples", "validation_samples", "augmentation_applied",
        "ethical_considerations", "class_mapping",
    } <= set(info)  # fmt: skip
    assert info["class_mapping"] == {name: index for index, name in enumerate(ORIGINAL_CATEGORIES)}
    assert set(info["ethical_considerations"]) == {
        "balanced_sampling", "stratified_split", "data_augmentation_for_imbalance", "fairness_metrics_tracked",
    }  # fmt: skip
    assert len(info["ids"]["test"]) == info["test_samples"] > 600 and info["split_fingerprint"] and info["seed"] == 0


@pytest.mark.slow
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
    products = _products({"a": 600, "b": 600})
    groups = np.arange(1200)
    # All of it may be evaluated on, and it fits no quota.
    large = np.flatnonzero(reserved_for_evaluation(products["product_id"], groups))[:100]
    groups[large] = large[0]
    split = _split(products, groups, per_category=0, train_per_category=0)
    kept = reserved_for_evaluation(products["product_id"], groups) & (split.labels == 0)
    assert set(large) <= set(split.train)
    assert 0 < (split.labels[split.test] == 0).sum() <= kept.sum() - 100


@pytest.mark.slow
def test_the_seed_varies_the_split_and_the_fingerprint_and_repeats_both():
    products = _products(REAL_COUNTS)
    first, again, other = _split(products), _split(products), _split(products, seed=1)
    np.testing.assert_array_equal(first.train, again.train)
    assert first.fingerprint == again.fingerprint != other.fingerprint
    assert first.fingerprint != _split(products, protocol="original").fingerprint


def test_single_products_and_other_categories_are_removed_and_reported():
    split = _split(_products({**REAL_COUNTS, "Home": 1, "Sporting Goods": 20}))
    assert split.categories == ORIGINAL_CATEGORIES
    assert "(1 product)" in split.removed["Home"] and "20 products" in split.removed["Sporting Goods"]


def test_own_categories_and_prior():
    products = _products({"red": 30, "green": 60, "": 7, "blue": 1})
    split = _split(products)
    assert split.categories == ("green", "red") and split.prior.tolist() == [60 / 90, 30 / 90]
    assert (split.labels == -1).sum() == 8
    assert _split(products, categories=("red", "green")).categories == ("green", "red")


@pytest.mark.parametrize(
    ("counts", "changes", "said"),
    [
        ({"a": 50, "b": 4}, {}, r"leaves 1 category.*each with 5 products.*a \(50\), b \(4\)"),
        ({"a": 50, "b": 4, "c": 3}, {"categories": ("a", "b", "c")}, r"too small: b \(4\), c \(3\)"),
        ({"a": 50}, {}, "leaves 1 category"),
        ({"a": 50, "Home, Kitchen": 50}, {"categories": ("a", "Home", "Kitchen")}, r"categories='\"Home, Kitchen\"'"),
        ({"a": 50, "b": 50}, {"categories": ("a", "x")}, "categories=x"),
        ({"a": 50, "b": 50}, {"min_products": 51}, "leaves 0 categories"),
    ],
)
def test_what_cannot_be_split_is_refused_in_one_sentence(counts, changes, said):
    with pytest.raises(UserError, match=said):
        _split(_products(counts), **changes)


def test_unbalanced_training_keeps_the_catalogues_shares():
    split = _split(_products({"a": 1000, "b": 100}), per_category=0, train_per_category=0)
    kept = reserved_for_evaluation(_products({"a": 1000, "b": 100})["product_id"], np.arange(1100))
    judges = [int(kept[:1000].sum()), int(kept[1000:].sum())]
    assert _counts(split, split.test) == [round(count * 0.2 / 0.36) for count in judges]
    assert _counts(split, split.train) == [1000 - judges[0], 100 - judges[1]]


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


def test_all_categories_that_are_too_small_are_left_out_at_once():
    split = _split(_products({"a": 50, "b": 40, "c": 4, "d": 3, "e": 1}))
    assert split.categories == ("a", "b")
    assert split.removed == {
        "c": "fewer than 5 products with different images (4 products)",
        "d": "fewer than 5 products with different images (3 products)",
        "e": "fewer than 5 products with different images (1 product)",
    }


def test_where_no_weights_have_seen_the_catalogue_any_product_is_tested_on():
    products = _products({"a": 100, "b": 24})
    split = _split(products, evaluable=None, train_per_category=0)
    assert not split.reserved and _split(products).reserved
    assert _counts(split, split.test) == [20, 5] and _counts(split, split.validation) == [16, 4]
    assert dataset_info(products, split, "f" * 16, 124)["test_ids"] == "any"


def _given(**counts):
    parts = pd.Series([part for part, count in counts.items() for _ in range(count)])
    products = _products({"Bags": len(parts)}).assign(masterCategory=["Bags", "Shoes"] * (len(parts) // 2))
    return products, parts


def test_given_parts_are_what_is_trained_and_tested_on():
    products, parts = _given(train=40, validation=10, test=20, none=4)
    split = _split(products, protocol="given", given=parts.replace("none", ""), per_category=2)
    assert split.validation.tolist() == list(range(40, 50)) and split.test.tolist() == list(range(50, 70))
    assert set(split.train) == set(range(40)) and _counts(split, split.train) == [480, 480]
    assert split.originals == {"Bags": 35, "Shoes": 35} and not split.leaking and not split.reserved


def test_a_near_duplicate_across_given_parts_is_a_leak():
    products, parts = _given(train=40, test=20)
    groups = np.arange(60)
    groups[[*range(0, 16, 2), 50]] = 0  # too many for validation
    split = _split(products, groups, protocol="given", given=parts)
    assert split.leaking and split.leakage.near == 1 / (len(split.validation) + 20)


def test_without_a_test_part_the_one_for_validation_is_it():
    products, parts = _given(train=40, validation=10)
    split = _split(products, protocol="given", given=parts)
    assert split.test.tolist() == list(range(40, 50)) and len(split.validation) == 8 and max(split.validation) < 40


def test_no_group_of_training_is_divided_to_validate_on():
    products, parts = _given(train=40, test=10)
    split = _split(products, np.arange(50) // 4, protocol="given", given=parts, train_per_category=0)
    assert not np.isin(split.validation // 4, split.train // 4).any() and len(split.validation)


def test_categories_that_a_given_part_lacks_are_left_out():
    products, parts = _given(train=40, test=20)
    products.loc[:5, "masterCategory"] = "Hats"
    split = _split(products, protocol="given", given=parts)
    assert split.categories == ("Bags", "Shoes")
    assert split.removed == {"Hats": "too few different images in the given test part (6 products)"}
    alike = np.where(np.arange(60) < 6, 0, np.arange(60))
    products.loc[59, "masterCategory"] = "Hats"
    split = _split(products, alike, protocol="given", given=parts, min_products=2)
    assert "Hats" in split.removed  # one image to train on, and none to validate on
    products.loc[40:, "masterCategory"] = "Bags"
    with pytest.raises(UserError, match="leave 1 category of 3"):
        _split(products, protocol="given", given=parts)


@pytest.mark.parametrize("given", [None, pd.Series(["train"] * 40), pd.Series([""] * 40)])
def test_a_catalogue_that_is_not_divided_has_no_parts_to_keep(given):
    with pytest.raises(UserError, match="folders or files called train and test, a column split"):
        _split(_given(train=40)[0], protocol="given", given=given)


def test_a_value_that_is_no_part_is_named_instead():
    products, parts = _given(train=40, test=20, unused=2)
    with pytest.raises(UserError, match=r"column split also has unused \(2\), neither train, validation nor test"):
        _split(products.assign(split=parts), protocol="given", given=None)

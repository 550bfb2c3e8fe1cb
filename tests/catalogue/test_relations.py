"""Pairs of products whose label no single place tells, of products that parts do not share."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vlm_core.catalogue.catalogue import prepare_catalogue
from vlm_core.catalogue.exposure import reserved_for_evaluation
from vlm_core.catalogue.parts import PARTS, given_parts
from vlm_core.catalogue.reading import Columns
from vlm_core.catalogue.relations import DIFFERENT, SAME, plan_pairs, write_pairs
from vlm_core.errors import UserError

KINDS = ("Belts", "Shirts", "Watches")
ROWS = 720
PRODUCTS = pd.DataFrame(
    {
        "product_id": [str(number) for number in range(1000, 1000 + ROWS)],
        "articleType": [KINDS[number % 3] for number in range(ROWS)],
    }
)
GROUPS = np.arange(ROWS)
GROUPS[3::24] -= 3  # near-copies of the product three rows above, which is of the same kind


def _planned(products=PRODUCTS, groups=GROUPS, categories=(), pairs=0, seed=0):
    return plan_pairs(products, groups, label="articleType", categories=categories, pairs=pairs, seed=seed)


def _told(pairs, products=PRODUCTS):
    """The pairs with what they are of in place of their rows."""
    kinds, ids = products["articleType"].to_numpy(), products["product_id"].to_numpy()
    return pairs.assign(
        **{f"{side}_kind": kinds[pairs[side]] for side in ("left", "right")},
        **{side: ids[pairs[side]] for side in ("left", "right")},
    )


@settings(max_examples=3, deadline=None)
@given(st.integers(0, 99), st.sampled_from([0, 130, 131, 240]), st.sampled_from([(), KINDS[:2]]))
def test_no_half_tells_the_label(seed, pairs, categories):
    told = _told(_planned(pairs=pairs, seed=seed, categories=categories))
    assert set(told["part"]) == set(PARTS)
    for _, part in told.groupby("part"):
        for side in ("left", "right"):
            labels = part.groupby(side)["relation"].agg(lambda each: tuple(sorted(each)))
            # whoever sees this half alone says one of both labels for its product, and is wrong in one of two pairs
            assert set(labels) == {(DIFFERENT, SAME)}
            counts = part.groupby(["relation", f"{side}_kind"]).size()
            assert len(counts) == 2 * len(categories or KINDS) and counts.nunique() == 1
    same = told["relation"] == SAME
    assert (told["left_kind"] == told["right_kind"]).equals(same)


def test_parts_share_no_product_nor_a_near_copy_and_test_what_no_pretraining_may_use():
    planned = _planned(seed=3)
    reserved = reserved_for_evaluation(PRODUCTS["product_id"], GROUPS)
    sides = {part: np.unique(each[["left", "right"]]) for part, each in planned.groupby("part")}
    used = np.concatenate(list(sides.values()))
    assert len(np.unique(GROUPS[used])) == len(used)
    assert not np.intersect1d(planned["left"], planned["right"]).size
    assert not reserved[sides["train"]].any() and reserved[sides["validation"]].all() and reserved[sides["test"]].all()
    assert {part: len(rows) for part, rows in sides.items()} == planned["part"].value_counts().to_dict()


def test_the_same_pairs_are_made_of_rows_in_any_order():
    order = np.random.default_rng(5).permutation(ROWS)
    again = PRODUCTS.iloc[order].reset_index(drop=True)
    names = ["left", "right", "relation", "part"]
    # a group is the same products whatever its number
    ours, theirs = _told(_planned(seed=1)), _told(_planned(again, GROUPS[order], seed=1), again)
    pd.testing.assert_frame_equal(ours[names], theirs[names])
    assert not ours[names].equals(_told(_planned(seed=2))[names])


def test_near_copies_of_two_categories_are_in_no_pair():
    groups = np.arange(ROWS)
    groups[[0, 1, 2]] = 0
    planned = _planned(groups=groups)
    assert not np.isin(planned[["left", "right"]], [0, 1, 2]).any()


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"pairs": 100_000}, r"pairs=100000 is not to be had of 3 categories: give 120 to \d+, or name other"),
        ({"pairs": 50}, "pairs=50 is not to be had of 3 categories: give 120 to"),
        ({"categories": ("Hats", "Belts")}, "categories=Hats is not in the column articleType"),
        ({"categories": ("Belts",)}, "has too few products to pair: two categories or more need 40 each"),
        ({"products": PRODUCTS[:60], "groups": np.arange(60)}, r"and there are [BSW]\w+ \(\d+\), "),
    ],
)
def test_what_cannot_be_paired_is_refused(asked, message):
    with pytest.raises(UserError, match=message):
        _planned(**asked)


def test_a_catalogue_of_pairs_is_read_back_with_both_products_in_each_picture(tmp_path):
    (tmp_path / "shop" / "images").mkdir(parents=True)
    generator = np.random.default_rng(0)
    for number in range(4):
        pixels = generator.integers(0, 256, (20, 15, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "shop" / "images" / f"{number}.png")
    lines = [f"{number},images/{number}.png,{KINDS[number % 2]}" for number in range(4)]
    (tmp_path / "shop" / "styles.csv").write_text("\n".join(["id,image,articleType", *lines]))
    columns = Columns("id", "image", "", "articleType", ())
    shop = prepare_catalogue(str(tmp_path / "shop"), columns, tmp_path)
    pairs = pd.DataFrame(
        {"left": [0, 1, 0], "right": [2, 3, 3], "relation": [SAME, SAME, DIFFERENT], "part": ["train", "test", "test"]}
    )
    packed = write_pairs(shop, pairs, "articleType", tmp_path / "pairs")
    assert (packed.rows, packed.missing) == (3, 0)
    made = prepare_catalogue(str(tmp_path / "pairs"), Columns("id", "", "", "relation", ()), tmp_path)
    assert made.products["product_id"].tolist() == ["0+2", "0+3", "1+3"]
    assert made.products["relation"].tolist() == [SAME, DIFFERENT, SAME]
    assert made.products["left_category"].tolist() == ["Belts", "Belts", "Shirts"]
    assert given_parts(made.products).tolist() == ["train", "test", "test"]
    both = np.concatenate(list(shop.pictures.take(np.array([0, 3]))), axis=1)
    np.testing.assert_array_equal(made.pictures.take(np.array([1]))[0], both)
    assert write_pairs(shop, pairs, "articleType", tmp_path / "pairs") == packed
    with pytest.raises(UserError, match="was packed from another state of pairs of shop"):
        write_pairs(shop, pairs[:2], "articleType", tmp_path / "pairs")

"""Parts for training, validation and test, as paths and columns name them."""

import pandas as pd
import pytest

from vlm_core.catalogue.parts import PART, given_parts, part_of_file, part_of_picture, part_order, unknown_parts


@pytest.mark.parametrize(
    ("path", "part"),
    [
        ("data/train-00000-of-00002.parquet", "train"),
        ("val/state.json", "validation"),
        ("Test.csv", "test"),
        ("training/test.arrow", "train"),
        ("annotations/instances_val2017.json", "validation"),
        ("test20/2017.csv", ""),
        ("shop.parquet", ""),
        ("contest/latest.csv", ""),
    ],
)
def test_the_part_of_a_file(path, part):
    assert part_of_file(path.lower()) == part


def test_the_part_of_a_picture_is_that_of_its_folder():
    assert part_of_picture("shop/Valid/Bags/train.jpg") == "validation"
    assert part_of_picture("Bags/train.jpg") == "" == part_of_picture("row 3")


def test_parts_for_training_come_first():
    assert sorted(["test/a", "b", "dev/a", "train/c"], key=part_order) == ["b", "train/c", "dev/a", "test/a"]


@pytest.mark.parametrize(
    ("column", "cells", "parts"),
    [
        (PART, ["", "test"], ["", "test"]),
        ("Split", ["Training", "dev"], ["train", "validation"]),
        ("part", ["train", ""], None),
        ("part", ["P-100", "P-200"], None),
        ("brand", ["train", "test"], None),
    ],
)
def test_a_column_that_says_it(column, cells, parts):
    found = given_parts(pd.DataFrame({"product_id": ["1", "2"], column: cells}))
    assert (None if found is None else found.tolist()) == parts


def test_what_a_column_of_parts_says_beside_them_is_counted():
    cells = ["Train", "test", "unused", "unused", "later", ""]
    products = pd.DataFrame({"brand": ["x"] * 6, "Split": cells})
    assert given_parts(products) is None
    assert unknown_parts(products) == ("Split", {"unused": 2, "later": 1})
    for other in (["train", "test", ""], ["P-1", "P-2", "P-3"], ["train", "x", "y"]):
        assert unknown_parts(pd.DataFrame({"split": other})) == ("", {})
    assert unknown_parts(products.assign(**{PART: "train"})) == ("", {})

"""Captions of products: their forms, what they never lack, and that sampling depends on seed, epoch and row alone."""

from collections import Counter

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm_core.catalogue.captions import describe_products

COLUMNS, CONTEXT = ("gender", "baseColour", "articleType"), ("gender", "usage", "season")
TEMPLATES = ("a photo of {}.", "{} on white")
SHIRT = {
    "title": "Turtle Check Men Navy Blue Shirt",
    "gender": "Men",
    "baseColour": "Navy Blue",
    "articleType": "Shirts",
    "usage": "Casual",
    "season": "Fall",
}


def _captions(*products, columns=COLUMNS):
    return describe_products(pd.DataFrame(list(products)), columns, CONTEXT, "a picture of", TEMPLATES)


def test_the_forms_of_a_product_with_everything():
    captions = _captions(SHIRT)
    sampled = Counter(captions.sample_captions(0, epoch, np.array([0]))[0] for epoch in range(2000))
    assert set(sampled) == {
        "a picture of men navy blue shirts",
        "a picture of shirts",
        "turtle check men navy blue shirt",
        "a photo of shirts.",
        "shirts on white",
        "a photo of casual fall shirts.",
        "casual fall shirts on white",
    }
    assert abs(sampled["a picture of men navy blue shirts"] / 2000 - 0.35) < 0.04
    assert abs(sampled["a picture of shirts"] / 2000 - 0.10) < 0.03
    assert captions.caption(0) == "men navy blue shirts"
    assert captions.product_types().tolist() == ["shirts"]


def test_a_sample_depends_on_seed_epoch_and_row_alone():
    captions = _captions(*[{**SHIRT, "title": f"shirt {number}"} for number in range(40)])
    rows = np.arange(40)
    sampled = captions.sample_captions(1, 2, rows)
    assert captions.sample_captions(1, 2, rows[::-1]) == sampled[::-1]
    assert captions.sample_captions(1, 3, rows) != sampled and captions.sample_captions(2, 2, rows) != sampled


def test_columns_that_are_absent_are_passed_over():
    captions = _captions({"title": "A Red Mug"}, columns=("material", "kind"))
    assert captions.columns == () and captions.caption(0) == ""
    assert captions.sample_captions(0, 1, np.array([0])) == ["a red mug"]
    partly = _captions({"title": "", "kind": "mug"}, columns=("material", "kind"))
    assert partly.columns == ("kind",)
    assert all("mug" in partly.sample_captions(0, epoch, np.array([0]))[0] for epoch in range(50))


@pytest.mark.slow
@given(st.dictionaries(st.sampled_from(sorted(SHIRT)), st.sampled_from(["", "Red", "Two Words"])))
def test_no_sentence_is_empty_or_has_stray_spaces(known):
    captions = _captions({**dict.fromkeys(SHIRT, ""), **known})
    for epoch in range(20):
        (sentence,) = captions.sample_captions(0, epoch, np.array([0]))
        assert sentence == sentence.strip() and sentence and "  " not in sentence and "{}" not in sentence

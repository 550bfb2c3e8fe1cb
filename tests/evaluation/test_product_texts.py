"""What a model reads of a product, and which words are removed from it."""

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm_core.evaluation.product_texts import MOST_CHARACTERS, TextReading, phrases_in, without_phrases

PRODUCTS = pd.DataFrame(
    {"title": ["Turtle  Check Shirt ", "", "Watch"], "gender": ["Men", "Women", ""], "usage": ["", "", ""]}
)


def _reading(columns=("title", "gender"), masked=()):
    return TextReading("image+text", columns, masked)


def test_columns_are_joined_in_order_and_what_is_empty_is_left_out():
    assert _reading().texts(PRODUCTS) == ["Turtle Check Shirt. Men", "Women", "Watch"]
    assert _reading(("usage", "gender")).texts(PRODUCTS) == ["Men", "Women", ""]
    assert _reading(("absent",)).texts(PRODUCTS) == ["", "", ""]
    assert _reading().texts(PRODUCTS.iloc[:0]) == []


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("Turtle Check Men Navy Blue Shirt", "Turtle Check Men Navy Blue"),
        ("SHIRTS for men", "for men"),
        ("Puma Flip-Flops, black", "Puma black"),
        ("Puma Flip Flop black", "Puma black"),
        ("Titan Women's WATCHES", "Titan Women's"),
        ("a T-shirt", "a"),
        ("a tshirt", "a"),
        ("Shirtless", "Shirtless"),
        ("Shirt", ""),
        ("", ""),
    ],
)
def test_label_words_are_removed_whatever_their_form(text, left):
    masked = ("shirt", "watch", "flipflop", "tshirt")
    assert _reading(masked=masked).clean(text) == left


def test_a_very_long_text_is_cut():
    assert len(_reading().clean("a" * 10 * MOST_CHARACTERS)) == MOST_CHARACTERS


@given(st.lists(st.sampled_from(["Blue", "SHIRTS", "t-shirt", "Flip", "flops,", "é", "&", "a"]), max_size=8))
def test_what_is_left_is_in_order_and_no_single_word_of_it_is_known(pieces):
    text, known = " ".join(pieces), {"shirt", "tshirt", "flipflop"}
    left = without_phrases(text, known)
    assert not {"shirt", "tshirt"} & phrases_in(left, known)
    rest = iter(text)
    assert all(character in rest for character in left)
    assert without_phrases("Blue é", known) == "Blue é"

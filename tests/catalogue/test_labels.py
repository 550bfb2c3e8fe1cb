"""One name for each category, however people write it."""

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm_core.catalogue.labels import (
    counted,
    label_key,
    label_variants,
    match_labels,
    misread_names,
    missing_texts,
    normalised,
    visible,
)

COLUMN = pd.Series(["Shoes"] * 3 + ["shoes"] * 2 + ["SHOES", "Bags", "Home  Decor", "Home\xa0Decor", "", "nan", "N/A"])
ODD = pd.Series(["Bags", "Bags\u200b", "1", "1.0", "1.5", "Home & Garden", "Home &amp; Garden", "Möbel", "Mo\u0308bel"])


def test_names_in_a_wrong_encoding_are_told_from_others():
    column = pd.Series(["MÃ¶bel", "Möbel", "Caf\N{REPLACEMENT CHARACTER}", "Été", "Shoes", "Ã", "Обувь", "5 €"])
    assert misread_names(column) == {"MÃ¶bel": "Möbel", "Caf\N{REPLACEMENT CHARACTER}": "Caf?"}


def test_variants_differ_by_case_and_blanks():
    assert label_variants(COLUMN) == [("Shoes", "shoes", "SHOES"), ("Home  Decor", "Home\xa0Decor")]
    assert missing_texts(COLUMN) == ("N/A", "nan")


def test_variants_differ_by_invisible_characters_entities_and_decimals():
    assert label_variants(ODD) == [
        ("1", "1.0"),
        ("Bags", "Bags\u200b"),
        ("Home & Garden", "Home &amp; Garden"),
        ("Mo\u0308bel", "Möbel"),
    ]
    assert sorted(set(normalised(ODD))) == ["1", "1.5", "Bags", "Home & Garden", "Mo\u0308bel"]
    assert visible("Bags\u200b") == "Bags\\u200b" and visible("Mo\u0308bel") == "Mo\\u0308bel"
    assert visible("Home\xa0 Möbel") == "Home\\xa0 Möbel"


def test_each_gets_its_most_frequent_name_and_nan_gets_none():
    assert normalised(COLUMN).value_counts().to_dict() == {"Shoes": 6, "Home  Decor": 2, "Bags": 1, "": 3}


@pytest.mark.parametrize(
    "text", ["nan", "NaN", "NULL", "n/a", "None", "-", "#N/A", "Unknown", "\\N", "k. A.", "(blank)", "—"]
)
def test_what_says_that_there_is_none(text):
    assert missing_texts(pd.Series([text, "Shoes"])) == (text,)


@given(
    st.lists(
        st.text("aAbB \xa0-\u200b1.0", max_size=4) | st.sampled_from(["&amp;", "&", "&amp;amp;", "A&nbsp;b"]),
        min_size=1,
        max_size=12,
    )
)
def test_normalising_leaves_no_variant_and_changes_nothing_more(names):
    column = pd.Series(names, dtype=str)
    done = normalised(column)
    assert label_variants(done) == [] and missing_texts(done) == ()
    assert normalised(done).equals(done)
    kept = done != ""
    assert [label_key(name) for name in done[kept]] == [label_key(name) for name in column[kept]]


def test_found_names_match_wanted_ones_where_it_is_clear():
    assert match_labels(["shoes", "Bags", "hats"], ["Shoes", "Bags", "BAGS"]) == {"shoes": "Shoes", "Bags": "Bags"}
    assert match_labels(["bags"], ["Bags", "BAGS"]) == {}


def test_counts_are_listed_the_largest_first():
    assert counted({"a": 2, "b": 1_000, "c": 2}, most=2) == "b (1,000), a (2), and 1 more"

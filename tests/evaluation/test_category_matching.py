import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.evaluation.made_predictions import CATEGORIES
from vlm_core.evaluation.category_matching import category_terms, closest_category

TERMS = {
    "shirts": "Apparel",
    "dress": "Apparel",
    "jumpsuit": "Apparel",
    "watches": "Accessories",
    "purse": "Accessories",
    "flip flops": "Footwear",
    "sports shoes": "Footwear",
    "gifts": "Free Items",
    "saw": "Home",
}
FILLERS = ["a", "photo", "of", "the", "blue", "very", "nice", "for", "men", "with"]


def _category(text: str, categories: tuple[str, ...] = CATEGORIES) -> str | None:
    index = closest_category(text, categories, TERMS)
    return categories[index] if index >= 0 else None


@pytest.mark.parametrize(
    ("text", "category"),
    [
        ("apparel", "Apparel"),
        ("a photo of PERSONAL CARE.", "Personal Care"),
        ("personal-care product", "Personal Care"),
        ("Accessory", "Accessories"),
        ("free item", "Free Items"),
        ("a man in a blue shirt", "Apparel"),
        ("two DRESSES on a rack", "Apparel"),
        ("a woman's purses", "Accessories"),
        ("flip-flops", "Footwear"),
        ("a flipflop", "Footwear"),
        ("a Wátch", "Accessories"),
        # the earliest term decides, and a category's own name decides before any term
        ("a shirt and a watch", "Apparel"),
        ("a watch and a shirt", "Accessories"),
        ("a watch, a shirt: footwear", "Footwear"),
        # spelling: one slip in a longer word, but none that makes another short word
        ("foootwear", "Footwear"),
        ("accesories", "Accessories"),
        ("a persnal care bottle", "Personal Care"),
        ("a jumpsiut", "Apparel"),
        ("a match", None),
        ("a shirtless man", None),
        # terms of categories that are not asked for, and texts of nothing
        ("a saw", None),
        ("", None),
        ("42 ?! …", None),
        ("unknown category", None),
    ],
)
def test_texts_go_where_a_reader_would_put_them(text: str, category: str | None) -> None:
    assert _category(text) == category


def test_of_names_that_begin_together_the_longest_is_meant() -> None:
    categories = ("Shirts", "Tshirts", "Shoes", "Sports Shoes", "Sports")
    assert _category("a t-shirt", categories) == "Tshirts"
    assert _category("t shirts", categories) == "Tshirts"
    assert _category("a shirt", categories) == "Shirts"
    assert _category("red sports shoes", categories) == "Sports Shoes"
    assert _category("sports and shoes", categories) == "Sports Shoes"  # "and" joins nothing
    assert _category("red shoe", categories) == "Shoes"
    assert _category("shoes for sports", categories) == "Shoes"
    assert _category("a sports watch", categories) == "Sports"


def test_parts_of_a_category_name_are_names_unless_they_are_shared() -> None:
    categories = ("Necklace and Chains", "Salwar and Dupatta", "Dupatta/Scarf")
    assert _category("a gold chain", categories) == "Necklace and Chains"
    assert _category("a salwar", categories) == "Salwar and Dupatta"
    assert _category("a scarf", categories) == "Dupatta/Scarf"
    assert _category("a dupatta", categories) is None


@given(st.text(max_size=80), st.lists(st.text(max_size=12), min_size=1, max_size=4, unique=True))
def test_any_text_gives_one_of_the_categories_or_none(text: str, categories: list[str]) -> None:
    assert -1 <= closest_category(text, tuple(categories), TERMS) < len(categories)


@given(
    st.sampled_from(CATEGORIES),
    st.lists(st.sampled_from(FILLERS), max_size=5),
    st.lists(st.sampled_from([*FILLERS, "shirt", "watch"]), max_size=5),
    st.sampled_from([str.upper, str.lower, str.title, lambda text: text.replace(" ", "-"), lambda text: f"«{text}»!"]),
)
def test_a_category_named_in_a_text_is_found_however_it_is_written(
    category: str, before: list[str], after: list[str], write: object
) -> None:
    assert callable(write)
    assert _category(" ".join([*before, write(category), *after])) == category


@given(st.sampled_from(sorted(TERMS.keys() - {"saw"})), st.lists(st.sampled_from(FILLERS), max_size=5))
def test_singular_and_plural_of_a_term_are_one(term: str, around: list[str]) -> None:
    singular = {"shirts": "shirt", "watches": "watch", "flip flops": "flip flop", "gifts": "gift"}.get(
        term, term.removesuffix("s") if term == "sports shoes" else term
    )
    plural = singular + ("es" if singular.endswith(("ss", "ch")) else "s")
    found = {_category(" ".join([*around, word, *around])) for word in (singular, plural)}
    assert found == {TERMS[term]}


@given(st.text(st.characters(categories=["L"]), min_size=1, max_size=12))
def test_a_word_inside_another_word_does_not_count(letters: str) -> None:
    # what is far longer than a term is neither the term nor its misspelling
    assert _category("zqzqzqzq" + "shirt" + "zqzqzqzq") is None
    assert _category(f"qqqqqqqqqqqqqqqqqqqqqqqqqqqq{letters}") is None


def test_a_very_long_text_is_answered_soon() -> None:
    assert _category("lorem ipsum " * 50_000) is None


def _products(rows: list[tuple[str, str, str, int]]) -> pd.DataFrame:
    columns = ["masterCategory", "subCategory", "articleType"]
    return pd.DataFrame([row[:3] for row in rows for _ in range(row[3])], columns=columns)


PRODUCTS = _products(
    [
        ("Footwear", "Shoes", "Casual Shoes", 60),
        ("Footwear", "Flip Flops", "Flip Flops", 5),
        ("Apparel", "Topwear", "Shirts", 39),
        ("Free Items", "Free Gifts", "Shirt", 2),
        ("Apparel", "Saree", "Saree", 2),
        ("Accessories", "Watches", "Watches", 90),
        ("Free Items", "Free Gifts", "Watches", 10),
        ("Accessories", "Ties and Cufflinks", "Cufflinks", 4),
    ]
)


def test_terms_are_the_words_that_point_to_one_category() -> None:
    assert category_terms(PRODUCTS, "masterCategory") == {
        "casual shoes": "Footwear",
        "shoes": "Footwear",
        "flip flops": "Footwear",
        "flops": "Footwear",
        "topwear": "Apparel",
        "shirts": "Apparel",  # 39 of 41, singular and plural together
        "free gifts": "Free Items",
        "gifts": "Free Items",
        "ties cufflinks": "Accessories",
        "ties": "Accessories",
        "cufflinks": "Accessories",
        # not "watches": only 90 of 100; not "saree": two products; not "casual" or "flip": no last words
    }


def test_terms_come_from_the_other_levels_that_there_are() -> None:
    terms = category_terms(PRODUCTS, "articleType")
    assert terms["topwear"] == "Shirts"
    assert "shirts" not in terms
    assert category_terms(PRODUCTS[["articleType"]], "articleType") == {}
    assert category_terms(PRODUCTS[["articleType"]].assign(brand="X"), "brand")["shoes"] == "X"
    assert category_terms(PRODUCTS.iloc[:0], "masterCategory") == {}


def test_terms_find_what_they_were_made_of() -> None:
    categories = tuple(sorted(set(PRODUCTS["masterCategory"])))
    terms = category_terms(PRODUCTS, "masterCategory")
    for term, category in terms.items():
        assert categories[closest_category(f"a photo of {term}", categories, terms)] == category


def test_products_without_a_category_or_a_value_give_no_terms() -> None:
    blank = _products([("", "Shoes", "Shoes", 9), ("Apparel", "", "", 9)])
    assert category_terms(blank, "masterCategory") == {}

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm_core.evaluation.slugs import category_slugs


def test_names_are_readable_and_all_different() -> None:
    assert category_slugs(["Free Items", "Bath & Body", "Tops", "tops!", "Blusen für Größe 40", "靴", "帽子"]) == (
        "free_items",
        "bath_body",
        "tops",
        "tops_4",
        "blusen_fur_groe_40",
        "category_6",
        "category_7",
    )


@pytest.mark.slow
@given(st.lists(st.text(max_size=100), unique=True, max_size=12))
def test_any_categories_have_different_names_of_safe_signs(categories: list[str]) -> None:
    names = category_slugs(categories)
    assert len(names) == len(set(names)) == len(categories)
    assert all(re.fullmatch(r"[a-z0-9_]{1,80}", name) for name in names)

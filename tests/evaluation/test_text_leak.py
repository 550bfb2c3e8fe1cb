"""How often texts name their category."""

import numpy as np
import pandas as pd
import pytest

from vlm_core.evaluation.text_leak import UNMASKED, TextLeakMetrics, label_words, measure_text_leak

PRODUCTS = pd.DataFrame(
    {
        "masterCategory": ["Apparel", "Apparel", "Accessories", "Free Items"],
        "articleType": ["Shirts", "Kurta Sets", "Watches", "Perfume and Body Mist"],
    }
)
CATEGORIES = ("Accessories", "Apparel", "Free Items", "Home")


def test_a_category_is_named_by_its_own_words_and_those_of_its_article_types():
    words = label_words(PRODUCTS, "masterCategory", "articleType", CATEGORIES)
    assert list(words) == list(CATEGORIES)
    assert words["Accessories"] == {"accessori", "watch"}
    assert words["Apparel"] == {"apparel", "shirt", "kurta", "set", "kurtaset"}
    assert {"perfume", "bodi", "mist", "free", "item", "freeitem"} <= words["Free Items"]
    assert label_words(PRODUCTS, "masterCategory", "none", CATEGORIES)["Apparel"] == {"apparel"}


def test_the_share_counts_a_products_own_category_alone():
    words = label_words(PRODUCTS, "masterCategory", "articleType", CATEGORIES)
    texts = ["Titan Watch", "a shirt with a watch", "a watch", "", "Free gift"]
    leak = measure_text_leak(texts, np.array([0, 1, 1, 1, 2]), words)
    assert leak.share == pytest.approx(3 / 5) and leak.absent == pytest.approx(1 / 5)
    assert leak.by_category["Accessories"] == 1 and leak.by_category["Apparel"] == pytest.approx(1 / 3)
    assert np.isnan(leak.by_category["Home"])
    metrics = leak.metrics()
    assert metrics["text_leak"] == pytest.approx(0.6) and metrics["text_leak_free_items"] == 1
    assert "text_leak_home" not in metrics


def test_unmasked_texts_are_said_to_be_so():
    leak = measure_text_leak(["a shirt"], np.array([0]), {"Apparel": frozenset({"shirt"})})
    told = " ".join(TextLeakMetrics(("title",), False, leak, 0.5, 0.6).sentences())
    assert UNMASKED in told and "100.0%" in told and "0.5000" in told
    assert UNMASKED not in " ".join(TextLeakMetrics(("title",), True, leak, 0.5, 0.6).sentences())

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.evaluation.made_predictions import random_predictions, sure
from vlm_core.errors import UserError
from vlm_core.evaluation.predictions import Predictions

GOOD: dict[str, Any] = {
    "product_ids": ["1163", "1164", "1165"],
    "labels": [0, 1, -1],
    "log_probabilities": np.log([[0.9, 0.1], [0.25, 0.75], [0.5, 0.5]]),
    "categories": ("Apparel", "Free Items"),
    "texts": ("a shirt", "a gift", "?"),
    "text_categories": [0, 1, -1],
}


def test_the_table_has_one_row_a_product() -> None:
    frame = Predictions(**GOOD).to_frame()
    names = ["product_id", "true", "predicted", "confidence", "p_Apparel", "p_Free Items", "text", "text_category"]
    assert list(frame.columns) == names
    assert frame["product_id"].tolist() == ["1163", "1164", "1165"]
    assert frame["true"].tolist() == ["Apparel", "Free Items", ""]
    assert frame["predicted"].tolist() == ["Apparel", "Free Items", "Apparel"]  # the first of equals
    assert frame["confidence"].tolist() == pytest.approx([0.9, 0.75, 0.5])
    assert frame["p_Free Items"].tolist() == pytest.approx([0.1, 0.75, 0.5])
    assert frame["text"].tolist() == ["a shirt", "a gift", "?"]
    assert frame["text_category"].tolist() == ["Apparel", "Free Items", "Unknown Category"]


def test_a_model_that_writes_nothing_has_no_text_columns() -> None:
    frame = Predictions(**{**GOOD, "texts": None, "text_categories": None}).to_frame()
    assert list(frame.columns)[-1] == "p_Free Items"


def test_types_are_brought_in_order() -> None:
    predictions = Predictions(**GOOD)
    assert predictions.product_ids.dtype.kind == "U"
    assert predictions.labels.dtype == np.int64
    assert predictions.log_probabilities.dtype == np.float32
    assert predictions.probabilities == pytest.approx(np.exp(GOOD["log_probabilities"]), abs=1e-6)
    assert len(predictions) == 3


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("product_ids", ["1", "2"], "do not fit"),
        ("labels", [0, 1, 2], "labels must lie in -1..1"),
        ("labels", [0, 1, -2], "labels must lie in -1..1"),
        ("labels", [0.0, 1.0, 1.0], "whole numbers"),
        ("log_probabilities", np.zeros((3, 2)), "sum to one"),
        ("log_probabilities", np.log([[1.0], [1.0], [1.0]]), "shape"),
        ("log_probabilities", np.array([[0, -np.inf], [-1e9, 0], [-1e9, 0]]), "finite"),
        ("log_probabilities", np.full((3, 2), np.nan), "finite"),
        ("categories", ("Apparel", "Apparel"), "different"),
        ("texts", None, "together"),
        ("texts", ("a shirt",), "do not fit"),
        ("text_categories", [0, 1, 2], "text_categories must lie"),
        ("text_categories", [0, 1], "do not fit"),
    ],
)
def test_what_does_not_fit_is_refused(field: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Predictions(**{**GOOD, field: value})


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(st.text(st.characters(exclude_categories=[]), max_size=30), min_size=1, max_size=5))
def test_any_text_comes_back_from_the_file_as_it_was(texts: list[str], tmp_path: Path) -> None:
    n = len(texts)
    labels = np.zeros(n, np.int64)
    predictions = Predictions(np.arange(n).astype(str), labels, sure(labels, 2), ("a", "ü 靴"), tuple(texts), labels)
    predictions.write(tmp_path / "predictions.npz")
    assert Predictions.read(tmp_path / "predictions.npz").texts == tuple(texts)


@pytest.mark.parametrize("texts", [False, True])
@pytest.mark.parametrize("n", [0, 50])
def test_the_file_gives_back_exactly_what_was_written(n: int, texts: bool, tmp_path: Path) -> None:
    written = random_predictions(n, 7, seed=1, texts=texts)
    written.write(tmp_path / "predictions.npz")
    read = Predictions.read(tmp_path / "predictions.npz")
    assert read.categories == written.categories
    assert read.texts == written.texts
    for name in ("product_ids", "labels", "log_probabilities", "text_categories"):
        np.testing.assert_array_equal(getattr(read, name), getattr(written, name), strict=True)


def test_a_file_that_holds_no_predictions_gives_one_clear_sentence(tmp_path: Path) -> None:
    path = tmp_path / "predictions.npz"
    with pytest.raises(UserError, match="evaluate the run again"):
        Predictions.read(path)
    path.write_bytes(b"not a zip")
    with pytest.raises(UserError, match="evaluate the run again"):
        Predictions.read(path)
    np.savez(path, schema=np.array(99))
    with pytest.raises(UserError, match="schema 1"):
        Predictions.read(path)


def test_an_array_of_objects_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "predictions.npz"
    np.savez(path, schema=np.array(1), product_ids=np.array([{}], dtype=object))
    with pytest.raises(UserError, match="allow_pickle"):
        Predictions.read(path)

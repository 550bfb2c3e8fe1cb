"""The baselines that read texts: fitted, stacked, saved, and with inputs missing."""

import json

import numpy as np
import pandas as pd
import pytest

from vlm_core.errors import UserError
from vlm_core.evaluation.product_texts import TextReading
from vlm_core.models.baseline import fit_baseline
from vlm_core.models.saved import load_categoriser
from vlm_core.models.text_baseline import fit_text_baseline, stack_baselines

CATEGORIES = ("Bags", "Shirts", "Shoes")
LABELS = np.arange(36) % 3
TRAIN, VALIDATION, TEST = np.repeat(np.arange(18), 2), np.arange(18, 27), np.arange(27, 36)
TITLES = [f"{('leather bag', 'cotton shirt', 'running shoe')[label]} number {row}" for row, label in enumerate(LABELS)]


class Pictures:
    """Pictures whose brightness tells the first category from the others."""

    def take(self, rows):
        noise = np.random.default_rng(0).integers(0, 60, (len(rows), 80, 60, 3))
        return (noise + 150 * (LABELS[rows] == 0)[:, None, None, None]).astype(np.uint8)


@pytest.fixture(scope="module")
def text():
    reads = TextReading("text", ("title",), ("number",))
    return fit_text_baseline(pd.DataFrame({"title": TITLES}), reads, LABELS, TRAIN, VALIDATION, CATEGORIES, (80, 60))


@pytest.fixture(scope="module")
def stacked(text):
    picture = fit_baseline(Pictures(), LABELS, TRAIN, VALIDATION, CATEGORIES, (80, 60), 0)
    shown, read = picture.log_probabilities(Pictures().take(VALIDATION)), text.of_texts(_texts(VALIDATION))
    return stack_baselines(picture, text, shown, read, LABELS[VALIDATION])


def _texts(rows):
    return [TITLES[row] for row in rows]


def test_it_learns_from_words_alone(text):
    blank = np.zeros((9, 80, 60, 3), np.uint8)
    rows = text.log_probabilities(blank, _texts(TEST))
    assert rows.dtype == np.float32 and rows.argmax(axis=1).tolist() == LABELS[TEST].tolist()
    np.testing.assert_allclose(np.exp(rows).sum(axis=1), 1, atol=1e-5)
    assert "leather" in text.terms and "number" not in text.terms
    np.testing.assert_array_equal(text.log_probabilities(blank), text.of_texts([""] * 9))
    assert text.of_texts([]).shape == (0, 3)


def test_both_are_stacked_and_answer_from_what_there_is(stacked, text):
    pictures = Pictures().take(TEST)
    both = stacked.log_probabilities(pictures, _texts(TEST))
    assert both.argmax(axis=1).tolist() == LABELS[TEST].tolist()
    np.testing.assert_allclose(
        stacked.log_probabilities(pictures), stacked.picture.log_probabilities(pictures), atol=1e-5
    )
    alone = stacked.log_probabilities(pictures, _texts(TEST), np.zeros(9, bool))
    np.testing.assert_allclose(alone, text.of_texts(_texts(TEST)), atol=1e-5)


@pytest.mark.parametrize("kind", ["text", "stacked"])
def test_saved_and_loaded_is_identical(kind, request, tmp_path):
    model = request.getfixturevalue(kind)
    model.save(tmp_path)
    loaded = load_categoriser(tmp_path)
    pictures = Pictures().take(TEST)
    np.testing.assert_array_equal(
        loaded.log_probabilities(pictures, _texts(TEST)), model.log_probabilities(pictures, _texts(TEST))
    )
    assert (loaded.reads, loaded.categories, loaded.canvas) == (model.reads, CATEGORIES, (80, 60))
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} == {".json", ".safetensors"}


@pytest.mark.parametrize("change", [{"schema": 99}, {"settings": {}}])
@pytest.mark.parametrize("kind", ["text", "stacked"])
def test_a_folder_that_is_incomplete_is_refused(kind, change, request, tmp_path):
    request.getfixturevalue(kind).save(tmp_path)
    path = tmp_path / "categoriser.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match="train again"):
        load_categoriser(tmp_path)


def test_texts_without_a_common_word_are_refused():
    products = pd.DataFrame({"title": [""] * 36})
    with pytest.raises(UserError, match="text_columns="):
        fit_text_baseline(products, TextReading("text", ("title",)), LABELS, TRAIN, VALIDATION, CATEGORIES, (80, 60))

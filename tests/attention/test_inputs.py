"""What a prediction depends on, by leaving out words, patches and whole inputs."""

import numpy as np
import pytest

from tests.models.test_fusion import PICTURES, make_reader
from vlm_core.attention.inputs import GRID, MOST_WORDS, explain_inputs, log_odds
from vlm_core.evaluation.product_texts import TextReading


class Weighing:
    """A model whose log odds of its first category are known: brightness of the top left, and two words."""

    categories = ("a", "b")
    reads = TextReading("image+text", ("title",))

    def log_probabilities(self, pictures, texts, has_picture):
        bright = pictures[:, :10, :8].mean(axis=(1, 2, 3)) / 64 * has_picture
        told = [2.0 * ("shirt" in text.split()) - ("shoe" in text.split()) for text in texts]
        odds = bright + told
        return -np.log1p(np.exp(np.stack([-odds, odds], axis=1))).astype(np.float32)


def test_each_part_counts_by_how_far_the_log_odds_fall_without_it():
    picture = np.full((80, 64, 3), 255, np.uint8)
    found = explain_inputs(Weighing(), picture, "blue shirt shoe")
    assert found.category == 0
    assert found.picture == pytest.approx(255 / 64, abs=1e-4) and found.text == pytest.approx(1, abs=1e-4)
    assert [word for word, _ in found.words] == ["blue", "shirt", "shoe"]
    np.testing.assert_allclose([fall for _, fall in found.words], [0, 2, -1], atol=1e-4)
    assert found.patches[0, 0] == pytest.approx(127 / 64, abs=1e-3)
    np.testing.assert_allclose(found.patches.flatten()[1:], 0, atol=1e-3)
    heat = found.map((80, 64))
    assert heat.sum() == pytest.approx(1, abs=1e-4) and heat[:10, :8].sum() == pytest.approx(1, abs=1e-2)
    other = explain_inputs(Weighing(), picture, "blue shirt shoe", target=1)
    assert other.picture == pytest.approx(-found.picture) and other.map((80, 64)).std() == pytest.approx(0, abs=1e-4)


def test_without_a_text_there_are_no_words_and_a_long_one_is_bounded():
    picture = np.zeros((80, 60, 3), np.uint8)
    assert explain_inputs(Weighing(), picture, "").words == ()
    assert len(explain_inputs(Weighing(), picture, "blue " * 100).words) == MOST_WORDS


@pytest.mark.parametrize(("family", "inputs", "fusion"), [("clip", "image+text", "late"), ("git", "text", "own")])
def test_a_real_models_prediction_is_explained(family, inputs, fusion):
    model = make_reader(family, inputs, fusion)
    found = explain_inputs(model, PICTURES[0], "Blue Jacket")
    rows = model.log_probabilities(PICTURES[:1], ["Blue Jacket"]).astype(np.float64)
    without = model.log_probabilities(PICTURES[:1], ["Blue"]).astype(np.float64)
    assert found.category == rows[0].argmax() and found.patches.shape == (GRID, GRID)
    fall = log_odds(rows, found.category)[0] - log_odds(without, found.category)[0]
    assert found.words[1] == ("Jacket", pytest.approx(fall, abs=1e-4))
    assert (np.abs(found.patches).max() < 1e-5) == (inputs == "text")

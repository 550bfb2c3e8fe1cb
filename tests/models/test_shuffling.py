"""Shuffled weights: the same sizes, nothing learnt."""

import numpy as np
import pytest

from tests.models.families import FAMILIES, make_categoriser
from vlm_core.models.shuffling import shuffled_weights

PICTURES = np.random.default_rng(3).integers(0, 256, (3, 80, 60, 3), dtype=np.uint8)


@pytest.mark.parametrize("family", FAMILIES)
def test_shuffled_weights_keep_their_sizes_and_leave_the_model_as_it_is(family: str) -> None:
    model = make_categoriser(family)
    before = model.log_probabilities(PICTURES)
    other = shuffled_weights(model, seed=1)
    for ours, theirs in zip(model.hf.parameters(), other.hf.parameters(), strict=True):
        assert ours.flatten().sort().values.equal(theirs.flatten().sort().values)
    np.testing.assert_array_equal(model.log_probabilities(PICTURES), before)
    assert np.abs(other.log_probabilities(PICTURES) - before).max() > 0.01
    np.testing.assert_array_equal(
        other.log_probabilities(PICTURES), shuffled_weights(model, seed=1).log_probabilities(PICTURES)
    )

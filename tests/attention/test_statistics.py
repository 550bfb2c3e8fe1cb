"""Figures of attention matrices that are worked by hand, and of whole models."""

import json
from dataclasses import asdict
from math import log, sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy

from tests.models.families import CAPTIONERS, FAMILIES, make_categoriser
from vlm_core.attention.statistics import (
    attention_statistics,
    describe_layer,
    head_diversity,
    mean_distance,
    product_shares,
)

HALF = np.array([1.0, 1.0, 0.0, 0.0])  # a product in the upper row of a 2 x 2 grid
PICTURES = np.random.default_rng(3).integers(0, 256, (9, 80, 60, 3), dtype=np.uint8)


def _vision(attention: np.ndarray):
    return describe_layer("vision.block.1", "vision", attention, images=5, product=HALF)


def test_even_attention_is_as_blurred_as_can_be() -> None:
    figures = _vision(np.full((2, 5, 5), 0.2))
    assert figures.entropy == pytest.approx(log(5)) and figures.relative_entropy == pytest.approx(1)
    # From each corner of the 2 x 2 grid: itself, two neighbours and one across.
    assert figures.distance_patches == pytest.approx((0 + 1 + 1 + sqrt(2)) / 4)
    assert figures.distance_share == pytest.approx((2 + sqrt(2)) / 8)
    assert figures.product_share == pytest.approx(0.5) == figures.product_area
    assert figures.head_diversity == pytest.approx(0, abs=1e-12)
    assert figures.tokens == 5


def test_tokens_that_attend_to_themselves_alone_reach_nowhere() -> None:
    figures = _vision(np.stack([np.eye(5)] * 3))
    assert (figures.entropy, figures.distance_patches, figures.distance_share) == (0, 0, 0)
    assert figures.relative_entropy is None  # there was nothing to choose from
    # Rows of the class token's kind, with nothing on patches, count as even: (.5 + 1 + 1 + 0 + 0) / 5.
    assert figures.product_share == pytest.approx(0.5)


def test_attention_across_the_grid_by_hand() -> None:
    crossed = np.zeros((1, 5, 5))
    crossed[0, 0, 1:3] = 0.5  # the class token sees the product
    for patch, other in ((1, 4), (2, 3), (3, 2), (4, 1)):
        crossed[0, patch, [0, other]] = 0.5  # every patch the class token and the one across
    figures = _vision(crossed)
    assert figures.distance_patches == pytest.approx(sqrt(2))
    assert figures.entropy == pytest.approx(log(2))
    assert figures.class_share == pytest.approx(4 * 0.5 / 5)
    assert figures.product_share == pytest.approx((1 + 0 + 0 + 1 + 1) / 5)
    assert figures.head_diversity is None


def test_one_row_of_the_class_token_reaches_no_distance() -> None:
    figures = _vision(np.full((2, 1, 5), 0.2))
    assert figures.distance_patches is None and figures.distance_share is None
    assert figures.product_share == pytest.approx(0.5)


def test_a_mask_leaves_fewer_tokens_to_choose_from() -> None:
    causal = np.array([[[1, 0, 0], [0.5, 0.5, 0], [0.8, 0.1, 0.1]]])
    figures = describe_layer("fusion.block.1", "text", causal, images=5, product=HALF)
    assert figures.relative_entropy == pytest.approx((1 + entropy([0.8, 0.1, 0.1]) / log(3)) / 2)
    assert figures.product_share is figures.class_share is figures.distance_patches is None


def test_heads_that_share_no_token_are_as_different_as_can_be() -> None:
    assert head_diversity(np.array([[[1.0, 0.0]], [[0.0, 1.0]]])) == pytest.approx(1)


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(arrays(np.float64, (3, 2, 5), elements=st.floats(0.001, 1)))
def test_head_diversity_is_scipys_divergence_over_pairs(weights: np.ndarray) -> None:
    attention = weights / weights.sum(axis=-1, keepdims=True)
    by_scipy = [
        jensenshannon(attention[a, row], attention[b, row], base=2) ** 2
        for a, b in ((0, 1), (0, 2), (1, 2))
        for row in range(2)
    ]
    assert head_diversity(attention) == pytest.approx(np.nanmean(by_scipy), abs=1e-6)


@settings(max_examples=20, deadline=None)
@given(arrays(np.float64, (2, 9, 9), elements=st.floats(0.001, 1)))
def test_mean_distance_is_the_sum_over_pairs_of_patches(weights: np.ndarray) -> None:
    rows = weights / weights.sum(axis=-1, keepdims=True)
    by_hand = 0.0
    for head in rows:
        for a in range(9):
            for b in range(9):
                by_hand += head[a, b] * sqrt((a // 3 - b // 3) ** 2 + (a % 3 - b % 3) ** 2) / 18
    assert mean_distance(weights) == pytest.approx(by_hand)


def test_the_product_is_what_is_not_the_studios_background() -> None:
    picture = np.full((80, 60, 3), 250, dtype=np.uint8)
    picture[20:60, 15:45] = 30
    picture[30:50, 25:35] = 250  # a white print is no background: it does not reach the border
    shares = product_shares(picture, 4).reshape(4, 4)
    np.testing.assert_allclose(shares[1:3, 1:3], 1)
    assert shares.sum() == pytest.approx(4)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_models_layers_are_named_and_within_bounds(family: str) -> None:
    figures = attention_statistics(make_categoriser(family), PICTURES)
    asking = {
        "clip": [("vision", 65)] * 3 + [("vision", 1)],
        "blip": [("vision", 65)] * 4 + [("text", 4), ("cross", 4), ("text", 1), ("cross", 1)],
        "siglip": [("vision", 64)] * 4 + [("pool", 1)],
        "vision": [("vision", 65)] * 3 + [("vision", 1)],
        "git": [("vision", 65)] * 4 + [("joint, image", 65), ("joint, text", 4), ("joint, text", 1)],
    }[family]
    assert [(layer.kind, layer.tokens) for layer in figures] == asking
    for layer in figures:
        assert layer.entropy > 0 and 0 < layer.relative_entropy <= 1 + 1e-6  # type: ignore[operator]
        assert 0 <= layer.head_diversity <= 1  # type: ignore[operator]
        assert (layer.product_share is None) == (layer.kind == "text")
        assert (layer.distance_patches is not None) == (layer.tokens >= 64)
        assert (layer.class_share is None) == (layer.kind == "text" or family == "siglip")
    assert json.loads(json.dumps([asdict(layer) for layer in figures]))[0]["name"] == "vision.block.1"


@pytest.mark.parametrize("family", CAPTIONERS)
def test_sentences_of_different_lengths_are_described(family: str) -> None:
    layers = 8 if family == "blip" else 7  # of GIT's last joint block text alone is read
    assert len(attention_statistics(make_categoriser(family, "sentences", "tokens"), PICTURES)) == layers


@pytest.mark.slow
def test_figures_of_all_pictures_are_the_means_of_each() -> None:
    model = make_categoriser("git")
    together = attention_statistics(model, PICTURES)
    each = [attention_statistics(model, PICTURES[row : row + 1]) for row in range(9)]
    for layer, alone in zip(together, zip(*each, strict=True), strict=True):
        assert layer.entropy == pytest.approx(np.mean([one.entropy for one in alone]), rel=1e-5)
        assert layer.product_area == pytest.approx(np.mean([one.product_area for one in alone]))

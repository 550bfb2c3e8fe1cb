"""Faithfulness tells a map that finds the cue from one that does not, and its figures are those of slow code."""

import json
from dataclasses import asdict
from functools import partial

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from tests.attention.planted import CATEGORIES, draw_pictures, learnt
from tests.models.families import SHIPPED, make_categoriser
from vlm_core.attention.faithfulness import (
    Removal,
    _blanked,
    _cells,
    _compare,
    _curves,
    _p_value,
    _ranks,
    _target_probability,
    _with_controls,
    measure_faithfulness,
    measure_picture_curves,
)
from vlm_core.attention.maps import explain
from vlm_core.errors import UserError

WORSE = np.array([[0.1], [-0.1]])  # more is left when it deletes, less comes back when it inserts
PICTURES = np.random.default_rng(3).integers(0, 256, (3, 80, 60, 3), dtype=np.uint8)


@pytest.mark.slow
@pytest.mark.parametrize("family", SHIPPED)
def test_gradient_maps_of_a_planted_cue_are_faithful(family: str) -> None:
    pictures, labels, _ = draw_pictures(40, seed=9)
    found = measure_faithfulness(
        learnt(family), pictures[labels < len(CATEGORIES) - 1][:24], methods=("gradient",), steps=4
    )
    assert len(found.comparisons) == 6
    assert all("is better than" in comparison.verdict for comparison in found.comparisons), found.comparisons
    assert found.randomised[0].correlation.high < 0.5


@pytest.mark.slow
def test_everything_is_plain_and_the_same_again() -> None:
    model = make_categoriser("blip")
    first = measure_faithfulness(model, PICTURES, steps=2, seed=4)
    assert first == measure_faithfulness(model, PICTURES, steps=2, seed=4)
    assert json.loads(json.dumps(asdict(first)))["shares"] == [0, 0.5, 1]
    names = [curve.map for curve in first.curves]
    assert names == ["raw", "gradient", "raw, of another picture", "gradient, of another picture", "random", "centre"]
    for curve in first.curves:  # all ends are the whole picture, or nothing of it
        assert curve.deletion[0] == curve.insertion[-1] == first.curves[0].deletion[0]
        assert curve.deletion[-1] == curve.insertion[0] == first.curves[0].deletion[-1]
        assert curve.deletion_area.low <= curve.deletion_area.value <= curve.deletion_area.high


@pytest.mark.parametrize("removal", ["mean", "blur"])
def test_curves_are_those_of_pictures_spoilt_cell_by_cell(removal: Removal) -> None:
    model = make_categoriser("clip")
    cells, targets = _cells((80, 60)), np.array([0, 2, 1])
    ranks = _ranks(np.random.default_rng(0).random((3, 64)), np.random.default_rng(0))
    blanked = _blanked(PICTURES, removal)
    probability = partial(_target_probability, model, PICTURES, blanked, targets)
    counts = np.array([0, 16, 32, 48, 64])
    ends = probability(np.ones((3, 80, 60), bool)), probability(np.zeros((3, 80, 60), bool))
    deletion, insertion = _curves(probability, ranks[:, cells], counts, ends)
    for index, picture in enumerate(PICTURES):
        blank = gaussian_filter(picture, (10, 7.5, 0), mode="nearest")
        if removal == "mean":
            blank = np.empty_like(picture)
            blank[:] = [round(picture[..., colour].mean()) for colour in range(3)]
        order = np.argsort(ranks[index])
        for step in range(5):
            gone, come = picture.copy(), blank.copy()
            for cell in order[: 16 * step]:
                rows, columns = slice(cell // 8 * 10, cell // 8 * 10 + 10), np.arange(60) * 8 // 60 == cell % 8
                gone[rows, columns], come[rows, columns] = blank[rows, columns], picture[rows, columns]
            for curve, shown in ((deletion, gone), (insertion, come)):
                expected = np.exp(model.log_probabilities(shown[None])[0, targets[index]])
                assert curve[index, step] == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
def test_one_map_is_followed_as_many_are() -> None:
    model = make_categoriser("clip")
    maps = explain(model, PICTURES, method="gradient")
    targets = model.log_probabilities(PICTURES).argmax(axis=1)
    found = [
        measure_picture_curves(model, picture, of_map, target)
        for picture, of_map, target in zip(PICTURES, maps, targets, strict=True)
    ]
    curves = measure_faithfulness(model, PICTURES, methods=("gradient",)).curves[0]
    assert found[0].shares == tuple(np.linspace(0, 1, 9))
    np.testing.assert_allclose(np.mean([each.deletion for each in found], axis=0), curves.deletion, rtol=1e-4)
    np.testing.assert_allclose(np.mean([each.insertion for each in found], axis=0), curves.insertion, rtol=1e-4)


def test_ranks_follow_values_and_break_ties_by_chance() -> None:
    generator = np.random.default_rng(0)
    np.testing.assert_array_equal(_ranks(np.array([[0.1, 0.9, 0.5]]), generator), [[2, 0, 1]])
    even = _ranks(np.zeros((400, 4)), generator)
    assert (np.sort(even, axis=1) == range(4)).all()
    np.testing.assert_allclose(even.mean(axis=0), 1.5, atol=0.2)


@pytest.mark.parametrize("n", [2, 3, 50])
def test_no_picture_is_its_own_control(n: int) -> None:
    values = np.arange(n)[:, None] * np.ones((1, 64))
    controls = _with_controls({"raw": values}, np.random.default_rng(n))
    others = controls["raw, of another picture"][:, 0]
    assert (others != np.arange(n)).all() and set(others) == set(range(n))
    assert {27, 28, 35, 36} == set(np.argsort(-controls["centre"][0])[:4])


def test_every_cell_has_its_pixels_where_no_grid_divides_the_picture() -> None:
    cells = _cells((80, 60))
    sizes = np.bincount(cells.ravel())
    assert len(sizes) == 64 and set(sizes) == {70, 80}
    assert cells[0, 0] == 0 and cells[79, 59] == 63 and cells[10, 0] == 8


def test_the_p_value_counts_all_flips_of_signs_where_they_are_few() -> None:
    assert _p_value(np.array([0.1, 0.2, 0.3, 0.4, 0.5]), 0) == pytest.approx(2 / 2**5)
    assert _p_value(np.zeros(8), 0) == 1


@pytest.mark.slow
def test_the_p_value_rejects_a_mean_of_zero_as_often_as_it_says() -> None:
    draws = np.random.default_rng(1).normal(size=(400, 8))
    rejected = np.mean([_p_value(gains, 0) < 0.05 for gains in draws])
    assert 0.03 <= rejected <= 0.07


@pytest.mark.slow
def test_a_map_that_is_no_better_is_called_so_and_a_worse_one_too() -> None:
    even = np.random.default_rng(0).random((2, 30))
    areas = {
        "raw": even,
        "random": even,
        "centre": even + WORSE,
        "raw, of another picture": even - WORSE,
    }
    words = {(c.control, c.curve): c.verdict for c in _compare("clip", areas, ("raw",), seed=0)}
    for curve in ("deletion", "insertion"):
        assert words["random", curve].startswith(
            f"clip's raw map is not distinguishable from a random order on {curve}"
        )
        assert words["centre", curve].startswith(f"clip's raw map is better than nearness to the centre on {curve}")
        assert words["raw, of another picture", curve].startswith(
            f"clip's raw map is worse than its map of another picture on {curve}"
        )


def test_one_picture_cannot_be_compared() -> None:
    with pytest.raises(UserError, match="two pictures"):
        measure_faithfulness(make_categoriser("clip"), PICTURES[:1])

"""Corruptions against libraries and numbers worked by hand; that nothing learns from them, read from the code."""

import ast
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vlm_core.pixels import augmentation_params
from vlm_core.pixels.corruptions import CORRUPTIONS, SEVERITIES, corrupt, studio_background

ROOT = Path(__file__).resolve().parents[2]
ROWS = np.array([5, 900, 17, 3])
ALL = [(name, severity) for name in CORRUPTIONS for severity in SEVERITIES]


def _products():
    """Ringed shapes of four colours before a nearly white ground, each with a white hole."""
    y, x = np.mgrid[0:80, 0:60]
    distance = np.hypot((y - 42) / 30, (x - 31) / 20)
    pictures = np.full((4, 80, 60, 3), 253, np.uint8)
    pictures += np.random.default_rng(0).integers(0, 3, pictures.shape, dtype=np.uint8)
    for picture, colour in zip(pictures, ([200, 30, 40], [20, 20, 20], [40, 90, 200], [230, 200, 120]), strict=True):
        rings = 0.6 + 0.4 * np.cos(9 * distance)
        inside = (distance < 1) & (distance > 0.3)
        picture[inside] = (rings[..., None] * colour).astype(np.uint8)[inside]
    return pictures


PICTURES = _products()


def _one(name, severity, picture, *, seed=0, row=0):
    return corrupt(picture[None], name, severity, seed=seed, rows=np.array([row]))[0]


@pytest.mark.parametrize(("name", "severity"), ALL)
def test_a_picture_is_spoilt_alike_wherever_it_stands_and_is_left_as_it_was(name, severity):
    before = PICTURES.copy()
    spoilt = corrupt(PICTURES, name, severity, seed=1, rows=ROWS)
    assert spoilt.shape == PICTURES.shape and spoilt.dtype == np.uint8
    np.testing.assert_array_equal(PICTURES, before)
    assert all((a != b).any() for a, b in zip(spoilt, PICTURES, strict=True))
    order = [2, 0]
    np.testing.assert_array_equal(
        corrupt(PICTURES[order], name, severity, seed=1, rows=ROWS[order]), spoilt[order], strict=True
    )


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_each_severity_takes_more_away_than_the_last(name):
    rows = np.arange(4)
    away = [
        np.abs(corrupt(PICTURES, name, severity, seed=0, rows=rows).astype(int) - PICTURES).mean()
        for severity in SEVERITIES
    ]
    assert 0 < away[0] < away[1] < away[2]


@pytest.mark.parametrize("name", sorted(CORRUPTIONS.keys() - {"blur", "jpeg"}))
def test_seeds_and_rows_draw_differently(name):
    pictures = np.repeat(PICTURES[:1], 8, axis=0)
    one, other = (corrupt(pictures, name, 2, seed=seed, rows=np.arange(8)) for seed in (0, 1))
    assert (one != other).any() and (one[0] != one[1:]).any()


def test_there_are_no_other_kinds_or_severities():
    with pytest.raises(KeyError):
        corrupt(PICTURES, "fog", 1, seed=0, rows=ROWS)
    with pytest.raises(ValueError, match="severity"):
        corrupt(PICTURES, "blur", 4, seed=0, rows=ROWS)
    assert corrupt(PICTURES[:0], "blur", 1, seed=0, rows=ROWS[:0]).shape == (0, 80, 60, 3)


def test_what_training_draws_too_is_stronger_here():
    darker = 1 / CORRUPTIONS["brightness"].strengths[0]
    assert darker < 1 - augmentation_params.MAX_JITTER
    assert CORRUPTIONS["rotation"].strengths[0] > augmentation_params.MAX_ROTATION_DEGREES
    assert CORRUPTIONS["crop"].strengths[0] < augmentation_params.MIN_CROP_AREA


@pytest.mark.parametrize("severity", SEVERITIES)
def test_blur_is_torchvisions(severity):
    from torchvision.transforms.v2.functional import gaussian_blur  # takes seconds: for the worker that needs it

    sigma = CORRUPTIONS["blur"].strengths[severity - 1]
    picture = torch.from_numpy(PICTURES[0]).permute(2, 0, 1).float()
    theirs = gaussian_blur(picture, [19, 19], [sigma, sigma]).permute(1, 2, 0).numpy()
    inner = (slice(10, -10), slice(10, -10))  # at the border it mirrors, and here the border goes on
    assert np.abs(_one("blur", severity, PICTURES[0])[inner] - theirs[inner]).max() < 1.1


@pytest.mark.parametrize("severity", SEVERITIES)
def test_noise_has_its_deviation_and_no_bias(severity):
    grey = np.full((200, 150, 3), 128, np.uint8)
    spoilt = _one("noise", severity, grey).astype(float)
    assert spoilt.std() == pytest.approx(255 * CORRUPTIONS["noise"].strengths[severity - 1], rel=0.05)
    assert spoilt.mean() == pytest.approx(128, abs=1)


def test_jpeg_is_pillows_at_that_quality():
    file = io.BytesIO()
    Image.fromarray(PICTURES[0]).save(file, "JPEG", quality=12)
    np.testing.assert_array_equal(_one("jpeg", 2, PICTURES[0]), np.asarray(Image.open(file)))


def test_brightness_goes_both_ways_by_its_factor():
    grey = np.full((4, 3, 3), 100, np.uint8)
    levels = {int(_one("brightness", 1, grey, row=row)[0, 0, 0]) for row in range(20)}
    assert levels == {round(100 / 1.5), round(255 - 155 / 1.5)}


def test_rotation_turns_about_the_middle_to_either_side_on_the_borders_colour():
    square = PICTURES[0][10:70]
    turned = [_one("rotation", 3, square, row=row) for row in range(12)]
    quarters = [np.rot90(square, turns) for turns in (1, 3)]
    assert {[np.array_equal(part, quarter) for quarter in quarters].index(True) for part in turned} == {0, 1}
    pink = np.full((80, 60, 3), (250, 150, 170), np.uint8)
    np.testing.assert_array_equal(_one("rotation", 2, pink), pink)


@pytest.mark.parametrize("row", range(6))
def test_occlusion_hides_its_share_and_more_of_the_same(row):
    black = np.zeros((80, 60, 3), np.uint8)
    hidden = [_one("occlusion", severity, black, row=row)[..., 0] == 127 for severity in SEVERITIES]
    for patch, share in zip(hidden, CORRUPTIONS["occlusion"].strengths, strict=True):
        assert patch.mean() == pytest.approx(share, abs=0.01)
    assert (hidden[0] <= hidden[1]).all() and (hidden[1] <= hidden[2]).all()


def test_the_background_ends_where_the_product_begins():
    ground = studio_background(PICTURES[1])
    y, x = np.mgrid[0:80, 0:60]
    np.testing.assert_array_equal(ground, np.hypot((y - 42) / 30, (x - 31) / 20) >= 1)  # the hole is no ground
    spoilt = _one("background", 3, PICTURES[1])
    np.testing.assert_array_equal(spoilt[~ground], PICTURES[1][~ground])
    assert np.abs(spoilt[ground].astype(int) - PICTURES[1][ground]).mean() > 60


def test_a_blank_picture_is_all_background():
    assert studio_background(np.full((8, 6, 3), 255, np.uint8)).all()


@pytest.mark.parametrize("severity", SEVERITIES)
def test_a_crop_keeps_its_share_at_the_pictures_size(severity):
    ramp = np.repeat(np.arange(0, 240, 3, dtype=np.uint8)[:, None, None], 60, axis=1).repeat(3, axis=2)
    cropped = _one("crop", severity, ramp).astype(int)
    share = np.ptp(cropped[:, 0, 0]) / np.ptp(ramp[:, 0, 0].astype(int))
    assert share**2 == pytest.approx(CORRUPTIONS["crop"].strengths[severity - 1], abs=0.03)


@given(
    st.sampled_from(ALL), st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1), st.integers(0, 2**31 - 1)
)
def test_any_picture_can_be_spoilt(kind, height, width, seed, row):
    picture = np.random.default_rng(row).integers(0, 256, (height, width, 3), dtype=np.uint8)
    assert _one(*kind, picture, seed=seed, row=row).shape == picture.shape


def _imported(path):
    """Files of the project that a file imports, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        files = (ROOT / Path(*name.split(".")).with_suffix(".py") for name in names)
        yield from (file for file in files if file.exists())


@pytest.mark.slow
def test_nothing_that_learns_reaches_them():
    found, waiting = set(), list((ROOT / "vlm_core/training").glob("*.py"))
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            waiting += _imported(path)
    names = {path.relative_to(ROOT).as_posix() for path in found}
    assert "vlm_core/pixels/augmentation_params.py" in names
    assert not {"vlm_core/pixels/corruptions.py", "vlm_core/evaluation/robustness.py"} & names

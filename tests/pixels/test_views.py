"""Views held against torchvision's own operations, and against themselves for determinism."""

import dataclasses

import numpy as np
import pytest
import torch

from vlm_core.pixels.augmentation_params import AugmentationParams, sample_params
from vlm_core.pixels.views import MEAN, STD, Preprocessing, augmented_view, mirrored_view, plain_view

ROWS = np.arange(4)
COPIES = np.zeros(4, dtype=np.int64)


def _pictures(height=80, width=60):
    """Smooth pictures: resampling kernels differ on noise, not on these."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / 9 + phase) + np.cos(y / 11 - phase) for phase in (0, 1, 2)]
    picture = ((np.stack(waves, axis=-1) + 2) / 4 * 255).astype(np.uint8)
    return np.stack([picture, picture[::-1], picture[:, ::-1], 255 - picture])


def _still(**changes) -> AugmentationParams:
    """Params that change nothing but what is named."""
    one, zero = np.ones(4, np.float32), np.zeros(4, np.float32)
    nothing = AugmentationParams(
        one, one * 60 / 80, zero, zero, zero > 0, one, one, one, zero, zero, np.zeros((4, 4, 2), np.float32)
    )
    return dataclasses.replace(nothing, **changes)


def _undo(view):
    return view * torch.tensor(STD).view(1, 3, 1, 1) + torch.tensor(MEAN).view(1, 3, 1, 1)


def _tensor(pictures):
    return torch.from_numpy(pictures.copy()).permute(0, 3, 1, 2).float() / 255


@pytest.fixture(scope="module")
def reference():
    """Torchvision's functions, which take seconds to import: in the worker alone that needs them."""
    from torchvision.transforms.v2 import functional

    return functional


def test_plain_view_is_torchvisions_antialiased_resize_normalised(reference):
    pictures = _pictures()
    theirs = reference.normalize(reference.resize(_tensor(pictures), [64, 64], antialias=True), list(MEAN), list(STD))
    torch.testing.assert_close(plain_view(pictures, 64), theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(80, 60), (60, 81), (64, 64)])
@pytest.mark.parametrize("edge", [64, 73])
def test_a_cropped_view_is_torchvisions_centre_of_the_shorter_side_resized(reference, height, width, edge):
    pictures = _pictures(height, width)
    cropped = reference.center_crop(reference.resize(_tensor(pictures), [edge], antialias=True), [64, 64])
    ours = _undo(plain_view(pictures, 64, Preprocessing(resize="crop", shorter_side=edge / 64)))
    torch.testing.assert_close(ours, cropped, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(80, 60), (60, 80)])
def test_a_padded_view_is_the_whole_picture_between_its_own_border(reference, height, width):
    pictures = _pictures(height, width)
    ours = _undo(plain_view(pictures, 64, Preprocessing(resize="pad")))
    ours = ours if height > width else ours.transpose(2, 3)
    inner = reference.resize(_tensor(pictures), [64, 48] if height > width else [48, 64], antialias=True)
    inner = inner if height > width else inner.transpose(2, 3)
    torch.testing.assert_close(ours[..., 8:56], inner, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours[..., :8], inner[..., :1].expand(-1, -1, -1, 8), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours[..., 56:], inner[..., -1:].expand(-1, -1, -1, 8), atol=1e-5, rtol=1e-5)


# A plain crop begins at a whole pixel, as processors have it: here at 10 instead of 10.67, by which the two differ.
@pytest.mark.parametrize(("resize", "tolerance"), [("crop", 0.15), ("pad", 0.05)])
def test_so_is_a_draw_that_changes_nothing(resize, tolerance):
    pictures, preprocessing = _pictures(), Preprocessing(resize=resize)
    plain = plain_view(pictures, 64, preprocessing)
    torch.testing.assert_close(augmented_view(pictures, 64, _still(), preprocessing), plain, atol=tolerance, rtol=0)


def test_a_draw_that_changes_nothing_is_the_plain_view():
    pictures = _pictures()
    torch.testing.assert_close(augmented_view(pictures, 64, _still()), plain_view(pictures, 64), atol=0.05, rtol=0)


def test_a_mirrored_view_is_the_plain_one_or_its_mirror_image():
    pictures = _pictures()
    flip = np.array([True, False, True, False])
    ours, plain = mirrored_view(pictures, 64, _still(flip=flip)), plain_view(pictures, 64)
    torch.testing.assert_close(ours[1::2], plain[1::2])
    torch.testing.assert_close(ours[::2], plain[::2].flip(3), atol=1e-5, rtol=1e-5)


def test_flip_is_torchvisions(reference):
    pictures = _pictures()
    flipped = augmented_view(pictures, 64, _still(flip=np.ones(4, bool)))
    torch.testing.assert_close(
        flipped, reference.horizontal_flip(augmented_view(pictures, 64, _still())), atol=1e-4, rtol=0
    )


def test_crop_is_torchvisions_resized_crop(reference):
    pictures = _pictures()
    quarter = np.full(4, 0.25, np.float32)
    ours = augmented_view(pictures, 64, _still(area=quarter, left=np.ones(4, np.float32)))
    theirs = reference.resized_crop(_tensor(pictures), 0, 30, 40, 30, [64, 64])
    assert (_undo(ours) - theirs)[..., 2:-2, 2:-2].abs().max() < 0.02


def test_rotation_is_torchvisions(reference):
    pictures = _pictures(64, 64)
    angle = np.full(4, np.deg2rad(10), np.float32)
    ours = _undo(augmented_view(pictures, 64, _still(rotation=angle, ratio=np.ones(4, np.float32))))
    theirs = reference.rotate(_tensor(pictures), 10, interpolation=reference.InterpolationMode.BILINEAR)
    assert (ours - theirs)[..., 16:48, 16:48].abs().max() < 0.02


def test_perspective_is_torchvisions(reference):
    pictures = _pictures(64, 64)
    corners = np.tile(np.array([[0.2, 0.1], [0.05, 0.15], [0.1, 0.1], [0.0, 0.2]], np.float32), (4, 1, 1))
    ours = _undo(augmented_view(pictures, 64, _still(corners=corners, ratio=np.ones(4, np.float32))))
    square = np.array([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])
    start = (square + 1) * 31.5
    end = (square * (1 - corners[0]) + 1) * 31.5
    theirs = reference.perspective(
        _tensor(pictures), start.tolist(), end.tolist(), interpolation=reference.InterpolationMode.BILINEAR
    )
    assert (ours - theirs)[..., 20:44, 20:44].abs().max() < 0.04


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_colour_is_torchvisions(reference, name):
    pictures, adjust = _pictures(), getattr(reference, f"adjust_{name}")
    ours = _undo(augmented_view(pictures, 64, _still(**{name: np.full(4, 1.2, np.float32)})))
    theirs = _undo(
        augmented_view((adjust(_tensor(pictures), 1.2) * 255).round().byte().permute(0, 2, 3, 1).numpy(), 64, _still())
    )
    torch.testing.assert_close(ours, theirs, atol=0.01, rtol=0)


def test_hue_keeps_grey_and_turns_full_circle():
    grey = np.full((4, 8, 8, 3), 90, np.uint8)
    turned = augmented_view(grey, 8, _still(hue=np.full(4, 1.0, np.float32), ratio=np.ones(4, np.float32)))
    torch.testing.assert_close(_undo(turned), torch.full_like(turned, 90 / 255), atol=2e-3, rtol=0)
    pictures = _pictures()
    circle = _still(hue=np.full(4, 2 * np.pi, np.float32))
    torch.testing.assert_close(
        augmented_view(pictures, 64, circle), augmented_view(pictures, 64, _still()), atol=0.02, rtol=0
    )


def test_the_same_seed_epoch_product_and_copy_give_the_same_view():
    pictures = _pictures()
    view = augmented_view(pictures, 64, sample_params(7, 3, ROWS, COPIES))
    torch.testing.assert_close(augmented_view(pictures, 64, sample_params(7, 3, ROWS, COPIES)), view, atol=0, rtol=0)
    alone = augmented_view(pictures[2:3], 64, sample_params(7, 3, ROWS[2:3], COPIES[2:3]))
    torch.testing.assert_close(alone[0], view[2], atol=1e-5, rtol=0)
    for other in (
        sample_params(8, 3, ROWS, COPIES),
        sample_params(7, 4, ROWS, COPIES),
        sample_params(7, 3, ROWS, COPIES + 1),
    ):
        assert not torch.allclose(augmented_view(pictures, 64, other), view, atol=0.05)


def test_draws_stay_within_their_bounds():
    many = sample_params(0, 1, np.arange(500), np.zeros(500, np.int64))
    assert many.area.min() >= 0.7 and many.area.max() <= 1.0
    assert np.abs(np.log(many.ratio)).max() <= np.log(4 / 3) + 1e-6
    assert 0.4 < many.flip.mean() < 0.6
    assert np.abs(many.rotation).max() <= np.deg2rad(10)
    assert 0.4 < (many.corners == 0).all(axis=(1, 2)).mean() < 0.6

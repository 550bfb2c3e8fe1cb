"""Heatmaps over pictures, as data URLs that a page can hold, and in words."""

from __future__ import annotations

import base64
import io
from typing import Final

import numpy as np
from numpy.typing import NDArray

PIXELS: Final = 300  # wide
# From little to much importance, in Okabe and Ito's colours; over a grey picture.
_WARM: Final = ((0.0, (240, 228, 66)), (0.5, (230, 159, 0)), (1.0, (190, 60, 0)))


def overlay(picture: NDArray[np.uint8], heat: NDArray[np.float32]) -> str:
    """Return the map (H, W) in warm colours over the picture (H, W, 3) in pale grey; an even map colours nothing."""
    span = float(np.ptp(heat))
    strength = (heat - heat.min()) / span if span > 1e-12 else np.zeros_like(heat)
    places = [place for place, _ in _WARM]
    channels = np.array([colour for _, colour in _WARM]).T
    warm = np.stack([np.interp(strength.ravel(), places, channel) for channel in channels], axis=-1)
    warm = warm.reshape(*heat.shape, 3)
    grey = 90 + 0.65 * picture.mean(axis=2, keepdims=True)
    alpha = 0.85 * strength[..., None] ** 0.8
    return picture_url((grey * (1 - alpha) + warm * alpha).clip(0, 255).astype(np.uint8))


def picture_url(picture: NDArray[np.uint8]) -> str:
    """Return the picture (H, W, 3), scaled to 300 pixels wide, as a JPEG data URL."""
    from PIL import Image

    height, width = picture.shape[:2]
    size = (PIXELS, round(PIXELS * height / width))
    buffer = io.BytesIO()
    Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def describe_map(heat: NDArray[np.float32]) -> str:
    """Return where the map (H, W) is strongest and how narrow it is, for those who cannot see it."""
    row, column = np.unravel_index(int(heat.argmax()), heat.shape)
    height = ("top", "middle", "bottom")[min(2, 3 * int(row) // heat.shape[0])]
    side = ("left", "centre", "right")[min(2, 3 * int(column) // heat.shape[1])]
    half = np.sort(heat.ravel())[::-1].cumsum()
    share = (int(np.searchsorted(half, 0.5 * half[-1])) + 1) / heat.size
    return f"strongest at the {height} {side}; half of the total lies on {share:.0%} of the image"

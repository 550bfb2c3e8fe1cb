"""Maps over pictures, as data URLs that a page can hold, and in words."""

from __future__ import annotations

import base64
import io
from typing import Final

import numpy as np
from numpy.typing import NDArray

PIXELS: Final = 300  # wide
# From what mattered little to what mattered most, in Okabe and Ito's colours; over a grey picture.
_WARM: Final = ((0.0, (240, 228, 66)), (0.5, (230, 159, 0)), (1.0, (190, 60, 0)))


def overlay(picture: NDArray[np.uint8], heat: NDArray[np.float32]) -> str:
    """The map (H, W) in warm colours over the picture (H, W, 3) in pale grey, as a data URL; an even map shows none."""
    span = float(np.ptp(heat))
    strength = (heat - heat.min()) / span if span > 1e-12 else np.zeros_like(heat)
    places = [place for place, _ in _WARM]
    channels = np.array([colour for _, colour in _WARM]).T
    warm = np.stack([np.interp(strength.ravel(), places, channel) for channel in channels], axis=-1)
    warm = warm.reshape(*heat.shape, 3)
    grey = 90 + 0.65 * picture.mean(axis=2, keepdims=True)
    alpha = 0.85 * strength[..., None] ** 0.8
    return _jpeg((grey * (1 - alpha) + warm * alpha).clip(0, 255).astype(np.uint8))


def plain(picture: NDArray[np.uint8]) -> str:
    """The picture (H, W, 3) as the model's canvas has it, as large as an overlay, as a data URL."""
    return _jpeg(picture)


def in_words(heat: NDArray[np.float32]) -> str:
    """Where the map is strongest and how narrow it is, for those who cannot see it."""
    row, column = np.unravel_index(int(heat.argmax()), heat.shape)
    height = ("top", "middle", "bottom")[min(2, 3 * int(row) // heat.shape[0])]
    side = ("left", "centre", "right")[min(2, 3 * int(column) // heat.shape[1])]
    half = np.sort(heat.ravel())[::-1].cumsum()
    share = (int(np.searchsorted(half, 0.5 * half[-1])) + 1) / heat.size
    return f"strongest at the {height} {side}; half of it on {share:.0%} of the picture"


def _jpeg(pixels: NDArray[np.uint8]) -> str:
    from PIL import Image

    height, width = pixels.shape[:2]
    size = (PIXELS, round(PIXELS * height / width))
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()

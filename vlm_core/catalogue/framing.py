"""The content of a picture, normalised for position, scale and margins, so that it can be compared with another's.

A hash of a whole 60x80 picture does not survive a shift: 2 pixels in each direction flip 12 of the 64 bits of a pHash
in the median and 24 in the worst percentile, a radius at which half of Myntra is one group. So the content is framed
first, by its centre and spread.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

SIDE: Final = 32  # cells per side of a frame
LUMA: Final = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601, as Pillow's grey
SPREADS: Final = 2.2  # half a frame's side, in standard deviations of the content
FAINTEST: Final = 16  # difference from the background, of 255 levels, at which content begins: above JPEG noise
FAINTEST_CELL: Final = 24  # the same for a cell of a frame


def frame_picture(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the content of a picture (H, W, 3) as cells (SIDE, SIDE, 3), normalised for position, scale and margins.

    The window is a square around the centre of what differs from the border's median; a blank picture is used whole.
    """
    from PIL import Image

    picture = Image.fromarray(pixels)
    if (factor := max(picture.size) // 96) > 1:
        picture = picture.reduce(factor)
        pixels = np.asarray(picture)
    background = background_of(pixels)
    x, y, radius = _window(np.abs(pixels @ LUMA - background @ LUMA))
    red, green, blue = (int(level) for level in background)
    window = picture.transform(
        (2 * SIDE, 2 * SIDE),
        Image.Transform.EXTENT,
        (x - radius, y - radius, x + radius, y + radius),
        Image.Resampling.BILINEAR,
        fillcolor=(red, green, blue),
    )
    return np.asarray(window.resize((SIDE, SIDE), Image.Resampling.BOX))


def hash_frame(frame: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return the pHash (64,) of a frame."""
    import imagehash
    from PIL import Image

    return np.asarray(imagehash.phash(Image.fromarray(frame), hash_size=8).hash.ravel())


def _window(ink: NDArray[np.float32]) -> tuple[float, float, float]:
    """Return centre (x, y) and half side of the content's window in pixels; `ink` (H, W) is contrast."""
    height, width = ink.shape
    ink[ink < FAINTEST] = 0
    total = float(ink.sum())
    if total < 0.2 * ink.size:
        return width / 2, height / 2, max(height, width) / 2
    x, y = np.arange(width) + 0.5, np.arange(height) + 0.5
    across, down = ink.sum(axis=0) / total, ink.sum(axis=1) / total
    centre_x, centre_y = float(across @ x), float(down @ y)
    variance = max(float(across @ (x - centre_x) ** 2), float(down @ (y - centre_y) ** 2))
    return centre_x, centre_y, max(4.0, SPREADS * variance**0.5)


def background_of(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the median colour (3,) of the border of a picture (H, W, 3)."""
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    border.sort(axis=0)
    return np.asarray(border[len(border) // 2], dtype=np.float32)

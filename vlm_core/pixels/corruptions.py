"""Eight image corruptions that no training uses, each at three severities, applied at the stored size.

After Hendrycks & Dietterich 2019, https://arxiv.org/abs/1903.12261, whose strengths are for 224 pixels (ImageNet-C) and
32 (CIFAR-10-C). The strengths here lie between or beyond these. They were chosen by eye on 60x80 images of the real
catalogue: severity 1 is mild, and a person still recognises the product at severity 3. Occlusion is random erasing
(Zhong et al. 2017, https://arxiv.org/abs/1708.04896); rotation, crop and another background occur in product photos
taken outside a studio. Where training augments in the same way (`vlm_core.pixels.augmentation_params`), even severity 1
is beyond its range.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vlm_core.pixels.arrays import Picture, Pictures, Rows

SEVERITIES: Final = (1, 2, 3)
BACKGROUND_TOLERANCE: Final = 20  # levels of 255 around the border's median, above JPEG's noise
_OCCLUDER: Final = 127  # grey
_CELLS_ACROSS: Final = 4  # coloured patches of a background's texture


@dataclass(frozen=True)
class Corruption:
    """An image corruption and its strengths at severity 1, 2 and 3."""

    apply: Callable[[Picture, float, np.random.Generator], Picture]
    strengths: tuple[float, float, float]
    unit: str  # of the strengths


def corrupt(pictures: Pictures, name: str, severity: int, *, seed: int, rows: Rows) -> Pictures:
    """Return the images (n, H, W, 3) under the corruption `CORRUPTIONS[name]`.

    Random numbers depend on seed, name and row (n,) only, so an image gets the same noise, side and position at each
    severity and in any batch. Raise KeyError for an unknown name, and ValueError for another severity than 1, 2 or 3.
    """
    corruption = CORRUPTIONS[name]
    if severity not in SEVERITIES:
        raise ValueError(f"severity is 1, 2 or 3, not {severity}")
    strength, stream = corruption.strengths[severity - 1], zlib.crc32(name.encode())
    corrupted = np.empty_like(pictures)
    for index, (picture, row) in enumerate(zip(pictures, rows, strict=True)):
        corrupted[index] = corruption.apply(picture, strength, np.random.default_rng([seed, stream, int(row)]))
    return corrupted


def studio_background(picture: Picture) -> NDArray[np.bool_]:
    """Return a mask (H, W) of the background: what is connected to the border and has nearly its median colour."""
    from scipy.ndimage import label

    distance = np.abs(picture - np.median(_border(picture), axis=0)).transpose(2, 0, 1).max(axis=0)
    regions, _ = label(distance <= BACKGROUND_TOLERANCE)
    at_border = np.unique(_border(regions))
    return np.isin(regions, at_border[at_border > 0])


def _border(values: NDArray[np.integer]) -> NDArray[np.integer]:
    """Return the border (2 H + 2 W, ...) of an array (H, W, ...), with its corners twice."""
    return np.concatenate([values[0], values[-1], values[:, 0], values[:, -1]])


def _blur(picture: Picture, sigma: float, generator: np.random.Generator) -> Picture:
    from scipy.ndimage import gaussian_filter

    return _to_uint8(gaussian_filter(picture.astype(np.float32), (sigma, sigma, 0), mode="nearest"))


def _noise(picture: Picture, deviation: float, generator: np.random.Generator) -> Picture:
    return _to_uint8(picture + 255 * deviation * generator.standard_normal(picture.shape, dtype=np.float32))


def _jpeg(picture: Picture, quality: float, generator: np.random.Generator) -> Picture:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=int(quality))
    return np.asarray(Image.open(file))


def _brightness(picture: Picture, factor: float, generator: np.random.Generator) -> Picture:
    """Darken about half of the images by the factor; for the others divide the distance to white by it."""
    if generator.random() < 0.5:
        return _to_uint8(picture / np.float32(factor))
    return _to_uint8(255 - (255 - picture) / np.float32(factor))


def _rotation(picture: Picture, degrees: float, generator: np.random.Generator) -> Picture:
    """Rotate to the left or the right, and fill with the border's median colour."""
    from PIL import Image

    red, green, blue = (int(level) for level in np.median(_border(picture), axis=0))
    angle = degrees if generator.random() < 0.5 else -degrees
    rotated = Image.fromarray(picture).rotate(angle, Image.Resampling.BICUBIC, fillcolor=(red, green, blue))
    return np.asarray(rotated)


def _occlusion(picture: Picture, share: float, generator: np.random.Generator) -> Picture:
    """Hide a share of the image behind a grey patch of the image's aspect ratio."""
    top, left, height, width = _random_box(picture, share, generator)
    occluded = picture.copy()
    occluded[top : top + height, left : left + width] = _OCCLUDER
    return occluded


def _background(picture: Picture, share: float, generator: np.random.Generator) -> Picture:
    """Mix a random texture of coloured patches into the studio background; the product stays unchanged."""
    from PIL import Image

    height, width = picture.shape[:2]
    cells = generator.integers(0, 256, (round(_CELLS_ACROSS * height / width), _CELLS_ACROSS, 3), dtype=np.uint8)
    texture = np.asarray(Image.fromarray(cells).resize((width, height), Image.Resampling.BICUBIC), dtype=np.float32)
    mixed = _to_uint8((1 - share) * picture + share * texture)
    return np.where(studio_background(picture)[:, :, None], mixed, picture)


def _crop(picture: Picture, share: float, generator: np.random.Generator) -> Picture:
    """Crop a share of the area at a random position, and resize it to the image's size."""
    from PIL import Image

    top, left, height, width = _random_box(picture, share, generator)
    part = Image.fromarray(picture[top : top + height, left : left + width])
    return np.asarray(part.resize((picture.shape[1], picture.shape[0]), Image.Resampling.BICUBIC))


def _random_box(picture: Picture, share: float, generator: np.random.Generator) -> tuple[int, int, int, int]:
    """Return top, left, height and width of a box of the image's aspect ratio; the same stream gives nested boxes."""
    height, width = (max(1, round(side * share**0.5)) for side in picture.shape[:2])
    y, x = generator.random(2)
    return round(y * (picture.shape[0] - height)), round(x * (picture.shape[1] - width)), height, width


def _to_uint8(values: NDArray[np.floating]) -> Picture:
    rounded: Picture = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return rounded


CORRUPTIONS: Final[dict[str, Corruption]] = {
    "blur": Corruption(_blur, (0.7, 1.4, 2.2), "sigma of a Gaussian, pixels"),
    "noise": Corruption(_noise, (0.06, 0.12, 0.22), "standard deviation of Gaussian noise, share of the range"),
    "jpeg": Corruption(_jpeg, (25, 12, 7), "JPEG quality"),
    "brightness": Corruption(_brightness, (1.5, 2.2, 3.5), "factor towards black or white"),
    "rotation": Corruption(_rotation, (20, 45, 90), "degrees"),
    "occlusion": Corruption(_occlusion, (0.06, 0.14, 0.25), "share of the image hidden"),
    "background": Corruption(_background, (0.2, 0.45, 0.8), "share of another texture in the background"),
    "crop": Corruption(_crop, (0.6, 0.45, 0.33), "share of the image kept"),
}

"""Pictures spoilt in eight ways that no training uses, each at three severities, at the size they are kept in.

After Hendrycks & Dietterich 2019, https://arxiv.org/abs/1903.12261, whose strengths are for 224 pixels (ImageNet-C) and
32 (CIFAR-10-C): those here lie between or beyond, chosen by eye on 60x80 pictures of the real catalogue, so that the
first is mild and a person still knows the product at the third. Occlusion is that of random erasing (Zhong et al. 2017,
https://arxiv.org/abs/1708.04896); rotation, crop and another background are what shops' pictures meet outside of a
studio. Where training augments as well (`vlm_core.pixels.augmentation_params`), even the mildest strength lies beyond
what it draws.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]  # (H, W, 3)

SEVERITIES: Final = (1, 2, 3)
GROUND_TOLERANCE: Final = 20  # levels of 255 from the border's median, above JPEG's noise: still background
_OCCLUDER: Final = 127  # grey
_CELLS_ACROSS: Final = 4  # coloured patches of a background's texture


@dataclass(frozen=True)
class Corruption:
    """One way to spoil a picture, and how strongly at severity 1, 2 and 3."""

    apply: Callable[[Picture, float, np.random.Generator], Picture]
    strengths: tuple[float, float, float]
    unit: str  # of the strengths, for people


def corrupt(
    pictures: NDArray[np.uint8], name: str, severity: int, *, seed: int, rows: NDArray[np.int64]
) -> NDArray[np.uint8]:
    """The pictures (n, H, W, 3) spoilt as `CORRUPTIONS[name]` says; draws depend on seed, name and row (n,) alone.

    So a picture meets the same noise, side and place at each severity, in whatever company it comes.
    Raises KeyError for an unknown name, ValueError for another severity than 1, 2 or 3.
    """
    corruption = CORRUPTIONS[name]
    if severity not in SEVERITIES:
        raise ValueError(f"severity is 1, 2 or 3, not {severity}")
    strength, kind = corruption.strengths[severity - 1], zlib.crc32(name.encode())
    spoilt = np.empty_like(pictures)
    for index, (picture, row) in enumerate(zip(pictures, rows, strict=True)):
        spoilt[index] = corruption.apply(picture, strength, np.random.default_rng([seed, kind, int(row)]))
    return spoilt


def studio_background(picture: Picture) -> NDArray[np.bool_]:
    """Where (H, W) the background is: all that hangs together with the border and has nearly its median colour."""
    from scipy.ndimage import label

    away = np.abs(picture - np.median(_border(picture), axis=0)).transpose(2, 0, 1).max(axis=0)
    patches, _ = label(away <= GROUND_TOLERANCE)
    rim = np.unique(_border(patches))
    return np.isin(patches, rim[rim > 0])


def _border(values: NDArray[np.integer]) -> NDArray[np.integer]:
    """What stands at the border (2 H + 2 W, ...) of an array (H, W, ...), its corners twice."""
    return np.concatenate([values[0], values[-1], values[:, 0], values[:, -1]])


def _blur(picture: Picture, sigma: float, generator: np.random.Generator) -> Picture:
    from scipy.ndimage import gaussian_filter

    return _levels(gaussian_filter(picture.astype(np.float32), (sigma, sigma, 0), mode="nearest"))


def _noise(picture: Picture, deviation: float, generator: np.random.Generator) -> Picture:
    return _levels(picture + 255 * deviation * generator.standard_normal(picture.shape, dtype=np.float32))


def _jpeg(picture: Picture, quality: float, generator: np.random.Generator) -> Picture:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=int(quality))
    return np.asarray(Image.open(file))


def _brightness(picture: Picture, factor: float, generator: np.random.Generator) -> Picture:
    """About half of the pictures darker by the factor; of the others the distance to white shrinks by it."""
    if generator.random() < 0.5:
        return _levels(picture / np.float32(factor))
    return _levels(255 - (255 - picture) / np.float32(factor))


def _rotation(picture: Picture, degrees: float, generator: np.random.Generator) -> Picture:
    """To the left or the right, on a ground of the border's median colour."""
    from PIL import Image

    red, green, blue = (int(level) for level in np.median(_border(picture), axis=0))
    angle = degrees if generator.random() < 0.5 else -degrees
    turned = Image.fromarray(picture).rotate(angle, Image.Resampling.BICUBIC, fillcolor=(red, green, blue))
    return np.asarray(turned)


def _occlusion(picture: Picture, share: float, generator: np.random.Generator) -> Picture:
    """A grey patch of the picture's own shape before a share of it."""
    top, left, height, width = _place(picture, share, generator)
    hidden = picture.copy()
    hidden[top : top + height, left : left + width] = _OCCLUDER
    return hidden


def _background(picture: Picture, share: float, generator: np.random.Generator) -> Picture:
    """A drawn texture of coloured patches mixed into the studio background; the product stays as it is."""
    from PIL import Image

    height, width = picture.shape[:2]
    cells = generator.integers(0, 256, (round(_CELLS_ACROSS * height / width), _CELLS_ACROSS, 3), dtype=np.uint8)
    texture = np.asarray(Image.fromarray(cells).resize((width, height), Image.Resampling.BICUBIC), dtype=np.float32)
    mixed = _levels((1 - share) * picture + share * texture)
    return np.where(studio_background(picture)[:, :, None], mixed, picture)


def _crop(picture: Picture, share: float, generator: np.random.Generator) -> Picture:
    """A part with a share of the area, anywhere, at the picture's own size."""
    from PIL import Image

    top, left, height, width = _place(picture, share, generator)
    part = Image.fromarray(picture[top : top + height, left : left + width])
    return np.asarray(part.resize((picture.shape[1], picture.shape[0]), Image.Resampling.BICUBIC))


def _place(picture: Picture, share: float, generator: np.random.Generator) -> tuple[int, int, int, int]:
    """Top, left, height and width of a part of the picture's own shape; a larger one at the same draw lies over it."""
    height, width = (max(1, round(side * share**0.5)) for side in picture.shape[:2])
    down, across = generator.random(2)
    return round(down * (picture.shape[0] - height)), round(across * (picture.shape[1] - width)), height, width


def _levels(values: NDArray[np.floating]) -> Picture:
    rounded: Picture = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return rounded


CORRUPTIONS: Final[dict[str, Corruption]] = {
    "blur": Corruption(_blur, (0.7, 1.4, 2.2), "sigma of a Gaussian, pixels"),
    "noise": Corruption(_noise, (0.06, 0.12, 0.22), "standard deviation of Gaussian noise, share of the range"),
    "jpeg": Corruption(_jpeg, (25, 12, 7), "JPEG quality"),
    "brightness": Corruption(_brightness, (1.5, 2.2, 3.5), "factor towards black or white"),
    "rotation": Corruption(_rotation, (20, 45, 90), "degrees"),
    "occlusion": Corruption(_occlusion, (0.06, 0.14, 0.25), "share of the picture hidden"),
    "background": Corruption(_background, (0.2, 0.45, 0.8), "share of another texture in the background"),
    "crop": Corruption(_crop, (0.6, 0.45, 0.33), "share of the picture kept"),
}

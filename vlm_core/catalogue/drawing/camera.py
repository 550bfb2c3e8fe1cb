"""The camera that turns a drawing into a shop's picture: paper, shadow, relief, light and noise."""

import math
from functools import cache
from random import Random

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from vlm_core.catalogue.drawing.pen import HEIGHT, OVERSAMPLING, WIDTH

Pixels = NDArray[np.floating]


def photograph(layer: Image.Image, rng: Random) -> Image.Image:
    """Return an RGB picture, 60x80, of a drawn layer, with paper, shadow, relief, light and the camera's noise."""
    # Channels first: numpy is several times slower where the last axis has three elements.
    small = np.asarray(layer.reduce(OVERSAMPLING)).transpose(2, 0, 1).astype(np.float32, order="C")  # (4, 80, 60)
    colour, cover = small[:3], small[3] / 255
    swell = _swell(cover)
    # In place, which takes a third of the time that new arrays take.
    picture, product = _paper(rng), _light(rng)  # (3, 80, 60) each
    picture *= 1 - _shadow(swell, rng)
    product *= colour
    product *= _relief(swell, rng)
    product -= picture
    product *= cover
    picture += product
    grain = np.random.default_rng(rng.getrandbits(32)).standard_normal(picture.shape, dtype=np.float32)
    grain *= rng.choice((0.5, 1.0, 2.0, 4.0))
    picture += grain
    return Image.fromarray(np.ascontiguousarray(picture.clip(0, 255).astype(np.uint8).transpose(1, 2, 0)))


@cache
def _grid() -> tuple[Pixels, Pixels]:
    across = np.linspace(-1, 1, WIDTH, dtype=np.float32)[None, :]
    return np.linspace(-1, 1, HEIGHT, dtype=np.float32)[:, None], across


def _slope(rng: Random) -> Pixels:
    """Return a plane through 0 in the middle, at most 1 in a corner, sloping in any direction; (80, 60)."""
    angle = rng.uniform(0, 2 * math.pi)
    down, across = _grid()
    return across * (math.cos(angle) / math.sqrt(2)) + down * (math.sin(angle) / math.sqrt(2))


def _paper(rng: Random) -> Pixels:
    """Return the background: white for three of four pictures, else grey or a pale colour; (3, 80, 60)."""
    kind = rng.choices(("white", "grey", "colour"), (74, 12, 14))[0]
    if kind == "white":
        return np.full((3, HEIGHT, WIDTH), rng.choice((255, 255, 253, 248)), dtype=np.float32)
    shade, spread = rng.uniform(170, 235), 0 if kind == "grey" else 30
    base = np.array([shade + rng.uniform(-spread, spread) for _ in range(3)], dtype=np.float32)
    return base[:, None, None] + _slope(rng) * rng.uniform(5, 30)


def _swell(cover: Pixels) -> Pixels:
    """Return the product's height above the paper, 0 to 1, highest in its middle; (80, 60)."""
    mask = Image.fromarray((cover * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(3))
    return np.asarray(mask, dtype=np.float32) / 255


def _shadow(swell: Pixels, rng: Random) -> Pixels:
    """Return the share of light that the product blocks from the paper, for three of five pictures; (80, 60)."""
    if rng.random() < 0.4:
        return np.zeros_like(swell)
    down, right = rng.randint(1, 3), rng.randint(-2, 2)
    padded = np.pad(swell, ((3, 0), (2, 2)), mode="edge")
    return padded[3 - down : 3 - down + HEIGHT, 2 - right : 2 - right + WIDTH] * rng.uniform(0.1, 0.4)


def _relief(swell: Pixels, rng: Random) -> Pixels:
    """Return the light that falls on the relief from above or from one side, about 1; (80, 60)."""
    strength, angle = rng.uniform(0.6, 2.2), rng.uniform(-0.6, 0.6)
    relief = np.ones_like(swell)
    relief[:-1] += (swell[1:] - swell[:-1]) * (strength * math.cos(angle))
    relief[:, :-1] += (swell[:, 1:] - swell[:, :-1]) * (strength * math.sin(angle))
    return relief


def _light(rng: Random) -> Pixels:
    tint = np.array([rng.gauss(1, 0.012) for _ in range(3)], dtype=np.float32)
    return tint[:, None, None] * rng.uniform(0.9, 1.04) * (1 + _slope(rng) * rng.uniform(0, 0.1))

"""A pen that draws flat shapes in product space, and the patterns of its cloth.

Product space has x to the right and y downwards, (0, 0) in the middle of the picture; the picture is about 2.4 units
wide and 3.2 high. Shapes are drawn three times too large and reduced, which smooths their edges.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import Final

import numpy as np
from PIL import Image, ImageDraw

Colour = tuple[int, int, int]
Outline = Sequence[tuple[float, float]]

WIDTH: Final = 60
HEIGHT: Final = 80
OVERSAMPLING: Final = 3
UNIT_PIXELS: Final = 25 * OVERSAMPLING
EDGE_PIXELS: Final = 2
BLACK: Final[Colour] = (18, 18, 20)
WHITE: Final[Colour] = (252, 252, 252)
STEEL: Final[Colour] = (176, 180, 186)
GOLD: Final[Colour] = (206, 168, 84)
RIBBONS: Final[tuple[Colour, ...]] = ((196, 30, 46), (206, 168, 84), (40, 90, 170), (150, 40, 120))


def mix(first: Colour, second: Colour, share: float) -> Colour:
    """Return the colour between two: the first for `share` 0, the second for 1."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(first, second, strict=True))
    return red, green, blue


def is_dark(colour: Colour) -> bool:
    """Return whether white shows better on the colour than black."""
    return 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] < 110


def mirrored(half: Outline) -> Outline:
    """Return a symmetrical outline from its right half, which runs from top to bottom."""
    return [*half, *((-x, y) for x, y in reversed(half))]


def curved(outline: Outline, closed: bool = True, steps: int = 5) -> Outline:
    """Return the Catmull-Rom curve through the points, `steps` points per segment."""
    points = np.asarray(outline, dtype=np.float64)
    padded = np.concatenate([points[-1:], points, points[:2]] if closed else [points[:1], points, points[-1:]])
    a, b, c, d = padded[:-3], padded[1:-2], padded[2:-1], padded[3:]
    t = np.linspace(0, 1, steps, endpoint=False)[:, None, None]
    path = (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3) / 2
    flat = path.transpose(1, 0, 2).reshape(-1, 2).tolist()  # (stretches * steps, 2)
    return [(x, y) for x, y in flat] if closed else [*((x, y) for x, y in flat), outline[-1]]


def limb(start: tuple[float, float], angle: float, length: float, widths: tuple[float, float]) -> Outline:
    """Return a tapering band from `start`, `angle` radians from straight down: a sleeve, an arm, a strap."""
    (x, y), (first, last) = start, widths
    along, across = (math.sin(angle), math.cos(angle)), (math.cos(angle), -math.sin(angle))
    ends = [(x, y, first), (x + along[0] * length, y + along[1] * length, last)]
    left, right = ([(a + side * across[0] * w, b + side * across[1] * w) for a, b, w in ends] for side in (-1, 1))
    return [*left, *reversed(right)]


@dataclass(frozen=True)
class DrawingStyle:
    """The appearance of a product apart from its shape."""

    main: Colour
    accent: Colour
    pattern: str  # a key of PATTERNS
    gender: str
    worn: bool  # on a person, if the product is a garment
    ribbon: bool


class Pen:
    """Draws on one transparent layer, through one placement: scale, rotation, stretch, mirror and shift."""

    def __init__(self, style: DrawingStyle, rng: Random) -> None:
        self.style, self.rng = style, rng
        self.layer = Image.new("RGBA", (WIDTH * OVERSAMPLING, HEIGHT * OVERSAMPLING), (*style.main, 0))
        self._draw = ImageDraw.Draw(self.layer)
        self._cloth: Image.Image | None = None
        self._place_at_random()

    def _place_at_random(self) -> None:
        rng = self.rng
        scale = UNIT_PIXELS * (rng.uniform(1.1, 1.3) if rng.random() < 0.06 else rng.uniform(0.8, 1.06))
        turn = math.radians(rng.uniform(-30, 30) if rng.random() < 0.12 else rng.gauss(0, 3))
        stretch, mirror = rng.uniform(0.9, 1.1), (-1 if rng.random() < 0.2 else 1)
        x, y = scale * stretch * mirror, scale / stretch
        self._matrix = (x * math.cos(turn), -y * math.sin(turn), x * math.sin(turn), y * math.cos(turn))
        self._middle = (WIDTH * OVERSAMPLING * rng.uniform(0.45, 0.55), HEIGHT * OVERSAMPLING * rng.uniform(0.45, 0.55))
        self._unframed = (self._matrix, self._middle)

    def frame(self, x: float, y: float, zoom: float) -> None:
        """Centre the point, `zoom` times as large, for everything that is drawn after."""
        a, b, c, d = (value * zoom for value in self._matrix)
        self._matrix = (a, b, c, d)
        self._middle = (self._middle[0] - a * x - b * y, self._middle[1] - c * x - d * y)

    def _place(self, outline: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
        a, b, c, d = self._matrix
        left, top = self._middle
        return [(left + a * x + b * y, top + c * x + d * y) for x, y in outline]

    def fill(self, outline: Outline, colour: Colour, edge: float = 0.3) -> None:
        """Draw a filled shape with a darker edge, without which white cloth would vanish on white paper."""
        points = self._place(outline)
        self._draw.polygon(points, fill=colour)
        if edge:
            self._draw.line([*points, points[0]], fill=mix(colour, BLACK, edge), width=EDGE_PIXELS)

    def cloth(self, outline: Outline) -> None:
        """Draw a shape in the product's own colour and pattern."""
        if self.style.pattern == "Solid":
            return self.fill(outline, self.style.main)
        points, mask = self._place(outline), Image.new("L", self.layer.size)
        ImageDraw.Draw(mask).polygon(points, fill=255)
        self.layer.paste(self._woven(), mask=mask)
        self._draw.line([*points, points[0]], fill=mix(self.style.main, BLACK, 0.35), width=EDGE_PIXELS)

    def _woven(self) -> Image.Image:
        if self._cloth is None:
            self._cloth = Image.new("RGBA", self.layer.size, self.style.main)
            layer, self._draw = self._draw, ImageDraw.Draw(self._cloth)
            PATTERNS[self.style.pattern](self)
            self._draw = layer
        return self._cloth

    def line(self, points: Outline, colour: Colour, width: float = 0.03) -> None:
        """Draw straight strokes from point to point, their width in units."""
        self._draw.line(self._place(points), fill=colour, width=max(1, round(width * self._unit())), joint="curve")

    def stroke(self, points: Outline, colour: Colour, width: float = 0.03) -> None:
        """Draw a smooth stroke through the points."""
        self.line(curved(points, closed=False), colour, width)

    def _unit(self) -> float:
        """Return the pixels per unit, measured downwards."""
        return math.hypot(self._matrix[1], self._matrix[3])

    def dot(self, x: float, y: float, radius: float, colour: Colour) -> None:
        """Draw a small disc without an edge: a button, a flower, an eye."""
        self._draw.circle(self._place([(x, y)])[0], radius * self._unit(), fill=colour)

    def oval(self, x: float, y: float, width: float, height: float, colour: Colour, edge: float = 0.3) -> None:
        """Draw a filled ellipse around (x, y); width and height are half axes."""
        self.fill(ring(x, y, width, height), colour, edge)

    def box(self, left: float, top: float, right: float, bottom: float, colour: Colour, edge: float = 0.3) -> None:
        """Draw a filled rectangle."""
        self.fill([(left, top), (right, top), (right, bottom), (left, bottom)], colour, edge)

    def ribbon(self) -> None:
        """Draw a gift's small bow somewhere on the product, of one size whatever was framed."""
        self._matrix, self._middle = self._unframed
        x, y, colour = self.rng.uniform(-0.45, 0.45), self.rng.uniform(-0.55, 0.3), self.rng.choice(RIBBONS)
        for side in (-1, 1):
            self.fill([(x, y), (x + side * 0.3, y - 0.19), (x + side * 0.27, y + 0.12)], colour)
            self.fill([(x, y), (x + side * 0.24, y + 0.36), (x + side * 0.1, y + 0.4)], mix(colour, BLACK, 0.15))
        self.oval(x, y, 0.08, 0.08, mix(colour, WHITE, 0.2))


def ring(x: float, y: float, width: float, height: float, points: int = 24) -> Outline:
    """Return the outline of an ellipse with the given half axes."""
    return [(x + width * across, y + height * down) for across, down in _circle(points)]


@cache
def _circle(points: int) -> Outline:
    angles = [2 * math.pi * step / points for step in range(points)]
    return [(math.cos(angle), math.sin(angle)) for angle in angles]


def _across(pen: Pen) -> None:
    gap, width = pen.rng.uniform(0.12, 0.26), pen.rng.uniform(0.04, 0.1)
    for step in range(-12, 13):
        pen.line([(-2, step * gap), (2, step * gap)], pen.style.accent, width)


def _down(pen: Pen) -> None:
    gap = pen.rng.uniform(0.08, 0.16)
    for step in range(-12, 13):
        pen.line([(step * gap, -2), (step * gap, 2)], pen.style.accent, 0.025)


def _checks(pen: Pen) -> None:
    gap, between = pen.rng.uniform(0.14, 0.24), mix(pen.style.main, pen.style.accent, 0.6)
    for step in range(-12, 13):
        pen.line([(step * gap, -2.5), (step * gap, 2.5)], between, 0.05)
    for step in range(-12, 13):
        pen.line([(-2, step * gap), (2, step * gap)], pen.style.accent, 0.04)


def _dots(pen: Pen) -> None:
    gap = pen.rng.uniform(0.15, 0.24)
    for row in range(round(-1.1 / gap), round(1.6 / gap)):
        for column in range(-4, 5):
            pen.dot((column + row % 2 / 2) * gap, row * gap, gap * 0.24, pen.style.accent)


def _flowers(pen: Pen) -> None:
    for _ in range(50):
        x, y, size = pen.rng.uniform(-0.8, 0.8), pen.rng.uniform(-1.1, 1.4), pen.rng.uniform(0.03, 0.08)
        pen.dot(x, y, size, pen.style.accent)
        pen.dot(x, y, size * 0.35, mix(pen.style.accent, WHITE, 0.6))


def _motif(pen: Pen) -> None:
    x, y, size = pen.rng.uniform(-0.06, 0.06), pen.rng.uniform(-0.55, -0.4), pen.rng.uniform(0.12, 0.2)
    blob = [(px * pen.rng.uniform(0.6, 1.2), py * pen.rng.uniform(0.6, 1.2)) for px, py in ring(0, 0, size, size, 9)]
    pen.fill([(x + px, y + py) for px, py in blob], pen.style.accent, edge=0)
    pen.line([(x - size, y + size * 1.4), (x + size, y + size * 1.4)], pen.style.accent, 0.05)


def _blocks(pen: Pen) -> None:
    height = pen.rng.uniform(-0.6, -0.2)
    pen.box(-2, height, 2, 3, pen.style.accent, edge=0)


def _washed(pen: Pen) -> None:
    for side in (-1, 1):
        pen.fill(ring(side * 0.2, 0.6, 0.07, 0.5), mix(pen.style.main, WHITE, pen.rng.uniform(0.15, 0.4)), edge=0)


PATTERNS: Final[dict[str, Callable[[Pen], None]]] = {
    "Solid": lambda pen: None,
    "Striped": _across,
    "Pinstriped": _down,
    "Checked": _checks,
    "Polka Dot": _dots,
    "Floral": _flowers,
    "Printed": _motif,
    "Colourblocked": _blocks,
    "Washed": _washed,
}

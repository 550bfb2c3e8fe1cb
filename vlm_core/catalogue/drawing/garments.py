"""Garments: one function per kind, which draws it with a pen in product space (see `pen`).

All share one figure, on which they are worn or laid flat: head at y -1.2, shoulders -0.85, waist -0.1, knees 0.85,
feet 1.5. `Pen.frame` then frames the part that matters.
"""

import math
from typing import Final

from vlm_core.catalogue.drawing.pen import (
    BLACK,
    GOLD,
    WHITE,
    Colour,
    Outline,
    Pen,
    curved,
    is_dark,
    limb,
    mirrored,
    mix,
)

SKINS: Final[tuple[Colour, ...]] = ((244, 208, 180), (226, 178, 140), (190, 136, 98), (142, 94, 66), (96, 62, 46))
HAIRS: Final[tuple[Colour, ...]] = ((28, 22, 20), (66, 42, 28), (120, 80, 46), (60, 58, 60))
BASICS: Final[tuple[Colour, ...]] = ((40, 44, 60), (236, 236, 236), (120, 112, 104), (56, 76, 120), (30, 30, 32))
SIDE: Final[Outline] = ((0.34, -0.86), (0.4, -0.8), (0.35, -0.5))  # shoulder to armpit
FRINGE: Final[Outline] = (
    (-0.19, -1.2),
    (-0.15, -1.4),
    (0, -1.47),
    (0.15, -1.4),
    (0.19, -1.2),
    (0.1, -1.32),
    (-0.1, -1.33),
)
LEG: Final[Outline] = ((0.33, 0.1), (0.27, 0.85), (0.24, 1.5), (0.11, 1.5), (0.09, 0.85), (0.02, 0.3))


def _figure(pen: Pen, arms: float, above: bool = False, below: bool = True) -> None:
    """Draw the person who wears the garment; `above` and `below` say where other clothes are needed."""
    rng = pen.rng
    skin, hair, other = rng.choice(SKINS), rng.choice(HAIRS), rng.choice(BASICS)
    long_hair = pen.style.gender in ("Women", "Girls")
    for side in (-1, 1):
        pen.fill([(side * x, y) for x, y in LEG], skin)
        pen.fill(limb((side * 0.31, -0.75), side * arms, 0.95, (0.085, 0.055)), skin)
    if below:
        pen.fill(_trousers(1.5, 0.33, 0.08), other)
    if long_hair:
        pen.fill(curved(mirrored([(0.14, -1.42), (0.24, -1.2), (0.25, -0.74)])), hair)
    pen.fill(mirrored([(0.085, -1.1), (0.1, -0.92), (0.34, -0.84), (0.3, 0.1)]), skin)
    pen.oval(0, -1.2, 0.165, 0.22, skin)
    for side in (-1, 1):
        pen.dot(side * 0.065, -1.2, 0.018, BLACK)
    pen.line([(-0.04, -1.075), (0.04, -1.075)], mix(skin, (170, 30, 40), 0.6), 0.022)
    pen.fill(curved(FRINGE), hair)
    if above:
        pen.fill(mirrored([(0.13, -0.9), *SIDE, (0.34, 0.06)]), other)
        for side in (-1, 1):
            pen.fill(_sleeve(side, arms, 0.36), other)


def _trousers(hem: float, outer: float, inner: float) -> Outline:
    return mirrored([(0.31, -0.06), (0.37, 0.25), (outer, hem), (inner, hem), (0.0, 0.4)])


def _sleeve(side: int, angle: float, length: float) -> Outline:
    """Return a sleeve from shoulder and armpit to the cuff, `angle` radians from straight down."""
    along, across = (math.sin(angle), math.cos(angle)), (math.cos(angle), -math.sin(angle))
    x, y = 0.42 + along[0] * length, -0.79 + along[1] * length
    cuff = 0.2 - 0.05 * length
    inner = (x - across[0] * cuff, y - across[1] * cuff)
    return [(side * x, y) for x, y in [(0.26, -0.87), (0.36, -0.85), (0.42, -0.79), (x, y), inner, (0.33, -0.48)]]


def _top(pen: Pen, sleeve: float, hem: float = 0.2, flare: float = 0.0, neck: float = 0.13, dip: float = 0.1) -> None:
    """Draw the upper garment that the others build on: `sleeve` is a length in units, 0 for none."""
    worn = pen.style.worn
    angle = pen.rng.uniform(0.12, 0.32) if worn else pen.rng.uniform(0.25, 0.9)
    if worn:
        _figure(pen, angle)
    for side in (-1, 1):
        if sleeve:
            pen.cloth(_sleeve(side, angle, sleeve))
    shoulders = SIDE if sleeve else ((0.33, -0.86), (0.34, -0.52))
    half = [(neck, -0.92), *shoulders, (0.31, -0.15), (0.35 + flare, hem)]
    pen.cloth([*half, *((-x, y) for x, y in reversed(half)), (-neck * 0.6, -0.92 + dip), (neck * 0.6, -0.92 + dip)])
    for x in (-0.22, 0.24):
        pen.line([(x, hem - 0.05), (x * 0.9, hem - 0.3)], mix(pen.style.main, BLACK, 0.22), 0.02)


def _frame_top(pen: Pen) -> None:
    pen.frame(0, -0.5 if pen.style.worn else -0.34, 1.35 if pen.style.worn else 1.5)


def tshirt(pen: Pen) -> None:
    _frame_top(pen)
    _top(pen, sleeve=0.4, neck=0.14)
    pen.line([(-0.14, -0.91), (-0.08, -0.81), (0.08, -0.81), (0.14, -0.91)], pen.style.accent, 0.035)


def shirt(pen: Pen) -> None:
    _frame_top(pen)
    _top(pen, sleeve=pen.rng.choice((0.42, 0.86, 0.86)), hem=0.28, neck=0.12, dip=0.05)
    main, mark = pen.style.main, mix(pen.style.main, BLACK, 0.35)
    pen.line([(0, -0.84), (0, 0.27)], mark, 0.02)
    for step in range(6):
        pen.dot(0.03, -0.7 + step * 0.16, 0.018, mix(main, WHITE, 0.7) if is_dark(main) else mark)
    for side in (-1, 1):
        pen.fill([(0, -0.84), (side * 0.15, -0.95), (side * 0.2, -0.86), (side * 0.1, -0.72)], mix(main, WHITE, 0.15))
    if pen.rng.random() < 0.6:
        pen.line([(0.12, -0.5), (0.12, -0.34), (0.25, -0.34), (0.25, -0.5), (0.12, -0.5)], mark, 0.015)


def blouse(pen: Pen) -> None:
    _frame_top(pen)
    _top(pen, sleeve=pen.rng.choice((0.0, 0.0, 0.25)), hem=0.16, flare=pen.rng.uniform(0, 0.14), dip=0.26)
    pen.line([(-0.32, -0.18), (0.32, -0.18)], pen.style.accent, 0.045)


def sweatshirt(pen: Pen) -> None:
    _frame_top(pen)
    _top(pen, sleeve=0.9, hem=0.2, neck=0.15, dip=0.08)
    rib = mix(pen.style.main, BLACK, 0.25)
    pen.box(-0.35, 0.14, 0.35, 0.23, rib)
    if pen.rng.random() < 0.55:
        pen.fill(curved(mirrored([(0.1, -1.02), (0.22, -0.9), (0.08, -0.76)])), rib)
        pen.fill(mirrored([(0.16, -0.2), (0.24, 0.02)]), mix(pen.style.main, BLACK, 0.12))


def jacket(pen: Pen) -> None:
    _frame_top(pen)
    _top(pen, sleeve=0.9, hem=0.24, neck=0.14, dip=0.05)
    main, inner = pen.style.main, pen.style.accent
    pen.fill([(-0.08, -0.9), (0.08, -0.9), (0.05, -0.3), (0.08, 0.24), (-0.08, 0.24), (-0.05, -0.3)], inner)
    for side in (-1, 1):
        pen.fill([(side * 0.06, -0.6), (side * 0.1, -0.96), (side * 0.24, -0.86)], mix(main, BLACK, 0.2))
        pen.line([(side * 0.14, -0.1), (side * 0.28, -0.02)], mix(main, BLACK, 0.45), 0.03)


def kurta(pen: Pen) -> None:
    pen.frame(0, -0.12, 1.05)
    _top(pen, sleeve=pen.rng.choice((0.45, 0.7, 0.9)), hem=0.72, flare=0.1, neck=0.11, dip=0.06)
    trim = pen.style.accent
    pen.line([(0, -0.88), (0, -0.42)], trim, 0.05)
    pen.fill(mirrored([(0.44, 0.64), (0.45, 0.73)]), trim)
    for side in (-1, 1):
        pen.line([(side * 0.39, 0.3), (side * 0.36, 0.63)], mix(pen.style.main, BLACK, 0.4), 0.03)


def dress(pen: Pen) -> None:
    pen.frame(0, -0.1, 1.08)
    angle, hem = pen.rng.uniform(0.12, 0.4), pen.rng.uniform(0.6, 0.95)
    if pen.style.worn:
        _figure(pen, angle, below=False)
    if pen.rng.random() < 0.4:
        for side in (-1, 1):
            pen.cloth(_sleeve(side, angle, 0.26))
    half = [(0.17, -0.92), (0.3, -0.88), (0.29, -0.5), (0.23, -0.16), (pen.rng.uniform(0.38, 0.62), hem)]
    pen.cloth([*half, *((-x, y) for x, y in reversed(half)), (0, -0.66)])
    pen.fill(mirrored([(0.245, -0.2), (0.24, -0.11)]), pen.style.accent)
    for x in (-0.2, -0.05, 0.14):
        pen.line([(x * 0.7, -0.05), (x * 1.5, hem - 0.04)], mix(pen.style.main, BLACK, 0.2), 0.018)


def saree(pen: Pen) -> None:
    pen.frame(0, 0, 0.94)
    border = pen.style.accent
    _figure(pen, pen.rng.uniform(0.15, 0.4), below=False)
    for side in (-1, 1):
        pen.fill(_sleeve(side, 0.25, 0.26), border)
    pen.fill(mirrored([(0.2, -0.88), *SIDE, (0.28, -0.4)]), border)
    pen.cloth(curved(mirrored([(0.26, -0.22), (0.36, 0.2), (0.42, 1.1), (0.5, 1.46)])))
    pen.fill(mirrored([(0.47, 1.34), (0.5, 1.46)]), border)
    for x in (-0.12, 0.0, 0.12):
        pen.line([(x, 0.0), (x * 1.6, 1.34)], mix(pen.style.main, BLACK, 0.25), 0.02)
    pen.cloth([(0.16, -0.92), (0.36, -0.86), (0.0, -0.1), (-0.34, 0.14), (-0.3, -0.2)])
    pen.cloth([(0.24, -0.9), (0.4, -0.82), (0.62, 0.5), (0.66, 0.95), (0.42, 0.9)])
    pen.line([(0.4, -0.82), (0.62, 0.5), (0.66, 0.95), (0.42, 0.9)], border, 0.06)
    pen.line([(0.16, -0.92), (-0.3, -0.2)], border, 0.06)


def _legwear(pen: Pen, hem: float, outer: float, inner: float, zoom: float = 1.3) -> None:
    pen.frame(0, (hem - 0.1) / 2, zoom)
    if pen.style.worn:
        _figure(pen, 0.12, above=True, below=False)
        shoes = pen.rng.choice(BASICS)
        for side in (-1, 1):
            pen.oval(side * 0.18, 1.52, 0.12, 0.06, shoes)
    pen.cloth(_trousers(hem, outer, inner))
    shade = mix(pen.style.main, BLACK, 0.35)
    pen.line([(-0.31, 0.0), (0.31, 0.0)], shade, 0.03)
    pen.line([(0, 0.0), (0, 0.4)], shade, 0.025)
    for side in (-1, 1):
        pen.line([(side * 0.18, 0.02), (side * 0.33, 0.16)], shade, 0.02)
        pen.line([(side * 0.2, 0.5), (side * 0.2, hem - 0.1)], mix(pen.style.main, BLACK, 0.14), 0.02)


def jeans(pen: Pen) -> None:
    _legwear(pen, 1.42, pen.rng.uniform(0.27, 0.33), 0.08)
    for side in (-1, 1):
        pen.line([(side * 0.1, 1.38), (side * 0.28, 1.38)], GOLD, 0.02)
    pen.dot(0, 0.01, 0.025, GOLD)


def trousers(pen: Pen) -> None:
    _legwear(pen, 1.42, pen.rng.uniform(0.3, 0.36), 0.05)
    pen.box(-0.3, -0.06, 0.3, 0.02, mix(pen.style.main, BLACK, 0.4))


def track_pants(pen: Pen) -> None:
    _legwear(pen, 1.4, 0.3, 0.09)
    for side in (-1, 1):
        pen.line([(side * 0.33, 0.1), (side * 0.35, 0.3), (side * 0.3, 1.38)], pen.style.accent, 0.045)
    pen.line([(0.03, 0.0), (0.06, 0.2)], WHITE, 0.02)


def shorts(pen: Pen) -> None:
    _legwear(pen, pen.rng.uniform(0.62, 0.85), 0.43, 0.07, zoom=1.6)


def skirt(pen: Pen) -> None:
    hem, width = pen.rng.uniform(0.6, 1.1), pen.rng.uniform(0.34, 0.62)
    pen.frame(0, 0.35, 1.35)
    if pen.style.worn:
        _figure(pen, 0.15, above=True, below=False)
    pen.cloth(mirrored([(0.27, -0.08), (0.35, 0.15), (width, hem)]))
    for x in (-0.18, -0.06, 0.07, 0.2):
        pen.line([(x, 0.05), (x * width / 0.3, hem - 0.03)], mix(pen.style.main, BLACK, 0.22), 0.02)
    pen.box(-0.28, -0.1, 0.28, 0.0, pen.style.accent)

"""Shoes: one function per kind, which draws it with a pen in product space (see `pen`).

Closed shoes are seen from the side with the toe to the left: x from -1 to 1, the sole's bottom at y 0.42.
"""

from collections.abc import Callable
from typing import Final

from vlm_core.catalogue.drawing.pen import BLACK, WHITE, Colour, Outline, Pen, curved, mirrored, mix

SOLE: Final[Outline] = [(-0.98, 0.25), (-0.4, 0.28), (0.3, 0.22), (0.93, 0.16), (0.95, 0.38), (-0.9, 0.42)]


def _maybe_a_pair(pen: Pen, draw_one: Callable[[Pen], None]) -> None:
    """Draw the shoe, in some pictures with the other one behind it."""
    if pen.rng.random() < 0.3:
        pen.frame(0, 0, 0.8)
        pen.frame(-0.22, 0.3, 1.0)
        draw_one(pen)
        pen.frame(0.42, -0.46, 1.0)
    draw_one(pen)


def _shoe(pen: Pen, collar: float, sole: Colour, thick: float = 0.0) -> None:
    """Draw the body of a closed shoe; `collar` is the height of its opening, `thick` is added to the sole."""
    toe = pen.rng.uniform(-0.06, 0.04)
    pen.fill(curved([(0.1, -0.22 - collar), (0.5, -0.2 - collar / 2), (0.82, -0.28 - collar), (0.5, 0.0)]), BLACK)
    upper = [(0.93, 0.25), (0.96, -0.05), (0.86, -0.3 - collar), (0.5, -0.12 - collar / 2), (0.08, -0.26 - collar)]
    pen.cloth(curved([*upper, (-0.3, -0.05 + toe), (-0.8, 0.06 + toe), (-1.0, 0.27), (0.0, 0.32)]))
    pen.fill(curved([(x, y + (thick if y > 0.3 else 0)) for x, y in SOLE]), sole)


def _laces(pen: Pen, colour: Colour, count: int = 4) -> None:
    for step in range(count):
        x, y = 0.02 - step * 0.11, -0.2 + step * 0.075
        pen.line([(x - 0.06, y - 0.03), (x + 0.12, y + 0.09)], colour, 0.035)


def casual_shoe(pen: Pen) -> None:
    collar, pale = pen.rng.choice((0.0, 0.05, 0.3)), pen.rng.random() < 0.6

    def one(pen: Pen) -> None:
        _shoe(pen, collar, WHITE if pale else mix(pen.style.main, BLACK, 0.45))
        if collar:
            pen.fill(curved([(-1.0, 0.26), (-0.84, 0.08), (-0.62, 0.08), (-0.6, 0.28)]), pen.style.accent)
            _laces(pen, WHITE)
        else:
            pen.stroke([(-0.62, 0.2), (-0.5, 0.02), (-0.2, -0.02), (0.1, 0.1)], pen.style.accent)

    _maybe_a_pair(pen, one)


def sports_shoe(pen: Pen) -> None:
    stripes, high = pen.rng.randint(1, 3), pen.rng.choice((0.04, 0.08))

    def one(pen: Pen) -> None:
        main, accent = pen.style.main, pen.style.accent
        _shoe(pen, high, WHITE, thick=0.1)
        pen.line([(-0.9, 0.42), (0.0, 0.44), (0.9, 0.38)], accent, 0.06)
        pen.fill(curved([(0.6, 0.18), (0.62, -0.2), (0.9, -0.34), (0.97, 0.1)]), accent)
        for step in range(stripes):
            x = 0.42 - step * 0.2
            pen.line([(x, 0.2), (x - 0.24, -0.1)], accent, 0.075)
        pen.stroke([(-0.95, 0.18), (-0.7, 0.06), (-0.5, 0.24)], mix(main, BLACK, 0.35), 0.05)
        _laces(pen, WHITE)

    _maybe_a_pair(pen, one)


def formal_shoe(pen: Pen) -> None:
    laced, cap = pen.rng.random() < 0.6, pen.rng.random() < 0.5

    def one(pen: Pen) -> None:
        dark, light = mix(pen.style.main, BLACK, 0.5), mix(pen.style.main, WHITE, 0.28)
        pen.fill([(0.45, 0.3), (0.95, 0.26), (0.94, 0.52), (0.5, 0.52)], dark)
        _shoe(pen, 0.02, dark, thick=-0.06)
        if cap:
            pen.stroke([(-0.62, 0.26), (-0.52, 0.12), (-0.56, 0.0)], dark, 0.03)
        if laced:
            _laces(pen, dark, 3)
        else:
            pen.line([(-0.24, -0.02), (0.1, 0.14)], dark, 0.06)
        pen.line([(-0.86, 0.12), (-0.66, 0.06)], light, 0.04)

    _maybe_a_pair(pen, one)


def heel(pen: Pen) -> None:
    seat, wide, strap = pen.rng.uniform(-0.3, 0.1), pen.rng.uniform(0.08, 0.3), pen.rng.random() < 0.5
    top = [(-1.0, 0.5), (-0.75, 0.32), (-0.4, 0.12), (-0.1, 0.24), (0.35, seat + 0.12), (0.64, seat - 0.08)]
    back = [(0.92, seat - 0.34), (0.99, seat), (0.86, seat + 0.14), (0.45, seat + 0.36), (0.05, 0.5), (-0.8, 0.57)]

    def one(pen: Pen) -> None:
        dark = mix(pen.style.main, BLACK, 0.4)
        pen.fill([(0.6, seat + 0.2), (0.98, seat), (0.93, 0.58), (0.93 - wide, 0.58)], dark)
        pen.cloth(curved([*top, *back]))
        pen.stroke([(-0.96, 0.55), (-0.3, 0.57), (0.1, 0.5), (0.46, seat + 0.38)], dark, 0.05)
        if strap:
            ankle = [(0.92, seat - 0.28), (0.6, seat - 0.5), (0.2, seat - 0.2), (0.12, seat * 0.6 + 0.16)]
            pen.stroke(ankle, pen.style.main, 0.07)
            pen.oval(0.4, seat - 0.38, 0.05, 0.05, pen.style.accent)

    _maybe_a_pair(pen, one)


def sandal(pen: Pen) -> None:
    two, lift = pen.rng.random() < 0.6, pen.rng.uniform(0.0, 0.25)

    def one(pen: Pen) -> None:
        main, inner = pen.style.main, mix(pen.style.main, BLACK, 0.55)
        bands = [(-0.5, 0.3, 0.3), *([(0.0, 0.24, 0.42)] if two else [])]
        for x, wide, tall in bands:
            top = 0.34 - tall
            pen.fill(curved([(x - wide, 0.32), (x - 0.06, top), (x + 0.1, top), (x + wide, 0.3)]), inner)
        pen.stroke([(0.9, 0.2 - lift), (0.86, -0.26), (0.55, -0.36), (0.3, -0.12), (0.2, 0.28)], main, 0.11)
        pen.fill(curved([(-1.0, 0.3), (-0.2, 0.33), (0.9, 0.24 - lift), (0.96, 0.48), (-0.9, 0.5)]), inner)
        pen.line([(-0.96, 0.32), (-0.1, 0.34), (0.9, 0.26 - lift)], pen.style.accent, 0.06)
        for x, wide, tall in bands:
            top, left = 0.34 - tall, x - wide
            band = [(left, 0.32), (x - 0.08, top), (x + 0.12, top), (x + 0.16, top + 0.08), (left + 0.24, 0.33)]
            pen.cloth(curved(band))
        pen.oval(0.5, -0.32, 0.07, 0.07, mix(pen.style.accent, WHITE, 0.3))

    _maybe_a_pair(pen, one)


def flip_flop(pen: Pen) -> None:
    if pen.rng.random() < 0.45:
        _flip_flop_from_the_side(pen)
    else:
        _flip_flops_from_above(pen)


def _flip_flop_from_the_side(pen: Pen) -> None:
    main, strap = pen.style.main, pen.style.accent
    pen.fill(curved([(-0.98, 0.26), (0.0, 0.3), (0.92, 0.16), (0.96, 0.36), (-0.92, 0.48)]), main)
    pen.line([(-0.92, 0.26), (0.0, 0.28), (0.9, 0.17)], mix(main, WHITE, 0.4), 0.05)
    pen.stroke([(-0.62, 0.28), (-0.42, -0.06), (0.0, 0.02), (0.45, 0.24)], strap, 0.13)
    pen.stroke([(-0.62, 0.28), (-0.5, 0.08), (-0.3, -0.02)], strap, 0.08)


def _flip_flops_from_above(pen: Pen) -> None:
    main, strap = pen.style.main, pen.style.accent
    sole = curved(mirrored([(0.16, -0.98), (0.36, -0.6), (0.25, 0.1), (0.3, 0.6), (0.14, 0.92)]))
    for x in (-0.44, 0.44):
        pen.fill([(px + x, py) for px, py in sole], mix(main, BLACK, 0.15))
        pen.fill([(px * 0.82 + x, py * 0.9) for px, py in sole], main, edge=0)
        for way in (-1, 1):
            pen.stroke([(x, -0.6), (x + way * 0.2, -0.25), (x + way * 0.27, 0.15)], strap, 0.1)
        pen.oval(x, -0.58, 0.06, 0.06, mix(strap, BLACK, 0.3))

"""Personal care: one function per kind, which draws it with a pen in product space (see `pen`)."""

from vlm_core.catalogue.drawing.pen import BLACK, GOLD, STEEL, WHITE, Colour, Pen, curved, is_dark, mirrored, mix


def _label(pen: Pen, middle: float, width: float, height: float, paper: Colour) -> None:
    """Draw a paper label with lines in place of words."""
    pen.box(-width, middle - height, width, middle + height, paper, edge=0.15)
    ink = WHITE if is_dark(paper) else mix(pen.style.main, BLACK, 0.4)
    for step, share in ((-0.4, 0.7), (0.1, 0.5), (0.5, 0.6)):
        pen.line([(-width * share, middle + height * step), (width * share, middle + height * step)], ink, 0.03)


def _carton(pen: Pen) -> None:
    """Draw a carton beside some bottles, and move the bottle to the other side."""
    if pen.rng.random() < 0.25:
        left, top = 0.12, pen.rng.uniform(-0.95, -0.6)
        pen.box(left, top, left + 0.66, 0.95, mix(pen.style.main, WHITE, 0.35))
        pen.line([(left + 0.12, 0.0), (left + 0.54, 0.0)], pen.style.accent, 0.06)
        pen.line([(left + 0.2, 0.16), (left + 0.46, 0.16)], pen.style.accent, 0.04)
        pen.frame(0.42, 0, 1.0)


def perfume(pen: Pen) -> None:
    rng, glass = pen.rng, mix(pen.style.main, WHITE, 0.3)
    wide, top = rng.uniform(0.36, 0.62), rng.uniform(-0.45, -0.1)
    _carton(pen)
    metal = rng.choice((GOLD, STEEL, BLACK))
    pen.box(-0.09, top - 0.22, 0.09, top, STEEL)
    tall = rng.uniform(0.25, 0.45)
    pen.fill(mirrored([(0.17, top - 0.14 - tall), (0.2, top - 0.12)]), metal)
    shapes = (
        mirrored([(wide * 0.9, top), (wide, top + 0.1), (wide, 0.86), (wide * 0.9, 0.92)]),
        curved(mirrored([(0.14, top), (wide, top + 0.5), (wide * 0.9, 0.8), (0.2, 0.92)])),
        curved(mirrored([(wide * 0.5, top), (wide * 0.62, top + 0.4), (wide, 0.85), (0.2, 0.92)])),
    )
    body = rng.choice(shapes)
    pen.fill(body, glass)
    level = top + rng.uniform(0.15, 0.4)
    pen.fill([(x * 0.84, max(level, y * 0.95)) for x, y in body], pen.style.main, edge=0.1)
    pen.line([(-wide * 0.55, level + 0.1), (-wide * 0.6, 0.6)], mix(glass, WHITE, 0.6), 0.05)
    if rng.random() < 0.6:
        _label(pen, (level + 0.9) / 2, wide * 0.45, 0.16, mix(glass, WHITE, 0.75))


def deodorant(pen: Pen) -> None:
    rng, main = pen.rng, pen.style.main
    wide, top = rng.uniform(0.22, 0.32), rng.uniform(-0.7, -0.5)
    _carton(pen)
    lid = rng.choice((pen.style.accent, STEEL, mix(main, BLACK, 0.5)))
    pen.fill(curved(mirrored([(wide * 0.62, top - 0.42), (wide * 0.8, top - 0.36), (wide * 0.84, top)]), steps=3), lid)
    pen.fill(curved(mirrored([(wide * 0.85, top), (wide, top + 0.16), (wide, 1.0), (wide * 0.9, 1.08)]), steps=3), main)
    pen.box(-wide * 0.75, top + 0.2, -wide * 0.5, 1.0, mix(main, WHITE, 0.4), edge=0)
    _label(pen, rng.uniform(0.1, 0.4), wide * 0.8, rng.uniform(0.2, 0.34), pen.style.accent)
    pen.line([(-wide, 0.86), (wide, 0.86)], pen.style.accent, 0.05)


def lipstick(pen: Pen) -> None:
    rng, main = pen.rng, pen.style.main
    case = rng.choice((BLACK, GOLD, STEEL, mix(main, BLACK, 0.6)))
    aside = rng.random() < 0.6
    if aside:
        pen.frame(0.3, 0, 1.0)
        pen.box(0.42, -0.1, 0.86, 0.95, case)
        pen.box(0.5, -0.1, 0.56, 0.95, mix(case, WHITE, 0.35), edge=0)
    pen.box(-0.22, 0.15, 0.22, 0.95, case)
    pen.box(-0.14, 0.2, -0.08, 0.9, mix(case, WHITE, 0.35), edge=0)
    pen.box(-0.18, -0.12, 0.18, 0.16, rng.choice((GOLD, STEEL)))
    pen.fill([(-0.14, -0.1), (-0.14, -0.5), (-0.02, -0.82), (0.12, -0.72), (0.14, -0.1)], main)
    pen.line([(-0.05, -0.2), (-0.05, -0.6)], mix(main, WHITE, 0.4), 0.04)
    if rng.random() < 0.4:
        pen.box(0.45, -1.0, 0.85, -0.65, main)


def nail_polish(pen: Pen) -> None:
    rng, main = pen.rng, pen.style.main
    wide, lid = rng.uniform(0.28, 0.42), rng.choice((BLACK, WHITE, GOLD, STEEL))
    pen.fill(mirrored([(0.13, -0.95), (0.19, -0.02)]), lid)
    pen.line([(-0.06, -0.85), (-0.08, -0.1)], mix(lid, WHITE, 0.4), 0.04)
    half = [(0.2, 0.0), (wide, 0.14), (wide * rng.uniform(0.9, 1.2), 0.75), (wide * 0.8, 0.86)]
    pen.fill(curved(mirrored(half), steps=3), main)
    pen.line([(-wide * 0.6, 0.2), (-wide * 0.62, 0.7)], mix(main, WHITE, 0.55), 0.06)
    if rng.random() < 0.3:
        pen.fill(curved([(0.5, 0.5), (0.9, 0.4), (1.0, 0.7), (0.62, 0.86)]), main)


def face_wash(pen: Pen) -> None:
    """Draw a tube that stands on its cap."""
    rng, main = pen.rng, pen.style.main
    wide = rng.uniform(0.34, 0.46)
    pen.box(-0.2, 0.7, 0.2, 1.0, pen.style.accent)
    pen.fill(mirrored([(wide, -0.95), (wide, -0.8), (0.24, 0.72)]), main)
    pen.line([(-wide, -0.86), (wide, -0.86)], mix(main, BLACK, 0.25), 0.03)
    _label(pen, rng.uniform(-0.4, -0.1), wide * 0.6, 0.24, mix(main, WHITE, 0.7))
    pen.stroke([(-0.24, 0.3), (0.0, 0.16), (0.24, 0.34)], pen.style.accent, 0.09)


def compact(pen: Pen) -> None:
    """Draw an open powder box: the mirror above, the powder below."""
    case, powder = mix(pen.style.accent, BLACK, 0.4), pen.style.main
    pen.oval(0, -0.42, 0.6, 0.52, case)
    pen.oval(0, -0.42, 0.5, 0.42, (206, 220, 230), edge=0.1)
    pen.line([(-0.25, -0.3), (0.05, -0.65)], WHITE, 0.06)
    pen.oval(0, 0.45, 0.66, 0.4, case)
    pen.oval(0, 0.43, 0.52, 0.29, powder)
    pen.stroke([(-0.3, 0.44), (0, 0.32), (0.3, 0.44)], mix(powder, WHITE, 0.35), 0.05)

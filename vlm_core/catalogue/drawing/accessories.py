"""Accessories: one function per kind, which draws it with a pen in product space (see `pen`)."""

import math

from vlm_core.catalogue.drawing.pen import BLACK, GOLD, STEEL, WHITE, Pen, curved, is_dark, limb, mirrored, mix, ring


def watch(pen: Pen) -> None:
    rng, strap, dial = pen.rng, pen.style.main, pen.style.accent
    metal, size = rng.choice((STEEL, GOLD, BLACK)), rng.uniform(0.42, 0.58)
    width = rng.uniform(0.2, 0.3)
    for way in (-1, 1):
        pen.fill(mirrored([(width, way * 0.3), (width * 0.75, way * 1.2)]), strap)
        for step in range(5):
            y = way * (0.55 + step * 0.14)
            pen.line([(-width * 0.8, y), (width * 0.8, y)], mix(strap, BLACK, 0.3), 0.02)
    pen.box(size - 0.05, -0.07, size + 0.1, 0.07, metal)
    if rng.random() < 0.3:
        pen.fill(mirrored([(size * 0.8, -size), (size * 0.95, 0), (size * 0.8, size)]), metal)
        pen.box(-size * 0.7, -size * 0.75, size * 0.7, size * 0.75, dial)
    else:
        pen.oval(0, 0, size, size, metal)
        pen.oval(0, 0, size * 0.8, size * 0.8, dial)
    ink = WHITE if is_dark(dial) else BLACK
    if rng.random() < 0.35:
        for x, y in ((-0.17, 0.0), (0.17, 0.0), (0, 0.18)):
            pen.dot(x, y, 0.09, mix(dial, ink, 0.3))
    for hour in range(12):
        x, y = math.cos(hour * math.pi / 6), math.sin(hour * math.pi / 6)
        pen.line([(x * size * 0.58, y * size * 0.58), (x * size * 0.7, y * size * 0.7)], ink, 0.035)
    for length in (0.4, 0.58):
        angle = rng.randint(0, 59) * math.pi / 30
        pen.line([(0, 0), (math.cos(angle) * size * length, math.sin(angle) * size * length)], ink, 0.04)


def handbag(pen: Pen) -> None:
    rng, main = pen.rng, pen.style.main
    wide, tall, dark = rng.uniform(0.7, 0.92), rng.uniform(0.45, 0.75), mix(main, BLACK, 0.35)
    reach = rng.uniform(0.5, 0.9)
    for size in (1.0, 0.82):
        x, y = 0.34 * size, -reach * size
        pen.stroke([(-0.4, -0.1), (-x, y), (x, y), (0.4, -0.1)], dark, 0.08)
    half = [(wide * 0.78, -0.22), (wide * 0.92, 0.1), (wide, tall), (wide * 0.8, tall + 0.12)]
    pen.cloth(curved(mirrored(half)))
    style = rng.randint(0, 2)
    if style == 0:
        pen.fill(curved(mirrored([(wide * 0.76, -0.24), (wide * 0.6, 0.1), (0.1, 0.24)])), dark)
    elif style == 1:
        pen.line([(-wide * 0.9, 0.08), (wide * 0.9, 0.08)], dark, 0.05)
        pen.fill(mirrored([(wide * 0.5, 0.2), (wide * 0.5, tall)]), mix(main, BLACK, 0.12))
    pen.box(-0.07, 0.08, 0.07, 0.24, GOLD if rng.random() < 0.6 else STEEL)
    for side in (-1, 1):
        pen.oval(side * 0.4, -0.12, 0.05, 0.05, GOLD)


def backpack(pen: Pen) -> None:
    main, trim, dark = pen.style.main, pen.style.accent, mix(pen.style.main, BLACK, 0.35)
    wide = pen.rng.uniform(0.58, 0.75)
    pen.stroke([(-0.16, -0.9), (-0.14, -1.14), (0.14, -1.14), (0.16, -0.9)], dark, 0.07)
    for side in (-1, 1):
        pen.stroke([(side * 0.4, -0.75), (side * (wide + 0.2), -0.2), (side * (wide + 0.05), 0.6)], dark, 0.09)
    pen.cloth(curved(mirrored([(0.3, -0.98), (wide * 0.92, -0.6), (wide, 0.2), (wide * 0.96, 0.85), (0.3, 0.95)])))
    pen.stroke([(-wide * 0.85, 0.0), (-wide * 0.6, -0.62), (wide * 0.6, -0.62), (wide * 0.85, 0.0)], trim, 0.05)
    pen.fill(curved(mirrored([(wide * 0.6, 0.12), (wide * 0.76, 0.4), (wide * 0.7, 0.82)])), mix(main, BLACK, 0.15))
    pen.line([(-wide * 0.6, 0.3), (wide * 0.6, 0.3)], trim, 0.05)
    pen.box(-0.12, -0.4, 0.12, -0.26, trim)


def wallet(pen: Pen) -> None:
    rng, main = pen.rng, pen.style.main
    wide, tall, dark = rng.uniform(0.72, 0.95), rng.uniform(0.42, 0.62), mix(main, BLACK, 0.35)
    corner = 0.08
    half = [(wide - corner, -tall), (wide, -tall + corner), (wide, tall - corner), (wide - corner, tall)]
    if rng.random() < 0.4:
        pen.fill([(x + 0.08, y - 0.12) for x, y in mirrored(half)], mix(main, BLACK, 0.25))
    pen.cloth(mirrored(half))
    pen.line([(x * 0.9, y * 0.84) for x, y in [*mirrored(half), half[0]]], mix(main, WHITE, 0.35), 0.018)
    if rng.random() < 0.5:
        pen.fill([(wide, -0.12), (wide * 0.55, -0.1), (wide * 0.5, 0), (wide * 0.55, 0.1), (wide, 0.12)], dark)
        pen.oval(wide * 0.6, 0, 0.05, 0.05, GOLD)
    else:
        pen.line([(0, -tall), (0, tall)], dark, 0.03)
        pen.box(wide * 0.5, tall * 0.5, wide * 0.78, tall * 0.68, pen.style.accent, edge=0)


def belt(pen: Pen) -> None:
    """Draw a rolled belt with its buckle in front."""
    main, dark, metal = pen.style.main, mix(pen.style.main, BLACK, 0.4), pen.rng.choice((STEEL, GOLD))
    wide, flat, deep = pen.rng.uniform(0.8, 0.95), pen.rng.uniform(0.25, 0.5), pen.rng.uniform(0.22, 0.34)
    pen.fill(ring(0, -flat * 0.6, wide, flat), dark)
    inside = WHITE if pen.rng.random() < 0.5 else mix(dark, BLACK, 0.3)
    pen.fill(ring(0, -flat * 0.6 + deep * 0.8, wide * 0.97, flat), inside)
    front = [(math.cos(step * math.pi / 16), math.sin(step * math.pi / 16)) for step in range(17)]
    upper = [(x * wide, -flat * 0.6 + y * flat) for x, y in front]
    pen.cloth([*upper, *((x, y + deep) for x, y in reversed(upper))])
    pen.line([(x, y + deep * 0.5) for x, y in upper], mix(main, WHITE, 0.25), 0.02)
    middle = flat * 0.4 + deep / 2
    pen.box(-0.24, middle - deep * 0.75, 0.24, middle + deep * 0.75, metal)
    pen.box(-0.14, middle - deep * 0.45, 0.14, middle + deep * 0.45, dark)
    pen.line([(-0.2, middle), (0.12, middle)], metal, 0.05)


def sunglasses(pen: Pen) -> None:
    rng, frame = pen.rng, pen.style.main
    round_, tall, lens = rng.random() < 0.5, rng.uniform(0.26, 0.4), mix(pen.style.accent, BLACK, 0.5)
    for side in (-1, 1):
        pen.stroke([(side * 0.9, -0.16), (side * 0.98, -0.5), (side * 0.62, -0.62)], mix(frame, BLACK, 0.2), 0.07)
        half = ring(side * 0.48, 0, 0.44, tall)
        if not round_:
            half = curved([(side * 0.9, -tall), (side * 0.06, -tall * 0.85), (side * 0.2, tall), (side * 0.72, tall)])
        pen.fill(half, frame)
        pen.fill([(side * 0.48 + (x - side * 0.48) * 0.8, y * 0.76) for x, y in half], lens)
        pen.line([(side * 0.48 - 0.16, 0.08), (side * 0.48 + 0.04, -0.14)], mix(lens, WHITE, 0.45), 0.05)
    pen.stroke([(-0.1, -0.06), (0, -0.13), (0.1, -0.06)], frame, 0.07)


def tie(pen: Pen) -> None:
    wide = pen.rng.uniform(0.2, 0.3)
    pen.cloth(mirrored([(0.1, -0.92), (wide, 0.85), (0.0, 1.15)]))
    pen.fill(mirrored([(0.15, -1.12), (0.09, -0.88)]), mix(pen.style.main, BLACK, 0.2))


def cap(pen: Pen) -> None:
    main, dark = pen.style.main, mix(pen.style.main, BLACK, 0.3)
    pen.cloth(curved([(-0.62, 0.2), (-0.6, -0.2), (-0.2, -0.56), (0.3, -0.54), (0.68, -0.1), (0.7, 0.24), (0.1, 0.28)]))
    pen.fill(curved([(-0.6, 0.1), (-0.1, 0.18), (0.1, 0.3), (-0.5, 0.4), (-1.02, 0.44), (-1.0, 0.3)]), dark)
    pen.stroke([(0.06, -0.56), (-0.1, -0.2), (-0.08, 0.16)], dark, 0.025)
    pen.stroke([(0.06, -0.56), (0.4, -0.2), (0.44, 0.22)], dark, 0.025)
    pen.oval(0.06, -0.57, 0.06, 0.04, pen.style.accent)
    pen.dot(-0.32, -0.14, 0.12, mix(main, pen.style.accent, 0.9))


def socks(pen: Pen) -> None:
    leg = [(-0.24, 0.3), (-0.22, -0.95), (0.22, -0.95), (0.24, 0.2)]
    foot = [(0.2, 0.7), (-0.3, 0.95), (-0.72, 0.9), (-0.7, 0.6)]
    for shift in (0.24, -0.2):
        pen.cloth([(x + shift, y + shift * 0.3) for x, y in [*leg, *foot]])
        top = -0.95 + shift * 0.3
        pen.box(shift - 0.22, top, shift + 0.22, top + 0.2, pen.style.accent)
        pen.oval(shift - 0.58, 0.76 + shift * 0.3, 0.13, 0.15, pen.style.accent)
        pen.oval(shift + 0.08, 0.55 + shift * 0.3, 0.13, 0.17, pen.style.accent)


def earrings(pen: Pen) -> None:
    rng, metal = pen.rng, pen.style.main
    style, long = rng.randint(0, 2), rng.uniform(0.35, 0.7)
    for x in (-0.42, 0.42):
        pen.stroke([(x, -0.75), (x + 0.08, -0.95), (x - 0.1, -0.95), (x - 0.1, -0.7)], metal, 0.045)
        pen.oval(x, -0.62, 0.11, 0.11, pen.style.accent)
        if style == 0:
            pen.line([*ring(x, -0.5 + long, 0.3, long), (x + 0.3, -0.5 + long)], metal, 0.08)
        elif style == 1:
            pen.fill([(x, -0.5), (x + 0.28, -0.5 + long), (x, 0.0 + long), (x - 0.28, -0.5 + long)], metal)
            pen.oval(x, -0.45 + long, 0.12, 0.14, pen.style.accent)
        else:
            pen.fill(curved([(x, -0.5), (x + 0.3, 0.1), (x, 0.25), (x - 0.3, 0.1)]), metal)
            for step in (-0.2, 0.0, 0.2):
                pen.line([(x + step, 0.2), (x + step, 0.2 + long / 2)], metal, 0.03)
                pen.oval(x + step, 0.26 + long / 2, 0.06, 0.07, pen.style.accent)


def pendant(pen: Pen) -> None:
    rng, metal = pen.rng, pen.style.main
    drop = rng.uniform(0.2, 0.5)
    chain = curved([(-0.5, -1.1), (-0.46, -0.4), (0, drop), (0.46, -0.4), (0.5, -1.1)], closed=False)
    pen.line(chain, mix(metal, BLACK, 0.2), 0.05)
    if rng.random() < 0.5:
        for x, y in chain[::2]:
            pen.oval(x, y, 0.06, 0.06, metal)
    heart = curved([(0, 0.12), (0.16, 0.0), (0.28, 0.14), (0.0, 0.5), (-0.28, 0.14), (-0.16, 0.0)])
    stone = heart if rng.random() < 0.5 else ring(0, 0.25, 0.2, 0.27)
    pen.fill([(x, y + drop) for x, y in stone], metal)
    pen.oval(0, drop + 0.24, 0.09, 0.1, pen.style.accent)


def scarf(pen: Pen) -> None:
    for side in (1, -1):
        angle, long = side * pen.rng.uniform(0.05, 0.2), pen.rng.uniform(1.1, 1.5)
        start = (side * 0.16, -0.5)
        pen.cloth(limb(start, angle, long, (0.17, 0.22)))
        x, y = start[0] + math.sin(angle) * long, start[1] + math.cos(angle) * long
        for step in range(5):
            pen.line([(x - 0.2 + step * 0.1, y), (x - 0.2 + step * 0.1, y + 0.1)], pen.style.main, 0.03)
    pen.cloth(curved(mirrored([(0.24, -1.0), (0.44, -0.7), (0.2, -0.34)])))
    pen.oval(0, -0.8, 0.16, 0.12, mix(pen.style.main, BLACK, 0.4))


def cushion(pen: Pen) -> None:
    """Draw a cushion, the only home product."""
    corner = mirrored([(0.0, -0.74), (0.88, -0.86), (0.78, 0.0), (0.88, 0.86), (0.0, 0.74)])
    pen.cloth(corner)
    pen.line([(x * 0.9, y * 0.9) for x, y in [*corner, corner[0]]], pen.style.accent, 0.03)

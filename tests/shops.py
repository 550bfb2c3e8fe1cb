"""Shops of a few products with pictures of their own, written as a table of any column names and a folder."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

SIZE = (60, 80)


def draw(number: int, kind: int) -> Image.Image:
    """A shape of its own on white; the kind decides which, the number its place and colours."""
    chance = np.random.default_rng([number, kind])
    picture = Image.new("RGB", SIZE, "white")
    pen = ImageDraw.Draw(picture)
    left, top, right, bottom = chance.integers([2, 2, 38, 50], [20, 28, 58, 78]).tolist()
    colour, other = (tuple(chance.integers(0, 200, 3).tolist()) for _ in range(2))
    box = (left, top, right, bottom)
    (pen.rectangle if kind % 2 else pen.ellipse)(box, fill=colour)
    x, y = chance.integers([0, 0], [45, 60]).tolist()
    pen.rectangle((x, y, x + 14, y + 9), fill=other)
    return picture


def write_shop(
    folder: Path, categories: Mapping[str, int], *, columns: Sequence[str] = ("id", "photo", "category"), kind: int = 0
) -> Path:
    """Write a table `shop.csv` of so many products of each category, with pictures below `photos/`; return its path."""
    (folder / "photos").mkdir(parents=True, exist_ok=True)
    rows = [name for name, count in categories.items() for _ in range(count)]
    kinds = {name: place + kind for place, name in enumerate(categories)}
    table = folder / "shop.csv"
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for number, name in enumerate(rows, start=1):
            draw(number + 1000 * kind, kinds[name]).save(folder / "photos" / f"{number}.png")
            writer.writerow([f"p{number}", f"photos/{number}.png", name])
    return table

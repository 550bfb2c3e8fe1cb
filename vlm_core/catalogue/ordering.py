"""The order of a catalogue's products: by their ids, so that no split depends on the order of a table's rows.

The public Myntra catalogue and the sample keep the orders that they were published in, which their scores were measured
with.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np

PUBLISHED: Final = Path(__file__).parent / "orders"  # ids of the catalogues that keep theirs
SAME: Final = 0.9  # share of ids that such a catalogue has, from which on it is the one
_NUMBERS: Final = re.compile(r"(\d+)")


def places_in_order(ids: Sequence[str]) -> list[int]:
    """Return the places of products with these ids (n,), in the order of their catalogue."""
    _, order = _published(ids)
    known = [row for row, name in enumerate(ids) if name in order]
    others = [row for row, name in enumerate(ids) if name not in order]
    return [
        *sorted(known, key=lambda row: order[ids[row]]),
        *sorted(others, key=lambda row: (_natural(ids[row]), ids[row])),
    ]


def published_catalogue(ids: Sequence[str]) -> str:
    """Return the name of the published catalogue that products with these ids (n,) are of; "" for another."""
    return _published(ids)[0]


def _published(ids: Sequence[str]) -> tuple[str, Mapping[str, int]]:
    """Return the name of a published catalogue and the places of its ids."""
    for name, places in _orders().items():
        if ids and sum(product in places for product in ids) >= SAME * len(ids):
            return name, places
    return "", {}


@cache
def _orders() -> Mapping[str, Mapping[str, int]]:
    """Return the places of ids by the name of their catalogue."""
    numbers = {path.stem: np.load(path, allow_pickle=False).tolist() for path in sorted(PUBLISHED.glob("*.npy"))}
    return {name: {str(number): place for place, number in enumerate(ids)} for name, ids in numbers.items()}


def _natural(text: str) -> list[tuple[int, str]]:
    """Return a key that sorts 9 before 10."""
    parts = (part.lstrip("0") if part.isdecimal() else part for part in _NUMBERS.split(text))
    return [(len(part) if part.isdecimal() else -1, part) for part in parts]

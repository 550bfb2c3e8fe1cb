"""Names of categories as they stand in names of metrics."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

_LONGEST = 60  # MLflow takes 250 signs for a whole metric name


def category_slugs(categories: Sequence[str]) -> tuple[str, ...]:
    """One name a category, in their order, all different, of the signs a-z, 0-9 and _ alone.

    Accents are dropped; a category of which nothing is left becomes `category_<its number>`. A name that is taken
    already gets the category's number at its end: "Tops" and "tops!" become `tops` and `tops_2`.
    """
    taken: dict[str, None] = {}
    for number, category in enumerate(categories, start=1):
        plain = unicodedata.normalize("NFKD", category).encode("ascii", "ignore").decode().lower()
        name = re.sub(r"[^a-z0-9]+", "_", plain).strip("_")[:_LONGEST] or f"category_{number}"
        while name in taken:
            name = f"{name}_{number}"
        taken[name] = None
    return tuple(taken)

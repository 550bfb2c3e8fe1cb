"""Category names for use in metric names."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

_MAX_LENGTH = 60  # MLflow allows 250 characters in a metric name


def category_slugs(categories: Sequence[str]) -> tuple[str, ...]:
    """Return one unique name per category, in order, made of a-z, 0-9 and _ only.

    Accents are dropped; a category with no such characters becomes `category_<number>`. A duplicate gets its
    category's number as a suffix: "Tops" and "tops!" become `tops` and `tops_2`.
    """
    taken: dict[str, None] = {}
    for number, category in enumerate(categories, start=1):
        plain = unicodedata.normalize("NFKD", category).encode("ascii", "ignore").decode().lower()
        name = re.sub(r"[^a-z0-9]+", "_", plain).strip("_")[:_MAX_LENGTH] or f"category_{number}"
        while name in taken:
            name = f"{name}_{number}"
        taken[name] = None
    return tuple(taken)

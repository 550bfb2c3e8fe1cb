"""Which part of a catalogue a product is in, for training, validation or test, where whoever made it has said so."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import pandas as pd

TRAIN, VALIDATION, TEST = "train", "validation", "test"
PARTS: Final = (TRAIN, VALIDATION, TEST)
PART: Final = "given_part"  # the column of a prepared catalogue; "" where a product is in none
OWN_COLUMNS: Final = ("split", "part", "subset")  # of tables that say it themselves
_CALLED: Final = {
    **dict.fromkeys(("train", "training"), TRAIN),
    **dict.fromkeys(("val", "valid", "validation", "dev"), VALIDATION),
    **dict.fromkeys(("test", "testing", "eval"), TEST),
}
_YEAR: Final = re.compile(r"(?:19|20)\d\d$")
_WORDS: Final = re.compile(r"[/_.-]")


def part_called(name: str) -> str:
    """Return the part that is called so, in any of the usual words, also with a year: train2017; "" for none."""
    return _CALLED.get(_YEAR.sub("", name.strip().lower()), "")


def part_of_file(path: str) -> str:
    """Return the part that a file such as train-00000-of-00002.parquet is, by itself or its folders; "" for none."""
    return min(filter(None, map(part_called, _WORDS.split(path))), key=PARTS.index, default="")


def part_order(path: str) -> tuple[int, str]:
    """Return a key that sorts what is for training, or for nothing, before what is for validation and test."""
    return PARTS.index(part_of_file(path) or TRAIN), path


def part_of_picture(path: str) -> str:
    """Return the part whose folder a picture lies in; "" for none."""
    return next(filter(None, map(part_called, path.split("/")[:-1])), "")


def given_parts(products: pd.DataFrame) -> pd.Series[str] | None:
    """Return the part (n,) of each product, by its container or a column of the table; None where nothing says it."""
    if PART in products:
        return products[PART]
    for name in (name for name in products if str(name).lower() in OWN_COLUMNS):
        column = products[name]
        parts = column.map(part_called)
        if parts[column != ""].ne("").all() and len(set(parts) - {""}) > 1:
            return parts
    return None


def unknown_parts(products: pd.DataFrame) -> tuple[str, dict[str, int]]:
    """Return a column that says the part of some products and something else of others, and how often it says what.

    The name is "" where no column does, or the parts are known.
    """
    if given_parts(products) is None:
        for name in (name for name in products if str(name).lower() in OWN_COLUMNS):
            column = products[name][products[name] != ""]
            parts = column.map(part_called)
            if len(set(parts) - {""}) > 1:
                return str(name), {str(value): int(n) for value, n in column[parts == ""].value_counts().items()}
    return "", {}

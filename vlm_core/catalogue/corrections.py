"""Corrections of a table's cells, kept in a file beside it: each names the product, the column, and the old cell."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pandas as pd

from vlm_core.catalogue.parts import PART
from vlm_core.errors import UserError

COLUMNS: Final = ("id", "column", "old", "new", "by", "at", "reason")
NEEDED: Final = COLUMNS[:4]
NOTHING: Final = "-"  # as the new cell: an empty one, such as a product without a category
MOST_BYTES: Final = 100_000_000
_NOT_CORRECTABLE: Final = ("product_id", "picture_digest", PART)
_FORMULA: Final = ("'=", "'+", "'-", "'@", "'\t", "'\r")


@dataclass(frozen=True)
class Correction:
    """One cell's old and new text; an empty new one is not decided yet."""

    line: int
    id: str
    column: str
    old: str
    new: str


@dataclass(frozen=True)
class Corrected:
    """A table after its corrections, and what became of each of these."""

    products: pd.DataFrame
    applied: int
    already: int  # cells that hold the new text
    undecided: int
    stale: tuple[str, ...]  # one reason for each that does not fit the table


def read_corrections(path: Path) -> list[Correction]:
    """Return the corrections in a CSV file. Raises UserError when it cannot be read or lacks a column."""
    try:
        if path.stat().st_size > MOST_BYTES:
            raise UserError(f"{path} is larger than {MOST_BYTES // 1_000_000} MB: give a file of corrections.")
        with path.open(encoding="utf-8-sig", newline="") as file:
            header = file.readline(10_000)
            file.seek(0)
            delimiter = max(",;\t", key=header.count)
            table = pd.read_csv(file, sep=delimiter, dtype=str, keep_default_na=False, index_col=False).fillna("")
    except (OSError, ValueError) as error:  # pandas' own are ValueErrors, and so is text that is not UTF-8
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(f"corrections={path} cannot be read ({reason}): give a CSV file in UTF-8.") from None
    if missing := [name for name in NEEDED if name not in table.columns]:
        raise UserError(
            f"corrections={path} has no column {', '.join(missing)}: it needs {', '.join(NEEDED)}, and may have "
            f"{', '.join(COLUMNS[4:])}."
        )
    cells = (table[name].map(_plain) for name in NEEDED)
    return [Correction(line, *row) for line, row in enumerate(zip(*cells, strict=True), start=2)]


def apply_corrections(
    products: pd.DataFrame, corrections: Sequence[Correction], id_columns: Sequence[str], title_column: str
) -> Corrected:
    """Return the table with its corrections, one after the other; one whose old text is not there is stale.

    `id_columns` name products and pictures, which cannot be corrected.
    """
    rows = pd.Series(range(len(products)), index=products["product_id"]).to_dict()
    named = dict.fromkeys(each.column for each in corrections)
    columns = {name: products[name].tolist() for name in named if name in products}
    stale: list[str] = []
    applied = already = undecided = 0
    for each in corrections:
        if not each.new:
            undecided += 1
        elif each.column not in columns or each.column in (*id_columns, *_NOT_CORRECTABLE):
            stale.append(f"line {each.line}: {each.column} is no column that can be corrected")
        elif (row := rows.get(each.id)) is None:
            stale.append(f"line {each.line}: there is no product {each.id}")
        else:
            new, cell = ("" if each.new == NOTHING else each.new), columns[each.column][row]
            if cell == each.old:
                columns[each.column][row] = new
                applied += 1
            elif cell == new:
                already += 1
            else:
                found, old = cell or "empty", each.old or "empty"
                stale.append(f"line {each.line}: {each.column} of {each.id} is {found}, not {old}")
    corrected = products.assign(**columns)
    if title_column in columns:
        corrected["title"] = corrected[title_column]
    return Corrected(corrected, applied, already, undecided, tuple(stale))


def digest_of_corrections(path: Path) -> str:
    """Return 16 hex digits of the file."""
    return hashlib.blake2b(path.read_bytes(), digest_size=8).hexdigest()


def _plain(text: str) -> str:
    """Return a text without the apostrophe that keeps a spreadsheet from evaluating it, and without outer blanks."""
    return (text[1:] if text.startswith(_FORMULA) else text).strip()

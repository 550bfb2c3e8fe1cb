"""Corrections of a table's cells, kept in a file beside it: each names the product, the column, and the old cell."""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import pandas as pd

from vlm_core.catalogue.containers.folder import open_regular
from vlm_core.catalogue.containers.text_table import TextTable
from vlm_core.catalogue.parts import PART
from vlm_core.catalogue.reading import Columns, Refusal
from vlm_core.errors import UserError

COLUMNS: Final = ("id", "column", "old", "new", "by", "at", "reason")
NEEDED: Final = COLUMNS[:4]
NOTHING: Final = "-"  # as the new cell: an empty one, such as a product without a category
MOST_BYTES: Final = 100_000_000
_NOT_CORRECTABLE: Final = ("product_id", "picture_digest", PART)
_NUMBER: Final = re.compile(r"0*(\d+)(?:\.0+|,00?)?", re.ASCII)
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
    stale: tuple[Refusal, ...]  # those that do not fit the table


def read_corrections(path: Path) -> tuple[list[Correction], list[str]]:
    """Return the corrections in a CSV file, read like a table of products, and what was assumed of it.

    Raises UserError when it cannot be read or lacks a column.
    """
    try:
        if path.stat().st_size > MOST_BYTES:
            raise UserError(f"{path} is larger than {MOST_BYTES // 1_000_000} MB: give a file of corrections.")
        with open_regular(path) as file:
            table = TextTable(file, str(path), NEEDED)
            if missing := [name for name in NEEDED if name not in table.names]:
                raise UserError(
                    f"corrections={path} has no column {', '.join(missing)}: it needs {', '.join(NEEDED)}, and may "
                    f"have {', '.join(COLUMNS[4:])}."
                )
            records = list(table.records(Columns("id", "", "", "", ())))
    except OSError as error:
        raise UserError(f"corrections={path} cannot be read ({error}): give a CSV file.") from None
    places = [table.names.index(name) for name in NEEDED]
    corrections = []
    for record in records:
        if isinstance(record, Refusal):
            raise UserError(f"corrections={path} cannot be used, line {record.line}: {record.reason}.")
        corrections.append(Correction(record.line, *(_plain(record.cells[place]) for place in places)))
    return corrections, table.notes


def apply_corrections(
    products: pd.DataFrame,
    ids: Iterable[str],
    corrections: Sequence[Correction],
    id_columns: Sequence[str],
    title_column: str,
) -> Corrected:
    """Return the table with its corrections, one after the other; one whose old text is not there is stale.

    `ids` name the product of each row, and a correction is made in every row of its product. `id_columns` name
    products and pictures, which cannot be corrected. Raises UserError for two that give one cell different texts.
    """
    rows = _RowsOfProducts(ids)
    named = dict.fromkeys(each.column for each in corrections if each.column)
    columns = {name: products[name].tolist() for name in named if name in products}
    stale: list[Refusal] = []
    decided: dict[tuple[str, str], dict[str, Correction]] = defaultdict(dict)  # of each cell, by its old text
    applied = already = undecided = 0
    for each in corrections:
        if not each.new:
            undecided += 1
        elif each.column not in columns or each.column in (*id_columns, *_NOT_CORRECTABLE):
            stale.append(Refusal(each.line, f"{each.column} is no column that can be corrected"))
        elif len(found := rows.called(each.id)) != 1:
            could_be = f"several products could be {each.id}: {', '.join(found)}"
            stale.append(Refusal(each.line, could_be if found else f"there is no usable product {each.id}"))
        else:
            new, column = ("" if each.new == NOTHING else each.new), columns[each.column]
            _check_agreement(decided[found[0], each.column], replace(each, new=new))
            places = rows.places[found[0]]
            held = [column[place] for place in places]
            if each.old in held:
                for place in places:
                    column[place] = new if column[place] == each.old else column[place]
                applied += 1
            elif new in held:
                already += 1
            else:
                cell, old = held[0] or "empty", each.old or "empty"
                stale.append(Refusal(each.line, f"{each.column} of {each.id} is {cell}, not {old}"))
    corrected = products.assign(**columns)
    if title_column in columns:
        corrected["title"] = corrected[title_column]
    return Corrected(corrected, applied, already, undecided, tuple(stale))


def _check_agreement(earlier: dict[str, Correction], each: Correction) -> None:
    """Add a correction to the earlier ones of its cell. Raises UserError where it gives another text or goes back."""
    first = earlier.setdefault(each.old, each)
    if first.new == each.new:
        while first.new not in (first.old, each.old) and first.new in earlier:
            first = earlier[first.new]
        if first.new != each.old:
            return
    if first.new != each.new:
        texts = " and ".join(text or "empty" for text in (first.new, each.new))
        raise UserError(
            f"Lines {first.line:,} and {each.line:,} of the corrections contradict each other: {each.column} of "
            f"{each.id} shall be {texts}. Keep one of them."
        )


class _RowsOfProducts:
    """The rows of each product, also by an id whose zeros a spreadsheet took away or added, as in 6.0 for 006."""

    def __init__(self, ids: Iterable[str]) -> None:
        self.places: dict[str, list[int]] = defaultdict(list)
        for place, product in enumerate(ids):
            self.places[product].append(place)
        self._by_number: dict[str, list[str]] = defaultdict(list)
        for product in self.places:
            if match := _NUMBER.fullmatch(product):
                self._by_number[match[1]].append(product)

    def called(self, name: str) -> list[str]:
        """Return the ids that a name may mean: its equal, or all that are the same number."""
        if name in self.places:
            return [name]
        match = _NUMBER.fullmatch(name)
        return self._by_number.get(match[1], []) if match else []


def digest_of_corrections(path: Path) -> str:
    """Return 16 hex digits of the file."""
    return hashlib.blake2b(path.read_bytes(), digest_size=8).hexdigest()


def _plain(text: str) -> str:
    """Return a text without the apostrophe that keeps a spreadsheet from evaluating it, and without outer blanks."""
    return (text[1:] if text.startswith(_FORMULA) else text).strip()

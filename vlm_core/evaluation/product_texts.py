"""What a model reads of a product: its title and attributes as one text, if need be without the words of its label."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from vlm_core.evaluation.category_matching import phrase_key, split_words

if TYPE_CHECKING:
    import pandas as pd

TITLE: Final = "title"  # the prepared catalogue's column with the title, whatever the table calls it
MOST_CHARACTERS: Final = 10_000  # of a text, before anything is done with it
LONGEST_PHRASE: Final = 3  # words that may stand for one: "t shirt", "flip flops"
_WORD: Final = re.compile(r"([^\W_]+)")


@dataclass(frozen=True)
class TextReading:
    """Which texts of a product a model reads, alone or beside its picture."""

    inputs: Literal["text", "image+text"]
    columns: tuple[str, ...]  # in reading order
    masked: tuple[str, ...] = ()  # words that are removed, as `phrase_key` writes them
    tokens: int = 0  # that a text has at most; what is longer is cut (0 for what needs no tokens)

    def texts(self, products: pd.DataFrame) -> list[str]:
        """Return the text of each product (n,), "" where there is none; columns that the table lacks are empty."""
        columns = [products[name].tolist() for name in self.columns if name in products]
        rows: list[tuple[str, ...]] = list(zip(*columns, strict=True)) if columns else [()] * len(products)
        return [self.clean(join_cells(cells)) for cells in rows]

    def clean(self, text: str) -> str:
        """Return a text without the words that are masked; "" where nothing is left. What is very long is cut."""
        text, masked = text[:MOST_CHARACTERS], frozenset(self.masked)
        return without_phrases(text, masked) if masked else " ".join(text.split())


def join_cells(cells: Iterable[str]) -> str:
    """Return the cells of a product's columns as one text."""
    return ". ".join(cell.strip() for cell in cells if cell.strip())


def phrases_in(text: str, known: Collection[str]) -> set[str]:
    """Return which of the `known` phrases, as `phrase_key` writes them, stand in a text."""
    return {key for _, key in _known_spans(_WORD.split(text)[1::2], known)}


def without_phrases(text: str, known: Collection[str]) -> str:
    """Return the text without the words of the `known` phrases, as `phrase_key` writes them, and tidied."""
    pieces = _WORD.split(text)  # words at odd places
    for span, _ in _known_spans(pieces[1::2], known):
        for place in span:
            pieces[2 * place + 1] = ""
    return " ".join(part for part in "".join(pieces).split() if _WORD.search(part))


def _known_spans(words: list[str], known: Collection[str]) -> list[tuple[range, str]]:
    """Return the places of each known phrase among a text's words, and its key."""
    plain = ["".join(split_words(word)) for word in words]
    spans = (
        range(start, end)
        for start in range(len(words))
        for end in range(start + 1, min(len(words), start + LONGEST_PHRASE) + 1)
    )
    keys = ((span, phrase_key([plain[place] for place in span])) for span in spans)
    return [(span, key) for span, key in keys if key in known]

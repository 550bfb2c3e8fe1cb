"""Synthetic captions of products, from title and attributes: the texts that pretraining pairs with pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vlm_core.pixels.arrays import Rows

# Probability of each form; a product that lacks what a form needs takes the next one.
CAPTION: Final = 0.35  # "a picture of men navy blue shirts"
PRODUCT_TYPE: Final = 0.10  # "a picture of shirts"
TITLE: Final = 0.30  # "turtle check men navy blue shirt"
# Otherwise: a zero-shot template, half of the time with the context: "a product photo of casual fall shirts."
_STREAM: Final = 1  # random stream, distinct from that of the augmentations, which count from 0


@dataclass(frozen=True)
class Captions:
    """The words of a catalogue's products, in lower case, one entry per product; "" where nothing is known."""

    columns: tuple[str, ...]  # of the caption, in reading order; the last one is the product type
    words: tuple[tuple[str, ...], ...]  # (n, columns)
    context: tuple[str, ...]  # further attributes, e.g. "casual fall"
    titles: tuple[str, ...]
    prompt: str  # what a captioner's sentence starts with
    templates: tuple[str, ...]  # zero-shot templates with one {}

    def caption(self, row: int) -> str:
        """Return the attributes in reading order: "men navy blue shirts"; "" for a product that has none."""
        return " ".join(word for word in self.words[row] if word)

    def product_types(self) -> NDArray[np.str_]:
        """Return the type of each product (n,), e.g. "shirts"; "" where it is unknown."""
        return np.array([words[-1] if words else "" for words in self.words], dtype=str)

    def sample_captions(self, seed: int, epoch: int, rows: Rows) -> list[str]:
        """Return one caption for each of the rows (B,), a function of seed, epoch and row."""
        return [self._sentence(int(row), *_uniform(seed, epoch, int(row))) for row in rows]

    def _sentence(self, row: int, form: float, choice: float, detail: float) -> str:
        caption, title = self.caption(row), self.titles[row]
        product_type = self.words[row][-1] if self.words[row] else ""
        if form < CAPTION and caption:
            return f"{self.prompt} {caption}"
        if form < CAPTION + PRODUCT_TYPE and product_type:
            return f"{self.prompt} {product_type}"
        if (form < CAPTION + PRODUCT_TYPE + TITLE and title) or not product_type:
            return title or f"{self.prompt} {caption}".strip()
        template = self.templates[int(choice * len(self.templates))]
        with_context = f"{self.context[row]} {product_type}".strip()
        return template.format(with_context if detail < 0.5 else product_type)


def describe_products(
    products: pd.DataFrame, columns: Sequence[str], context: Sequence[str], prompt: str, templates: Sequence[str]
) -> Captions:
    """Return the captions of a catalogue; columns that it does not have are ignored."""
    known = tuple(column for column in columns if column in products)
    further = [column for column in context if column in products and column not in known]
    lower = {column: products[column].astype(str).str.lower().tolist() for column in {*known, *further}}
    count = len(products)
    return Captions(
        columns=known,
        words=tuple(tuple(lower[column][row] for column in known) for row in range(count)),
        context=tuple(" ".join(lower[column][row] for column in further).strip() for row in range(count)),
        titles=tuple(products["title"].astype(str).str.lower()),
        prompt=prompt,
        templates=tuple(templates),
    )


def _uniform(seed: int, epoch: int, row: int) -> tuple[float, float, float]:
    bits = np.random.Philox(key=np.array([seed, epoch]), counter=np.array([0, _STREAM, row, 0]))
    first, second, third = np.random.Generator(bits).random(3)
    return first, second, third

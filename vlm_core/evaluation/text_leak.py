"""How often the texts of products name their category: a score on such texts says little about the pictures."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from vlm_core.evaluation.category_matching import phrase_key, split_words
from vlm_core.evaluation.product_texts import phrases_in
from vlm_core.evaluation.slugs import category_slugs

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

UNMASKED: Final = "UNMASKED: they may name the category, which a score on them rewards"
_SHORTEST: Final = 3  # letters of a word that says something
_SAY_NOTHING: Final = frozenset({"the", "for", "with", "other", "others"})


@dataclass(frozen=True)
class TextLeak:
    """The shares of products whose text names their own category or one of its article types."""

    share: float  # of all products
    by_category: dict[str, float]  # nan for a category without products
    absent: float  # share of products without text

    def metrics(self) -> dict[str, float]:
        """Return what a run logs."""
        slugs = category_slugs(tuple(self.by_category))
        each = {
            f"text_leak_{slug}": value
            for slug, value in zip(slugs, self.by_category.values(), strict=True)
            if not np.isnan(value)
        }
        return {"text_leak": self.share, "text_absent": self.absent, **each}


def is_unmasked(inputs: object, mask_label_words: object) -> bool:
    """Return whether a run with these settings, as they are stored, read texts that may name the category."""
    return inputs in ("text", "image+text") and str(mask_label_words).lower() != "true"


def label_words(products: pd.DataFrame, label: str, types: str, categories: Sequence[str]) -> dict[str, frozenset[str]]:
    """Return each category's words and whole names, as `phrase_key` writes them.

    They are those of its own name and of the values that its products have in the column `types`, if there is one: a
    watch is named "watch", seldom "accessory".
    """
    found = {}
    for name in categories:
        names = {name}
        if types in products:
            names |= set(products.loc[products[label] == name, types])
        found[name] = frozenset(key for each in names for key in _keys(each))
    return found


def _keys(name: str) -> set[str]:
    words = split_words(name)
    telling = [word for word in words if len(word) >= _SHORTEST and word not in _SAY_NOTHING]
    return {phrase_key([word]) for word in telling} | ({phrase_key(words)} if telling else set())


def measure_text_leak(
    texts: Sequence[str], labels: NDArray[np.int64], words: Mapping[str, Collection[str]]
) -> TextLeak:
    """Return the shares over texts (n,) of products with the categories (n,), indices into `words`."""
    categories = list(words)
    named = np.array(
        [bool(phrases_in(text, words[categories[label]])) for text, label in zip(texts, labels, strict=True)]
    )
    has_text = np.array([bool(text) for text in texts])
    return TextLeak(
        share=float(named.mean()),
        by_category={
            name: float(named[labels == place].mean()) if (labels == place).any() else float("nan")
            for place, name in enumerate(categories)
        },
        absent=float(1 - has_text.mean()),
    )


def describe_leak(leak: TextLeak, masked: bool) -> str:
    """Return what is told of texts that a model read, as it read them."""
    state = "masked" if masked else UNMASKED
    return (
        f"The texts are {state}. {leak.share:.1%} of those of the test products have a word of their own category or "
        f"its article types, and {leak.absent:.1%} of these products have no text."
    )


@dataclass(frozen=True)
class TextLeakMetrics:
    """What is told of the texts that a run read: how often they name the category, and what they score alone."""

    columns: tuple[str, ...]
    masked: bool  # whether words of categories and article types were removed
    leak: TextLeak  # on test products, as the model read them
    alone_macro_f1: float  # of TF-IDF and logistic regression on these texts, on test products
    alone_accuracy: float

    def metrics(self) -> dict[str, float]:
        """Return what a run logs."""
        alone = {"text_alone_macro_f1": self.alone_macro_f1, "text_alone_accuracy": self.alone_accuracy}
        return {**self.leak.metrics(), **alone}

    def sentences(self) -> list[str]:
        """Return what is told wherever the run's scores are shown."""
        return [
            f"It reads the texts of {', '.join(self.columns)}.",
            describe_leak(self.leak, self.masked),
            f"The texts alone (TF-IDF and logistic regression) score {self.alone_macro_f1:.4f} macro-F1 and "
            f"{self.alone_accuracy:.4f} accuracy.",
        ]

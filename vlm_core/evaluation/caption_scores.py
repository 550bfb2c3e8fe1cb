"""Scores of generated captions: which attributes they name, and BLEU."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd


def caption_scores(texts: Sequence[str], truths: Sequence[Sequence[str]], columns: Sequence[str]) -> dict[str, float]:
    """Return the share of texts (n,) that name the true value of each column, of all columns (`all`), and BLEU-2.

    `truths` (n, columns) are the true values; products whose value is unknown ("") do not count for that column. A
    text names the longest known value that it contains as whole words: "navy blue" does not name "blue". BLEU
    (Papineni et al. 2002) compares the text with the values in reading order, computed by torchmetrics.
    """
    from torchmetrics.functional.text import bleu_score

    named = [[named_value(text, values) for text in texts] for values in _values(truths, len(columns))]
    scores: dict[str, float] = {}
    complete = [all(truth) for truth in truths]
    for number, column in enumerate(columns):
        correct = [value == truth[number] for value, truth in zip(named[number], truths, strict=True) if truth[number]]
        scores[column] = sum(correct) / len(correct) if correct else float("nan")
    correct_in_all = [
        tuple(values) == tuple(truth)
        for values, truth, whole in zip(zip(*named, strict=True), truths, complete, strict=True)
        if whole
    ]
    scores["all"] = sum(correct_in_all) / len(correct_in_all) if correct_in_all else float("nan")
    references = [[" ".join(_words(" ".join(truth)))] for truth in truths]
    scores["bleu"] = float(bleu_score([" ".join(_words(text)) for text in texts], references, n_gram=2))
    return scores


def named_value(text: str, values: Collection[str]) -> str:
    """Return the longest value that the text contains as whole words, the earlier of two of equal length; else ""."""
    words = _words(text)
    best, place = "", len(words)
    for value in values:
        wanted = _words(value)
        start = next((i for i in range(len(words)) if wanted and words[i : i + len(wanted)] == wanted), None)
        if start is not None and (len(wanted), -start) > (len(_words(best)), -place):
            best, place = value, start
    return best


def _values(truths: Sequence[Sequence[str]], count: int) -> list[list[str]]:
    return [sorted({truth[number] for truth in truths if truth[number]}) for number in range(count)]


@lru_cache(maxsize=4096)
def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def caption_metrics(texts: Sequence[str], products: pd.DataFrame, columns: Sequence[str]) -> dict[str, float]:
    """Return `test_caption_<name>` scores of the test products' captions; none if the catalogue has no such column."""
    columns = [name for name in columns if name in products]
    if not columns:
        return {}
    truths = [tuple(map(str.lower, row)) for row in products[columns].itertuples(index=False)]
    scores = caption_scores(texts, truths, columns)
    return {f"test_caption_{name}": score for name, score in scores.items() if not math.isnan(score)}

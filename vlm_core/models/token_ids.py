"""Token ids of texts as a model reads them, without PyTorch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def between_ends(
    words: Sequence[Sequence[int]], ends: tuple[Sequence[int], Sequence[int]], tokens: int
) -> NDArray[np.int64]:
    """Return ids (B, tokens) of each text's words between the ids that stand before and after them, padded with -1.

    Words beyond so many tokens are left out.
    """
    before, after = ends
    ids = np.full((len(words), tokens), -1, dtype=np.int64)
    for row, of_text in zip(ids, words, strict=True):
        sentence = [*before, *of_text[: tokens - len(before) - len(after)], *after]
        row[: len(sentence)] = sentence
    return ids

"""What a prediction from picture and text depends on, word by word and patch by patch: by leaving each out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from vlm_core.models.categoriser import Categoriser

GRID: Final = 8  # patches along each side
MOST_WORDS: Final = 20  # of a text, its first, that are left out
MEAN_COLOUR: Final = 128  # of a patch that is left out


@dataclass(frozen=True)
class InputRelevance:
    """How far the log odds of one category fall when a part of the input is left out; below zero they rise.

    Whole inputs are left out as the model knows them to be missing, a patch becomes grey (Zeiler & Fergus 2014, arXiv
    1311.2901), and a word is taken out of the text. All four are in the same unit.
    """

    category: int
    picture: float
    text: float
    patches: NDArray[np.float32]  # (8, 8)
    words: tuple[tuple[str, float], ...]

    def map(self, size: tuple[int, int]) -> NDArray[np.float32]:
        """Return what speaks for the category as a map (H, W) that sums to one; uniform if no patch does."""
        rows, columns = (np.arange(side) * GRID // side for side in size)
        evidence = self.patches.clip(min=0)[rows[:, None], columns[None, :]]
        total = evidence.sum()
        return (evidence / total if total > 0 else np.full(size, 1 / (size[0] * size[1]))).astype(np.float32)


def explain_inputs(
    model: Categoriser, picture: NDArray[np.uint8], text: str, target: int | None = None
) -> InputRelevance:
    """Return what the prediction for a picture (H, W, 3) and a text depends on.

    `target` is a category, or None for the predicted one. The model reads texts.
    """
    words = text.split()
    left_out = [" ".join(words[:place] + words[place + 1 :]) for place in range(min(len(words), MOST_WORDS))]
    covered = _covered(picture)
    count = 3 + len(left_out) + len(covered)
    pictures = np.concatenate([np.repeat(picture[None], 3 + len(left_out), axis=0), covered])
    texts = [text, text, "", *left_out, *[text] * len(covered)]
    has_picture = np.arange(count) != 1
    rows = model.log_probabilities(pictures, texts, has_picture).astype(np.float64)
    category = int(rows[0].argmax()) if target is None else target
    odds = log_odds(rows, category)
    falls = odds[0] - odds
    of_words = falls[3 : 3 + len(left_out)]
    return InputRelevance(
        category=category,
        picture=float(falls[1]),
        text=float(falls[2]),
        patches=falls[3 + len(left_out) :].reshape(GRID, GRID).astype(np.float32),
        words=tuple((word, float(fall)) for word, fall in zip(words, of_words, strict=False)),
    )


def _covered(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the picture (H, W, 3) once for each patch (64, H, W, 3), with that patch in grey."""
    rows, columns = (np.arange(side) * GRID // side for side in picture.shape[:2])
    patches = GRID * rows[:, None] + columns[None, :]  # (H, W) number of the patch
    hidden = patches[None] == np.arange(GRID**2)[:, None, None]
    return np.where(hidden[..., None], np.uint8(MEAN_COLOUR), picture[None])


def log_odds(log_probabilities: NDArray[np.float64], category: int) -> NDArray[np.float64]:
    """Return log(p / (1 - p)) (n,) of a category, of log-probabilities (n, C)."""
    others = np.delete(log_probabilities, category, axis=1)
    return np.asarray(log_probabilities[:, category] - np.logaddexp.reduce(others, axis=1))

"""Made-up predictions of a model, for tests."""

import numpy as np
from numpy.typing import NDArray

from vlm_core.evaluation.predictions import Predictions

# STUDY.md: GIT, epoch 4, validation, rows = true category
GIT = np.array([[76, 16, 1, 25, 2], [0, 120, 0, 0, 0], [0, 2, 118, 0, 0], [1, 0, 0, 118, 1], [0, 1, 0, 2, 117]])
CATEGORIES = ("Accessories", "Apparel", "Footwear", "Free Items", "Personal Care")


def rows_of(confusion: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """True and predicted categories (n,) that have this confusion matrix."""
    true, predicted = np.indices(confusion.shape)
    return np.repeat(true.ravel(), confusion.ravel()), np.repeat(predicted.ravel(), confusion.ravel())


def log_softmax(scores: NDArray[np.floating]) -> NDArray[np.float32]:
    return (scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))).astype(np.float32)


def sure(predicted: NDArray[np.int64], count: int, score: float = 3.0) -> NDArray[np.float32]:
    """Log-probabilities (n, C) whose highest is that of `predicted`."""
    return log_softmax(score * np.eye(count)[predicted])


def predictions_of(confusion: NDArray[np.int64], categories: tuple[str, ...] = CATEGORIES) -> Predictions:
    labels, predicted = rows_of(confusion)
    ids = np.array([f"product {index}" for index in range(len(labels))])
    return Predictions(ids, labels, sure(predicted, len(categories)), categories)


def random_predictions(n: int, count: int, seed: int, *, texts: bool = False) -> Predictions:
    """Return random predictions, correct more often than not."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, count, n)
    scores = generator.normal(size=(n, count)) + 1.5 * np.eye(count)[labels]
    written = tuple(f"a photo of {label}" for label in labels) if texts else None
    mapped = generator.integers(-1, count, n) if texts else None
    names = tuple(f"category {index}" for index in range(count))
    return Predictions(np.arange(n).astype(str), labels, log_softmax(scores), names, written, mapped)


def assert_corrected_together(tests):
    """Check p-values of pairs against Holm's correction by hand, of both tests of all pairs as one family."""
    for accuracy in ("p_mcnemar", "p_mcnemar_mid"):
        names = ("p_bootstrap", accuracy)
        plain = sorted(getattr(test, name) for test in tests for name in names)
        by_hand = np.maximum.accumulate([min(1.0, p * (len(plain) - place)) for place, p in enumerate(plain)])
        found = sorted(getattr(test, f"{accuracy}_holm") for test in tests)
        assert set(np.round(found, 12)) <= set(np.round(by_hand, 12))
    plain = sorted(p for test in tests for p in (test.p_bootstrap, test.p_mcnemar))
    corrected = sorted(p for test in tests for p in (test.p_bootstrap_holm, test.p_mcnemar_holm))
    by_hand = np.maximum.accumulate([min(1.0, p * (len(plain) - place)) for place, p in enumerate(plain)])
    np.testing.assert_allclose(corrected, by_hand)

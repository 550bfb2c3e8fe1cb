"""The paired cluster bootstrap against scikit-learn and against drawing products one by one."""

from collections.abc import Callable

import numpy as np
import pytest
from sklearn.metrics import f1_score

from vlm_core.evaluation import paired_bootstrap as module
from vlm_core.evaluation.paired_bootstrap import PairedPredictions, macro_f1_differences, resample_differences

Score = Callable[[np.ndarray, np.ndarray, np.ndarray], float]


def _answers(seed: int, n: int = 120, seeds: int = 3, count: int = 3, most: int = 1) -> PairedPredictions:
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, count, n)
    times = generator.integers(0, most + 1, (n, seeds))
    times[times.sum(axis=1) == 0, 0] = 1
    right = generator.random((2, n, 1)) < 0.75
    noisy = right ^ (generator.random((2, n, seeds)) < 0.1)
    wrong = (labels[:, None] + generator.integers(1, count, (2, n, seeds))) % count
    a, b = np.where(noisy, labels[:, None], wrong) * (times > 0)
    return PairedPredictions(labels, times, a, b, count)


def _plain_f1(labels: np.ndarray, given: np.ndarray, weight: np.ndarray) -> float:
    hits, true, predicted = (
        np.bincount(of, weight * counts, 3) for of, counts in ((labels, labels == given), (labels, 1), (given, 1))
    )
    return float((2 * hits / (true + predicted)).mean())


def _sklearn_f1(labels: np.ndarray, given: np.ndarray, weight: np.ndarray) -> float:
    return float(f1_score(labels, given, average="macro", sample_weight=weight))


def _macro_f1(answers: PairedPredictions, seed: int, side: str, weights: np.ndarray, score: Score) -> float:
    rows = np.repeat(np.arange(len(answers.labels)), answers.times[:, seed])
    given = getattr(answers, side)[rows, seed]
    labels = answers.labels[rows]
    weight = weights[rows]
    support = np.bincount(labels, minlength=answers.count) / np.bincount(labels, weight, answers.count)
    return score(labels, given, weight * support[labels])


def test_differences_are_scikit_learns_in_each_seed() -> None:
    answers = _answers(0, most=3)
    once = np.ones(len(answers.labels))
    for score in (_sklearn_f1, _plain_f1):
        a, b = ([_macro_f1(answers, s, side, once, score) for s in range(3)] for side in "ab")
        assert macro_f1_differences(answers) == pytest.approx(np.subtract(a, b))


def test_it_is_drawing_products_with_all_their_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PRIOR_PRODUCTS", 0.0)
    answers = _answers(1)
    ours = resample_differences(answers, resamples=2000, seed=0)
    generator = np.random.default_rng(3)
    slow = []
    for _ in range(300):
        weights = np.zeros(len(answers.labels))
        for category in range(3):
            members = np.flatnonzero(answers.labels == category)
            np.add.at(weights, generator.choice(members, len(members)), 1)
        scores = [[_macro_f1(answers, s, side, weights, _plain_f1) for s in range(3)] for side in "ab"]
        slow.append(np.mean(scores[0]) - np.mean(scores[1]))
    assert ours.mean() == pytest.approx(np.mean(slow), abs=0.005)
    assert ours.std() == pytest.approx(np.std(slow), rel=0.12)
    assert np.quantile(ours, [0.1, 0.9]) == pytest.approx(np.quantile(slow, [0.1, 0.9]), abs=0.012)


def test_the_same_products_in_three_seeds_tell_no_more_than_in_one() -> None:
    one = _answers(2, n=200, seeds=1)
    three = PairedPredictions(
        one.labels, *(np.repeat(part, 3, axis=1) for part in (one.times, one.a, one.b)), one.count
    )
    first, again = (resample_differences(each, resamples=3000, seed=0) for each in (one, three))
    assert first.std() == pytest.approx(again.std(), rel=0.05)


def test_other_products_in_three_seeds_tell_three_times_as_much() -> None:
    one = _answers(3, n=400, seeds=1)
    n = len(one.labels)
    times, a, b = (np.zeros((3 * n, 3), dtype=np.int64) for _ in range(3))
    for seed in range(3):
        rows = slice(seed * n, (seed + 1) * n)
        times[rows, seed], a[rows, seed], b[rows, seed] = 1, one.a[:, 0], one.b[:, 0]
    apart = PairedPredictions(np.tile(one.labels, 3), times, a, b, one.count)
    first, again = (resample_differences(each, resamples=3000, seed=0) for each in (one, apart))
    assert first.std() / again.std() == pytest.approx(np.sqrt(3), rel=0.05)


def test_models_without_an_error_are_still_uncertain() -> None:
    labels = np.repeat([0, 1], 30)
    same = labels[:, None]
    drawn = resample_differences(PairedPredictions(labels, np.ones_like(same), same, same, 2), resamples=2000, seed=0)
    assert 0 < drawn.std() < 0.03
    assert abs(drawn.mean()) < 0.002


def test_a_category_of_one_product_in_one_seed_alone() -> None:
    labels = np.array([0] * 20 + [1])
    times = np.ones((21, 2), dtype=np.int64)
    times[20, 1] = 0
    a, b = np.tile(labels[:, None], 2), np.tile(1 - labels[:, None], 2)
    answers = PairedPredictions(labels, times, a * times, b * times, 2)
    assert macro_f1_differences(answers) == pytest.approx([1, 1])
    assert np.isfinite(resample_differences(answers, resamples=200, seed=0)).all()


def test_parts_are_put_together(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = _answers(4)
    whole = resample_differences(answers, resamples=500, seed=0)
    monkeypatch.setattr(module, "_CELLS_PER_BATCH", 2000)
    parts = resample_differences(answers, resamples=500, seed=0)
    assert parts.shape == (500,) and len(np.unique(parts)) > 450
    assert parts.std() == pytest.approx(whole.std(), rel=0.15)


@pytest.mark.parametrize("most", [1, 3, 2**20])  # of 12 columns of 2**20 no number of 64 bits holds a row
@pytest.mark.parametrize("rows", [0, 1, 400])
def test_distinct_rows_are_numpys(rows: int, most: int) -> None:
    table = np.random.default_rng(2).integers(0, 2, (rows, 12)) * most
    table[:, 8:] = 0  # so that rows are there more than once
    expected = np.unique(table, axis=0, return_counts=True)
    for ours, numpys in zip(module._distinct_rows(table), expected, strict=True):
        np.testing.assert_array_equal(ours, numpys)

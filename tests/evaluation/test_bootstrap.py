import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import bootstrap, ks_2samp
from sklearn.metrics import accuracy_score, f1_score, recall_score

from tests.evaluation.answers import GIT, rows_of
from vlm_core.evaluation import bootstrap as module
from vlm_core.evaluation.bootstrap import estimate, resample

EQUAL = np.full(5, 0.2)
NATURAL = np.array([0.25, 0.5, 0.2, 0.01, 0.04])


def _macro_f1(*answers: NDArray[np.int64]) -> float:
    """Macro-F1 of the answers to the products of each true category."""
    counts = np.array([np.bincount(part, minlength=len(answers)) for part in answers])
    return float(np.mean(2 * counts.diagonal() / (counts.sum(0) + counts.sum(1))))


def test_it_is_scipys_bootstrap_with_one_sample_a_category() -> None:
    labels, predicted = rows_of(GIT)
    answers = tuple(predicted[labels == index] for index in range(5))
    options = {"vectorized": False, "method": "percentile", "n_resamples": 2000}
    reference = bootstrap(answers, _macro_f1, rng=np.random.default_rng(1), **options)
    ours = resample(GIT, EQUAL, resamples=2000, seed=2)
    interval = estimate(0.9102, ours.macro_f1)
    assert interval.low == pytest.approx(reference.confidence_interval.low, abs=0.002)
    assert interval.high == pytest.approx(reference.confidence_interval.high, abs=0.002)
    assert ours.macro_f1.std() == pytest.approx(reference.standard_error, rel=0.06)


def test_every_figure_is_distributed_as_when_products_are_drawn() -> None:
    confusion = np.array([[12, 2, 1], [3, 20, 0], [0, 4, 6]])
    shares = np.array([0.3, 0.6, 0.1])
    labels, predicted = rows_of(confusion)
    weights = (shares / confusion.sum(1))[labels]
    generator = np.random.default_rng(0)
    rows = [np.flatnonzero(labels == index) for index in range(3)]
    loop: dict[str, list[float]] = {name: [] for name in ("accuracy", "natural_accuracy", "worst_recall")}
    loop |= {"macro_f1": [], "natural_macro_f1": [], "f1": []}
    for _ in range(150):
        chosen = np.concatenate([generator.choice(part, len(part)) for part in rows])
        true, answers, weight = labels[chosen], predicted[chosen], weights[chosen]
        loop["accuracy"].append(accuracy_score(true, answers))
        loop["natural_accuracy"].append(accuracy_score(true, answers, sample_weight=weight))
        loop["worst_recall"].append(recall_score(true, answers, average=None).min())
        f1 = f1_score(true, answers, average=None)
        loop["macro_f1"].append(f1.mean())
        loop["f1"].append(f1[2])
        loop["natural_macro_f1"].append(f1_score(true, answers, average="macro", sample_weight=weight))
    ours = resample(confusion, shares, resamples=2000, seed=5)
    for name, values in loop.items():
        samples = ours.f1[:, 2] if name == "f1" else getattr(ours, name)
        assert ks_2samp(values, samples).pvalue > 0.01, name


def test_a_recall_varies_as_the_binomial_does() -> None:
    confusion = np.array([[30, 10], [0, 50]])
    drawn = resample(confusion, np.array([0.5, 0.5]), resamples=20_000, seed=0)
    # the second category is always right, so the worst recall is the first one's
    assert drawn.worst_recall.mean() == pytest.approx(0.75, abs=0.003)
    assert drawn.worst_recall.var() == pytest.approx(0.75 * 0.25 / 40, rel=0.05)
    assert drawn.natural_accuracy == pytest.approx((drawn.worst_recall + 1) / 2)


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    chances = np.array([[0.8, 0.15, 0.05], [0.1, 0.85, 0.05], [0.2, 0.2, 0.6]])  # of each answer, by true category
    truth = float(np.mean(2 * chances.diagonal() / (chances.sum(0) + 1)))
    generator = np.random.default_rng(3)
    held = 0
    for trial in range(300):
        confusion = np.array([generator.multinomial(100, row) for row in chances])
        interval = estimate(0, resample(confusion, np.full(3, 1 / 3), resamples=400, seed=trial).macro_f1)
        held += interval.low <= truth <= interval.high
    assert 0.92 <= held / 300 <= 0.98  # standard error 0.0126


def test_absent_categories_count_for_nothing() -> None:
    confusion = np.array([[8, 1, 1], [0, 0, 0], [2, 0, 8]])
    drawn = resample(confusion, np.array([0.5, 0, 0.5]), resamples=500, seed=0)
    assert (drawn.f1[:, 1] == 0).all()
    assert drawn.macro_f1 == pytest.approx(drawn.f1[:, [0, 2]].mean(axis=1))
    assert drawn.worst_recall.min() > 0


def test_a_category_that_is_never_found_is_always_the_worst() -> None:
    drawn = resample(np.array([[5, 0], [5, 0]]), np.array([0.5, 0.5]), resamples=50, seed=0)
    assert (drawn.worst_recall == 0).all()
    assert (drawn.accuracy == 0.5).all()


def test_parts_are_put_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CELLS_A_PART", 5 * 64)
    drawn = resample(GIT, NATURAL, resamples=1000, seed=0)
    assert drawn.f1.shape == (1000, 5)
    assert len(np.unique(drawn.macro_f1)) > 900  # no part repeats another
    assert drawn.accuracy.mean() == pytest.approx(0.915, abs=0.002)


def test_a_seed_gives_one_result() -> None:
    first, again, other = (resample(GIT, NATURAL, resamples=200, seed=seed).macro_f1 for seed in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).any()

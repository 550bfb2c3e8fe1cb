import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import bootstrap, ks_2samp
from sklearn.metrics import accuracy_score, f1_score

from tests.evaluation.made_predictions import GIT, rows_of
from vlm_core.evaluation import bootstrap as module
from vlm_core.evaluation.bootstrap import corrected_estimate, estimate, resample_metrics

EQUAL = np.full(5, 0.2)
NATURAL = np.array([0.25, 0.5, 0.2, 0.01, 0.04])


def _macro_f1(*answers: NDArray[np.int64]) -> float:
    """Macro-F1 of the answers to the products of each true category."""
    counts = np.array([np.bincount(part, minlength=len(answers)) for part in answers])
    return float(np.mean(2 * counts.diagonal() / (counts.sum(0) + counts.sum(1))))


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bootstrap of the textbook, without the added product."""
    monkeypatch.setattr(module, "PRIOR_PRODUCTS", 0.0)


@pytest.mark.usefixtures("plain")
def test_it_is_scipys_bootstrap_with_one_sample_a_category() -> None:
    labels, predicted = rows_of(GIT)
    answers = tuple(predicted[labels == index] for index in range(5))
    options = {"vectorized": False, "method": "percentile", "n_resamples": 2000}
    reference = bootstrap(answers, _macro_f1, rng=np.random.default_rng(1), **options)
    ours = resample_metrics(GIT, EQUAL, resamples=2000, seed=2)
    interval = estimate(0.9102, ours.macro_f1)
    assert interval.low == pytest.approx(reference.confidence_interval.low, abs=0.002)
    assert interval.high == pytest.approx(reference.confidence_interval.high, abs=0.002)
    assert ours.macro_f1.std() == pytest.approx(reference.standard_error, rel=0.06)


@pytest.mark.slow
@pytest.mark.usefixtures("plain")
def test_every_metric_is_distributed_as_when_products_are_sampled() -> None:
    confusion = np.array([[12, 2, 1], [3, 20, 0], [0, 4, 6]])
    shares = np.array([0.3, 0.6, 0.1])
    labels, predicted = rows_of(confusion)
    weights = (shares / confusion.sum(1))[labels]
    generator = np.random.default_rng(0)
    rows = [np.flatnonzero(labels == index) for index in range(3)]
    loop: dict[str, list[float]] = {name: [] for name in ("accuracy", "natural_accuracy")}
    loop |= {"macro_f1": [], "natural_macro_f1": [], "f1": []}
    for _ in range(150):
        chosen = np.concatenate([generator.choice(part, len(part)) for part in rows])
        true, answers, weight = labels[chosen], predicted[chosen], weights[chosen]
        loop["accuracy"].append(accuracy_score(true, answers))
        loop["natural_accuracy"].append(accuracy_score(true, answers, sample_weight=weight))
        f1 = f1_score(true, answers, average=None)
        loop["macro_f1"].append(f1.mean())
        loop["f1"].append(f1[2])
        loop["natural_macro_f1"].append(f1_score(true, answers, average="macro", sample_weight=weight))
    ours = resample_metrics(confusion, shares, resamples=2000, seed=5)
    for name, values in loop.items():
        samples = ours.f1[:, 2] if name == "f1" else getattr(ours, name)
        assert ks_2samp(values, samples).pvalue > 0.01, name


@pytest.mark.usefixtures("plain")
def test_a_recall_varies_as_the_binomial_does() -> None:
    confusion = np.array([[30, 10], [0, 50]])
    resampled = resample_metrics(confusion, np.array([0.5, 0.5]), resamples=20_000, seed=0)
    recall = 2 * resampled.natural_accuracy - 1  # the second category is always correct
    assert recall.mean() == pytest.approx(0.75, abs=0.003)
    assert recall.var() == pytest.approx(0.75 * 0.25 / 40, rel=0.05)


def test_the_added_product_is_half_correct_and_half_incorrect() -> None:
    confusion = np.array([[30, 0, 0], [4, 6, 0], [0, 0, 20]])
    resampled = resample_metrics(confusion, np.full(3, 1 / 3), resamples=40_000, seed=0)
    hits, *_ = module._sample_counts(confusion, np.full(3, 1 / 3), 40_000, np.random.default_rng(0))
    assert hits[:, 1].mean() / 10 == pytest.approx(6.5 / 11, abs=0.005)  # (6 + 1/2) of (10 + 1)
    assert resampled.f1[:, 0].max() == 1 and 0 < resampled.f1[:, 2].std() < 0.05  # no error was seen, and one may be
    # means over categories scatter around the figure itself
    assert resampled.accuracy.mean() == pytest.approx(56 / 60, abs=0.001)
    assert resampled.natural_accuracy.mean() == pytest.approx((1 + 0.6 + 1) / 3, abs=0.002)


def test_an_interval_holds_its_figure_and_the_corrected_one_follows_it() -> None:
    samples = np.random.default_rng(0).normal(0.5, 0.1, 20_000)
    assert estimate(0.9, samples).high == 0.9
    # by hand: 84.1 % of the resamples lie below, so z0 = 1, and the ends are the percentiles of 2 - 1.96 and 2 + 1.96
    corrected = corrected_estimate(0.6, samples)
    assert corrected.low == pytest.approx(0.5 + 0.1 * (2 - 1.96), abs=0.005)
    assert corrected.high == pytest.approx(samples.max(), abs=0.03)
    same, plain = corrected_estimate(0.5, samples), estimate(0.5, samples)
    assert (same.low, same.high) == pytest.approx((plain.low, plain.high), abs=0.004)


def test_the_correction_is_scipys_without_its_acceleration() -> None:
    values = np.random.default_rng(1).normal(size=200)
    options = {"method": "BCa", "n_resamples": 4000, "rng": np.random.default_rng(2)}
    reference = bootstrap((values,), np.mean, **options)  # of a symmetric sample: hardly any acceleration
    ours = corrected_estimate(float(values.mean()), reference.bootstrap_distribution)
    interval = reference.confidence_interval
    assert (ours.low, ours.high) == pytest.approx((interval.low, interval.high), abs=0.01)


def test_absent_categories_count_for_nothing() -> None:
    confusion = np.array([[8, 1, 1], [0, 0, 0], [2, 0, 8]])
    resampled = resample_metrics(confusion, np.array([0.5, 0, 0.5]), resamples=500, seed=0)
    assert (resampled.f1[:, 1] == 0).all()
    shift = resampled.macro_f1 - resampled.f1[:, [0, 2]].mean(axis=1)
    assert np.median(shift) == pytest.approx(shift[resampled.macro_f1 < 1])


@pytest.mark.usefixtures("plain")
def test_a_category_that_is_never_found_has_no_f1_in_any_resample() -> None:
    resampled = resample_metrics(np.array([[5, 0], [5, 0]]), np.array([0.5, 0.5]), resamples=50, seed=0)
    assert (resampled.f1[:, 1] == 0).all()
    assert (resampled.accuracy == 0.5).all()


def test_parts_are_put_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CELLS_PER_BATCH", 5 * 64)
    resampled = resample_metrics(GIT, NATURAL, resamples=1000, seed=0)
    assert resampled.f1.shape == (1000, 5)
    assert len(np.unique(resampled.macro_f1)) > 900  # no part repeats another
    assert resampled.accuracy.mean() == pytest.approx(0.915, abs=0.002)


def test_a_seed_gives_one_result() -> None:
    first, again, other = (resample_metrics(GIT, NATURAL, resamples=200, seed=seed).macro_f1 for seed in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).any()

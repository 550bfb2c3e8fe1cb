"""What tests and intervals promise, held against draws from known populations.

Under no difference a test at 5 % rejects in 3 to 7 % of the draws, and intervals of 95 % hold the truth in 92 to 98 %.
Where a method is careful by its nature only the side that would mislead is held, and the comment says so.
"""

import numpy as np
import pytest
from scipy.special import ndtri
from scipy.stats import binom, norm

from vlm_core.evaluation.bootstrap import corrected_estimate, estimate, resample_metrics
from vlm_core.evaluation.gaps import _gap, permutation_p
from vlm_core.evaluation.paired import bootstrap_p, exact_mcnemar, mid_mcnemar
from vlm_core.evaluation.paired_bootstrap import PairedPredictions, resample_differences
from vlm_core.evaluation.seeds import SHARE, over_seeds
from vlm_core.evaluation.selective import auroc_unknown
from vlm_core.evaluation.subgroups import wilson_interval

pytestmark = pytest.mark.slow  # half a minute of random numbers

DRAWS = 400
# Shares of each wrong answer, by true category; the fourth is as vague as Free Items.
WRONG = np.array([[0, 4, 2, 3, 1], [5, 0, 3, 1.5, 0.5], [4, 5, 0, 0.5, 0.5], [5, 3, 0.5, 0, 1.5], [6, 1, 0.5, 2.5, 0]])
WRONG /= WRONG.sum(axis=1, keepdims=True)
EVEN = np.array([0.9, 0.85, 0.92, 0.8, 0.93]), np.full(5, 120)
SMALL = np.array([0.93, 0.94, 0.97, 0.3, 0.96]), np.array([150, 150, 150, 8, 150])  # Free Items under `holdout`


def _chances(recalls):
    return np.diag(recalls) + (1 - recalls)[:, None] * WRONG


def _f1(confusion):
    return 2 * confusion.diagonal() / (confusion.sum(axis=0) + confusion.sum(axis=1))


def _answers(labels, recalls, difficulty, generator, shared=0.65):
    """A model's answers (n,); models share what is difficult about a product."""
    score = np.sqrt(shared) * difficulty + np.sqrt(1 - shared) * generator.normal(size=len(labels))
    other = (WRONG[labels].cumsum(axis=1) < generator.random((len(labels), 1))).sum(axis=1)
    return np.where(score < ndtri(recalls)[labels], labels, np.minimum(other, 4))


@pytest.mark.parametrize(("recalls", "support"), [EVEN, SMALL])
def test_paired_tests_of_one_seed_reject_what_is_the_same_in_five_percent(recalls, support):
    generator = np.random.default_rng(1)
    labels = np.repeat(np.arange(5), support)
    once = np.ones((len(labels), 1), dtype=np.int64)
    rejected = np.zeros(3)
    for draw in range(DRAWS):
        difficulty = generator.normal(size=len(labels))
        a, b = (_answers(labels, recalls, difficulty, generator) for _ in range(2))
        drawn = resample_differences(
            PairedPredictions(labels, once, a[:, None], b[:, None], 5), resamples=200, seed=draw
        )
        alone = int(((a == labels) & (b != labels)).sum()), int(((a != labels) & (b == labels)).sum())
        rejected += [bootstrap_p(drawn) < 0.05, mid_mcnemar(*alone) < 0.05, exact_mcnemar(*alone) < 0.05]
    assert (rejected[:2] / DRAWS >= 0.03).all() and (rejected / DRAWS <= 0.07).all()


@pytest.mark.parametrize("discordant", [10, 15, 25, 40, 60, 75, 100, 200, 400])
def test_mcnemars_tests_reject_what_is_the_same_as_often_as_they_say(discordant):
    """Not by drawing: every count that can be seen, with its chance."""
    counts = np.arange(discordant + 1)
    chances = binom.pmf(counts, discordant, 0.5)
    exact, mid = (
        chances[[test(int(count), int(discordant - count)) < 0.05 for count in counts]].sum()
        for test in (exact_mcnemar, mid_mcnemar)
    )
    assert 0.02 <= exact <= min(mid, 0.045)  # careful by its nature
    assert discordant < 15 or 0.03 <= mid <= 0.07


def test_the_bootstrap_of_several_seeds_rejects_what_is_the_same_in_five_percent():
    """Three seeds test 488 products each, of pools of 500 a category and of 14 Free Items, which they nearly share."""
    recalls, support, pools = SMALL[0], np.array([120, 120, 120, 8, 120]), np.array([500, 500, 500, 14, 500])
    generator = np.random.default_rng(3)
    labels = np.repeat(np.arange(5), pools)
    starts = np.concatenate([[0], np.cumsum(pools)[:-1]])
    rejected = held = 0
    for draw in range(DRAWS):
        difficulty = generator.normal(size=len(labels))
        times, a, b = (np.zeros((len(labels), 3), dtype=np.int64) for _ in range(3))
        for seed in range(3):
            parts = [s + generator.permutation(p)[:n] for s, p, n in zip(starts, pools, support, strict=True)]
            rows = np.concatenate(parts)
            times[rows, seed] = 1
            for answers in (a, b):
                answers[rows, seed] = _answers(labels[rows], recalls, difficulty[rows], generator)
        seen = times.any(axis=1)
        drawn = resample_differences(
            PairedPredictions(labels[seen], times[seen], a[seen], b[seen], 5), resamples=200, seed=draw
        )
        rejected += bootstrap_p(drawn) < 0.05
        interval = estimate(0, drawn)
        held += interval.low < 0 < interval.high
    assert 0.02 <= rejected / DRAWS <= 0.07  # careful: of 8 products that all seeds nearly share
    assert 0.92 <= held / DRAWS <= 0.98


@pytest.mark.parametrize(("recalls", "support"), [EVEN, SMALL, (np.full(5, 0.98), np.full(5, 30))])
def test_intervals_of_an_evaluation_hold_the_truth(recalls, support):
    generator = np.random.default_rng(4)
    chances, shares = _chances(recalls), np.array([0.25, 0.5, 0.18, 0.02, 0.05])
    truth = _f1(chances * support[:, None])
    natural = (chances.diagonal() * shares).sum(), _f1(chances * shares[:, None]).mean()
    held = np.zeros(9)
    for draw in range(DRAWS):
        confusion = np.array([generator.multinomial(n, row) for n, row in zip(support, chances, strict=True)])
        drawn = resample_metrics(confusion, shares, resamples=200, seed=draw)
        f1 = [estimate(value, drawn.f1[:, place]) for place, value in enumerate(_f1(confusion))]
        right = confusion.diagonal()
        means = [
            corrected_estimate(_f1(confusion).mean(), drawn.macro_f1),
            corrected_estimate(right.sum() / support.sum(), drawn.accuracy),
            corrected_estimate((right / support * shares).sum(), drawn.natural_accuracy),
            estimate(_f1(confusion * (shares / support)[:, None]).mean(), drawn.natural_macro_f1),
        ]
        targets = [*truth, truth.mean(), (recalls * support).sum() / support.sum(), *natural]
        held += [each.low <= target <= each.high for each, target in zip([*f1, *means], targets, strict=True)]
    assert (held[5:] / DRAWS >= 0.92).all(), held / DRAWS
    assert (held[:5] / DRAWS >= 0.92).all(), held / DRAWS
    assert (held / DRAWS <= 0.99).all(), (
        held / DRAWS
    )  # careful by up to a percent more where recalls are of 30 products


@pytest.mark.parametrize("seeds", [3, 5])
def test_students_interval_holds_the_mean_of_all_seeds(seeds):
    values = np.random.default_rng(5).normal(0.8, 0.02, (1000, seeds))
    held = [figure.low <= 0.8 <= figure.high for figure in map(over_seeds, values)]
    assert 0.92 <= np.mean(held) <= 0.98


@pytest.mark.parametrize(("centre", "spread"), [(0.5, 0.1), (0.9, 0.05), (0.97, 0.01), (0.2, 0.15)])
def test_the_interval_of_a_bounded_metric_holds_its_mean_over_all_seeds(centre, spread):
    concentration = centre * (1 - centre) / spread**2 - 1
    generator, held = np.random.default_rng(7), {}
    for seeds in (2, 3, 5, 10):
        values = generator.beta(centre * concentration, (1 - centre) * concentration, (500, seeds))
        ends = [over_seeds(each, SHARE) for each in values]
        held[seeds] = np.mean([each.low <= centre <= each.high for each in ends])
    assert all(0.9 <= share <= 0.99 for share in held.values()), held


@pytest.mark.parametrize(("n", "chance"), [(600, 0.9), (150, 0.85), (25, 0.8), (20, 0.9)])
def test_wilsons_interval_holds_the_share(n, chance):
    right = np.arange(n + 1)
    ends = [wilson_interval(int(count), n) for count in right]
    held = np.array([each.low <= chance <= each.high for each in ends])
    assert 0.92 <= held[np.random.default_rng(6).binomial(n, chance, 1000)].mean() <= 0.98


def test_no_gap_is_found_in_five_percent_and_the_interval_holds_any():
    generator = np.random.default_rng(7)
    sizes = np.array([300, 240, 40, 20])
    values, strata = np.repeat(np.arange(4), sizes), generator.integers(0, 5, 600)
    rejected, held = np.zeros(2), np.zeros(2)
    for draw in range(DRAWS):
        right = generator.random(600) < EVEN[0][strata]
        once = [permutation_p(values, right, each, resamples=300, seed=draw) for each in (strata * 0, strata)]
        rejected += [p < 0.05 for p in once]
        for place, chances in enumerate((np.full(4, 0.9), np.array([0.93, 0.85, 0.8, 0.9]))):
            accuracy = generator.binomial(sizes, chances) / sizes
            interval = _gap(np.stack([accuracy, sizes], axis=1), 300, draw)
            held[place] += interval.low <= np.ptp(chances) <= interval.high
    assert (rejected / DRAWS >= 0.03).all() and (rejected / DRAWS <= 0.07).all()
    assert (held / DRAWS >= 0.92).all()  # it bounds the error of the largest of several gaps, so it may hold more often


@pytest.mark.parametrize("area", [0.6, 0.8, 0.95])
def test_the_area_of_unknown_products_is_held_with_twenty_of_them(area):
    generator = np.random.default_rng(8)
    shift = norm.ppf(area) * np.sqrt(2)
    held = 0
    for _ in range(1000):
        interval = auroc_unknown(generator.normal(shift, 1, 600), generator.normal(0, 1, 20))
        held += interval.low <= area <= interval.high
    assert 0.92 <= held / 1000 <= 0.98

"""Comparisons over seeds against scipy, scikit-learn, hand-worked numbers and simulated power."""

import json
import math
from dataclasses import asdict, replace

import numpy as np
import pytest
from scipy.stats import binom, binomtest, norm
from sklearn.metrics import f1_score

from tests.evaluation.made_predictions import assert_corrected_together, sure
from vlm_core.errors import UserError
from vlm_core.evaluation.bootstrap import Estimate
from vlm_core.evaluation.paired import exact_mcnemar, paired_test
from vlm_core.evaluation.predictions import Predictions
from vlm_core.evaluation.seed_comparison import compare_all, compare_seeds, describe_comparison, detectable_accuracy
from vlm_core.evaluation.seeds import DIFFERENCE, over_seeds, pool_products

NAMES = ("a", "b", "c")


def _runs(accuracies, seeds=3, pool=150, tested=90, seed=0):
    """For each accuracy a run a seed; the runs of a seed test the same products of the pool."""
    generator = np.random.default_rng(seed)
    labels = np.arange(pool) % 3
    runs = [[] for _ in accuracies]
    for _ in range(seeds):
        rows = generator.permutation(pool)[:tested]
        for place, accuracy in enumerate(accuracies):
            wrong = (labels[rows] + generator.integers(1, 3, tested)) % 3
            answers = np.where(generator.random(tested) < accuracy, labels[rows], wrong)
            runs[place].append(Predictions(rows.astype(str), labels[rows], sure(answers, 3), NAMES))
    return runs


def test_figures_are_those_of_scipy_and_scikit_learn():
    a, b = _runs((0.9, 0.7))
    found = compare_seeds(a, b, resamples=400)
    by_hand = [
        f1_score(one.labels, one.predicted, average="macro") - f1_score(two.labels, two.predicted, average="macro")
        for one, two in zip(a, b, strict=True)
    ]
    assert found.differences == pytest.approx(by_hand)
    assert found.difference.value == pytest.approx(np.mean(by_hand))
    assert found.over_seeds == over_seeds(found.differences, DIFFERENCE)
    assert (found.seeds, found.rows) == (3, 270)
    seen = {}
    for one, two in zip(a, b, strict=True):
        for row, name in enumerate(one.product_ids):
            seen.setdefault(name, (one.predicted[row] == one.labels[row], two.predicted[row] == two.labels[row]))
    only_a, only_b = sum(x and not y for x, y in seen.values()), sum(y and not x for x, y in seen.values())
    assert (found.products, found.only_a_correct, found.only_b_correct) == (len(seen), only_a, only_b)
    assert found.p_mcnemar == pytest.approx(binomtest(only_a, only_a + only_b, 0.5).pvalue)
    assert found.difference.low < found.difference.value < found.difference.high
    assert found.p_bootstrap < 0.05
    json.dumps(asdict(found))


def test_of_one_seed_it_is_the_paired_test():
    (a,), (b,) = _runs((0.8, 0.75), seeds=1)
    found, known = compare_seeds([a], [b], resamples=500, seed=4), paired_test(a, b, resamples=500, seed=4)
    assert (found.p_mcnemar, found.only_a_correct) == (known.p_mcnemar, known.only_a_correct)
    assert found.difference.value == pytest.approx(known.difference.value)
    assert (found.difference.low, found.difference.high) == pytest.approx(
        (known.difference.low, known.difference.high), abs=0.01
    )
    assert math.isnan(found.over_seeds.low)


def test_sides_and_the_order_of_rows_can_be_changed():
    a, b = _runs((0.85, 0.8))
    order = np.random.default_rng(0).permutation(90)
    shuffled = [
        Predictions(each.product_ids[order], each.labels[order], each.log_probabilities[order], NAMES) for each in b
    ]
    assert compare_seeds(a, shuffled, resamples=200) == compare_seeds(a, b, resamples=200)
    back = compare_seeds(b, a, resamples=200)
    assert back.difference.value == pytest.approx(-compare_seeds(a, b, resamples=200).difference.value)
    assert back.p_mcnemar == compare_seeds(a, b, resamples=200).p_mcnemar


def test_rows_that_repeat_a_product_are_not_more_products():
    a, b = _runs((0.85, 0.8), seeds=2)
    twice = [
        [
            Predictions(*(np.tile(part, 2) for part in (each.product_ids, each.labels)),
                        np.tile(each.log_probabilities, (2, 1)), NAMES)
            for each in runs
        ]
        for runs in (a, b)
    ]  # fmt: skip
    once, repeated = compare_seeds(a, b, resamples=2000), compare_seeds(*twice, resamples=2000)
    assert (repeated.rows, repeated.products) == (2 * once.rows, once.products)
    assert repeated.p_mcnemar == once.p_mcnemar
    assert repeated.detectable_macro_f1 == pytest.approx(once.detectable_macro_f1, rel=0.08)


@pytest.mark.slow
def test_all_pairs_are_corrected_together_by_hand():
    cells = dict(zip("xyz", _runs((0.9, 0.84, 0.7)), strict=True))
    found = compare_all(cells, resamples=300)
    assert list(found) == [("x", "y"), ("x", "z"), ("y", "z")]
    assert_corrected_together(found.values())
    for test in found.values():
        assert test.over_seeds == over_seeds(test.differences, DIFFERENCE, intervals=3)
    assert compare_all({"x": cells["x"]}) == {}


def test_what_does_not_match_is_refused():
    a, b = _runs((0.8, 0.8))
    with pytest.raises(UserError, match="same seeds"):
        compare_seeds(a, b[:2])
    with pytest.raises(UserError, match="same seeds"):
        compare_seeds([], [])
    with pytest.raises(UserError, match="same products"):
        compare_seeds(a, [b[1], b[0], b[2]])


def test_unlabelled_products_count_for_nothing():
    a, b = _runs((0.9, 0.8))
    hidden = [
        [replace(each, labels=np.where(each.product_ids.astype(int) < 20, -1, each.labels)) for each in runs]
        for runs in (a, b)
    ]
    found = compare_seeds(*hidden, resamples=100)
    assert found.products == len(pool_products(hidden[0])) < len(pool_products(a))


def test_the_detectable_accuracy_solves_connors_equation():
    # by hand, and the study's own words: of 500 test pictures about 1.6 points, which all speak for one model
    assert detectable_accuracy(500, 0) == pytest.approx(0.0157, abs=0.0001)
    for products, discordant in ((600, 40), (613, 90), (2000, 100), (100, 30)):
        d, share = detectable_accuracy(products, discordant), discordant / products
        needed = (norm.ppf(0.975) * math.sqrt(share) + norm.ppf(0.8) * math.sqrt(share - d * d)) ** 2 / d**2
        assert needed == pytest.approx(products)
    assert math.isnan(detectable_accuracy(3, 1))
    assert 0 < detectable_accuracy(4, 0) <= 1


@pytest.mark.slow
def test_the_exact_test_has_about_the_stated_power():
    products, share = 613, 0.12
    d = detectable_accuracy(products, round(share * products))
    counts = np.arange(products + 1)
    power = 0.0
    for discordant in range(30, 130):
        right = counts[: discordant + 1]
        found = np.array([exact_mcnemar(int(x), int(discordant - x)) < 0.05 for x in right])
        chance = binom.pmf(discordant, products, share)
        power += chance * binom.pmf(right, discordant, (1 + d / share) / 2)[found].sum()
    assert 0.75 <= power <= 0.82  # Connor's formula is of the asymptotic test


def test_the_detectable_macro_f1_is_28_standard_errors():
    a, b = _runs((0.85, 0.85), seeds=2)
    found = compare_seeds(a, b, resamples=3000)
    width = found.difference.high - found.difference.low
    assert found.detectable_macro_f1 == pytest.approx(width / (2 * 1.96) * (1.96 + 0.8416), rel=0.05)


WON, LOST = Estimate(0.012, 0.001, 0.023), Estimate(-0.012, -0.023, -0.001)


def _words(difference, p, seeds=5, over=WON, p_accuracy=0.4):
    a, b = _runs((0.8, 0.8), seeds=2)
    made = replace(
        compare_seeds(a, b, resamples=50),
        difference=difference,
        p_bootstrap_holm=p,
        p_mcnemar_holm=p_accuracy,
        seeds=seeds,
        over_seeds=over,
        detectable_macro_f1=0.016,
    )
    return describe_comparison("blip", "clip", made)


def test_a_comparison_in_words():
    assert _words(WON, 0.03).startswith("blip beats clip by 1.2 points of macro-F1")
    assert _words(WON, 0.03).endswith("The smallest detectable difference is 1.6 points of macro-F1.")
    assert _words(LOST, 0.0001, over=LOST).startswith("clip beats blip by 1.2 points of macro-F1")
    assert _words(WON, 0.3).startswith("blip and clip do not differ significantly in macro-F1")


def test_words_say_when_seeds_differ_more_than_the_models():
    assert "it may be zero with other seeds" in _words(WON, 0.03, over=Estimate(0.012, -0.01, 0.034))
    assert "another seed may give another" in _words(WON, 0.03, seeds=1, over=Estimate(0.012, math.nan, math.nan))
    assert "another seed may give another" in _words(WON, 0.3, seeds=1, p_accuracy=0.01)
    assert "another seed" not in _words(WON, 0.3, seeds=1)

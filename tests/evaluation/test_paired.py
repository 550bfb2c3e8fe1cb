"""Paired tests against scipy, scikit-learn, hand-worked numbers and simulations."""

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import cohen_kappa_score, f1_score

from vlm_core.errors import UserError
from vlm_core.evaluation.paired import better_first, exact_mcnemar, mid_mcnemar, paired_test, paired_tests
from vlm_core.evaluation.predictions import Predictions


def _predictions(labels, predicted, categories=3, ids=None):
    logs = np.full((len(labels), categories), np.log(0.1 / (categories - 1)))
    logs[np.arange(len(labels)), predicted] = np.log(0.9)
    ids = [f"p{number}" for number in range(len(labels))] if ids is None else ids
    return Predictions(ids, np.array(labels), logs, tuple("abcdef"[:categories]))


def _sample(generator, n=200, accuracy=0.7, categories=3):
    labels = generator.integers(0, categories, n)
    wrong = (labels + generator.integers(1, categories, n)) % categories
    return labels, [np.where(generator.random(n) < accuracy, labels, wrong) for _ in range(2)]


def _macro_f1(labels, predicted):
    """Of three categories, from the definition: scikit-learn's takes milliseconds."""
    return np.mean(
        [
            2 * ((labels == k) & (predicted == k)).sum() / ((labels == k).sum() + (predicted == k).sum())
            for k in range(3)
        ]
    )


def test_figures_are_those_of_scipy_and_scikit_learn():
    labels, (a, b) = _sample(np.random.default_rng(1))
    found = paired_test(_predictions(labels, a), _predictions(labels, b))
    only_a, only_b = int(((a == labels) & (b != labels)).sum()), int(((a != labels) & (b == labels)).sum())
    assert (found.only_a_correct, found.only_b_correct, found.n) == (only_a, only_b, 200)
    assert found.p_mcnemar == pytest.approx(binomtest(only_a, only_a + only_b, 0.5).pvalue)
    assert found.p_mcnemar_mid == mid_mcnemar(only_a, only_b)
    expected = f1_score(labels, a, average="macro") - f1_score(labels, b, average="macro")
    assert found.difference.value == pytest.approx(expected)
    assert found.kappa == pytest.approx(cohen_kappa_score(a, b))
    assert found.agreement == pytest.approx((a == b).mean())


def test_mid_p_by_hand():
    # of ten products one or fewer in either direction: 2 (1 + 10) / 1024; just one: 2 · 10 / 1024, of which half counts
    assert mid_mcnemar(1, 9) == mid_mcnemar(9, 1) == pytest.approx((2 + 20 / 2) / 1024)
    assert mid_mcnemar(2, 2) == pytest.approx(1 - 6 / 16 / 2)
    assert mid_mcnemar(0, 0) == exact_mcnemar(0, 0) == 1


@pytest.mark.slow
def test_the_interval_is_that_of_resampling_products_within_their_category():
    generator = np.random.default_rng(2)
    labels, (a, b) = _sample(generator, n=120)
    found = paired_test(_predictions(labels, a), _predictions(labels, b), resamples=4000).difference
    slow = []
    for _ in range(2000):
        rows = np.concatenate([generator.choice(np.flatnonzero(labels == k), (labels == k).sum()) for k in range(3)])
        scores = [_macro_f1(labels[rows], each[rows]) for each in (a, b)]
        slow.append(scores[0] - scores[1])
    np.testing.assert_allclose([found.low, found.high], np.quantile(slow, [0.025, 0.975]), atol=0.015)


def test_order_of_the_products_does_not_matter_and_sides_can_be_changed():
    labels, (a, b) = _sample(np.random.default_rng(3))
    one, other = _predictions(labels, a), _predictions(labels, b)
    order = np.random.default_rng(4).permutation(len(labels))
    shuffled = _predictions(labels[order], b[order], ids=one.product_ids[order])
    assert paired_test(one, shuffled) == paired_test(one, other)
    back = paired_test(other, one)
    assert back.difference.value == pytest.approx(-paired_test(one, other).difference.value)


def test_equal_answers_differ_in_nothing_that_can_be_shown():
    labels, (a, _) = _sample(np.random.default_rng(5))
    found = paired_test(_predictions(labels, a), _predictions(labels, a))
    assert (found.p_mcnemar, found.agreement, found.kappa, found.difference.value) == (1.0, 1.0, 1.0, 0.0)
    # other products could have been answered differently, by either
    assert found.difference.low == pytest.approx(-found.difference.high, abs=0.003)
    assert 0 < found.difference.high < 0.02 and found.p_bootstrap > 0.9


@pytest.mark.slow
def test_holms_correction_by_hand():
    labels, predicted = _sample(np.random.default_rng(6), n=300)
    third = np.where(np.random.default_rng(7).random(300) < 0.95, labels, (labels + 1) % 3)
    tests = paired_tests([_predictions(labels, each) for each in (*predicted, third)])
    plain = sorted(test.p_bootstrap for test in tests.values())
    corrected = sorted(test.p_holm for test in tests.values())
    by_hand = np.maximum.accumulate([min(1.0, p * (3 - place)) for place, p in enumerate(plain)])
    np.testing.assert_allclose(corrected, by_hand)
    assert paired_tests([_predictions(labels, third)]) == {}


def test_runs_of_other_products_categories_or_labels_are_refused():
    labels, (a, b) = _sample(np.random.default_rng(8))
    one = _predictions(labels, a)
    with pytest.raises(UserError, match="same products and categories"):
        paired_test(one, _predictions(labels, b, categories=4))
    with pytest.raises(UserError, match="same products and categories"):
        paired_test(one, _predictions(labels, b, ids=[f"q{number}" for number in range(200)]))
    with pytest.raises(UserError, match="other true categories"):
        paired_test(one, _predictions((labels + 1) % 3, b))


def test_a_swapped_test_is_the_test_of_the_swapped_runs_and_the_better_run_comes_first():
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 3, 60)
    good, bad = (np.where(generator.random(60) < share, labels, (labels + 1) % 3) for share in (0.9, 0.6))
    runs = [_predictions(labels, each) for each in (bad, good)]
    test, turned = paired_test(*runs), paired_test(*reversed(runs))
    assert test.difference.value < 0 and test.swapped().difference.value == pytest.approx(turned.difference.value)
    assert test.swapped().only_a_correct == turned.only_a_correct == test.only_b_correct
    a, b, ordered = better_first("bad", "good", test)
    assert (a, b) == ("good", "bad") and ordered.only_a_correct > ordered.only_b_correct
    assert better_first("good", "bad", turned)[2] is turned

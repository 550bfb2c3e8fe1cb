"""Paired tests against scipy, scikit-learn, hand-worked numbers and simulations."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, binomtest
from sklearn.metrics import cohen_kappa_score, f1_score
from statsmodels.stats.multitest import multipletests

from tests.evaluation.made_predictions import assert_corrected_together
from tests.stores import run_python
from vlm_core.errors import UserError
from vlm_core.evaluation.bootstrap import Estimate
from vlm_core.evaluation.paired import (
    PairedTest,
    better_first,
    describe_tests,
    exact_mcnemar,
    holm,
    mid_mcnemar,
    paired_test,
    paired_tests,
)
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
    for few, many in ((3, 11), (40, 40), (900, 1200)):
        exact, observed = binomtest(few, few + many, 0.5).pvalue, binom.pmf(few, few + many, 0.5)
        assert exact_mcnemar(few, many) == pytest.approx(exact, rel=1e-12)
        assert mid_mcnemar(few, many) == pytest.approx(exact - observed if few != many else 1 - observed / 2, rel=1e-10)


@pytest.mark.slow
def test_a_page_that_tests_pairs_does_not_wait_for_the_import_of_whole_libraries(tmp_path):
    script = """
import sys
import numpy as np
from vlm_core.evaluation.paired import paired_tests
from vlm_core.evaluation.predictions import Predictions

logs = np.log(np.full((4, 2), 0.5))
runs = [Predictions(list("abcd"), np.array([0, 1, 0, 1]), logs, ("x", "y"))] * 2
assert paired_tests(runs, resamples=10)
assert not {"sklearn", "scipy.stats"} & set(sys.modules)
"""
    done = run_python(script, tmp_path)
    assert done.returncode == 0, done.stderr


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
def test_holms_correction_of_both_tests_by_hand():
    labels, predicted = _sample(np.random.default_rng(6), n=300)
    third = np.where(np.random.default_rng(7).random(300) < 0.95, labels, (labels + 1) % 3)
    tests = paired_tests([_predictions(labels, each) for each in (*predicted, third)])
    assert_corrected_together(tests.values())
    assert paired_tests([_predictions(labels, third)]) == {}


@given(st.lists(st.floats(0, 1) | st.sampled_from([0.0, 0.01, 0.05, 1.0]), max_size=12))
def test_holms_correction_is_that_of_statsmodels_to_the_last_digit(p_values):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gc.collect", lambda: 0)  # which it calls each time
        expected = multipletests(p_values, method="holm")[1].tolist() if p_values else []
    assert holm(p_values) == expected


def test_the_tests_of_one_pair_are_two():
    labels, predicted = _sample(np.random.default_rng(6), n=300)
    assert_corrected_together([paired_test(*(_predictions(labels, each) for each in predicted))])


WON, LOST = Estimate(0.012, 0.001, 0.023), Estimate(-0.012, -0.023, -0.001)


@pytest.mark.parametrize(
    ("difference", "p_macro_f1", "p_accuracy", "sentence"),
    [
        (
            WON,
            0.03,
            0.0004,
            "A beats B by 1.2 points of macro-F1 (95\u00a0% interval 0.1 to 2.3; corrected p = 0.030), and A predicts "
            "more products correctly (only A correct: 38, only B: 12; corrected p < 0.001).",
        ),
        (
            LOST,
            0.0004,
            0.03,
            "B beats A by 1.2 points of macro-F1 (95\u00a0% interval 0.1 to 2.3; corrected p < 0.001), but A predicts "
            "more products correctly (only B correct: 12, only A: 38; corrected p = 0.030).",
        ),
        (
            WON,
            0.03,
            0.05,
            "A beats B by 1.2 points of macro-F1 (95\u00a0% interval 0.1 to 2.3; corrected p = 0.030); their "
            "accuracies do not differ significantly (only A correct: 38, only B: 12; corrected p = 0.050).",
        ),
        (
            LOST,
            0.3,
            0.006,
            "B and A do not differ significantly in macro-F1 (1.2 points, 95\u00a0% interval 0.1 to 2.3; corrected "
            "p = 0.300), but A predicts more products correctly (only B correct: 12, only A: 38; corrected p = 0.006).",
        ),
        (
            WON,
            0.3,
            0.2,
            "A and B do not differ significantly in macro-F1 (1.2 points, 95\u00a0% interval 0.1 to 2.3; corrected "
            "p = 0.300), nor in accuracy (only A correct: 38, only B: 12; corrected p = 0.200).",
        ),
    ],
)
def test_both_outcomes_in_words(difference, p_macro_f1, p_accuracy, sentence):
    made = PairedTest(100, 38, 12, 0.7, 0.6, difference, 0.01, p_macro_f1, p_accuracy, 0.1, 0.9, 0.8)
    assert describe_tests("A", "B", made) == sentence


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

"""Gaps between subgroups: figures, a planted gap, none, and one that the categories explain."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy.stats import PermutationMethod, chi2_contingency
from statsmodels.stats.contingency_tables import StratifiedTable

from tests.evaluation.made_predictions import sure
from vlm_core.errors import UserError
from vlm_core.evaluation.gaps import measure_gaps, permutation_p
from vlm_core.evaluation.predictions import Predictions
from vlm_core.evaluation.subgroups import subgroup_table

NAMES = ("a", "b", "c")


def _predictions(labels, correct, ids=None):
    predicted = np.where(correct, labels, (labels + 1) % 3)
    ids = np.arange(len(labels)).astype(str) if ids is None else ids
    return Predictions(ids, labels, sure(predicted, 3), NAMES)


def _sample_predictions(chances, values, seed=0):
    """Predictions whose accuracy depends on the value."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 3, len(values))
    correct = generator.random(len(values)) < np.vectorize(chances.get)(values)
    return _predictions(labels, correct)


def _table(**columns):
    table = pd.DataFrame(columns)
    table.index = table.index.astype(str)
    return table


@pytest.mark.slow
def test_figures_are_those_of_the_subgroup_table():
    values = np.array(["Men"] * 200 + ["Women"] * 150 + ["Boys"] * 12 + [""] * 30)
    predictions = _sample_predictions({"Men": 0.9, "Women": 0.8, "Boys": 0.5, "": 0.1}, values)
    (found,) = measure_gaps([predictions], _table(gender=values), resamples=200)
    expected, _ = subgroup_table(predictions.labels, predictions.predicted, _table(gender=values), NAMES)
    assert [(part.value, part.n) for part in found.values] == [(part.value, part.n) for part in expected]
    for ours, theirs in zip(found.values, expected, strict=True):
        assert ours.accuracy == theirs.accuracy
        assert ours.macro_f1 == pytest.approx(theirs.macro_f1)
    assert [part.thin for part in found.values] == [False, False, False, True]
    accuracy = {part.value: part.accuracy.value for part in found.values}
    # neither the unknown value nor the thin one makes a gap
    assert {found.best, found.worst} == {"Men", "Women"}
    assert found.accuracy_gap.value == pytest.approx(abs(accuracy["Men"] - accuracy["Women"]))


@pytest.mark.slow
def test_a_planted_gap_is_found_and_its_size_held():
    values = np.repeat(["Men", "Women", "Unisex"], [300, 250, 60])
    other = np.tile(["Summer", "Winter"], 305)
    predictions = _sample_predictions({"Men": 0.92, "Women": 0.92, "Unisex": 0.72}, values, seed=1)
    gender, season = measure_gaps([predictions], _table(gender=values, season=other))
    assert gender.worst == "Unisex"
    assert gender.p_value < 0.01 and gender.p_holm < 0.01 and gender.p_within_categories < 0.01
    assert 0 < gender.accuracy_gap.low < 0.2 < gender.accuracy_gap.high
    assert season.p_holm >= season.p_value > 0.05
    assert season.accuracy_gap.low == 0


@pytest.mark.slow
def test_a_gap_that_categories_explain_is_marked_as_such():
    generator = np.random.default_rng(2)
    labels = np.repeat([0, 1], 300)
    values = np.where(generator.random(600) < np.where(labels == 0, 0.9, 0.1), "Men", "Women")
    right = generator.random(600) < np.where(labels == 0, 0.95, 0.6)  # by category alone
    (found,) = measure_gaps([_predictions(labels, right)], _table(gender=values))
    assert found.p_value < 0.001
    assert found.p_within_categories > 0.05


@pytest.mark.slow
def test_the_p_value_is_scipys_permutation_test():
    values = np.repeat([0, 1, 2], [60, 40, 20])
    right = np.random.default_rng(3).random(120) < np.repeat([0.9, 0.8, 0.7], [60, 40, 20])
    table = np.array([np.bincount(values[right == side], minlength=3) for side in (True, False)])
    method = PermutationMethod(n_resamples=9999, rng=np.random.default_rng(0))
    expected = chi2_contingency(table, correction=False, method=method).pvalue
    found = permutation_p(values, right, np.zeros(120, int), resamples=9999, seed=0)
    assert found == pytest.approx(expected, abs=0.015)


def test_within_strata_it_is_about_the_test_of_cochran_mantel_and_haenszel():
    generator = np.random.default_rng(4)
    strata, values = generator.integers(0, 4, 800), generator.integers(0, 2, 800)
    right = generator.random(800) < 0.6 + 0.08 * strata + 0.05 * values
    tables = [
        np.array([[(right & (values == v) & (strata == s)).sum(), (~right & (values == v) & (strata == s)).sum()]
                  for v in (0, 1)]) for s in range(4)
    ]  # fmt: skip
    expected = StratifiedTable(tables).test_null_odds(correction=False).pvalue
    assert permutation_p(values, right, strata, resamples=9999, seed=0) == pytest.approx(expected, abs=0.03)


@pytest.mark.slow
def test_all_right_is_no_gap():
    labels = np.arange(100) % 3
    values = np.repeat(["Men", "Women"], 50)
    (found,) = measure_gaps([_predictions(labels, np.ones(100, bool))], _table(gender=values), resamples=200)
    assert found.p_value == 1 and found.accuracy_gap.value == 0 == found.accuracy_gap.low < found.accuracy_gap.high


@pytest.mark.slow
def test_a_product_of_several_seeds_counts_once():
    values = np.repeat(["Men", "Women"], 40)
    predictions = _sample_predictions({"Men": 0.9, "Women": 0.7}, values)
    table = _table(gender=values)
    assert measure_gaps([predictions] * 3, table, resamples=200) == measure_gaps([predictions], table, resamples=200)


def test_an_attribute_with_one_value_has_no_gap():
    labels = np.arange(60) % 3
    predictions = _predictions(labels, labels < 2)
    single, empty = measure_gaps([predictions], _table(season=["Summer"] * 60, usage=[None] * 60))
    for found in (single, empty):
        assert found.best == found.worst == "" and math.isnan(found.p_holm) and math.isnan(found.accuracy_gap.value)
    assert empty.values[0].value == ""


def test_a_table_that_lacks_a_product_is_refused():
    labels = np.arange(6) % 3
    with pytest.raises(UserError, match="attributes"):
        measure_gaps([_predictions(labels, labels < 2)], _table(gender=["Men"] * 5))

"""Comparisons of several runs, over hand-made and real ones."""

import json

import numpy as np
import pytest
from dash import no_update

from dashboard.comparison import (
    compare_runs,
    differing_settings,
    disagreements,
    predicted_categories,
    scores_over_seeds,
)
from dashboard.pages import attention, categorise
from dashboard.pages import compare as page
from dashboard.runs import Runs
from vlm_core.evaluation.paired import describe_tests, paired_test


@pytest.fixture(scope="module")
def runs(filled_store):
    made = Runs(f"sqlite:///{filled_store}/mlflow.db", filled_store)
    made.refresh()
    return made


@pytest.fixture(scope="module")
def names(runs):
    table = runs.table()
    return table[table["metrics.test_macro_f1"].notna()]["run_id"].tolist()  # leaking clip, baseline, blip, clip


@pytest.fixture(scope="module")
def comparison(runs, names):
    return compare_runs(runs, names)


def _text(component):
    return json.dumps(component, default=lambda part: part.to_plotly_json())


def test_only_runs_of_the_same_products_are_tested_against_each_other(runs, names):
    comparison = compare_runs(runs, [*names, "unknown"])
    assert len(comparison.runs) == 4
    assert sorted(map(len, comparison.groups)) == [1, 3] and len(comparison.tests) == 3
    assert all(test.difference.value >= 0 for test in comparison.tests.values())
    (a, b), test = next(iter(comparison.tests.items()))
    alone = paired_test(comparison.runs[a].evaluation.predictions, comparison.runs[b].evaluation.predictions)
    assert test.difference == alone.difference and test.p_bootstrap_holm >= alone.p_bootstrap_holm


def test_disagreements_by_which_run_is_correct():
    labels = np.array([0, 1, 2, -1, 1])
    predicted = np.array([[0, 1, 0, 0, 1], [0, 2, 1, 1, 0]])
    assert disagreements(labels, predicted, "all").tolist() == [1, 2, 4]
    assert disagreements(labels, predicted, "nobody").tolist() == [2]
    assert disagreements(labels, predicted, "0").tolist() == [1, 4]
    assert disagreements(labels, predicted, "1").tolist() == []


def test_predictions_are_matched_by_product(comparison):
    group = max(comparison.groups, key=len)
    labels, predicted = predicted_categories(comparison, group)
    for place, row in zip(group, predicted, strict=True):
        assert (row == labels).mean() == pytest.approx(comparison.runs[place].evaluation.accuracy.value)


def test_settings_differ_where_they_differ_and_seeds_of_one_configuration_are_pooled(comparison):
    assert {"model", "mode", "protocol"} <= {line[0] for line in differing_settings(comparison)}
    assert scores_over_seeds(comparison) == []
    one = comparison.runs[0]
    twin = type(one)(**{**one.__dict__, "row": {**one.row, "params.seed": "9"}})
    (pooled,) = scores_over_seeds(type(comparison)((one, twin), (), {}))
    assert pooled[1] == 2 and pooled[2] == pytest.approx(one.evaluation.macro_f1.value) and pooled[3] == 0


def test_the_page_from_nothing_to_a_comparison(runs, names):
    assert "Choose two runs" in _text(page.update_body(runs, []))
    assert "Nothing to compare yet" in _text(page.update_body(runs, ["x", "y"]))
    body = _text(page.update_body(runs, names))
    for part in (
        "Significance tests",
        "were evaluated on different products",
        "Some scores may be memorised",
        "also appear in training",
        "Disagreements",
        "Settings",
    ):
        assert part in body
    assert "/picture/" in _text(page.update_gallery(runs, "all", names))
    assert len(page.update_state(runs, 1, ["gone"], None)[2]) == 5


def test_runs_that_are_not_read_yet_are_compared_once_they_are(runs, names, filled_store):
    late = Runs(runs.uri, filled_store)
    assert "Nothing to compare yet" in _text(page.update_body(late, names))
    assert page.update_state(late, 0, names, [])[3] is no_update
    late.refresh()
    assert page.update_state(late, 1, names, [])[3] == names
    assert "Significance tests" in _text(page.update_body(late, names, names))


def test_any_two_runs_of_one_test_set_are_subtracted_and_the_address_says_which(runs, names, comparison):
    group = max(comparison.groups, key=len)
    pairs = page.pair_choices(comparison, group)
    assert len(pairs) == 3 and pairs[1]["label"].count("−") == 1
    i, j = map(int, pairs[1]["value"].split("-"))
    shown = page.update_difference(runs, f"{i}-{j}", names).data[0].z
    shares = [
        comparison.runs[k].evaluation.confusion / comparison.runs[k].evaluation.confusion.sum(axis=1, keepdims=True)
        for k in (i, j)
    ]
    np.testing.assert_allclose(shown, shares[0] - shares[1])
    assert page.update_difference(runs, "0-9", names) is no_update
    body = _text(page.update_body(runs, names, None, {"pair": f"{i}-{j}", "correct": "nobody"}))
    assert f'"value": "{i}-{j}", "w"' in body or f'"value": "{i}-{j}"' in body.split('"compare-pair"')[1][:400]
    turned = _text(page.update_body(runs, names, None, {"pair": f"{j}-{i}"}))
    assert f'"value": "{i}-{j}"' in turned.split('"compare-pair"')[1][:400]


def test_each_pair_has_one_direction_in_its_sentence_its_counts_and_its_matrix(runs, names):
    comparison = compare_runs(runs, names)
    for choice, ((a, b), test) in zip(
        page.pair_choices(comparison, comparison.largest_group), comparison.tests.items(), strict=True
    ):
        first, second = (comparison.runs[place].evaluation.predictions for place in (a, b))
        again = paired_test(first, second)
        assert (test.only_a_correct, test.only_b_correct) == (again.only_a_correct, again.only_b_correct)
        one, other = comparison.names[a], comparison.names[b]
        assert choice["label"] == f"{one} \u2212 {other}"
        sentence = describe_tests(one, other, test)
        assert sentence.index(one) < sentence.index(other) or one in other


def test_settings_that_a_model_does_not_read_do_not_differ(runs, names):
    lines = {line[0]: line[1:] for line in differing_settings(compare_runs(runs, names))}
    place = [run.row["params.model"] for run in compare_runs(runs, names).runs].index("baseline")
    assert lines["learning_rate"][place] == lines["epochs"][place] == "–"
    assert '"children": "baseline \\u00b7 seed 0"' in _text(page.update_body(runs, names))  # no mode, no weights


def test_more_runs_in_the_address_than_fit_are_not_cut_down_without_a_word(runs):
    many = ",".join(f"r{number}" for number in range(30))
    assert "30 runs are named in the address: the first 6 are compared." in _text(page.layout(runs, {"runs": many}))
    assert "named in the address" not in _text(page.layout(runs, {"runs": "r0,r1,r2,r3,r4,r5"}))


@pytest.mark.parametrize("module", [attention, categorise])
def test_more_models_in_the_address_than_fit_are_not_cut_down_without_a_word(runs, module):
    said = _text(module.layout(runs, {"models": "a,b,c,d,e"}))
    assert "5 models are named in the address: the first 4 are shown." in said
    assert "named in the address" not in _text(module.layout(runs, {"models": "a,b,c,d"}))


def test_p_values_are_said_to_be_corrected(runs, names):
    assert "Corrected McNemar p (mid-p)" in _text(page.update_body(runs, names))


def test_a_name_of_250_letters_is_cut_off_in_sentences_and_whole_in_its_runs_card(runs, names, monkeypatch):
    plain = runs.row
    monkeypatch.setattr(runs, "row", lambda run_id: {**plain(run_id), "name": run_id[:4] + "x" * 246})
    page._compare.cache_clear()
    body = _text(page.update_body(runs, names))
    page._compare.cache_clear()
    sentences = body.split("Difference, A before B")[1].split("Learning curves")[0]
    assert "x" * 60 not in sentences and "xxx\\u2026xxx" in sentences


def test_a_comparison_says_that_it_is_computed_while_it_is(runs):
    assert "Comparing the runs" in _text(page.layout(runs, {"runs": "a,b"}))


@pytest.mark.parametrize("name", ["correct", "right"])  # today's address, and that of older links
def test_the_address_says_which_run_is_correct(runs, name):
    assert '"correct": "nobody"' in _text(page.layout(runs, {name: "nobody"}))

"""From finished cells to results, against numbers worked out by hand."""

from math import exp, isnan, nan
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from tests.study.made_cells import FAIR, GOOD, make_cell, make_cells, make_predictions
from vlm_core.config import StudyConfig
from vlm_core.evaluation.bootstrap import Estimate
from vlm_core.evaluation.decoding_scores import DecodingScore
from vlm_core.evaluation.leak import CategoryLeak
from vlm_core.evaluation.seeds import SHARE, within
from vlm_core.study import collecting
from vlm_core.study.collecting import (
    calibration_rows,
    collect,
    decoding_rows,
    gap_rows,
    headline_categories,
    headline_predictions,
    held_out_rows,
    leak_rows,
    mechanism_pair_rows,
    pair_rows,
    robustness_rows,
    score_rows,
    simple_baseline_rows,
    thin_categories,
)
from vlm_core.study.robustness import CorruptedScore, Robustness

CLIP = "clip/full/classify/holdout/"
BASELINE = "baseline/full/classify/holdout/"
T_ONE_DEGREE = 12.7062047  # Student's t at 97.5 % with one degree of freedom
BOTH = frozenset({"A", "B"})
FAIR_MACRO_F1 = (8 / 11 + 2 / 3) / 2


@pytest.fixture
def clip(tmp_path):
    """Two seeds, the first fair and the second without errors."""
    tags = {"tags.weights_total": "1000", "tags.weights_trained": "10", "metrics.train_seconds": 3.0}
    return [
        make_cell(tmp_path, f"{CLIP}0", FAIR, tags),
        make_cell(tmp_path, f"{CLIP}1", GOOD, {"metrics.train_seconds": nan}),
    ]


def test_scores_are_means_over_seeds_with_an_interval_within_their_bounds(clip):
    (row,) = score_rows(make_cells(*clip), BOTH)
    assert (row.configuration, row.label, row.kind) == ("clip/full/classify/holdout", "clip full", "family")
    assert (row.seeds, row.run_ids) == ((0, 1), (f"run of {CLIP}0", f"run of {CLIP}1"))
    assert row.test_products == 20
    assert row.accuracy.value == pytest.approx(0.85)
    expected = within(Estimate(0.85, 0.85 - T_ONE_DEGREE * 0.15, 0.85 + T_ONE_DEGREE * 0.15), SHARE)
    assert (row.accuracy.low, row.accuracy.high) == pytest.approx((expected.low, expected.high))
    assert row.accuracy.high < 1
    assert row.macro_f1.value == pytest.approx((FAIR_MACRO_F1 + 1) / 2)
    assert row.worst_recall.value == pytest.approx((0.6 + 1) / 2)
    assert {name: each.value for name, each in row.per_category.items()} == pytest.approx({"A": 19 / 22, "B": 5 / 6})
    assert (row.weights, row.weights_trained, row.train_seconds) == (1000, 10, 1.5)


def test_the_training_time_counts_what_came_from_the_cache_where_that_is_known(tmp_path):
    spent = {"metrics.train_seconds": 3.0}
    cells = [
        make_cell(tmp_path, f"{CLIP}0", FAIR, {**spent, "metrics.train_seconds_full": 9.0}),
        make_cell(tmp_path, f"{CLIP}1", GOOD, spent),
    ]
    assert score_rows(make_cells(*cells), BOTH)[0].train_seconds == 6.0


def test_simple_baselines_are_scored_where_every_seed_has_their_predictions(tmp_path):
    probe = "clip/probe/classify/holdout/"
    cells = [
        make_cell(
            tmp_path, f"{probe}{seed}", majority=make_predictions(FAIR), nearest_class_mean=make_predictions(GOOD)
        )
        for seed in (0, 1)
    ]
    other = make_cell(tmp_path, "git/probe/classify/holdout/0", majority=make_predictions(FAIR))
    half = make_cell(tmp_path, "blip/probe/classify/holdout/0", nearest_class_mean=make_predictions(GOOD))
    lacking = make_cell(tmp_path, "blip/probe/classify/holdout/1")
    rows = simple_baseline_rows(make_cells(*cells, other, half, lacking), BOTH)
    assert [row.label for row in rows] == ["majority", "nearest class mean, clip features"]
    assert {row.kind for row in rows} == {"baseline"}
    assert [row.accuracy.value for row in rows] == pytest.approx([0.7, 1.0])
    assert rows[1].configuration == "nearest class mean/clip/probe/classify/holdout"
    assert (rows[0].weights, rows[0].train_seconds) == (0, 0.0)


@pytest.mark.slow
def test_pairs_are_compared_over_the_seeds_that_all_have(clip, tmp_path):
    cells = {"clip full": clip, "HOG + colour": [make_cell(tmp_path, f"{BASELINE}1", FAIR)]}
    (pair,) = pair_rows("families", headline_predictions(cells, BOTH))
    assert (pair.group, pair.a, pair.b) == ("families", "clip full", "HOG + colour")
    assert (pair.test.seeds, pair.test.products) == (1, 20)
    assert (pair.test.only_a_correct, pair.test.only_b_correct) == (6, 0)  # of seed 1: all against 14 of 20
    assert pair.test.difference.value == pytest.approx(1 - FAIR_MACRO_F1)
    assert "clip full" in pair.conclusion


def test_one_configuration_or_no_common_seed_makes_no_pair(clip, tmp_path):
    assert headline_predictions({}, BOTH) == {}
    assert pair_rows("families", {}) == pair_rows("families", headline_predictions({"clip full": clip}, BOTH)) == []
    strangers = {"a": clip, "b": [make_cell(tmp_path, f"{BASELINE}7")]}
    assert pair_rows("families", headline_predictions(strangers, BOTH)) == []


def test_thin_categories_do_not_count_for_the_headline(tmp_path):
    small = ((18, 2, 0), (4, 16, 0), (1, 1, 2))
    cells = [make_cell(tmp_path, f"{CLIP}{seed}", small) for seed in (0, 1)]
    headline = headline_categories(cells)
    assert headline == {"A", "B"}
    assert thin_categories(make_cells(*cells), headline) == {"C": 4}
    given = make_cell(tmp_path, "mechanism/mean-pool-all@clip/classify/given/0", small)
    assert thin_categories(make_cells(given), headline) == {"C": 4}
    (row,) = score_rows(make_cells(*cells), headline)
    # by hand, without the four products of C: F1 of A 2·18/(20+22), of B 2·16/(20+18)
    assert row.headline_macro_f1.value == pytest.approx((36 / 42 + 32 / 38) / 2)
    assert row.macro_f1.value == pytest.approx((36 / 43 + 32 / 39 + 4 / 6) / 3)
    assert len(headline_predictions({"clip": cells}, headline)["clip"][0]) == 40


def test_where_all_categories_are_thin_all_count(clip):
    assert headline_categories(clip) == BOTH
    assert thin_categories(make_cells(*clip), BOTH) == {}


@pytest.mark.slow
def test_mechanisms_are_compared_on_their_own_tower_and_controls_with_what_they_are_controls_of(tmp_path):
    names = ("mean-pool-all", "attention-pool-all", "attention-pool", "cross-attention-all-random-names")
    cells = [
        make_cell(tmp_path, f"mechanism/{name}@{tower}/classify/holdout/0", GOOD if "all" in name else FAIR)
        for tower in ("clip", "git")
        for name in names
    ]
    rows = mechanism_pair_rows(make_cells(*cells).mechanisms(), BOTH)
    assert [(row.group, row.a, row.b) for row in rows] == [
        ("mechanisms", "mean-pool", "attention-pool"),
        ("controls", "attention-pool", "attention-pool, patches only"),
        ("mechanisms", "mean-pool (git tower)", "attention-pool (git tower)"),
        ("controls", "attention-pool (git tower)", "attention-pool, patches only (git tower)"),
    ]
    assert rows[1].test.difference.value == pytest.approx(1 - FAIR_MACRO_F1)


def test_the_learning_rates_that_validation_chose_are_those_of_each_seed(tmp_path):
    key, tag = "mechanism/mean-pool-all@clip/classify/holdout/", "tags.chosen_learning_rate"
    cells = [make_cell(tmp_path, f"{key}{seed}", FAIR, {tag: rate}) for seed, rate in enumerate(("0.001", "0.003"))]
    assert score_rows(make_cells(*cells), BOTH)[0].learning_rates == (0.001, 0.003)


def test_held_out_products_are_scored_where_every_seed_has_their_predictions(clip, tmp_path):
    assert held_out_rows({"clip full": clip}, BOTH) == ()
    git, predictions = "git/full/classify/holdout/", make_predictions(FAIR)
    few = ((4, 1), (2, 3))
    cells = [make_cell(tmp_path, f"{git}{seed}", few, held_out=predictions) for seed in (0, 1)]
    (row,) = held_out_rows({"git full": cells, "clip full": clip}, BOTH)
    assert (row.label, row.products, row.support) == ("git full", 20, {"A": 10, "B": 10})
    assert (row.accuracy.value, row.macro_f1.value) == pytest.approx((0.7, FAIR_MACRO_F1))
    assert row.natural_accuracy.value == pytest.approx(0.7)  # both categories have half of the catalogue
    all_tested = make_cell(tmp_path, f"{git}2", FAIR, held_out=predictions)
    assert held_out_rows({"git full": [all_tested]}, BOTH) == ()


def test_the_leak_is_a_mean_over_what_the_seeds_know(clip, tmp_path):
    def leak(support, copied, accuracy_copied):
        return (CategoryLeak("all", support, copied, accuracy_copied, 0.5, 0.25),)

    original = [
        make_cell(tmp_path, "clip/full/classify/original/0", GOOD, leak=leak(3, 0.5, nan)),
        make_cell(tmp_path, "clip/full/classify/original/1", GOOD, leak=leak(5, 0.7, 0.8)),
    ]
    (row,) = leak_rows({"clip full": clip}, {"clip full": original, "git full": original})
    (total,) = row.leaks
    assert (total.category, total.support) == ("all", 8)
    assert (total.copied, total.accuracy_copied) == pytest.approx((0.6, 0.8))
    assert [score.category for score in row.scores] == ["A", "B", "all"]
    assert row.scores[-1].difference.value == pytest.approx(1 - (FAIR_MACRO_F1 + 1) / 2)
    assert row.run_ids == tuple(cell.run_id for cell in original)


def test_robustness_is_a_mean_over_seeds_and_severities(tmp_path):
    def measured(*drops):
        scores = tuple(CorruptedScore("blur", level, 1.0, 0.5, 0.5, drop) for level, drop in enumerate(drops, 1))
        mean = sum(drops) / 3
        return Robustness(20, 0, 1.0, 1.0, scores, {"blur": mean}, mean)

    cells = [
        make_cell(tmp_path, f"{CLIP}0", robustness=measured(0.0, 0.1, 0.2)),
        make_cell(tmp_path, f"{CLIP}1", robustness=measured(0.2, 0.3, 0.4)),
    ]
    (row,) = robustness_rows({"clip full": cells, "HOG + colour": [make_cell(tmp_path, f"{BASELINE}0")]})
    assert row.mean_drop.value == row.drops["blur"].value == pytest.approx(0.2)
    assert row.mean_drop.high == pytest.approx(1 - 0.8 * exp(-T_ONE_DEGREE * 0.1 / 0.8)) and row.mean_drop.high < 1
    assert row.by_severity == {"blur": pytest.approx((0.1, 0.2, 0.3))}


def test_calibration_is_of_both_splits_and_of_unknown_products_where_there_are_any(clip, tmp_path):
    (row,) = calibration_rows({"clip full": clip})
    # The second seed's certainty is constant, and its predictions all correct: no errors, at whatever coverage
    assert row.aurc.value == pytest.approx(0.3 / 2)
    assert (row.unknown, row.auroc_unknown, row.auroc_products) == (0, None, None)
    assert row.coverage[-1] == 1.0 and row.risk[-1] == pytest.approx(0.3)
    (row,) = calibration_rows({"x": [make_cell(tmp_path, f"{BASELINE}0", GOOD, unknown=make_predictions(GOOD))]})
    assert row.unknown == 20 and row.auroc_unknown.value == pytest.approx(0.5)  # equally confident about both


@pytest.mark.slow
def test_gaps_are_of_the_catalogues_own_attributes(clip):
    ids = clip[0].evaluation.predictions.product_ids
    gender = np.where(np.arange(20) < 10, "Men", "Women")  # category A, then category B
    products = pd.DataFrame({"product_id": ids, "gender": gender})
    data = SimpleNamespace(catalogue=SimpleNamespace(products=products))
    (row,) = gap_rows({"clip full": clip[:1]}, data, ("gender", "season"))
    (gap,) = row.gaps
    accuracies = {value.value: value.accuracy.value for value in gap.values}
    assert gap.attribute == "gender" and accuracies == pytest.approx({"Men": 0.8, "Women": 0.6})


def test_decoding_scores_are_means_over_seeds(tmp_path):
    key = "git/fusion/generate/holdout/"
    cells = [
        make_cell(tmp_path, f"{key}0", decoding={"free text": DecodingScore(9, 0.5, 0.4, 1.0, 0.0, None)}),
        make_cell(tmp_path, f"{key}1", decoding={"free text": DecodingScore(7, 0.7, 0.6, 0.5, 0.5, 0.8)}),
    ]
    (row,) = decoding_rows(make_cells(*cells, make_cell(tmp_path, f"{CLIP}0")))
    assert row.label == "git fusion (generate)"
    score = row.scores["free text"]
    assert (score.n, score.accuracy, score.macro_f1) == (16, pytest.approx(0.6), pytest.approx(0.5))
    assert (score.unknown_rate, score.coverage, score.covered_accuracy) == pytest.approx((0.75, 0.25, 0.8))


@pytest.mark.slow
def test_interim_results_leave_out_what_takes_long(clip, tmp_path, monkeypatch):
    baseline = [make_cell(tmp_path, f"{BASELINE}{seed}") for seed in (0, 1)]
    cells = make_cells(*clip, *baseline)
    monkeypatch.setattr(collecting, "read_cell_results", lambda parent, plan, folder: cells)
    products = pd.DataFrame({"product_id": clip[0].evaluation.predictions.product_ids})
    catalogue = SimpleNamespace(name="shop", products=products)
    data = SimpleNamespace(catalogue=catalogue, split=SimpleNamespace(categories=("A", "B")))
    config = StudyConfig.build({"preset": "demo", "attributes": "gender"})

    def collected(**settings):
        return collect(
            "parent", "x", cells.plan, config, data, tmp_path, {"git/full/classify/holdout/0": "no"}, **settings
        )

    interim, final = collected(interim=True), collected()
    assert (interim.study, interim.run_id, interim.catalogue) == ("x", "parent", "shop")
    assert (interim.cells_finished, interim.cells_planned) == (4, 4)
    assert interim.failed == {"git/full/classify/holdout/0": "no"}
    assert len(interim.scores) == 2 and interim.pairs == interim.gaps == ()
    assert interim.label_audit is None and interim.faithfulness == interim.layers == {}
    assert len(final.pairs) == 1 and len(final.gaps) == 2 and final.scores == interim.scores
    assert isnan(final.pairs[0].test.p_mcnemar_holm) is False

"""Predictions at several label levels: stored, tabulated and scored."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from tests.evaluation.made_predictions import sure
from tests.evaluation.test_hierarchy import TREE
from vlm_core.evaluation.evaluation import Evaluation, evaluate
from vlm_core.evaluation.level_scores import LevelPredictions, level_columns, level_records, metric_names, score_levels
from vlm_core.evaluation.predictions import Predictions

TRUE = np.array([[0, 1], [0, 2], [1, 0], [1, 0], [-1, 1]])
OWN = np.array([[1, 1], [0, 2], [1, 0], [0, 1], [0, 1]])  # the first is inconsistent
CHOSEN = np.array([[0, 1], [0, 2], [1, 0], [0, 1], [0, 1]])
LEVELS = LevelPredictions(TREE, OWN, CHOSEN, np.full((5, 2), 0.75, np.float32), TRUE)


def _predictions(levels=LEVELS):
    ids = np.array([f"p{row}" for row in range(5)])
    return Predictions(ids, TRUE[:, 1], sure(CHOSEN[:, 1], 3), TREE.categories[1], levels=levels)


def test_each_level_is_scored_with_and_without_the_rule():
    score = score_levels(LEVELS, resamples=100, seed=0)
    department, kind = score.levels
    assert (department.products, department.categories, kind.products, kind.categories) == (4, 2, 5, 3)
    assert department.accuracy.value == pytest.approx(3 / 4) and department.accuracy_without_rule == pytest.approx(
        2 / 4
    )
    # Clothes: 2 of 2 found, 3 predicted: 4/5; Shoes: 1 of 2 found, 1 predicted: 2/3
    assert department.macro_f1.value == pytest.approx((4 / 5 + 2 / 3) / 2)
    assert kind.accuracy.value == pytest.approx(4 / 5)
    assert score.inconsistent == 0 and score.inconsistent_without_rule == pytest.approx(1 / 5)
    assert score.products == 4
    # of the four with all categories known, three are right and one shares nothing: 6 of 8
    assert score.hierarchical_f1 == pytest.approx(6 / 8)
    # without the rule the first has three categories, of which two are right: 2 * 6 / (8 + 9)
    assert score.hierarchical_f1_without_rule == pytest.approx(2 * 6 / 17)
    assert score.summary(2) == (
        "Hierarchical F1 0.75 (0.71 without the rule). Inconsistent predictions: 0.00% (20.00% without the rule)."
    )


def test_metrics_name_the_level_and_survive_files(tmp_path):
    evaluation = evaluate(_predictions(), pd.DataFrame(index=range(5)), np.full(3, 1 / 3), resamples=100, seed=0)
    metrics = evaluation.metrics("test_")
    assert metrics["department_test_accuracy"] == pytest.approx(3 / 4)
    assert metrics["type_test_accuracy"] == metrics["test_accuracy"] == pytest.approx(4 / 5)
    assert metrics["test_inconsistent_without_rule"] == pytest.approx(1 / 5)
    evaluation.write(tmp_path)
    read = Evaluation.read(tmp_path)
    assert read.levels == evaluation.levels
    for name in ("own", "chosen", "confidence", "labels"):
        np.testing.assert_array_equal(getattr(read.predictions.levels, name), getattr(LEVELS, name))
    assert read.predictions.levels.hierarchy == TREE


def test_the_table_has_columns_of_the_levels_above_the_last():
    table = _predictions().to_frame()
    assert table["true_department"].tolist() == ["Clothes", "Clothes", "Shoes", "Shoes", ""]
    assert table["category_department"].tolist() == ["Clothes", "Clothes", "Shoes", "Clothes", "Clothes"]
    assert "category_type" not in table and table["predicted"].tolist()[0] == "Shirt"
    assert level_columns(TREE.labels) == ("category_department", "confidence_department")
    assert level_records(LEVELS)[2] == {"category_department": "Shoes", "confidence_department": 0.75}


def test_columns_with_any_name_have_metrics():
    assert metric_names(["sub Category", "sub/Category", "Größe"]) == ("sub_Category", "sub_Category_2", "Gr__e")


def test_without_true_categories_there_is_no_score():
    assert score_levels(dataclasses.replace(LEVELS, labels=None), resamples=100, seed=0) is None
    unknown = dataclasses.replace(LEVELS, labels=np.full((5, 2), -1))
    assert score_levels(unknown, resamples=100, seed=0) is None


def test_levels_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="one column for each level"):
        LevelPredictions(TREE, OWN[:, :1], CHOSEN, LEVELS.confidence)
    joined = LevelPredictions.joined([LEVELS, LEVELS], None)
    assert joined.chosen.shape == (10, 2) and LevelPredictions.joined([], None) is None
    with pytest.raises(ValueError, match="the last of the levels"):
        _predictions(joined)

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, precision_recall_fscore_support

from tests.evaluation.made_predictions import CATEGORIES, GIT, rows_of
from vlm_core.evaluation.summary import macro_f1, summarise


def test_the_published_confusion_matrix_gives_the_published_figures() -> None:
    summary = summarise(*rows_of(GIT), CATEGORIES, loss=0.25)
    assert round(summary.accuracy, 4) == 0.9150
    assert round(summary.macro_f1, 4) == 0.9102
    assert [round(f1, 4) for f1 in summary.per_category_f1.values()] == [0.7716, 0.9266, 0.9874, 0.8906, 0.9750]
    assert tuple(summary.per_category_f1) == CATEGORIES
    assert summary.recall["Accessories"] == pytest.approx(76 / 120)
    assert summary.precision["Accessories"] == pytest.approx(76 / 77)
    assert (summary.confusion == GIT).all()


def test_its_dictionaries_have_exactly_the_keys_of_the_study_log() -> None:
    summary = summarise(*rows_of(GIT), CATEGORIES, loss=0.25)
    training, validation = summary.to_dict(), summary.to_dict(with_confusion=True)
    assert list(training) == ["overall_loss", "overall_accuracy", "macro_f1", "per_class_f1"]
    assert list(validation) == [*training, "confusion_matrix"]
    assert training["overall_loss"] == 0.25
    assert validation["confusion_matrix"] == GIT.tolist()
    fairness = summary.fairness_metrics()
    assert tuple(fairness) == CATEGORIES
    assert fairness["Free Items"] == {
        "precision": pytest.approx(118 / 145),
        "recall": pytest.approx(118 / 120),
        "f1": training["per_class_f1"]["Free Items"],
    }
    assert json.loads(json.dumps([validation, fairness])) == [validation, fairness]


def test_macro_f1_is_over_the_categories_with_support() -> None:
    # "Free Items" has no product, and takes one that is an accessory
    labels, predicted = np.array([0, 0, 1, 1, 2, 4]), np.array([0, 3, 1, 1, 2, 4])
    summary = summarise(labels, predicted, CATEGORIES, loss=1.0)
    assert summary.macro_f1 == pytest.approx((2 / 3 + 1 + 1 + 1) / 4)
    assert summary.per_category_f1["Free Items"] == summary.recall["Free Items"] == 0
    assert summary.confusion.shape == (5, 5)


def test_a_category_that_is_never_the_answer_has_an_f1_of_zero_and_no_warning(recwarn: pytest.WarningsRecorder) -> None:
    summary = summarise(np.array([0, 1]), np.array([0, 0]), ("a", "b"), loss=1.0)
    assert summary.per_category_f1 == {"a": pytest.approx(2 / 3), "b": 0.0}
    assert not recwarn.list


@given(st.data(), st.integers(1, 6), st.integers(1, 60))
def test_all_is_what_scikit_learn_computes_to_the_last_digit(data: st.DataObject, count: int, rows: int) -> None:
    labels = data.draw(arrays(np.int64, rows, elements=st.integers(0, count - 1)))
    predicted = data.draw(arrays(np.int64, rows, elements=st.integers(-1, count)))
    names = tuple(f"category {index}" for index in range(count + 1))
    indices = np.arange(count + 1)
    summary = summarise(labels, predicted, names, loss=0.0)
    theirs = precision_recall_fscore_support(labels, predicted, labels=indices, zero_division=0)[:3]
    for ours, wanted in zip((summary.precision, summary.recall, summary.per_category_f1), theirs, strict=True):
        assert list(ours.values()) == wanted.tolist()
    assert summary.accuracy == accuracy_score(labels, predicted)
    assert (summary.confusion == confusion_matrix(labels, predicted, labels=indices)).all()
    macro = f1_score(labels, predicted, labels=np.unique(labels), average="macro", zero_division=0)
    assert summary.macro_f1 == macro_f1(labels, predicted) == macro


@pytest.mark.parametrize("labels", [np.empty(0, np.int64), np.array([0, -1]), np.array([0, 2])])
def test_rows_without_a_true_category_are_refused(labels: NDArray[np.int64]) -> None:
    with pytest.raises(ValueError, match="true one"):
        summarise(labels, np.zeros(len(labels), np.int64), ("a", "b"), loss=1.0)

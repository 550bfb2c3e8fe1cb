import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import accuracy_score, f1_score

from tests.evaluation.made_predictions import CATEGORIES, GIT, predictions_of, random_predictions, rows_of, sure
from vlm_core.errors import UserError
from vlm_core.evaluation.evaluation import Evaluation, evaluate
from vlm_core.evaluation.predictions import Predictions

NATURAL = np.array([0.25, 0.50, 0.20, 0.01, 0.04])


def _attributes(n: int) -> pd.DataFrame:
    return pd.DataFrame({"gender": np.resize(["Men", "Women", ""], n), "season": np.resize(["Fall", "Summer"], n)})


def _evaluate(predictions: Predictions, prior: Any = None, **options: Any) -> Evaluation:
    count = len(predictions.categories)
    shares = np.full(count, 1 / count) if prior is None else np.asarray(prior)
    return evaluate(predictions, _attributes(len(predictions)), shares, **{"resamples": 200, "seed": 0, **options})


def test_the_published_figures_stand_in_their_intervals() -> None:
    evaluation = _evaluate(predictions_of(GIT), NATURAL, resamples=1000)
    assert (evaluation.n, evaluation.unlabelled) == (600, 0)
    assert round(evaluation.accuracy.value, 4) == 0.9150
    assert round(evaluation.macro_f1.value, 4) == 0.9102
    assert [round(score.f1.value, 4) for score in evaluation.per_category] == [0.7716, 0.9266, 0.9874, 0.8906, 0.9750]
    assert {score.support for score in evaluation.per_category} == {120}
    assert (evaluation.confusion == GIT).all()
    assert evaluation.worst_recall.category == "Accessories"
    assert evaluation.worst_recall.recall == pytest.approx(76 / 120)
    for figure in (
        evaluation.accuracy,
        evaluation.macro_f1,
        evaluation.natural.accuracy,
        evaluation.natural.macro_f1,
        *(score.f1 for score in evaluation.per_category),
    ):
        assert figure.low < figure.value < figure.high


def test_natural_figures_are_those_of_rows_repeated_to_the_catalogues_shares() -> None:
    evaluation = _evaluate(predictions_of(GIT), NATURAL)
    labels, predicted = rows_of(GIT)
    repeats = (NATURAL * 100).astype(int)[labels]  # every category has 120 rows
    labels, predicted = np.repeat(labels, repeats), np.repeat(predicted, repeats)
    assert evaluation.natural.accuracy.value == pytest.approx(accuracy_score(labels, predicted))
    assert evaluation.natural.macro_f1.value == pytest.approx(f1_score(labels, predicted, average="macro"))
    assert evaluation.natural.shares == pytest.approx(NATURAL)
    assert evaluation.natural.covered == 1


def test_an_absent_category_has_no_part_in_any_mean() -> None:
    confusion = GIT.copy()
    confusion[3] = 0  # no Free Items; 27 other products are taken for them
    evaluation = _evaluate(predictions_of(confusion), [0.2, 0.3, 0.1, 0.3, 0.1])
    labels, predicted = rows_of(confusion)
    reference = f1_score(labels, predicted, labels=[0, 1, 2, 4], average="macro")
    assert evaluation.macro_f1.value == pytest.approx(reference)
    assert evaluation.macro_f1.low < reference < evaluation.macro_f1.high
    free = evaluation.per_category[3]
    assert (free.support, free.recall, free.f1.value, free.f1.high) == (0, 0, 0, 0)
    assert evaluation.worst_recall.category == "Accessories"
    # the other shares are scaled to one
    assert evaluation.natural.covered == pytest.approx(0.7)
    accuracy, macro_f1 = evaluation.natural.accuracy, evaluation.natural.macro_f1
    rows = (confusion.sum(axis=1) > 0).nonzero()[0]
    assert accuracy.value == pytest.approx(confusion.diagonal()[rows] / confusion.sum(1)[rows] @ [2, 3, 1, 1] / 7)
    assert accuracy.low < accuracy.value < accuracy.high
    assert macro_f1.low < macro_f1.value < macro_f1.high
    assert "test_f1_free_items" not in evaluation.metrics("test_")


def test_products_of_unknown_category_are_kept_but_not_judged() -> None:
    predictions = random_predictions(90, 3, seed=0, texts=True)
    labels = predictions.labels.copy()
    labels[::3] = -1
    some = _evaluate(dataclasses.replace(predictions, labels=labels))
    known = labels >= 0
    assert predictions.texts
    alone = Predictions(
        predictions.product_ids[known],
        labels[known],
        predictions.log_probabilities[known],
        predictions.categories,
        tuple(text for text, keep in zip(predictions.texts, known, strict=True) if keep),
        predictions.text_categories[known],  # type: ignore[index]
    )
    attributes = _attributes(90)[known].reset_index(drop=True)
    only = evaluate(alone, attributes, np.full(3, 1 / 3), resamples=200, seed=0)
    assert (some.n, some.unlabelled, len(some.predictions)) == (60, 30, 90)
    assert {**some.to_dict(), "unlabelled": 0} == only.to_dict()


def test_a_text_that_maps_to_no_category_is_wrong() -> None:
    labels = np.array([0, 0, 0, 1, 1])
    mapped = np.array([0, 0, -1, 1, 0])
    predictions = Predictions(labels.astype(str), labels, sure(labels, 2), ("a", "b"), ("text",) * 5, mapped)
    rule = _evaluate(predictions).text_rule
    assert rule is not None
    assert (rule.unknown_rate, rule.coverage, rule.accuracy) == pytest.approx((0.2, 0.8, 0.6))
    assert rule.macro_f1 == pytest.approx((2 * 2 / (3 + 3) + 2 * 1 / (2 + 1)) / 2)
    assert _evaluate(predictions_of(GIT)).text_rule is None


def test_one_category_for_all_is_the_floor() -> None:
    predictions = random_predictions(200, 4, seed=0, texts=False)
    labels = np.where(predictions.labels == 3, -1, predictions.labels)  # one category absent
    found = _evaluate(dataclasses.replace(predictions, labels=labels))
    known = labels[labels >= 0]
    constant = np.full_like(known, np.bincount(known).argmax())
    assert found.majority_macro_f1 == pytest.approx(f1_score(known, constant, average="macro", labels=np.unique(known)))
    assert found.metrics("test_")["test_majority_macro_f1"] == found.majority_macro_f1


def test_metrics_are_flat_and_safely_named() -> None:
    metrics = _evaluate(random_predictions(200, 4, seed=0, texts=True)).metrics("test_")
    assert all(re.fullmatch(r"test_[a-z0-9_]+", name) for name in metrics)
    assert all(type(value) is float and np.isfinite(value) for value in metrics.values())
    figures = ("accuracy", "macro_f1", "natural_accuracy", "natural_macro_f1")
    assert {f"test_{name}{end}" for name in figures for end in ("", "_low", "_high")} <= set(metrics)
    scores = {f"test_{name}_category_{i}" for name in ("precision", "recall", "f1") for i in range(4)}
    assert scores <= set(metrics)
    assert {
        "test_worst_recall",
        "test_nll",
        "test_brier",
        "test_ece",
        "test_products",
        "test_text_unknown_rate",
    } <= set(metrics)
    assert set(_evaluate(predictions_of(GIT)).metrics("other_")) >= {"other_f1_free_items", "other_f1_personal_care"}


@pytest.mark.parametrize("texts", [False, True])
def test_an_evaluation_comes_back_exactly_as_it_was_written(texts: bool, tmp_path: Path) -> None:
    predictions = random_predictions(120, 6, seed=4, texts=texts)
    labels = np.where(predictions.labels == 5, -1, predictions.labels)  # one category absent, some products unlabelled
    written = _evaluate(dataclasses.replace(predictions, labels=labels), [0.1, 0.2, 0.3, 0.2, 0.1, 0.1])
    written.write(tmp_path / "evaluation")
    read = Evaluation.read(tmp_path / "evaluation")
    assert sorted(path.name for path in (tmp_path / "evaluation").iterdir()) == ["evaluation.json", "predictions.npz"]
    for field in dataclasses.fields(Evaluation):
        ours, theirs = getattr(read, field.name), getattr(written, field.name)
        if field.name == "confusion":
            np.testing.assert_array_equal(ours, theirs, strict=True)
        elif field.name != "predictions":
            assert ours == theirs, field.name
            assert type(ours) is type(theirs), field.name
    np.testing.assert_array_equal(read.predictions.log_probabilities, predictions.log_probabilities, strict=True)
    assert read.predictions.texts == predictions.texts
    content = json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())
    assert content == json.loads(json.dumps(written.to_dict()))
    assert content["schema"] == 2


def test_a_folder_that_holds_no_evaluation_gives_one_clear_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="evaluate the run again"):
        Evaluation.read(tmp_path)
    for content in ("half a fi", "[]", '{"schema": 2}'):
        (tmp_path / "evaluation.json").write_text(content)
        with pytest.raises(UserError, match="evaluate the run again"):
            Evaluation.read(tmp_path)
    _evaluate(predictions_of(GIT)).write(tmp_path)
    content = json.loads((tmp_path / "evaluation.json").read_text())
    del content["calibration"]["ece"]
    (tmp_path / "evaluation.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="is damaged: evaluate the run again"):
        Evaluation.read(tmp_path)


def test_what_does_not_fit_is_refused() -> None:
    predictions = predictions_of(GIT)
    with pytest.raises(ValueError, match="attributes do not fit"):
        evaluate(predictions, _attributes(3), NATURAL, resamples=100, seed=0)
    for prior in ([1.0], [0.5, 0.5, 0.5, -0.5, 0], [0.1] * 5):
        with pytest.raises(ValueError, match="sum to one"):
            _evaluate(predictions, prior)
    with pytest.raises(ValueError, match="no share"):
        _evaluate(predictions, [0.5, 0.3, 0.2, 0, 0])
    with pytest.raises(UserError, match="label"):
        _evaluate(dataclasses.replace(predictions, labels=np.full(600, -1)))


def test_no_attributes_give_no_subgroups() -> None:
    predictions = predictions_of(GIT)
    evaluation = evaluate(predictions, pd.DataFrame(index=range(600)), NATURAL, resamples=100, seed=0)
    assert evaluation.subgroups == ()
    assert evaluation.categories == CATEGORIES


def test_subgroups_divide_the_products() -> None:
    evaluation = _evaluate(predictions_of(GIT))
    for attribute in ("gender", "season"):
        parts = [group for group in evaluation.subgroups if group.attribute == attribute]
        assert sum(group.n for group in parts) == 600
        right = sum(group.n * group.accuracy.value for group in parts)
        assert right / 600 == pytest.approx(evaluation.accuracy.value)


def test_many_categories_and_rows_are_evaluated() -> None:
    evaluation = _evaluate(random_predictions(5000, 150, seed=0), resamples=100)
    assert len(evaluation.per_category) == 150
    assert evaluation.confusion.sum() == 5000


@pytest.mark.slow
def test_importing_it_is_light() -> None:
    """The commands show `--help` fast, and a served baseline needs no torch."""
    script = """
import sys
import vlm_core.evaluation.evaluation, vlm_core.evaluation.category_matching, vlm_core.evaluation.plots
import vlm_core.models.baseline
print(sorted({"torch", "sklearn", "skimage", "scipy", "matplotlib", "torchmetrics"} & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

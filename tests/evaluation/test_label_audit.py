"""Planted label errors are found, in made-up features and in those of drawn products."""

import numpy as np
import pytest

from tests.evaluation.made_predictions import random_predictions
from vlm_core.catalogue.catalogue import prepare_catalogue
from vlm_core.catalogue.reading import Columns
from vlm_core.errors import UserError
from vlm_core.evaluation.label_audit import LabelAudit, audit_labels, macro_f1_without
from vlm_core.evaluation.predictions import Predictions
from vlm_core.evaluation.summary import macro_f1
from vlm_core.models.baseline import FeatureExtractor

COLUMNS = Columns("id", "", "productDisplayName", "masterCategory", ())
NAMES = ("a", "b", "c")


def _separable(n: int, seed: int):
    generator = np.random.default_rng(seed)
    labels = np.arange(n) % 3
    return generator.normal(size=(n, 8)) + 5 * np.eye(3, 8)[labels], labels, generator


def _planted(labels, count, generator):
    """The labels with 5 % of them wrong, and where."""
    wrong = generator.choice(len(labels), round(0.05 * len(labels)), replace=False)
    spoilt = labels.copy()
    spoilt[wrong] = (labels[wrong] + generator.integers(1, count, len(wrong))) % count
    return spoilt, set(wrong.tolist())


def _precision_and_recall(audit: LabelAudit, wrong: set[int]) -> tuple[float, float]:
    hits = len(wrong & set(audit.rows))
    return hits / len(audit.rows), hits / len(wrong)


@pytest.mark.slow
def test_planted_errors_in_separable_features_are_found_with_their_true_category():
    features, labels, generator = _separable(600, 0)
    spoilt, wrong = _planted(labels, 3, generator)
    audit = audit_labels(features, spoilt, np.arange(600), NAMES, seed=0)
    precision, recall = _precision_and_recall(audit, wrong)
    assert precision > 0.9 and recall > 0.9  # chance: 0.05
    assert audit.audited == 600 and audit.macro_f1 > 0.85
    assert list(audit.scores) == sorted(audit.scores)
    suggested = {row: name for row, name in zip(audit.rows, audit.suggested, strict=True) if row in wrong}
    assert np.mean([NAMES[labels[row]] == name for row, name in suggested.items()]) > 0.95
    assert all(NAMES[spoilt[row]] == name for row, name in zip(audit.rows, audit.given, strict=True))


@pytest.mark.slow
def test_planted_errors_in_drawn_products_are_found(shop, tmp_path):
    catalogue = prepare_catalogue(str(shop), COLUMNS, tmp_path)
    names, counts = np.unique(catalogue.products["masterCategory"], return_counts=True)
    kept = np.isin(catalogue.products["masterCategory"], names[counts >= 20])
    names, labels = np.unique(catalogue.products["masterCategory"].to_numpy(str)[kept], return_inverse=True)
    features = FeatureExtractor().extract(catalogue.pictures.take(np.flatnonzero(kept)))
    spoilt, wrong = _planted(labels, len(names), np.random.default_rng(1))
    audit = audit_labels(features, spoilt, np.arange(len(labels)), names.tolist(), seed=0)
    precision, recall = _precision_and_recall(audit, wrong)
    assert precision > 0.25 and recall > 0.6  # chance: 0.05


@pytest.mark.slow
def test_a_wrong_label_is_not_confirmed_by_its_own_copies():
    features, labels, generator = _separable(300, 2)
    copies = np.repeat(features[:1], 12, axis=0) + generator.normal(0, 1e-3, (12, 8))
    copies[:, 7] += 12  # by which nothing else but the copies could be known
    shown = np.concatenate([features, copies])
    wrong = np.concatenate([labels, np.full(12, (labels[0] + 1) % 3)])
    groups = np.concatenate([np.arange(300), np.full(12, 300)])
    assert set(range(300, 312)) <= set(audit_labels(shown, wrong, groups, NAMES, seed=0).rows)
    apart = audit_labels(shown, wrong, np.arange(312), NAMES, seed=0)
    assert not set(range(300, 312)) & set(apart.rows)


def test_unlabelled_rows_and_absent_categories_are_passed_over():
    features, labels, generator = _separable(300, 3)
    spoilt, _ = _planted(labels, 3, generator)
    spoilt = np.where(np.arange(300) < 30, -1, 2 * spoilt)
    audit = audit_labels(features, spoilt, np.arange(300), ("a", "x", "b", "y", "c"), seed=0)
    assert audit.audited == 270 and min(audit.rows) >= 30
    assert set(audit.given) | set(audit.suggested) <= {"a", "b", "c"}
    frame = audit.to_frame([f"p{row}" for row in range(300)])
    assert list(frame) == ["product_id", "given", "suggested", "score"]
    assert frame["product_id"].tolist() == [f"p{row}" for row in audit.rows]


def test_nothing_suspicious_is_an_empty_table():
    features, labels, _ = _separable(90, 4)
    audit = audit_labels(features * 10, labels, np.arange(90), NAMES, seed=0)
    assert audit.rows == () and len(audit.to_frame([""] * 90)) == 0


def test_categories_too_small_to_audit_are_refused():
    features, labels, _ = _separable(60, 5)
    with pytest.raises(UserError, match="The category c has 4 different pictures"):
        audit_labels(features, labels, np.where(labels == 2, np.arange(60) % 4, np.arange(60) + 4), NAMES, seed=0)
    with pytest.raises(UserError, match="two categories"):
        audit_labels(features, np.zeros(60, int), np.arange(60), NAMES, seed=0)


def test_macro_f1_without_the_suspects():
    predictions = random_predictions(300, 4, seed=0)
    suspects = predictions.product_ids[:40]
    found = macro_f1_without(predictions, [*suspects, "unheard of"])
    assert found.left_out == 40
    assert found.before.value == pytest.approx(macro_f1(predictions.labels, predictions.predicted))
    assert found.after.value == pytest.approx(macro_f1(predictions.labels[40:], predictions.predicted[40:]))
    for figure in (found.before, found.after):
        assert figure.low < figure.value < figure.high
    with pytest.raises(UserError, match="none is left"):
        macro_f1_without(predictions, predictions.product_ids.tolist())


def test_without_a_whole_category_the_others_are_counted():
    labels = np.array([0] * 10 + [1] * 10 + [-1])
    predictions = Predictions(np.arange(21).astype(str), labels, np.log(np.full((21, 2), 0.5)), ("a", "b"))
    found = macro_f1_without(predictions, predictions.product_ids[10:20].tolist())
    assert (found.left_out, found.after.value) == (10, 1.0)

"""The leak by hand, on planted copies of real pictures, and between protocols."""

import io
import math

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.stats import ttest_ind
from sklearn.metrics import f1_score

from tests.evaluation.made_predictions import random_predictions, sure
from vlm_core.catalogue.catalogue import prepare_catalogue
from vlm_core.catalogue.duplicates import near_duplicate_groups
from vlm_core.catalogue.reading import Columns
from vlm_core.catalogue.splitting import measure_leakage
from vlm_core.evaluation.leak import leak_comparison, measure_leak
from vlm_core.evaluation.predictions import Predictions
from vlm_core.pixels.picture_store import PictureStore

COLUMNS = Columns("id", "", "productDisplayName", "masterCategory", ())
NAMES = ("a", "b")


def test_shares_by_hand():
    labels = np.array([0, 0, 0, 0, 1, 1, -1])
    answers = np.array([0, 0, 0, 1, 1, 0, 0])
    copied = np.array([True, True, False, False, False, False, True])
    a, b, both = measure_leak(Predictions(np.arange(7).astype(str), labels, sure(answers, 2), NAMES), copied)
    assert (a.category, a.support, a.copied) == ("a", 4, 0.5)
    assert (a.accuracy_copied, a.accuracy_others, a.correct_with_copy) == pytest.approx((1, 0.5, 2 / 3))
    assert b.copied == 0 and math.isnan(b.accuracy_copied) and b.correct_with_copy == 0
    assert (both.category, both.support, both.copied) == ("all", 6, pytest.approx(1 / 3))
    assert both.correct_with_copy == pytest.approx(2 / 4)
    with pytest.raises(ValueError, match="fit"):
        measure_leak(random_predictions(5, 2, 0), copied)


@pytest.mark.slow
def test_a_planted_leak_of_a_tenth_is_measured(shop, tmp_path):
    catalogue = prepare_catalogue(str(shop), COLUMNS, tmp_path)
    kept = near_duplicate_groups(catalogue.products, catalogue.pictures)
    originals = np.unique(kept, return_index=True)[1][:200]  # no two of them copies
    test, train = originals[:80], originals[80:]
    planted = test[::10]
    pixels = np.concatenate(
        [catalogue.pictures.take(rows) for rows in (test, train)]
        + [np.stack([_encoded_again(picture) for picture in catalogue.pictures.take(planted)])]
    )
    np.save(tmp_path / "pictures.npy", pixels)
    digests = pd.Series([f"{number:032x}" for number in range(208)])
    groups = near_duplicate_groups(pd.DataFrame({"picture_digest": digests}), PictureStore(tmp_path / "pictures.npy"))
    test_rows, train_rows = np.arange(80), np.arange(80, 208)
    labels = np.arange(208) % 2
    leakage = measure_leakage(digests, groups, labels, NAMES, train_rows, test_rows, test_rows)
    assert (leakage.near, leakage.exact) == (pytest.approx(0.1), 0)
    # a model that knows what it has seen and nothing else
    copied = np.isin(groups[test_rows], groups[train_rows])
    answers = np.where(copied, labels[:80], 0)
    found = measure_leak(Predictions(test_rows.astype(str), labels[:80], sure(answers, 2), NAMES), copied)
    assert found[-1].copied == pytest.approx(0.1)
    assert (found[0].correct_with_copy, found[-1].accuracy_copied) == (pytest.approx(8 / 40), 1)


def _encoded_again(picture):
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=90)
    return np.asarray(Image.open(io.BytesIO(file.getvalue())).convert("RGB"))


def test_protocols_side_by_side():
    honest, leaking = (
        [random_predictions(200, 3, seed) for seed in range(4)],
        [random_predictions(260, 3, seed) for seed in range(10, 13)],
    )
    found = leak_comparison(honest, leaking)
    assert [each.category for each in found] == ["category 0", "category 1", "category 2", "all"]
    scores = [[f1_score(each.labels, each.predicted, average=None)[1] for each in runs] for runs in (honest, leaking)]
    assert found[1].holdout.value == pytest.approx(np.mean(scores[0]))
    assert found[1].original.value == pytest.approx(np.mean(scores[1]))
    interval = ttest_ind(scores[1], scores[0], equal_var=False).confidence_interval()
    # Carried over to the scale of log((1 + x) / (1 - x)) = 2 artanh(x), so that it stays between -1 and 1.
    middle = (interval.low + interval.high) / 2
    reach = (interval.high - interval.low) / 2 / (1 - middle**2)
    ends = np.tanh(np.arctanh(middle) + np.array([-reach, reach]))
    assert (found[1].difference.low, found[1].difference.high) == pytest.approx(tuple(ends))
    macro = [f1_score(each.labels, each.predicted, average="macro") for each in leaking]
    assert found[-1].original.value == pytest.approx(np.mean(macro))


def test_one_seed_gives_values_without_intervals():
    found = leak_comparison([random_predictions(50, 2, 0)], [random_predictions(50, 2, 1)])[0]
    assert found.difference.value == pytest.approx(found.original.value - found.holdout.value)
    assert all(math.isnan(each.low) for each in (found.holdout, found.original, found.difference))
    same = leak_comparison([random_predictions(50, 2, 0)] * 2, [random_predictions(50, 2, 0)] * 2)[0].difference
    assert (same.value, same.low, same.high) == (0, 0, 0)
    with pytest.raises(ValueError, match="categories"):
        leak_comparison([random_predictions(50, 2, 0)], [random_predictions(50, 3, 0)])
    with pytest.raises(ValueError, match="seed"):
        leak_comparison([], [random_predictions(50, 2, 0)])


def test_a_category_that_is_not_tested_has_no_score():
    absent = Predictions(["x", "y"], np.array([0, 0]), sure(np.array([0, 1]), 2), NAMES)
    found = leak_comparison([absent], [_named(random_predictions(50, 2, 0))])
    assert math.isnan(found[1].holdout.value) and not math.isnan(found[1].original.value)


def _named(predictions):
    return Predictions(predictions.product_ids, predictions.labels, predictions.log_probabilities, NAMES)

"""Scores of predictions that may be unknown, worked by hand."""

import dataclasses
import json

import numpy as np
import pytest

from vlm_core.evaluation.decoding_scores import DecodingScore, score_decoding


def test_scores_are_those_worked_by_hand():
    score = score_decoding(np.array([0, 0, 0, 1, 1, 2]), np.array([0, 0, -1, 1, 0, -1]))
    f1 = (2 * 2 / (2 * 2 + 1 + 1) + 2 * 1 / (2 * 1 + 0 + 1) + 0) / 3  # 2 TP / (2 TP + FP + FN) a category
    assert dataclasses.astuple(score) == pytest.approx((6, 3 / 6, f1, 2 / 6, 4 / 6, 3 / 4))
    assert json.loads(json.dumps(dataclasses.asdict(score))) == dataclasses.asdict(score)


def test_nothing_predicted_has_no_accuracy_on_what_is_covered():
    assert score_decoding(np.array([0, 1]), np.array([-1, -1])) == DecodingScore(2, 0, 0, 1, 0, None)


@pytest.mark.parametrize(("labels", "predicted"), [([], []), ([0, 1], [0]), ([0, -1], [0, 0])])
def test_what_cannot_be_scored_is_refused(labels, predicted):
    with pytest.raises(ValueError, match="known labels"):
        score_decoding(np.array(labels, dtype=np.int64), np.array(predicted, dtype=np.int64))

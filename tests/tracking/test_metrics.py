"""An epoch in one line."""

import dataclasses

import numpy as np

from vlm_core.evaluation.summary import summarise
from vlm_core.tracking.metrics import epoch_line
from vlm_core.training.loop import EpochReport


def test_from_a_minute_on_a_line_says_how_long_the_rest_may_take():
    summary = summarise(np.array([0, 1]), np.array([0, 1]), ("a", "b"), loss=0.5)
    report = EpochReport(2, 8, summary, summary, 1e-3, 50.0, True, False, "Best weights saved.")
    assert epoch_line(report).endswith("(50 s). Best weights saved. Up to 5 min left.")
    for other in ({"seconds": 9.0}, {"stop": True}, {"epoch": 8}):
        assert epoch_line(dataclasses.replace(report, **other)).endswith("Best weights saved.")

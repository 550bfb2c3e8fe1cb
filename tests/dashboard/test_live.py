"""Runs in progress: how far they are, and which show no sign of life."""

import os
import platform

import pandas as pd
import pytest

from dashboard.live import LIVE, LOST, add_live, describe_progress, duration
from vlm_core.tracking.tags import process_tag

NOW = pd.Timestamp("2026-01-01 12:00", tz="UTC")


def _row(seconds_ago, **more):
    return {"status": "RUNNING", "seen": NOW - pd.Timedelta(seconds=seconds_ago), "epoch": 0, **more}


def _live(*rows):
    table = add_live(pd.DataFrame(list(rows)), NOW)
    return list(zip(table[LOST], table[LIVE], strict=True))


def test_a_run_that_logs_is_alive_and_one_that_stopped_says_since_when():
    assert _live(_row(20), _row(600)) == [(False, ""), (True, "no sign of life since 2026-01-01 11:50 UTC")]
    assert _live({**_row(600), "status": "FINISHED"}) == [(False, "")]


def test_on_this_machine_the_process_itself_is_asked():
    dead = f"{platform.node()}:{os.getpid()}:1.00"  # another process had that number
    alive = process_tag()
    tag = "tags.process"
    assert [lost for lost, _ in _live(_row(1, **{tag: dead}), _row(9000, **{tag: alive}))] == [True, False]
    assert [lost for lost, _ in _live(_row(1, **{tag: "elsewhere:1:2.0"}), _row(999, **{tag: "elsewhere:1:2"}))] == [
        *(False, True)
    ]


def test_an_epoch_of_how_many_and_the_time_left_at_most():
    row = {"epoch": 3, "params.epochs": "10", "metrics.seconds": 20.0}
    assert describe_progress(row) == "epoch 3 of 10, at most 2 min left"
    assert describe_progress({**row, "epoch": 10}) == "epoch 10 of 10"
    assert describe_progress({"epoch": 3}) == "epoch 3" and describe_progress({}) == ""
    ((lost, said),) = _live({**_row(600), **row})
    assert lost and said == "no sign of life since 2026-01-01 11:50 UTC, epoch 3 of 10"  # and no time left


@pytest.mark.parametrize(
    ("seconds", "text"), [(1.23, "1.2 s"), (59, "59 s"), (600, "10 min"), (1330, "22 min"), (9000, "2.5 h")]
)
def test_a_duration_has_a_unit_that_suits_it(seconds, text):
    assert duration(seconds) == text


def test_an_empty_table_stays_empty():
    assert add_live(pd.DataFrame(), NOW).empty

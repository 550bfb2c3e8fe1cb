"""The tables' figures, worked by hand."""

import pytest

from vlm_core.benchmark.markdown_tables import (
    FAMILIES,
    answers_table,
    beside_table,
    kept_hours,
    naive_hours,
    study_table,
    training_table,
)


def _seconds(median):
    return {"median": median, "low": median, "high": median, "steps": 3}


NAIVE = {
    "kind": "naive", "family": "clip", "image_size": 224, "train": _seconds(0.3), "evaluate": _seconds(0.1),
    "input": _seconds(0.03), "gflop": 26.0, "peak_mib": 2400.0,
}  # fmt: skip
KEPT = {
    "kind": "one block", "family": "clip", "image_size": 224, "train": _seconds(0.005), "evaluate": _seconds(0.002),
    "prefix": {"seconds": 0.07, "views": 40, "kib": 77.0}, "peak_mib": 1500.0,
}  # fmt: skip


def test_hours_are_those_of_ten_epochs_of_training_and_validation():
    assert naive_hours(NAIVE) == pytest.approx(10 * (2400 * 0.3 + 600 * 0.1) / 3600)
    assert kept_hours(KEPT, views=3) == pytest.approx(
        ((3 * 2400 + 600) * 0.07 + 10 * (2400 * 0.005 + 600 * 0.002)) / 3600
    )
    built = {**KEPT, "prefix": {**KEPT["prefix"], "making": 90.0}}
    assert kept_hours(built, views=3) == pytest.approx(kept_hours(KEPT, views=3) + 90 / 3600)


def test_a_prefix_in_int8_stands_with_its_error():
    prefix = {"seconds": 0.04, "views": 40, "kib": 77.0, "prefix_error": 0.0149}
    table = training_table([{**KEPT, "kind": "one block int8", "prefix": prefix}])
    assert "| one block int8 (states 1.5% off) |" in table


def test_ratios_stand_beside_the_naive_figure_of_the_same_size():
    assert (
        "| clip | 224 | one block | 0.0050 (0.0050 to 0.0050, 3 steps) | 60.0 | 0.070 | 77 | 1,500 |"
        in training_table([NAIVE, KEPT])
    )
    families = [{**figures, "family": family} for family in FAMILIES for figures in (NAIVE, KEPT)]
    assert "| one block, 3 views | 0.19 | 0.19 | 0.19 | 0.56 | 11.5 |  |" in study_table(families)
    assert "one block" not in study_table([NAIVE, KEPT])
    assert "| clip | 224 | one block | 0.0050 (0.0050 to 0.0050, 3 steps) |  |" in training_table([KEPT])


def test_steps_taken_in_turn_stand_beside_each_other():
    both = {
        "family": "git", "image_size": 224, "naive": _seconds(1.2), "full": _seconds(1.0),
        "times": {"median": 1.25, "low": 1.0, "high": 1.5, "steps": 3},
    }  # fmt: skip
    assert beside_table([both]).splitlines()[2:] == [
        "| git | 224 | 1.2000 (1.2000 to 1.2000, 3 steps) | 1.0000 (1.0000 to 1.0000, 3 steps) | 1.25 (1.00 to 1.50) |"
    ]


def test_answers_stand_in_milliseconds():
    form = {"form": "ONNX int8", "megabytes": 90.2, "seconds": [0.05, 0.04], "largest_difference": 0.031}
    table = answers_table([{"family": "clip", "image_size": 224, "forms": [form]}])
    assert table.splitlines()[2:] == ["| clip | 224 | ONNX int8 | 90 | 50 | 40 | 0.031 |"]

"""The tables' numbers, worked out by hand."""

import pytest

from vlm_core.benchmark.markdown_tables import (
    FAMILIES,
    cached_training_hours,
    in_turn_table,
    inference_table,
    naive_training_hours,
    paper_table,
    training_table,
)


def _seconds(median):
    return {"median": median, "lower": median, "upper": median, "count": 3}


NAIVE = {
    "kind": "naive", "family": "clip", "image_size": 224, "step": _seconds(0.3), "evaluation": _seconds(0.1),
    "preprocessing": _seconds(0.03), "gflop_per_image": 26.0, "peak_mib": 2400.0,
}  # fmt: skip
CACHED = {
    "kind": "one block", "family": "clip", "image_size": 224, "step": _seconds(0.005), "evaluation": _seconds(0.002),
    "prefix": {"seconds_per_image": 0.07, "images": 40, "kib_per_image": 77.0}, "peak_mib": 1500.0,
}  # fmt: skip


def test_hours_are_those_of_ten_epochs_of_training_and_validation():
    assert naive_training_hours(NAIVE) == pytest.approx(10 * (2400 * 0.3 + 600 * 0.1) / 3600)
    assert cached_training_hours(CACHED, views=3) == pytest.approx(
        ((3 * 2400 + 600) * 0.07 + 10 * (2400 * 0.005 + 600 * 0.002)) / 3600
    )
    built = {**CACHED, "prefix": {**CACHED["prefix"], "build_seconds": 90.0}}
    assert cached_training_hours(built, views=3) == pytest.approx(cached_training_hours(CACHED, views=3) + 90 / 3600)


def test_a_prefix_in_int8_stands_with_its_error():
    prefix = {"seconds_per_image": 0.04, "images": 40, "kib_per_image": 77.0, "prefix_error": 0.0149}
    table = training_table([{**CACHED, "kind": "one block int8", "prefix": prefix}])
    assert "| one block int8 (features 1.5% off) |" in table


def test_ratios_stand_beside_the_naive_figure_of_the_same_size():
    assert (
        "| clip | 224 | one block | 0.0050 (0.0050 to 0.0050, 3 steps) | 60.0 | 0.070 | 77 | 1,500 |"
        in training_table([NAIVE, CACHED])
    )
    families = [{**result, "family": family} for family in FAMILIES for result in (NAIVE, CACHED)]
    assert "| one block, 3 views | 0.19 | 0.19 | 0.19 | 0.56 | 11.5 |  |" in paper_table(families)
    assert "one block" not in paper_table([NAIVE, CACHED])
    assert "| clip | 224 | one block | 0.0050 (0.0050 to 0.0050, 3 steps) |  |" in training_table([CACHED])


def test_steps_taken_in_turn_have_a_speed_up():
    both = {
        "family": "git", "image_size": 224, "naive": _seconds(1.2), "ours": _seconds(1.0),
        "speedup": {"median": 1.25, "lower": 1.0, "upper": 1.5, "count": 3},
    }  # fmt: skip
    assert in_turn_table([both]).splitlines()[2:] == [
        "| git | 224 | 1.2000 (1.2000 to 1.2000, 3 steps) | 1.0000 (1.0000 to 1.0000, 3 steps) | 1.25 (1.00 to 1.50) |"
    ]


def test_inference_is_in_milliseconds():
    int8 = {"format": "ONNX int8", "megabytes": 90.2, "seconds_per_image": [0.05, 0.04], "max_difference": 0.031}
    table = inference_table([{"family": "clip", "image_size": 224, "formats": [int8]}])
    assert table.splitlines()[2:] == ["| clip | 224 | ONNX int8 | 90 | 50 | 40 | 0.031 |"]

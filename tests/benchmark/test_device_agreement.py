"""The checks on the CPU beside itself, and what they make of differences and faults."""

from pathlib import Path

import numpy as np
import pytest

from vlm_core.benchmark.device_agreement import (
    FAMILIES,
    MODES,
    SETTINGS,
    checks,
    line,
    relative_difference,
    run_check,
)
from vlm_core.config import Config
from vlm_core.data import load_data


def test_every_family_is_trained_in_every_mode():
    for family in FAMILIES:
        assert {f"train: {mode}" for mode in MODES} < checks(family).keys()


def test_differences_are_relative_and_of_texts_shares():
    assert relative_difference(np.array([3.0, 4.1]), np.array([3.0, 4.0])) == pytest.approx(0.1 / 5)
    assert relative_difference(np.zeros(2), np.zeros(2)) == 0
    assert relative_difference(np.zeros(2), np.zeros(3)) == float("inf")
    assert relative_difference(np.array(["a", "b"]), np.array(["a", "c"])) == 0.5
    assert relative_difference(np.array(["a", "longer"]), np.array(["a", "long"])) == 0.5


@pytest.mark.parametrize(("value", "agrees"), [(1.0005, True), (1.01, False), (float("nan"), False)])
def test_numbers_beyond_the_tolerance_do_not_agree(value, agrees):
    def check(bench):
        return {"number": np.array([value if bench.device == "cuda" else 1.0])}

    result = run_check("clip", "test", check, 1e-3, "cuda", None, Path("folder"))
    assert result.agrees == agrees
    assert ("agrees" if agrees else "DIFFERS") in line(result)


def test_a_check_that_fails_says_why():
    def check(bench):
        raise RuntimeError(f"two devices\nin {bench.device}")

    result = run_check("clip", "test", check, 1e-3, "cuda", None, Path("folder"))
    assert result.error == "RuntimeError: two devices" and not result.agrees and "two devices" in line(result)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "name"),
    [("blip", "attention: sentences"), ("git", "pretrain"), ("clip", "train: last-blocks"), ("clip", "resume")],
)
def test_the_cpu_agrees_with_itself(family, name, shop, root, tmp_path):
    data = load_data(Config.build({**SETTINGS, "data": str(shop), "per_category": 8, "train_per_category": 8}), root)
    result = run_check(family, name, *checks(family)[name], "cpu", data, tmp_path)
    assert not result.error and set(result.differences.values()) == {0.0}

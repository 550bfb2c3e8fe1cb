"""Measurements of tiny models; published sizes are left to the benchmark itself."""

import pytest

from tests.models.families import RoundedPrefix, make_tiny
from vlm_core.benchmark import growth, steps
from vlm_core.models.profiling import timed

pytestmark = pytest.mark.slow


@pytest.fixture
def small(monkeypatch):
    """Tiny models in place of the published sizes."""
    monkeypatch.setattr(steps, "full_size", lambda family, image_size: make_tiny(family))


@pytest.mark.parametrize(
    "kind",
    [
        "one block",
        *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("naive", *steps.OURS) if kind != "one block"),
    ],
)
def test_each_kind_gives_seconds_and_memory(shop, root, small, kind, monkeypatch):
    monkeypatch.setattr("vlm_core.models.onnx_prefix.OnnxPrefix", RoundedPrefix)
    result = steps.measure(kind, "clip", 64, str(shop), str(root), threads=1, steps=3)  # of two, quartiles lie outside
    assert 0 < result["step"]["lower"] <= result["step"]["median"] <= result["step"]["upper"]
    assert result["peak_mib"] > 100
    assert bool(result.get("prefix")) == (kind not in ("naive", "full", "LoRA uncached"))
    assert ("prefix_error" in (result.get("prefix") or {})) == (kind == "one block int8")


def test_steps_taken_in_turn_are_compared_pair_by_pair(shop, root, small):
    result = steps.measure_in_turn("clip", 64, str(shop), str(root), threads=1, steps=3)
    assert result["naive"]["count"] == result["ours"]["count"] == result["speedup"]["count"] == 3
    assert result["speedup"]["lower"] <= result["naive"]["upper"] / result["ours"]["lower"]
    assert result["speedup"]["upper"] >= result["naive"]["lower"] / result["ours"]["upper"]


def test_growth_counts_its_pictures(shop, root):
    result = growth.measure_growth(10_000, str(shop), str(root), threads=1)
    assert 200 < result["images"] <= 320 and result["prefix_seconds_per_image"] > 0 and result["peak_mib"] >= 0


def test_the_input_is_measured_on_both_ways(shop, root, monkeypatch):
    monkeypatch.setattr(steps, "timed", lambda call, times: timed(call, 1))
    result = steps.measure_preprocessing(64, str(shop), str(root), threads=1)
    assert all(result[name]["median"] > 0 for name in ("decode", "augment_pillow", "augment"))
    assert steps.gemm_gflops() > 1

"""Measurements end in figures that can be compared; published sizes are left to the benchmark itself."""

import pytest

from tests.models.families import make_tiny
from vlm_core.benchmark import growth, steps


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """The folder that the catalogue is prepared in."""
    return tmp_path_factory.mktemp("root")


@pytest.fixture
def small(monkeypatch):
    """Tiny models in place of the published sizes."""
    monkeypatch.setattr(steps, "full_size", lambda family, image_size: make_tiny(family))


@pytest.mark.parametrize("kind", ["naive", *steps.OURS])
def test_each_kind_gives_seconds_and_memory(shop, root, small, kind):
    figures = steps.measure(kind, "clip", 64, str(shop), str(root), threads=1, steps=2)
    assert 0 < figures["train"]["low"] <= figures["train"]["median"] <= figures["train"]["high"]
    assert figures["peak_mib"] > 100
    assert bool(figures.get("prefix")) == (kind not in ("naive", "full", "LoRA uncached"))
    assert ("prefix_error" in (figures.get("prefix") or {})) == (kind == "one block int8")


def test_steps_taken_in_turn_are_compared_pair_by_pair(shop, root, small):
    figures = steps.measure_beside("clip", 64, str(shop), str(root), threads=1, steps=3)
    assert figures["naive"]["steps"] == figures["full"]["steps"] == figures["times"]["steps"] == 3
    assert figures["times"]["low"] <= figures["naive"]["high"] / figures["full"]["low"]
    assert figures["times"]["high"] >= figures["naive"]["low"] / figures["full"]["high"]


def test_growth_counts_its_pictures(shop, root):
    figures = growth.measure_growth(10_000, str(shop), str(root), threads=1)
    assert 200 < figures["pictures"] <= 320 and figures["prefix"] > 0 and figures["peak_mib"] >= 0


def test_the_input_is_measured_on_both_ways(shop, root):
    figures = steps.measure_input(64, str(shop), str(root), threads=1)
    assert all(figures[name]["median"] > 0 for name in ("decode", "augment_pillow", "augment"))
    assert steps.gemm_gflops() > 1

"""Costs of real tiny models; the front against its definition."""

import dataclasses
import json
from multiprocessing.pool import ThreadPool
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.models.families import make_categoriser
from vlm_core.models.baseline import fit_baseline
from vlm_core.study.cost import measure_cost, pareto

PICTURES = np.random.default_rng(0).integers(0, 256, (5, 80, 60, 3), dtype=np.uint8)


class _Pictures:
    def take(self, rows):
        return PICTURES[rows]


def _check(cost):
    assert 0 < cost.p50_seconds <= cost.p95_seconds < 10
    assert cost.images_per_second > 1 and cost.threads == 1 and 0 <= cost.peak_mib < 2000
    assert json.loads(json.dumps(dataclasses.asdict(cost))) == dataclasses.asdict(cost)


@pytest.fixture(autouse=True)
def few_calls(monkeypatch):
    """Enough to see that what is measured is there."""
    for name, value in {"CALLS": 5, "BATCHES": 2, "_MEMORY_SECONDS": 0.1}.items():
        monkeypatch.setattr(f"vlm_core.study.cost.{name}", value)


@pytest.mark.slow
def test_a_networks_cost_holds_its_weights_and_its_arithmetic():
    model = make_categoriser("clip", width=128)
    before = torch.get_num_threads()
    cost = measure_cost(model, PICTURES, threads=1)
    _check(cost)
    weights = sum(weight.numel() for weight in model.hf.parameters()) + 3 * 128 + 3
    assert cost.weights == weights
    tokens, width, mlp, heads = 65, 128, 8, 4  # as in `blocks.py`: in the last block the class token is the only query
    whole = 2 * tokens * width * width * (4 + mlp) + 2 * 2 * tokens**2 * width
    crossing = 2 * 2 * heads * tokens * width + 2 * width  # a head's query meets whole tokens, and the key bias
    last = 2 * width * width * (4 + mlp) + crossing
    head = 2 * width * width + 2 * width * 3
    assert cost.flops == 2 * 64 * (8 * 8 * 3) * width + 3 * whole + last + head
    assert cost.peak_mib > 1  # 32 x 65 tokens x 512 hidden units alone are 4 MiB
    assert torch.get_num_threads() == before


@pytest.mark.slow
def test_the_baseline_has_no_flops(monkeypatch):
    here = SimpleNamespace(get_context=lambda method: SimpleNamespace(Pool=ThreadPool))
    monkeypatch.setattr("vlm_core.study.cost.multiprocessing", here)  # a process of its own starts for seconds
    labels, rows = np.array([0, 1, 0, 1, 0]), np.arange(5)
    model = fit_baseline(_Pictures(), labels, rows, rows, ("a", "b"), (80, 60), 0)
    cost = measure_cost(model, PICTURES, threads=1)
    _check(cost)
    assert cost.flops is None
    assert cost.weights == model.weights.size + model.bias.size + model.mean.size + model.scale.size


_NUMBERS = st.sampled_from([0.0, 0.25, 0.5, 1.0]) | st.floats(-5, 5)


@given(st.lists(st.tuples(_NUMBERS, _NUMBERS), max_size=25))
def test_the_front_is_what_no_other_point_beats(points):
    def beaten(cost, score):
        return any(c <= cost and s >= score and (c < cost or s > score) for c, s in points)

    assert pareto(points) == [not beaten(*point) for point in points]


@pytest.mark.parametrize(
    ("points", "front"), [([], []), ([(1, 1)], [True]), ([(1, 1), (1, 1), (2, 1)], [True, True, False])]
)
def test_equals_stand_on_the_front_together(points, front):
    assert pareto(points) == front

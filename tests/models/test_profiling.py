"""Arithmetic against Hugging Face's plain attention, whose products PyTorch counts; threads and memory as they are."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.models.families import make_tiny
from tests.stores import run_python
from vlm_core.models.profiling import count_flops, fixed_threads, timed


def test_fused_attention_counts_as_the_two_products_that_it_is():
    query = torch.randn(2, 4, 65, 32, requires_grad=True)
    products = 2 * (2 * 2 * 4 * 65 * 65 * 32)

    def attend():
        return torch.nn.functional.scaled_dot_product_attention(query, query, query)

    assert count_flops(attend) == products
    assert count_flops(lambda: attend().sum().backward()) == 3 * products
    with torch.inference_mode():
        assert count_flops(attend) == products


def test_a_tower_with_fused_attention_counts_as_the_same_one_with_plain_attention():
    hf, _ = make_tiny("clip", width=128)
    pixels = torch.zeros(1, 3, 64, 64)
    fused = count_flops(lambda: hf.vision_model(pixels))
    hf.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter:
        hf.vision_model(pixels)
    assert fused == counter.get_total_flops()
    tokens, width, blocks = 65, 128, 4  # by hand: patches, then four projections, attention and an MLP of 4 D a block
    patches = 2 * 64 * (8 * 8 * 3) * width
    assert fused == patches + blocks * (2 * tokens * width * width * (4 + 8) + 2 * 2 * tokens**2 * width)


@pytest.mark.parametrize("fails", [False, True])
def test_threads_are_fixed_and_given_back(fails):
    from threadpoolctl import threadpool_info

    before, pools = torch.get_num_threads(), [pool["num_threads"] for pool in threadpool_info()]
    try:
        with fixed_threads(before + 1):
            assert torch.get_num_threads() == before + 1
            if fails:
                raise KeyError
    except KeyError:
        assert fails
    assert torch.get_num_threads() == before
    assert [pool["num_threads"] for pool in threadpool_info()] == pools


HOLDING = """
import numpy as np
from vlm_core.models.profiling import PeakMemory
with PeakMemory(0.001) as peak:
    for _ in range(20):
        np.ones(8_000_000)  # 61 MiB
print(peak.mib)
"""


@pytest.mark.slow
def test_memory_that_is_held_only_for_a_moment_is_seen(tmp_path):
    done = run_python(HOLDING, tmp_path)  # by itself: what other tests left may be let go meanwhile
    assert 55 < float(done.stdout) < 90, done.stderr


def test_the_first_call_is_not_counted():
    calls = []
    assert len(timed(lambda: calls.append(1), 3)) == 3 and len(calls) == 4

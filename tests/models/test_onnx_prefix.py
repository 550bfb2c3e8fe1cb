"""Frozen stages in int8: near what PyTorch computes at every cut, and a function of one picture alone."""

from functools import cache

import pytest
import torch

from tests.models.families import make_shallow
from vlm_core.models.onnx_prefix import OnnxPrefix
from vlm_core.models.positions import resize_input

# A graph is traced for seconds.
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("hasty_exports")]
SIZES = {"clip": 48, "git": 64}  # of which 64 is the models' own
PIXELS = {size: torch.randn(5, 3, size, size, generator=torch.Generator().manual_seed(2)) for size in SIZES.values()}


@cache
def _make(family, mode, blocks):
    """The prefix of a model of few vision blocks, pixels, and their states at its cut in single precision."""
    model, pixels = make_shallow(family, blocks=2 if family == "clip" else 1), PIXELS[SIZES[family]]
    resize_input(model.hf, SIZES[family])
    model.image_size = SIZES[family]
    model.set_training(False, 0)
    cut = model.cut(mode, blocks)  # CLIP's last block is trained
    with torch.inference_mode():
        return OnnxPrefix(model, cut), pixels, model.run((pixels,), 0, cut)


@pytest.mark.parametrize(
    ("family", "mode", "blocks"),
    [("clip", "last-blocks", 1), ("git", "probe", 0)],  # BLIP's is run where a cache is filled with it
)
def test_states_are_near_those_of_pytorch_and_shaped_alike(family, mode, blocks):
    prefix, pixels, expected = _make(family, mode, blocks)
    states = prefix.run((pixels,))
    assert [part.shape for part in states] == [part.shape for part in expected]
    for part, wanted in zip(states, expected, strict=True):
        assert part.dtype == torch.float32
        assert (part - wanted).norm() < 0.05 * wanted.norm()
    whole = torch.cat([(part - wanted).flatten() for part, wanted in zip(states, expected, strict=True)])
    assert whole.abs().max() > 1e-4  # it is int8 that ran


def test_a_picture_has_the_same_state_whatever_comes_with_it():
    prefix, pixels, _ = _make("clip", "last-blocks", 1)
    together = prefix.run((pixels,))
    for number in (4, 0):
        alone = prefix.run((pixels[number : number + 1],))
        for part, whole in zip(alone, together, strict=True):
            torch.testing.assert_close(part[0], whole[number], rtol=0, atol=0)

"""The naive loop computes what the platform computes, the slow way."""

import itertools

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from tests.models.families import SHIPPED, make_adapter
from vlm_core.benchmark.naive import augment, decode, fused_features, jpegs, naive_steps, trainer_steps
from vlm_core.models.stages import run_stages

PIXELS = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(1))
PICTURES = np.random.default_rng(0).integers(0, 256, (6, 20, 15, 3), dtype=np.uint8)
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])


def _features(family):
    adapter = make_adapter(family)
    prompt = adapter.prompt_ids() if family != "clip" else ()
    return adapter, *fused_features(family, adapter.hf, prompt)


@pytest.mark.parametrize("family", SHIPPED)
def test_full_fine_tuning_has_hugging_faces_loss_and_gradients(family):
    adapter, compute, width = _features(family)
    head = torch.nn.Linear(width, 3)
    gradients = []
    for state in (compute(PIXELS), run_stages(adapter.stages("fused"), (PIXELS,))[0]):
        loss = cross_entropy(head(state), LABELS[:4])
        adapter.hf.zero_grad()
        loss.backward()
        found = {name: weight.grad.clone() for name, weight in adapter.hf.named_parameters() if weight.grad is not None}
        gradients.append((loss.item(), found))
    (theirs, wanted), (ours, found) = gradients
    assert ours == pytest.approx(theirs, abs=1e-6)
    assert wanted.keys() == found.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, atol=2e-6, rtol=1e-4)


@pytest.mark.parametrize("family", SHIPPED)
def test_a_naive_step_takes_time_and_moves_the_weights(family):
    adapter, compute, width = _features(family)
    before = next(adapter.hf.vision_model.parameters() if family != "git" else adapter.hf.parameters()).clone()
    steps = list(itertools.islice(naive_steps(compute, width, adapter.hf, jpegs(PICTURES), LABELS, 64, 2), 2))
    assert all(0 < prepared < whole for whole, prepared in steps)
    after = next(adapter.hf.vision_model.parameters() if family != "git" else adapter.hf.parameters())
    assert not torch.equal(before, after)


@pytest.mark.slow
def test_the_trainer_does_its_steps():
    adapter, compute, width = _features("clip")
    assert len(trainer_steps(compute, width, adapter.hf, jpegs(PICTURES), LABELS, 64, 2, steps=3)) == 2


def test_pictures_survive_being_files():
    pixels = augment(64)(decode(jpegs(PICTURES)[0]))
    assert pixels.shape == (3, 64, 64) and torch.isfinite(pixels).all()

"""A model with shuffled weights: the control (sanity check) for explanations."""

from __future__ import annotations

import copy

import torch

from vlm_core.models.categoriser import VisionLanguageCategoriser
from vlm_core.models.heads import LinearHead


def shuffled_weights(model: VisionLanguageCategoriser, seed: int) -> VisionLanguageCategoriser:
    """Return a copy of the model with each tensor's weights permuted: magnitudes stay, what was learnt is lost.

    A new initialisation would follow the family's own rule, and BLIP's gives nearly zero, because it is meant for
    loading a checkpoint.
    """
    shuffled = type(model)(copy.deepcopy(model.hf), model.adapter.tokenizer, model.description).to(str(model.device))
    weights = list(shuffled.hf.parameters())
    if isinstance(shuffled.head, LinearHead) and isinstance(model.head, LinearHead):
        shuffled.head.load_state_dict(model.head.state_dict())
        weights += shuffled.head.parameters()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in weights:
            order = torch.randperm(weight.numel(), generator=generator).to(weight.device)
            weight.copy_(weight.flatten()[order].view_as(weight))
    return shuffled

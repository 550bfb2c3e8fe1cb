"""A model that keeps its weights' sizes and loses what was learnt: the control of explanations."""

from __future__ import annotations

import copy

import torch

from vlm_core.models.categoriser import VisionLanguageCategoriser
from vlm_core.models.heads import LinearHead


def shuffled_weights(model: VisionLanguageCategoriser, seed: int) -> VisionLanguageCategoriser:
    """The same model with every tensor's weights in another order, so that their sizes stay and what was learnt goes.

    New weights would be drawn by the family's own rule, and BLIP's is for loading a checkpoint: it draws zeros, nearly.
    """
    other = type(model)(copy.deepcopy(model.hf), model.adapter.tokenizer, model.description).to(str(model.device))
    weights = list(other.hf.parameters())
    if isinstance(other.answer, LinearHead) and isinstance(model.answer, LinearHead):
        other.answer.load_state_dict(model.answer.state_dict())
        weights += other.answer.parameters()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in weights:
            order = torch.randperm(weight.numel(), generator=generator).to(weight.device)
            weight.copy_(weight.flatten()[order].view_as(weight))
    return other

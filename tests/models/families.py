"""Tiny models of every family for tests, made once: real architectures, random weights, narrower than shipped."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import pytest
import torch

from vlm_core.models import tiny
from vlm_core.models.categoriser import ADAPTERS, Description, VisionLanguageCategoriser
from vlm_core.models.vision import vision_class
from vlm_core.pixels.views import DEFAULT, Preprocessing

FAMILIES = ("clip", "blip", "git", "siglip", "vision")
WITH_LANGUAGE = ("clip", "blip", "git", "siglip")
SHIPPED = ("clip", "blip", "git")  # with pretrained tiny weights, and in benchmarks and the ablation
CAPTIONERS = ("blip", "git")
CATEGORIES = ("Apparel", "Footwear", "Free Items")
TITLES = ("Turtle Check Men Navy Blue Shirt", "Titan Women Silver Watch", "apparel", "footwear", "free items")


@cache
def _tiny(family: str, width: int) -> tuple[Any, Any]:
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        for settings in (tiny.VISION, tiny.TEXT):
            patch.setitem(settings, "hidden_size", width)
            patch.setitem(settings, "intermediate_size", 4 * width)
        return tiny.build_tiny(family, TITLES)


def make_tiny(family: str, width: int = 32) -> tuple[Any, Any]:
    """A fresh copy of a family's tiny model, in evaluation mode, and its tokenizer. The shipped ones are 128 wide."""
    hf, tokenizer = _tiny(family, width)
    return copy.deepcopy(hf).eval(), tokenizer


_VIT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 64, "patch_size": 8}
_CONVOLUTIONAL = {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "image_size": 64}
_TOWERS = {
    "vit": {**_VIT, "intermediate_size": 64},
    "dinov2": {**_VIT, "layerscale_value": 0.5},
    "dinov2_with_registers": {**_VIT, "num_register_tokens": 3},
    "dinov3_vit": {**_VIT, "intermediate_size": 64, "num_register_tokens": 3, "layerscale_value": 0.5},
    "convnext": _CONVOLUTIONAL,
    "convnextv2": _CONVOLUTIONAL,
    "dinov3_convnext": _CONVOLUTIONAL,
    "efficientnet": {"width_coefficient": 0.1, "depth_coefficient": 0.1, "image_size": 64, "hidden_dim": 128},
    "resnet": {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "embedding_size": 8},
}


def make_tower(kind: str) -> Any:
    """A tiny vision tower of a `model_type` with random weights and batch statistics, in evaluation mode."""
    from transformers import CONFIG_MAPPING

    torch.manual_seed(0)
    hf_class, settings = vision_class({"model_type": kind})
    hf = hf_class(CONFIG_MAPPING[kind](**_TOWERS[kind]), **settings)
    for name, tensor in hf.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            tensor.uniform_(0.5, 1.5)
    return hf.eval()


def make_adapter(family: str, width: int = 32) -> Any:
    """A family's adapter over a fresh tiny model."""
    return ADAPTERS[family](*make_tiny(family, width))


def make_categoriser(
    family: str,
    head: str = "linear",
    readout: str = "fused",
    width: int = 32,
    preprocessing: Preprocessing = DEFAULT,
) -> VisionLanguageCategoriser:
    """A categoriser of three categories over a fresh tiny model."""
    terms = {"shirt": "Apparel"}
    description = Description(family, CATEGORIES, (80, 60), head, readout, terms, preprocessing)  # type: ignore[arg-type]
    hf, tokenizer = make_tiny(family, width)
    torch.manual_seed(1)  # after the first call has made the weights, so that every head starts alike
    return VisionLanguageCategoriser(hf, tokenizer, description)


def make_mean_pooled() -> VisionLanguageCategoriser:
    """A CLIP of three categories that pools the mean of its patches."""
    hf, tokenizer = make_tiny("clip")
    hf.config.vision_config.pooling = "mean"
    torch.manual_seed(1)
    return VisionLanguageCategoriser(hf, tokenizer, Description("clip", CATEGORIES, (80, 60), "linear", "fused", {}))


def trim(family: str, hf: Any, blocks: int, text_blocks: int | None = None) -> None:
    """Keep few blocks of a tiny model's towers, all of the text's by default: its graph is quicker to trace."""
    if family == "vision":
        hf.encoder.layer = hf.encoder.layer[:blocks]
        return
    tower = hf.git.image_encoder.vision_model if family == "git" else hf.vision_model
    tower.encoder.layers = tower.encoder.layers[:blocks]
    hf.config.vision_config.num_hidden_layers = blocks
    if text_blocks is None:
        return
    if family in CAPTIONERS:
        encoder = hf.git.encoder if family == "git" else hf.text_decoder.bert.encoder
        encoder.layer = encoder.layer[:text_blocks]
    else:
        hf.text_model.encoder.layers = hf.text_model.encoder.layers[:text_blocks]
    (hf.config if family == "git" else hf.config.text_config).num_hidden_layers = text_blocks


def make_shallow(family: str, readout: str = "fused", blocks: int = 2) -> VisionLanguageCategoriser:
    """A categoriser whose vision tower has few blocks."""
    model = make_categoriser(family, readout=readout)
    trim(family, model.hf, blocks)
    model.stages = model.adapter.stages(readout)
    return model


class RoundedPrefix:
    """Stands for an int8 prefix, whose graph takes seconds to trace: PyTorch's states, rounded."""

    def __init__(self, model, cut):
        self.model, self.cut = model, cut

    def run(self, state):
        with torch.inference_mode():
            steps = [(part, part.abs().flatten(1).amax(1) / 100) for part in self.model.run(state, 0, self.cut)]
            steps = [(part, step.view(-1, *[1] * (part.ndim - 1))) for part, step in steps]  # each picture has its own
            return tuple(torch.round(part / step) * step for part, step in steps)

"""CLIP and SigLIP models that open_clip has saved, under transformers' names; here CLIP's."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from vlm_core.models.checkpoint_forms import OPEN_CLIP_CONFIG, read_json
from vlm_core.models.open_clip_siglip import convert_siglip_weights, siglip_settings, text_settings

# What CLIPModel has a setting for; other settings name text towers, pooling or attention of other models.
_MODEL: Final = {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu"}
_VISION: Final = {"image_size", "layers", "width", "patch_size", "head_width", "mlp_ratio"}
_VISION_NEEDED: Final = ("image_size", "layers", "width", "patch_size")
_TEXT_NEEDED: Final = ("context_length", "vocab_size", "width", "heads", "layers")
_TEXT: Final = {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio"}
# Beginnings and endings of names; a tower's own stand in _TOWERS.
_TOWERS: Final = {"visual.": "vision_model.", "": "text_model."}
_NAMES: Final = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
    "visual.proj": "visual_projection.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "text_projection": "text_projection.weight",
    "logit_scale": "logit_scale",
}
_TRANSPOSED: Final = ("visual.proj", "text_projection")
_BLOCK: Final = re.compile(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+)\.(\w+)")
_LAYERS: Final = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


def open_clip_settings(folder: Path) -> dict[str, Any] | None:
    """Return the settings of a CLIPModel, or SiglipModel, for what open_clip has saved; None if it is another model."""
    model = read_json(folder / OPEN_CLIP_CONFIG).get("model_cfg")
    if isinstance(model, dict) and (siglip := siglip_settings(model)):
        return siglip
    if not isinstance(model, dict) or not set(model) <= _MODEL:
        return None
    vision, text = model.get("vision_cfg"), model.get("text_cfg")
    if not (isinstance(vision, dict) and isinstance(text, dict) and set(vision) <= _VISION and set(text) <= _TEXT):
        return None
    needed = [model.get("embed_dim"), *(vision.get(name) for name in _VISION_NEEDED), *map(text.get, _TEXT_NEEDED)]
    if not all(isinstance(number, int) and number > 0 for number in needed):
        return None
    activation = {"hidden_act": "quick_gelu" if model.get("quick_gelu") else "gelu"}
    size = {"projection_dim": model["embed_dim"]}
    return {
        **size,
        "vision_config": {
            **activation,
            **size,
            "hidden_size": vision["width"],
            "intermediate_size": int(vision["width"] * vision.get("mlp_ratio", 4)),
            "num_hidden_layers": vision["layers"],
            "num_attention_heads": vision["width"] // vision.get("head_width", 64),
            "image_size": vision["image_size"],
            "patch_size": vision["patch_size"],
        },
        "text_config": {
            **activation,
            **size,
            **text_settings(text),
            "bos_token_id": text["vocab_size"] - 2,
            "eos_token_id": text["vocab_size"] - 1,  # open_clip reads a text at its highest token
        },
    }


def open_clip_family(folder: Path) -> str:
    """Return the family of the model that open_clip has saved in `folder`."""
    model = read_json(folder / OPEN_CLIP_CONFIG).get("model_cfg")
    return "siglip" if isinstance(model, dict) and siglip_settings(model) else "clip"


def convert_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return open_clip's weights as transformers names them; names that it does not know stay as they are."""
    if any(name.startswith("visual.trunk.") for name in weights):
        return convert_siglip_weights(weights)
    converted: dict[str, Tensor] = {}
    for name, weight in weights.items():
        block = _BLOCK.fullmatch(name)
        if not block:
            converted[_NAMES.get(name, name)] = weight.T.contiguous() if name in _TRANSPOSED else weight
            continue
        tower, number, layer, kind = block.groups()
        place = f"{_TOWERS[tower or '']}encoder.layers.{number}."
        if layer == "attn" and kind in ("in_proj_weight", "in_proj_bias"):  # of query, key and value, one below another
            for part, third in zip("qkv", weight.chunk(3), strict=True):
                converted[f"{place}self_attn.{part}_proj.{kind.removeprefix('in_proj_')}"] = third.contiguous()
        else:
            converted[f"{place}{_LAYERS.get(layer, layer)}.{kind}"] = weight
    return converted

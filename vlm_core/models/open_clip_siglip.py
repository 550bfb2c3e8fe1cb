"""SigLIP models that open_clip has saved, with timm's vision tower, under the names and shapes of SiglipModel."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor

# By the size in timm's names: width, blocks, heads, width of the MLPs, and their activation.
_TIMM: Final = re.compile(r"vit_(base|large|so400m|giantopt)_patch(\d+)_siglip_(\d+)")
_SIZES: Final = {
    "base": (768, 12, 12, 3072, "gelu"),
    "large": (1024, 24, 16, 4096, "gelu"),
    "so400m": (1152, 27, 16, 4304, "gelu_pytorch_tanh"),
    "giantopt": (1536, 40, 16, 6144, "gelu_pytorch_tanh"),
}
_VISION: Final = {"image_size", "timm_model_name", "timm_model_pretrained", "timm_pool", "timm_proj"}
# Of the text tower; those after the first line must have these values, which SiglipTextModel has built in.
_TEXT_NEEDED: Final = ("context_length", "vocab_size", "width", "heads", "layers")
_TEXT_FIXED: Final = {"no_causal_mask": True, "proj_bias": True, "pool_type": "last", "norm_kwargs": {"eps": 1e-6}}
_TEXT_OTHERS: Final = {"hf_tokenizer_name", "tokenizer_kwargs", "mlp_ratio", "act_kwargs"}
_NAMES: Final = {
    "visual.trunk.patch_embed.proj.": "vision_model.embeddings.patch_embedding.",
    "visual.trunk.pos_embed": "vision_model.embeddings.position_embedding.weight",
    "visual.trunk.blocks.": "vision_model.encoder.layers.",
    "visual.trunk.norm.": "vision_model.post_layernorm.",
    "visual.trunk.attn_pool.latent": "vision_model.head.probe",
    "visual.trunk.attn_pool.proj.": "vision_model.head.attention.out_proj.",
    "visual.trunk.attn_pool.norm.": "vision_model.head.layernorm.",
    "visual.trunk.attn_pool.mlp.": "vision_model.head.mlp.",
    "text.token_embedding.": "text_model.embeddings.token_embedding.",
    "text.positional_embedding": "text_model.embeddings.position_embedding.weight",
    "text.transformer.resblocks.": "text_model.encoder.layers.",
    "text.ln_final.": "text_model.final_layer_norm.",
    "text.text_projection.": "text_model.head.",
}
_LAYERS: Final = {
    ".norm1.": ".layer_norm1.",
    ".norm2.": ".layer_norm2.",
    ".ln_1.": ".layer_norm1.",
    ".ln_2.": ".layer_norm2.",
    ".mlp.c_fc.": ".mlp.fc1.",
    ".mlp.c_proj.": ".mlp.fc2.",
    ".attn.proj.": ".self_attn.out_proj.",
    ".attn.out_proj.": ".self_attn.out_proj.",
}
_JOINT: Final = re.compile(r"(.*layers\.\d+)\.attn\.(?:qkv\.|in_proj_)(weight|bias)")  # query, key and value, in order
_POOL: Final = "visual.trunk.attn_pool."
_POOLED: Final = "vision_model.head.attention.in_proj_"


def siglip_settings(model: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the settings of a SiglipModel for open_clip's `model_cfg`; None if it is another model."""
    vision, text = model.get("vision_cfg"), model.get("text_cfg")
    if not (isinstance(vision, dict) and isinstance(text, dict)) or not model.get("custom_text"):
        return None
    if set(model) - {"embed_dim", "init_logit_bias", "init_logit_scale", "custom_text", "vision_cfg", "text_cfg"}:
        return None
    named = _TIMM.fullmatch(str(vision.get("timm_model_name")))
    plain = set(vision) <= _VISION and (vision.get("timm_pool"), vision.get("timm_proj")) == ("map", "none")
    known = set(text) <= {*_TEXT_NEEDED, *_TEXT_FIXED, *_TEXT_OTHERS}
    fixed = all(text.get(name) == value for name, value in _TEXT_FIXED.items())
    numbers = [vision.get("image_size"), model.get("embed_dim"), *(text.get(name) for name in _TEXT_NEEDED)]
    if not (named and plain and known and fixed and all(isinstance(n, int) and n > 0 for n in numbers)):
        return None
    width, layers, heads, mlp, activation = _SIZES[named[1]]
    if width != model["embed_dim"]:
        return None
    approximate = dict(text.get("act_kwargs") or {}).get("approximate") == "tanh"
    return {
        "vision_config": {
            "hidden_size": width,
            "intermediate_size": mlp,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "image_size": vision["image_size"],
            "patch_size": int(named[2]),
            "hidden_act": activation,
        },
        "text_config": {
            **text_settings(text),
            "projection_size": model["embed_dim"],
            "hidden_act": "gelu_pytorch_tanh" if approximate else "gelu",
        },
    }


def text_settings(text: Mapping[str, Any]) -> dict[str, int]:
    """Return the size of a text tower as transformers names it, for open_clip's `text_cfg`."""
    return {
        "hidden_size": text["width"],
        "intermediate_size": int(text["width"] * text.get("mlp_ratio", 4)),
        "num_hidden_layers": text["layers"],
        "num_attention_heads": text["heads"],
        "vocab_size": text["vocab_size"],
        "max_position_embeddings": text["context_length"],
    }


def convert_siglip_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return open_clip's weights as SiglipModel names them; names that it does not know stay as they are."""
    converted: dict[str, Tensor] = {}
    for kind in ("weight", "bias"):  # of the pooling head, whose query is not beside key and value
        if {f"{_POOL}q.{kind}", f"{_POOL}kv.{kind}"} <= weights.keys():
            converted[_POOLED + kind] = torch.cat([weights[f"{_POOL}q.{kind}"], weights[f"{_POOL}kv.{kind}"]])
    for name, weight in weights.items():
        if name.startswith((f"{_POOL}q.", f"{_POOL}kv.")):
            continue
        place = _renamed(name)
        if joint := _JOINT.fullmatch(place):
            for part, third in zip("qkv", weight.chunk(3), strict=True):
                converted[f"{joint[1]}.self_attn.{part}_proj.{joint[2]}"] = third.contiguous()
            continue
        bare = name == "visual.trunk.pos_embed"  # (1, N, D)
        scalar = name in ("logit_scale", "logit_bias")  # ()
        converted[place] = weight[0].contiguous() if bare else weight.reshape(1) if scalar else weight
    return converted


def _renamed(name: str) -> str:
    for theirs, ours in _NAMES.items():
        if name.startswith(theirs):
            name = ours + name.removeprefix(theirs)
            break
    for theirs, ours in _LAYERS.items():
        name = name.replace(theirs, ours)
    return name

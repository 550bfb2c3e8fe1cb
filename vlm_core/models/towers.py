"""Vision towers exchanged between families, whose blocks are the same under other names.

CLIP and GIT have the same tower. BLIP's has one projection for q, k and v, and no norm before its blocks.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlm_core.catalogue.exposure import Exposure
from vlm_core.errors import UserError
from vlm_core.models.checkpoints import AvailableCheckpoint, find_checkpoint
from vlm_core.models.clip import pooling_of
from vlm_core.models.pretrained import load_pretrained
from vlm_core.models.shipped import read_exposure

Tower = dict[str, Tensor]


@torch.no_grad()
def load_vision_tower(hf: Any, folder: Path, pixels: Tensor) -> Exposure | None:
    """Load the vision tower of the CLIP model in `folder` into a CLIP, BLIP or GIT model; return the tower's exposure.

    `pixels` (B, 3, S, S) are examples of the input to come. Raise UserError if the folder holds no CLIP model, or one
    whose tower has another shape or pools in another way.
    """
    from transformers import CLIPModel

    checkpoint = find_checkpoint(str(folder.expanduser().resolve()))
    assert isinstance(checkpoint, AvailableCheckpoint)
    clip = load_pretrained(checkpoint, CLIPModel)[0]
    _require_pooling(folder, pooling_of(clip), hf)
    source: Any = clip.vision_model
    target = hf.git.image_encoder.vision_model if hasattr(hf, "git") else hf.vision_model
    tower, own = dict(source.state_dict()), target.state_dict()
    if "encoder.layers.0.self_attn.qkv.weight" in own:
        tower = clip_tower_as_blip(tower, source.embeddings(pixels))
    different = sorted(
        name
        for name in own.keys() | tower.keys()
        if name not in own or name not in tower or own[name].shape != tower[name].shape
    )
    if different:
        raise UserError(
            f"tower={folder} has another shape than the model's vision tower ({different[0]}): give a CLIP model of "
            "the same width, blocks, patches and input size."
        )
    target.load_state_dict(tower)
    return read_exposure(checkpoint)


def _require_pooling(folder: Path, pooling: str, hf: Any) -> None:
    """Raise UserError if the tower in the folder does not pool as the model does that it is to start."""
    own = pooling_of(hf)
    if pooling == own:
        return
    kind = str(hf.config.model_type)
    instead = f"add pooling={pooling}, or give" if kind == "clip" else "give"
    raise UserError(
        f"tower={folder} was pretrained with pooling={pooling}, and model={kind} reads with pooling={own}: {instead} "
        "another tower."
    )


def clip_tower_as_blip(clip: Tower, embedded: Tensor) -> Tower:
    """Return the weights of CLIP's tower under BLIP's names; `embedded` (B, N, D) is the input of CLIP's first norm.

    BLIP has no norm before its blocks. A norm is linear except for the division by each token's standard deviation.
    With the mean deviation over the examples (of the class token, and of the patches) in its place, the norm folds
    into class token, patch embedding and position embeddings.
    """
    gain, shift = clip["pre_layrnorm.weight"], clip["pre_layrnorm.bias"]
    deviation = embedded.std(dim=2, correction=0)  # (B, N)
    of_class, of_patches = deviation[:, 0].mean(), deviation[:, 1:].mean()

    def fold(vectors: Tensor, scale: Tensor) -> Tensor:  # (..., D)
        return gain * (vectors - vectors.mean(dim=-1, keepdim=True)) / scale

    patches = clip["embeddings.patch_embedding.weight"]  # (D, 3, P, P)
    positions = clip["embeddings.position_embedding.weight"]  # (N, D)
    first = fold(clip["embeddings.class_embedding"] + positions[0], of_class) + shift
    others = fold(positions[1:], of_patches) + shift
    blip = {
        "embeddings.class_embedding": torch.zeros_like(first)[None, None],
        "embeddings.position_embedding": torch.cat([first[None], others])[None],
        "embeddings.patch_embedding.weight": fold(patches.movedim(0, -1), of_patches).movedim(-1, 0),
        "embeddings.patch_embedding.bias": torch.zeros_like(shift),
    }
    for name, weight in clip.items():
        if not name.startswith(("embeddings.", "pre_layrnorm.")) and ".k_proj." not in name and ".v_proj." not in name:
            blip[name.replace(".out_proj.", ".projection.").replace(".q_proj.", ".qkv.")] = (
                torch.cat([clip[name.replace(".q_proj.", f".{part}_proj.")] for part in "qkv"])
                if ".q_proj." in name
                else weight
            )
    return blip

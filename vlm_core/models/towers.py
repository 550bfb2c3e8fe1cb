"""A vision tower that starts from another family's: the three have the same blocks under other names.

CLIP and GIT build the same tower. BLIP's has one projection for query, key and value, and no norm before its blocks.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlm_core.catalogue.exposure import Exposure
from vlm_core.errors import UserError
from vlm_core.models.checkpoints import FoundCheckpoint, find_checkpoint, load_pretrained
from vlm_core.models.shipped import read_exposure

Tower = dict[str, Tensor]


@torch.no_grad()
def take_over_tower(hf: Any, folder: Path, pixels: Tensor) -> Exposure | None:
    """What the tower has seen; the CLIP, BLIP or GIT model then has the vision tower of the CLIP model in `folder`.

    `pixels` (B, 3, S, S) are examples of what it will see.

    Raises UserError when the folder holds no CLIP model, or one whose tower has another shape.
    """
    from transformers import CLIPModel

    found = find_checkpoint(str(folder.expanduser().resolve()))
    assert isinstance(found, FoundCheckpoint)
    giver = load_pretrained(found, CLIPModel)[0].vision_model
    taker = hf.git.image_encoder.vision_model if hasattr(hf, "git") else hf.vision_model
    tower, own = dict(giver.state_dict()), taker.state_dict()
    if "encoder.layers.0.self_attn.qkv.weight" in own:
        tower = as_blip(tower, giver.embeddings(pixels))
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
    taker.load_state_dict(tower)
    return read_exposure(found)


def as_blip(clip: Tower, embedded: Tensor) -> Tower:
    """The weights of CLIP's tower under BLIP's names; `embedded` (B, N, D) is what CLIP's first norm gets of examples.

    BLIP has no norm before its blocks. All of a norm is linear but the division by each token's deviation: with the
    mean deviation of the examples' class tokens and patches, it folds into class token, patches and positions.
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

"""Position embeddings for other input sizes, so that one checkpoint serves every `image_size`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from vlm_core.errors import UserError


def resize_input(hf: Any, image_size: int) -> None:
    """Change the input size of CLIP, BLIP or GIT to S x S pixels in place, by bicubic interpolation of its positions.

    The config is updated too, so the model is saved and loaded with the new size. Hugging Face's own interpolation
    gives the same. Raise UserError if the size is not a multiple of the patch size.
    """
    config = hf.config.vision_config
    if image_size == config.image_size:
        return
    if image_size % config.patch_size:
        raise UserError(
            f"image_size={image_size} is not a multiple of this model's patch of {config.patch_size} pixels."
        )
    embeddings = _vision_embeddings(hf)
    side = image_size // config.patch_size
    table = embeddings.position_embedding
    if isinstance(table, nn.Embedding):  # CLIP and GIT
        weight = _interpolate(table.weight.data, side)
        embeddings.position_embedding = nn.Embedding(len(weight), weight.shape[1], _weight=weight)
        embeddings.position_ids = torch.arange(len(weight)).expand(1, -1)
    else:  # BLIP: a bare parameter (1, 1 + N, D)
        embeddings.position_embedding = nn.Parameter(_interpolate(table.data[0], side)[None])
    embeddings.image_size = config.image_size = image_size
    embeddings.num_patches = side**2
    embeddings.num_positions = side**2 + 1
    if hf.config.model_type == "git":  # it separates image from text tokens by their number
        for block in hf.git.encoder.layer:
            block.attention.self.image_patch_tokens = side**2 + 1


def _vision_embeddings(hf: Any) -> Any:
    return hf.git.image_encoder.vision_model.embeddings if hf.config.model_type == "git" else hf.vision_model.embeddings


def _interpolate(table: Tensor, side: int) -> Tensor:
    """Return positions (1 + side * side, D) of a table (1 + n * n, D); both start with the class token's."""
    old = round((len(table) - 1) ** 0.5)
    grid = table[1:].reshape(1, old, old, -1).permute(0, 3, 1, 2)
    grid = interpolate(grid, size=(side, side), mode="bicubic", align_corners=False)
    return torch.cat((table[:1], grid.permute(0, 2, 3, 1).reshape(side * side, -1)))

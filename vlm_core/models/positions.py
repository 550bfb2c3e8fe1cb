"""Position embeddings for other input sizes, so that one checkpoint serves every `image_size`."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from vlm_core.errors import UserError
from vlm_core.models.vision import TOWERS, Convolutional

_USUAL_SIZE: Final = 224
_SMALLEST: Final = 32  # convolutional networks halve their input five times


def input_size(hf: Any) -> int:
    """Return the pixels per side of a model's input."""
    size = getattr(_vision_config(hf), "image_size", _USUAL_SIZE)  # ResNet states none until it is resized
    return int(size[0] if isinstance(size, list | tuple) else size)


def patch_size(hf: Any) -> int:
    """Return the pixels per side of a model's patches; 1 for convolutional networks, whose input has any size."""
    if _is_convolutional(hf):
        return 1
    size = _vision_config(hf).patch_size
    return int(size[0] if isinstance(size, list | tuple) else size)


def resize_input(hf: Any, image_size: int) -> None:
    """Change a model's input size to S x S pixels in place, by bicubic interpolation of its positions, if it has any.

    The config is updated too, so the model is saved and loaded with the new size. Hugging Face's own interpolation
    gives the same. Raise UserError if the size is not a multiple of the patch size, or too small.
    """
    if image_size == input_size(hf):
        return
    patch = patch_size(hf)
    if image_size % patch:
        raise UserError(f"image_size={image_size} is not a multiple of this model's patch of {patch} pixels.")
    if _is_convolutional(hf) and image_size < _SMALLEST:
        raise UserError(f"image_size={image_size} is too small for this model: choose {_SMALLEST} or more.")
    embeddings, side = _vision_embeddings(hf), image_size // patch
    old_side = input_size(hf) // patch
    table = getattr(embeddings, "position_embedding", None)
    if isinstance(table, nn.Embedding):  # CLIP, GIT and SigLIP
        weight = _interpolate(table.weight.data, old_side, side)
        embeddings.position_embedding = nn.Embedding(len(weight), weight.shape[1], _weight=weight)
        embeddings.position_ids = torch.arange(len(weight)).expand(1, -1)
    elif table is not None:  # BLIP: a bare parameter (1, 1 + N, D)
        embeddings.position_embedding = nn.Parameter(_interpolate(table.data[0], old_side, side)[None])
    elif (table := getattr(embeddings, "position_embeddings", None)) is not None:  # ViT and DINOv2: the same
        antialias = hf.config.model_type == "dinov2_with_registers"
        resized = _interpolate(table.data[0], old_side, side, antialias=antialias)
        embeddings.position_embeddings = nn.Parameter(resized[None])
    _vision_config(hf).image_size = image_size
    if hasattr(embeddings, "num_positions"):
        embeddings.image_size, embeddings.num_patches = image_size, side**2
        embeddings.num_positions += side**2 - old_side**2
    elif hasattr(embeddings, "image_size"):  # ViT
        embeddings.image_size = embeddings.patch_embeddings.image_size = (image_size, image_size)
        embeddings.patch_embeddings.num_patches = side**2
    if hf.config.model_type == "git":  # it separates image from text tokens by their number
        for block in hf.git.encoder.layer:
            block.attention.self.image_patch_tokens = side**2 + 1


def _vision_config(hf: Any) -> Any:
    return getattr(hf.config, "vision_config", hf.config)


def _is_convolutional(hf: Any) -> bool:
    return isinstance(TOWERS.get(hf.config.model_type), Convolutional)


def _vision_embeddings(hf: Any) -> Any:
    if hf.config.model_type in TOWERS:
        return getattr(hf, "embeddings", None)
    return hf.git.image_encoder.vision_model.embeddings if hf.config.model_type == "git" else hf.vision_model.embeddings


def _interpolate(table: Tensor, old: int, side: int, antialias: bool = False) -> Tensor:
    """Return positions (C + side * side, D) of a table (C + old * old, D); C is 1 with a class token, else 0."""
    first = len(table) - old**2
    grid = table[first:].reshape(1, old, old, -1).permute(0, 3, 1, 2)
    grid = interpolate(grid, size=(side, side), mode="bicubic", align_corners=False, antialias=antialias)
    return torch.cat((table[:first], grid.permute(0, 2, 3, 1).reshape(side * side, -1)))

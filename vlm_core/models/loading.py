"""Weights to start from: a checkpoint's, the tiny pretrained ones that come with this package, or tiny random ones."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch

from vlm_core.catalogue.exposure import Exposure
from vlm_core.errors import UserError
from vlm_core.models.categoriser import ADAPTERS
from vlm_core.models.checkpoints import FoundCheckpoint, find_checkpoint, load_pretrained
from vlm_core.models.positions import resize_input
from vlm_core.models.shipped import read_exposure, shipped_weights
from vlm_core.models.tiny import build_tiny

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PublishedModel:
    """A published model: its hub name, and the input size that suits pictures of 60x80 pixels."""

    checkpoint: str
    image_size: int  # pixels a side; BLIP's own 384 costs 3.9 times as much and shows it nothing new


SIZES = {
    "clip": PublishedModel("openai/clip-vit-base-patch32", 224),
    "clip-large": PublishedModel("openai/clip-vit-large-patch14", 224),
    "blip": PublishedModel("Salesforce/blip-image-captioning-base", 224),
    "blip-large": PublishedModel("Salesforce/blip-image-captioning-large", 224),
    "git": PublishedModel("microsoft/git-base", 224),
    "git-large": PublishedModel("microsoft/git-large", 224),
}


@dataclass(frozen=True)
class LoadedWeights:
    """A family's weights in Hugging Face form, and where they come from."""

    hf: Any
    tokenizer: Any
    source: str  # e.g. "hub:openai/clip-vit-base-patch32", "folder:...", "shipped:clip", "tiny-random"
    pretrained: bool
    exposure: Exposure | None  # what pretraining saw, where it is known


def load_weights(
    model: str,
    *,
    checkpoint: str,
    weights: Literal["auto", "pretrained", "tiny", "tiny-random"],
    image_size: int,
    texts: Iterable[str],
    seed: int,
) -> LoadedWeights:
    """The weights that the settings ask for; `image_size` 0 means the model's own.

    `texts` are what the tokenizer of random weights is trained on.

    `auto` falls back on the shipped tiny weights when the checkpoint cannot be had within seconds, and says so.
    Raises UserError when `pretrained` cannot be had, or the checkpoint is unusable.
    """
    family = model.split("-")[0]
    if weights == "tiny-random":
        torch.manual_seed(seed)
        hf, tokenizer = build_tiny(family, texts)
        resize_input(hf, image_size or hf.config.vision_config.image_size)
        return LoadedWeights(hf, tokenizer, "tiny-random", pretrained=False, exposure=None)
    found = None if weights == "tiny" else _find(checkpoint or SIZES[model].checkpoint, weights)
    source = f"{found.source}:{found.name}" if found else f"shipped:{family}"
    own_size = not found or bool(checkpoint)
    found = found or shipped_weights(family)
    import transformers

    hf, tokenizer = load_pretrained(found, getattr(transformers, ADAPTERS[family].hf_class))
    own = int(hf.config.vision_config.image_size)
    wanted = image_size or (own if own_size else SIZES[model].image_size)
    resize_input(hf, wanted)
    if wanted != own:
        logger.info(
            f"{found.name} sees {wanted} pixels a side instead of its {own}: its position embeddings are interpolated."
        )
    return LoadedWeights(hf, tokenizer, source, pretrained=True, exposure=read_exposure(found))


def _find(name: str, weights: str) -> FoundCheckpoint | None:
    """The checkpoint; None when `auto` may go on without it."""
    found = find_checkpoint(name)
    if isinstance(found, FoundCheckpoint):
        return found
    if weights == "pretrained":
        raise UserError(found.sentence())
    logger.warning(f"{found.name} cannot be had: {found.reason}.")
    logger.warning("the tiny pretrained weights that come with this are taken: they stand in for the checkpoint.")
    return None

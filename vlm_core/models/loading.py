"""Initial weights: a checkpoint's, the tiny pretrained ones shipped with this package, or tiny random ones."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from vlm_core.catalogue.exposure import Exposure
from vlm_core.config.families import FAMILIES, PUBLISHED_MODELS, family_of
from vlm_core.errors import UserError
from vlm_core.models.categoriser import ADAPTERS, model_class
from vlm_core.models.checkpoint_forms import read_json
from vlm_core.models.checkpoints import CONFIG, AvailableCheckpoint, fetch_checkpoint, find_checkpoint
from vlm_core.models.positions import input_size, patch_size, resize_input
from vlm_core.models.preprocessing import read_preprocessing
from vlm_core.models.pretrained import load_pretrained
from vlm_core.models.shipped import read_exposure, shipped_weights
from vlm_core.models.tiny import build_tiny
from vlm_core.pixels.views import DEFAULT, Preprocessing, Resize

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadedWeights:
    """A family's Hugging Face model and tokenizer, and where its weights come from."""

    hf: Any
    tokenizer: Any
    source: str  # e.g. "hub:openai/clip-vit-base-patch32", "folder:...", "shipped:clip", "tiny-random"
    pretrained: bool
    exposure: Exposure | None  # products seen in pretraining, if known
    commit: str = ""  # on the hub, if they come from there
    preprocessing: Preprocessing = DEFAULT  # the checkpoint's own, if it states one, but for its way to resize
    own_resize: Resize = "stretch"

    def resized_as(self, resize: str, mode: str) -> Preprocessing:
        """Return the preprocessing with that `resize`; auto: the checkpoint's own for zero-shot, else stretch."""
        automatic = self.own_resize if mode == "zero-shot" else "stretch"
        return replace(self.preprocessing, resize=automatic if resize == "auto" else resize)  # type: ignore[arg-type]


def load_weights(
    model: str,
    *,
    checkpoint: str,
    weights: Literal["auto", "pretrained", "tiny", "tiny-random"],
    image_size: int,
    texts: Iterable[str],
    seed: int,
    commit: str = "",
) -> LoadedWeights:
    """Return the weights that the settings name, for input of `image_size` pixels per side (0: the model's own).

    `texts` train the tokenizer of random weights. `commit` asks the hub for that commit of the checkpoint. `auto` falls
    back to the shipped tiny weights, with a warning, if the checkpoint is not available within seconds. Raise UserError
    if `pretrained` weights are not available, or the checkpoint is unusable.
    """
    family = family_of(model)
    if weights == "tiny-random":
        torch.manual_seed(seed)
        hf, tokenizer = build_tiny(family, texts)
        resize_input(hf, image_size or input_size(hf))
        return LoadedWeights(hf, tokenizer, "tiny-random", pretrained=False, exposure=None)
    name = checkpoint or PUBLISHED_MODELS[model].checkpoint
    has_language = FAMILIES[family].has_language
    published = None if weights == "tiny" else _find(name, commit, weights, has_language)
    source = f"{published.source}:{published.name}" if published else f"shipped:{family}"
    keep_size = not published or bool(checkpoint)
    available = published or shipped_weights(family)
    folder = fetch_checkpoint(available)
    available = replace(
        available, source="cache" if available.source == "hub" else available.source, reference=str(folder)
    )
    hf_class, settings = model_class(family, read_json(fetch_checkpoint(available.base or available) / CONFIG))
    hf, tokenizer = load_pretrained(available, hf_class, has_language=has_language, **settings)
    preprocessing, stated = _preprocessing(available, ADAPTERS[family].preprocessing)
    own = input_size(hf)
    if stated % patch_size(hf):
        logger.warning(f"{available.name} asks for {stated} pixels per side, which its patches do not divide: {own}.")
        stated = 0
    size = image_size or ((stated or own) if keep_size else PUBLISHED_MODELS[model].image_size)
    resize_input(hf, size)
    if size != own:
        logger.info(
            f"{available.name} runs at {size} pixels per side instead of its {own}: "
            "position embeddings, if it has any, are interpolated."
        )
    exposure = read_exposure(available) or (read_exposure(available.base) if available.base else None)
    plain = replace(preprocessing, resize="stretch")
    commit = available.revision or ""
    return LoadedWeights(hf, tokenizer, source, True, exposure, commit, plain, preprocessing.resize)


def _preprocessing(checkpoint: AvailableCheckpoint, own: Preprocessing) -> tuple[Preprocessing, int]:
    """Return a local checkpoint's preprocessing, or its base's, or the family's own, and its input's side (0: none)."""
    places = [checkpoint, *([checkpoint.base] if checkpoint.base else [])]
    read = (read_preprocessing(fetch_checkpoint(place)) for place in places)
    return next((found for found in read if found), (own, 0))


def _find(name: str, commit: str, weights: str, has_language: bool) -> AvailableCheckpoint | None:
    """Return the checkpoint; None if `auto` may fall back to the shipped weights. Raise UserError for `pretrained`."""
    checkpoint = find_checkpoint(name, commit=commit, has_language=has_language)
    if isinstance(checkpoint, AvailableCheckpoint):
        return checkpoint
    if weights == "pretrained":
        raise UserError(checkpoint.message())
    logger.warning(f"{checkpoint.name} is not available: {checkpoint.reason}.")
    logger.warning("The tiny pretrained weights shipped with this package are used instead of the checkpoint.")
    return None

"""A categoriser to start from: a checkpoint of the hub or of a folder, or tiny weights from nothing; and a saved one."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vlm_core.errors import UserError
from vlm_core.models.categoriser import ADAPTERS, Categoriser, Description, VisionLanguageCategoriser


@dataclass(frozen=True)
class Size:
    """A published model: its hub name, and the input size that suits pictures of 60x80 pixels."""

    checkpoint: str
    image_size: int  # pixels a side; BLIP's own 384 costs 3.9 times as much and shows it nothing new


SIZES = {
    "clip": Size("openai/clip-vit-base-patch32", 224),
    "clip-large": Size("openai/clip-vit-large-patch14", 224),
    "blip": Size("Salesforce/blip-image-captioning-base", 224),
    "blip-large": Size("Salesforce/blip-image-captioning-large", 224),
    "git": Size("microsoft/git-base", 224),
    "git-large": Size("microsoft/git-large", 224),
}


@dataclass(frozen=True)
class Weights:
    """A family's weights in Hugging Face form, and where they come from."""

    hf: Any
    tokenizer: Any
    source: str  # e.g. "hub:openai/clip-vit-base-patch32@3d74acf", "folder:...", "tiny"
    pretrained: bool


def load_categoriser(folder: Path) -> Categoriser:
    """The categoriser that was saved in a folder, whatever its family. Raises UserError when it holds none."""
    path = folder / "categoriser.json"
    if not path.exists():
        raise UserError(f"{folder} holds no categoriser (no categoriser.json): give the folder of a saved model.")
    if json.loads(path.read_text())["family"] == "baseline":
        from vlm_core.models.baseline import Baseline

        return Baseline.load(folder)
    return VisionLanguageCategoriser.load(folder)

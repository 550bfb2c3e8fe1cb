"""The tiny pretrained weights shipped with this package: how they are written, verified and loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from vlm_core.catalogue.exposure import Exposure
from vlm_core.config.families import FAMILIES
from vlm_core.errors import UserError
from vlm_core.models.checkpoints import AvailableCheckpoint, find_checkpoint
from vlm_core.models.checksums import changed_file
from vlm_core.models.positions import input_size
from vlm_core.models.preprocessing import write_preprocessing
from vlm_core.models.pretrained import quiet_transformers
from vlm_core.pixels.views import Preprocessing

FOLDER: Final = Path(__file__).parent / "weights"


def write_weights(hf: Any, tokenizer: Any, exposure: Exposure, preprocessing: Preprocessing, folder: Path) -> None:
    """Write a model with all that belongs to it in Hugging Face's format; round the model's weights to fp16."""
    folder.mkdir(parents=True, exist_ok=True)
    with quiet_transformers():
        hf.half().save_pretrained(folder)
    hf.float()
    tokenizer.save_pretrained(folder)
    write_preprocessing(preprocessing, input_size(hf), folder)
    exposure.write(folder)


def shipped_weights(family: str, folder: Path = FOLDER) -> AvailableCheckpoint:
    """Return a family's shipped weights. Raise UserError if a file is missing or not the one that was shipped."""
    path = folder / family
    if not FAMILIES[family].has_tiny_weights:
        included = ", ".join(name for name, other in FAMILIES.items() if other.has_tiny_weights)
        raise UserError(
            f"no tiny weights of {family} are included, only of {included}: name a checkpoint= that is on this "
            "machine, or use weights=tiny-random."
        )
    try:
        changed = changed_file(path)
    except (OSError, ValueError) as error:
        raise UserError(
            f"The tiny weights in {path} cannot be read ({error}): get them again with "
            "`git checkout -- vlm_core/models/weights`, or use weights=tiny-random."
        ) from None
    if changed:
        raise UserError(
            f"{changed} in {path} is not the file that was shipped: get it again with "
            "`git checkout -- vlm_core/models/weights`, or use weights=tiny-random."
        )
    checkpoint = find_checkpoint(str(path))
    assert isinstance(checkpoint, AvailableCheckpoint)
    return checkpoint


def read_exposure(checkpoint: AvailableCheckpoint) -> Exposure | None:
    """Return the exposure in the file beside the weights, None without one. Raise UserError if the file is broken."""
    if checkpoint.source == "hub":
        return None
    try:
        return Exposure.read(Path(checkpoint.reference))
    except ValueError as error:
        raise UserError(
            f"{checkpoint.name}: {error}. Remove that file only if you know what the weights were pretrained on."
        ) from None

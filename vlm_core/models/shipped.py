"""The tiny pretrained weights shipped with this package: how they are written, verified and loaded."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Final

from vlm_core.atomic import write_atomically
from vlm_core.catalogue.exposure import Exposure
from vlm_core.errors import UserError
from vlm_core.models.checkpoints import AvailableCheckpoint, find_checkpoint, quiet_transformers

FOLDER: Final = Path(__file__).parent / "weights"
CHECKSUMS: Final = "checksums.json"


def write_weights(hf: Any, tokenizer: Any, exposure: Exposure, folder: Path) -> None:
    """Write a model, its tokenizer and its exposure in Hugging Face's format; round the model's weights to fp16."""
    folder.mkdir(parents=True, exist_ok=True)
    with quiet_transformers():
        hf.half().save_pretrained(folder)
    hf.float()
    tokenizer.save_pretrained(folder)
    exposure.write(folder)


def write_checksums(folder: Path) -> None:
    """Write `checksums.json`: SHA-256 of every other file."""
    sums = {path.name: _digest(path) for path in sorted(folder.iterdir()) if path.name != CHECKSUMS}
    write_atomically(folder / CHECKSUMS, lambda file: file.write(json.dumps(sums, indent=2).encode()))


def shipped_weights(family: str, folder: Path = FOLDER) -> AvailableCheckpoint:
    """Return a family's shipped weights. Raise UserError if a file is missing or not the one that was shipped."""
    path = folder / family
    try:
        sums: dict[str, str] = json.loads((path / CHECKSUMS).read_text(encoding="utf-8"))
        changed = [name for name, digest in sums.items() if _digest(path / name) != digest]
    except (OSError, ValueError) as error:
        raise UserError(
            f"The tiny weights in {path} cannot be read ({error}): get them again with "
            "`git checkout -- vlm_core/models/weights`, or use weights=tiny-random."
        ) from None
    if changed:
        raise UserError(
            f"{changed[0]} in {path} is not the file that was shipped: get it again with "
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


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()

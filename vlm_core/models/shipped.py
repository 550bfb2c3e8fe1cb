"""The tiny pretrained weights that come with this package: how they are written, checked and found."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Final

from vlm_core.atomic import write_atomically
from vlm_core.catalogue.exposure import Exposure
from vlm_core.errors import UserError
from vlm_core.models.checkpoints import FoundCheckpoint, find_checkpoint, quiet_transformers

FOLDER: Final = Path(__file__).parent / "weights"
CHECKSUMS: Final = "checksums.json"


def write_weights(hf: Any, tokenizer: Any, exposure: Exposure, folder: Path) -> None:
    """Write a model (fp16 safetensors), its tokenizer and what it saw, in Hugging Face's format; it is rounded here."""
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


def shipped_weights(family: str, folder: Path = FOLDER) -> FoundCheckpoint:
    """A family's shipped weights. Raises UserError when a file is absent or is not what was shipped."""
    path = folder / family
    try:
        sums: dict[str, str] = json.loads((path / CHECKSUMS).read_text(encoding="utf-8"))
        changed = [name for name, digest in sums.items() if _digest(path / name) != digest]
    except (OSError, ValueError) as error:
        raise UserError(
            f"The tiny weights in {path} cannot be read ({error}): get them again with "
            "`git checkout -- vlm_core/models/weights`, or take weights=tiny-random."
        ) from None
    if changed:
        raise UserError(
            f"{changed[0]} in {path} is not the file that was shipped: get it again with "
            "`git checkout -- vlm_core/models/weights`, or take weights=tiny-random."
        )
    found = find_checkpoint(str(path))
    assert isinstance(found, FoundCheckpoint)
    return found


def read_exposure(found: FoundCheckpoint) -> Exposure | None:
    """What the weights' pretraining saw, where a file beside them says so. Raises UserError when it cannot be read."""
    if found.source == "hub":
        return None
    try:
        return Exposure.read(Path(found.reference))
    except ValueError as error:
        raise UserError(
            f"{found.name}: {error}. Remove that file only if you know what the weights have seen."
        ) from None


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()

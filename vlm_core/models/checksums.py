"""Checksums of a folder of weights: written with them, and verified before they are read."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Final

from vlm_core.errors import UserError
from vlm_core.files.atomic import write_atomically

CHECKSUMS: Final = "checksums.json"


def digest_of(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hex digits. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_checksums(folder: Path) -> None:
    """Write `checksums.json`: the SHA-256 of every other file in the folder and below, by its path from there."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path != folder / CHECKSUMS)
    sums = {path.relative_to(folder).as_posix(): digest_of(path) for path in files}
    write_atomically(folder / CHECKSUMS, lambda file: file.write(json.dumps(sums, indent=2).encode()))


def changed_file(folder: Path) -> str:
    """Return the first file that is not the one in `checksums.json`, or "". Raises OSError or ValueError."""
    sums: dict[str, str] = json.loads((folder / CHECKSUMS).read_text(encoding="utf-8"))
    if not isinstance(sums, dict):
        raise ValueError(f"{CHECKSUMS} is not a JSON object")
    changed = [name for name, digest in sums.items() if digest_of(folder / name) != digest]
    return changed[0] if changed else ""


def verify_checksums(folder: Path) -> None:
    """Raise UserError if the folder has a `checksums.json` that one of its files does not fit; others are accepted."""
    if not (folder / CHECKSUMS).exists():
        return
    try:
        problem = changed_file(folder)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"The weights in {folder} cannot be verified ({error}): copy the folder again from where it came from."
        ) from None
    if problem:
        raise UserError(
            f"{problem} in {folder} is not the file that was written with its {CHECKSUMS}: copy the folder again from "
            f"where it came from; if you changed the file yourself, delete {CHECKSUMS}."
        )

"""Artifacts that a store keeps in files of this machine."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from urllib.parse import unquote, urlsplit

from vlm_core.files import atomic


def local_path(location: str) -> Path | None:
    """Return the folder of an address of artifacts; None where they are in a bucket or on a server."""
    parts = urlsplit(location)
    if parts.scheme not in ("", "file"):
        return None
    return Path(unquote(parts.path) if parts.scheme else location)


def synchronise_artifacts(location: str) -> None:
    """Wait until the disk has the artifacts there: MLflow copies them without waiting, and power may be lost."""
    if path := local_path(location):
        with suppress(FileNotFoundError):  # none was logged
            atomic.synchronise(path)

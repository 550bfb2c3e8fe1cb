"""Copies of a training's checkpoints at an address that several machines reach, such as s3://bucket/checkpoints."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from vlm_core.errors import UserError, redact
from vlm_core.files.addresses import open_address
from vlm_core.files.atomic import building, write_atomically
from vlm_core.training.checkpoint import POSITION, TrainingState, state_of

logger = logging.getLogger(__name__)

_PHASES: Final = ("", "head")  # folders of a run's checkpoints


class CheckpointCopies:
    """A run's checkpoints at an address; without one, every method does nothing.

    As on the disk, a file that names the others is replaced last, so that whoever reads finds a whole epoch. A file
    that is there already may be another attempt's at the same epoch: only what was stored here is not stored again.
    """

    def __init__(self, address: str, run_id: str) -> None:
        self._address = f"{address.rstrip('/')}/{run_id}" if address else ""
        self._stored: dict[str, bytes] = {}  # the positions of whole epochs, by their folders there

    def fetch(self, folder: Path) -> None:
        """Bring into `folder` what is later there than here. Raises UserError where the address cannot be read."""
        if not self._address:
            return
        with self._errors("read from"):
            files, base = open_address(self._address)
            for phase in _PHASES:
                self._fetch_phase(files, folder / phase, f"{base}/{phase}".rstrip("/"))

    def store(self, folder: Path) -> None:
        """Copy what an epoch has left in `folder`. Where that fails the training continues, and says so."""
        if not self._address:
            return
        try:
            with self._errors("written to"):
                files, base = open_address(self._address)
                for phase in _PHASES:
                    self._store_phase(files, folder / phase, f"{base}/{phase}".rstrip("/"))
        except UserError as error:
            logger.warning(f"{error} The training continues, and could be resumed elsewhere from an earlier epoch.")

    def remove(self) -> None:
        """Remove the copies of a training that has ended."""
        if self._address:
            with suppress(Exception):  # they are of no use and do no harm
                files, base = open_address(self._address)
                files.rm(base, recursive=True)

    def _fetch_phase(self, files: Any, here: Path, there: str) -> None:
        content = _read(files, f"{there}/{POSITION}")
        if content is None or state_of(content).epoch <= _epoch(here):
            return
        here.mkdir(parents=True, exist_ok=True)
        for name in _names(state_of(content)):
            with building(here / name) as partial:
                files.get_file(f"{there}/{name}", str(partial))
        write_atomically(here / POSITION, lambda file: file.write(content))
        logger.info(f"Checkpoint of epoch {state_of(content).epoch} fetched from {redact(self._address)}.")

    def _store_phase(self, files: Any, here: Path, there: str) -> None:
        position = here / POSITION
        if not position.exists():
            return
        content = position.read_bytes()
        stored = self._stored.get(there)
        if content == stored:
            return
        files.makedirs(there, exist_ok=True)
        names = _names(state_of(content))
        for name in names - (_names(state_of(stored)) if stored else set()):
            files.put_file(str(here / name), f"{there}/{name}.part")
            files.mv(f"{there}/{name}.part", f"{there}/{name}")
        files.pipe_file(f"{there}/{POSITION}.part", content)
        files.mv(f"{there}/{POSITION}.part", f"{there}/{POSITION}")
        self._stored[there] = content
        for entry in files.ls(there, detail=True):
            name = Path(str(entry["name"])).name
            if entry["type"] == "file" and name not in {*names, POSITION}:  # of a head phase, there is a folder
                files.rm_file(f"{there}/{name}")

    @contextmanager
    def _errors(self, done: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # each kind of address has its own
            reason = redact(f"{type(error).__name__}: {error}")
            raise UserError(
                f"shared_checkpoints={redact(self._address)} cannot be {done}: {reason}. Check the address and its "
                "credentials, or omit shared_checkpoints=."
            ) from error


def _read(files: Any, path: str) -> bytes | None:
    return bytes(files.cat_file(path)) if files.exists(path) else None


def _epoch(folder: Path) -> int:
    path = folder / POSITION
    return state_of(path.read_bytes()).epoch if path.exists() else 0


def _names(state: TrainingState) -> set[str]:
    return {f"best-{state.best_epoch}.safetensors", f"last-{state.epoch}.safetensors"}

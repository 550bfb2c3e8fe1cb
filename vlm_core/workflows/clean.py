"""List what killed commands left behind and what nothing needs any more, and remove it."""

from __future__ import annotations

import logging
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Final

from vlm_core.errors import UserError
from vlm_core.files.atomic import remove, temporary_folders_of_dead, unfinished_of_dead
from vlm_core.tracking.leftovers import StoreLeftovers, store_is_there
from vlm_core.training.feature_cache import idle_entries, remove_entry

logger = logging.getLogger(__name__)
# Where commands build files and folders, below the working directory and beside what is in it.
_PLACES: Final = (
    *("data/raw", "data/processed", "pretrained", "cache", "cache/*"),
    *("checkpoints", "checkpoints/*", "logs", "results"),
)
# Unfinished files of earlier versions do not name their process: they are left once nothing in them has changed.
_OF_EARLIER_VERSIONS: Final = {
    "data/processed": re.compile(r"\..+-[0-9a-f]{16}\.[a-z0-9_]{8}(\.part)?"),
    "data/raw": re.compile(r"\.sample\.[a-z0-9_]{8}(\.part)?"),
}
_SECONDS_UNCHANGED: Final = 24 * 60 * 60
_BEGUN: Final = (".packing", ".predicting")  # endings of folders beside the output of shard and predict
_RUN_ID: Final = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class Leftover:
    """Something that nobody needs: where it is, what it is, its size in bytes, and how it is removed."""

    place: str
    what: str
    bytes: int
    remove: Callable[[], object]
    path: Path | None = None  # None: in the store

    def is_removed(self) -> bool:
        """Remove it, and return whether it is gone. Raises UserError as the store does."""
        self.remove()
        return self.path is None or not self.path.exists()


@dataclass(frozen=True)
class RetainedFolders:
    """Folders that stay."""

    folders: list[Path]

    @property
    def bytes(self) -> int:
        """Their size on disk."""
        return sum(map(bytes_on_disk, self.folders))


@dataclass(frozen=True)
class Findings:
    """What can be removed, and what stays.

    Checkpoints stay of runs that run or can be resumed, and of those that the store lacks; so does what a command has
    packed or predicted so far, which it completes when it is repeated.
    """

    leftovers: list[Leftover]
    resumable: RetainedFolders
    unknown: RetainedFolders
    begun: RetainedFolders


def find_leftovers(root: Path, *, idle_days: float, to_remove: bool = False) -> Findings:
    """Return what is left below `root`, in the store and in the temporary folder; nothing is changed.

    Features that no run has used for `idle_days` are among it. `to_remove` opens the store to be written to. Raises
    UserError when the store cannot be used; of a folder that was moved or copied, nothing may be removed, because its
    store points to files of the old one.
    """
    store = StoreLeftovers(to_write=to_remove) if store_is_there() else None
    if store and (moved := store.moved()):
        if to_remove:
            raise UserError(moved)
        logger.warning(moved)
    checkpoints = [folder for folder in sorted(root.glob("checkpoints/*/")) if _RUN_ID.fullmatch(folder.name)]
    uses = {folder: store.checkpoint_use(folder.name) if store else "unknown" for folder in checkpoints}
    done = [folder for folder, use in uses.items() if use == "none"]
    idle = idle_entries(root / "cache", idle_days)
    paths = chain(
        ((path, "temporary files of a killed command") for path in _temporary_folders()),
        ((path, "unfinished, of a killed command") for path in _unfinished(root) if path.parent not in (*done, *idle)),
        ((path, "checkpoints of a run that has ended") for path in done),
    )
    leftovers = [_on_disk(root, path, what, partial(remove, path)) for path, what in paths]
    leftovers += [_on_disk(root, path, "features that no run uses", partial(remove_entry, path)) for path in idle]
    return Findings(
        leftovers + (list(_in_store(store)) if store else []),
        RetainedFolders([folder for folder, use in uses.items() if use == "resumable"]),
        RetainedFolders([folder for folder, use in uses.items() if use == "unknown"]),
        RetainedFolders([folder for ending in _BEGUN for folder in sorted(root.glob(f".*{ending}/"))]),
    )


def bytes_on_disk(path: Path) -> int:
    """Return what a file or a folder takes on its disk; links are not followed."""
    files = chain([path], path.rglob("*") if path.is_dir() and not path.is_symlink() else ())
    total = 0
    for file in files:
        with suppress(OSError):  # gone meanwhile, or not to be read
            total += file.lstat().st_blocks * 512
    return total


def _temporary_folders() -> list[Path]:
    """Return those of this user's killed commands, which lie beside the temporary folder of this one."""
    own = Path(tempfile.gettempdir())
    found = {*temporary_folders_of_dead(own), *temporary_folders_of_dead(own.parent)}
    return sorted(path for path in found if os.access(path, os.W_OK))


def _unfinished(root: Path) -> Iterator[Path]:
    for folder in (root, *(folder for place in _PLACES for folder in sorted(root.glob(f"{place}/")))):
        yield from unfinished_of_dead(folder)
    for place, name in _OF_EARLIER_VERSIONS.items():
        for path in sorted((root / place).glob(".*")):
            if name.fullmatch(path.name) and time.time() - _last_change(path) > _SECONDS_UNCHANGED:
                yield path


def _last_change(path: Path) -> float:
    changes = [path.lstat().st_mtime]
    for inner in path.rglob("*") if path.is_dir() else ():
        with suppress(OSError):
            changes.append(inner.lstat().st_mtime)
    return max(changes)


def _on_disk(root: Path, path: Path, what: str, remove: Callable[[], object]) -> Leftover:
    place = path.relative_to(root) if path.is_relative_to(root) else path
    return Leftover(str(place), what, bytes_on_disk(path), remove, path)


def _in_store(store: StoreLeftovers) -> Iterator[Leftover]:
    for unfinished in store.unfinished_models():
        place = f"model {unfinished.model.model_id}"
        yield Leftover(place, "not logged whole", unfinished.bytes, partial(store.delete, unfinished))
    for run in store.dead_runs():
        place = f"run {run.info.run_id}"
        yield Leftover(place, "RUNNING, but its process was killed: ends as KILLED", 0, partial(store.end, run))

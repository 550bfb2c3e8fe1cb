"""The frozen towers of the ablation: those that come with the platform, and models in folders."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from vlm_core.config.lists import split_list
from vlm_core.errors import UserError

if TYPE_CHECKING:
    from vlm_core.models.checkpoints import AvailableCheckpoint

KNOWN: Final = ("clip", "blip", "git", "random")  # random: CLIP's, untrained
_FAMILIES: Final = ("clip", "blip", "git")  # which have a class token, and read the names of categories


@dataclass(frozen=True)
class Tower:
    """A model in a folder whose vision tower is frozen."""

    folder: str
    family: str
    checksum: str  # of its files

    def check(self) -> None:
        """Raise UserError if the folder no longer holds the files that it had."""
        if _find(self.folder).checksum != self.checksum:
            raise _changed(self.folder)


def find_towers(text: str) -> dict[str, Tower | None]:
    """Return the towers that the setting names, each under the name that its cells have; None for one of KNOWN.

    A folder's tower has the folder's name. Raises UserError for what is neither, for a folder that holds no model of a
    family with a class token and language, and for two towers of one name.
    """
    towers: dict[str, Tower | None] = {}
    for word in split_list(text):
        if word in KNOWN:
            towers[word] = None
            continue
        folder = os.path.normpath(Path(word).expanduser().absolute())
        if not Path(folder).is_dir():
            raise UserError(
                f"towers={word} is not known: choose among {', '.join(KNOWN)}, or name a folder in Hugging Face's "
                "format."
            )
        name = _name_of(folder)
        same = towers.get(name)
        if name in KNOWN or (same and same.folder != folder):
            raise UserError(
                f"towers={word} has the name of another tower, {name}, and tables tell towers by their names: rename "
                "the folder."
            )
        towers[name] = same or _find(folder)
    if not towers:
        raise UserError(f"towers is empty: choose among {', '.join(KNOWN)}, or name a folder in Hugging Face's format.")
    return towers


def checksums_text(towers: Mapping[str, Tower]) -> str:
    """Return the checksums of towers in folders as text, which a study keeps."""
    return json.dumps({name: tower.checksum for name, tower in towers.items()})


def check_towers(towers: Mapping[str, Tower], kept: str) -> None:
    """Raise UserError if a tower is not the one of which a study keeps the checksum; "" keeps none."""
    checksums = json.loads(kept) if kept else {}
    for name, tower in towers.items():
        if checksums.get(name, tower.checksum) != tower.checksum:
            raise _changed(tower.folder)


def _changed(folder: str) -> UserError:
    return UserError(
        f"towers={folder} has other files than when the study began: put those back, or name another study with study=."
    )


def _name_of(folder: str) -> str:
    """Return the folder's name. Raises UserError for one that would not be readable in a table."""
    name = Path(folder).name
    if not name.isprintable() or not name.strip():
        raise UserError(f"towers={folder!r} has no name that can be printed: rename the folder.")
    return name


def _find(folder: str) -> Tower:
    """Return the tower in a folder. Raises UserError if there is none that the ablation can read."""
    from vlm_core.models.checkpoints import AvailableCheckpoint, find_checkpoint
    from vlm_core.models.pretrained import family_of_checkpoint

    try:
        checkpoint = find_checkpoint(folder)
    except UserError as error:
        raise UserError(str(error).replace("checkpoint=", "towers=")) from None
    assert isinstance(checkpoint, AvailableCheckpoint)
    family = family_of_checkpoint(checkpoint)
    if family not in _FAMILIES:
        raise UserError(
            f"towers={folder} is of {f'the family {family}' if family else 'an unknown family'}, and mechanisms read a "
            f"class token and the names of categories: name a folder of {', '.join(_FAMILIES)}."
        )
    return Tower(folder, family, _checksum(_files(checkpoint)))


def _files(checkpoint: AvailableCheckpoint) -> list[Path]:
    """Return the files of a checkpoint, and of the model that it is an adapter of, if that is in a folder, too."""
    own = [Path(checkpoint.reference) / name for name in checkpoint.files] if checkpoint.source != "hub" else []
    return [*own, *(_files(checkpoint.base) if checkpoint.base else [])]


def _checksum(files: Iterable[Path]) -> str:
    from vlm_core.models.checksums import digest_of

    sums = [(path.name, digest_of(path)) for path in sorted(files)]
    return hashlib.sha256(json.dumps(sums).encode()).hexdigest()

"""What the part on pictures with texts compares: each reads pictures, texts or both, and is a cell of the study."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, get_args

from vlm_core.config.families import FAMILIES, family_of

BASELINE: Final = "baseline"
_MASKED: Final = "masked"


@dataclass(frozen=True)
class Reader:
    """A family, or the baseline, with its inputs and the way they are fused."""

    family: str
    inputs: str  # image, text or image+text
    fusion: str = ""  # of both
    masked: bool = False  # whether the texts lack the words of labels

    @property
    def label(self) -> str:
        """The reader in words."""
        read = {"image": "picture", "text": "text"}.get(self.inputs, f"both, {self.fusion}")
        return f"{self.family} {read}{' (masked)' if self.masked else ''}"

    @property
    def key(self) -> str:
        """The reader in the name of its cell."""
        return ":".join(filter(None, (self.family, self.inputs, self.fusion, _MASKED if self.masked else "")))

    @classmethod
    def of(cls, key: str) -> Reader:
        """Return the reader with this key."""
        family, inputs, *rest = key.split(":")
        return cls(family, inputs, rest[0] if inputs == "image+text" else "", _MASKED in rest)

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that make a training read so."""
        way = {"fusion": self.fusion} if self.fusion and self.family != BASELINE else {}
        return {"model": self.family, "inputs": self.inputs, "mask_label_words": self.masked, **way}


def readers(families: Sequence[str]) -> list[Reader]:
    """Return all that are compared, the baseline first; a family without language reads pictures alone."""
    from vlm_core.models.fusion import Fusion

    compared = []
    for family in (BASELINE, *families):
        ways = ("stacked",) if family == BASELINE else get_args(Fusion)
        compared.append(Reader(family, "image"))
        if family != BASELINE and not FAMILIES[family_of(family)].has_language:
            continue
        for masked in (False, True):
            compared.append(Reader(family, "text", masked=masked))
            compared += [Reader(family, "image+text", way, masked) for way in ways]
    return compared

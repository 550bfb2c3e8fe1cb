"""What of a test set models may have memorised: each kind of leak with a share and a sentence of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isnan, nan
from typing import Any, Final

import pandas as pd

from vlm_core.evaluation.text_leak import is_unmasked

UNMASKED: Final = "UNMASKED texts · "  # in front, where no narrow column cuts it off
MEMORISED: Final = "Scores there reward memorisation."


@dataclass(frozen=True)
class Leak:
    """The two ways in which evaluated products reach a model before it is tested; a share is nan where not logged."""

    leaking: bool
    training: float  # share of the evaluated products that are in training, or whose near-duplicates are
    pretraining: float  # share that the weights may have seen before
    protocol: str

    def sentences(self) -> tuple[str, ...]:
        """Return a sentence for each kind of leak, or one that says that there is none."""
        said = []
        if self.training > 0:
            share = percent(self.training)
            said.append(f"{share} of the evaluated products, or near-duplicates of them, also appear in training.")
        if self.pretraining > 0:
            said.append(
                f"The weights may have seen {percent(self.pretraining)} of the evaluated products in pretraining."
            )
        if said:
            return (*said, MEMORISED)
        if self.leaking and isnan(self.training):
            return ("How much of this test set leaks was not logged.", MEMORISED)
        if self.leaking:
            clean = "no evaluated product or near-duplicate of one is in training here"
            return (f"Protocol {self.protocol} can leak, but {clean}.",)
        return ("No evaluated product or near-duplicate of one is in training.",)


def leak_of_run(row: Mapping[str, Any]) -> Leak:
    """Return what leaks in a row of `RunReader.runs`; a run that does not say that it is honest counts as leaking."""
    return Leak(
        leaking=row.get("tags.leaking") != "false",
        training=as_share(row.get("tags.leakage")),
        pretraining=as_share(row.get("tags.leakage_pretraining")),
        protocol=str(row.get("tags.protocol", "")),
    )


def leak_of_split(info: Mapping[str, Any]) -> Leak:
    """Return what leaks in a split as `dataset_info.json` describes it."""
    leakage = info["leakage"]
    return Leak(bool(info["leaking"]), float(leakage["near"]), float(leakage["pretraining"]), str(info["protocol"]))


def percent(share: float) -> str:
    """Return a share in percent; a small one is never rounded to nothing."""
    if isnan(share):
        return "–"
    return "< 0.1%" if 0 < share < 0.0005 else f"{share:.1%}"


def as_share(value: Any) -> float:
    """Return a logged share as a number, nan where there is none."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return nan


def mark_unmasked(table: pd.DataFrame) -> pd.DataFrame:
    """Return runs, as RunReader gives them, whose names say where texts were read that may name the category."""
    if "params.inputs" not in table:
        return table
    masked = table.get("params.mask_label_words", pd.Series("", index=table.index))
    settings = zip(table["params.inputs"], masked, strict=True)
    marks = [UNMASKED if is_unmasked(*each) else "" for each in settings]
    return table.assign(name=[f"{mark}{name}" for name, mark in zip(table["name"], marks, strict=True)])

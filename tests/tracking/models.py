"""Small categorisers in folders, as training leaves them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.models.families import make_categoriser


def save_categoriser(family: str, folder: Path) -> Path:
    """A saved categoriser of three categories: CLIP with a head, BLIP and GIT that write, or the baseline."""
    if family == "baseline":
        _save_baseline(folder)
    else:
        make_categoriser(family, "linear" if family == "clip" else "sentences").save(folder)
    return folder


class _Noise:
    def take(self, rows: np.ndarray) -> np.ndarray:
        return np.random.default_rng(0).integers(0, 256, (24, 80, 60, 3), dtype=np.uint8)[rows]


def _save_baseline(folder: Path) -> None:
    from vlm_core.models.baseline import fit_baseline

    rows = np.arange(24)
    names = ("Apparel", "Footwear", "Free Items")
    fit_baseline(_Noise(), rows % 3, rows[:18], rows[18:], names, (80, 60), 0).save(folder)

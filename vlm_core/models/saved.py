"""Loading any saved categoriser: the baseline without PyTorch, ONNX without transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Final

from vlm_core.errors import UserError
from vlm_core.models.checksums import verify_checksums

if TYPE_CHECKING:
    from vlm_core.models.categoriser import Categoriser


DESCRIPTION: Final = "categoriser.json"


def find_categoriser(place: Path) -> Path | None:
    """Return the folder of a saved categoriser: `place` itself, or the one within a folder that MLflow has saved.

    None if `place` is no folder. Raise UserError for a folder that holds none.
    """
    if not place.is_dir():
        return None
    for folder in (place, *sorted(place.glob("data/*")), *sorted(place.glob("artifacts/data/*"))):
        if (folder / DESCRIPTION).is_file():
            return folder
    raise UserError(f"{place} holds no categoriser (no {DESCRIPTION}): give the folder of a saved model.")


def load_categoriser(folder: Path) -> Categoriser:
    """Return the categoriser saved in a folder, whatever its family. Raise UserError if there is none, or another."""
    path = folder / DESCRIPTION
    if not path.exists():
        raise UserError(f"{folder} holds no categoriser (no {DESCRIPTION}): give the folder of a saved model.")
    verify_checksums(folder)
    content = json.loads(path.read_text(encoding="utf-8"))
    if content.get("engine") == "onnx":
        from vlm_core.models.onnx_categoriser import OnnxCategoriser

        return OnnxCategoriser.load(folder)
    if content["family"] == "baseline" and content.get("inputs", "image") != "image":
        from vlm_core.models.text_baseline import load_text_baseline

        return load_text_baseline(folder, content["inputs"])
    if content["family"] == "baseline":
        from vlm_core.models.baseline import Baseline

        return Baseline.load(folder)
    from vlm_core.models.categoriser import VisionLanguageCategoriser

    return VisionLanguageCategoriser.load(folder)

"""Corrections that are an artifact of a run."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Final

from vlm_core.atomic import building
from vlm_core.config import CatalogueSettings
from vlm_core.data import corrections_file, run_artifact

CORRECTIONS: Final = "corrections.csv"  # a run's artifact


def fetch_corrections(config: CatalogueSettings, root: Path) -> None:
    """Copy the corrections of the settings to where `load_catalogue` reads them, if they are a run's artifact.

    Raises UserError when the run or the artifact does not exist.
    """
    artifact, place = run_artifact(config.corrections), corrections_file(config, root)
    if artifact is None or place is None or place.exists():
        return
    from vlm_core.tracking.reader import RunReader

    with tempfile.TemporaryDirectory() as folder, building(place) as unfinished:
        shutil.copyfile(RunReader().artifact(*artifact, Path(folder)), unfinished)

"""Corrections that are an artifact of a run."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from vlm_core.config import CatalogueSettings
from vlm_core.data import CORRECTIONS, corrections_file, run_artifact
from vlm_core.errors import UserError
from vlm_core.files.atomic import building


def fetch_corrections(config: CatalogueSettings, root: Path) -> None:
    """Copy the corrections of the settings to where `load_catalogue` reads them, if they are a run's artifact.

    Raises UserError when the run or the artifact does not exist, or the run was made without corrections.
    """
    artifact, place = run_artifact(config.corrections), corrections_file(config, root)
    if artifact is None or place is None or place.exists():
        return
    from vlm_core.tracking.reader import RunReader

    reader = RunReader()
    if artifact[1] == CORRECTIONS and not reader.params(artifact[0]).get("corrections"):
        raise UserError(
            f"corrections={config.corrections}: run {artifact[0]} was made without corrections: give a CSV file, or "
            "another run."
        )
    with tempfile.TemporaryDirectory() as folder, building(place) as unfinished:
        shutil.copyfile(reader.artifact(*artifact, Path(folder)), unfinished)

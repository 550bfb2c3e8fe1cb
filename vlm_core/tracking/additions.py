"""What is added to a run after it has ended."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from vlm_core.tracking.logging_model import save_model
from vlm_core.tracking.store import connect, store_errors, store_uri


def add_export(run_id: str, folder: Path, name: str, figures: Mapping[str, float]) -> str:
    """The `runs:/` address under which MLflow serves the categoriser in `folder`, now an artifact of the run.

    The run's status stays, and an earlier export of that name is written over. Figures become metrics of the run.
    Raises UserError when the store does not take it.
    """
    from mlflow.entities import Metric
    from mlflow.models import Model

    uri = store_uri()
    with store_errors(uri), tempfile.TemporaryDirectory() as temporary:
        client = connect(uri, to_write=True)
        path = Path(temporary) / "model"
        save_model(folder, path, meta=Model(artifact_path=name, run_id=run_id))
        client.log_artifacts(run_id, str(path), name)
        now = int(time.time() * 1000)
        client.log_batch(run_id, metrics=[Metric(key, float(value), now, 0) for key, value in figures.items()])
    return f"runs:/{run_id}/{name}"


def add_files(run_id: str, folder: Path, name: str, facts: Mapping[str, str]) -> None:
    """Nothing; the files of `folder` are artifacts of the run under `name`, and then the facts are its tags.

    Raises UserError when the store does not take it.
    """
    uri = store_uri()
    with store_errors(uri):
        client = connect(uri, to_write=True)
        client.log_artifacts(run_id, str(folder), name)
        for key, text in facts.items():
            client.set_tag(run_id, key, text)

"""What is added to a run after it has ended."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from vlm_core.tracking.artifacts import synchronise_artifacts
from vlm_core.tracking.logging_model import save_model
from vlm_core.tracking.store import connect, store_errors, store_uri


def add_export(run_id: str, folder: Path, name: str, metrics: Mapping[str, float]) -> str:
    """Log the categoriser in `folder` as an artifact of the run, and return the `runs:/` address that MLflow serves.

    The run's status stays, and an earlier export of that name is overwritten. Raises UserError when the store cannot
    be written to.
    """
    from mlflow.entities import Metric
    from mlflow.models import Model

    uri = store_uri()
    with store_errors(uri), tempfile.TemporaryDirectory() as temporary:
        client = connect(uri, to_write=True)
        path = Path(temporary) / "model"
        save_model(folder, path, meta=Model(artifact_path=name, run_id=run_id))
        client.log_artifacts(run_id, str(path), name)
        synchronise_artifacts(client.get_run(run_id).info.artifact_uri)
        now = int(time.time() * 1000)
        client.log_batch(run_id, metrics=[Metric(key, float(value), now, 0) for key, value in metrics.items()])
    return f"runs:/{run_id}/{name}"


def add_files(run_id: str, folder: Path, name: str, tags: Mapping[str, str]) -> None:
    """Log the files of `folder` as artifacts of the run under `name`, and set the tags once the disk has them.

    Raises UserError when the store cannot be written to.
    """
    uri = store_uri()
    with store_errors(uri):
        client = connect(uri, to_write=True)
        client.log_artifacts(run_id, str(folder), name)
        synchronise_artifacts(client.get_run(run_id).info.artifact_uri)
        for key, text in tags.items():
            client.set_tag(run_id, key, text)

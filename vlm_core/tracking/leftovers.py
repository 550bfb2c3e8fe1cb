"""What killed processes left in the store: runs that never ended and models that are not whole."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from vlm_core.tracking import tags
from vlm_core.tracking.database_file import sqlite_path
from vlm_core.tracking.logging_model import delete_model, model_files
from vlm_core.tracking.opening import dead_runs, end_dead_run, find_run, is_dead
from vlm_core.tracking.relocation import explain_missing
from vlm_core.tracking.store import connect, store_errors, store_uri

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlflow.entities import LoggedModel, Run

CheckpointUse = Literal["none", "resumable", "unknown"]


@dataclass(frozen=True)
class UnfinishedModel:
    """A model of a run that has ended, which was not logged whole."""

    model: LoggedModel
    bytes: int


class StoreLeftovers:
    """What killed processes left in this folder's store. Every method raises UserError as the store does."""

    def __init__(self, *, to_write: bool) -> None:
        self._uri = store_uri()
        self._client = connect(self._uri, to_write=to_write)

    def moved(self) -> str:
        """Return what is wrong and what mends it, if the folder of the store was moved or copied; else ""."""
        with store_errors(self._uri):
            return explain_missing(self._client, self._uri)

    def dead_runs(self) -> list[Run]:
        """Return the runs that are marked as RUNNING although their process was killed."""
        with store_errors(self._uri):
            return dead_runs(self._client)

    def end(self, run: Run) -> None:
        """Mark a run as KILLED."""
        with store_errors(self._uri):
            end_dead_run(self._client, run)

    def unfinished_models(self) -> list[UnfinishedModel]:
        """Return the models that are not whole, of this program's runs that no process is writing."""
        with store_errors(self._uri):
            return [
                UnfinishedModel(model, _bytes(model_files(model)))
                for model in self._models()
                if str(model.status) != "READY" and self._is_left(model)
            ]

    def delete(self, unfinished: UnfinishedModel) -> None:
        """Delete a model and its files."""
        with store_errors(self._uri):
            delete_model(self._client, unfinished.model)

    def checkpoint_use(self, run_id: str) -> CheckpointUse:
        """Return what the training checkpoints of a run are for; "unknown" where the store has no such run."""
        with store_errors(self._uri):
            run = find_run(self._client, run_id)
        if run is None:
            return "unknown"
        ended = run.info.status == "FINISHED" or run.info.lifecycle_stage == "deleted"
        trial = run.data.tags.get(tags.KIND) == "trial"  # a search repeats those that were killed
        return "none" if ended or (trial and not _is_alive(run)) else "resumable"

    def _models(self) -> Iterator[LoggedModel]:
        experiments = [each.experiment_id for each in self._client.search_experiments()]
        token: Any = None
        while experiments:
            page = self._client.search_logged_models(experiments, page_token=token)
            yield from page
            token = page.token
            if not token:
                return

    def _is_left(self, model: LoggedModel) -> bool:
        run = find_run(self._client, model.source_run_id) if model.source_run_id else None
        return run is not None and run.data.tags.get(tags.ROLE) == tags.RUN and not _is_alive(run)


def store_is_there() -> bool:
    """Return whether this folder's store has been made: asking an SQLite store anything else would make it."""
    path = sqlite_path(store_uri())
    return path is None or path.exists()


def _is_alive(run: Run) -> bool:
    return bool(run.info.status == "RUNNING") and not is_dead(run)


def _bytes(files: Any, folder: str | None = None) -> int:
    return sum(
        _bytes(files, each.path) if each.is_dir else each.file_size or 0 for each in files.list_artifacts(folder)
    )

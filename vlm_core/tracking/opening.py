"""How a run begins (new, created by `mlflow run`, or resumed) and how it ends."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Collection
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from vlm_core.errors import UserError, redact
from vlm_core.files.atomic import remove
from vlm_core.tracking import tags
from vlm_core.tracking.artifacts import synchronise_artifacts
from vlm_core.tracking.patience import waiting_at_most
from vlm_core.tracking.relocation import require_place
from vlm_core.tracking.store import connect, short_timeouts, store_errors, store_uri
from vlm_core.tracking.system import SystemMetrics

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

# Names that MLflow generates; any other was given with `mlflow run --run-name`.
_GENERATED_NAME: Final = re.compile(r"[a-z]+-[a-z]+-\d+")
_SECONDS_TO_END: Final = 5.0  # that stores are waited for, in all, when a run was stopped or failed
_MOST_AT_ONCE: Final = 1000
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class OpenRun:
    """The run that is written to, and the one that `mlflow run` created if that is another (else "")."""

    run_id: str
    resumed: bool
    launcher: str = ""


def open_run(client: MlflowClient, uri: str, *, experiment: str, name: str, resume: str, parent: str) -> OpenRun:
    """Return the run to write to, with status RUNNING.

    Raises UserError for a run or an experiment that cannot be used, with what to do instead.
    """
    # removed from the environment: a second run of this process, or of one it starts, is not the launched one
    launched = "" if parent else os.environ.pop("MLFLOW_RUN_ID", "")
    if launched:
        launcher = _launched_run(client, launched)
        require_place(uri, launcher.info.artifact_uri)
        if not resume and not _is_out_of_reach(launcher.info.artifact_uri, uri):
            if name and _GENERATED_NAME.fullmatch(launcher.info.run_name or ""):
                client.update_run(launched, name=name)
            client.set_tag(launched, tags.PROCESS, tags.process_tag())
            client.set_tag(launched, tags.ROLE, tags.RUN)
            return OpenRun(launched, resumed=False)
        client.set_tag(launched, tags.ROLE, tags.LAUNCHER)
    if resume:
        check_resumable(client, resume)
        require_place(uri, client.get_run(resume).info.artifact_uri)
        client.set_tag(resume, tags.PROCESS, tags.process_tag())  # first: no other command may take it for a dead one
        client.set_tag(resume, tags.FAILURE, "")  # what ended it is over
        client.update_run(resume, status="RUNNING")
        run_id = resume
    else:
        run_id = _new_run(client, uri, experiment, name, parent)
    if launched:
        _mark_launcher(client, launched, run_id)
    return OpenRun(run_id, resumed=bool(resume), launcher=launched)


def end_run(
    client: MlflowClient, uri: str, run: OpenRun, error: BaseException | None, system: SystemMetrics | None
) -> None:
    """Mark the run, and its launcher, as FINISHED, KILLED (Ctrl-C, SIGTERM) or FAILED.

    The disk has all artifacts of a run that is FINISHED: nobody would write them again.
    Raises UserError when the store cannot be written to, unless something else went wrong before.
    """
    status = _status(error)
    try:
        with store_errors(uri), short_timeouts():
            if system is not None:
                system.stop()
            if status == "FINISHED":
                synchronise_artifacts(client.get_run(run.run_id).info.artifact_uri)
            for name, text in {**tags.load_tag("end"), tags.ENDED: status}.items():
                client.set_tag(run.run_id, name, text)
            client.set_tag(run.run_id, tags.FAILURE, "" if status == "FINISHED" else _reason(error))
            client.set_terminated(run.run_id, status)
            if run.launcher:
                client.set_terminated(run.launcher, status)
    except Exception as problem:
        if error is None:
            raise
        _log.error(
            "The run %s could not be marked as %s, which the next command does; resume=%s continues it. %s",
            run.run_id,
            status,
            run.run_id,
            problem,
        )


def patience_after(error: BaseException | None) -> AbstractContextManager[None]:
    """Wait for minutes to end a run that is done, and for a moment to end one that was stopped."""
    return nullcontext() if error is None else waiting_at_most(_SECONDS_TO_END)


def prepare_store(experiment: str = "", root: Path | None = None) -> None:
    """Check, before a command does any work, that the store and the experiment's artifacts can be written to.

    Without an experiment, the store alone is checked.

    Runs of this machine whose process was killed are marked as KILLED, and the checkpoints below `root` of runs that
    are FINISHED are removed, which a process that was killed right then has left. Raises UserError.
    """
    uri = store_uri()
    client = connect(uri, to_write=True)
    with store_errors(uri):
        for run in dead_runs(client):
            end_dead_run(client, run)
        for folder in (root / "checkpoints").glob("*/") if root else ():
            run = find_run(client, folder.name)
            if run and run.info.status == "FINISHED":
                remove(folder)
        if experiment:
            _check_artifacts(client, uri, experiment)


def dead_runs(client: MlflowClient) -> list[Run]:
    """Return the runs that are marked as RUNNING, of processes of this machine that were killed."""
    experiments = [each.experiment_id for each in client.search_experiments(max_results=_MOST_AT_ONCE)]
    query = f"attributes.status = 'RUNNING' and tags.`{tags.ROLE}` = '{tags.RUN}'"
    runs: list[Run] = client.search_runs(experiments, query, max_results=_MOST_AT_ONCE)
    return [run for run in runs if is_dead(run)]


def is_dead(run: Run) -> bool:
    """Return whether a run that is marked as RUNNING is that of a process of this machine that was killed."""
    process = run.data.tags.get(tags.PROCESS, "")
    return bool(process) and tags.process_is_dead(process)


def end_dead_run(client: MlflowClient, run: Run) -> None:
    """Mark the run of a process that was killed as KILLED."""
    run_id = run.info.run_id
    client.set_tag(run_id, tags.FAILURE, "its process was killed")
    client.set_tag(run_id, tags.ENDED, "KILLED")
    client.set_terminated(run_id, "KILLED")
    if "mlflow.parentRunId" not in run.data.tags:
        _log.info(
            f"Run {run_id} ({run.info.run_name}) was killed with its process: resume={run_id} continues a "
            "training, its own command a search or a study."
        )


def end_orphans(parent: str, names: Collection[str] = ()) -> None:
    """Mark the runs below the run `parent` (those of the names) as KILLED that are RUNNING: their processes are dead.

    Only who started these processes knows that of other machines. Raises UserError.
    """
    uri = store_uri()
    client = connect(uri, to_write=True)
    with store_errors(uri), waiting_at_most(_SECONDS_TO_END):
        query = f"attributes.status = 'RUNNING' and tags.`mlflow.parentRunId` = '{parent}'"
        leader = find_run(client, parent)
        below = client.search_runs([leader.info.experiment_id], query, max_results=_MOST_AT_ONCE) if leader else ()
        for run in below:
            if not names or run.info.run_name in names:
                end_dead_run(client, run)


def _check_artifacts(client: MlflowClient, uri: str, name: str) -> None:
    """Check where the experiment's artifacts are: on this disk in no folder that was moved away, else by listing them.

    What can be listed has the right credentials, bucket and library.
    """
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    experiment = client.get_experiment_by_name(name) or client.get_experiment("0")
    require_place(uri, experiment.artifact_location)
    scheme, separator, _ = experiment.artifact_location.partition("://")
    if separator and scheme != "file":
        get_artifact_repository(experiment.artifact_location).list_artifacts()


def _status(error: BaseException | None) -> str:
    if error is None or (isinstance(error, SystemExit) and error.code in (None, 0)):
        return "FINISHED"
    return "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"


def _reason(error: BaseException | None) -> str:
    if isinstance(error, KeyboardInterrupt):
        return str(error) or "Ctrl-C"
    return redact(f"{type(error).__name__}: {error}")[:500]


def _launched_run(client: MlflowClient, run_id: str) -> Any:
    run = find_run(client, run_id)
    if run is None or run.info.lifecycle_stage == "deleted" or run.info.status not in ("RUNNING", "SCHEDULED"):
        state = "is not in the tracking store" if run is None else "has ended or was deleted"
        raise UserError(f"the run {run_id} that MLFLOW_RUN_ID names {state}: unset MLFLOW_RUN_ID.")
    return run


def check_resumable(client: MlflowClient, run_id: str) -> None:
    """Raise UserError for a run that cannot be resumed, with what to do instead."""
    run = find_run(client, run_id)
    if run is None:
        raise UserError(
            f"resume={run_id}: there is no such run in this tracking store: copy the id of an unfinished run from "
            "`mlflow ui`, or check MLFLOW_TRACKING_URI."
        )
    run_tags = run.data.tags
    if run.info.lifecycle_stage == "deleted":
        raise UserError(
            f"resume={run_id}: that run was deleted: `mlflow runs restore --run-id {run_id}` brings it back."
        )
    if run_tags.get(tags.ROLE) == tags.LAUNCHER:
        other = run_tags.get(tags.LAUNCHED, "")
        raise UserError(f"resume={run_id}: that run only started another one: use resume={other or '<its id>'}.")
    if run_tags.get(tags.ROLE) != tags.RUN:
        raise UserError(f"resume={run_id}: that run was not started by this program: choose another.")
    if run.info.status == "FINISHED":
        raise UserError(f"resume={run_id}: that run is finished: start a new one instead, without resume.")
    if run.info.status == "RUNNING" and tags.process_is_alive(run_tags.get(tags.PROCESS, "")):
        number = run_tags[tags.PROCESS].split(":")[1]
        raise UserError(f"resume={run_id}: process {number} is still writing that run: wait for it, or stop it first.")


def find_run(client: MlflowClient, run_id: str) -> Any:
    """Return the run of that id; None where the store has none."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_run(run_id)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


def _new_run(client: MlflowClient, uri: str, experiment: str, name: str, parent: str) -> str:
    from mlflow.tracking.context.registry import resolve_tags

    experiment_id = _experiment_id(client, uri, experiment)
    below = {"mlflow.parentRunId": parent} if parent else {}
    own = {tags.ROLE: tags.RUN, tags.PROCESS: tags.process_tag(), **below}
    began = int(time.time() * 1000)
    run_id = str(client.create_run(experiment_id, tags=resolve_tags(own), run_name=name or None).info.run_id)
    _delete_twins(client, experiment_id, run_id, parent, began)
    return run_id


def _delete_twins(client: MlflowClient, experiment_id: str, run_id: str, parent: str, began: int) -> None:
    """Delete what a request has made that was repeated because its answer was lost.

    A process has one open run at a time below the same parent.
    """
    query = (
        f"tags.`{tags.PROCESS}` = '{tags.process_tag()}' and attributes.status = 'RUNNING' "
        f"and attributes.start_time >= {began}"
    )
    for run in client.search_runs([experiment_id], query):
        if run.info.run_id != run_id and run.data.tags.get("mlflow.parentRunId", "") == parent:
            client.delete_run(run.info.run_id)


def _experiment_id(client: MlflowClient, uri: str, name: str) -> str:
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            return str(client.create_experiment(name))
        except MlflowException as error:
            # another process may have created it in between
            experiment = client.get_experiment_by_name(name)
            if experiment is None:
                raise UserError(f"experiment={name} is not accepted by MLflow: {error}.") from error
    if experiment.lifecycle_stage == "deleted":
        raise UserError(
            f"experiment={name} was deleted: `mlflow experiments restore --experiment-id {experiment.experiment_id}` "
            "restores it; or choose another name."
        )
    require_place(uri, experiment.artifact_location)
    if _is_out_of_reach(experiment.artifact_location, uri):
        raise UserError(
            f"experiment={name} was created by a running `mlflow ui` and keeps its files there: choose another name, "
            "or set MLFLOW_TRACKING_URI to the address of `mlflow ui`."
        )
    return str(experiment.experiment_id)


def _is_out_of_reach(artifact_uri: str, uri: str) -> bool:
    """Return whether only a server could store files there, while we write to the database directly.

    `mlflow ui` in a folder without mlflow.db creates its Default experiment like this.
    """
    return artifact_uri.startswith("mlflow-artifacts:") and not uri.startswith("http")


def _mark_launcher(client: MlflowClient, launcher: str, run_id: str) -> None:
    client.set_tag(launcher, tags.LAUNCHED, run_id)
    client.set_tag(launcher, "mlflow.note.content", f"Only started the run {run_id}, which holds all results.")
    client.update_run(launcher, name=f"launcher of {run_id[:8]}")

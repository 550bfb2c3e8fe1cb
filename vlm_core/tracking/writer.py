"""One run, written as it happens: settings, data, epochs, scores, files and the model."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from vlm_core.config.aliases import current_settings, current_tags
from vlm_core.errors import UserError, redact
from vlm_core.tracking import tags
from vlm_core.tracking.backlog import NAME as BACKLOG
from vlm_core.tracking.backlog import Backlog, LoggedEpoch
from vlm_core.tracking.metrics import epoch_metrics
from vlm_core.tracking.opening import OpenRun, end_run, open_run, patience_after
from vlm_core.tracking.signals import StopSignals
from vlm_core.tracking.store import connect, store_errors, store_uri
from vlm_core.tracking.system import SystemMetrics
from vlm_core.tracking.training_log import TrainingLog

if TYPE_CHECKING:
    import numpy as np
    from mlflow import MlflowClient
    from numpy.typing import NDArray

    from vlm_core.catalogue.catalogue import Catalogue
    from vlm_core.catalogue.exposure import Exposure
    from vlm_core.catalogue.splitting import Split
    from vlm_core.evaluation.evaluation import Evaluation
    from vlm_core.evaluation.predictions import Predictions
    from vlm_core.evaluation.summary import Summary
    from vlm_core.training.loop import EpochReport

logger = logging.getLogger(__name__)

_ENTITIES_PER_CALL: Final = 100
_METRICS_PER_CALL: Final = 1000


class RunWriter:
    """A context manager for one MLflow run, which ends as FINISHED, FAILED or KILLED.

    It starts a new run in `experiment`, takes over the one that `mlflow run` created, or resumes the unfinished run
    `resume`. With `parent`, it always starts a new run, below that one. Logs and plots go to `folder`.
    Every method raises UserError when the store, or that folder, cannot be written to. A store that is locked or away
    is waited for, but epochs are kept until it is back (see `Backlog`).
    """

    def __init__(
        self, experiment: str, name: str = "", *, resume: str = "", parent: str = "", folder: Path | None = None
    ) -> None:
        self.folder = folder or Path.cwd()
        self._wanted = {"experiment": experiment, "name": name, "resume": resume, "parent": parent}
        self._signals = StopSignals()
        self._run: OpenRun  # from `__enter__` on
        self._log: TrainingLog | None = None
        self._config: dict[str, str] = {}
        self._epochs_logged: set[int] = set()
        self._metrics_logged: dict[str, float] = {}  # by the process that this one resumes

    def __enter__(self) -> Self:
        self._uri = store_uri()
        self._client: MlflowClient = connect(self._uri, to_write=True)
        self._signals.catch()
        try:
            with store_errors(self._uri):
                self._run = open_run(self._client, self._uri, **self._wanted)
                self._open_backlog()
        except BaseException:
            self._signals.release()
            raise
        try:
            self.tags({**tags.machine_tags(), tags.PROCESS: tags.process_tag(), **tags.load_tag("start")})
            with self._store():
                self._system = SystemMetrics(self._run.run_id, self._uri, resumed=self._run.resumed)
                if self._run.resumed:
                    self._read_back()
        except BaseException:
            self.__exit__(*sys.exc_info())
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._signals.hold()
        try:
            with patience_after(error):
                self._end_backlog(error)
                end_run(self._client, self._uri, self._run, error, getattr(self, "_system", None))
        finally:
            self._signals.release()

    @property
    def run_id(self) -> str:
        """MLflow's id of the run."""
        return self._run.run_id

    @property
    def resumed(self) -> bool:
        """Whether this process resumed the run."""
        return self._run.resumed

    def params(self, params: Mapping[str, str]) -> None:
        """Log all settings of the run.

        `mlflow run` writes the values of its -P before us, as they were typed, and MLflow changes no param: where
        such a text differs from ours ("1e-4", "0.0001"), ours becomes the tag `setting.<name>`, which RunReader reads.
        """
        self._config = dict(params)
        with self._store():
            known = current_settings(self._client.get_run(self.run_id).data.params)
        self._log_batches(params={name: text for name, text in params.items() if name not in known})
        if shown := [name for name, text in known.items() if redact(text) != text]:
            logger.warning(
                f"The run {self.run_id} holds the password of {shown[0]}, which `mlflow run` or an earlier version "
                "logged: change it. An address without one is enough where the database's client finds it, as "
                "PostgreSQL's does in PGPASSWORD or ~/.pgpass."
            )
        different = {name: text for name, text in params.items() if known.get(name, text) != text and name != "resume"}
        self.tags({tags.SETTING + name: text for name, text in different.items()})

    def tags(self, values: Mapping[str, str]) -> None:
        """Log facts that are not settings; a later value replaces an earlier one."""
        self._log_batches(tags=values)

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Log metrics of one step; the step 0 of a resumed run adds no second point with the same value."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        known = dict[str, float]() if step else self._metrics_logged
        entities = [Metric(key, float(value), now, step) for key, value in values.items() if known.get(key) != value]
        with self._store():
            for part in _batches(entities, _METRICS_PER_CALL):
                self._client.log_batch(self.run_id, metrics=part)

    def dataset(self, catalogue: Catalogue, split: Split) -> None:
        """Log the data: what the run is trained, selected and tested on, with the product ids as artifacts."""
        from vlm_core.tracking.lineage import dataset_inputs, write_split

        self.tags(tags.data_tags(catalogue, split))
        with self._store(), tempfile.TemporaryDirectory() as folder:
            self._client.log_inputs(self.run_id, datasets=dataset_inputs(catalogue, split))
            write_split(catalogue, split, Path(folder))
            self._client.log_artifacts(self.run_id, folder, "split")

    def subsets(self, catalogue: Catalogue, split: Split, subsets: Mapping[str, NDArray[np.bool_]]) -> None:
        """Log which test products (n,) are in each subset, unless there is none, as an artifact."""
        from vlm_core.tracking.lineage import write_subsets

        if subsets:
            with self._store(), tempfile.TemporaryDirectory() as folder:
                write_subsets(catalogue, split, subsets, Path(folder))
                self._client.log_artifacts(self.run_id, folder, "split")

    def exposure(self, exposure: Exposure) -> None:
        """Log what the weights that the run starts from have seen."""
        with self._store(), tempfile.TemporaryDirectory() as folder:
            exposure.write(Path(folder))
            self._client.log_artifacts(self.run_id, folder, tags.EXPOSURE)

    def epoch(self, report: EpochReport[Summary], *, plot: bool = True) -> None:
        """Log one epoch's metrics, its entry in the training log and, with `plot`, its confusion matrix.

        An epoch that the run holds already, trained again after a crash, adds no second point to its curves.
        """
        begins = self._log is None
        with self._local_files("logs"):
            if self._log is None:
                self._log = TrainingLog.begin(self.folder, self._config.get("model", "model"), self._config)
            log = self._log.add(report)
        files = [(log, "logs")]
        if plot:
            with self._local_files("results"):
                files.append((self._log.plot(report), "results"))
        self._add_epoch(report.epoch, epoch_metrics(report), {tags.TRAINING_LOG: log.name} if begins else {}, files)

    def epoch_metrics(self, epoch: int, values: Mapping[str, float]) -> None:
        """Log an epoch's metrics once: one that the run holds already adds no second point."""
        if epoch not in self._epochs_logged:
            self._add_epoch(epoch, values, {}, [])

    def _add_epoch(
        self,
        number: int,
        values: Mapping[str, float],
        texts: Mapping[str, str],
        files: Sequence[tuple[Path, str]],
    ) -> None:
        figures = {} if number in self._epochs_logged else {name: float(value) for name, value in values.items()}
        below = [(os.path.relpath(path, self.folder), folder) for path, folder in files]
        self._epochs_logged.add(number)
        self._backlog.add(LoggedEpoch(number, int(time.time() * 1000), figures, dict(texts), below))

    def _log_epoch(self, epoch: LoggedEpoch) -> None:
        from mlflow.entities import Metric

        for name, text in epoch.tags.items():
            self._client.set_tag(self.run_id, name, text)
        for path, folder in epoch.files:
            if (self.folder / path).exists():
                self._client.log_artifact(self.run_id, str(self.folder / path), folder)
        entities = [Metric(key, value, epoch.timestamp, epoch.epoch) for key, value in epoch.metrics.items()]
        for part in _batches(entities, _METRICS_PER_CALL):
            self._client.log_batch(self.run_id, metrics=part)

    def _open_backlog(self) -> None:
        path = self.folder / "checkpoints" / self.run_id / BACKLOG
        self._backlog = Backlog(path, self._uri, self._log_epoch)

    def _end_backlog(self, error: BaseException | None) -> None:
        """Log the epochs that are kept. Those of a run that failed may stay in their file, for its resumption."""
        try:
            self._backlog.log()
        except Exception:  # whatever it is, what ended the run is told, and the run is marked
            if error is None:
                raise

    def evaluation(self, evaluation: Evaluation, name: str = "test") -> None:
        """Log scores as metrics `<name>_...`, and the whole evaluation, its plots and all predictions as artifacts."""
        from vlm_core.evaluation.plots import plot_confusion, plot_reliability
        from vlm_core.evaluation.spreadsheets import spreadsheet_text

        title = ", ".join(filter(None, (self._config.get("model"), name)))
        with self._store(), tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            evaluation.write(folder)
            table = evaluation.predictions.to_frame().map(spreadsheet_text)
            table.to_csv(folder / "predictions.csv", index=False, errors="backslashreplace")
            plot_confusion(evaluation.confusion, evaluation.categories, title, folder / "confusion.png")
            plot_reliability(evaluation.calibration, title, folder / "reliability.png")
            self._client.log_artifacts(self.run_id, temporary, f"evaluation/{name}")
        self.metrics(evaluation.metrics(f"{name}_"))

    def predictions(self, predictions: Predictions, name: str) -> None:
        """Log all predictions on a split as an artifact, without scores."""
        with self._store(), tempfile.TemporaryDirectory() as temporary:
            predictions.write(Path(temporary) / "predictions.npz")
            self._client.log_artifacts(self.run_id, temporary, f"evaluation/{name}")

    def model(self, folder: Path) -> str:
        """Log the categoriser in `folder` as a model that MLflow can serve, and return its `models:/` address."""
        from vlm_core.tracking.logging_model import log_model

        with self._store():
            return log_model(self._client, self.run_id, folder)

    def artifact(self, path: Path, folder: str = "") -> None:
        """Log a file, or all files of a folder, under the artifact folder of that name."""
        with self._store():
            if path.is_dir():
                self._client.log_artifacts(self.run_id, str(path), folder or None)
            else:
                self._client.log_artifact(self.run_id, str(path), folder or None)

    def _log_batches(self, *, params: Mapping[str, str] | None = None, tags: Mapping[str, str] | None = None) -> None:
        from mlflow.entities import Param, RunTag

        with self._store():
            for part in _batches([Param(name, str(text)) for name, text in (params or {}).items()], _ENTITIES_PER_CALL):
                self._client.log_batch(self.run_id, params=part)
            for part in _batches([RunTag(name, str(text)) for name, text in (tags or {}).items()], _ENTITIES_PER_CALL):
                self._client.log_batch(self.run_id, tags=part)

    def _read_back(self) -> None:
        """Read which epochs and metrics the run has, and its training log if there is one."""
        history = self._client.get_metric_history(self.run_id, "seconds")
        self._epochs_logged = {metric.step for metric in history}
        run = self._client.get_run(self.run_id)
        self._metrics_logged = dict(run.data.metrics)
        name = current_tags(run.data.tags).get(tags.TRAINING_LOG)
        if name is not None:
            self._log = self._load_log(name)

    def _load_log(self, name: str) -> TrainingLog | None:
        """Return the log from its folder or, lost with its machine, from the store; None if neither can be read."""
        from mlflow.exceptions import MlflowException

        try:
            return TrainingLog.resume(self.folder, self.folder / "logs" / name)
        except (OSError, ValueError):
            pass
        try:
            return TrainingLog.resume(self.folder, Path(self._client.download_artifacts(self.run_id, f"logs/{name}")))
        except (OSError, ValueError, MlflowException):
            return None

    @contextmanager
    def _local_files(self, name: str) -> Iterator[None]:
        """Turn the error of a file in the run's own folder of that name into a UserError."""
        try:
            yield
        except OSError as error:
            raise UserError(
                f"{self.folder / name} cannot be written to ({error.strerror or error}): mend that, or free some "
                f"space there, then continue with resume={self.run_id}."
            ) from error

    @contextmanager
    def _store(self) -> Iterator[None]:
        """Write to the store inside the block, after the epochs that are kept."""
        with store_errors(self._uri):
            self._backlog.log()
            yield


class EpochWriter(RunWriter):
    """Writes epochs and metrics of a run that another process has opened, and ends; `params` are its settings."""

    def __init__(self, run_id: str, params: Mapping[str, str], folder: Path) -> None:
        super().__init__("", folder=folder)
        self._run, self._config = OpenRun(run_id, resumed=True), dict(params)

    def __enter__(self) -> Self:
        self._uri = store_uri()
        self._client = connect(self._uri, to_write=True)
        self._open_backlog()
        with self._store():
            self._read_back()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with patience_after(error):
            self._end_backlog(error)


def _batches(values: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(values), size):
        yield values[start : start + size]

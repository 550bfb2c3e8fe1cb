"""Runs, read back: one table for the leaderboard and the dashboard, and what each run holds.

What was stored under a former name is given under the current one (`vlm_core.config.aliases`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import numpy as np
import pandas as pd

from vlm_core.config.aliases import current_key, current_metrics, current_tags, former_metric, stored_settings
from vlm_core.errors import UserError, redact
from vlm_core.tracking import tags
from vlm_core.tracking.filters import quoted
from vlm_core.tracking.lineage import SPLIT_PART, SplitPart
from vlm_core.tracking.opening import check_resumable
from vlm_core.tracking.patience import patiently
from vlm_core.tracking.problems import is_away, is_locked
from vlm_core.tracking.registry import SCORE, model_of
from vlm_core.tracking.relocation import explain_missing
from vlm_core.tracking.store import connect, open_mlflow, store_errors, store_uri

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.store.entities import PagedList
    from numpy.typing import NDArray

    from vlm_core.catalogue.catalogue import Catalogue
    from vlm_core.catalogue.exposure import Exposure
    from vlm_core.evaluation.evaluation import Evaluation
    from vlm_core.evaluation.predictions import Predictions

T = TypeVar("T")
ROWS_PER_PAGE: Final = 100  # which a busy machine answers within the seconds that the dashboard waits
_INFO: Final = ("run_id", "name", "experiment", "experiment_id", "status", "started", "ended")
_PROGRESS: Final = ("seen", "epoch")
MODEL: Final = "model/"  # what a path of a file of the run's model begins with
_EPOCHS: Final = "validation_macro_f1"  # logged once an epoch, by its number
_OWN_RUNS: Final = f"tags.`{tags.ROLE}` = '{tags.RUN}'"


class RunReader:
    """A reader of the store at `uri` (empty: the one this folder's runs are written to); it never writes."""

    def __init__(self, uri: str = "") -> None:
        self._uri = uri or store_uri()
        self._client = connect(self._uri)

    def runs(self, filter_string: str = "") -> pd.DataFrame:
        """Return all runs of this program, newest first, without those that only launched another.

        `filter_string` is in MLflow's language, such as "params.model = 'clip' and metrics.test_macro_f1 > 0.8".
        Columns: run_id, name, experiment, experiment_id, status, started, ended, seen (when it last logged a metric;
        all UTC), epoch (the last one that it logged, 0 before the first), and `params.*`, `metrics.*` (last values),
        `tags.*`; texts are cut at `tags.LONGEST_TEXT`. Raises UserError when the filter is not understood.
        """
        from mlflow.exceptions import MlflowException

        try:
            return pd.concat(list(self.pages(filter_string)), ignore_index=True)
        except MlflowException as error:
            if error.error_code != "INVALID_PARAMETER_VALUE":
                raise
            raise UserError(f"the filter {filter_string!r} is not understood: {error.message}") from error

    def pages(self, filter_string: str = "") -> Iterator[pd.DataFrame]:
        """Yield what `runs` returns in parts, which take little time each; at least one, even if empty."""
        query = f"{_OWN_RUNS} and {filter_string}" if filter_string else _OWN_RUNS
        rows: list[dict[str, Any]] = []
        pages = 0
        for run, names in self._search(query):
            rows.append(self._row(run, names))
            if len(rows) == ROWS_PER_PAGE:
                yield pd.DataFrame(rows)
                rows, pages = [], pages + 1
        if rows or not pages:
            yield pd.DataFrame(rows, columns=None if rows else [*_INFO, *_PROGRESS])

    def leaderboard(self) -> pd.DataFrame:
        """Return finished runs with a test score, best first within each group tested on the same products.

        Groups come newest first and are numbered from 1 in the column `group`; `leaking` is a bool, and only runs
        that do not leak have a `rank`. Further columns: those of `runs`, without prefix where `_SHOWN` names them.
        """
        table = self.runs("attributes.status = 'FINISHED'")
        scored = table[table[f"metrics.{SCORE}"].notna()] if f"metrics.{SCORE}" in table else table.iloc[:0]
        board = pd.DataFrame({name: scored[name] for name in _INFO}, index=scored.index)
        for source in _SHOWN:
            prefix, name = source.split(".", 1)
            column = scored.get(source, pd.Series(float("nan"), index=scored.index))
            board[name] = column if prefix == "metrics" else column.astype(object).fillna("")
        board["leaking"] = board["leaking"] != "false"
        keys = list(tags.COMPARABLE)
        newest = board.groupby(keys, dropna=False)["started"].transform("max")
        board = board.assign(newest=newest).sort_values(
            ["newest", *keys, SCORE, "started"], ascending=[False, True, True, True, False, True], kind="stable"
        )
        board.insert(0, "group", board.groupby(keys, sort=False, dropna=False).ngroup() + 1)
        honest = board[~board["leaking"]]
        rank = honest.groupby("group")[SCORE].rank(method="min", ascending=False)
        board.insert(1, "rank", rank.reindex(board.index).astype("Int64"))
        return board.drop(columns="newest").reset_index(drop=True)

    def children(self, parent: str) -> pd.DataFrame:
        """Return the runs below that run, as `runs` does."""
        return self.runs(f"tags.mlflow.parentRunId = {quoted(parent)}")

    def studies(self, name: str = "") -> pd.DataFrame:
        """Return runs that lead a study (of that name, if one is given), newest first, as `runs` does."""
        studies = self.runs(f"tags.{tags.KIND} = 'study'")
        return studies[studies[f"tags.{tags.STUDY}"] == name] if name and len(studies) else studies

    def params(self, run_id: str) -> dict[str, str]:
        """Return the settings of the run, as text."""
        return _settings(self._run(run_id))

    def tags(self, run_id: str) -> dict[str, str]:
        """Return facts about the run that are not settings."""
        return _tags(self._run(run_id))

    def metrics(self, run_id: str) -> dict[str, float]:
        """Return the last value of each of the run's metrics."""
        return current_metrics(self._run(run_id).data.metrics)

    def check_resumable(self, run_id: str) -> None:
        """Raise UserError for a run that cannot be resumed, before any work is done for it."""
        with store_errors(self._uri):
            check_resumable(self._client, run_id)

    def history(self, run_id: str, metric: str) -> pd.DataFrame:
        """Return columns step and value: one metric over the epochs; the last value of a step counts."""
        with store_errors(self._uri):
            points = self._client.get_metric_history(run_id, metric)
            if not points and (former := former_metric(metric)) != metric:
                points = self._client.get_metric_history(run_id, former)
        table = pd.DataFrame({"step": [point.step for point in points], "value": [point.value for point in points]})
        return table.drop_duplicates("step", keep="last").sort_values("step", ignore_index=True)

    def artifact(self, run_id: str, path: str, into: Path | None = None) -> Path:
        """Return a file or folder of the run's artifacts, copied `into` a folder, or one of MLflow's that stays.

        Raises UserError if absent.
        """
        from mlflow.exceptions import MlflowException

        self._run(run_id)
        with store_errors(self._uri):
            place = {"run_id": run_id, "artifact_path": path}
            if path.startswith(MODEL) and (model := model_of(self._client, run_id)):
                # in its own place: MLflow looks a run's model up in the default store alone
                location = self._client.get_logged_model(model).artifact_location
                place = {"artifact_uri": f"{location}/{path.removeprefix(MODEL)}"}
            try:
                path_here = Path(
                    patiently(
                        self._uri,
                        open_mlflow().artifacts.download_artifacts,
                        **place,
                        tracking_uri=self._uri,
                        dst_path=None if into is None else str(into),
                    )
                )
            except (MlflowException, OSError) as error:
                if is_locked(error) or is_away(error):
                    raise
                raise UserError(self._missing(run_id, path)) from error
            if not path_here.exists():
                raise UserError(self._missing(run_id, path))
        return path_here

    def _missing(self, run_id: str, path: str) -> str:
        move = explain_missing(self._client, self._uri)
        return move or f"run {run_id} holds no {path}: it ended before it was written."

    def evaluation(self, run_id: str, name: str = "test") -> Evaluation:
        """Return the evaluation that the run logged under that name, with its predictions."""
        from vlm_core.evaluation.evaluation import Evaluation

        with tempfile.TemporaryDirectory() as folder:
            return Evaluation.read(self.artifact(run_id, f"evaluation/{name}", Path(folder)))

    def predictions(self, run_id: str, name: str = "test") -> Predictions:
        """Return the model's predictions for each product of that evaluation."""
        from vlm_core.evaluation.predictions import Predictions

        with tempfile.TemporaryDirectory() as folder:
            return Predictions.read(self.artifact(run_id, f"evaluation/{name}/predictions.npz", Path(folder)))

    def text(self, run_id: str, path: str) -> str:
        """Return the text of a file of the run's artifacts, such as `study/report.md`. Raises UserError if absent."""
        with tempfile.TemporaryDirectory() as folder:
            return self.artifact(run_id, path, Path(folder)).read_text("utf-8")

    def has_seen(
        self, run_id: str, catalogue: Catalogue, names: Sequence[str] = ("training", "validation")
    ) -> NDArray[np.bool_]:
        """Return whether the run was trained or selected on each product (n,) of a catalogue, or on its picture.

        `names` are the parts of its split that count, of those before it too where it learnt more from another run. Ids
        count in the run's own catalogue alone. What its weights were pretrained on is not included: see `exposure`.
        """
        parts = [self.split_part(run_id, part) for part in names]
        products = catalogue.products
        seen = products["picture_digest"].isin({digest for part in parts for digest in part.pictures})
        if parts[0].fingerprint == catalogue.fingerprint:
            seen |= products["product_id"].isin({product for part in parts for product in part.products})
        before = self.tags(run_id).get(tags.EXTENDS)
        return np.asarray(seen | self.has_seen(before, catalogue, names) if before else seen)

    def split_part(self, run_id: str, part: str) -> SplitPart:
        """Return what the run was trained on, selected on or tested on ("training", "validation" or "test")."""
        return SPLIT_PART.validate_json(self.text(run_id, f"split/{part}.json"))

    def exposure(self, run_id: str) -> Exposure | None:
        """Return what the run's weights had seen before; None where they had seen nothing, or nothing is known of it.

        Runs of earlier versions name it in tags alone: its hashes are known if this package holds them.
        """
        from vlm_core.catalogue.exposure import Exposure

        run_tags = self.tags(run_id)
        if tags.PRETRAINING_RULE not in run_tags:
            return None
        with tempfile.TemporaryDirectory() as folder:
            try:
                return Exposure.read(self.artifact(run_id, tags.EXPOSURE, Path(folder)))
            except UserError:
                names = (tags.PRETRAINING_RULE, tags.PRETRAINING_CATALOGUE, tags.PRETRAINING_PRODUCTS)
                rule, catalogue, products = (run_tags.get(name, "") for name in names)
                return Exposure(rule, "", catalogue, 0, products).with_hashes()

    def _search(self, filter_string: str) -> Iterator[tuple[Run, dict[str, str]]]:
        """Yield each matching run with the names of all experiments: one request per page, none per run.

        A run that begins meanwhile moves another one from the end of a page to the next page, too.
        """
        client, found = self._client, set[str]()
        with store_errors(self._uri):
            experiments = _pages(lambda token: client.search_experiments(max_results=ROWS_PER_PAGE, page_token=token))
            names = {experiment.experiment_id: experiment.name for experiment in experiments}
            for run in _pages(
                lambda token: client.search_runs(
                    list(names), filter_string, max_results=ROWS_PER_PAGE, page_token=token
                )
            ):
                if run.info.run_id not in found:
                    found.add(run.info.run_id)
                    yield run, names

    def _row(self, run: Run, names: dict[str, str]) -> dict[str, Any]:
        info = run.info
        metrics = run.data._metric_objs  # the public ones lack time and step
        steps = current_metrics({metric.key: metric.step for metric in metrics})
        seen = max([info.start_time, *(metric.timestamp for metric in metrics)])
        return {
            "run_id": info.run_id,
            "name": current_key(info.run_name)[: tags.LONGEST_TEXT],
            "experiment": names[info.experiment_id],
            "experiment_id": info.experiment_id,
            "status": run.data.tags.get(tags.ENDED, info.status) if info.status == "FAILED" else info.status,
            "started": pd.to_datetime(info.start_time, unit="ms", utc=True),
            "ended": pd.to_datetime(info.end_time, unit="ms", utc=True),
            "seen": pd.to_datetime(seen, unit="ms", utc=True),
            "epoch": int(steps.get(_EPOCHS, 0)),
            **{f"params.{name}": text[: tags.LONGEST_TEXT] for name, text in _settings(run).items()},
            **{f"metrics.{name}": value for name, value in current_metrics(run.data.metrics).items()},
            **{f"tags.{name}": text[: tags.LONGEST_TEXT] for name, text in _tags(run).items()},
        }

    def _run(self, run_id: str) -> Run:
        from mlflow.exceptions import MlflowException

        with store_errors(self._uri):
            try:
                return self._client.get_run(run_id)
            except MlflowException as error:
                if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                    raise
                raise UserError(f"there is no run {run_id} in the tracking store {self._uri}.") from error


def _pages(fetch: Callable[[str | None], PagedList[T]]) -> Iterator[T]:
    """Yield the items of all pages; `fetch` returns the page of a token."""
    page = fetch(None)
    yield from page
    while page.token:
        page = fetch(page.token)
        yield from page


def _settings(run: Run) -> dict[str, str]:
    """Return the run's params, with the values that MLflow would not let us write over an earlier text."""
    ours = {
        name.removeprefix(tags.SETTING): text for name, text in run.data.tags.items() if name.startswith(tags.SETTING)
    }
    return {name: redact(text) for name, text in stored_settings({**run.data.params, **ours}).items()}


def _tags(run: Run) -> dict[str, str]:
    """Return the run's tags; like params, those of earlier versions may hold an address with its password."""
    return {name: redact(text) for name, text in current_tags(run.data.tags).items()}


# Columns of the leaderboard, under their last name.
_SHOWN: Final = (
    "params.model",
    "params.mode",
    "params.objective",
    "params.seed",
    "params.inputs",
    "params.mask_label_words",
    "tags.weights_source",
    "tags.protocol",
    "tags.leaking",
    "tags.catalogue",
    *(f"tags.{name}" for name in tags.COMPARABLE),
    f"metrics.{SCORE}",
    f"metrics.{SCORE}_low",
    f"metrics.{SCORE}_high",
    "metrics.test_accuracy",
)

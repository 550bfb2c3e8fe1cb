"""Stand-ins for trainings: runs with the traces of real ones but no model, for what starts, stops and resumes them."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn
from unittest.mock import patch

import numpy as np
import pytest

from vlm_core.config import Config
from vlm_core.data import Data, load_data
from vlm_core.evaluation.predictions import Predictions
from vlm_core.inference import evaluate_predictions
from vlm_core.tracking import writer
from vlm_core.tracking.writer import EpochWriter, RunWriter
from vlm_core.training.prefix_cost import PrefixCost
from vlm_core.workflows.data_parallel import SharedTraining, train_part
from vlm_core.workflows.train import TrainingOutcome, TrialResult

if TYPE_CHECKING:
    from vlm_core.engine.together import Place

Epoch = Callable[[Config, int], None]


def train_nothing(
    after_epoch: Epoch = lambda config, epoch: None, model: Path | None = None
) -> Callable[..., TrainingOutcome]:
    """A stand-in for `run_training`, whose predictions are random.

    `after_epoch` is called after each of two epochs; `model` is the folder of a categoriser that the run shall hold.
    """

    def train(
        config: Config, root: Path, *, data: Data | None = None, parent: str = "", register_model: bool = True
    ) -> TrainingOutcome:
        data = data or load_data(config, root)
        split = data.split
        with RunWriter(config.experiment, config.run_name, resume=config.resume, parent=parent, folder=root) as run:
            run.params(config.to_params())
            run.dataset(data.catalogue, split)
            for epoch in (1, 2):
                run.epoch_metrics(epoch, {"seconds": 0.1, "validation_macro_f1": epoch / 4})
                after_epoch(config, epoch)
            predictions = _predict_at_random(data, split.test, config.seed)
            evaluation = evaluate_predictions(config, data.catalogue, predictions, split.test, split.prior)
            run.evaluation(evaluation)
            run.predictions(_predict_at_random(data, split.validation, config.seed), "validation")
            if model:
                run.model(model)
        return TrainingOutcome(run.run_id, config, split, evaluation)

    return train


def try_nothing(after_epoch: Epoch = lambda config, epoch: None) -> Callable[..., TrialResult]:
    """A stand-in for `run_trial`: the closer the learning rate to 0.01, the better the score of every epoch."""

    def try_out(
        config: Config,
        data: Data,
        root: Path,
        parent: str,
        on_start: Callable[[str], None],
        should_continue: Callable[[int, float], bool],
    ) -> TrialResult:
        score = 1 / (1 + abs(math.log10(config.learning_rate) + 2))
        with RunWriter(config.experiment, config.run_name, parent=parent, folder=root) as run:
            on_start(run.run_id)
            run.tags({"kind": "trial"})
            for epoch in range(1, config.epochs + 1):
                run.epoch_metrics(epoch, {"validation_macro_f1": score * epoch / config.epochs})
                after_epoch(config, epoch)
                if not should_continue(epoch, score * epoch / config.epochs):
                    run.tags({"pruned": "true"})
                    return TrialResult(0.0, math.inf, pruned=True)
        return TrialResult(score, config.learning_rate, pruned=False)

    return try_out


def _predict_at_random(data: Data, rows: np.ndarray, seed: int) -> Predictions:
    scores = np.random.default_rng(seed).normal(size=(len(rows), len(data.split.categories)))
    scores -= np.log(np.exp(scores).sum(axis=1, keepdims=True))
    ids = data.catalogue.products["product_id"].to_numpy(str)
    return Predictions(ids[rows], data.split.labels[rows], scores.astype(np.float32), data.split.categories)


def kill_at(work: Callable[[Callable[[], NoReturn]], object]) -> None:
    """Do `work` in a process that is killed (SIGKILL) where it calls what `work` is given."""
    reading, writing = os.pipe()

    def here() -> NoReturn:
        os.write(writing, b"x")
        while True:
            signal.pause()

    process = get_context("fork").Process(target=work, args=(here,))
    process.start()
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        reached = pipe.read(1)
    process.kill()
    process.join()
    assert reached, f"the process ended by itself, with exit code {process.exitcode}"


class Killed(BaseException):
    """In the place of SIGKILL within this process: nothing that comes after it is written."""


def kill_on_entry(patch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
    """Have the process "die" where `owner.name` is called: the run stays RUNNING, and nobody marks or cleans anything.

    `patch` undoes it.
    """
    from mlflow import MlflowClient

    end_run, finalise = writer.end_run, MlflowClient.finalize_logged_model

    def end(client: Any, uri: str, run: Any, error: BaseException | None, system: Any) -> None:
        if not isinstance(error, Killed):
            end_run(client, uri, run, error, system)

    def die(*_: Any, **__: Any) -> NoReturn:
        raise Killed

    def mark(client: Any, model_id: str, status: str) -> Any:
        return None if status == "FAILED" else finalise(client, model_id, status)

    patch.setattr(writer, "end_run", end)
    patch.setattr(MlflowClient, "finalize_logged_model", mark)
    patch.setattr(owner, name, die)


def train_part_killed_once(job: SharedTraining, place: Place) -> PrefixCost:
    """Do `train_part`, but the first time kill the first worker (SIGKILL) where it would log its second epoch."""
    log, mark = EpochWriter.epoch, job.root / "killed"

    def log_or_die(run: EpochWriter, report: Any, *, plot: bool = True) -> None:
        if report.epoch == 2 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        log(run, report, plot=plot)

    with patch.object(EpochWriter, "epoch", log_or_die):
        return train_part(job, place)

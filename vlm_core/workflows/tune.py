"""Optuna's door: a study whose trials share kept states of frozen layers, and whose winner alone sees the test split.

A study lives in a journal file or a database under a name by which it is gone on with; its trials are runs below one
MLflow run. Akiba et al. 2019, arXiv 1907.10902.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, Trial, TrialState

from vlm_core.config import TUNING, Config, build_config, searchable
from vlm_core.data import Data, load_data, words
from vlm_core.errors import Diverged, UserError
from vlm_core.presets import HEAD_SEARCH
from vlm_core.progress import log_to_stdout, quiet, shows_messages
from vlm_core.tracking import tags
from vlm_core.tracking.signals import ending_workers
from vlm_core.tracking.writer import RunWriter
from vlm_core.workflows.train import Outcome, TrialResult, run_training, run_trial

logger = logging.getLogger(__name__)

JOURNAL: Final = "optuna.log"
FINISHED: Final = (TrialState.COMPLETE, TrialState.PRUNED)
# Names under which a study or a trial keeps what Optuna does not ask for.
SETTINGS: Final = "settings"
RUN: Final = "mlflow_run"
WINNER: Final = "winner_run"
# Settings that may differ between the beginnings, or the machines, of one study.
_FREE: Final = frozenset({"trials", "workers", "threads", "storage", "device", "cache_gib", "resamples"})
# Optuna's plots by the number of objectives.
_FIGURES: Final = {
    1: ("optimization_history", "param_importances", "parallel_coordinate", "slice"),
    2: ("pareto_front",),
}
_BLOCK_MODES: Final = frozenset({"auto", "last-blocks", "lora", "lp-ft"})


@dataclass(frozen=True)
class SearchOutcome:
    """A finished search: its own run, how its trials ended, and what became of the winner."""

    run_id: str
    study: optuna.Study
    best: FrozenTrial
    winner: Outcome | None  # None where it was retrained before, or is by another process

    def best_rows(self, count: int = 5) -> list[tuple[str, str, str]]:
        """Number, validation macro-F1 and settings of the best trials that were completed."""
        complete = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        best = sorted(complete, key=lambda trial: -trial.values[0])[:count]
        return [(str(trial.number), f"{trial.values[0]:.4f}", _shown(trial.params)) for trial in best]


def run_search(config: Config, root: Path) -> SearchOutcome:
    """Search until the study has its trials, then retrain the best settings, evaluate them on test and register them.

    A study of that name is gone on with: trials that died with their process are repeated. Where another process leads
    it, this one only does trials. Raises UserError.
    """
    search = _Search(config, root)
    logger.info(f"Study {search.name} in {search.storage_name}: searching {', '.join(search.space)}.")
    data = load_data(config, root)
    study = search.open()
    leader = str(study.user_attrs.get(tags.PROCESS, ""))
    led = leader not in ("", tags.process_tag()) and not tags.process_is_dead(leader)
    if led and not study.user_attrs.get(WINNER):
        logger.info(f"Another process leads the study {search.name}: this one does trials for it.")
        search.work(data, str(study.user_attrs[RUN]))
        return SearchOutcome(str(study.user_attrs[RUN]), study, search.best(study), None)
    return _lead(search, study, data)


def _lead(search: _Search, study: optuna.Study, data: Data) -> SearchOutcome:
    config = search.config
    before = str(study.user_attrs.get(RUN, ""))
    done = study.user_attrs.get(WINNER)
    if done and len(study.get_trials(states=FINISHED)) >= config.trials:
        raise UserError(
            f"The study {search.name} has its {config.trials} trials and its winner, run {done}: "
            "raise trials to go on with it, or name another with study=."
        )
    resume = "" if done else before
    with RunWriter(config.experiment, search.name, resume=resume, folder=search.root) as run:
        for name, text in {RUN: run.run_id, tags.PROCESS: tags.process_tag(), WINNER: ""}.items():
            study.set_user_attr(name, text)
        run.tags({"kind": "search", "study": search.name, "storage": search.storage_name})
        run.params({**config.to_params(TUNING), "search": ",".join(search.space)})
        if before:
            _repeat_dead_trials(study)
            run.end_dead_children()
        search.run_workers(data, run.run_id)
        best = search.best(study)
        _report(study, search, best, run)
        settings = {**search.given, **best.params, "run_name": f"{search.name}-winner"}
        logger.info("The winner: " + ", ".join(f"{name}={value}" for name, value in best.params.items()) + ".")
        winner = run_training(build_config(settings), search.root, parent=run.run_id)
        study.set_user_attr(WINNER, winner.run_id)
    return SearchOutcome(run.run_id, study, best, winner)


@dataclass(frozen=True)
class _Search:
    """One process's part in a study."""

    config: Config
    root: Path

    @cached_property
    def space(self) -> dict[str, BaseDistribution]:
        """What is searched. Raises UserError for a setting that has no range, or no effect."""
        return _space(self.config)

    @property
    def name(self) -> str:
        """The study's name."""
        return self.config.study or f"{self.config.model}-{self.config.mode}"

    @property
    def given(self) -> dict[str, Any]:
        """The settings that every trial has."""
        return {name: getattr(self.config, name) for name in self.config.model_fields_set}

    @property
    def storage_name(self) -> str:
        """Where the study is, without user and password."""
        return self.config.storage.split("@")[-1] or str(self.root / JOURNAL)

    def open(self, seed: int = 0) -> optuna.Study:
        """The study, made where it is not there. Raises UserError where it was begun with other settings."""
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        several = "," in self.config.objectives
        try:
            study = optuna.create_study(
                study_name=self.name,
                storage=self._storage(),
                sampler=optuna.samplers.TPESampler(seed=self.config.seed + seed),
                pruner=optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=1),
                directions=["maximize", "minimize"] if several else ["maximize"],
                load_if_exists=True,
            )
        except Exception as error:
            raise UserError(f"The study cannot be kept in {self.storage_name}: {error}.") from error
        settings = {name: text for name, text in self.config.to_params(TUNING).items() if name not in _FREE}
        known = study.user_attrs.get(SETTINGS)
        if known is None:
            study.set_user_attr(SETTINGS, settings)
        elif different := [name for name in settings if known.get(name) != settings[name]]:
            raise UserError(
                f"The study {self.name} was begun with {different[0]}={known.get(different[0])}, not "
                f"{settings[different[0]]}: give the same settings to go on with it, or name another with study=."
            )
        return study

    def _storage(self) -> optuna.storages.BaseStorage:
        from optuna.storages.journal import JournalFileBackend

        if self.config.storage:
            return optuna.storages.RDBStorage(self.config.storage)
        return optuna.storages.JournalStorage(JournalFileBackend(str(self.root / JOURNAL)))

    def best(self, study: optuna.Study) -> FrozenTrial:
        """The trial of the best validation macro-F1. Raises UserError where none was completed."""
        complete = study.get_trials(states=(TrialState.COMPLETE,))
        if not complete:
            raise UserError(
                "No trial was completed: lower learning_rate's range with search=, or see the runs' failures."
            )
        return max(complete, key=lambda trial: trial.values[0])

    def run_workers(self, data: Data, parent: str) -> None:
        """Do the trials, in as many processes as there are to be. Raises UserError when one of them failed."""
        if self.config.workers == 1:
            self.work(data, parent)
            return
        share = max(1, min(self.config.threads, os.cpu_count() or 1) // self.config.workers)
        config = self.config.model_copy(update={"threads": share})
        start = multiprocessing.get_context("spawn").Process
        workers = [
            start(target=_worker, args=(config, self.root, parent, number, shows_messages()))
            for number in range(1, self.config.workers + 1)
        ]
        with ending_workers():
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join()
        if any(worker.exitcode for worker in workers):
            raise UserError(f"A worker of the study {self.name} failed: see above; the same command goes on with it.")

    def work(self, data: Data, parent: str, number: int = 0, leader: int = 0) -> None:
        """Do trials until the study has enough of them, or the process `leader`, where one is named, has gone."""
        study = self.open(seed=number)
        while _begun(study) < self.config.trials and leader in (0, os.getppid()):
            trial = study.ask(self.space)
            trial.set_user_attr(tags.PROCESS, tags.process_tag())
            self._do(study, trial, data, parent)

    def _do(self, study: optuna.Study, trial: Trial, data: Data, parent: str) -> None:
        several = len(study.directions) > 1

        def goes_on(epoch: int, macro_f1: float) -> bool:
            if several:
                return True
            trial.report(macro_f1, epoch)
            return not trial.should_prune()

        started = time.monotonic()
        settings = {**self.given, **trial.params, "run_name": f"{self.name}-{trial.number}"}
        try:
            result = run_trial(
                build_config(settings),
                data,
                self.root,
                parent,
                lambda run_id: trial.set_user_attr(RUN, run_id),
                goes_on,
            )
        except Diverged as error:
            result = TrialResult(macro_f1=0.0, seconds=float("inf"), pruned=True)
            trial.set_user_attr(tags.FAILURE, str(error))
        except BaseException:
            study.tell(trial, state=TrialState.FAIL)
            raise
        if result.pruned:  # Optuna knows no pruning by two objectives
            study.tell(trial, state=TrialState.FAIL if several else TrialState.PRUNED)
        else:
            study.tell(trial, [result.macro_f1, result.seconds] if several else result.macro_f1)
        ended = "pruned" if result.pruned else f"validation macro-F1 {result.macro_f1:.4f}"
        logger.info(f"Trial {trial.number}: {_shown(trial.params)}: {ended} ({time.monotonic() - started:.0f} s).")


def _worker(config: Config, root: Path, parent: str, number: int, verbose: bool) -> None:
    """What a process of its own does for the study."""
    if verbose:
        log_to_stdout()
    try:
        with quiet():
            data = load_data(config, root)
        _Search(config, root).work(data, parent, number, leader=os.getppid())
    except (UserError, KeyboardInterrupt) as error:
        raise SystemExit(str(error)) from None


def _space(config: Config) -> dict[str, BaseDistribution]:
    ranges, named = searchable(), words(config.search)
    if unknown := [name for name in named if name not in ranges]:
        raise UserError(
            f"search={unknown[0]}: that setting has no range to search; those that have: {', '.join(ranges)}."
        )
    idle = {"blocks"} if config.mode not in _BLOCK_MODES else set[str]()
    idle |= {"lora_rank"} if config.mode != "lora" else set()
    ranges |= HEAD_SEARCH if config.mode == "probe" else {}
    space = {name: _distribution(name, ranges[name]) for name in named if name not in idle}
    if not space:
        raise UserError(f"search={config.search}: none of these has an effect on mode={config.mode}.")
    return space


def _distribution(name: str, ranges: Mapping[str, Any]) -> BaseDistribution:
    if "choices" in ranges:
        return CategoricalDistribution(ranges["choices"])
    whole = Config.model_fields[name].annotation is int
    return (IntDistribution if whole else FloatDistribution)(ranges["low"], ranges["high"], log=ranges["log"])


def _shown(params: Mapping[str, Any]) -> str:
    texts = {name: f"{value:.4g}" if isinstance(value, float) else str(value) for name, value in params.items()}
    return ", ".join(f"{name}={text}" for name, text in texts.items())


def _begun(study: optuna.Study) -> int:
    """Trials that have finished, or that a living process is at."""
    trials = study.get_trials(deepcopy=False, states=(*FINISHED, TrialState.RUNNING))
    return sum(not _is_dead(trial) for trial in trials)


def _is_dead(trial: FrozenTrial) -> bool:
    process = str(trial.user_attrs.get(tags.PROCESS, ""))
    return trial.state == TrialState.RUNNING and tags.process_is_dead(process)


def _repeat_dead_trials(study: optuna.Study) -> None:
    """Mark the trials whose process was killed as failed, and put their settings first in the queue."""
    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        if _is_dead(trial):
            study.tell(trial.number, state=TrialState.FAIL)
            if trial.params:
                study.enqueue_trial(trial.params)
            logger.info(f"Trial {trial.number} died with its process: it is repeated.")


def count_states(study: optuna.Study) -> dict[str, int]:
    """How many trials are complete, pruned, failed, running or waiting; states without any are left out."""
    states = [trial.state.name.lower() for trial in study.get_trials(deepcopy=False)]
    return {state: states.count(state) for state in sorted(set(states))}


def _report(study: optuna.Study, search: _Search, best: FrozenTrial, run: RunWriter) -> None:
    """Keep what the search found: counts, the best trial, every trial as a table, and Plotly's figures of it."""
    from optuna import visualization

    counts = {f"trials_{state}": float(count) for state, count in count_states(study).items()}
    run.metrics({"best_validation_macro_f1": best.values[0], **counts})
    run.tags({"best_trial": str(best.number), "best_settings": json.dumps(best.params)})
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        study.trials_dataframe().to_csv(folder / "trials.csv", index=False)
        for name in _FIGURES[len(study.directions)]:
            try:
                getattr(visualization, f"plot_{name}")(study).write_html(folder / f"{name}.html")
            except (ValueError, RuntimeError) as error:  # too few trials, or all of one score
                logger.info(f"No figure of {name}: {error}")
        run.artifact(folder, "search")

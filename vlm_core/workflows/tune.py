"""Search for a model's best settings with Optuna, and retrain it with them.

All trials share the feature cache, and only the retrained model is evaluated on the test split. A search is stored in a
journal file or a database under a name by which it is resumed; its trials are runs below one MLflow run. Akiba et al.
2019, arXiv 1907.10902.
"""

from __future__ import annotations

import json
import logging
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Final, cast

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, Trial, TrialState

from vlm_core.config import OF_MACHINES, Config, SearchConfig, searchable
from vlm_core.config.aliases import stored_settings
from vlm_core.config.lists import split_list
from vlm_core.config.presets import HEAD_SEARCH
from vlm_core.data import Data, load_data
from vlm_core.engine.tasks import Engine, open_engine, run_children
from vlm_core.errors import Diverged, UserError, redact
from vlm_core.progress import quiet
from vlm_core.tracking import tags
from vlm_core.tracking.opening import prepare_store
from vlm_core.tracking.patience import Patient, expect, patiently
from vlm_core.tracking.reader import RunReader
from vlm_core.tracking.store import store_uri
from vlm_core.tracking.writer import RunWriter
from vlm_core.workflows.run_corrections import fetch_corrections
from vlm_core.workflows.search_storage import (
    RUN,
    SECONDS_SILENT,
    end_failed_runs,
    heartbeat,
    open_database,
    open_journal,
    queue_again,
    repeat_forgotten,
    repeat_trial,
    run_name,
)
from vlm_core.workflows.train import TrainingOutcome, TrialResult, run_training, run_trial

logger = logging.getLogger(__name__)

JOURNAL: Final = "optuna.log"
FINISHED: Final = (TrialState.COMPLETE, TrialState.PRUNED)
# User attributes of a search or a trial.
SETTINGS: Final = "settings"
WINNER: Final = "winner_run"
LEADER_BEAT: Final = "leader_beat"
BEATS: Final = "beats"  # on a trial whose process says that it is alive, if the search is in a database
# Settings that may differ between the processes of one search.
_MAY_DIFFER: Final = frozenset(
    {
        "trials",
        "workers",
        "engine",
        "address",
        "threads",
        "storage",
        "device",
        "cache_gib",
        "resamples",
        "shared_checkpoints",
    }
)
_SECONDS_BETWEEN_CHECKS: Final = 2.0
_SEEDS_PER_TRIAL: Final = 1000  # more than there are workers
# Optuna's plots, by the number of objectives.
_PLOTS: Final = {
    1: ("optimization_history", "param_importances", "parallel_coordinate", "slice"),
    2: ("pareto_front",),
}
_BLOCK_MODES: Final = frozenset({"auto", "last-blocks", "lora", "lp-ft"})


@dataclass(frozen=True)
class SearchOutcome:
    """A finished search: its run, its trials, the best of them, and the model retrained with its settings."""

    run_id: str
    search: optuna.Study
    best: FrozenTrial
    winner: TrainingOutcome | None  # None where another process retrains the model

    def best_rows(self, count: int = 5) -> list[tuple[str, str, str]]:
        """Return number, validation macro-F1 and settings of the best completed trials."""
        complete = self.search.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        best = sorted(complete, key=lambda trial: -trial.values[0])[:count]
        return [(str(trial.number), f"{trial.values[0]:.4f}", _format_settings(trial.params)) for trial in best]


def run_search(config: SearchConfig, root: Path) -> SearchOutcome:
    """Run trials until the search has all of them, then retrain with the best settings, test and register the model.

    A search of that name is resumed: trials that died with their process are repeated. Where another process leads it,
    this one only runs trials. Raises UserError.
    """
    if config.engine == "ray" and not config.storage:
        raise UserError(
            "engine=ray keeps a search in a database that all nodes reach: add storage=postgresql+psycopg://... or, "
            "where the cluster is this machine alone, storage=sqlite:///search.db."
        )
    worker = _Worker(config, root)
    logger.info(f"Search {worker.name} in {worker.storage_name}: {', '.join(worker.space)}.")
    prepare_store(config.experiment, root)
    search = worker.open_search()
    config = config.resuming(stored_settings(search.user_attrs[SETTINGS]))
    worker = _Worker(config, root)
    fetch_corrections(config, root)
    data = load_data(config, root)
    if _is_led(search) and not search.user_attrs.get(WINNER):
        logger.info(f"Another process leads the search {worker.name}: this one runs trials for it.")
        worker.run_trials(data, str(search.user_attrs[RUN]))
        return SearchOutcome(str(search.user_attrs[RUN]), search, _best_trial(search), None)
    with open_engine(config, store_uri(), config.storage) as engine, worker.leading():
        return _lead(worker, search, data, engine)


def _is_led(search: optuna.Study) -> bool:
    """Return whether another process leads the search: one that is not known to be dead here, nor silent elsewhere."""
    leader = str(search.user_attrs.get(tags.PROCESS, ""))
    if leader in ("", tags.process_tag()) or tags.process_is_dead(leader):
        return False
    return time.time() - float(search.user_attrs.get(LEADER_BEAT, time.time())) < SECONDS_SILENT


def _lead(worker: _Worker, search: optuna.Study, data: Data, engine: Engine) -> SearchOutcome:
    """Run all trials in a new run, or in that of a search that was stopped, and retrain with the best settings."""
    config = worker.config
    previous_run = str(search.user_attrs.get(RUN, ""))
    interrupted = _was_interrupted(previous_run)
    previous_winner = "" if interrupted else search.user_attrs.get(WINNER)
    if previous_winner and len(search.get_trials(states=FINISHED)) >= config.trials:
        raise UserError(
            f"The search {worker.name} has all of its {config.trials} trials, and run {previous_winner} was retrained: "
            "raise trials= to continue it, or start another with search_name=."
        )
    resume = previous_run if interrupted else ""
    with RunWriter(config.experiment, worker.name, resume=resume, folder=worker.root) as run:
        for name, text in {RUN: run.run_id, tags.PROCESS: tags.process_tag(), WINNER: ""}.items():
            search.set_user_attr(name, text)
        run.tags({"kind": "search", tags.SEARCH_NAME: worker.name, "storage": worker.storage_name})
        run.params({**config.to_params(), "search": ",".join(worker.space)})
        if previous_run:
            worker.repeat_dead_trials(search)
            repeat_forgotten(search, worker.root)
        worker.run_workers(engine, data, run.run_id)
        end_failed_runs(search)
        best = _best_trial(search)
        _log_search(search, best, run)
        logger.info("Best settings: " + ", ".join(f"{name}={value}" for name, value in best.params.items()) + ".")
        winner = _retrain(worker, best, data, run.run_id)
        search.set_user_attr(WINNER, winner.run_id)
    return SearchOutcome(run.run_id, search, best, winner)


def _was_interrupted(run_id: str) -> bool:
    """Return whether the run of a search is in the store and not finished."""
    if not run_id:
        return False
    runs = RunReader().runs(f"attributes.run_id = '{run_id}'")
    return len(runs) > 0 and bool((runs["status"] != "FINISHED").all())


def _retrain(worker: _Worker, best: FrozenTrial, data: Data, run_id: str) -> TrainingOutcome:
    """Train with the best trial's settings below the search's run; what a killed process has trained is kept."""
    settings = {**worker.fixed_settings, **best.params, "run_name": f"{worker.name}-winner"}
    reader, resume = RunReader(), ""
    children = reader.children(run_id)
    for number in children.index[children["name"] == settings["run_name"]]:
        winner, status = (str(children.loc[number, column]) for column in ("run_id", "status"))
        stored = Config.from_params(reader.params(winner))
        if any(getattr(stored, name) != value for name, value in best.params.items()):
            continue
        if status == "FINISHED":
            return TrainingOutcome(winner, stored, data.split, reader.evaluation(winner))
        resume = winner
    return run_training(Config.build({**settings, "resume": resume}), worker.root, data=data, parent=run_id)


@dataclass(frozen=True)
class _Worker:
    """A process that works for a search."""

    config: SearchConfig
    root: Path

    @cached_property
    def space(self) -> dict[str, BaseDistribution]:
        """The settings that are searched over. Raises UserError for one without a range, or when none has an effect."""
        return _space(self.config)

    @property
    def name(self) -> str:
        """The search's name."""
        return self.config.search_name or f"{self.config.model}-{self.config.mode}"

    @property
    def fixed_settings(self) -> dict[str, Any]:
        """The settings that the user gave, which every trial shares."""
        names = self.config.model_fields_set & Config.model_fields.keys() - OF_MACHINES
        return {name: getattr(self.config, name) for name in names}

    @property
    def storage_name(self) -> str:
        """Where the search is stored, without user and password."""
        return redact(self.config.storage) or str(self.root / JOURNAL)

    def open_search(self, seed: int = 0) -> optuna.Study:
        """Open the search, or create it. Raises UserError where it was started with other settings."""
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        several = "," in self.config.search_objectives
        try:
            search = optuna.create_study(
                study_name=self.name,
                storage=self._storage(),
                sampler=optuna.samplers.TPESampler(seed=self.config.seed + seed),
                pruner=optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=1),
                directions=["maximize", "minimize"] if several else ["maximize"],
                load_if_exists=True,
            )
        except json.JSONDecodeError as error:
            raise UserError(
                f"{self.storage_name} holds a broken line ({error}), so that no search in it can be read: bring back a "
                "backup, or move the file away to start again."
            ) from error
        except Exception as error:
            raise UserError(f"The search cannot be stored in {self.storage_name}: {error}.") from error
        stored = stored_settings(search.user_attrs.get(SETTINGS, {}))
        wanted = self.config.resuming(stored).to_params()
        settings = {name: text for name, text in wanted.items() if name not in _MAY_DIFFER}
        if not stored:
            search.set_user_attr(SETTINGS, settings)
        elif different := [name for name in settings if stored.get(name, settings[name]) != settings[name]]:
            raise UserError(
                f"The search {self.name} was started with {different[0]}={stored[different[0]]}, not "
                f"{settings[different[0]]}: repeat its settings to resume it, or start another with search_name=."
            )
        # Sampling continues where it is resumed: from the same seed it would begin with the same trials again.
        if ended := len(search.get_trials(deepcopy=False, states=(*FINISHED, TrialState.FAIL))):
            again = (self.config.seed + seed + _SEEDS_PER_TRIAL * ended) % 2**32
            search.sampler = optuna.samplers.TPESampler(seed=again)
        return search

    def _storage(self) -> optuna.storages.BaseStorage:
        if address := self.config.storage:
            database = self._database
            expect(address)  # it has just answered
            return cast("optuna.storages.BaseStorage", Patient(database, address))
        return open_journal(self.root / JOURNAL)

    @cached_property
    def _database(self) -> Any:
        """The search's database, without any patience."""
        return open_database(self.config.storage, self.root)

    @cached_property
    def _in_database(self) -> optuna.Study:
        """The search, without any patience."""
        return optuna.load_study(study_name=self.name, storage=self._database)

    def leading(self) -> AbstractContextManager[None]:
        """Say in a database that the search's leader is alive, inside the block."""
        return self._heartbeat(lambda: self._in_database.set_user_attr(LEADER_BEAT, time.time()))

    def _alive(self, trial: Trial) -> AbstractContextManager[None]:
        return self._heartbeat(lambda: self._database.record_heartbeat(trial._trial_id))

    def _heartbeat(self, alive: Callable[[], object]) -> AbstractContextManager[None]:
        return heartbeat(alive, self.config.storage) if self.config.storage else nullcontext()

    def run_workers(self, engine: Engine, data: Data, parent: str) -> None:
        """Run the trials in `workers` processes. Raises UserError when one of them failed."""
        if self.config.workers == 1 and self.config.engine == "local":
            self.run_trials(data, parent)
            return
        config = self.config.model_copy(update={"threads": engine.threads(self.config.workers)})
        work = partial(run_trials, config, self.root, parent)
        numbers = range(1, self.config.workers + 1)
        ends = [*run_children(engine, parent, work, numbers, lambda number: number)]
        if errors := [ended.error for ended in ends if ended.error]:
            raise UserError(
                f"A worker of the search {self.name} failed with: {errors[0]} Repeat the command to resume it."
            )

    def run_trials(self, data: Data, parent: str, number: int = 0) -> None:
        """Run trials until the search has enough of them."""
        search = self.open_search(seed=number)
        while self._wants_trial(search):
            trial = search.ask(self.space)
            with self._alive(trial):
                trial.set_user_attr(BEATS, True)
                trial.set_user_attr(tags.PROCESS, tags.process_tag())
                self._run_trial(search, trial, data, parent)

    def _wants_trial(self, search: optuna.Study) -> bool:
        """Return whether the search wants another trial; where it is in a database, once one of those that run died."""
        while self.config.storage:
            self.repeat_dead_trials(search)
            if self._count_started(search) < self.config.trials:
                return True
            trials = search.get_trials(deepcopy=False, states=(*FINISHED, TrialState.RUNNING))
            finished = sum(trial.state in FINISHED for trial in trials)
            heard = any(BEATS in trial.user_attrs for trial in trials if trial.state not in FINISHED)
            if finished >= self.config.trials or not heard:  # those of an earlier version are not waited for
                return False
            time.sleep(_SECONDS_BETWEEN_CHECKS)
        return self._count_started(search) < self.config.trials

    def _count_started(self, search: optuna.Study) -> int:
        """Count the trials that have finished or that a living process runs."""
        trials = search.get_trials(deepcopy=False, states=(*FINISHED, TrialState.RUNNING))
        return sum(not self._is_dead(trial) for trial in trials)

    def _is_dead(self, trial: FrozenTrial) -> bool:
        """Return whether a trial's process is known to be dead, on this machine or because it never gave its name."""
        if trial.state != TrialState.RUNNING:
            return False
        if process := str(trial.user_attrs.get(tags.PROCESS, "")):
            return tags.process_is_dead(process)
        began = trial.datetime_start or datetime.now()
        return datetime.now() - began > timedelta(seconds=SECONDS_SILENT if self.config.storage else 0)

    def repeat_dead_trials(self, search: optuna.Study) -> None:
        """Mark the trials whose process died as failed, queue their settings first, and end their runs."""
        failed = len(search.get_trials(deepcopy=False, states=(TrialState.FAIL,)))
        if self.config.storage:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                patiently(self.config.storage, optuna.storages.fail_stale_trials, self._in_database)
        for trial in search.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if self._is_dead(trial):
                try:
                    search.tell(trial.number, state=TrialState.FAIL)
                except (ValueError, optuna.exceptions.UpdateFinishedTrialError):
                    continue  # another process has just done so
                repeat_trial(search, trial, self.root)
        if len(search.get_trials(deepcopy=False, states=(TrialState.FAIL,))) > failed:
            with suppress(UserError):  # whoever leads does so again at the end
                end_failed_runs(search)

    def _run_trial(self, search: optuna.Study, trial: Trial, data: Data, parent: str) -> None:
        two_objectives = len(search.directions) > 1

        def should_continue(epoch: int, macro_f1: float) -> bool:
            if two_objectives:
                return True
            trial.report(macro_f1, epoch)
            return not trial.should_prune()

        started = time.monotonic()
        settings = {**self.fixed_settings, **trial.params, "run_name": run_name(search, trial)}
        try:
            result = run_trial(
                Config.build(settings),
                data,
                self.root,
                parent,
                lambda run_id: trial.set_user_attr(RUN, run_id),
                should_continue,
            )
        except Diverged as error:
            result = TrialResult(macro_f1=0.0, seconds=float("inf"), pruned=True)
            trial.set_user_attr(tags.FAILURE, str(error))
        except optuna.exceptions.UpdateFinishedTrialError:
            logger.warning(f"Trial {trial.number} was taken for dead while its database was away, and is repeated.")
            return
        except BaseException as error:
            search.tell(trial, state=TrialState.FAIL, skip_if_finished=True)
            if isinstance(error, KeyboardInterrupt):  # Ctrl-C, or what ends a worker whose leader has died
                queue_again(search, search.get_trials(deepcopy=False)[trial.number])
            raise
        if result.pruned:  # Optuna does not prune with two objectives
            search.tell(trial, state=TrialState.FAIL if two_objectives else TrialState.PRUNED, skip_if_finished=True)
        else:
            values = [result.macro_f1, result.seconds] if two_objectives else result.macro_f1
            search.tell(trial, values, skip_if_finished=True)
        score = "pruned" if result.pruned else f"validation macro-F1 {result.macro_f1:.4f}"
        seconds = time.monotonic() - started
        logger.info(f"Trial {trial.number}: {_format_settings(trial.params)}: {score} ({seconds:.0f} s).")


def run_trials(config: SearchConfig, root: Path, parent: str, number: int) -> None:
    """Run trials as worker `number`, in a process of its own."""
    with quiet():
        data = load_data(config, root)
    _Worker(config, root).run_trials(data, parent, number)


def _space(config: SearchConfig) -> dict[str, BaseDistribution]:
    ranges, names = searchable(), split_list(config.search)
    if unknown := [name for name in names if name not in ranges]:
        raise UserError(f"search={unknown[0]} cannot be searched over: choose from {', '.join(ranges)}.")
    idle = {"blocks"} if config.mode not in _BLOCK_MODES else set[str]()
    idle |= {"lora_rank"} if config.mode != "lora" else set()
    ranges |= HEAD_SEARCH if config.mode == "probe" else {}
    space = {name: _distribution(name, ranges[name]) for name in names if name not in idle}
    if not space:
        raise UserError(f"search={config.search}: none of these settings has an effect with mode={config.mode}.")
    return space


def _distribution(name: str, ranges: Mapping[str, Any]) -> BaseDistribution:
    if "choices" in ranges:
        return CategoricalDistribution(ranges["choices"])
    whole = Config.model_fields[name].annotation is int
    return (IntDistribution if whole else FloatDistribution)(ranges["low"], ranges["high"], log=ranges["log"])


def _format_settings(params: Mapping[str, Any]) -> str:
    texts = {name: f"{value:.4g}" if isinstance(value, float) else str(value) for name, value in params.items()}
    return ", ".join(f"{name}={text}" for name, text in texts.items())


def _best_trial(search: optuna.Study) -> FrozenTrial:
    """Return the trial with the best validation macro-F1. Raises UserError where none was completed."""
    complete = search.get_trials(states=(TrialState.COMPLETE,))
    if not complete:
        raise UserError("No trial was completed: see why the runs failed, or search over other settings with search=.")
    return max(complete, key=lambda trial: trial.values[0])


def count_states(search: optuna.Study) -> dict[str, int]:
    """Count the trials by state (complete, pruned, fail, running, waiting); states without any are left out."""
    states = [trial.state.name.lower() for trial in search.get_trials(deepcopy=False)]
    return {state: states.count(state) for state in sorted(set(states))}


def _log_search(search: optuna.Study, best: FrozenTrial, run: RunWriter) -> None:
    """Log the counts of trials, the best one, a table of all, and Optuna's plots."""
    from optuna import visualization

    counts = {f"trials_{state}": float(count) for state, count in count_states(search).items()}
    run.metrics({"best_validation_macro_f1": best.values[0], **counts})
    run.tags({"best_trial": str(best.number), "best_settings": json.dumps(best.params)})
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        search.trials_dataframe().to_csv(folder / "trials.csv", index=False)
        for name in _PLOTS[len(search.directions)]:
            try:
                getattr(visualization, f"plot_{name}")(search).write_html(folder / f"{name}.html")
            except (ValueError, RuntimeError) as error:  # too few trials, or all of one score
                logger.info(f"No plot {name}: {error}")
        run.artifact(folder, "search")

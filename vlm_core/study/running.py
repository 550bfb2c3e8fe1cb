"""A study from its settings to its report: cells as runs below one, each gone on with or done once."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from vlm_core.config import STUDY, Config
from vlm_core.data import load_data
from vlm_core.errors import UserError
from vlm_core.study.cells import Done, Todo, carry_out
from vlm_core.study.plan import MECHANISM, Cell, StudyPlan, plan_study
from vlm_core.tracking import tags
from vlm_core.tracking.reader import RunReader
from vlm_core.tracking.signals import SECONDS_TO_STOP, ending_workers
from vlm_core.tracking.writer import RunWriter

if TYPE_CHECKING:
    import pandas as pd

    from vlm_core.study.results import Results

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LOOKS: Final = 1.0  # of a worker, for the process that leads it
# Settings that may change when a study is gone on with.
_FREE: Final = frozenset({"workers", "threads", "device", "cache_gib"})


@dataclass(frozen=True)
class StudyOutcome:
    """A study whose cells are all done."""

    run_id: str
    results: Results


def run_study(config: Config, root: Path) -> StudyOutcome:
    """Carry out what is not done yet of the study of that name, and write its report among the artifacts of its run.

    A cell that fails is reported, and the others go on; the run then ends as FAILED, so that the same command repeats
    what failed. Raises UserError.
    """
    from vlm_core.attention.mechanisms import MECHANISMS
    from vlm_core.study.collecting import collect
    from vlm_core.study.report import write_interim_results, write_report

    plan = plan_study(config, tuple(MECHANISMS))
    name = config.study or config.preset
    data = load_data(plan.settings(plan.cells[0]), root)
    resume = _unfinished(name, config)
    with RunWriter(config.experiment, f"study {name}", resume=resume, folder=root) as run:
        run.tags({tags.KIND: "study", tags.STUDY: name, "cells": str(len(plan.cells))})
        run.params(config.to_params(STUDY))
        run.end_dead_children()
        todo = find_todo(plan, RunReader().children(run.run_id))
        logger.info(f"Study {name}: {len(plan.cells)} cells, {len(plan.cells) - len(todo)} of them done before.")
        failed, left = dict[str, str](), {each.cell.key for each in todo}
        for number, done in enumerate(_carry_out(todo, plan, config, root, run.run_id), start=1):
            ended = f"FAILED: {done.failure}" if done.failure else f"run {done.run_id}"
            logger.info(f"[{number}/{len(todo)}] {done.key}: {ended} ({done.seconds:.0f} s).")
            if done.failure:
                failed[done.key] = done.failure
            left.discard(done.key)
            if left and not any(Cell.of(key).seed == Cell.of(done.key).seed for key in left):
                # the dashboard shows it while the other seeds run
                write_interim_results(run, collect(run.run_id, name, plan, config, data, failed, interim=True))
        logger.info("Collecting the results ...")
        results = collect(run.run_id, name, plan, config, data, failed)
        write_report(run, results, data)
        if failed:
            raise UserError(
                f"{len(failed)} of {len(plan.cells)} cells failed, the first with: {next(iter(failed.values()))} "
                f"The report of run {run.run_id} leaves them out; the same command goes on with them."
            )
    return StudyOutcome(run.run_id, results)


def _unfinished(name: str, config: Config) -> str:
    """The run of that study that can be gone on with, or "". Raises UserError when its settings are others."""
    found = RunReader().studies(name)
    left = found[found["status"] != "FINISHED"] if len(found) else found
    if not len(left):
        return ""
    run_id, before = str(left["run_id"].iloc[0]), RunReader().params(str(left["run_id"].iloc[0]))
    wanted = config.to_params([name for name in STUDY if name not in _FREE])
    if different := [key for key, text in wanted.items() if before.get(key, text) != text]:
        key = different[0]
        raise UserError(
            f"The study {name} (run {run_id}) is not finished, and was begun with {key}={before[key]}, not "
            f"{wanted[key]}: go on with its settings, or name another with study=."
        )
    RunReader().check_resumable(run_id)
    return run_id


def find_todo(plan: StudyPlan, children: pd.DataFrame) -> list[Todo]:
    """What is left to do, given the runs below the study's.

    A cell that is trained but not measured keeps its run; one that was stopped in training goes on where it has epochs.
    """
    todo = []
    for cell in plan.cells:
        runs = children[children["name"] == cell.key] if len(children) else children
        finished = runs[runs["status"] == "FINISHED"] if len(runs) else runs
        wanted = set(plan.measurements(cell))
        if any(wanted <= measured for measured in _measured(finished)):
            continue
        begun = runs[runs["metrics.seconds"].notna()] if "metrics.seconds" in runs else runs.iloc[:0]
        kept = [] if cell.model == MECHANISM else [*finished["run_id"], *begun["run_id"]] if len(runs) else []
        todo.append(Todo(cell, str(kept[0]) if kept else "", trained=len(finished) > 0))
    return todo


def _measured(finished: pd.DataFrame) -> Iterator[set[str]]:
    """What each of these runs was measured by."""
    column = f"tags.{tags.STUDY_PARTS}"
    for text in finished[column] if column in finished else [""] * len(finished):
        yield set(text.split(",")) if isinstance(text, str) else set()


def _carry_out(todo: Sequence[Todo], plan: StudyPlan, config: Config, root: Path, parent: str) -> Iterator[Done]:
    """How each cell ended, as they end; in so many processes as there are to be."""
    if config.workers == 1 or len(todo) < 2:
        yield from (carry_out(each, plan, root, parent) for each in todo)
        return
    threads = max(1, min(config.threads, os.cpu_count() or 1) // config.workers)
    shared = replace(plan, given={**plan.given, "threads": threads})
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(config.workers, context, initializer=_watch, initargs=(os.getpid(),)) as pool:
        futures = [pool.submit(_work, each, shared, root, parent) for each in todo]
        try:
            with ending_workers():
                for future in as_completed(futures):
                    yield future.result()
        except BrokenProcessPool:
            raise UserError(
                "A process of the study was killed, perhaps for want of memory: the same command goes on, with fewer "
                "workers= if that is so."
            ) from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _work(todo: Todo, plan: StudyPlan, root: Path, parent: str) -> Done:
    """`carry_out`, after which a worker that was stopped ends: its pool would have it begin another cell."""
    try:
        return carry_out(todo, plan, root, parent)
    except KeyboardInterrupt:
        os._exit(128 + signal.SIGINT)


def _watch(leader: int) -> None:
    """End this process soon after its leader has gone, so that no cell is written by two.

    First as Ctrl-C would, so that its run is said to be stopped; the pool that it works for would wait for ever.
    """

    def look() -> None:
        while os.getppid() == leader:
            time.sleep(SECONDS_BETWEEN_LOOKS)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(SECONDS_TO_STOP)
        os._exit(1)

    threading.Thread(target=look, daemon=True).start()

"""A study from its settings to its report: every cell is a child run, which is resumed or run once."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from vlm_core.aliases import former_value
from vlm_core.config import StudyConfig
from vlm_core.data import load_data
from vlm_core.errors import UserError
from vlm_core.progress import shows_messages
from vlm_core.study.cells import CellOutcome, PendingCell, run_cell
from vlm_core.study.measurements import ADDED_LATER, CURRENT_NAMES
from vlm_core.study.plan import MECHANISM, Cell, StudyPlan, plan_study
from vlm_core.tracking import tags
from vlm_core.tracking.opening import prepare_store
from vlm_core.tracking.reader import RunReader
from vlm_core.tracking.signals import ending_workers
from vlm_core.tracking.workers import start_worker
from vlm_core.tracking.writer import RunWriter
from vlm_core.workflows.corrections import fetch_corrections

if TYPE_CHECKING:
    import pandas as pd

    from vlm_core.study.results import Results

logger = logging.getLogger(__name__)

# Settings that may change when a study is resumed.
_FREE: Final = frozenset({"workers", "threads", "device", "cache_gib"})


@dataclass(frozen=True)
class StudyOutcome:
    """A study whose cells are all finished."""

    run_id: str
    results: Results


def run_study(config: StudyConfig, root: Path) -> StudyOutcome:
    """Run the cells of the study that are not finished, and write its report into the artifacts of its run.

    A cell that fails is reported, and the others continue; the run then ends as FAILED, so that the same command
    repeats the failed cells. Raises UserError.
    """
    from vlm_core.attention.mechanisms import MECHANISMS
    from vlm_core.study.collecting import collect
    from vlm_core.study.continual import article_types
    from vlm_core.study.report import write_interim_results, write_report

    plan = plan_study(config, tuple(MECHANISMS))
    name = config.study or config.preset
    prepare_store(config.experiment)
    if resume := _unfinished(name, config):
        config = config.resuming(RunReader().params(resume))
        plan = plan_study(config, tuple(MECHANISMS))
    fetch_corrections(config, root)
    data = load_data(plan.settings(plan.cells[0]) if plan.cells else plan.probe_settings(), root)
    if "continual" in plan.parts:
        article_types(config, data)  # refused before hours of work, not after
    with RunWriter(config.experiment, f"study {name}", resume=resume, folder=root) as run:
        run.tags({tags.KIND: "study", tags.STUDY: name, "cells": str(len(plan.cells))})
        run.params(config.to_params())
        pending = find_pending(plan, RunReader().children(run.run_id))
        finished = len(plan.cells) - len(pending)
        logger.info(f"Study {name}: {len(plan.cells)} cells, {finished} of them already finished.")
        failed, left = dict[str, str](), {each.cell.key for each in pending}
        for number, outcome in enumerate(_run_cells(pending, plan, config, root, run.run_id), start=1):
            ending = f"FAILED: {outcome.error}" if outcome.error else f"run {outcome.run_id}"
            logger.info(f"[{number}/{len(pending)}] {outcome.key}: {ending} ({outcome.seconds:.0f} s).")
            if outcome.error:
                failed[outcome.key] = outcome.error
            left.discard(outcome.key)
            if left and not any(Cell.of(key).seed == Cell.of(outcome.key).seed for key in left):
                # the dashboard shows them while the other seeds run
                interim = collect(run.run_id, name, plan, config, data, root, failed, interim=True)
                write_interim_results(run, interim)
        logger.info("Collecting the results ...")
        results = collect(run.run_id, name, plan, config, data, root, failed)
        write_report(run, results, data)
        if failed:
            raise UserError(
                f"{len(failed)} of {len(plan.cells)} cells failed, the first with: {next(iter(failed.values()))} "
                f"The report of run {run.run_id} leaves them out; the same command repeats them."
            )
    return StudyOutcome(run.run_id, results)


def _unfinished(name: str, config: StudyConfig) -> str:
    """Return the id of the study's unfinished run, or "". Raises UserError when its settings differ."""
    reader = RunReader()
    runs = reader.studies(name)
    if not len(runs) and not config.study:  # named after its preset, under that one's former name
        runs = reader.studies(former_value("preset", name))
    unfinished = runs[runs["status"] != "FINISHED"] if len(runs) else runs
    if not len(unfinished):
        return ""
    run_id = str(unfinished["run_id"].iloc[0])
    before = reader.params(run_id)
    wanted = {key: text for key, text in config.resuming(before).to_params().items() if key not in _FREE}
    if different := [key for key, text in wanted.items() if before.get(key, text) != text]:
        key = different[0]
        raise UserError(
            f"The study {name} (run {run_id}) is not finished and was started with {key}={before[key]}, not "
            f"{wanted[key]}: resume it with its settings, or name another with study=."
        )
    reader.check_resumable(run_id)
    return run_id


def find_pending(plan: StudyPlan, children: pd.DataFrame) -> list[PendingCell]:
    """Return the cells that are not finished, given the child runs of the study's run.

    A cell that is trained but not measured keeps its run; one that was stopped in training is resumed if it has epochs.
    """
    pending = []
    for cell in plan.cells:
        runs = children[children["name"] == cell.key] if len(children) else children
        finished = runs[runs["status"] == "FINISHED"] if len(runs) else runs
        wanted = set(plan.measurements(cell)) - ADDED_LATER
        if any(wanted <= measured for measured in _measured(finished)):
            continue
        resumable = runs[runs["metrics.seconds"].notna()] if "metrics.seconds" in runs else runs.iloc[:0]
        usable = [] if cell.model == MECHANISM or not len(runs) else [*finished["run_id"], *resumable["run_id"]]
        pending.append(PendingCell(cell, str(usable[0]) if usable else "", trained=len(finished) > 0))
    return pending


def _measured(finished: pd.DataFrame) -> Iterator[set[str]]:
    """Yield the names of each run's measurements."""
    column = f"tags.{tags.STUDY_PARTS}"
    for text in finished[column] if column in finished else [""] * len(finished):
        names = text.split(",") if isinstance(text, str) else []
        yield {CURRENT_NAMES.get(name, name) for name in names}


def _run_cells(
    pending: Sequence[PendingCell], plan: StudyPlan, config: StudyConfig, root: Path, parent: str
) -> Iterator[CellOutcome]:
    """Run the cells in `config.workers` processes, and yield each outcome as it comes."""
    if config.workers == 1 or len(pending) < 2:
        yield from (run_cell(each, plan, root, parent) for each in pending)
        return
    threads = max(1, min(config.threads, os.cpu_count() or 1) // config.workers)
    shared = replace(plan, shared_settings={**plan.shared_settings, "threads": threads})
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        config.workers, context, initializer=start_worker, initargs=(os.getpid(), shows_messages())
    ) as pool:
        futures = [pool.submit(_work, each, shared, root, parent) for each in pending]
        try:
            with ending_workers():
                for future in as_completed(futures):
                    yield future.result()
        except BrokenProcessPool:
            raise UserError(
                "A process of the study was killed, perhaps because memory ran out. Run the same command again to "
                "resume it, with fewer workers= if so."
            ) from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _work(pending: PendingCell, plan: StudyPlan, root: Path, parent: str) -> CellOutcome:
    """Run the cell; a worker that was stopped exits, because its pool would have it start another cell."""
    try:
        return run_cell(pending, plan, root, parent)
    except KeyboardInterrupt:
        os._exit(128 + signal.SIGINT)

"""A study from its settings to its report: every cell is a child run, which is resumed or run once."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from vlm_core.config import StudyConfig
from vlm_core.config.aliases import former_value
from vlm_core.data import load_data, text_columns
from vlm_core.engine.tasks import Ended, Engine, open_engine, run_children
from vlm_core.errors import UserError
from vlm_core.study.cells import PendingCell, run_cell
from vlm_core.study.frozen_towers import check_towers, checksums_text
from vlm_core.study.measurements import ADDED_LATER, CURRENT_NAMES
from vlm_core.study.plan import MECHANISM, Cell, StudyPlan, plan_study
from vlm_core.tracking import tags
from vlm_core.tracking.opening import end_orphans, prepare_store
from vlm_core.tracking.reader import RunReader
from vlm_core.tracking.store import store_uri
from vlm_core.tracking.writer import RunWriter
from vlm_core.workflows.run_corrections import fetch_corrections

if TYPE_CHECKING:
    import pandas as pd

    from vlm_core.study.results import Results

logger = logging.getLogger(__name__)

# Settings that may change when a study is resumed.
_FREE: Final = frozenset({"workers", "engine", "address", "threads", "device", "cache_gib", "shared_checkpoints"})


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

    plan = plan_study(config, tuple(MECHANISMS))
    name = config.study or config.preset
    prepare_store(config.experiment, root)
    if resume := _unfinished(name, config):
        config = config.resuming(RunReader().params(resume))
        plan = plan_study(config, tuple(MECHANISMS))
        check_towers(plan.towers, RunReader().tags(resume).get(tags.TOWERS, ""))
    with open_engine(config, store_uri()) as engine:
        return _run_plan(plan, config, name, root, resume, engine)


def _run_plan(plan: StudyPlan, config: StudyConfig, name: str, root: Path, resume: str, engine: Engine) -> StudyOutcome:
    """Run the cells that are not finished, in the run `resume` or a new one, and write the report."""
    from vlm_core.study.collecting import collect
    from vlm_core.study.continual_benchmark import article_types
    from vlm_core.study.report import write_interim_results, write_report

    fetch_corrections(config, root)
    data = load_data(plan.settings(plan.cells[0]) if plan.cells else plan.probe_settings(), root)
    if "continual" in plan.parts:
        article_types(config, data)  # refused before hours of work, not after
    if "fusion" in plan.parts:
        text_columns(config, data.catalogue)
    with RunWriter(config.experiment, f"study {name}", resume=resume, folder=root) as run:
        run.tags({tags.KIND: "study", tags.STUDY: name, "cells": str(len(plan.cells))})
        run.params(config.to_params())
        run.tags({tags.TOWERS: checksums_text(plan.towers)} if plan.towers else {})
        end_orphans(run.run_id)  # of a leader on another machine: cells end with their leader
        pending = find_pending(plan, RunReader().children(run.run_id))
        finished = len(plan.cells) - len(pending)
        logger.info(f"Study {name}: {len(plan.cells)} cells, {finished} of them already finished.")
        failed, left = dict[str, str](), {each.cell.key for each in pending}
        for number, ended in enumerate(_run_cells(engine, pending, plan, root, run.run_id), start=1):
            key = ended.task.cell.key
            ending = f"FAILED: {ended.error}" if ended.error else f"run {ended.result}"
            logger.info(f"[{number}/{len(pending)}] {key}: {ending} ({ended.seconds:.0f} s).")
            if ended.error:
                failed[key] = ended.error
            left.discard(key)
            if left and not any(Cell.of(other).seed == Cell.of(key).seed for other in left):
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
    engine: Engine, pending: Sequence[PendingCell], plan: StudyPlan, root: Path, parent: str
) -> Iterator[Ended[PendingCell, str]]:
    """Run the cells as tasks of the engine, and yield how each ended."""
    shared = replace(plan, shared_settings={**plan.shared_settings, "threads": engine.threads(len(pending))})
    work = partial(run_cell, plan=shared, root=root, parent=parent)
    yield from run_children(engine, parent, work, pending, partial(_retry_of, plan=plan, parent=parent))


def _retry_of(pending: PendingCell, plan: StudyPlan, parent: str) -> PendingCell:
    """Return how a cell is resumed whose process died: as the same command would after the study was killed."""
    end_orphans(parent, [pending.cell.key])
    children = RunReader().children(parent)
    if left := find_pending(replace(plan, cells=(pending.cell,)), children):
        return left[0]
    finished = children[(children["name"] == pending.cell.key) & (children["status"] == "FINISHED")]
    return PendingCell(pending.cell, str(finished["run_id"].iloc[0]), trained=True)  # it died before it could say so

"""One training that the workers of a Ray cluster share: each computes its part of every batch.

The command that leads it opens the run, waits for the workers, and then loads the best epoch, evaluates and ends the
run, as if it resumed a training that is finished. The first worker logs epochs and writes checkpoints.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from vlm_core.config import Config
from vlm_core.data import Data, load_data
from vlm_core.errors import UserError
from vlm_core.progress import quiet
from vlm_core.tracking.metrics import epoch_line
from vlm_core.training.checkpoint import Checkpoint
from vlm_core.training.prefix_cost import PrefixCost

if TYPE_CHECKING:
    from vlm_core.engine.together import Place
    from vlm_core.evaluation.summary import Summary
    from vlm_core.tracking.writer import RunWriter
    from vlm_core.training.loop import EpochReport

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SharedTraining:
    """What a worker is told: settings as they are after all adaptation, and the run that is open."""

    config: Config = field(repr=False)
    root: Path
    run_id: str
    split: str  # fingerprint of the split that the leader has
    plot: bool  # whether each epoch has a plot


@contextmanager
def workers_of(config: Config) -> Iterator[None]:
    """Be connected to the cluster that the settings name, if they name one, inside the block.

    Raises UserError before any work is done: where the extra is missing, nobody answers, the cluster is too small, or
    its machines do not reach the store.
    """
    if config.engine == "local":
        yield
        return
    from vlm_core.engine.cluster import connected, require_shared
    from vlm_core.engine.together import place_workers
    from vlm_core.tracking.store import store_uri

    with connected(config.address):
        require_shared([store_uri()])
        place_workers(config.workers, config.threads, config.device)
        yield


def train_together(config: Config, data: Data, run: RunWriter, root: Path, plot: bool) -> PrefixCost:
    """Train on the cluster, to checkpoints of the finished training in `root`; return what frozen layers cost there.

    This process is connected (`workers_of`). Raises UserError.
    """
    from vlm_core.engine.together import work_together
    from vlm_core.workflows.train import checkpoints

    job = SharedTraining(config, root, run.run_id, data.split.fingerprint, plot)
    cost = work_together(train_part, job, workers=config.workers, threads=config.threads, device=config.device)
    folder, copies = checkpoints(config, root, run.run_id)
    copies.fetch(folder)
    if not Checkpoint(folder).state().finished(config.epochs, config.patience):
        raise UserError(
            f"The workers' checkpoints are not in {folder} of this node: put this folder on a disk that all nodes "
            f"share, or give shared_checkpoints=; resume={run.run_id} continues."
        )
    return cost


def train_part(job: SharedTraining, place: Place) -> PrefixCost:
    """Train as one worker of several, in a process that is connected to the others."""
    from vlm_core.tracking.writer import EpochWriter
    from vlm_core.training.parallel import Group
    from vlm_core.workflows.resuming import as_begun
    from vlm_core.workflows.train import checkpoints, make_trainer, prepare

    group = Group.here()
    here = {"threads": place.cpus} if place.gpu else {"threads": place.cpus, "device": "cpu"}
    with quiet():
        config = as_begun(job.config, job.run_id).model_copy(update=here)
        config, data, model, _, _ = prepare(config, load_data(config, job.root))
    if data.split.fingerprint != job.split:
        raise UserError(
            f"Worker {group.rank} finds another catalogue than the command that leads it: {job.config.data} must be "
            "the same on all nodes."
        )
    folder, copies = checkpoints(config, job.root, job.run_id)
    group.of_first(lambda: copies.fetch(folder))
    if group.rank:  # where they share a disk, the first one has brought it
        with quiet():
            copies.fetch(folder)
            trainer = make_trainer(config, data, model, job.root, job.run_id, group=group)
            trainer.fit()
            return trainer.cost
    with EpochWriter(job.run_id, job.config.to_params(), job.root) as run:

        def on_epoch(report: EpochReport[Summary]) -> None:
            run.epoch(report, plot=job.plot)
            logger.info(epoch_line(report))

        trainer = make_trainer(config, data, model, job.root, job.run_id, run.metrics, group=group)
        trainer.fit(on_epoch=on_epoch)
        return trainer.cost

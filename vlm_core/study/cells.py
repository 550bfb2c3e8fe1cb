"""One cell of a study: trained, tested and measured in a run below the study's."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

from vlm_core.config import FINE_TUNING, Config
from vlm_core.data import columns_of, load_data
from vlm_core.progress import quiet
from vlm_core.study.plan import MECHANISM, Cell, StudyPlan

if TYPE_CHECKING:
    from vlm_core.catalogue.catalogue import Catalogue
    from vlm_core.catalogue.reading import Columns
    from vlm_core.data import Data
    from vlm_core.models.loading import LoadedWeights

ENCODER: Final = "clip"  # family whose frozen vision tower the ablation of mechanisms shares


@dataclass(frozen=True)
class Todo:
    """A cell that is not done, with the run to go on with, or ""."""

    cell: Cell
    begun: str
    trained: bool  # only to be measured


@dataclass(frozen=True)
class Done:
    """How a cell ended."""

    key: str
    run_id: str
    failure: str
    seconds: float


def carry_out(todo: Todo, plan: StudyPlan, root: Path, parent: str) -> Done:
    """How the cell ended, in a run below `parent`; a failure is told, not raised."""
    started = time.monotonic()
    try:
        with quiet():
            run_id, failure = _run(todo, plan, root, parent), ""
    except Exception as error:  # whatever a cell fails with, the others go on
        run_id, failure = "", f"{type(error).__name__}: {error}"
    return Done(todo.cell.key, run_id, failure, time.monotonic() - started)


def _run(todo: Todo, plan: StudyPlan, root: Path, parent: str) -> str:
    from vlm_core.study.measurements import measure

    if todo.cell.model == MECHANISM:
        return _run_mechanism(todo.cell, plan, root, parent)
    config = plan.settings(todo.cell)
    data = _load(config, root)
    run_id = todo.begun if todo.trained else _train(todo, config, data, root, parent)
    if names := plan.measurements(todo.cell):
        measure(names, run_id, config, data)
    return run_id


def _train(todo: Todo, config: Config, data: Data, root: Path, parent: str) -> str:
    from vlm_core.workflows.train import run_training

    config = config.model_copy(update={"resume": todo.begun})
    return run_training(config, root, data=data, parent=parent, enter=False).run_id


def _load(config: Config, root: Path) -> Data:
    """What `load_data` gives, of a catalogue that is read once a process: all cells share it."""
    return load_data(config, root, _catalogue(config.data, columns_of(config), root))


@lru_cache(maxsize=1)
def _catalogue(source: str, columns: Columns, root: Path) -> Catalogue:
    from vlm_core.catalogue.catalogue import prepare_catalogue

    return prepare_catalogue(source, columns, root)


def _run_mechanism(cell: Cell, plan: StudyPlan, root: Path, parent: str) -> str:
    """Train one mechanism on the kept tokens of a frozen encoder, and keep its answers and scores."""
    from vlm_core.attention.ablation import Ablation
    from vlm_core.inference import evaluate_predictions, set_threads
    from vlm_core.tracking import tags
    from vlm_core.tracking.writer import RunWriter
    from vlm_core.training.feature_cache import FeatureCache
    from vlm_core.training.fit import GIB

    config = plan.encoder_settings(cell, ENCODER)
    set_threads(config.threads)
    data = _load(config, root)
    tower = load_encoder(config)
    data = data.exposed(tower.exposure)
    cache = FeatureCache(root / "cache", int(config.cache_gib * GIB), config.cache_precision)
    with RunWriter(config.experiment, cell.key, parent=parent, folder=root) as run:
        run.params(config.to_params(FINE_TUNING))
        run.dataset(data.catalogue, data.split)
        run.tags({tags.KIND: "ablation", "mechanism": cell.mode, "weights_source": tower.source})
        result = Ablation(config, data, tower, cache).run(cell.mode)
        run.evaluation(evaluate_predictions(config, data.catalogue, result.test, data.split.test, data.split.prior))
        run.predictions(result.validation, "validation")
        run.tags({"weights_trained": str(result.weights), "chosen_learning_rate": str(result.learning_rate)})
        run.metrics({"train_seconds": result.seconds, "best_epoch": result.best_epoch})
        return run.run_id


def load_encoder(config: Config) -> LoadedWeights:
    """The weights whose frozen vision tower mechanisms and the label audit share. Raises UserError."""
    from vlm_core.models.loading import load_weights

    with quiet():
        return load_weights(
            ENCODER,
            checkpoint=config.checkpoint,
            weights=config.weights,
            image_size=config.image_size,
            texts=(),
            seed=config.seed,
        )

"""One cell of a study: trained, tested and measured in a child run of the study's run."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

from vlm_core.config import CatalogueSettings, Config, WeightsSettings
from vlm_core.config.settings import Settings
from vlm_core.data import load_catalogue, load_data
from vlm_core.progress import quiet
from vlm_core.study.plan import MECHANISM, READER, Cell, StudyPlan

if TYPE_CHECKING:
    from vlm_core.catalogue.catalogue import Catalogue
    from vlm_core.data import Data
    from vlm_core.models.loading import LoadedWeights

ENCODER: Final = "clip"  # family whose frozen features the label audit uses


@dataclass(frozen=True)
class PendingCell:
    """A cell that is not finished."""

    cell: Cell
    run_id: str  # of the run to resume or, if it is trained, to measure; "" to start anew
    trained: bool


def run_cell(pending: PendingCell, plan: StudyPlan, root: Path, parent: str) -> str:
    """Run the cell as a child of the run `parent`, and return the id of its run."""
    with quiet():
        return _run(pending, plan, root, parent)


def _run(pending: PendingCell, plan: StudyPlan, root: Path, parent: str) -> str:
    from vlm_core.study.measurements import measure

    if pending.cell.model == MECHANISM:
        return _run_mechanism(pending.cell, plan, root, parent)
    if pending.cell.model == READER:
        return _run_reader(pending.cell, plan, root, parent)
    config = plan.settings(pending.cell)
    data = _load(config, root)
    run_id = pending.run_id if pending.trained else _train(pending, config, data, root, parent)
    if names := plan.measurements(pending.cell):
        measure(names, run_id, config, data)
    return run_id


def _train(pending: PendingCell, config: Config, data: Data, root: Path, parent: str) -> str:
    from vlm_core.workflows.train import run_training

    config = config.model_copy(update={"resume": pending.run_id})
    return run_training(config, root, data=data, parent=parent, register_model=False).run_id


def _load(config: Config, root: Path) -> Data:
    """Load the cell's data from a catalogue that is read once per process, because all cells share it."""
    return load_data(config, root, _catalogue(_of_catalogue(config), root))


def _of_catalogue(config: Config) -> CatalogueSettings:
    """Return only the settings that all cells of a study share, for the cache below."""
    own = CatalogueSettings.model_fields.keys() - Settings.model_fields.keys()
    return CatalogueSettings(**{name: getattr(config, name) for name in own})


@lru_cache(maxsize=1)
def _catalogue(config: CatalogueSettings, root: Path) -> Catalogue:
    return load_catalogue(config, root)


def _run_mechanism(cell: Cell, plan: StudyPlan, root: Path, parent: str) -> str:
    """Train one mechanism on the cached tokens of a frozen tower, and store its predictions and scores."""
    from vlm_core.attention.ablation import Ablation
    from vlm_core.inference import evaluate_predictions, set_threads
    from vlm_core.tracking import tags
    from vlm_core.tracking.writer import RunWriter
    from vlm_core.training.feature_cache import FeatureCache
    from vlm_core.training.fit import GIB

    if tower_in_folder := plan.towers.get(cell.tower):
        tower_in_folder.check()
    config = plan.settings(cell)
    set_threads(config.threads)
    data = _load(config, root)
    tower = load_encoder(config, config.family)
    data = data.exposed(tower.exposure)
    cache = FeatureCache(root / "cache", int(config.cache_gib * GIB), config.cache_precision)
    with RunWriter(config.experiment, cell.key, parent=parent, folder=root) as run:
        run.params(config.to_params())
        run.dataset(data.catalogue, data.split)
        run.tags(
            {tags.KIND: "ablation", "mechanism": cell.mechanism, "tower": cell.tower, "weights_source": tower.source}
        )
        run.tags({tags.COMMIT: tower.commit} if tower.commit else {})
        result = Ablation(config, data, tower, cache).run(cell.mechanism)
        run.evaluation(evaluate_predictions(config, data.catalogue, result.test, data.split.test, data.split.prior))
        run.predictions(result.validation, "validation")
        run.tags({"weights_trained": str(result.weights), "chosen_learning_rate": str(result.learning_rate)})
        run.metrics({"train_seconds": result.seconds, "best_epoch": result.best_epoch})
        return run.run_id


def _run_reader(cell: Cell, plan: StudyPlan, root: Path, parent: str) -> str:
    """Train one reader's head on frozen towers, and store its scores and what it predicts with an input withheld."""
    from vlm_core.inference import evaluate_predictions, set_threads
    from vlm_core.study.fusion_comparison import train_and_test
    from vlm_core.tracking import tags
    from vlm_core.tracking.writer import RunWriter

    config = plan.settings(cell)
    set_threads(config.threads)
    data = _load(config, root)
    with RunWriter(config.experiment, cell.key, parent=parent, folder=root) as run:
        run.params(config.to_params())
        run.dataset(data.catalogue, data.split)
        run.tags({tags.KIND: "reader", "reader": cell.reader.label})
        tested = train_and_test(config, data, root)
        split = data.split
        run.evaluation(evaluate_predictions(config, data.catalogue, tested.complete, split.test, split.prior))
        for name, predictions in tested.withheld.items():
            run.predictions(predictions, name)
        return run.run_id


def load_encoder(config: WeightsSettings, family: str = ENCODER) -> LoadedWeights:
    """Load weights whose frozen features mechanisms, the label audit or the continual part use. Raises UserError."""
    from vlm_core.models.loading import load_weights

    with quiet():
        return load_weights(
            family,
            checkpoint=config.checkpoint,
            weights=config.weights,
            image_size=config.image_size,
            texts=(),
            seed=config.seed,
        )

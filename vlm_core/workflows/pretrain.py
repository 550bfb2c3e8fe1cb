"""One pretraining from its settings to a folder of weights: the only place where its rooms meet."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vlm_core.atomic import building
from vlm_core.config import PRETRAINING, Config
from vlm_core.data import load_catalogue, words
from vlm_core.errors import UserError
from vlm_core.inference import choose_device, set_threads
from vlm_core.workflows.train import resumed_config

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vlm_core.catalogue.captions import Captions
    from vlm_core.catalogue.catalogue import Catalogue
    from vlm_core.catalogue.exposure import Exposure
    from vlm_core.models.stages import Adapter
    from vlm_core.tracking.writer import RunWriter
    from vlm_core.training.pretraining_task import Pretraining

    Rows = NDArray[np.int64]
    Score = Callable[[], dict[str, float]]

logger = logging.getLogger(__name__)

TOWER_EXAMPLES = 256
FEWEST_OF_A_THING = 0.001  # share of the catalogue, to be one of the names that zero-shot chooses from


@dataclass(frozen=True)
class PretrainingOutcome:
    """What a finished pretraining leaves."""

    run_id: str
    folder: Path  # weights, tokenizer, exposure, card and checksums
    figures: dict[str, float]  # of the weights as they are stored, on products that were not learnt from


@dataclass(frozen=True)
class _Material:
    """What is learnt from, and what it is scored on."""

    catalogue: Catalogue
    captions: Captions
    learnt: Rows
    scored: Rows


def run_pretraining(config: Config, root: Path) -> PretrainingOutcome:
    """Pretrain as the settings say, track it in MLflow, and write the weights as a Hugging Face folder.

    `root` is the working directory, below which data, checkpoints and weights are kept. Raises UserError.
    """
    if config.model == "baseline":
        raise UserError("The baseline has no pretraining: use model=clip, blip or git.")
    if config.resume:
        config = resumed_config(config.resume)
        logger.info(f"Going on with run {config.resume} and its own settings: model={config.model}.")
    if config.output and Path(config.output).exists():
        raise UserError(f"output={config.output} is there already: name a folder that is not.")
    set_threads(config.threads)
    material = _load_material(config, root)
    adapter, exposure = _load_adapter(config, material)
    task = _make_task(config, material, adapter)
    from vlm_core.tracking.writer import RunWriter

    with RunWriter(
        config.experiment, config.run_name or f"{config.model}-pretraining", resume=config.resume, folder=root
    ) as run:
        run.params(config.to_params(PRETRAINING))
        run.tags(
            {
                "kind": "pretraining",
                "catalogue": material.catalogue.name,
                "catalogue_fingerprint": material.catalogue.fingerprint,
                "products_seen": str(exposure.products),
                "products_seen_fingerprint": exposure.products_fingerprint,
                "weights_total": str(sum(weight.numel() for weight in adapter.hf.parameters())),
            }
        )
        checkpoint = root / "checkpoints" / run.run_id
        _learn(config, task, run, checkpoint)
        folder = Path(config.output) if config.output else root / "pretrained" / run.run_id
        figures = _write(config, exposure, adapter, task.score, run, folder)
    shutil.rmtree(checkpoint, ignore_errors=True)
    return PretrainingOutcome(run.run_id, folder, figures)


def _load_material(config: Config, root: Path) -> _Material:
    from vlm_core.catalogue.captions import describe_products
    from vlm_core.catalogue.duplicates import near_duplicate_groups
    from vlm_core.catalogue.exposure import split_for_pretraining
    from vlm_core.models.blip import PROMPT
    from vlm_core.models.heads import TEMPLATES

    catalogue = load_catalogue(config, root)
    groups = near_duplicate_groups(catalogue.products, catalogue.pictures)
    captions = describe_products(
        catalogue.products, words(config.caption_columns), words(config.attributes), PROMPT, TEMPLATES
    )
    if not any(captions.titles) and not captions.columns:
        raise UserError(
            "The catalogue has neither titles nor the columns of caption_columns: pretraining has nothing to read. "
            "Name columns with caption_columns= or title_column=."
        )
    ids = catalogue.products["product_id"]
    learnt, scored = split_for_pretraining(ids, groups)
    if len(learnt) < config.batch_size or not len(scored):
        raise UserError(
            f"{len(learnt)} products may be pretrained on and {len(scored)} score it: lower batch_size "
            f"(now {config.batch_size}), or give a larger catalogue."
        )
    logger.info(f"{len(learnt):,} products are learnt from; {len(scored):,} others score every epoch.")
    return _Material(catalogue, captions, learnt, scored)


def _load_adapter(config: Config, material: _Material) -> tuple[Adapter, Exposure]:
    """What the pretraining starts from, and what its weights will have seen."""
    from vlm_core.catalogue.exposure import record_exposure
    from vlm_core.models.categoriser import ADAPTERS
    from vlm_core.models.loading import load_weights
    from vlm_core.models.towers import load_vision_tower
    from vlm_core.pixels.views import plain_view

    texts = material.captions.sample_captions(config.seed, 0, material.learnt)
    weights = load_weights(
        config.model,
        checkpoint=config.checkpoint,
        weights=config.weights,
        image_size=config.image_size,
        texts=texts,
        seed=config.seed,
    )
    before = [weights.exposure]
    if config.tower:
        size = int(weights.hf.config.vision_config.image_size)
        examples = material.catalogue.pictures.take(material.learnt[:TOWER_EXAMPLES])
        before.append(load_vision_tower(weights.hf, Path(config.tower), plain_view(examples, size)))
        logger.info(f"The vision tower starts from {config.tower}.")
    adapter: Adapter = ADAPTERS[config.family](weights.hf, weights.tokenizer)
    adapter.hf.to(choose_device(config.device))
    catalogue = material.catalogue
    ids = catalogue.products["product_id"].iloc[material.learnt]
    return adapter, record_exposure(catalogue.name, catalogue.fingerprint, ids, before)


def _make_task(config: Config, material: _Material, adapter: Adapter) -> Pretraining:
    import torch

    from vlm_core.models.objectives import make_objective
    from vlm_core.training.batches import PixelBatches
    from vlm_core.training.pretraining_task import Pretraining

    catalogue = material.catalogue
    batches = PixelBatches(
        catalogue.pictures,
        np.zeros(len(catalogue.products), dtype=np.int64),
        material.learnt,
        int(adapter.hf.config.vision_config.image_size),
        config.batch_size,
        config.seed,
        config.augmentation,
    )
    torch.manual_seed(config.seed)  # what pretraining adds to the model is drawn
    return Pretraining(
        adapter,
        make_objective(adapter),
        batches,
        material.captions,
        config.patches_kept,
        _scorer(material, adapter, config.label, batches.image_size),
    )


def _scorer(material: _Material, adapter: Adapter, label: str, image_size: int) -> Callable[[], dict[str, float]]:
    """Measures the adapter as it is: a linear probe of its fused features, and what it tells without training."""
    from vlm_core.training.batches import PixelBatches
    from vlm_core.training.pretraining_metrics import evaluate_adapter

    catalogue, captions = material.catalogue, material.captions
    fewest = max(2, round(FEWEST_OF_A_THING * len(catalogue.products)))
    names, counts = np.unique(captions.product_types(), return_counts=True)
    things = [str(name) for name, count in zip(names, counts, strict=True) if name and count >= fewest]
    labels = catalogue.products[label].to_numpy(dtype=str)[material.scored]
    unlabelled = np.zeros(len(catalogue.products), dtype=np.int64)
    batches = PixelBatches(catalogue.pictures, unlabelled, material.scored, image_size, batch_size=1, seed=0)
    return lambda: evaluate_adapter(adapter, batches, captions, labels, things)


def _learn(config: Config, task: Pretraining, run: RunWriter, folder: Path) -> None:
    """Train, with every epoch tracked; afterwards the weights are the last epoch's."""
    from vlm_core.training.checkpoint import Checkpoint
    from vlm_core.training.loop import EpochReport, TrainingArguments, show_steps, train

    plan = TrainingArguments(
        epochs=config.epochs,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        warmup=config.warmup,
        clip_norm=config.clip_norm,
        patience=config.epochs,  # no epoch is chosen: the rate falls to zero, and the last one stays
        seed=config.seed,
    )
    checkpoint = Checkpoint(folder)
    reports = train(task, plan, checkpoint)
    for report in show_steps(reports, task.steps, config.epochs, checkpoint.state().epoch):
        if isinstance(report, EpochReport):
            figures = {f"train_{name}": value for name, value in report.training.metrics.items()}
            figures |= {f"validation_{name}": value for name, value in report.validation.metrics.items()}
            run.figures(report.epoch, figures | {"learning_rate": report.learning_rate, "seconds": report.seconds})
            shown = ", ".join(f"{name} {value:.3f}" for name, value in figures.items())
            logger.info(f"Epoch {report.epoch}/{report.epochs}: {shown} ({report.seconds:.0f} s).")


def _write(
    config: Config, exposure: Exposure, adapter: Adapter, score: Score, run: RunWriter, folder: Path
) -> dict[str, float]:
    """Store the weights as they ship, with a card; the scores are those of the stored, rounded weights."""
    from vlm_core.models.shipped import write_checksums, write_weights
    from vlm_core.tracking.pretraining_card import write_pretraining_card

    with building(folder) as partial:
        write_weights(adapter.hf, adapter.tokenizer, exposure, partial)
        figures = score()
        run.metrics({f"stored_{name}": value for name, value in figures.items()})
        write_pretraining_card(partial, run.run_id, config, exposure, figures)
        write_checksums(partial)
    run.artifact(folder, "weights")
    return figures

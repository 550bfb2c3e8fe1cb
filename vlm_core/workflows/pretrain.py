"""Pretrain one model on a catalogue, and write its weights as a Hugging Face folder."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vlm_core.config import PretrainingConfig
from vlm_core.config.families import FAMILIES
from vlm_core.config.lists import split_list
from vlm_core.data import load_catalogue
from vlm_core.errors import UserError
from vlm_core.files.atomic import building
from vlm_core.inference import choose_device, set_threads
from vlm_core.models.checksums import CHECKSUMS, digest_of, write_checksums
from vlm_core.tracking import tags
from vlm_core.tracking.reader import RunReader
from vlm_core.workflows.resuming import logged_commit, resumed_config
from vlm_core.workflows.run_corrections import fetch_corrections

if TYPE_CHECKING:
    from vlm_core.catalogue.captions import Captions
    from vlm_core.catalogue.catalogue import Catalogue
    from vlm_core.catalogue.exposure import Exposure
    from vlm_core.models.loading import LoadedWeights
    from vlm_core.models.stages import Adapter
    from vlm_core.pixels.arrays import Rows
    from vlm_core.pixels.views import Preprocessing
    from vlm_core.tracking.writer import RunWriter
    from vlm_core.training.batches import PixelBatches
    from vlm_core.training.pretraining_task import Pretraining

logger = logging.getLogger(__name__)

TOWER_EXAMPLES = 256  # images that CLIP's embeddings are fitted to BLIP's vision tower on
TRIAL_IMAGES = 32  # of a pass that is timed in both precisions
SMALLEST_CLASS = 0.001  # share of the catalogue that a product type needs to be a class of zero-shot prediction


@dataclass(frozen=True)
class PretrainingOutcome:
    """A finished pretraining: its run, its weights and their metrics."""

    run_id: str
    folder: Path  # weights, tokenizer, exposure, card and checksums
    metrics: dict[str, float]  # of the stored weights, on validation products


@dataclass(frozen=True)
class _PretrainingData:
    """A catalogue, its captions, and the rows to train and to validate on."""

    catalogue: Catalogue
    captions: Captions
    training: Rows
    validation: Rows


def run_pretraining(config: PretrainingConfig, root: Path) -> PretrainingOutcome:
    """Pretrain as the settings say, track it in MLflow, and write the weights as a Hugging Face folder.

    `root` is the folder of `data/`, `checkpoints/` and `pretrained/`. Raises UserError.
    """
    if config.model == "baseline":
        raise UserError("The baseline cannot be pretrained: use model=clip, blip, git or siglip.")
    if not FAMILIES[config.family].has_language:
        raise UserError(f"model={config.model} has no language to pretrain on: use model=clip, blip, git or siglip.")
    from vlm_core.tracking.opening import prepare_store

    prepare_store(config.experiment, root)
    if config.resume:
        config = resumed_config(config)
        logger.info(f"Resuming run {config.resume} with its own settings: model={config.model}.")
    if config.output and Path(config.output).exists() and not _has_written(config.resume, Path(config.output)):
        raise UserError(f"output={config.output} exists already: name a new folder.")
    from vlm_core.models.clip import pooling_of

    set_threads(config.threads)
    fetch_corrections(config, root)
    data = _load_data(config, root)
    adapter, exposure, weights = _load_adapter(config, data)
    task = _make_task(config, data, adapter, weights.preprocessing)
    config = config.model_copy(update={"precision": task.precision, "pooling": pooling_of(adapter.hf)})
    from vlm_core.tracking.writer import RunWriter

    with RunWriter(
        config.experiment, config.run_name or f"{config.model}-pretraining", resume=config.resume, folder=root
    ) as run:
        run.params(config.to_params())
        run.tags(
            {
                "kind": "pretraining",
                "catalogue": data.catalogue.name,
                "catalogue_fingerprint": data.catalogue.fingerprint,
                "products_seen": str(exposure.products),
                "products_seen_fingerprint": exposure.products_fingerprint,
                "weights_total": str(sum(weight.numel() for weight in adapter.hf.parameters())),
                **({tags.COMMIT: weights.commit} if weights.commit else {}),
            }
        )
        checkpoint = root / "checkpoints" / run.run_id
        _train(config, task, run, checkpoint)
        folder = Path(config.output) if config.output else root / "pretrained" / run.run_id
        metrics = _write(config, exposure, adapter, task, run, folder)
    shutil.rmtree(checkpoint, ignore_errors=True)
    return PretrainingOutcome(run.run_id, folder, metrics)


def _load_data(config: PretrainingConfig, root: Path) -> _PretrainingData:
    from vlm_core.catalogue.captions import describe_products
    from vlm_core.catalogue.duplicates import near_duplicate_groups
    from vlm_core.catalogue.exposure import split_for_pretraining
    from vlm_core.models.blip import PROMPT
    from vlm_core.models.heads import TEMPLATES

    catalogue = load_catalogue(config, root)
    groups = near_duplicate_groups(catalogue.products, catalogue.pictures)
    captions = describe_products(
        catalogue.products, split_list(config.caption_columns), split_list(config.attributes), PROMPT, TEMPLATES
    )
    if not any(captions.titles) and not captions.columns:
        raise UserError(
            "The catalogue has neither titles nor any column of caption_columns, so there is no text to pretrain on: "
            "name columns with caption_columns= or title_column=."
        )
    ids = catalogue.products["product_id"]
    training, validation = split_for_pretraining(ids, groups)
    if len(training) < config.batch_size or not len(validation):
        raise UserError(
            f"There are {len(training)} products to pretrain on and {len(validation)} to validate on: lower batch_size "
            f"(now {config.batch_size}), or use a larger catalogue."
        )
    logger.info(f"Pretraining on {len(training):,} products; validating every epoch on {len(validation):,} others.")
    return _PretrainingData(catalogue, captions, training, validation)


def _load_adapter(config: PretrainingConfig, data: _PretrainingData) -> tuple[Adapter, Exposure, LoadedWeights]:
    """Return the initial model, a record of the products that its weights will have seen, and what was loaded."""
    from vlm_core.catalogue.duplicates import hash_pictures
    from vlm_core.catalogue.exposure import record_exposure
    from vlm_core.catalogue.recognition import SeenProducts
    from vlm_core.models.categoriser import ADAPTERS
    from vlm_core.models.loading import load_weights
    from vlm_core.models.positions import input_size
    from vlm_core.models.preprocessing import read_preprocessing
    from vlm_core.models.towers import load_vision_tower
    from vlm_core.pixels.views import plain_view

    texts = data.captions.sample_captions(config.seed, 0, data.training)
    weights = load_weights(
        config.model,
        checkpoint=config.checkpoint,
        weights=config.weights,
        image_size=config.image_size,
        texts=texts,
        seed=config.seed,
        commit=logged_commit(config.resume),
    )
    _set_pooling(config, weights)
    before = [weights.exposure]
    if config.tower:
        size = input_size(weights.hf)
        if stated := read_preprocessing(Path(config.tower).expanduser()):
            weights = replace(weights, preprocessing=stated[0])
        examples = data.catalogue.pictures.take(data.training[:TOWER_EXAMPLES])
        pixels = plain_view(examples, size, weights.preprocessing)
        before.append(load_vision_tower(weights.hf, Path(config.tower), pixels))
        logger.info(f"Vision tower initialised from {config.tower}.")
    adapter: Adapter = ADAPTERS[config.family](weights.hf, weights.tokenizer)
    adapter.hf.to(choose_device(config.device))
    catalogue = data.catalogue
    ids = catalogue.products["product_id"].iloc[data.training]
    seen = SeenProducts.of(ids, hash_pictures(catalogue.pictures, data.training))
    return adapter, record_exposure(catalogue.name, catalogue.fingerprint, ids, before, seen), weights


def _set_pooling(config: PretrainingConfig, weights: LoadedWeights) -> None:
    """Make a new CLIP pool as the settings say. Raise UserError if they contradict the weights to start from."""
    from vlm_core.models.clip import pooling_of

    own = pooling_of(weights.hf)
    if config.pooling == own or (weights.pretrained and "pooling" not in config.model_fields_set):
        return
    if weights.pretrained:
        raise UserError(
            f"The weights of {weights.source} were pretrained with pooling={own}, and keep it: omit "
            f"pooling={config.pooling}, or start from others."
        )
    weights.hf.config.vision_config.pooling = config.pooling  # stored with the weights


def _make_task(
    config: PretrainingConfig, data: _PretrainingData, adapter: Adapter, preprocessing: Preprocessing
) -> Pretraining:
    import torch

    from vlm_core.models.arithmetic import choose_precision
    from vlm_core.models.objectives import make_objective
    from vlm_core.models.positions import input_size
    from vlm_core.models.stages import run_stages
    from vlm_core.training.batches import PixelBatches
    from vlm_core.training.pretraining_task import Pretraining

    catalogue = data.catalogue
    batches = PixelBatches(
        catalogue.pictures,
        np.zeros(len(catalogue.products), dtype=np.int64),
        data.training,
        input_size(adapter.hf),
        config.batch_size,
        config.seed,
        config.augmentation,
        preprocessing,
    )
    size, device = batches.image_size, adapter.hf.device
    pixels = torch.zeros(min(config.batch_size, TRIAL_IMAGES), 3, size, size, device=device)
    precision = choose_precision(
        config.precision, lambda: run_stages(adapter.stages("fused"), (pixels,)), adapter.hf.parameters(), device
    )
    torch.manual_seed(config.seed)  # for the weights that pretraining adds to the model
    return Pretraining(
        adapter,
        make_objective(adapter),
        batches,
        data.captions,
        config.patches_kept,
        _make_scorer(data, adapter, config.label, batches),
        precision,
    )


def _make_scorer(
    data: _PretrainingData, adapter: Adapter, label: str, training: PixelBatches
) -> Callable[[], dict[str, float]]:
    """Return a function that measures the model as it is, by a linear probe and by zero-shot prediction."""
    from vlm_core.training.pretraining_metrics import evaluate_adapter

    catalogue, captions = data.catalogue, data.captions
    smallest = max(2, round(SMALLEST_CLASS * len(catalogue.products)))
    names, counts = np.unique(captions.product_types(), return_counts=True)
    classes = [str(name) for name, count in zip(names, counts, strict=True) if name and count >= smallest]
    labels = catalogue.products[label].to_numpy(dtype=str)[data.validation]
    batches = replace(training, rows=data.validation)
    return lambda: evaluate_adapter(adapter, batches, captions, labels, classes)


def _train(config: PretrainingConfig, task: Pretraining, run: RunWriter, folder: Path) -> None:
    """Train and log every epoch; leave the last epoch's weights in the model."""
    from vlm_core.training.checkpoint import Checkpoint
    from vlm_core.training.loop import EpochReport, TrainingArguments, show_steps, train

    plan = TrainingArguments(
        epochs=config.epochs,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        warmup=config.warmup,
        clip_norm=config.clip_norm,
        patience=config.epochs,  # the last epoch is used, when the learning rate has fallen to zero
        seed=config.seed,
    )
    checkpoint = Checkpoint(folder)
    reports = train(task, plan, checkpoint)
    for report in show_steps(reports, task.steps, config.epochs, checkpoint.state().epoch):
        if isinstance(report, EpochReport):
            metrics = {f"train_{name}": value for name, value in report.training.metrics.items()}
            metrics |= {f"validation_{name}": value for name, value in report.validation.metrics.items()}
            rates = {"learning_rate": report.learning_rate, "seconds": report.seconds}
            run.epoch_metrics(report.epoch, metrics | rates)
            text = ", ".join(f"{name} {value:.3f}" for name, value in metrics.items())
            logger.info(f"Epoch {report.epoch}/{report.epochs}: {text} ({report.seconds:.0f} s).")


def _write(
    config: PretrainingConfig, exposure: Exposure, adapter: Adapter, task: Pretraining, run: RunWriter, folder: Path
) -> dict[str, float]:
    """Write the weights with a model card; return the metrics of the rounded weights that are stored.

    A run that was killed after its weights got their name keeps them when it is resumed.
    """
    from vlm_core.models.shipped import write_weights
    from vlm_core.tracking.pretraining_card import write_pretraining_card

    if folder.exists() and _has_written(run.run_id, folder):
        stored = RunReader().metrics(run.run_id)
        run.artifact(folder, "weights")
        return {name.removeprefix("stored_"): value for name, value in stored.items() if name.startswith("stored_")}
    with building(folder) as partial:
        write_weights(adapter.hf, adapter.tokenizer, exposure, task.batches.preprocessing, partial)
        metrics = task.score()
        run.metrics({f"stored_{name}": value for name, value in metrics.items()})
        write_pretraining_card(partial, run.run_id, config, exposure, metrics)
        write_checksums(partial)
        run.tags({tags.WEIGHTS: digest_of(partial / CHECKSUMS)})
    run.artifact(folder, "weights")
    return metrics


def _has_written(run_id: str, folder: Path) -> bool:
    """Return whether the run, "" for a new one, has written the weights in the folder, and they are whole."""
    path = folder / CHECKSUMS
    return bool(run_id) and path.is_file() and RunReader().tags(run_id).get(tags.WEIGHTS) == digest_of(path)

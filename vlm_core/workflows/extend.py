"""Teach a finished run more categories, or more products of those it has, as a new version of its model."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vlm_core.config import ExtensionConfig
from vlm_core.data import words_of_labels, write_dataset_info
from vlm_core.evaluation.forgetting import Forgetting, measure_forgetting
from vlm_core.inference import choose_device, evaluate_rows, seconds_per_image, set_threads
from vlm_core.workflows.extension_data import ExtensionData, OldRun, inherit, load_extension, open_old_run
from vlm_core.workflows.resuming import resumed_extension
from vlm_core.workflows.train import measure_texts

if TYPE_CHECKING:
    from vlm_core.catalogue.splitting import Split
    from vlm_core.evaluation.evaluation import Evaluation
    from vlm_core.models.categoriser import VisionLanguageCategoriser
    from vlm_core.pixels.arrays import Rows
    from vlm_core.tracking.writer import RunWriter
    from vlm_core.training.continual import Examples, HeadWeights, Memory

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExtensionOutcome:
    """A finished extension: what it learnt, what it forgot, and how the new version was registered."""

    run_id: str
    config: ExtensionConfig
    split: Split
    evaluation: Evaluation  # of all categories
    new_categories: tuple[str, ...]
    forgetting: Forgetting | None  # None where it cannot be measured
    unmeasured: str  # why not
    seconds: float  # to learn, features included
    memory_bytes: int
    registered: str = ""  # a sentence with the version and whether it is champion


def run_extension(config: ExtensionConfig, root: Path) -> ExtensionOutcome:
    """Extend the run that the settings name, in a run below it, and register the new version. Raises UserError.

    The old version stays what it is and serves on. A run that was killed is resumed to the same result: nothing of it
    is a version before it is whole.
    """
    from vlm_core.tracking.opening import prepare_store

    prepare_store(config.experiment, root)
    if config.resume:
        config = resumed_extension(config)
    set_threads(config.threads)
    old = open_old_run(config.run)
    config = inherit(config, old)
    extension = load_extension(config, old, root)
    old.model.to(choose_device(config.device))
    _mask_new_categories(old, extension)
    with _open_run(config, old, extension, root) as run:
        logger.info(
            f"Run {run.run_id} learns more from run {old.run_id}; if it is stopped, resume={run.run_id} continues it."
        )
        began = time.perf_counter()
        head, memory = _learn(config, old, extension, root)
        seconds = time.perf_counter() - began
        weights = old.model.with_head(extension.data.split.categories, head.weights, head.bias)
        return _finish(config, old, extension, weights, memory, run, seconds)


def _mask_new_categories(old: OldRun, extension: ExtensionData) -> None:
    """Let a model that reads masked texts remove the words of the new categories from them, too."""
    reads = old.model.reads
    if reads is None or not reads.masked:
        return
    words = words_of_labels(old.config, extension.data.catalogue, extension.new_categories)
    masked = tuple(sorted(set(reads.masked).union(*words.values())))
    old.model.description = replace(old.model.description, reads=replace(reads, masked=masked))


@contextmanager
def _open_run(config: ExtensionConfig, old: OldRun, extension: ExtensionData, root: Path) -> Iterator[RunWriter]:
    """Open the run below the old one, and log its settings and data."""
    from vlm_core.tracking.tags import COMMIT, EXTENDS, exposure_tags
    from vlm_core.tracking.writer import RunWriter

    name = config.run_name or f"{old.config.model}-{config.method}-{config.seed}"
    kept = ("weights_source", "weights_pretrained", "weights_total", COMMIT)
    with RunWriter(config.experiment, name, resume=config.resume, parent=old.run_id, folder=root) as run:
        run.params({**old.params, **_params(config, old)})
        run.tags(
            {
                **{key: old.tags[key] for key in kept if key in old.tags},
                EXTENDS: old.run_id,
                "new_catalogue": extension.new.name,
                "new_fingerprint": extension.new.fingerprint,
                "new_categories": ", ".join(extension.new_categories)[:5000],
            }
        )
        run.dataset(extension.data.catalogue, extension.data.split)
        if old.exposure:
            run.tags(exposure_tags(old.exposure))
            run.exposure(old.exposure)
        with tempfile.TemporaryDirectory() as folder:
            run.artifact(write_dataset_info(extension.data, Path(folder)))
        yield run


def _params(config: ExtensionConfig, old: OldRun) -> dict[str, str]:
    """Return the extension's own settings as text; the preset stays that of the training."""
    return {name: text for name, text in config.to_params().items() if name != "preset" or name not in old.params}


def _learn(
    config: ExtensionConfig, old: OldRun, extension: ExtensionData, root: Path
) -> tuple[HeadWeights, Memory | None]:
    """Return the head of all categories, and what the model keeps; None where nothing is kept of the old ones."""
    from vlm_core.training.continual import ExtensionTask, HeadWeights, Memory, learn

    split, parts = extension.data.split, extension.old
    needs_old = len(parts.train) > 0 and (old.memory is None or config.method == "joint")
    old_rows: Rows = np.unique(parts.train) if needs_old else np.empty(0, np.int64)
    features = _features(config, old, extension, root, [old_rows, extension.new_train, split.validation])
    old_products, new_products, validation = features
    width, known = new_products.features.shape[1], len(parts.categories)
    memory = old.memory.limited(config.memory) if old.memory else None
    if memory is None and needs_old:
        memory = Memory.empty(width).joined(old_products, known, config.memory)
    task = ExtensionTask(new_products, validation, len(split.categories), memory, old_products if needs_old else None)
    joined = memory.joined(new_products, task.categories, config.memory) if memory else None
    layer = old.model.head.linear  # type: ignore[attr-defined]  # a LinearHead: see open_old_run
    head = HeadWeights(layer.weight.detach().cpu().numpy(), layer.bias.detach().cpu().numpy())
    return learn(config.method, head, task, joined or Memory.empty(width)), joined


def _features(
    config: ExtensionConfig, old: OldRun, extension: ExtensionData, root: Path, wanted: list[Rows]
) -> list[Examples]:
    """Return the old model's features of catalogue rows, from the cache where they are there."""
    from vlm_core.training.continual import Examples
    from vlm_core.training.feature_cache import FeatureCache
    from vlm_core.training.fit import GIB, Trainer

    settings = old.config.model_copy(update={"prefix": "torch", "seed": config.seed})
    cache = FeatureCache(root / "cache", int(settings.cache_gib * GIB), settings.cache_precision)
    trainer = Trainer(settings, extension.data, old.model, root / "checkpoints", cache)
    source = trainer.head_features(np.unique(np.concatenate(wanted)))
    labels, width = extension.data.split.labels, old.model.adapter.width(old.model.head.readout)
    return [
        Examples(source.take(some)[0].numpy() if len(some) else np.empty((0, width), np.float32), labels[some])
        for some in wanted
    ]


def _finish(
    config: ExtensionConfig,
    old: OldRun,
    extension: ExtensionData,
    model: VisionLanguageCategoriser,
    memory: Memory | None,
    run: RunWriter,
    seconds: float,
) -> ExtensionOutcome:
    """Evaluate old and new categories, log all of it and the model, and register it: each step can be repeated."""
    from vlm_core.tracking.card import write_card
    from vlm_core.tracking.registry import register

    catalogue, split = extension.data.catalogue, extension.data.split
    evaluation = evaluate_rows(config, catalogue, model, split.test, split.labels, split.prior)
    run.evaluation(evaluation)
    validation = evaluate_rows(config, catalogue, model, split.validation, split.labels, split.prior)
    run.predictions(validation.predictions, "validation")
    forgetting, unmeasured = _forgetting(config, old, extension, evaluation)
    outcome = ExtensionOutcome(
        run_id=run.run_id,
        config=config,
        split=split,
        evaluation=evaluation,
        new_categories=extension.new_categories,
        forgetting=forgetting,
        unmeasured=unmeasured,
        seconds=seconds,
        memory_bytes=memory.bytes if memory else 0,
    )
    pictures = catalogue.pictures.take(split.test[:32])
    run.metrics(
        {
            **(forgetting.metrics() if forgetting else {}),
            **new_scores(evaluation, extension.new_categories),
            "extend_seconds": seconds,
            "memory_bytes": outcome.memory_bytes,
            "seconds_per_image": seconds_per_image(model, pictures),
        }
    )
    texts = measure_texts(old.config, extension.data, model) if model.reads else None
    if texts:
        run.metrics(texts.metrics())
        logger.info(" ".join(texts.sentences()))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model.save(folder)
        if memory:
            memory.write(folder)
        write_card(
            folder,
            run_id=run.run_id,
            settings={**old.params, **_params(config, old)},
            weights_source=old.tags.get("weights_source", "unknown"),
            catalogue=catalogue,
            split=split,
            evaluation=evaluation,
            learnt=describe_extension(outcome),
            texts=texts,
        )
        run.model(folder)
    return replace(outcome, registered=register(run.run_id))


def _forgetting(
    config: ExtensionConfig, old: OldRun, extension: ExtensionData, evaluation: Evaluation
) -> tuple[Forgetting | None, str]:
    """Compare the old run's stored predictions with the new model's; or say why that cannot be done."""
    from vlm_core.tracking.reader import RunReader

    count = len(extension.old.test)
    if not count:
        scores = RunReader().metrics(old.run_id)
        stored = f"{scores['test_macro_f1']:.4f}" if "test_macro_f1" in scores else "unknown"
        return None, (
            f"What it forgot could not be measured: the catalogue of run {old.run_id} "
            f"({old.parts['test'].catalogue}) is not on this machine. Before, the macro-F1 of its categories was "
            f"{stored} on {len(old.predictions):,} test products. Name the catalogue with old_data= to measure it."
        )
    predictions = evaluation.predictions  # the old run's test products come first
    after = replace(
        predictions,
        product_ids=predictions.product_ids[:count],
        labels=predictions.labels[:count],
        log_probabilities=predictions.log_probabilities[:count],
    )
    return measure_forgetting(old.predictions, after, resamples=config.resamples, seed=config.seed), ""


def new_scores(evaluation: Evaluation, new_categories: tuple[str, ...]) -> dict[str, float]:
    """Return the mean F1 and recall of the new categories among all others; {} without any that is tested."""
    scores = [each for each in evaluation.per_category if each.category in new_categories and each.support]
    if not scores:
        return {}
    return {
        "new_macro_f1": float(np.mean([each.f1.value for each in scores])),
        "new_macro_recall": float(np.mean([each.recall for each in scores])),
        "new_test_products": float(sum(each.support for each in scores)),
    }


def describe_extension(outcome: ExtensionOutcome) -> str:
    """Return what was learnt and forgotten, in Markdown, for the card."""
    from vlm_core.tracking.card import markdown_table, markdown_text

    config, forgetting = outcome.config, outcome.forgetting
    names = ", ".join(map(markdown_text, outcome.new_categories)) or "no new category, but more products"
    said = [
        f"It extends run `{config.run}` (method `{config.method}`) with {names}. It keeps "
        f"{outcome.memory_bytes:,} bytes of features, of {config.memory} exemplars per category, and no images."
    ]
    if scores := new_scores(outcome.evaluation, outcome.new_categories):
        said.append(
            f"New categories: macro-F1 {scores['new_macro_f1']:.4f} on {scores['new_test_products']:.0f} test products "
            "among all categories."
        )
    if forgetting is None:
        said.append(outcome.unmeasured)
        return "\n\n".join(said)
    said.append(f"Old categories on the {forgetting.products:,} test products of that run, before and after:")
    rows = forgetting_rows(forgetting)
    said.append(markdown_table(("", "before", "after", "lost", "95 % interval", "p"), rows))
    return "\n\n".join(said)


def forgetting_rows(forgetting: Forgetting) -> list[tuple[str, ...]]:
    """Return name, before, after, lost, its interval and p of each score of the old categories."""
    difference = forgetting.test.difference
    lost_accuracy = forgetting.accuracy_before - forgetting.accuracy_after
    return [
        (
            *("macro-F1", f"{forgetting.before:.4f}", f"{forgetting.after:.4f}", f"{difference.value:+.4f}"),
            *(f"{difference.low:+.4f} to {difference.high:+.4f}", f"{forgetting.test.p_bootstrap:.3g} (bootstrap)"),
        ),
        (
            *("accuracy", f"{forgetting.accuracy_before:.4f}", f"{forgetting.accuracy_after:.4f}"),
            *(f"{lost_accuracy:+.4f}", "", f"{forgetting.test.p_mcnemar:.3g} (exact McNemar)"),
        ),
    ]

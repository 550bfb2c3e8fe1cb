"""Fine-tune one model, evaluate it, and log and register it."""

from __future__ import annotations

import logging
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from vlm_core.catalogue.corrections import digest_of_corrections
from vlm_core.catalogue.splitting import Split
from vlm_core.config import Config
from vlm_core.config.families import FAMILIES
from vlm_core.config.lists import split_list
from vlm_core.config.presets import HEAD, SUITING, choose_mode
from vlm_core.data import (
    CORRECTIONS,
    Data,
    corrections_file,
    load_data,
    text_reading,
    words_of_labels,
    write_dataset_info,
)
from vlm_core.inference import choose_device, evaluate_rows, predict_rows, seconds_per_image, set_threads
from vlm_core.progress import quiet
from vlm_core.tracking.metrics import epoch_line, epoch_metrics
from vlm_core.training.fit import GIB, Trainer, ignore
from vlm_core.workflows.data_parallel import train_together, workers_of
from vlm_core.workflows.resuming import logged_commit, resumed_config
from vlm_core.workflows.run_corrections import fetch_corrections

if TYPE_CHECKING:
    import pandas as pd

    from vlm_core.catalogue.exposure import Exposure
    from vlm_core.evaluation.evaluation import Evaluation
    from vlm_core.evaluation.hierarchy import Hierarchy
    from vlm_core.evaluation.product_texts import TextReading
    from vlm_core.evaluation.summary import Summary
    from vlm_core.evaluation.text_leak import TextLeakMetrics
    from vlm_core.models.categoriser import Categoriser, HeadKind, VisionLanguageCategoriser
    from vlm_core.models.loading import LoadedWeights
    from vlm_core.models.text_baseline import TextBaseline
    from vlm_core.tracking.writer import RunWriter
    from vlm_core.training.checkpoint import TrainingState
    from vlm_core.training.checkpoint_copies import CheckpointCopies
    from vlm_core.training.loop import EpochReport
    from vlm_core.training.parallel import Group

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingOutcome:
    """A finished run: its final settings, its split, its evaluation, and how the model was registered."""

    run_id: str
    config: Config
    split: Split
    evaluation: Evaluation
    registered: str = ""  # a sentence with the version and whether it is champion
    texts: TextLeakMetrics | None = None  # of a model that reads texts


@dataclass(frozen=True)
class TrialResult:
    """What a search learns from a trial, which never reads the test split."""

    macro_f1: float  # best epoch, validation
    seconds: float  # per image, from pixels to prediction
    pruned: bool


class _Pruned(Exception):
    """Raised to end a trial that is not promising."""


def run_training(
    config: Config,
    root: Path,
    *,
    data: Data | None = None,
    parent: str = "",
    register_model: bool = True,
) -> TrainingOutcome:
    """Train as the settings say, evaluate on the test split once, and log and register the model in MLflow.

    `root` is the folder of `data/`, `logs/` and `checkpoints/`. `data` is what the settings name, if it is loaded
    already. With `parent`, the run is a child of that run. Without `register_model`, as in a study, the model is only
    logged and no epoch is plotted, which would take longer than training a head. Raises UserError.
    """
    from vlm_core.tracking.opening import prepare_store

    if not parent:
        prepare_store(config.experiment, root)
    if config.resume:
        config = resumed_config(config)
        logger.info(f"Resuming run {config.resume} with its own settings: model={config.model}, mode={config.mode}.")
    with workers_of(config):
        fetch_corrections(config, root)
        data = data or load_data(config, root)
        train = _train_baseline if config.model == "baseline" else _train_model
        return train(config, data, root, parent, register_model)


def run_trial(
    config: Config,
    data: Data,
    root: Path,
    parent: str,
    on_start: Callable[[str], None],
    should_continue: Callable[[int, float], bool],
) -> TrialResult:
    """Train in a child run of `parent` without reading the test split.

    `on_start` gets the id of the run. `should_continue` gets each epoch and its validation macro-F1, and prunes the
    trial when it returns False.
    """
    with quiet():
        config, data, model, tags, _ = prepare(config, data)
    with _open_run(config, data, root, parent) as run:
        on_start(run.run_id)
        run.tags({**tags, "kind": "trial"})

        def on_epoch(report: EpochReport[Summary]) -> None:
            run.epoch_metrics(report.epoch, epoch_metrics(report))
            if not should_continue(report.epoch, report.validation.macro_f1):
                raise _Pruned

        try:
            with quiet():
                # a trial that dies is repeated from its first epoch
                alone = config.model_copy(update={"shared_checkpoints": ""})
                best = _fit(alone, data, model, run, root, on_epoch)
        except _Pruned:
            run.tags({"pruned": "true"})
            return TrialResult(0.0, float("inf"), pruned=True)
        finally:
            shutil.rmtree(root / "checkpoints" / run.run_id, ignore_errors=True)
        seconds = seconds_per_image(model, data.catalogue.pictures.take(data.split.validation[:32]))
        run.metrics({"best_validation_macro_f1": best.best_macro_f1, "seconds_per_image": seconds})
    return TrialResult(best.best_macro_f1, seconds, pruned=False)


def _train_model(config: Config, data: Data, root: Path, parent: str, register_model: bool) -> TrainingOutcome:
    config, data, model, tags, exposure = prepare(config, data)
    with _open_run(config, data, root, parent) as run:
        run.tags(tags)
        if exposure:
            run.exposure(exposure)

        def on_epoch(report: EpochReport[Summary]) -> None:
            run.epoch(report, plot=register_model)
            logger.info(epoch_line(report))

        if config.mode != "zero-shot":
            best = _fit(config, data, model, run, root, on_epoch, register_model)
            logger.info(f"Best epoch: {best.best_epoch}, validation macro-F1 {best.best_macro_f1:.4f}.")
        outcome = _finish(config, data, model, run, tags["weights_source"], register_model)
    _remove_checkpoints(config, outcome.run_id, root)
    return outcome


def prepare(
    config: Config, data: Data
) -> tuple[Config, Data, VisionLanguageCategoriser, dict[str, str], Exposure | None]:
    """Load the weights; return settings and data that fit them, the model, tags for the run, and what they saw."""
    from vlm_core.models.loading import load_weights
    from vlm_core.tracking.tags import COMMIT, exposure_tags

    set_threads(config.threads)
    weights = load_weights(
        config.model,
        checkpoint=config.checkpoint,
        weights=config.weights,
        image_size=config.image_size,
        texts=_titles(data),
        seed=config.seed,
        commit=logged_commit(config.resume),
    )
    data = data.exposed(weights.exposure)
    config = adapt_settings(config, weights.source)
    weights = replace(weights, preprocessing=weights.resized_as(config.resize, config.mode))
    config = config.model_copy(update={"resize": weights.preprocessing.resize})
    model = build_model(config, data, weights)
    config = _choose_precision(config, model)
    tags = {
        "weights_source": weights.source,
        **({COMMIT: weights.commit} if weights.commit else {}),
        "weights_pretrained": str(weights.pretrained).lower(),
        **(exposure_tags(weights.exposure) if weights.exposure else {}),
        "weights_total": str(sum(weight.numel() for weight in model.hf.parameters())),
    }
    return config, data, model, tags, weights.exposure


def adapt_settings(config: Config, weights_source: str) -> Config:
    """Return the settings, with those that the user did not give adapted to the weights and the mode."""
    kind = weights_source.split(":")[0]
    mode = choose_mode(config.objective, kind) if config.mode == "auto" else config.mode
    alone = {"views": 0} if config.inputs == "text" else {}  # pictures are augmented, texts are not
    suiting = {**SUITING.get(kind, {}), **(HEAD if mode == "probe" else {}), **alone}
    changes = {name: value for name, value in suiting.items() if name not in config.model_fields_set} | {"mode": mode}
    changes = {name: value for name, value in changes.items() if value != getattr(config, name)}
    if changes:
        logger.info(
            f"Settings for {weights_source}: " + ", ".join(f"{name}={value}" for name, value in changes.items()) + "."
        )
    return config.model_copy(update=changes)


def _choose_precision(config: Config, model: VisionLanguageCategoriser) -> Config:
    """Give the model the precision of the settings; return the settings with what `auto` stands for on this machine."""
    import torch

    from vlm_core.models.arithmetic import choose_precision

    cut, size = model.cut(config.mode, config.blocks), model.image_size
    pixels = torch.zeros(config.batch_size, 3, size, size)
    weights = model.freeze_before(cut).values() if cut < len(model.stages) else ()
    state = model.input_state(pixels)
    model.precision = choose_precision(config.precision, lambda: model.run(state), weights, model.device)
    return config.model_copy(update={"precision": model.precision})


def _train_baseline(config: Config, data: Data, root: Path, parent: str, register_model: bool) -> TrainingOutcome:
    config = config.model_copy(update={"mode": "full"})
    with _open_run(config, data, root, parent) as run:
        run.tags({"weights_source": "none", "weights_pretrained": "false"})
        started = time.perf_counter()
        model = fit_baseline_of(config, data)
        seconds = time.perf_counter() - started
        run.metrics({"train_seconds": seconds, "train_seconds_full": seconds})
        return _finish(config, data, model, run, "none", register_model)


def fit_baseline_of(config: Config, data: Data) -> Categoriser:
    """Return the baseline of the settings' inputs, fitted."""
    from vlm_core.models.baseline import fit_baseline
    from vlm_core.models.text_baseline import stack_baselines

    catalogue, split, reads = data.catalogue, data.split, text_reading(config, data.catalogue, data.split.categories)
    text = fit_texts(data, reads, config.balance) if reads else None
    if text and config.inputs == "text":
        return text
    canvas = catalogue.pictures.canvas
    rows = split.train, split.validation
    picture = fit_baseline(
        catalogue.pictures, split.labels, *rows, split.categories, canvas, config.seed, balance=config.balance
    )
    if text is None:
        return picture
    shown, read = (
        predict_rows(model, catalogue, split.validation, split.labels).log_probabilities for model in (picture, text)
    )
    stacked = stack_baselines(picture, text, shown, read, split.labels[split.validation])
    logger.info(
        f"Stacked: the picture's log-probabilities count {stacked.coefficients[0]:.2f}, the text's "
        f"{stacked.coefficients[1]:.2f}."
    )
    return stacked


def fit_texts(data: Data, reads: TextReading, balance: str) -> TextBaseline:
    """Return the baseline that reads the texts of the data's products alone, fitted."""
    from vlm_core.models.text_baseline import fit_text_baseline

    catalogue, split = data.catalogue, data.split
    rows = split.train, split.validation
    canvas = catalogue.pictures.canvas
    return fit_text_baseline(catalogue.products, reads, split.labels, *rows, split.categories, canvas, balance=balance)


@contextmanager
def _open_run(config: Config, data: Data, root: Path, parent: str = "") -> Iterator[RunWriter]:
    """Open the run and log its settings and data."""
    from vlm_core.tracking.writer import RunWriter

    reading = {"image": "", "text": "-text"}.get(config.inputs, f"-image+text-{config.fusion}")
    name = config.run_name or f"{config.model}-{config.mode}{reading}-{config.seed}"
    with RunWriter(config.experiment, name, resume=config.resume, parent=parent, folder=root) as run:
        if not parent and not config.resume:
            logger.info(f"MLflow run {run.run_id}: if it is stopped, resume={run.run_id} continues it.")
        run.params(config.to_params())
        run.dataset(data.catalogue, data.split)
        with tempfile.TemporaryDirectory() as folder:
            run.artifact(write_dataset_info(data, Path(folder)))
            if corrections := corrections_file(config, root):
                run.artifact(shutil.copyfile(corrections, Path(folder) / CORRECTIONS))
                run.tags({"corrections": digest_of_corrections(corrections)})
        yield run


def _titles(data: Data) -> list[str]:
    """Return the texts that a tiny tokenizer is trained on: titles of training products, and names of categories."""
    titles = data.catalogue.products["title"].iloc[np.unique(data.split.train)]
    return [*titles, *(name.lower() for name in data.split.categories)]


def build_model(config: Config, data: Data, weights: LoadedWeights) -> VisionLanguageCategoriser:
    """Build the model with the head that mode and objective need, on the device of the settings."""
    import torch

    from vlm_core.evaluation.category_matching import category_terms
    from vlm_core.models.categoriser import Description, VisionLanguageCategoriser

    head: HeadKind = "linear"
    if config.mode == "zero-shot" or config.objective == "generate":
        head = cast("HeadKind", FAMILIES[config.family].zero_shot)
    training = data.catalogue.products.iloc[np.unique(data.split.train)]
    description = Description(
        family=config.family,
        categories=data.split.categories,
        canvas=data.catalogue.pictures.canvas,
        head=head,
        readout=config.readout,
        terms=category_terms(training, config.main_label),
        preprocessing=weights.preprocessing,
        hierarchy=_hierarchy(config, data.split),
    )
    if reads := text_reading(config, data.catalogue, data.split.categories):
        description = replace(description, reads=_with_tokens(reads, training, weights), fusion=config.fusion)
    torch.manual_seed(config.seed)
    model = VisionLanguageCategoriser(weights.hf, weights.tokenizer, description)
    return model.to(choose_device(config.device))


def _with_tokens(reads: TextReading, training: pd.DataFrame, weights: LoadedWeights) -> TextReading:
    """Return what is read with the number of tokens that the texts of the training products need."""
    from vlm_core.models.categoriser import ADAPTERS
    from vlm_core.models.fusion import tokens_needed

    family = str(weights.hf.config.model_type)
    texts = reads.texts(training)
    tokens, cut = tokens_needed(ADAPTERS[family](weights.hf, weights.tokenizer), texts)
    if cut:
        logger.info(f"{cut:,} of {len(texts):,} training texts are longer than {tokens} tokens: the rest is not read.")
    return replace(reads, tokens=tokens)


def _hierarchy(config: Config, split: Split) -> Hierarchy | None:
    """Return the label levels, and what stands together in training; None for one label."""
    from vlm_core.evaluation.hierarchy import Hierarchy

    if not split.levels:
        return None
    categories = [*(level.categories for level in split.levels), split.categories]
    return Hierarchy.learn(config.labels, categories, split.level_labels[np.unique(split.train)])


def _fit(
    config: Config,
    data: Data,
    model: VisionLanguageCategoriser,
    run: RunWriter,
    root: Path,
    on_epoch: Callable[[EpochReport[Summary]], None],
    plot: bool = False,
) -> TrainingState:
    """Train as the mode says; leave the best epoch's weights in the model and return its state."""
    started, together = time.perf_counter(), config.engine == "ray"
    cost = train_together(config, data, run, root, plot) if together else None
    folder, copies = checkpoints(config, root, run.run_id)
    copies.fetch(folder)
    trainer = make_trainer(config, data, model, root, run.run_id, run.metrics)
    with quiet() if together else nullcontext():  # the workers have trained: what they wrote is read
        best = trainer.fit(lambda weights: run.tags({"weights_trained": str(weights)}), on_epoch)
    seconds = time.perf_counter() - started  # of this process, including the frozen layers that it computed
    cost = cost or trainer.cost
    run.metrics({"train_seconds": seconds, **cost.metrics(seconds)})
    run.tags(cost.tags())
    return best


def make_trainer(
    config: Config,
    data: Data,
    model: VisionLanguageCategoriser,
    root: Path,
    run_id: str,
    log: Callable[[Mapping[str, float]], None] = ignore,
    group: Group | None = None,
) -> Trainer:
    """Return what trains the run's model, of a group its process's part."""
    from vlm_core.training.feature_cache import FeatureCache

    cache = FeatureCache(root / "cache", int(config.cache_gib * GIB), config.cache_precision)
    folder, copies = checkpoints(config, root, run_id)
    return Trainer(config, data, model, folder, cache, log, on_save=lambda: copies.store(folder), group=group)


def checkpoints(config: Config, root: Path, run_id: str) -> tuple[Path, CheckpointCopies]:
    """Return the folder of a run's checkpoints, and their copies."""
    from vlm_core.training.checkpoint_copies import CheckpointCopies

    return root / "checkpoints" / run_id, CheckpointCopies(config.shared_checkpoints, run_id)


def _remove_checkpoints(config: Config, run_id: str, root: Path) -> None:
    """Remove the checkpoints of a training that has ended, and their copies."""
    folder, copies = checkpoints(config, root, run_id)
    shutil.rmtree(folder, ignore_errors=True)
    copies.remove()


def _finish(
    config: Config, data: Data, model: Categoriser, run: RunWriter, source: str, register_model: bool
) -> TrainingOutcome:
    """Evaluate on the test split, once; log the evaluation and the model, and register it.

    A run that is killed in here is not finished: resuming it repeats these steps, of which each keeps what is done.
    """
    from vlm_core.evaluation.caption_scores import caption_metrics
    from vlm_core.tracking.card import write_card
    from vlm_core.tracking.registry import register

    catalogue, split = data.catalogue, data.split
    subsets = data.test_subsets()
    run.subsets(catalogue, split, subsets)
    evaluation = evaluate_rows(config, catalogue, model, split.test, split.labels, split.prior, split.trained, subsets)
    run.evaluation(evaluation)
    if evaluation.predictions.texts is not None:
        run.metrics(
            caption_metrics(
                evaluation.predictions.texts, catalogue.products.iloc[split.test], split_list(config.caption_columns)
            )
        )
    validation = evaluate_rows(config, catalogue, model, split.validation, split.labels, split.prior)
    run.predictions(validation.predictions, "validation")  # of the best epoch: thresholds are chosen on these
    run.metrics({"seconds_per_image": seconds_per_image(model, catalogue.pictures.take(split.validation[:32]))})
    figures = measure_texts(config, data, model) if model.reads else None
    if figures:
        run.metrics(figures.metrics())
        logger.info(" ".join(figures.sentences()))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model.save(folder)
        write_card(
            folder,
            run_id=run.run_id,
            settings=config.to_params(),
            weights_source=source,
            catalogue=catalogue,
            split=split,
            evaluation=evaluation,
            texts=figures,
        )
        run.model(folder)
    registered = register(run.run_id) if register_model else ""
    return TrainingOutcome(run.run_id, config, split, evaluation, registered, figures)


def measure_texts(config: Config, data: Data, model: Categoriser) -> TextLeakMetrics:
    """Return how often the texts name the category of test products, and what these texts alone score there."""
    from vlm_core.evaluation.summary import macro_f1
    from vlm_core.evaluation.text_leak import TextLeakMetrics, measure_text_leak
    from vlm_core.models.text_baseline import TextBaseline

    assert model.reads
    split, rows = data.split, data.split.test
    labels, texts = split.labels[rows], model.reads.texts(data.catalogue.products.iloc[rows])
    words = words_of_labels(config, data.catalogue, split.categories)
    baseline = (
        model if isinstance(model, TextBaseline) else fit_texts(data, replace(model.reads, tokens=0), config.balance)
    )
    predicted = baseline.of_texts(texts).argmax(axis=1)
    return TextLeakMetrics(
        columns=model.reads.columns,
        masked=bool(model.reads.masked),
        leak=measure_text_leak(texts, labels, words),
        alone_macro_f1=macro_f1(labels, predicted),
        alone_accuracy=float((predicted == labels).mean()),
    )

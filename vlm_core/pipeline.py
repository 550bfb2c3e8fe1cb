"""One run from its settings to an evaluated, registered model: the only place where all rooms meet."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vlm_core.catalogue.splitting import Split, dataset_info, split_catalogue
from vlm_core.config import Config, from_params
from vlm_core.errors import UserError
from vlm_core.evaluation.storing import write_whole
from vlm_core.presets import FROM_NOTHING
from vlm_core.progress import Progress

if TYPE_CHECKING:
    from vlm_core.catalogue.catalogue import Catalogue
    from vlm_core.evaluation.evaluation import Evaluation
    from vlm_core.evaluation.predictions import Predictions
    from vlm_core.models.categoriser import AnswerKind, Categoriser, VisionLanguageCategoriser
    from vlm_core.models.loading import Weights
    from vlm_core.pixels.store import PictureStore
    from vlm_core.tracking.writer import RunWriter
    from vlm_core.training.loop import EpochReport, StepReport

Say = Callable[[str], None]
PREDICTION_BATCH = 64


@dataclass(frozen=True)
class Data:
    """What a run learns from and is judged on."""

    catalogue: Catalogue
    split: Split


@dataclass(frozen=True)
class Outcome:
    """What a finished run leaves."""

    run_id: str
    config: Config
    split: Split
    evaluation: Evaluation
    registered: str  # one sentence: version and champion


def load_data(config: Config, root: Path, progress: Progress, say: Say) -> Data:
    """The prepared catalogue and the split that the settings draw from it. Raises UserError for unusable data."""
    from vlm_core.catalogue.catalogue import prepare_catalogue
    from vlm_core.catalogue.duplicates import near_duplicate_groups
    from vlm_core.catalogue.reading import Columns

    columns = Columns(
        config.id_column, config.picture_column, config.title_column, config.label, words(config.attributes)
    )
    catalogue = prepare_catalogue(config.data, columns, root, progress)
    say(f"Catalogue {catalogue.name}: {catalogue.reading.summary()}")
    split = split_catalogue(
        catalogue.products,
        near_duplicate_groups(catalogue.products, catalogue.pictures, progress),
        label=config.label,
        categories=words(config.categories),
        min_products=config.min_products,
        protocol=config.protocol,
        per_category=config.per_category,
        train_per_category=config.train_per_category,
        seed=config.seed,
    )
    for name, reason in split.removed.items():
        say(f"Left out: {name}, {reason}.")
    say(
        f"Protocol {split.protocol}: {len(split.train):,} training rows, {len(split.validation):,} for validation, "
        f"{len(split.test):,} for test, {len(split.categories)} categories."
    )
    if split.leaking:
        say(f"LEAKING: {split.leakage.near:.1%} of the evaluated pictures stand in training too. Scores reward memory.")
    return Data(catalogue, split)


def words(text: str) -> tuple[str, ...]:
    """The parts of a comma-separated setting."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def run_training(config: Config, root: Path, progress: Progress, say: Say) -> Outcome:
    """Train as the settings say, evaluate on the test split once, and log and register the model in MLflow.

    `root` is the working directory, below which data, logs and checkpoints are kept. Raises UserError.
    """
    if config.resume:
        config = _resumed(config.resume)
        say(f"Going on with run {config.resume} and its own settings: model={config.model}, mode={config.mode}.")
    data = load_data(config, root, progress, say)
    if config.model == "baseline":
        return _run_baseline(config, data, root, progress, say)
    return _run_model(config, data, root, progress, say)


def _resumed(run_id: str) -> Config:
    """The settings of a run that is gone on with; its weights come from where they came from then."""
    from vlm_core.tracking.reader import RunReader

    reader = RunReader()
    config = from_params(reader.params(run_id))
    weights = {"true": "pretrained", "false": "tiny"}.get(reader.tags(run_id).get("weights_pretrained", ""), config.weights)
    return config.model_copy(update={"resume": run_id, "weights": weights})


def _set_threads(threads: int) -> None:
    """Let PyTorch use so many threads, and no more than there are cores."""
    import torch

    torch.set_num_threads(min(threads, os.cpu_count() or 1))


def _run_model(config: Config, data: Data, root: Path, progress: Progress, say: Say) -> Outcome:
    from vlm_core.models.loading import load_weights

    _set_threads(config.threads)
    weights = load_weights(
        config.model,
        checkpoint=config.checkpoint,
        weights=config.weights,
        image_size=config.image_size,
        texts=_titles(data),
        seed=config.seed,
        say=say,
    )
    if not weights.pretrained:
        changes = {name: value for name, value in FROM_NOTHING.items() if name not in config.model_fields_set}
        config = config.model_copy(update=changes)
        if changes:
            say("Weights from nothing: " + ", ".join(f"{name}={value}" for name, value in changes.items()) + ".")
    model = _categoriser(config, data, weights)
    with _open_run(config, data, root) as run:
        run.tags(
            {
                "weights_source": weights.source,
                "weights_pretrained": str(weights.pretrained).lower(),
                "weights_total": str(sum(weight.numel() for weight in model.hf.parameters())),
            }
        )
        checkpoint = root / "checkpoints" / run.run_id
        if config.mode != "zero-shot":
            _fit(config, data, model, run, checkpoint, progress, say)
        outcome = _finish(config, data, model, run, weights.source, progress, say)
    shutil.rmtree(checkpoint, ignore_errors=True)
    return outcome


def _run_baseline(config: Config, data: Data, root: Path, progress: Progress, say: Say) -> Outcome:
    from vlm_core.models.baseline import fit_baseline

    split = data.split
    with _open_run(config, data, root) as run:
        run.tags({"weights_source": "none", "weights_pretrained": "false"})
        model = fit_baseline(
            data.catalogue.pictures,
            split.labels,
            split.train,
            split.validation,
            split.categories,
            data.catalogue.pictures.canvas,
            config.seed,
            progress,
        )
        return _finish(config, data, model, run, "none", progress, say)


@contextmanager
def _open_run(config: Config, data: Data, root: Path) -> Iterator[RunWriter]:
    """The run's writer, with settings and data logged."""
    from vlm_core.tracking.writer import RunWriter

    name = config.run_name or f"{config.model}-{config.mode}-{config.seed}"
    with RunWriter(config.experiment, name, resume=config.resume, folder=root) as run:
        run.params(config.to_params())
        run.dataset(data.catalogue, data.split)
        with tempfile.TemporaryDirectory() as folder:
            run.artifact(write_dataset_info(data, Path(folder)))
        yield run


def _titles(data: Data) -> list[str]:
    """Texts that a tiny tokenizer learns from: the training products' titles and the categories' names."""
    titles = data.catalogue.products["title"].iloc[np.unique(data.split.train)]
    return [*titles, *(name.lower() for name in data.split.categories)]


def _categoriser(config: Config, data: Data, weights: Weights) -> VisionLanguageCategoriser:
    """The family's model with the answer that mode and objective ask for, on the chosen device."""
    import torch

    from vlm_core.evaluation.texts import terms_of
    from vlm_core.models.categoriser import Description, VisionLanguageCategoriser

    answer: AnswerKind = "head"
    if config.mode == "zero-shot" or config.objective == "generate":
        answer = "prompts" if config.family == "clip" else "sentences"
    training = data.catalogue.products.iloc[np.unique(data.split.train)]
    description = Description(
        family=config.family,
        categories=data.split.categories,
        canvas=data.catalogue.pictures.canvas,
        answer=answer,
        readout=config.readout,
        terms=terms_of(training, config.label),
    )
    torch.manual_seed(config.seed)
    model = VisionLanguageCategoriser(weights.hf, weights.tokenizer, description)
    cuda = config.device == "cuda" or (config.device == "auto" and torch.cuda.is_available())
    if config.device == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda was asked for, but PyTorch finds no CUDA device: use device=cpu or device=auto.")
    return model.to("cuda" if cuda else "cpu")


def _fit(
    config: Config,
    data: Data,
    model: VisionLanguageCategoriser,
    run: RunWriter,
    folder: Path,
    progress: Progress,
    say: Say,
) -> None:
    """Train, with every epoch tracked; afterwards the model holds its best epoch's weights."""
    from vlm_core.training.batches import Batches, PixelBatches, StoredBatches
    from vlm_core.training.checkpoint import Checkpoint
    from vlm_core.training.loop import EpochReport, Plan, train

    split = data.split
    cut = len(model.stages) if config.mode == "probe" else 0
    batches: Batches = PixelBatches(
        data.catalogue.pictures, split.labels, split.train, model.image_size, config.batch_size, config.seed
    )
    if cut:
        model.set_training(False, cut)
        rows = np.unique(np.concatenate([split.train, split.validation]))
        batches = StoredBatches(batches, rows, cut, lambda state: model.run(state, 0, cut), progress)
    plan = Plan(**{field.name: getattr(config, field.name) for field in fields(Plan)})
    checkpoint = Checkpoint(folder)
    weights = model.learn_from(cut)
    run.tags({"weights_trained": str(sum(weight.numel() for weight in weights.values()))})
    reports = train(model, cut, batches, split.validation, plan, checkpoint)
    for report in _shown(reports, batches.steps, config.epochs, checkpoint.position().epoch, progress):
        if isinstance(report, EpochReport):
            run.epoch(report)
            say(_epoch_line(report))
    best = checkpoint.load_best(weights)
    say(f"Best epoch: {best.best_epoch}, validation macro-F1 {best.best_macro_f1:.4f}.")


def _shown(
    reports: Iterator[StepReport | EpochReport], steps: int, epochs: int, done: int, progress: Progress
) -> Iterator[StepReport | EpochReport]:
    """The reports, with a bar that counts the steps of the whole training."""
    from vlm_core.training.loop import StepReport

    bar = progress(itertools.count(), "training steps", steps * (epochs - done))
    for report in reports:
        if isinstance(report, StepReport):
            next(bar)
        yield report
    bar.close()  # type: ignore[attr-defined]


def _epoch_line(report: EpochReport) -> str:
    return (
        f"Epoch {report.epoch}/{report.epochs}: "
        f"training loss {report.training.loss:.4f}, macro-F1 {report.training.macro_f1:.4f}; "
        f"validation loss {report.validation.loss:.4f}, macro-F1 {report.validation.macro_f1:.4f} "
        f"({report.seconds:.0f} s). {report.early_stopping}"
    )


def predict_rows(
    model: Categoriser, pictures: PictureStore, rows: NDArray[np.int64], ids: NDArray[np.str_], labels: NDArray[np.int64], progress: Progress
) -> Predictions:
    """The model's answers for catalogue rows (n,); ids and labels (n_products,) are the whole catalogue's."""
    from vlm_core.evaluation.predictions import Predictions

    scores, texts, closest = [], [], []
    starts = range(0, len(rows), PREDICTION_BATCH)
    for start in progress(starts, "predicting", len(starts)):
        batch = pictures.take(rows[start : start + PREDICTION_BATCH])
        scores.append(model.log_probabilities(batch))
        described = model.describe(batch)
        if described:
            texts.extend(described[0])
            closest.append(described[1])
    return Predictions(
        product_ids=ids[rows],
        labels=labels[rows],
        log_probabilities=np.concatenate(scores),
        categories=model.categories,
        texts=tuple(texts) if texts else None,
        text_categories=np.concatenate(closest) if closest else None,
    )


def _finish(
    config: Config, data: Data, model: Categoriser, run: RunWriter, source: str, progress: Progress, say: Say
) -> Outcome:
    """Read the test split, once; log its evaluation and the model, and register it."""
    from vlm_core.evaluation.evaluation import evaluate
    from vlm_core.evaluation.pictures import draw_confusion, draw_reliability
    from vlm_core.tracking.card import write_card
    from vlm_core.tracking.registry import register

    catalogue, split = data.catalogue, data.split
    ids = catalogue.products["product_id"].to_numpy(str)
    predictions = predict_rows(model, catalogue.pictures, split.test, ids, split.labels, progress)
    attributes = [name for name in words(config.attributes) if name in catalogue.products.columns]
    evaluation = evaluate(
        predictions,
        catalogue.products[attributes].iloc[split.test].reset_index(drop=True),
        split.prior,
        resamples=config.resamples,
        seed=config.seed,
    )
    run.evaluation(evaluation, predictions)
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
        )
        run.model(folder)
        draw_confusion(evaluation.confusion, split.categories, f"{config.model}, test", folder / "confusion.png")
        draw_reliability(evaluation.calibration, f"{config.model}, test", folder / "reliability.png")
        for picture in ("confusion.png", "reliability.png"):
            run.artifact(folder / picture, "evaluation/test")
    return Outcome(run.run_id, config, split, evaluation, register(run.run_id))


def write_dataset_info(data: Data, folder: Path) -> Path:
    """The path of `dataset_info.json`, written whole into a folder."""
    catalogue = data.catalogue
    info = dataset_info(catalogue.products, data.split, catalogue.fingerprint, catalogue.reading.rows_read)
    path = folder / "dataset_info.json"
    write_whole(path, lambda file: file.write(json.dumps(info, indent=2, ensure_ascii=False).encode()))
    return path

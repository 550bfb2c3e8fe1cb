"""One run from its settings to an evaluated, registered model: the only place where all rooms meet."""

from __future__ import annotations

import logging
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vlm_core.catalogue.splitting import Split
from vlm_core.config import FINE_TUNING, Config, from_params
from vlm_core.data import Data, load_data, words, write_dataset_info
from vlm_core.inference import choose_device, evaluate_rows, seconds_per_image, set_threads
from vlm_core.presets import HEAD, SUITING
from vlm_core.progress import quiet
from vlm_core.tracking.metrics import epoch_line, epoch_metrics
from vlm_core.training.fit import GIB, Trainer

if TYPE_CHECKING:
    from vlm_core.evaluation.evaluation import Evaluation
    from vlm_core.evaluation.summary import Summary
    from vlm_core.models.categoriser import Categoriser, HeadKind, VisionLanguageCategoriser
    from vlm_core.models.loading import LoadedWeights
    from vlm_core.tracking.writer import RunWriter
    from vlm_core.training.checkpoint import TrainingState
    from vlm_core.training.loop import EpochReport

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """What a finished run leaves."""

    run_id: str
    config: Config
    split: Split
    evaluation: Evaluation
    registered: str = ""  # one sentence: version and champion


@dataclass(frozen=True)
class TrialResult:
    """What a search learns from a run that read no test product."""

    macro_f1: float  # best epoch, validation
    seconds: float  # a picture, from pixels to answer
    pruned: bool


class _Pruned(Exception):
    """A trial that is not worth going on with."""


def run_training(
    config: Config,
    root: Path,
    *,
    data: Data | None = None,
    parent: str = "",
    enter: bool = True,
) -> Outcome:
    """Train as the settings say, evaluate on the test split once, and log and register the model in MLflow.

    `root` is the working directory, below which data, logs and checkpoints are kept. `data` is what the settings
    name, where it is loaded already. With `parent`, the run is one below that MLflow run; with `enter` False, one of
    many: its model is in the run alone, and no epoch is drawn (slower than learning a head). Raises UserError.
    """
    from vlm_core.tracking.registry import register

    if config.resume:
        config = resumed_config(config.resume)
        logger.info(
            f"Going on with run {config.resume} and its own settings: model={config.model}, mode={config.mode}."
        )
    data = data or load_data(config, root)
    run = _run_baseline if config.model == "baseline" else partial(_run_model, drawn=enter)
    outcome = run(config, data, root, parent)
    return replace(outcome, registered=register(outcome.run_id)) if enter else outcome


def run_trial(
    config: Config,
    data: Data,
    root: Path,
    parent: str,
    begin: Callable[[str], None],
    goes_on: Callable[[int, float], bool],
) -> TrialResult:
    """Train in a run below `parent` without reading the test split; `begin` is told its id.

    `goes_on` is asked after each epoch with its validation macro-F1; the run ends as pruned when it says no.
    """
    with quiet():
        config, data, model, facts = _prepare(config, data)
    with _open_run(config, data, root, parent) as run:
        begin(run.run_id)
        run.tags({**facts, "kind": "trial"})

        def on_epoch(report: EpochReport[Summary]) -> None:
            run.figures(report.epoch, epoch_metrics(report))
            if not goes_on(report.epoch, report.validation.macro_f1):
                raise _Pruned

        try:
            with quiet():
                best = _fit(config, data, model, run, root, on_epoch)
        except _Pruned:
            run.tags({"pruned": "true"})
            return TrialResult(0.0, float("inf"), pruned=True)
        finally:
            shutil.rmtree(root / "checkpoints" / run.run_id, ignore_errors=True)
        seconds = seconds_per_image(model, data.catalogue.pictures.take(data.split.validation[:32]))
        run.metrics({"best_validation_macro_f1": best.best_macro_f1, "seconds_per_image": seconds})
    return TrialResult(best.best_macro_f1, seconds, pruned=False)


def resumed_config(run_id: str) -> Config:
    """Return the settings of a run that is resumed; its weights come from where they came from then.

    Raises UserError for a run that cannot be resumed.
    """
    from vlm_core.tracking.reader import RunReader

    reader = RunReader()
    reader.check_resumable(run_id)
    config = from_params(reader.params(run_id))
    source = reader.tags(run_id).get("weights_source", "")
    kinds = {"": config.weights, "shipped": "tiny", "tiny-random": "tiny-random"}
    return config.model_copy(update={"resume": run_id, "weights": kinds.get(source.split(":")[0], "pretrained")})


def _run_model(config: Config, data: Data, root: Path, parent: str, drawn: bool) -> Outcome:
    config, data, model, facts = _prepare(config, data)
    with _open_run(config, data, root, parent) as run:
        run.tags(facts)

        def on_epoch(report: EpochReport[Summary]) -> None:
            run.epoch(report, drawn=drawn)
            logger.info(epoch_line(report))

        if config.mode != "zero-shot":
            best = _fit(config, data, model, run, root, on_epoch)
            logger.info(f"Best epoch: {best.best_epoch}, validation macro-F1 {best.best_macro_f1:.4f}.")
        outcome = _finish(config, data, model, run, facts["weights_source"])
    shutil.rmtree(root / "checkpoints" / outcome.run_id, ignore_errors=True)
    return outcome


def _prepare(config: Config, data: Data) -> tuple[Config, Data, VisionLanguageCategoriser, dict[str, str]]:
    """The settings that suit the weights, the data as those have seen it, the model, and facts for the run's tags."""
    from vlm_core.models.loading import load_weights
    from vlm_core.tracking import tags

    set_threads(config.threads)
    weights = load_weights(
        config.model,
        checkpoint=config.checkpoint,
        weights=config.weights,
        image_size=config.image_size,
        texts=_titles(data),
        seed=config.seed,
    )
    data = data.exposed(weights.exposure)
    config = _suited(config, weights)
    model = _categoriser(config, data, weights)
    facts = {
        "weights_source": weights.source,
        "weights_pretrained": str(weights.pretrained).lower(),
        **(tags.exposure_tags(weights.exposure) if weights.exposure else {}),
        "weights_total": str(sum(weight.numel() for weight in model.hf.parameters())),
    }
    return config, data, model, facts


def _suited(config: Config, weights: LoadedWeights) -> Config:
    """The settings with those that suit the weights and the mode, where the user gave none."""
    word = weights.source.split(":")[0]
    mode = _mode(config, word) if config.mode == "auto" else config.mode
    suiting = {**SUITING.get(word, {}), **(HEAD if mode == "probe" else {})}
    changes = {name: value for name, value in suiting.items() if name not in config.model_fields_set} | {"mode": mode}
    changes = {name: value for name, value in changes.items() if value != getattr(config, name)}
    if changes:
        logger.info(f"For {weights.source}: " + ", ".join(f"{name}={value}" for name, value in changes.items()) + ".")
    return config.model_copy(update=changes)


def _mode(config: Config, word: str) -> str:
    """What `auto` is: nothing is worth freezing from nothing, and sentences need no head."""
    if word == "tiny-random" or (word == "shipped" and config.objective == "generate"):
        return "full"
    return "fusion" if config.objective == "generate" else "lp-ft"


def _run_baseline(config: Config, data: Data, root: Path, parent: str) -> Outcome:
    from vlm_core.models.baseline import fit_baseline

    config, split = config.model_copy(update={"mode": "full"}), data.split
    with _open_run(config, data, root, parent) as run:
        run.tags({"weights_source": "none", "weights_pretrained": "false"})
        started = time.perf_counter()
        model = fit_baseline(
            data.catalogue.pictures,
            split.labels,
            split.train,
            split.validation,
            split.categories,
            data.catalogue.pictures.canvas,
            config.seed,
        )
        run.metrics({"train_seconds": time.perf_counter() - started})
        return _finish(config, data, model, run, "none")


@contextmanager
def _open_run(config: Config, data: Data, root: Path, parent: str = "") -> Iterator[RunWriter]:
    """The run's writer, with settings and data logged."""
    from vlm_core.tracking.writer import RunWriter

    name = config.run_name or f"{config.model}-{config.mode}-{config.seed}"
    with RunWriter(config.experiment, name, resume=config.resume, parent=parent, folder=root) as run:
        run.params(config.to_params(FINE_TUNING))
        run.dataset(data.catalogue, data.split)
        with tempfile.TemporaryDirectory() as folder:
            run.artifact(write_dataset_info(data, Path(folder)))
        yield run


def _titles(data: Data) -> list[str]:
    """Texts that a tiny tokenizer learns from: the training products' titles and the categories' names."""
    titles = data.catalogue.products["title"].iloc[np.unique(data.split.train)]
    return [*titles, *(name.lower() for name in data.split.categories)]


def _categoriser(config: Config, data: Data, weights: LoadedWeights) -> VisionLanguageCategoriser:
    """The family's model with the answer that mode and objective ask for, on the chosen device."""
    import torch

    from vlm_core.evaluation.texts import category_terms
    from vlm_core.models.categoriser import Description, VisionLanguageCategoriser

    head: HeadKind = "linear"
    if config.mode == "zero-shot" or config.objective == "generate":
        head = "prompts" if config.family == "clip" else "sentences"
    training = data.catalogue.products.iloc[np.unique(data.split.train)]
    description = Description(
        family=config.family,
        categories=data.split.categories,
        canvas=data.catalogue.pictures.canvas,
        head=head,
        readout=config.readout,
        terms=category_terms(training, config.label),
    )
    torch.manual_seed(config.seed)
    model = VisionLanguageCategoriser(weights.hf, weights.tokenizer, description)
    return model.to(choose_device(config.device))


def _fit(
    config: Config,
    data: Data,
    model: VisionLanguageCategoriser,
    run: RunWriter,
    root: Path,
    on_epoch: Callable[[EpochReport[Summary]], None],
) -> TrainingState:
    """Train as the mode says; afterwards the model holds its best epoch's weights, whose position comes back."""
    from vlm_core.training.feature_cache import FeatureCache

    cache = FeatureCache(root / "cache", int(config.cache_gib * GIB), config.cache_precision)
    started = time.perf_counter()
    folder = root / "checkpoints" / run.run_id
    trainer = Trainer(config, data, model, folder, cache, run.metrics)
    best = trainer.fit(lambda weights: run.tags({"weights_trained": str(weights)}), on_epoch)
    run.metrics({"train_seconds": time.perf_counter() - started})  # of this process, frozen layers included
    return best


def _finish(config: Config, data: Data, model: Categoriser, run: RunWriter, source: str) -> Outcome:
    """Read the test split, once; log its evaluation and the model."""
    from vlm_core.evaluation.caption_scores import caption_metrics
    from vlm_core.tracking.card import write_card

    catalogue, split = data.catalogue, data.split
    evaluation = evaluate_rows(config, catalogue, model, split.test, split.labels, split.prior)
    run.evaluation(evaluation)
    if evaluation.predictions.texts is not None:
        run.metrics(
            caption_metrics(
                evaluation.predictions.texts, catalogue.products.iloc[split.test], words(config.caption_columns)
            )
        )
    validation = evaluate_rows(config, catalogue, model, split.validation, split.labels, split.prior)
    run.predictions(validation.predictions, "validation")  # of the chosen epoch: thresholds are drawn on these
    run.metrics({"seconds_per_image": seconds_per_image(model, catalogue.pictures.take(split.validation[:32]))})
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model.save(folder)
        write_card(
            folder,
            run_id=run.run_id,
            settings=config.to_params(FINE_TUNING),
            weights_source=source,
            catalogue=catalogue,
            split=split,
            evaluation=evaluation,
        )
        run.model(folder)
    return Outcome(run.run_id, config, split, evaluation)

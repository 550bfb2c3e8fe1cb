"""Does a GPU compute what the CPU computes? Tiny models are trained, asked and explained on both."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from vlm_core.attention.maps import explain, explain_words, layer_maps
from vlm_core.catalogue.captions import describe_products
from vlm_core.catalogue.sample import draw_sample
from vlm_core.config import Config
from vlm_core.config.lists import split_list
from vlm_core.data import Data, load_data
from vlm_core.models.blip import PROMPT
from vlm_core.models.categoriser import Description, HeadKind, VisionLanguageCategoriser
from vlm_core.models.decoding import decode_categories
from vlm_core.models.heads import TEMPLATES
from vlm_core.models.loading import load_weights
from vlm_core.models.objectives import make_objective
from vlm_core.models.saved import load_categoriser
from vlm_core.training.batches import PixelBatches
from vlm_core.training.checkpoint import Checkpoint
from vlm_core.training.feature_cache import FeatureCache
from vlm_core.training.finetuning_task import FineTuning
from vlm_core.training.fit import GIB, Trainer
from vlm_core.training.loop import EpochReport, TrainingArguments, train
from vlm_core.training.pretraining_task import Pretraining

logger = logging.getLogger(__name__)

Numbers = dict[str, NDArray[Any]]
Check = Callable[["AgreementSetup"], Numbers]
FAMILIES: Final = ("clip", "blip", "git")
MODES: Final = ("probe", "fusion", "last-blocks", "lora", "lp-ft", "full")
PRODUCTS: Final = 320  # of the sample catalogue
EXPLAINED: Final = 4  # images
# Largest relative difference (L2) from the CPU's numbers. Training amplifies rounding, step by step.
TOLERANCE: Final = 1e-3
TRAINED_TOLERANCE: Final = 2e-2
SETTINGS: Final = {
    "preset": "cpu", "per_category": 24, "train_per_category": 32, "batch_size": 16, "epochs": 2, "patience": 2,
    "views": 1, "learning_rate": 1e-3, "weights": "tiny",
}  # fmt: skip


@dataclass(frozen=True)
class AgreementResult:
    """One check: the relative difference of each of its numbers from the CPU's; a check that failed has its error."""

    family: str
    check: str
    tolerance: float
    differences: dict[str, float]
    device_seconds: float
    cpu_seconds: float
    error: str = ""

    @property
    def agrees(self) -> bool:
        """Return whether the check ran, and every number is within the tolerance."""
        return not self.error and all(value <= self.tolerance for value in self.differences.values())


@dataclass(frozen=True)
class AgreementSetup:
    """A family's shipped tiny weights on a device, and the data that they are trained on."""

    family: str
    device: str
    data: Data
    folder: Path

    def config(self, **settings: Any) -> Config:
        """Return the settings of a short run."""
        return Config.build({**SETTINGS, "model": self.family, "device": self.device, **settings})

    def model(self, head: HeadKind = "linear") -> VisionLanguageCategoriser:
        """Return a categoriser over the shipped weights, whose linear head depends on the family alone."""
        weights = load_weights(self.family, checkpoint="", weights="tiny", image_size=0, texts=(), seed=0)
        torch.manual_seed(0)
        canvas, categories = self.data.catalogue.pictures.canvas, self.data.split.categories
        description = Description(self.family, categories, canvas, head, "fused", {})
        return VisionLanguageCategoriser(weights.hf, weights.tokenizer, description).to(self.device)

    def pictures(self) -> NDArray[np.uint8]:
        """Return images (n, H, W, 3) of the validation split."""
        return self.data.catalogue.pictures.take(self.data.split.validation)


def load_sample(folder: Path) -> Data:
    """Draw a small sample catalogue into `folder`, and return it prepared and split."""
    draw_sample(folder / "shop", products=PRODUCTS)
    return load_data(Config.build({**SETTINGS, "data": str(folder / "shop")}), folder)


def line(result: AgreementResult) -> str:
    """Return one line about a result, for the person who waits."""
    worst = max(result.differences.values(), default=float("nan"))
    verdict = "agrees" if result.agrees else "DIFFERS"
    outcome = result.error or f"{verdict}, at most {worst:.1e} off (tolerance {result.tolerance:g})"
    seconds = f"{result.device_seconds:.1f} s, on the CPU {result.cpu_seconds:.1f} s"
    return f"{result.family}, {result.check}: {outcome}; {seconds}"


def checks(family: str) -> dict[str, tuple[Check, float]]:
    """Return a family's checks by name, each with its tolerance."""
    heads: tuple[HeadKind, ...] = ("linear", "prompts") if family == "clip" else ("linear", "sentences")
    found: dict[str, tuple[Check, float]] = {f"predict: {head}": (_predict(head), TOLERANCE) for head in heads}
    found |= {f"attention: {head}": (_explain(head), TOLERANCE) for head in heads if head != "prompts"}
    found["save"] = _save, TOLERANCE
    found |= {f"train: {mode}": (_train(mode), TRAINED_TOLERANCE) for mode in MODES}
    if family != "clip":
        found |= {
            f"train: {mode}, generate": (_train(mode, "sentences"), TRAINED_TOLERANCE) for mode in ("fusion", "full")
        }
    found["resume"] = _resume, TRAINED_TOLERANCE
    found["pretrain"] = _pretrain, TRAINED_TOLERANCE
    return found


def measure_agreement(device: str, data: Data, folder: Path, families: tuple[str, ...]) -> Iterator[AgreementResult]:
    """Yield the result of each check of each family; `folder` takes feature caches and checkpoints."""
    for family in families:
        for name, (check, tolerance) in checks(family).items():
            yield run_check(family, name, check, tolerance, device, data, folder)


def run_check(
    family: str, name: str, check: Check, tolerance: float, device: str, data: Data, folder: Path
) -> AgreementResult:
    """Return how far the device's numbers are from the CPU's; what the check fails with is in the result."""
    places = {place: folder / f"{family} {name} {place}".replace(":", "") for place in ("device", "cpu")}
    started = time.perf_counter()
    try:
        found = check(AgreementSetup(family, device, data, places["device"]))
        middle = time.perf_counter()
        expected = check(AgreementSetup(family, "cpu", data, places["cpu"]))
        ended = time.perf_counter()
        differences = {key: relative_difference(found[key], expected[key]) for key in expected}
        return AgreementResult(family, name, tolerance, differences, middle - started, ended - middle)
    except Exception as error:  # each check tells of its own fault
        logger.exception(f"{family}, {name}: failed.")
        message = f"{type(error).__name__}: {error}".splitlines()[0]
        return AgreementResult(family, name, tolerance, {}, time.perf_counter() - started, 0.0, message)


def relative_difference(found: NDArray[Any], expected: NDArray[Any]) -> float:
    """Return the L2 norm of the difference over that of what is expected; for texts the share that differs."""
    if found.shape != expected.shape:
        return float("inf")
    if expected.dtype.kind == "U":
        return float((found != expected).mean())
    norm = float(np.linalg.norm(expected))
    return float(np.linalg.norm(found - expected)) / (norm or 1.0)


def _predict(head: HeadKind) -> Check:
    """Return the check of log-probabilities, and where the head is of sentences of generated texts."""

    def check(setup: AgreementSetup) -> Numbers:
        model, pictures = setup.model(head), setup.pictures()
        numbers: Numbers = {"log-probabilities": model.log_probabilities(pictures)}
        if model.writes_text:
            decoded = decode_categories(model, pictures)
            numbers["texts"] = np.array(decoded.texts)
            numbers |= {rule: indices.astype(str) for rule, indices in decoded.predictions.items()}
        return numbers

    return check


def _explain(head: HeadKind) -> Check:
    """Return the check of attention maps, of each layer's and of words."""

    def check(setup: AgreementSetup) -> Numbers:
        model, pictures = setup.model(head), setup.pictures()[:EXPLAINED]
        numbers: Numbers = {method: explain(model, pictures, method=method, target=0) for method in ("raw", "gradient")}
        numbers["layers"] = np.concatenate([layer.maps.ravel() for layer in layer_maps(model, pictures, 0)])
        if model.writes_text:
            words = [word for words in explain_words(model, pictures, method="gradient") for word in words]
            numbers["words"] = np.array([word.map for word in words])
        return numbers

    return check


def _save(setup: AgreementSetup) -> Numbers:
    """Return predictions of a model that was saved and loaded, which puts it on the CPU."""
    setup.model().save(setup.folder)
    return {"log-probabilities": load_categoriser(setup.folder).log_probabilities(setup.pictures())}


def _train(mode: str, head: HeadKind = "linear") -> Check:
    """Return the check of a short fine-tuning: the losses of its epochs, and what the model predicts after it."""

    def check(setup: AgreementSetup) -> Numbers:
        objective = "generate" if head == "sentences" else "classify"
        config, model = setup.config(mode=mode, objective=objective, blocks=1), setup.model(head)
        cache = FeatureCache(setup.folder / "cache", GIB, "fp32")
        losses: list[tuple[float, float]] = []
        Trainer(config, setup.data, model, setup.folder / "checkpoints", cache).fit(
            on_epoch=lambda report: losses.append((report.training.loss, report.validation.loss))
        )
        return {"losses": np.array(losses), "log-probabilities": model.log_probabilities(setup.pictures())}

    return check


def _resume(setup: AgreementSetup) -> Numbers:
    """Return the losses of a fine-tuning that is stopped after its first epoch and resumed with fresh weights."""
    config = setup.config(mode="full")
    arguments = TrainingArguments(config.epochs, config.learning_rate, 0.01, 0.1, 1.0, config.patience, config.seed)
    validation = setup.data.split.validation

    def reports() -> Iterator[Any]:
        model = setup.model()
        batches = Trainer(config, setup.data, model, setup.folder, FeatureCache(setup.folder, 0)).pixel_batches()
        return train(FineTuning(model, 0, batches, validation), arguments, Checkpoint(setup.folder))

    interrupted = reports()
    first = next(report for report in interrupted if isinstance(report, EpochReport))
    next(interrupted)  # the first epoch is saved before the second starts
    interrupted.close()  # type: ignore[attr-defined]
    (second,) = [report for report in reports() if isinstance(report, EpochReport)]
    return {"losses": np.array([report.validation.loss for report in (first, second)])}


def _pretrain(setup: AgreementSetup) -> Numbers:
    """Return the loss terms of a few steps of pretraining, without those that depend on random negatives."""
    catalogue, config = setup.data.catalogue, setup.config()
    columns, context = split_list(config.caption_columns), split_list(config.attributes)
    captions = describe_products(catalogue.products, columns, context, PROMPT, TEMPLATES)
    model = setup.model()
    rows = np.unique(setup.data.split.train)[:48]
    batches = PixelBatches(catalogue.pictures, setup.data.split.labels, rows, model.image_size, 16, 0)
    torch.manual_seed(0)  # for the weights that pretraining adds
    task = Pretraining(model.adapter, make_objective(model.adapter), batches, captions, 1.0, lambda: {})
    steps = train(task, TrainingArguments(1, 1e-4, 0.01, 0.1, 1.0, 1, 0), Checkpoint(setup.folder))
    for _ in itertools.islice(steps, task.steps):
        pass
    terms: Mapping[str, float] = task.training_metrics().metrics
    compared = [terms["contrastive"] if "contrastive" in terms else terms["captioning"]]
    steps.close()  # type: ignore[attr-defined]
    return {"losses": np.array(compared), "finite": np.isfinite(list(terms.values())).astype(float)}

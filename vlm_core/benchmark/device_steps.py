"""Training steps of full-size architectures on a GPU: images per second, share of the card's peak, memory.

The weights are random, which speed does not depend on. The project's own loop takes the steps, and loss and gradients
are compared with the CPU's for the same weights and images.
"""

from __future__ import annotations

import gc
import logging
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch
from torch import Tensor

from vlm_core.benchmark.naive import full_size
from vlm_core.benchmark.steps import Quartiles
from vlm_core.models import arithmetic
from vlm_core.models.arithmetic import mixed_precision
from vlm_core.models.categoriser import Description, VisionLanguageCategoriser
from vlm_core.models.profiling import count_flops
from vlm_core.models.stages import State
from vlm_core.models.tiny import build_tiny
from vlm_core.pixels.picture_store import PictureStore
from vlm_core.tracking.tags import machine_tags
from vlm_core.training.batches import Batches, FeatureBatches, PixelBatches
from vlm_core.training.checkpoint import Checkpoint
from vlm_core.training.feature_cache import CachedFeatures
from vlm_core.training.finetuning_task import FineTuning
from vlm_core.training.loop import TrainingArguments, train

logger = logging.getLogger(__name__)

# fp32: single precision; tf32: matmuls of float32 rounded to 10 bits; bf16: autocast over float32 weights.
Precision = Literal["fp32", "tf32", "bf16"]
Kind = Literal["full", "one block", "frozen layers", "full from pictures"]
LossAndGradients = tuple[float, dict[str, Tensor]]
CATEGORIES: Final = tuple(f"category {number}" for number in range(1, 8))
CANVAS: Final = (80, 60)
COMPARED: Final = 16  # images whose loss and gradients are compared with the CPU's
WARM_UP: Final = 4  # steps before the measured ones
IMAGES_IN_TURN: Final = 8  # per pass, and for how long passes are taken, when precisions are compared on a CPU
SECONDS_IN_TURN: Final = 20.0
ROUNDS: Final = 3
STEPS: Final = 5  # per round
PEAK_SECONDS: Final = 0.5  # of matmuls in each precision; three short series differed by an eighth
# Largest difference from the CPU's in single precision: of the loss, and of all gradients (relative L2).
TOLERANCES: Final[Mapping[Precision, tuple[float, float]]] = {
    "fp32": (1e-4, 1e-3),
    "tf32": (5e-3, 2e-2),
    "bf16": (2e-2, 1e-1),
}


@dataclass(frozen=True)
class Architecture:
    """A published architecture."""

    name: str
    family: str
    image_size: int
    patch_size: int


ARCHITECTURES: Final = (
    Architecture("CLIP ViT-B/32", "clip", 224, 32),
    Architecture("CLIP ViT-B/16", "clip", 224, 16),
    Architecture("BLIP base", "blip", 224, 16),
    Architecture("GIT base", "git", 224, 16),
    Architecture("BLIP base", "blip", 384, 16),
)
TINY: Final = tuple(Architecture(f"tiny {family}", family, 64, 8) for family in ("clip", "blip", "git"))


@dataclass(frozen=True)
class Measurement:
    """What is measured: a kind of step in one precision, with blocks compiled by `torch.compile` or not."""

    kind: Kind
    precision: Precision
    compiled: bool = False


# In the order of their worth: a run that is cut short has the first.
MEASUREMENTS: Final[tuple[Measurement, ...]] = (
    Measurement("full", "bf16"),
    Measurement("full", "fp32"),
    Measurement("one block", "bf16"),
    Measurement("one block", "fp32"),
    Measurement("full", "tf32"),
    Measurement("frozen layers", "bf16"),
    Measurement("frozen layers", "fp32"),
    Measurement("full from pictures", "bf16"),
    Measurement("one block", "tf32"),
)
COMPILED: Final[tuple[Measurement, ...]] = (Measurement("full", "bf16", compiled=True),)


@dataclass(frozen=True)
class StepResult:
    """The measurements of one measurement; a result that failed has its error and nothing else."""

    architecture: str
    image_size: int
    kind: str
    precision: str
    compiled: bool
    error: str = ""
    images_per_second: float | None = None
    step_seconds: dict[str, Any] | None = None  # quartiles over rounds
    gflop_per_image: float | None = None
    tflops: float | None = None  # 10^12 floating-point operations per second
    share_of_peak: float | None = None  # of the card's bf16 matmul
    share_of_own_peak: float | None = None  # of its matmul in the same precision
    peak_gib: float | None = None  # of the GPU's memory, weights included
    loss_error: float | None = None  # relative, from the CPU's in single precision
    gradient_error: float | None = None
    within_tolerance: bool | None = None


class _HeldFeatures(CachedFeatures):
    """One batch's features, which stay on the device."""

    def __init__(self, state: State) -> None:
        self._state = state

    def take(self, rows: Any) -> State:
        """Return the batch, whatever the rows."""
        return self._state


def line(result: StepResult) -> str:
    """Return one line about a result, for the person who waits."""
    name = f"{result.architecture}, {result.image_size} pixels, {result.kind}, {result.precision}"
    name += ", compiled" if result.compiled else ""
    if result.images_per_second is None:
        return f"{name}: {result.error}"
    errors = "" if result.loss_error is None else f", loss off by {result.loss_error:.1e}"
    return f"{name}: {result.images_per_second:,.0f} images/s, {result.share_of_peak:.1%} of the peak{errors}"


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Return processor, cores and versions, and the GPU's name and memory."""
    facts: dict[str, Any] = {**machine_tags(), "device": device.type, "cuda": torch.version.cuda}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts |= {"device": properties.name, "memory_gib": properties.total_memory / 2**30}
    return facts


@contextmanager
def float32_matmuls(precision: Precision) -> Iterator[None]:
    """Compute matmuls of float32 in TF32 within the context if that is the precision, else exactly."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def of_model(precision: Precision) -> arithmetic.Precision:
    """Return the model's own precision: TF32 is a way to multiply float32 matrices."""
    return "bf16" if precision == "bf16" else "fp32"


def synchronise(device: torch.device) -> None:
    """Wait until the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def restart_peak_memory(device: torch.device) -> None:
    """Count the peak of the GPU's memory from now on."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def measure_peaks(device: torch.device, precisions: tuple[Precision, ...], size: int) -> dict[Precision, Quartiles]:
    """Return the rates of matmuls of two random matrices (size, size) in each precision, in TFLOP/s."""
    return {precision: _matmul_tflops(device, precision, size) for precision in precisions}


def _matmul_tflops(device: torch.device, precision: Precision, size: int, matmuls: int = 8) -> Quartiles:
    """Return the rates of series of matmuls, three at least, after one as a warm-up."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    rates: list[float] = []
    until = time.perf_counter() + PEAK_SECONDS
    with float32_matmuls(precision):
        while len(rates) < 4 or time.perf_counter() < until:
            synchronise(device)
            started = time.perf_counter()
            for _ in range(matmuls):
                torch.matmul(a, b)
            synchronise(device)
            rates.append(matmuls * 2 * size**3 / (time.perf_counter() - started) / 1e12)
    return Quartiles.of(rates[1:])


def measure_precisions(family: str, image_size: int, threads: int) -> dict[str, Any]:
    """Return the seconds per image of a forward and backward pass on this CPU in fp32 and in bf16, taken in turn."""
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        bench = StepBench.build(architecture_of(family, image_size), IMAGES_IN_TURN, Path(folder))
    model = bench.model
    weights = model.freeze_before(0).values()
    seconds = arithmetic.measure_precisions(lambda: model.run((bench.pixels,)), weights, model.device, SECONDS_IN_TURN)
    per_image = {precision: each / IMAGES_IN_TURN for precision, each in seconds.items()}
    return {"family": family, "image_size": image_size, "seconds_per_image": per_image}


def architecture_of(family: str, image_size: int) -> Architecture:
    """Return the tiny model of a family for its own size, 64 pixels, and else the published architecture."""
    tiny = next(each for each in TINY if each.family == family)
    return (
        tiny
        if image_size == tiny.image_size
        else Architecture(family, family, image_size, 32 if family == "clip" else 16)
    )


def measure_architecture(
    architecture: Architecture,
    measurements: tuple[Measurement, ...],
    device: torch.device,
    images: int,
    peaks: Mapping[Precision, float],
    folder: Path,
) -> Iterator[StepResult]:
    """Yield the result of each measurement, with `images` images per step; `folder` takes pictures and checkpoints.

    Loss and gradients are compared with the CPU's for the first few images; those of compiled blocks with the
    device's own in single precision for all images, because they would be compiled anew for another number.
    """
    bench = StepBench.build(architecture, images, folder)
    if compiled := all(measurement.compiled for measurement in measurements):
        bench.model.to(str(device))
    compared = images if compiled else COMPARED
    with float32_matmuls("fp32"):
        reference = bench.loss_and_gradients(0, "fp32", compared)
    bench.model.to(str(device))
    for measurement in measurements:
        yield _measure(bench, measurement, reference, compared, peaks)
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def _measure(
    bench: StepBench,
    measurement: Measurement,
    reference: LossAndGradients,
    compared: int,
    peaks: Mapping[Precision, float],
) -> StepResult:
    """Return the measurement's result; what it fails with is in the result, and the others are still measured."""
    result = StepResult(bench.architecture.name, bench.architecture.image_size, **asdict(measurement))
    try:
        flops = bench.flops_per_image(measurement)
        with float32_matmuls(measurement.precision), bench.stages(measurement.compiled):
            errors = _compare(bench, measurement, reference, compared)
            return replace(result, **errors, **bench.speed(measurement, flops, peaks))
    except Exception as error:  # a card's memory may not do for one of them
        logger.exception(f"{result.architecture}, {measurement}: not measured.")
        return replace(result, error=f"{type(error).__name__}: {error}".splitlines()[0])


def _compare(bench: StepBench, measurement: Measurement, reference: LossAndGradients, compared: int) -> dict[str, Any]:
    """Return how far loss and gradients are from the reference, and whether that is within the tolerance."""
    if measurement.kind not in ("full", "one block"):
        return {}
    bench.restore()
    loss, gradients = bench.loss_and_gradients(bench.cut(measurement.kind), measurement.precision, compared)
    wanted_loss, wanted = reference
    difference = sum(float((gradient - wanted[name]).square().sum()) for name, gradient in gradients.items())
    size = sum(float(wanted[name].square().sum()) for name in gradients)
    loss_error, gradient_error = abs(loss - wanted_loss) / wanted_loss, math.sqrt(difference / size)
    of_loss, of_gradient = TOLERANCES[measurement.precision]
    within = loss_error <= of_loss and gradient_error <= of_gradient
    return {"loss_error": loss_error, "gradient_error": gradient_error, "within_tolerance": within}


@dataclass(frozen=True)
class StepBench:
    """A model with random weights and the images that it is trained on."""

    architecture: Architecture
    model: VisionLanguageCategoriser
    pictures: PixelBatches
    pixels: Tensor  # (images, 3, S, S)
    labels: Tensor  # (images,)
    folder: Path
    weights: Mapping[str, Tensor]  # the initial ones, on the CPU

    @classmethod
    def build(cls, architecture: Architecture, images: int, folder: Path) -> StepBench:
        """Return a bench whose weights and images depend on the architecture alone."""
        family, size = architecture.family, architecture.image_size
        torch.manual_seed(0)
        hf, tokenizer = (
            build_tiny(family, ["men navy blue shirts"])
            if architecture in TINY
            else full_size(family, size, architecture.patch_size)
        )
        model = VisionLanguageCategoriser(hf, tokenizer, Description(family, CATEGORIES, CANVAS, "linear", "fused", {}))
        generator = np.random.default_rng(0)
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / "pictures.npy", generator.integers(0, 256, (images, *CANVAS, 3), dtype=np.uint8))
        rows = np.arange(images).repeat(WARM_UP + ROUNDS * STEPS + 1)  # no epoch ends while steps are measured
        labels = np.arange(images) % len(CATEGORIES)
        pictures = PixelBatches(PictureStore(folder / "pictures.npy"), labels, rows, size, images, seed=0)
        pixels = torch.cat([batch.state[0] for batch in pictures.view(1, np.arange(images))])
        bench = cls(architecture, model, pictures, pixels, torch.from_numpy(labels), folder, {})
        return replace(bench, weights={name: weight.detach().clone() for name, weight in bench.parameters()})

    def parameters(self) -> Iterator[tuple[str, Tensor]]:
        """Yield all weights by name."""
        yield from self.model.hf.named_parameters()
        for module in self.model.head.trainable_modules():
            yield from module.named_parameters("head")

    @torch.no_grad()
    def restore(self) -> None:
        """Put back the initial weights, which training steps have changed."""
        for name, weight in self.parameters():
            weight.copy_(self.weights[name])

    def cut(self, kind: Kind) -> int:
        """Return the index of the first stage that is trained, which ends the frozen layers."""
        return 0 if kind in ("full", "full from pictures") else self.model.cut("last-blocks", 1)

    @contextmanager
    def stages(self, compiled: bool) -> Iterator[None]:
        """Compile each block within the context, if so asked. Blocks of one kind share the compiled code.

        A block that cannot be compiled as a whole is an error: in pieces it may be slower than uncompiled.
        """
        stages = self.model.stages
        if compiled:
            self.model.stages = tuple(
                replace(stage, run=torch.compile(stage.run, fullgraph=True, dynamic=False))
                if ".block." in stage.name
                else stage
                for stage in stages
            )
        try:
            yield
        finally:
            self.model.stages = stages

    def loss_and_gradients(self, cut: int, precision: Precision, images: int) -> LossAndGradients:
        """Return the loss of the first images, without dropout, and its gradients by name, on the CPU."""
        model, device = self.model, self.model.device
        weights = model.freeze_before(cut)
        model.set_training(False, cut)
        with mixed_precision(device, of_model(precision)):
            loss, _ = model.head.loss(model.run((self.pixels[:images],)), self.labels[:images].to(device))
        loss.backward()  # type: ignore[no-untyped-call]
        gradients = {name: weight.grad.cpu() for name, weight in weights.items() if weight.grad is not None}
        self._forget_gradients()
        return float(loss.detach()), gradients

    def _forget_gradients(self) -> None:
        for module in (self.model.hf, *self.model.head.trainable_modules()):
            module.zero_grad(set_to_none=True)

    def speed(self, measurement: Measurement, flops: int, peaks: Mapping[Precision, float]) -> dict[str, Any]:
        """Return speed, arithmetic (of `flops` operations per image) and memory of the measurement's steps."""
        device, images = self.model.device, len(self.pixels)
        seconds = (
            self._frozen_seconds(measurement)
            if measurement.kind == "frozen layers"
            else self._step_seconds(measurement)
        )
        peak = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None
        self._forget_gradients()
        per_second = images / seconds.median
        tflops = flops * per_second / 1e12
        return {
            "images_per_second": per_second,
            "step_seconds": asdict(seconds),
            "gflop_per_image": flops / 1e9,
            "tflops": tflops,
            "share_of_peak": tflops / peaks["bf16"],
            "share_of_own_peak": tflops / peaks[measurement.precision],
            "peak_gib": peak,
        }

    def _step_seconds(self, measurement: Measurement) -> Quartiles:
        """Return the seconds of a step of the project's training loop."""
        self.model.precision = of_model(measurement.precision)
        task = FineTuning(self.model, self.cut(measurement.kind), self._batches(measurement), np.arange(1))
        arguments = TrainingArguments(1, 1e-5, 0.01, 0.1, 1.0, 1, 0)
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            steps = train(task, arguments, Checkpoint(Path(folder)))
            return self._seconds(lambda: next(steps))

    def _frozen_seconds(self, measurement: Measurement) -> Quartiles:
        """Return the seconds in which the frozen layers compute a batch's features."""
        cut, pixels = self.cut(measurement.kind), self.pixels.to(self.model.device)
        self.model.set_training(False, cut)
        with torch.inference_mode(), mixed_precision(self.model.device, of_model(measurement.precision)):
            return self._seconds(lambda: self.model.run((pixels,), 0, cut))

    def _seconds(self, step: Callable[[], Any]) -> Quartiles:
        """Return quartiles, over rounds, of the seconds of a step; memory counts from here, without preparations."""
        restart_peak_memory(self.model.device)
        for _ in range(WARM_UP):
            step()
        rounds = []
        for _ in range(ROUNDS):
            synchronise(self.model.device)
            started = time.perf_counter()
            for _ in range(STEPS):
                step()
            synchronise(self.model.device)
            rounds.append((time.perf_counter() - started) / STEPS)
        return Quartiles.of(rounds)

    def _batches(self, measurement: Measurement) -> Batches:
        """Return batches that stay on the device, or for "full from pictures" views made on the CPU as in a run."""
        if measurement.kind == "full from pictures":
            return self.pictures
        cut = self.cut(measurement.kind)
        self.model.set_training(False, cut)
        with torch.no_grad():
            state = self.model.run((self.pixels,), 0, cut)
        return FeatureBatches(self.pictures, cut, _HeldFeatures(state), [])

    def flops_per_image(self, measurement: Measurement) -> int:
        """Return the floating-point operations of a step's forward and backward pass, or of the frozen layers."""
        cut, pixels, labels = self.cut(measurement.kind), self.pixels[:1], self.labels[:1].to(self.model.device)
        with torch.no_grad():
            state = self.model.run((pixels,), 0, cut)
        if measurement.kind == "frozen layers":
            with torch.no_grad():
                return count_flops(lambda: self.model.run((pixels,), 0, cut))
        self.model.freeze_before(cut)
        flops = count_flops(lambda: self.model.head.loss(self.model.run(state, cut), labels)[0].backward())  # type: ignore[no-untyped-call]
        self._forget_gradients()
        return flops

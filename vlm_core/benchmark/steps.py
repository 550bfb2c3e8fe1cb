"""One measurement in a process of its own: seconds of training steps, and the memory that they took."""

from __future__ import annotations

import itertools
import resource
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vlm_core.benchmark.naive import Read, augment, decode, full_size, fused_state, jpegs, naive_steps, trainer_steps
from vlm_core.benchmark.profiling import count_flops, timed
from vlm_core.config import Config, build_config
from vlm_core.data import Data, load_data
from vlm_core.models.categoriser import Description, VisionLanguageCategoriser
from vlm_core.training.batches import Batches
from vlm_core.training.checkpoint import Checkpoint
from vlm_core.training.feature_cache import FeatureCache
from vlm_core.training.finetuning_task import FineTuning
from vlm_core.training.fit import Fit
from vlm_core.training.loop import StepReport, TrainingArguments, train

BATCH = 8
WARM_UP = 3  # steps before those that count: until then the process still takes memory from the system
# What is measured, and the settings it is: all of them fine-tune the fused read-out.
OURS: dict[str, dict[str, Any]] = {
    "probe": {"mode": "probe", "batch_size": 128},
    "one block": {"mode": "last-blocks", "blocks": 1},
    "one block int8": {"mode": "last-blocks", "blocks": 1, "prefix": "int8"},
    "two blocks": {"mode": "last-blocks", "blocks": 2},
    "two blocks at 32": {"mode": "last-blocks", "blocks": 2, "batch_size": 32},
    "LoRA": {"mode": "lora", "blocks": 2},
    "LoRA uncached": {"mode": "lora", "blocks": 2, "cache_gib": 0},
    "full": {"mode": "full"},
}


@dataclass(frozen=True)
class Seconds:
    """Median seconds a picture and the quartiles around it."""

    median: float
    low: float
    high: float
    steps: int

    @classmethod
    def of(cls, steps: Sequence[float], pictures: int) -> Seconds:
        """Of steps of so many pictures each."""
        each = [step / pictures for step in steps]
        low, _, high = statistics.quantiles(each, n=4) if len(each) > 1 else (each[0],) * 3
        return cls(statistics.median(each), low, high, len(each))


def measure(kind: str, family: str, image_size: int, data: str, root: str, threads: int, steps: int) -> dict[str, Any]:
    """Figures of one kind of training of one family: seconds a picture, bytes kept a view, peak MiB."""
    torch.set_num_threads(threads)
    config, loaded = _begin(kind, family, data, root)
    figures = _baseline(kind, family, image_size, loaded, steps) if kind not in OURS else {}
    if kind in OURS:
        figures = _ours(config, family, image_size, loaded, steps)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"kind": kind, "family": family, "image_size": image_size, **figures, "peak_mib": peak}


def _begin(kind: str, family: str, data: str, root: str) -> tuple[Config, Data]:
    config = build_config(
        {
            "preset": "cpu", "data": data, "model": family, "per_category": 12, "train_per_category": 400,
            "batch_size": BATCH, "views": 1, "cache_gib": 20, "patience": 1, **OURS.get(kind, {}),
        }
    )  # fmt: skip
    return config, load_data(config, Path(root))


def _baseline(kind: str, family: str, image_size: int, data: Data, steps: int) -> dict[str, Any]:
    hf, read, width = _published(family, image_size, data)
    files, labels = _files(data)
    if kind == "Trainer":
        every = trainer_steps(read, width, hf, files, labels, image_size, BATCH, WARM_UP + steps)
        return {"train": asdict(Seconds.of(every[WARM_UP - 1 :], BATCH))}  # it has no figure of the first step
    flops = count_flops(lambda: torch.autograd.backward(read(torch.zeros(1, 3, image_size, image_size)).sum()))
    taken = naive_steps(read, width, hf, files, labels, image_size, BATCH)
    seconds = list(itertools.islice(taken, WARM_UP, WARM_UP + steps))
    hf.eval()
    with torch.inference_mode():
        evaluation = timed(lambda: read(torch.zeros(BATCH, 3, image_size, image_size)), 3)
    return {
        "train": asdict(Seconds.of([step for step, _ in seconds], BATCH)),
        "input": asdict(Seconds.of([prepared for _, prepared in seconds], BATCH)),
        "evaluate": asdict(Seconds.of(evaluation, BATCH)),
        "gflop": flops / 1e9,
        "gemm_gflops": gemm_gflops(),
    }


def measure_beside(family: str, image_size: int, data: str, root: str, threads: int, steps: int) -> dict[str, Any]:
    """Steps of naive and of our full fine-tuning in turn, and how many times faster ours is, pair by pair.

    Both meet the same moments of a machine that others use too. The memory holds both models.
    """
    torch.set_num_threads(threads)
    config, loaded = _begin("full", family, data, root)
    hf, read, width = _published(family, image_size, loaded)
    naive = (seconds for seconds, _ in naive_steps(read, width, hf, *_files(loaded), image_size, BATCH))
    model = categoriser_of(family, *full_size(family, image_size), loaded)
    with tempfile.TemporaryDirectory() as folder:
        cache = FeatureCache(Path(folder), 0, config.cache_precision)
        fit = Fit(config, loaded, model, Path(folder), cache, lambda figures: None)
        ours = _our_steps(config, model, 0, fit.pixels(), loaded)
        pairs = list(itertools.islice(zip(itertools.islice(naive, WARM_UP, None), ours, strict=False), steps))
    theirs, own = zip(*pairs, strict=True)
    return {
        "family": family,
        "image_size": image_size,
        "naive": asdict(Seconds.of(theirs, BATCH)),
        "full": asdict(Seconds.of(own, BATCH)),
        "times": asdict(Seconds.of([one / other for one, other in pairs], 1)),
    }


def _published(family: str, image_size: int, data: Data) -> tuple[Any, Read, int]:
    """The family's own network, what computes the state that a head reads of it, and that state's width."""
    hf, tokenizer = full_size(family, image_size)
    adapter = categoriser_of(family, hf, tokenizer, data).adapter
    prompt = adapter.prompt_ids() if family != "clip" else ()  # type: ignore[union-attr]
    return (hf, *fused_state(family, hf, prompt))


def _files(data: Data) -> tuple[list[bytes], Tensor]:
    """The training pictures as files, and their labels."""
    rows = np.unique(data.split.train)
    return jpegs(data.catalogue.pictures.take(rows)), torch.from_numpy(data.split.labels[rows])


def categoriser_of(family: str, hf: Any, tokenizer: Any, data: Data) -> VisionLanguageCategoriser:
    """The network with a head for the catalogue's categories on its fused state."""
    canvas = data.catalogue.pictures.canvas
    return VisionLanguageCategoriser(
        hf, tokenizer, Description(family, data.split.categories, canvas, "head", "fused", {})
    )


def _ours(config: Config, family: str, image_size: int, data: Data, steps: int) -> dict[str, Any]:
    model = categoriser_of(family, *full_size(family, image_size), data)
    cut = model.cut(config.mode, config.blocks)
    with tempfile.TemporaryDirectory() as folder:
        cache = FeatureCache(Path(folder) / "cache", int(config.cache_gib * 2**30), config.cache_precision)
        noted = dict[str, float]()
        fit = Fit(config, data, model, Path(folder), cache, noted.update)
        batches = fit.stored(fit.pixels(), cut, config.views)
        prefix = _prefix(fit, cut, np.unique(data.split.train)) | noted if batches.start else None
        if config.mode == "lora":
            model.add_adapters(cut, config.lora_rank)
        wanted = min(batches.steps - WARM_UP, steps * (5 if batches.start else 1))
        seconds = list(itertools.islice(_our_steps(config, model, cut, batches, data), wanted))
        evaluation = timed(lambda: FineTuning(model, cut, batches, data.split.validation).validated(), 3)
    return {
        "train": asdict(Seconds.of(seconds, config.batch_size)),
        "evaluate": asdict(Seconds.of(evaluation, len(data.split.validation))),
        "prefix": prefix,
        "weights_trained": sum(weight.numel() for weight in model.learn_from(cut).values()),
    }


def _prefix(fit: Fit, cut: int, rows: NDArray[np.int64]) -> dict[str, float]:
    """Seconds and KiB of a view of one picture, and the seconds that making an ONNX graph takes before."""
    entry, run = fit.entry("benchmark", 2), fit.frozen(0, cut)
    first = next(fit.pixels().view(2, rows[:1]))
    began = time.perf_counter()
    run(first.state)
    started = time.perf_counter()
    fit.fill(fit.pixels(), 2, rows, entry, run)
    seconds = time.perf_counter() - started
    kept = sum(path.stat().st_blocks * 512 for path in entry.folder.glob("part-*.npy"))
    each = {"seconds": seconds / len(rows), "kib": kept / len(rows) / 1024}
    return {**each, "views": len(rows), "making": started - began}


def _our_steps(
    config: Config, model: VisionLanguageCategoriser, cut: int, batches: Batches, data: Data
) -> Iterator[float]:
    """Seconds of the loop's own steps in its first epoch, those of the warm-up left out."""
    plan = TrainingArguments(
        1, config.learning_rate, config.weight_decay, config.warmup, config.clip_norm, 1, config.seed
    )
    with tempfile.TemporaryDirectory() as folder:
        learning = train(FineTuning(model, cut, batches, data.split.validation), plan, Checkpoint(Path(folder)))
        for _ in range(WARM_UP):
            next(learning)
        while True:
            started = time.perf_counter()
            if not isinstance(next(learning), StepReport):
                return
            yield time.perf_counter() - started


def measure_input(image_size: int, data: str, root: str, threads: int) -> dict[str, Any]:
    """Seconds a picture of decoding and augmentation, theirs and ours."""
    torch.set_num_threads(threads)
    config = build_config({"preset": "cpu", "data": data, "per_category": 12, "train_per_category": 40})
    loaded = load_data(config, Path(root))
    from vlm_core.training.batches import PixelBatches

    rows = np.unique(loaded.split.train)[:32]
    files, view = jpegs(loaded.catalogue.pictures.take(rows)), augment(image_size)
    decoded = [decode(file) for file in files]
    ours = PixelBatches(loaded.catalogue.pictures, loaded.split.labels, rows, image_size, 8, 0)
    return {
        "image_size": image_size,
        "decode": asdict(Seconds.of(timed(lambda: [decode(file) for file in files], 9), len(files))),
        "augment_pillow": asdict(Seconds.of(timed(lambda: [view(picture) for picture in decoded], 9), len(files))),
        "augment": asdict(Seconds.of(timed(lambda: list(ours.training(1)), 9), len(rows))),
    }


def gemm_gflops() -> float:
    """The machine's best rate for products of large single-precision matrices, in GFLOP/s."""
    matrix = torch.randn(2048, 2048)
    return 2 * 2048**3 / min(timed(lambda: matrix @ matrix, 9)) / 1e9

"""Measurements of training steps, each in its own process: seconds per image, and memory."""

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
from torch import Tensor

from vlm_core.benchmark.naive import (
    FusedFeatures,
    augment,
    decode,
    full_size,
    fused_features,
    jpegs,
    naive_steps,
    trainer_steps,
)
from vlm_core.config import Config
from vlm_core.data import Data, load_data
from vlm_core.models.categoriser import Description, VisionLanguageCategoriser
from vlm_core.models.profiling import count_flops, timed
from vlm_core.models.stages import Captioner
from vlm_core.pixels.arrays import Rows
from vlm_core.training.batches import Batches, PixelBatches
from vlm_core.training.checkpoint import Checkpoint
from vlm_core.training.feature_cache import FeatureCache
from vlm_core.training.finetuning_task import FineTuning
from vlm_core.training.fit import Trainer
from vlm_core.training.frozen_features import FrozenFeatures
from vlm_core.training.loop import StepReport, TrainingArguments, train

BATCH = 8
WARM_UP = 3  # steps before the measured ones: until then the process still requests memory from the system
# Kinds of training and their settings; all of them fine-tune the fused readout.
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
class Quartiles:
    """Median and quartiles of repeated measurements."""

    median: float
    lower: float
    upper: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Quartiles:
        """Return the quartiles of at least one value."""
        lower, _, upper = statistics.quantiles(values, n=4) if len(values) > 1 else (values[0],) * 3
        return cls(statistics.median(values), lower, upper, len(values))


def _seconds_per_image(seconds: Sequence[float], images: int) -> dict[str, Any]:
    """Return the quartiles of seconds per image, for steps of that number of images."""
    return asdict(Quartiles.of([step / images for step in seconds]))


def measure(kind: str, family: str, image_size: int, data: str, root: str, threads: int, steps: int) -> dict[str, Any]:
    """Return seconds per image, KiB per cached view and peak MiB of one kind of training of one family."""
    torch.set_num_threads(threads)
    config, loaded = _load(kind, family, data, root)
    result = (
        _measure_library(config, family, image_size, loaded, steps)
        if kind in OURS
        else _measure_baseline(kind, family, image_size, loaded, steps)
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"kind": kind, "family": family, "image_size": image_size, **result, "peak_mib": peak}


def _load(kind: str, family: str, data: str, root: str) -> tuple[Config, Data]:
    config = Config.build(
        {
            "preset": "cpu", "data": data, "model": family, "per_category": 12, "train_per_category": 400,
            "batch_size": BATCH, "views": 1, "cache_gib": 20, "patience": 1, **OURS.get(kind, {}),
        }
    )  # fmt: skip
    return config, load_data(config, Path(root))


def _measure_baseline(kind: str, family: str, image_size: int, data: Data, steps: int) -> dict[str, Any]:
    """Return the measurements of the naive loop, or of Hugging Face's Trainer."""
    hf, compute, width = _published(family, image_size, data)
    files, labels = _files(data)
    if kind == "Trainer":
        seconds = trainer_steps(compute, width, hf, files, labels, image_size, BATCH, WARM_UP + steps)
        return {"step": _seconds_per_image(seconds[WARM_UP - 1 :], BATCH)}  # the first step is not reported
    flops = count_flops(lambda: torch.autograd.backward(compute(torch.zeros(1, 3, image_size, image_size)).sum()))
    all_steps = naive_steps(compute, width, hf, files, labels, image_size, BATCH)
    measured = list(itertools.islice(all_steps, WARM_UP, WARM_UP + steps))
    hf.eval()
    with torch.inference_mode():
        evaluation = timed(lambda: compute(torch.zeros(BATCH, 3, image_size, image_size)), 3)
    return {
        "step": _seconds_per_image([step for step, _ in measured], BATCH),
        "preprocessing": _seconds_per_image([preprocessing for _, preprocessing in measured], BATCH),
        "evaluation": _seconds_per_image(evaluation, BATCH),
        "gflop_per_image": flops / 1e9,
        "gemm_gflops": gemm_gflops(),
    }


def measure_in_turn(family: str, image_size: int, data: str, root: str, threads: int, steps: int) -> dict[str, Any]:
    """Return the times of alternating naive and own steps of full fine-tuning, and the speed-up of each pair.

    Both kinds then share the load of other processes. Memory holds both models.
    """
    torch.set_num_threads(threads)
    config, loaded = _load("full", family, data, root)
    hf, compute, width = _published(family, image_size, loaded)
    naive = (seconds for seconds, _ in naive_steps(compute, width, hf, *_files(loaded), image_size, BATCH))
    model = categoriser_of(family, *full_size(family, image_size), loaded)
    with tempfile.TemporaryDirectory() as folder:
        cache = FeatureCache(Path(folder), 0, config.cache_precision)
        trainer = Trainer(config, loaded, model, Path(folder), cache)
        ours = _library_steps(config, model, 0, trainer.pixel_batches(), loaded)
        pairs = list(itertools.islice(zip(itertools.islice(naive, WARM_UP, None), ours, strict=False), steps))
    naive_seconds, our_seconds = zip(*pairs, strict=True)
    return {
        "family": family,
        "image_size": image_size,
        "naive": _seconds_per_image(naive_seconds, BATCH),
        "ours": _seconds_per_image(our_seconds, BATCH),
        "speedup": asdict(Quartiles.of([naive / ours for naive, ours in pairs])),
    }


def _published(family: str, image_size: int, data: Data) -> tuple[Any, FusedFeatures, int]:
    """Return the family's published network, the function to its fused features, and their width."""
    hf, tokenizer = full_size(family, image_size)
    adapter = categoriser_of(family, hf, tokenizer, data).adapter
    prompt = adapter.prompt_ids() if isinstance(adapter, Captioner) else ()
    return (hf, *fused_features(family, hf, prompt))


def _files(data: Data) -> tuple[list[bytes], Tensor]:
    """Return the training images as files, and their labels (n,)."""
    rows = np.unique(data.split.train)
    return jpegs(data.catalogue.pictures.take(rows)), torch.from_numpy(data.split.labels[rows])


def categoriser_of(family: str, hf: Any, tokenizer: Any, data: Data) -> VisionLanguageCategoriser:
    """Return the network with a linear head for the catalogue's categories on its fused features."""
    canvas = data.catalogue.pictures.canvas
    return VisionLanguageCategoriser(
        hf, tokenizer, Description(family, data.split.categories, canvas, "linear", "fused", {})
    )


def _measure_library(config: Config, family: str, image_size: int, data: Data, steps: int) -> dict[str, Any]:
    """Return the measurements of one of this library's kinds of training."""
    model = categoriser_of(family, *full_size(family, image_size), data)
    cut = model.cut(config.mode, config.blocks)
    with tempfile.TemporaryDirectory() as folder:
        cache = FeatureCache(Path(folder) / "cache", int(config.cache_gib * 2**30), config.cache_precision)
        logged = dict[str, float]()
        trainer = Trainer(config, data, model, Path(folder), cache, logged.update)
        batches = trainer.feature_batches(trainer.pixel_batches(), cut, config.views)
        cached = bool(cut and config.cache_gib)
        prefix = _measure_prefix(trainer, cut, np.unique(data.split.train)) | logged if cached else None
        if config.mode == "lora":
            model.add_adapters(cut, config.lora_rank)
        count = min(batches.steps - WARM_UP, steps * (5 if cached else 1))
        seconds = list(itertools.islice(_library_steps(config, model, cut, batches, data), count))
        evaluation = timed(lambda: FineTuning(model, cut, batches, data.split.validation).validation_metrics(), 3)
    return {
        "step": _seconds_per_image(seconds, config.batch_size),
        "evaluation": _seconds_per_image(evaluation, len(data.split.validation)),
        "prefix": prefix,
        "trainable_weights": sum(weight.numel() for weight in model.freeze_before(cut).values()),
    }


def _measure_prefix(trainer: Trainer, cut: int, rows: Rows) -> dict[str, float]:
    """Return seconds and KiB per image of caching one view, and the seconds to build the prefix (ONNX export)."""
    pixels, prefix = trainer.pixel_batches(), trainer.frozen_prefix(0, cut)
    first = next(pixels.view(2, rows[:1]))
    started = time.perf_counter()
    prefix(first.state)
    built = time.perf_counter()
    entry = trainer.cache_entry("benchmark", 2)
    entry.fill(rows, FrozenFeatures(pixels, 2, rows, prefix, trainer.cache.precision).compute)
    ended = time.perf_counter()
    size_bytes = sum(path.stat().st_blocks * 512 for path in entry.folder.glob("part-*.npy"))
    return {
        "seconds_per_image": (ended - built) / len(rows),
        "kib_per_image": size_bytes / len(rows) / 1024,
        "images": len(rows),
        "build_seconds": built - started,
    }


def _library_steps(
    config: Config, model: VisionLanguageCategoriser, cut: int, batches: Batches, data: Data
) -> Iterator[float]:
    """Yield the seconds of the training loop's steps in its first epoch, after the warm-up."""
    arguments = TrainingArguments(
        1, config.learning_rate, config.weight_decay, config.warmup, config.clip_norm, 1, config.seed
    )
    with tempfile.TemporaryDirectory() as folder:
        reports = train(FineTuning(model, cut, batches, data.split.validation), arguments, Checkpoint(Path(folder)))
        for _ in range(WARM_UP):
            next(reports)
        while True:
            started = time.perf_counter()
            if not isinstance(next(reports), StepReport):
                return
            yield time.perf_counter() - started


def measure_preprocessing(image_size: int, data: str, root: str, threads: int) -> dict[str, Any]:
    """Return seconds per image of decoding and augmentation, by Pillow and by this library."""
    torch.set_num_threads(threads)
    config = Config.build({"preset": "cpu", "data": data, "per_category": 12, "train_per_category": 40})
    loaded = load_data(config, Path(root))
    rows = np.unique(loaded.split.train)[:32]
    files, view = jpegs(loaded.catalogue.pictures.take(rows)), augment(image_size)
    images = [decode(file) for file in files]
    ours = PixelBatches(loaded.catalogue.pictures, loaded.split.labels, rows, image_size, 8, 0)
    return {
        "image_size": image_size,
        "decode": _seconds_per_image(timed(lambda: [decode(file) for file in files], 9), len(files)),
        "augment_pillow": _seconds_per_image(timed(lambda: [view(image) for image in images], 9), len(files)),
        "augment": _seconds_per_image(timed(lambda: list(ours.training(1)), 9), len(rows)),
    }


def gemm_gflops() -> float:
    """Return the machine's best rate for the matmul of large float32 matrices, in GFLOP/s."""
    matrix = torch.randn(2048, 2048)
    return 2 * 2048**3 / min(timed(lambda: matrix @ matrix, 9)) / 1e9

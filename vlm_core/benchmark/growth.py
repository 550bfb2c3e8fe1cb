"""How time and memory grow with the catalogue: caching the features of n images, and an epoch on them."""

from __future__ import annotations

import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vlm_core.config import Config
from vlm_core.data import load_data
from vlm_core.models.categoriser import Description, VisionLanguageCategoriser
from vlm_core.models.loading import load_weights
from vlm_core.models.profiling import PeakMemory
from vlm_core.training.batches import FeatureBatches, PixelBatches
from vlm_core.training.checkpoint import Checkpoint
from vlm_core.training.feature_cache import FeatureCache
from vlm_core.training.finetuning_task import FineTuning
from vlm_core.training.loop import TrainingArguments, train


def measure_growth(images: int, data: str, root: str, threads: int) -> dict[str, Any]:
    """Return seconds per image of the frozen layers and of an epoch of the last block, and peak MiB above the model's.

    The features are those before the last block, the largest that a preset caches. Memory-mapped files, which the
    system can drop, are not counted.
    """
    torch.set_num_threads(threads)
    config = Config.build({"preset": "demo", "data": data, "model": "clip"})
    loaded = load_data(config, Path(root))
    store = loaded.catalogue.pictures
    images = min(images, len(store))
    weights = load_weights("clip", checkpoint="", weights="tiny", image_size=0, texts=(), seed=0)
    description = Description("clip", loaded.split.categories, store.canvas, "linear", "fused", {})
    model = VisionLanguageCategoriser(weights.hf, weights.tokenizer, description)
    rows, labels = np.arange(images), np.arange(len(store)) % len(loaded.split.categories)
    cut = model.cut("last-blocks", 1)
    pixels = PixelBatches(store, labels, rows, model.image_size, 128, 0)
    with tempfile.TemporaryDirectory() as folder, PeakMemory() as peak:
        entry = FeatureCache(Path(folder), 2**40).entry({"benchmark": "growth"}, len(store))
        started = time.perf_counter()
        with torch.inference_mode():
            entry.fill(rows, lambda missing: ((b.rows, model.run(b.state, 0, cut)) for b in pixels.view(0, missing)))
        cached = time.perf_counter()
        batches = FeatureBatches(pixels, cut, entry.read(rows), [])
        arguments = TrainingArguments(1, 1e-4, 0.01, 0.1, 1.0, 1, 0)
        for _ in train(FineTuning(model, cut, batches, rows[:64]), arguments, Checkpoint(Path(folder) / "checkpoint")):
            pass
        ended = time.perf_counter()
    return {
        "images": images,
        "prefix_seconds_per_image": (cached - started) / images,
        "epoch_seconds_per_image": (ended - cached) / images,
        "peak_mib": peak.mib,
        "process_peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }

"""Inference speed of PyTorch and of ONNX in fp32 and int8, on published architectures."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch

from vlm_core.benchmark.naive import full_size
from vlm_core.benchmark.steps import categoriser_of
from vlm_core.config import Config
from vlm_core.data import load_data
from vlm_core.models.onnx_export import export_onnx, quantise_onnx
from vlm_core.workflows.export import BATCHES, ExportComparison, compare

IMAGES = 64  # whose log-probabilities are compared


def measure_inference(family: str, image_size: int, data: str, root: str, threads: int) -> dict[str, Any]:
    """Return per format: seconds per image at batch size 1 and 32, megabytes, and the difference from PyTorch."""
    torch.set_num_threads(threads)
    config = Config.build({"data": data, "model": family, "per_category": 40, "train_per_category": 40})
    loaded = load_data(config, Path(root))
    pictures = loaded.catalogue.pictures.take(loaded.split.test[:IMAGES])
    model = categoriser_of(family, *full_size(family, image_size), loaded)
    with tempfile.TemporaryDirectory() as folder:
        torch_folder, fp32_folder = Path(folder) / "torch", Path(folder) / "fp32"
        torch_folder.mkdir()
        model.save(torch_folder)
        fp32 = export_onnx(model, fp32_folder)
        int8 = quantise_onnx(fp32, Path(folder) / "int8")
        expected = model.log_probabilities(pictures)
        formats = [
            compare("PyTorch", model, torch_folder, pictures, expected),
            compare("ONNX fp32", fp32, fp32.folder, pictures, expected),
            compare("ONNX int8", int8, int8.folder, pictures, expected),
        ]
    return {"family": family, "image_size": image_size, "formats": [_measurements(each) for each in formats]}


def _measurements(comparison: ExportComparison) -> dict[str, Any]:
    return {
        "format": comparison.form,
        "megabytes": comparison.megabytes,
        "seconds_per_image": [comparison.seconds[batch] for batch in BATCHES],
        "max_difference": comparison.largest_difference,
    }

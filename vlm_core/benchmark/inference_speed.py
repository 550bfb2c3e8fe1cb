"""What answers cost by PyTorch and by ONNX, in single precision and in int8, on published architectures."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch

from vlm_core.benchmark.naive import full_size
from vlm_core.benchmark.steps import categoriser_of
from vlm_core.config import build_config
from vlm_core.data import load_data
from vlm_core.models.onnx_export import export_onnx, quantise_onnx
from vlm_core.workflows.export import BATCHES, ExportComparison, compare

PICTURES = 64  # whose answers are compared


def measure_answers(family: str, image_size: int, data: str, root: str, threads: int) -> dict[str, Any]:
    """Of each form: seconds a picture alone and among 32, megabytes, and how far from PyTorch its answers are."""
    torch.set_num_threads(threads)
    config = build_config({"data": data, "model": family, "per_category": 40, "train_per_category": 40})
    loaded = load_data(config, Path(root))
    pictures = loaded.catalogue.pictures.take(loaded.split.test[:PICTURES])
    model = categoriser_of(family, *full_size(family, image_size), loaded)
    with tempfile.TemporaryDirectory() as folder:
        saved, single = Path(folder) / "torch", Path(folder) / "fp32"
        saved.mkdir()
        model.save(saved)
        fp32 = export_onnx(model, single)
        int8 = quantise_onnx(fp32, Path(folder) / "int8")
        expected = model.log_probabilities(pictures)
        forms = [
            compare("PyTorch", model, saved, pictures, expected),
            compare("ONNX fp32", fp32, fp32.folder, pictures, expected),
            compare("ONNX int8", int8, int8.folder, pictures, expected),
        ]
    return {"family": family, "image_size": image_size, "forms": [_figures(form) for form in forms]}


def _figures(form: ExportComparison) -> dict[str, Any]:
    return {
        "form": form.form,
        "megabytes": form.megabytes,
        "seconds": [form.seconds[batch] for batch in BATCHES],
        "largest_difference": form.largest_difference,
    }

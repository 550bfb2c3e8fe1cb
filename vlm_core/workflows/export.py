"""Export a stored run's model to ONNX, compare it with PyTorch, and log it to the run."""

from __future__ import annotations

import logging
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from vlm_core.config import Config
from vlm_core.data import load_catalogue
from vlm_core.errors import UserError

if TYPE_CHECKING:
    from vlm_core.models.categoriser import Categoriser
    from vlm_core.models.onnx_categoriser import OnnxCategoriser

logger = logging.getLogger(__name__)

LARGEST_DIFFERENCE: Final = 1e-3  # of fp32 from PyTorch, and of an image alone from the same among others
LEAST_AGREEMENT: Final = 0.9  # of int8 with PyTorch: share of images with the same predicted category
BATCHES: Final = (1, 32)  # images per call when speed is measured
_PASSES: Final = 5


@dataclass(frozen=True)
class ExportComparison:
    """Size and speed of one form of a model, and how far its predictions are from PyTorch's."""

    form: str  # PyTorch, fp32 or int8
    megabytes: float
    largest_difference: float  # of any log-probability
    same_category: float  # share of images with the same predicted category
    batch_effect: float  # largest difference of any log-probability between an image alone and among others
    seconds: dict[int, float]  # per image, by batch size

    def metrics(self) -> dict[str, float]:
        """Return the metrics under their names in a run."""
        prefix = f"onnx_{self.form}_"
        return {
            f"{prefix}megabytes": self.megabytes,
            f"{prefix}largest_difference": self.largest_difference,
            f"{prefix}equal_predictions": self.same_category,
            f"{prefix}batch_effect": self.batch_effect,
            **{f"{prefix}seconds_per_image_batch_{batch}": seconds for batch, seconds in self.seconds.items()},
        }


@dataclass(frozen=True)
class Export:
    """An exported model: PyTorch and each precision compared, and the addresses that MLflow serves them under."""

    images: int  # that they were compared on
    comparisons: tuple[ExportComparison, ...]
    addresses: tuple[str, ...]


def run_export(run_id: str, precisions: Sequence[str], count: int, threads: int, root: Path) -> Export:
    """Export the run's model in the precisions ("fp32", "int8"), compare it on `count` images and log it to the run.

    Raises UserError, before anything is logged, when the model cannot be exported or when `check_parity` refuses it.
    """
    from vlm_core.inference import set_threads
    from vlm_core.models.onnx_export import export_onnx, quantise_onnx
    from vlm_core.models.saved import load_categoriser
    from vlm_core.tracking.additions import add_export
    from vlm_core.tracking.opening import prepare_store
    from vlm_core.tracking.registry import resolve

    if count < 1:
        raise UserError(f"pictures={count} leaves nothing to compare: use 1 or more.")
    prepare_store()
    set_threads(threads)
    folder = resolve(run_id)
    model = load_categoriser(folder)
    if model.hierarchy:
        raise UserError(
            f"run={run_id} predicts several labels ({', '.join(model.hierarchy.labels)}), and an export holds one: "
            f"serve the run's own model, or export one that was trained with label={model.hierarchy.labels[-1]}."
        )
    with tempfile.TemporaryDirectory() as temporary:
        exported: dict[str, OnnxCategoriser] = {"fp32": export_onnx(model, Path(temporary) / "fp32")}
        if "int8" in precisions:
            exported["int8"] = quantise_onnx(exported["fp32"], Path(temporary) / "int8")
        pictures, texts = _comparison_products(run_id, model, count, root)
        expected = model.log_probabilities(pictures, texts)
        pytorch = compare("PyTorch", model, folder, pictures, expected, texts)
        comparisons = {
            name: compare(name, form, form.folder, pictures, expected, texts) for name, form in exported.items()
        }
        for comparison in comparisons.values():
            check_parity(run_id, comparison)
        addresses = tuple(
            add_export(run_id, exported[name].folder, f"onnx/{name}", comparisons[name].metrics())
            for name in precisions
        )
    return Export(len(pictures), (pytorch, *(comparisons[name] for name in precisions)), addresses)


def compare(
    form: str,
    model: Categoriser,
    folder: Path,
    pictures: NDArray[np.uint8],
    expected: NDArray[np.float32],
    texts: Sequence[str] | None = None,
) -> ExportComparison:
    """Compare the model in `folder` on pictures (n, H, W, 3) with PyTorch's log-probabilities `expected` (n, C).

    A model that reads texts has those of the products (n,).
    """
    rows = model.log_probabilities(pictures, texts)
    weights = [path for path in folder.rglob("*") if ".onnx" in path.name or path.suffix == ".safetensors"]
    return ExportComparison(
        form,
        sum(path.stat().st_size for path in weights) / 1e6,
        float(np.abs(rows - expected).max()),
        float((rows.argmax(axis=1) == expected.argmax(axis=1)).mean()),
        _batch_effect(model, pictures, rows, texts),
        {batch: _seconds_per_image(model, pictures, batch) for batch in BATCHES},
    )


def check_parity(run_id: str, export: ExportComparison) -> None:
    """Raise UserError when an export does not compute what PyTorch computes, or not for each image alone.

    In fp32 no log-probability may differ by more than 0.001. In int8 nine images in ten must get the same category. In
    both an image among others, in any order, must get what it gets alone, within 0.001.
    """
    refused = f"so nothing was logged for run {run_id}"
    # Each comparison is written so that it fails where a figure is no number, too.
    if export.form == "fp32" and not export.largest_difference <= LARGEST_DIFFERENCE:
        raise UserError(
            f"the export differs from PyTorch by {export.largest_difference:.2g} in log-probability, more than "
            f"{LARGEST_DIFFERENCE:g}, {refused}: serve the run's own model instead."
        )
    if not export.same_category >= LEAST_AGREEMENT:
        raise UserError(
            f"the export in {export.form} predicts PyTorch's category for {export.same_category:.0%} of the images, "
            f"less than {LEAST_AGREEMENT:.0%}, {refused}: export it with precision=fp32."
        )
    if not export.batch_effect <= LARGEST_DIFFERENCE:
        raise UserError(
            f"the export in {export.form} gives an image other log-probabilities among others than alone, by "
            f"{export.batch_effect:.2g}, {refused}: serve the run's own model instead."
        )


def _batch_effect(
    model: Categoriser, pictures: NDArray[np.uint8], rows: NDArray[np.float32], texts: Sequence[str] | None
) -> float:
    """Return how far log-probabilities `rows` (n, C) are from those of each image alone, and of all in reverse."""
    each = [slice(place, place + 1) for place in range(len(pictures))]
    alone = np.concatenate([model.log_probabilities(pictures[one], texts[one] if texts else None) for one in each])
    backwards = texts[::-1] if texts else None
    reverse = model.log_probabilities(np.ascontiguousarray(pictures[::-1]), backwards)[::-1]
    return float(max(np.abs(rows - alone).max(), np.abs(rows - reverse).max()))


def _seconds_per_image(model: Categoriser, pictures: NDArray[np.uint8], batch: int) -> float:
    """Return the median seconds per image over five passes of a batch, resizing to the model's input included."""
    images = np.resize(pictures, (batch, *pictures.shape[1:]))
    model.log_probabilities(images)
    passes = []
    for _ in range(_PASSES):
        started = time.perf_counter()
        model.log_probabilities(images)
        passes.append((time.perf_counter() - started) / batch)
    return statistics.median(passes)


def _comparison_products(
    run_id: str, model: Categoriser, count: int, root: Path
) -> tuple[NDArray[np.uint8], list[str] | None]:
    """Return pictures (n, H, W, 3), n at most `count`, evenly from the run's test split, and the texts that are read.

    Uses the sample catalogue where the run's own cannot be read any more.
    """
    from vlm_core.pixels.picture_store import fit_pictures
    from vlm_core.tracking.reader import RunReader

    reader = RunReader()
    try:
        test = reader.split_part(run_id, "test")
        catalogue = load_catalogue(Config.from_params(reader.params(run_id)), root)
        if catalogue.fingerprint != test.fingerprint:
            raise UserError(f"the catalogue {catalogue.name} has changed since the run was tested.")
        rows = np.flatnonzero(catalogue.products["product_id"].isin(test.products).to_numpy())
    except UserError as error:
        logger.info(f"Comparing on images of the sample catalogue, because the run's own cannot be read: {error}")
        catalogue = load_catalogue(Config(data="sample"), root)
        rows = np.arange(len(catalogue.products))
    spread = rows[np.unique(np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(np.int64))]
    texts = model.reads.texts(catalogue.products.iloc[spread]) if model.reads else None
    return fit_pictures(catalogue.pictures.take(spread), model.canvas), texts

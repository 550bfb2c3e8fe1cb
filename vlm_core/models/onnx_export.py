"""CLIP, BLIP and GIT written as ONNX: the whole path from pixels to log-probabilities, in fp32 and in int8."""

from __future__ import annotations

import logging
import os
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from vlm_core.errors import UserError
from vlm_core.models.onnx_categoriser import GRAPH, LOG_PROBABILITIES, PIXELS, OnnxCategoriser, OnnxDescription

if TYPE_CHECKING:
    from torch import nn

    from vlm_core.models.categoriser import Categoriser, VisionLanguageCategoriser

# 23 and 24 work as well; with their fused Attention, onnxruntime took 8 to 10 % longer over BLIP's and GIT's masks.
OPSET: Final = 22
_QUANTISED: Final = ("MatMul", "Gemm")  # linear layers; products of two activations are left alone


def export_onnx(model: Categoriser, folder: Path) -> OnnxCategoriser:
    """The model as an fp32 graph for any number of pictures, written into `folder` and loaded from there.

    CLIP's prompts and the tokens of sentences become constants. Raises UserError for the baseline and for a model
    that is ONNX already.
    """
    from vlm_core.models.categoriser import VisionLanguageCategoriser

    if not isinstance(model, VisionLanguageCategoriser):
        raise UserError("only CLIP, BLIP and GIT can be exported to ONNX: give a run of one of these families.")
    with _whole(folder) as unfinished:
        model.set_training(False, 0)
        export_graph(_chain(model), model.image_size, [LOG_PROBABILITIES], unfinished / GRAPH)
    made = model.description
    description = OnnxDescription(
        made.family, "fp32", made.categories, made.canvas, model.image_size, made.answer, made.readout
    )
    description.write(folder)
    return OnnxCategoriser.load(folder)


def quantise_onnx(exported: OnnxCategoriser, folder: Path) -> OnnxCategoriser:
    """An fp32 export with its linear layers in int8, written into `folder` and loaded from there.

    A weight has 7 bits and each output channel its own scale: CPUs without VNNI would overflow with 8. Activations
    are quantised as they come, so that no calibration is needed. Convolutions stay as they are.
    """
    with _whole(folder) as unfinished:
        quantise_graph(exported.folder / GRAPH, unfinished / GRAPH)
    replace(exported.description, precision="int8").write(folder)
    return OnnxCategoriser.load(folder)


def quantise_graph(graph: Path, written: Path) -> None:
    """Nothing; the file `written` holds the fp32 graph with its linear layers in int8."""
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as temporary:
        prepared = Path(temporary) / GRAPH
        large = any(graph.parent.glob(f"{graph.name}.data"))
        quant_pre_process(
            graph, prepared, skip_optimization=True, skip_symbolic_shape=True, save_as_external_data=large
        )
        quantize_dynamic(
            prepared,
            written,
            op_types_to_quantize=list(_QUANTISED),
            per_channel=True,
            reduce_range=True,
            weight_type=QuantType.QInt8,
        )


def export_graph(compute: nn.Module, image_size: int, outputs: Sequence[str], path: Path) -> None:
    """Nothing; the file holds as ONNX what the module computes of pixels (B, 3, S, S), for any B."""
    import torch

    # a batch of one would be taken for a constant
    example = torch.zeros(2, 3, image_size, image_size, device=next(compute.parameters()).device)
    with torch.no_grad(), _quiet():
        compute(example)  # what an answer computes once and keeps must not be made while the graph is traced
        torch.onnx.export(
            compute.eval(),
            (example,),
            path,
            dynamo=True,
            opset_version=OPSET,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            input_names=[PIXELS],
            output_names=list(outputs),
            external_data=False,
            verbose=False,
        )


def _chain(model: VisionLanguageCategoriser) -> nn.Module:
    """The model as one module from pixels (B, 3, S, S) to log-probabilities (B, C)."""
    import torch

    class Chain(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weights = torch.nn.ModuleList([model.hf, *model.answer.modules_that_learn()])

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return model.answer.log_probabilities(model.run((pixels,)))

    return Chain()


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter's notes on itself kept off the user's console."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


@contextmanager
def _whole(folder: Path) -> Iterator[Path]:
    """A folder to write files to, which are in `folder` afterwards, or nowhere if anything was raised."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".unfinished-") as temporary:
        yield Path(temporary)
        for path in sorted(Path(temporary).iterdir(), reverse=True):  # weights that lie apart before their graph
            os.replace(path, folder / path.name)

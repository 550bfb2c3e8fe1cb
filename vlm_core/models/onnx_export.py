"""Export of a family's model to ONNX, from pixels to log-probabilities, in fp32 and in int8."""

from __future__ import annotations

import logging
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from vlm_core.errors import UserError, require_extra
from vlm_core.files.atomic import building
from vlm_core.models.onnx_categoriser import (
    GIVEN,
    GRAPH,
    IDS,
    LOG_PROBABILITIES,
    PIXELS,
    TOKENIZER,
    OnnxCategoriser,
    OnnxDescription,
)

if TYPE_CHECKING:
    import torch
    from torch import nn

    from vlm_core.models.categoriser import Categoriser, VisionLanguageCategoriser

# 23 and 24 work as well, but their fused Attention made onnxruntime 8 to 10 % slower for BLIP's and GIT's masks.
OPSET: Final = 22
_QUANTISED: Final = ("MatMul", "Gemm")  # linear layers only, not the matmul of two activations


def export_onnx(model: Categoriser, folder: Path) -> OnnxCategoriser:
    """Export the model as an fp32 graph for any batch size into a new `folder`; return it loaded from there.

    CLIP's prompts and the tokens of sentences become constants. Raise UserError for the baseline and for a model that
    is ONNX already.
    """
    from vlm_core.models.categoriser import VisionLanguageCategoriser

    if not isinstance(model, VisionLanguageCategoriser):
        raise UserError(
            "the baseline and models that are ONNX already cannot be exported to ONNX: choose a run of another family."
        )
    source = model.description
    description = OnnxDescription(
        family=source.family,
        precision="fp32",
        categories=source.categories,
        canvas=source.canvas,
        image_size=model.image_size,
        head=source.head,
        readout=source.readout,
        preprocessing=source.preprocessing,
        reads=source.reads,
        text_ends=tuple(map(tuple, model.adapter.text_ends())) if source.reads else ((), ()),  # type: ignore[arg-type]
    )
    with building(folder) as partial:
        partial.mkdir()
        model.set_training(False, 0)
        export_graph(_chain(model), _example(model), [LOG_PROBABILITIES], partial / GRAPH)
        if source.reads:
            model.adapter.tokenizer.backend_tokenizer.save(str(partial / TOKENIZER))
        description.write(partial)
    return OnnxCategoriser.load(folder)


def quantise_onnx(exported: OnnxCategoriser, folder: Path) -> OnnxCategoriser:
    """Quantise the linear layers of an fp32 export to int8 into a new `folder`; return it loaded from there.

    Weights have 7 bits, because CPUs without VNNI would overflow with 8, and one scale per output channel. Activations
    are quantised dynamically, so no calibration is needed. Convolutions stay in fp32.
    """
    with building(folder) as partial:
        partial.mkdir()
        quantise_graph(exported.folder / GRAPH, partial / GRAPH)
        if exported.reads:
            shutil.copyfile(exported.folder / TOKENIZER, partial / TOKENIZER)
        replace(exported.description, precision="int8").write(partial)
    return OnnxCategoriser.load(folder)


def quantise_graph(graph: Path, output: Path) -> None:
    """Write the fp32 graph with its linear layers in int8 to the file `output`."""
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
            output,
            op_types_to_quantize=list(_QUANTISED),
            per_channel=True,
            reduce_range=True,
            weight_type=QuantType.QInt8,
        )


def _example(model: VisionLanguageCategoriser) -> dict[str, torch.Tensor]:
    """Return an input of the model's chain, by the names of its parts; of two products: one would be a constant."""
    import torch

    state = model.input_state(torch.zeros(2, 3, model.image_size, model.image_size), ["a shirt", "shoes"])
    if len(state) == 1:
        return {IDS if model.reads else PIXELS: state[0]}
    return dict(zip((PIXELS, IDS, GIVEN), state, strict=True))


def export_graph(compute: nn.Module, example: Mapping[str, torch.Tensor], outputs: Sequence[str], path: Path) -> None:
    """Write an ONNX file of the module's computation on tensors (B, ...) like those of the example, for any B."""
    import torch

    require_extra("export")
    device = next(compute.parameters()).device
    tensors = tuple(tensor.to(device) for tensor in example.values())
    batch = torch.export.Dim("batch")
    with torch.no_grad(), _quiet():
        compute(*tensors)  # fills the head's caches, which must not be computed while the graph is traced
        torch.onnx.export(
            compute.eval(),
            tensors,
            path,
            dynamo=True,
            opset_version=OPSET,
            dynamic_shapes=(tuple({0: batch} for _ in tensors),),
            input_names=list(example),
            output_names=list(outputs),
            external_data=False,
            verbose=False,
        )


def _chain(model: VisionLanguageCategoriser) -> nn.Module:
    """Return the model as one module from the input of its chain to log-probabilities (B, C)."""
    import torch

    class _WholeModel(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weights = torch.nn.ModuleList([model.hf, *model.head.trainable_modules()])

        def forward(self, *state: torch.Tensor) -> torch.Tensor:
            return model.head.log_probabilities(model.run(state))

    return _WholeModel()


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's messages off the console within the context."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)

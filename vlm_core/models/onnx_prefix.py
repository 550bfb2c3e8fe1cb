"""The frozen stages before a cut as one ONNX graph that onnxruntime computes, its linear layers in int8."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm_core.models.onnx_categoriser import GRAPH, PIXELS, Precision, open_session

if TYPE_CHECKING:
    from torch import nn

    from vlm_core.models.categoriser import VisionLanguageCategoriser
    from vlm_core.models.contract import State


@dataclass(frozen=True)
class OnnxPrefix:
    """`stages[:cut]` of a model in evaluation mode, as they are when their first states are asked for."""

    model: VisionLanguageCategoriser
    cut: int
    precision: Precision = "int8"

    def run(self, state: State) -> State:
        """The state at the cut of pixels (B, 3, S, S), on the CPU.

        In int8 each picture is computed by itself: activations share one scale a batch, and a picture's state would
        depend on which others it was computed with.
        """
        import torch

        size = 1 if self.precision == "int8" else len(state[0])
        parts = [self._session.run(None, {PIXELS: pixels.numpy()}) for pixels in state[0].cpu().split(size)]
        return tuple(torch.cat([torch.from_numpy(part) for part in tensors]) for tensors in zip(*parts, strict=True))

    @cached_property
    def _session(self) -> Any:
        """An onnxruntime.InferenceSession over the graph, whose file is not kept."""
        from vlm_core.models.onnx_export import export_graph, quantise_graph

        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            graph = folder / ("fp32.onnx" if self.precision == "int8" else GRAPH)
            export_graph(self._chain(), self.model.image_size, (), graph)
            if self.precision == "int8":
                quantise_graph(graph, folder / GRAPH)
            return open_session(folder, threads=0)

    def _chain(self) -> nn.Module:
        import torch

        model, cut = self.model, self.cut

        class Chain(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.weights = torch.nn.ModuleList([module for stage in model.stages[:cut] for module in stage.modules])

            def forward(self, pixels: torch.Tensor) -> State:
                return model.run((pixels,), 0, cut)

        return Chain()

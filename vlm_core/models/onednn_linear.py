"""Linear layers by oneDNN where PyTorch's own choice, MKL, is slow: on AMD's processors with AVX-512.

MKL uses its AVX-512 code on Intel's processors only and runs at half the speed elsewhere. oneDNN, which PyTorch
includes for convolutions, computes the same in single precision; only the order of the additions differs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

# Smaller layers are left to PyTorch: oneDNN gains nothing there, or is far slower.
MIN_TOKENS: Final = 64
MIN_MULTIPLY_ADDS: Final = 2**23


@cache
def onednn_is_faster() -> bool:
    """Return whether this machine has an AMD processor with AVX-512, and PyTorch has oneDNN."""
    try:
        vendor = "AuthenticAMD" in Path("/proc/cpuinfo").read_text()
    except OSError:  # no Linux
        return False
    available = bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]
    return available and vendor and torch.backends.cpu.get_cpu_capability() == "AVX512"


@contextmanager
def use_onednn_linear(device: torch.device) -> Iterator[None]:
    """Compute linear layers and their gradients by oneDNN within the context, if that is faster on this machine.

    `device` is where the layers are: on a GPU nothing is intercepted, which would only delay its next kernel.
    """
    # A compiled graph may run on other machines, and bf16 layers must stay PyTorch's.
    left_alone = torch.compiler.is_compiling() or torch.is_autocast_enabled(device.type)
    if device.type != "cpu" or left_alone or not onednn_is_faster():
        yield
        return
    with _OnednnLinearMode():
        yield


class _OnednnLinearMode(TorchFunctionMode):
    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if function is functional.linear and not kwargs and _is_worthwhile(*args):
            return _Linear.apply(*args, *(None,) * (3 - len(args)))
        return function(*args, **(kwargs or {}))


def _is_worthwhile(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    """Return whether the layer is float32, on the CPU, and large enough."""
    supported = x.dtype == weight.dtype == torch.float32 and x.device.type == weight.device.type == "cpu"
    few_tokens = x.numel() < MIN_TOKENS * x.shape[-1]
    return supported and not few_tokens and x.numel() * weight.shape[0] >= MIN_MULTIPLY_ADDS


class _Linear(torch.autograd.Function):
    """`torch.nn.functional.linear` by oneDNN, forward and backward: x (..., D), weight (O, D), bias (O,)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _onednn_linear(x, weight, bias)  # (..., O)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad_rows = grad_output.reshape(-1, grad_output.shape[-1])  # (B * N, O)
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        return (
            _onednn_linear(grad_output, weight.t()) if needs_x else None,  # (..., D)
            _onednn_linear(grad_rows.t(), x.reshape(-1, x.shape[-1]).t()) if needs_weight else None,  # (O, D)
            grad_rows.sum(dim=0) if needs_bias else None,  # (O,)
        )


def _onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x @ weight.T + bias (..., O) of x (..., D) and weight (O, D)."""
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return y

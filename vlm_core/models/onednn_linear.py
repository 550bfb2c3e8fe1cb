"""Products of matrices by oneDNN where PyTorch's own choice, MKL, is slow: on AMD's processors with AVX-512.

MKL takes its AVX-512 code on Intel's processors alone, and is half as fast as the processor elsewhere. oneDNN, which
PyTorch holds for convolutions, computes the same in single precision; only the order of the additions differs.
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

# Below so many tokens, and multiplications, a product is left to PyTorch: the other way gains nothing, or far less.
LEAST_TOKENS: Final = 64
LEAST: Final = 2**23


@cache
def onednn_is_faster() -> bool:
    """Whether this machine is one of those."""
    try:
        vendor = "AuthenticAMD" in Path("/proc/cpuinfo").read_text()
    except OSError:  # no Linux
        return False
    held = bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]
    return held and vendor and torch.backends.cpu.get_cpu_capability() == "AVX512"


@contextmanager
def use_onednn_linear() -> Iterator[None]:
    """Linear layers inside, and their gradients, are computed the faster way where this machine has one."""
    if not onednn_is_faster() or torch.compiler.is_compiling():  # a graph is for other machines, too
        yield
        return
    with _Products():
        yield


class _Products(TorchFunctionMode):
    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        given: Sequence[Any] = (),
        named: Mapping[str, Any] | None = None,
    ) -> Any:
        if function is functional.linear and not named and _suits(*given):
            return _Linear.apply(*given, *(None,) * (3 - len(given)))
        return function(*given, **(named or {}))


def _suits(tokens: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    single = tokens.dtype == weight.dtype == torch.float32 and tokens.device.type == weight.device.type == "cpu"
    few = tokens.numel() < LEAST_TOKENS * tokens.shape[-1]
    return single and not few and tokens.numel() * weight.shape[0] >= LEAST


class _Linear(torch.autograd.Function):
    """`torch.nn.functional.linear` by oneDNN, forward and backward."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(tokens, weight)
        return _product(tokens, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        tokens, weight = ctx.saved_tensors
        rows = gradient.reshape(-1, gradient.shape[-1])  # (B * N, O)
        wanted = ctx.needs_input_grad
        return (
            _product(gradient, weight.t()) if wanted[0] else None,
            _product(rows.t(), tokens.reshape(-1, tokens.shape[-1]).t()) if wanted[1] else None,
            rows.sum(dim=0) if wanted[2] else None,
        )


def _product(left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
    """(..., O) of left (..., D) and right (O, D)."""
    found: Tensor = torch.ops.mkldnn._linear_pointwise(left, right, bias, "none", [], "")
    return found

"""The interface of every model family: a chain of stages from pixels to the features that a head reads.

The stages before a cut form the frozen prefix, which runs once per image; the stages after it are trainable. Nothing
outside `vlm_core.models` needs to know the family.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from torch import Tensor, nn

from vlm_core.models.onednn_linear import use_onednn_linear

State = tuple[Tensor, ...]  # the input and output of a stage: tensors of shape (B, ...)
Part = Literal["vision", "fusion"]
# The end of the chain: the family's fused features (B, D), its vision tower's pooled features (B, D), or the image
# tokens (B, N, D) that a text decoder attends to.
Readout = Literal["fused", "vision", "tokens"]


@dataclass(frozen=True)
class Stage:
    """One link of the chain: the modules whose weights it owns, and its function from state to state."""

    name: str
    part: Part
    modules: tuple[nn.Module, ...]
    run: Callable[[State], State]


class Adapter(Protocol):
    """A family's Hugging Face model seen as a chain of stages."""

    family: str
    hf: Any  # transformers.PreTrainedModel
    tokenizer: Any  # transformers.PreTrainedTokenizerBase

    def stages(self, readout: Readout) -> tuple[Stage, ...]:
        """Return the chain from `(pixels (B, 3, S, S),)` to the readout."""

    def width(self, readout: Readout) -> int:
        """Return D, the width of the readout."""


@runtime_checkable
class Captioner(Adapter, Protocol):
    """A family that generates text from image tokens (B, N, D); `ids` are token ids (B, T)."""

    def text_modules(self) -> tuple[nn.Module, ...]:
        """Return the modules after the vision tower that generate text."""

    def prompt_ids(self) -> list[int]:
        """Return the token ids that every text starts with."""

    def sentence_ids(self, text: str) -> list[int]:
        """Return the token ids of a text that follows the prompt, with the end token."""

    def token_logits(self, tokens: Tensor, ids: Tensor) -> Tensor:
        """Return next-token logits (B, T, V) at each of `ids`, which start with the prompt; differentiable."""

    def prefill(self, tokens: Tensor) -> tuple[Tensor, Any]:
        """Return logits (B, V) of the first token after the prompt, and a KV cache that holds the prompt."""

    def decode_step(self, tokens: Tensor, ids: Tensor, cache: Any) -> Tensor:
        """Return next-token logits (B, T, V) at each of `ids`, and append these to the KV cache."""

    def crop_cache(self, cache: Any, count: int) -> None:
        """Remove the last `count` text tokens from the KV cache."""


def run_stages(stages: Sequence[Stage], state: State) -> State:
    """Return the state after all of `stages`."""
    with use_onednn_linear(state[0].device):
        for stage in stages:
            state = stage.run(state)
    return state


def causal_mask(length: int, past: int, like: Tensor) -> Tensor:
    """Return an additive mask (1, 1, length, past + length): each new token sees all past ones and none after it."""
    mask = like.new_full((length, length), float("-inf")).triu(1)
    return nn.functional.pad(mask, (past, 0))[None, None]

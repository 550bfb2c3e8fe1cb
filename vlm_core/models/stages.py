"""What every model family offers: a chain of stages from pixels to the state that an answer reads.

All weights before a cut in that chain can be frozen and run once; all after it learn. Nothing outside
`vlm_core.models` asks which family it deals with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from torch import Tensor, nn

from vlm_core.models.onednn_linear import use_onednn_linear

State = tuple[Tensor, ...]  # what passes from stage to stage: tensors of shape (B, ...)
Part = Literal["vision", "fusion"]
# Where the chain ends: the family's fused state (B, D), its vision tower's pooled state (B, D), or the image
# tokens (B, N, D) that a caption decoder reads.
Readout = Literal["fused", "vision", "tokens"]


@dataclass(frozen=True)
class Stage:
    """One link of the chain: the modules whose weights it owns, and what it does to the state."""

    name: str
    part: Part
    modules: tuple[nn.Module, ...]
    run: Callable[[State], State]


class Adapter(Protocol):
    """One family's weights in Hugging Face form, seen as a chain."""

    family: str
    hf: Any  # transformers.PreTrainedModel
    tokenizer: Any  # transformers.PreTrainedTokenizerBase

    def stages(self, readout: Readout) -> tuple[Stage, ...]:
        """The chain from `(pixels (B, 3, S, S),)` to what `readout` names."""

    def width(self, readout: Readout) -> int:
        """D of the state that the chain ends in."""


@runtime_checkable
class Captioner(Adapter, Protocol):
    """A family that writes text about image tokens (B, N, D); `ids` are token numbers (B, T)."""

    def writing_modules(self) -> tuple[nn.Module, ...]:
        """Modules after the vision tower that text is written with."""

    def prompt_ids(self) -> list[int]:
        """Token numbers that every sentence starts with."""

    def sentence_ids(self, text: str) -> list[int]:
        """Token numbers of a text that goes on from the prompt, with the end token."""

    def token_logits(self, tokens: Tensor, ids: Tensor) -> Tensor:
        """Logits (B, T, V) of the token after each of `ids`, which start with the prompt; gradients flow."""

    def read_prompt(self, tokens: Tensor) -> tuple[Tensor, Any]:
        """Logits (B, V) of the first token after the prompt, and a cache to go on from."""

    def read_more(self, tokens: Tensor, ids: Tensor, cache: Any) -> Tensor:
        """Logits (B, T, V) after each of `ids`; the cache then holds them."""

    def forget(self, cache: Any, count: int) -> None:
        """Take the last `count` tokens out of the cache."""


@use_onednn_linear()
def run_stages(stages: Sequence[Stage], state: State) -> State:
    """The state after all of `stages`."""
    for stage in stages:
        state = stage.run(state)
    return state


def causal_mask(length: int, past: int, like: Tensor) -> Tensor:
    """Additive mask (1, 1, length, past + length): each new token sees all past ones and none that follow it."""
    mask = like.new_full((length, length), float("-inf")).triu(1)
    return nn.functional.pad(mask, (past, 0))[None, None]

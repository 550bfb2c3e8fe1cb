"""The interface of every model family: a chain of stages from pixels, and texts, to the features that a head reads.

The stages before a cut form the frozen prefix, which runs once per image; the stages after it are trainable. Nothing
outside `vlm_core.models` needs to know the family.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from vlm_core.models.onednn_linear import use_onednn_linear
from vlm_core.models.token_ids import between_ends

State = tuple[Tensor, ...]  # the input and output of a stage: tensors of shape (B, ...)
Part = Literal["vision", "text", "fusion"]
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
    tokenizer: Any  # transformers.PreTrainedTokenizerBase; None without language

    @property
    def has_attention(self) -> bool:
        """Return whether the vision tower attends, which convolutional networks do not."""

    @property
    def prefix_tokens(self) -> int:
        """Return the number of image tokens before the patches: a class token, registers."""

    @property
    def pools_patches(self) -> bool:
        """Return whether the vision tower's pooled features are of all patches, and not of the class token alone."""

    def stages(self, readout: Readout) -> tuple[Stage, ...]:
        """Return the chain from `(pixels (B, 3, S, S),)` to the readout."""

    def width(self, readout: Readout) -> int:
        """Return D, the width of the readout."""

    def text_ends(self) -> tuple[list[int], list[int]]:
        """Return the token ids that stand before and after the words of a product's text."""

    def text_stages(self, pooled: bool) -> tuple[Stage, ...]:
        """Return the chain of the text tower alone, from `(ids (B, T),)` to features (B, D).

        Where it is not pooled, it ends in all text tokens (B, T, D), and in a mask (B, T) of those that are no padding.
        """

    def own_stages(self) -> tuple[Stage, ...]:
        """Return the family's own chain from picture and text, `(pixels, ids, given)`, to fused features (B, D).

        `given` (B, 2) is 1 where there is a picture, and where there is a text.
        """


@runtime_checkable
class Matcher(Adapter, Protocol):
    """A family that embeds images and texts in one space; the fused features are an image's embedding."""

    def text_embeddings(self, texts: list[str]) -> Tensor:
        """Return unit vectors (n, D) of texts."""

    def match_logits(self, images: Tensor, texts: Tensor) -> Tensor:
        """Return how well each text fits each image (B, C), for unit vectors (B, D) and (C, D), before the softmax."""


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


def encode_texts(adapter: Adapter, texts: Sequence[str], tokens: int) -> Tensor:
    """Return the token ids (B, tokens) of the texts of products between the family's ends, padded with -1."""
    words = adapter.tokenizer(list(texts), add_special_tokens=False)["input_ids"] if texts else []
    return torch.from_numpy(between_ends(words, adapter.text_ends(), tokens))


def run_stages(stages: Sequence[Stage], state: State) -> State:
    """Return the state after all of `stages`."""
    with use_onednn_linear(state[0].device):
        for stage in stages:
            state = stage.run(state)
    return state


def side_by_side(vision: Sequence[Stage], text: Sequence[Stage]) -> tuple[Stage, ...]:
    """Return one chain of both towers, over states of the picture's parts, the text's parts, and `given` (B, 2).

    The text's tokens are embedded first, so that no later state holds ids. Blocks at the same distance from the end
    stand together: a cut before one of the picture's leaves the last blocks of both trainable.
    """
    start, blocks, end = _split_tower([_of_picture(stage) for stage in vision])
    text_start, text_blocks, text_end = _split_tower([_of_text(stage) for stage in text])
    extra = max(0, len(text_blocks) - len(blocks))
    chain = [*text_start, *start, *text_blocks[:extra]]
    paired = text_blocks[extra:]
    for place, block in enumerate(blocks, start=len(paired) - len(blocks)):
        chain += [block, paired[place]] if place >= 0 else [block]
    return (*chain, *end, *text_end)


def beside_text(embed: Stage, vision: Sequence[Stage]) -> tuple[Stage, ...]:
    """Return the chain that embeds a text, then runs the vision tower, over the states of `side_by_side`."""
    return (_of_text(embed), *(_of_picture(stage) for stage in vision))


def _split_tower(stages: Sequence[Stage]) -> tuple[list[Stage], list[Stage], list[Stage]]:
    """Divide a tower's chain into what comes before its blocks, the blocks, and what follows."""
    places = [place for place, stage in enumerate(stages) if ".block." in stage.name]
    first, last = places[0], places[-1] + 1
    return list(stages[:first]), list(stages[first:last]), list(stages[last:])


def _of_picture(stage: Stage) -> Stage:
    """Return a stage of a vision tower, whose state is one tensor, over the state of a picture and a text."""
    return Stage(stage.name, stage.part, stage.modules, lambda state: (*stage.run(state[:1]), *state[1:]))


def _of_text(stage: Stage) -> Stage:
    """Return a stage of a text tower over the state of a picture and a text, of which `given` is last."""
    return Stage(stage.name, stage.part, stage.modules, lambda state: (state[0], *stage.run(state[1:-1]), state[-1]))


def last_token(tokens: Tensor, mask: Tensor) -> Tensor:
    """Return the last token (B, D) of each text that is no padding, of tokens (B, T, D) and their mask (B, T)."""
    places = mask.sum(dim=1).long() - 1
    return tokens[torch.arange(tokens.shape[0], device=tokens.device), places]


def causal_mask(length: int, past: int, like: Tensor) -> Tensor:
    """Return an additive mask (1, 1, length, past + length): each new token sees all past ones and none after it."""
    mask = like.new_full((length, length), float("-inf")).triu(1)
    return nn.functional.pad(mask, (past, 0))[None, None]

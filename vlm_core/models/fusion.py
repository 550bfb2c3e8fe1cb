"""Models that read texts: the chain of each way to fuse picture and text, and the heads that fuse behind it.

The input of a chain is `(pixels (B, 3, S, S), ids (B, T), given (B, 2))`, or `(ids,)` for text alone. `given` is 1
where there is a picture, and where there is a text: a product without one of them is answered from the other.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Final, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from vlm_core.models.blocks import multi_head_attention
from vlm_core.models.stages import Adapter, Readout, Stage, State, encode_texts, side_by_side

Fusion = Literal["late", "concat", "cross-attention", "own"]
MOST_TOKENS: Final = 128  # of a text
TOKEN_STEP: Final = 8  # so that runs on other products share the features of frozen layers
HIDDEN: Final = 256  # units of the hidden layer over both towers' states
HEADS: Final = 4  # of the attention from text to image tokens


def reading_stages(adapter: Adapter, inputs: Literal["text", "image+text"], fusion: Fusion) -> tuple[Stage, ...]:
    """Return the chain of a model that reads texts.

    It ends in features (B, D) for text alone and for the family's own fusion. For `late` and `concat` it ends in both
    towers' pooled states (B, D) and (B, E), for `cross-attention` in their tokens (B, N, D) and (B, T, E) with the mask
    (B, T) of the text's; `given` (B, 2) is last.
    """
    if inputs == "text":
        return adapter.text_stages(pooled=True)
    if fusion == "own":
        return adapter.own_stages()
    pooled = fusion != "cross-attention"
    return side_by_side(adapter.stages("vision" if pooled else "tokens"), adapter.text_stages(pooled))


def tokens_needed(adapter: Adapter, texts: Sequence[str]) -> tuple[int, int]:
    """Return the tokens that hold these texts, in steps of eight, and how many texts are longer than can be read."""
    most = min(MOST_TOKENS, int(adapter.hf.config.get_text_config().max_position_embeddings))
    lengths = (encode_texts(adapter, texts, most + 1) >= 0).sum(dim=1)
    longest = int(lengths.max()) if len(texts) else 0
    return min(most, -(-longest // TOKEN_STEP) * TOKEN_STEP), int((lengths > most).sum())


def text_width(adapter: Adapter) -> int:
    """Return the width of the text tower's states."""
    return int(adapter.hf.config.get_text_config().hidden_size)


def make_fusion_head(adapter: Adapter, fusion: Fusion, categories: int) -> FusionHead:
    """Return the head of a fusion other than the family's own, with random weights."""
    kinds: dict[str, type[FusionHead]] = {"late": LateHead, "concat": ConcatHead, "cross-attention": CrossAttentionHead}
    return kinds[fusion](adapter.width("vision"), text_width(adapter), categories)


class FusionHead(nn.Module, ABC):
    """A head that fuses the states of both towers; `width` is the vision tower's, `text_width` the text tower's."""

    readout: Readout = "fused"

    def __init__(self, width: int, text_width: int, categories: int) -> None:
        super().__init__()

    def log_probabilities(self, state: State) -> Tensor:
        """Return the log-softmax (B, C) of the logits."""
        return functional.log_softmax(self.logits(state), dim=-1)

    @abstractmethod
    def logits(self, state: State) -> Tensor:
        """Return logits (B, C)."""

    def loss(self, state: State, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the cross-entropy () and the log-probabilities (B, C)."""
        log_probabilities = self.log_probabilities(state)
        return functional.nll_loss(log_probabilities, labels), log_probabilities.detach()

    def trainable_modules(self) -> tuple[nn.Module, ...]:
        """Return the head itself."""
        return (self,)


class LateHead(FusionHead):
    """Late fusion: the weighted mean of the log-probabilities of a layer on the picture and one on the text.

    Each layer learns from the products that have its input. `picture_weight` is fitted on validation after training.
    """

    picture_weight: Tensor  # (), between 0 and 1

    def __init__(self, width: int, text_width: int, categories: int) -> None:
        super().__init__(width, text_width, categories)
        self.picture = nn.Linear(width, categories)
        self.text = nn.Linear(text_width, categories)
        self.register_buffer("picture_weight", torch.tensor(0.5))

    def each(self, state: State) -> Tensor:
        """Return the log-probabilities (B, 2, C) by the picture and by the text."""
        picture, text, _ = state
        logits = torch.stack([self.picture(picture), self.text(text)], dim=1)
        return functional.log_softmax(logits, dim=-1)

    def logits(self, state: State) -> Tensor:
        """Return the weighted mean (B, C); the one that there is has all the weight where the other is missing."""
        given = state[2]
        weights = torch.stack([self.picture_weight, 1 - self.picture_weight])
        both = given.prod(dim=1, keepdim=True) > 0
        return (self.each(state) * torch.where(both, weights, given)[..., None]).sum(dim=1)

    def loss(self, state: State, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean cross-entropy () of the layers, each where its input is given, and the log-probabilities."""
        given = state[2]
        each = -self.each(state).gather(2, labels[:, None, None].expand(-1, 2, 1))[..., 0]  # (B, 2)
        return (each * given).sum() / given.sum().clamp(min=1), self.log_probabilities(state).detach()

    @torch.no_grad()
    def fit_weight(self, state: State, labels: Tensor) -> float:
        """Set and return the picture's weight with the lowest cross-entropy on these products (B,)."""
        from scipy.optimize import minimize_scalar

        def loss(weight: float) -> float:
            self.picture_weight.fill_(weight)
            return float(functional.nll_loss(self.log_probabilities(state), labels))

        self.picture_weight.fill_(float(minimize_scalar(loss, bounds=(0, 1), method="bounded").x))
        return float(self.picture_weight)


class ConcatHead(FusionHead):
    """Early fusion: both towers' states, normalised and joined, and a perceptron with one hidden layer."""

    def __init__(self, width: int, text_width: int, categories: int) -> None:
        super().__init__(width, text_width, categories)
        self.no_picture = nn.Parameter(torch.zeros(width))  # learnt states that stand for what is absent
        self.no_text = nn.Parameter(torch.zeros(text_width))
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(text_width)])
        self.hidden = nn.Linear(width + text_width, HIDDEN)
        self.output = nn.Linear(HIDDEN, categories)

    def logits(self, state: State) -> Tensor:
        """Return logits (B, C)."""
        picture, text, given = state
        has_picture, has_text = given[:, :1] > 0, given[:, 1:] > 0  # (B, 1) each
        picture_norm, text_norm = self.norms
        parts = (
            torch.where(has_picture, picture_norm(picture), self.no_picture),
            torch.where(has_text, text_norm(text), self.no_text),
        )
        return self.output(functional.gelu(self.hidden(torch.cat(parts, dim=1))))  # type: ignore[no-any-return]


class CrossAttentionHead(FusionHead):
    """Cross-attention: the text's tokens and a learnt one read the image tokens in one block; their mean is classified.

    A product without a text is read by the learnt token alone; one without a picture has one learnt image token.
    """

    def __init__(self, width: int, text_width: int, categories: int) -> None:
        super().__init__(width, text_width, categories)
        self.reader = nn.Parameter(0.02 * torch.randn(text_width))
        self.no_picture = nn.Parameter(torch.zeros(width))
        self.text_norm, self.picture_norm = nn.LayerNorm(text_width), nn.LayerNorm(width)
        self.query, self.out = nn.Linear(text_width, text_width), nn.Linear(text_width, text_width)
        self.key, self.value = nn.Linear(width, text_width), nn.Linear(width, text_width)
        self.mlp = nn.Sequential(
            nn.LayerNorm(text_width),
            nn.Linear(text_width, 2 * text_width),
            nn.GELU(),
            nn.Linear(2 * text_width, text_width),
        )
        self.output = nn.Sequential(nn.LayerNorm(text_width), nn.Linear(text_width, categories))

    def logits(self, state: State) -> Tensor:
        """Return logits (B, C)."""
        tokens, text, mask, given = state
        has_picture, has_text = given[:, :1] > 0, given[:, 1:] > 0  # (B, 1) each
        tokens = torch.where(has_picture[..., None], self.picture_norm(tokens), self.no_picture)  # (B, N, D)
        x = torch.cat([self.reader.expand(text.shape[0], 1, -1), text], dim=1)  # (B, 1 + T, E)
        y = multi_head_attention(self.query(self.text_norm(x)), self.key(tokens), self.value(tokens), HEADS)
        x = x + self.out(y)
        x = x + self.mlp(x)
        counted = torch.cat([torch.ones_like(mask[:, :1]), mask * has_text], dim=1)[..., None]  # (B, 1 + T, 1)
        return self.output((x * counted).sum(dim=1) / counted.sum(dim=1))  # type: ignore[no-any-return]

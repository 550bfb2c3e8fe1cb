"""One pass of a model with the attention of every layer kept, able to be differentiated, and the score it led to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vlm_core.models.blocks import ATTENTION_KERNEL
from vlm_core.models.categoriser import VisionLanguageCategoriser
from vlm_core.models.heads import SentenceHead
from vlm_core.models.stages import Captioner, State
from vlm_core.pixels.views import plain_view

# Image tokens to each other; text to text (BLIP); text to image tokens (BLIP); image and text together (GIT).
LayerKind = Literal["vision", "text", "cross", "joint"]


_PICTURES_A_PASS = 8  # a full-sized model keeps about 0.2 GB a picture for its gradients


@dataclass(frozen=True)
class AttentionLayer:
    """What one layer's tokens attend to."""

    name: str  # the stage it belongs to
    kind: LayerKind
    # (B, heads, R, N), rows sum to one. R are the tokens that the everyday pass computes: where one is read alone, one.
    probabilities: Tensor


@dataclass(frozen=True)
class Recording:
    """The attention of one pass, from pixels on, and what was answered."""

    layers: tuple[AttentionLayer, ...]
    scores: Tensor  # (B, K) log odds of what each of the last K text tokens was asked for; K = 1 where a state is read
    asked: Tensor  # (B, K) 1, or 0 where a token is asked for nothing
    image_tokens: int  # N, the class token first

    def of(self, kind: LayerKind) -> list[Tensor]:
        """The probabilities of the layers of one kind, first layer first."""
        return [layer.probabilities for layer in self.layers if layer.kind == kind]


def record_batches(
    model: VisionLanguageCategoriser, pictures: NDArray[np.uint8], target: int | NDArray[np.int64] | None = None
) -> Iterator[Recording]:
    """The passes over pictures (B, H, W, 3), a few at a time, that answer for their targets (see `resolve_targets`)."""
    for pixels, targets in batches(model, pictures, target):
        yield record(model, pixels, targets)


def batches(
    model: VisionLanguageCategoriser, pictures: NDArray[np.uint8], target: int | NDArray[np.int64] | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Pixels (b, 3, S, S) and targets (b,) of a few pictures at a time; the model is then in evaluation mode."""
    targets = resolve_targets(model, pictures, target)
    model.hf.eval()
    for start in range(0, len(pictures), _PICTURES_A_PASS):
        rows = slice(start, start + _PICTURES_A_PASS)
        yield plain_view(pictures[rows], model.image_size).to(model.device), targets[rows]


def resolve_targets(
    model: VisionLanguageCategoriser, pictures: NDArray[np.uint8], target: int | NDArray[np.int64] | None
) -> Tensor:
    """The category (B,) to answer for of each picture: one for all, one a picture, or None for what is predicted."""
    chosen = model.log_probabilities(pictures).argmax(axis=1) if target is None else np.asarray(target)
    return torch.from_numpy(np.broadcast_to(chosen, len(pictures)).astype(np.int64)).to(model.device)


def record(model: VisionLanguageCategoriser, pixels: Tensor, targets: Tensor) -> Recording:
    """The pass that answers how likely the categories `targets` (B,) are for `pixels` (B, 3, S, S).

    Nothing of it is random: the caller has set the model to evaluation.
    """
    with _kept() as kept, torch.enable_grad():
        state = model.run((pixels,))
        scores, asked = _category_scores(model, state, targets)
    return _recording(kept, _vision_blocks(model), scores, asked)


def record_text(model: VisionLanguageCategoriser, pixels: Tensor, ids: Sequence[Sequence[int]]) -> Recording:
    """The pass that answers how likely each token of `ids` (B, T) is after the prompt and those before it."""
    captioner = model.adapter
    assert isinstance(captioner, Captioner)
    prompt = captioner.prompt_ids()
    with _kept() as kept, torch.enable_grad():
        (tokens,) = model.run((pixels,))
        texts = torch.tensor([[*prompt, *row] for row in ids], device=tokens.device)
        logits = captioner.token_logits(tokens, texts[:, :-1])[:, len(prompt) - 1 :]
        scores = log_odds(logits, texts[:, len(prompt) :])
    return _recording(kept, _vision_blocks(model), scores, torch.ones_like(scores))


def category_scores(model: VisionLanguageCategoriser, pixels: Tensor, targets: Tensor) -> Tensor:
    """The scores (B,) that explanations are of: the log odds of the categories `targets` (B,); gradients flow."""
    return _category_scores(model, model.run((pixels,)), targets)[0].sum(dim=1)


def log_odds(logits: Tensor, targets: Tensor) -> Tensor:
    """Log of p / (1 - p) of `targets` (...) among `logits` (..., C), which may be log-probabilities.

    Chefer et al. 2021 explain a logit. It is known only up to a number that all categories share, and not every
    answer here has one; log odds are free of that number and, unlike a log-probability, do not flatten near p = 1.
    """
    chosen = logits.gather(-1, targets[..., None])[..., 0]
    others = logits.scatter(-1, targets[..., None], float("-inf"))
    return chosen - others.logsumexp(dim=-1)


def _category_scores(model: VisionLanguageCategoriser, state: State, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Log odds (B, K) of the categories, or of each token of their sentences, and which of them were asked for."""
    if isinstance(model.head, SentenceHead):
        (tokens,) = state
        ids, wanted = model.head.teacher_forcing(targets)
        asked = (wanted >= 0).float()
        logits = model.head.captioner.token_logits(tokens, ids)
        return log_odds(logits, wanted.clamp(min=0)) * asked, asked
    scores = log_odds(model.head.log_probabilities(state), targets)[:, None]
    return scores, torch.ones_like(scores)


@contextmanager
def _kept() -> Iterator[list[tuple[Tensor, bool]]]:
    """A list that fills with the probabilities of every attention inside, and whether it was under a mask.

    It holds for the thread that enters it: others go on with the fused operation.
    """
    kept: list[tuple[Tensor, bool]] = []

    def attend(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, dropout_p: float) -> Tensor:
        """Vaswani et al. 2017, arXiv 1706.03762, equation 1; models that are explained drop nothing out."""
        scores = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5
        probabilities = (scores if attn_mask is None else scores + attn_mask).softmax(dim=-1)
        if not probabilities.requires_grad:  # where every weight before is frozen
            probabilities.requires_grad_()
        kept.append((probabilities, attn_mask is not None))
        mixed: Tensor = probabilities @ value
        return mixed

    token = ATTENTION_KERNEL.set(attend)
    try:
        yield kept
    finally:
        ATTENTION_KERNEL.reset(token)


def _vision_blocks(model: VisionLanguageCategoriser) -> int:
    return sum(stage.part == "vision" and ".block." in stage.name for stage in model.stages)


def _recording(kept: list[tuple[Tensor, bool]], vision: int, scores: Tensor, asked: Tensor) -> Recording:
    """Layers by their kind: after the tower's come text's own under a mask, and crossing ones without, if any."""
    layers = [
        AttentionLayer(f"vision.block.{number}", "vision", kept[number - 1][0]) for number in range(1, vision + 1)
    ]
    after = kept[vision:]
    crosses = any(not masked for _, masked in after)
    for index, (probabilities, masked) in enumerate(after):
        kind: LayerKind = ("text" if masked else "cross") if crosses else "joint"
        layers.append(AttentionLayer(f"fusion.block.{(index // 2 if crosses else index) + 1}", kind, probabilities))
    return Recording(tuple(layers), scores, asked, image_tokens=kept[0][0].shape[-1])

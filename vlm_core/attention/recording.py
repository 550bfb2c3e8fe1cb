"""Recording of a forward pass: the attention weights of every layer, with gradients, and the resulting scores."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vlm_core.errors import UserError
from vlm_core.models.blocks import ATTENTION_KERNEL
from vlm_core.models.categoriser import VisionLanguageCategoriser
from vlm_core.models.heads import SentenceHead
from vlm_core.models.stages import Captioner, State

# Image tokens to image tokens; text to text (BLIP); text to image tokens (BLIP); image and text jointly (GIT); a learnt
# query to image tokens (SigLIP).
LayerKind = Literal["vision", "text", "cross", "joint", "pool"]


NO_ATTENTION: Final = "This model is a convolutional network, which has no attention: choose saliency or occlusion."
_BATCH = 8  # pictures; a full-sized model needs about 0.2 GB per picture for its gradients


@dataclass(frozen=True)
class AttentionLayer:
    """The attention weights of one layer."""

    name: str  # the stage it belongs to
    kind: LayerKind
    # (B, heads, Q, N), rows sum to one. Q are the queries that the ordinary pass computes: one where one is enough.
    probabilities: Tensor


@dataclass(frozen=True)
class Recording:
    """The attention weights of one pass from pixels, and the scores that it ends in."""

    layers: tuple[AttentionLayer, ...]
    scores: Tensor  # (B, K) log odds of the target of each of the last K text tokens; K = 1 for a pooled state
    score_mask: Tensor  # (B, K) 1, or 0 where a text token has no target
    image_tokens: int  # N
    prefix_tokens: int = 1  # of these, before the patches: the class token first, if there is one, and registers
    pools_patches: bool = False  # whether the tower's features are of all patches, and not of the class token alone

    def of_kind(self, kind: LayerKind) -> list[Tensor]:
        """Return the attention weights of the layers of one kind, first layer first."""
        return [layer.probabilities for layer in self.layers if layer.kind == kind]


def record_batches(
    model: VisionLanguageCategoriser, pictures: NDArray[np.uint8], target: int | NDArray[np.int64] | None = None
) -> Iterator[Recording]:
    """Yield recordings over pictures (B, H, W, 3), a few at a time, for their targets (see `resolve_targets`)."""
    for pixels, targets in batches(model, pictures, target):
        yield record(model, pixels, targets)


def batches(
    model: VisionLanguageCategoriser, pictures: NDArray[np.uint8], target: int | NDArray[np.int64] | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield pixels (b, 3, S, S) and targets (b,) of a few pictures at a time, with the model in evaluation mode.

    Raises UserError for a model that reads texts.
    """
    if model.reads:
        raise UserError("This model reads texts as well, and maps exist for images only: choose another run.")
    targets = resolve_targets(model, pictures, target)
    model.hf.eval()
    for start in range(0, len(pictures), _BATCH):
        rows = slice(start, start + _BATCH)
        yield model.pixels(pictures[rows]).to(model.device), targets[rows]


def resolve_targets(
    model: VisionLanguageCategoriser, pictures: NDArray[np.uint8], target: int | NDArray[np.int64] | None
) -> Tensor:
    """Return each picture's target category (B,): one for all, one per picture, or the predicted one for None."""
    targets = model.log_probabilities(pictures).argmax(axis=1) if target is None else np.asarray(target)
    return torch.from_numpy(np.broadcast_to(targets, len(pictures)).astype(np.int64)).to(model.device)


def record(model: VisionLanguageCategoriser, pixels: Tensor, targets: Tensor) -> Recording:
    """Record the pass that scores the categories `targets` (B,) for `pixels` (B, 3, S, S).

    It is deterministic if the caller has set the model to evaluation mode. Raise UserError for a convolutional network.
    """
    if not model.adapter.has_attention:
        raise UserError(NO_ATTENTION)
    with _recorded_attention() as weights, torch.enable_grad():
        state = model.run((pixels,))
        scores, score_mask = _category_scores(model, state, targets)
    return _recording(model, weights, scores, score_mask)


def record_text(model: VisionLanguageCategoriser, pixels: Tensor, ids: Sequence[Sequence[int]]) -> Recording:
    """Record the pass that scores each token of `ids` (B, T) after the prompt and the tokens before it."""
    captioner = model.adapter
    assert isinstance(captioner, Captioner)
    prompt = captioner.prompt_ids()
    with _recorded_attention() as weights, torch.enable_grad():
        (tokens,) = model.run((pixels,))
        texts = torch.tensor([[*prompt, *row] for row in ids], device=tokens.device)
        logits = captioner.token_logits(tokens, texts[:, :-1])[:, len(prompt) - 1 :]
        scores = log_odds(logits, texts[:, len(prompt) :])
    return _recording(model, weights, scores, torch.ones_like(scores))


def category_scores(model: VisionLanguageCategoriser, pixels: Tensor, targets: Tensor) -> Tensor:
    """Return the scores (B,) that maps explain: log odds of the categories `targets` (B,), differentiable."""
    return _category_scores(model, model.run((pixels,)), targets)[0].sum(dim=1)


def log_odds(logits: Tensor, targets: Tensor) -> Tensor:
    """Return log(p / (1 - p)) of `targets` (...) among `logits` (..., C), which may be log-probabilities.

    Chefer et al. 2021 explain a logit. Logits are defined only up to a constant that all categories share, and not
    every head here has them; log odds do not depend on it and, unlike log-probabilities, do not saturate near p = 1.
    """
    target = logits.gather(-1, targets[..., None])[..., 0]
    others = logits.scatter(-1, targets[..., None], float("-inf"))
    return target - others.logsumexp(dim=-1)


def _category_scores(model: VisionLanguageCategoriser, state: State, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return log odds (B, K) of the categories, or of each token of their sentences, and the mask of targets."""
    if isinstance(model.head, SentenceHead):
        (tokens,) = state
        ids, next_ids = model.head.teacher_forcing(targets)
        score_mask = (next_ids >= 0).float()
        logits = model.head.captioner.token_logits(tokens, ids)
        return log_odds(logits, next_ids.clamp(min=0)) * score_mask, score_mask
    scores = log_odds(model.head.log_probabilities(state), targets)[:, None]
    return scores, torch.ones_like(scores)


@contextmanager
def _recorded_attention() -> Iterator[list[tuple[Tensor, bool]]]:
    """Collect the attention weights of every attention inside, each with whether it had a mask.

    This applies to the thread that enters it: others keep using the fused operation.
    """
    weights: list[tuple[Tensor, bool]] = []

    def attend(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None, dropout_p: float) -> Tensor:
        """Return softmax(q k^T / sqrt(E)) v without dropout (Vaswani et al. 2017, arXiv 1706.03762, equation 1)."""
        att = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5  # (B, H, Q, N)
        att = (att if attn_mask is None else att + attn_mask).softmax(dim=-1)
        if not att.requires_grad:  # all weights before this layer are frozen
            att.requires_grad_()
        weights.append((att, attn_mask is not None))
        y: Tensor = att @ v  # (B, H, Q, E)
        return y

    token = ATTENTION_KERNEL.set(attend)
    try:
        yield weights
    finally:
        ATTENTION_KERNEL.reset(token)


def _recording(
    model: VisionLanguageCategoriser, weights: list[tuple[Tensor, bool]], scores: Tensor, score_mask: Tensor
) -> Recording:
    """Name the layers by kind: after the tower, masked ones are text and unmasked ones cross-attention, if any."""
    pools = [stage.name for stage in model.stages if stage.name == "fusion.pool"]
    vision = sum(stage.part == "vision" and ".block." in stage.name for stage in model.stages)
    layers = [
        AttentionLayer(f"vision.block.{number}", "vision", weights[number - 1][0]) for number in range(1, vision + 1)
    ]
    fusion = weights[vision:]
    crosses = any(not masked for _, masked in fusion)
    for index, (probabilities, masked) in enumerate(fusion):
        if pools:
            layers.append(AttentionLayer(pools[index], "pool", probabilities))
            continue
        kind: LayerKind = ("text" if masked else "cross") if crosses else "joint"
        layers.append(AttentionLayer(f"fusion.block.{(index // 2 if crosses else index) + 1}", kind, probabilities))
    return Recording(
        tuple(layers),
        scores,
        score_mask,
        image_tokens=weights[0][0].shape[-1],
        prefix_tokens=model.adapter.prefix_tokens,
        pools_patches=model.adapter.pools_patches,
    )

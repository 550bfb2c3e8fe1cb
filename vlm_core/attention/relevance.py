"""From the attention of a pass to what each image token meant to its answer.

Which rule applies follows from the layers themselves: a model whose text crosses to image tokens is read there, one
that joins image and text in the joint layers, and any other by what reaches the class token.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vlm_core.attention.recording import Recording


def raw_relevance(recording: Recording, weights: Tensor) -> Tensor:
    """What the mechanism itself says of each patch (B, N - 1), unscaled, without regard to the answer.

    Where text reads the picture (BLIP, GIT), its attention to image tokens, mean over heads and layers, of the last K
    text tokens weighted by `weights` (B, K). Else (CLIP) the class token's row of the rollout.
    """
    reading = recording.of("cross") + recording.of("joint")
    if not reading:
        return rollout([layer.detach().mean(dim=1) for layer in recording.of("vision")])[:, 0, 1:]
    count, images = weights.shape[1], recording.image_tokens
    rows = torch.stack([layer.detach()[:, :, -count:, 1:images].mean(dim=1) for layer in reading]).mean(dim=0)
    return torch.einsum("bk,bkn->bn", weights, rows)


def gradient_relevance(recording: Recording, weights: Tensor) -> Tensor:
    """What each patch (B, N - 1) meant to the scores weighted by `weights` (B, K), unscaled and never negative.

    Chefer et al. 2021, arXiv 2103.15679: attention weighted by the score's gradient and carried through the layers.
    """
    weighted = _weighted_attention(recording, weights)
    kinds = [layer.kind for layer in recording.layers]
    vision, text, cross, joint = (
        [layer for layer, found in zip(weighted, kinds, strict=True) if found == kind]
        for kind in ("vision", "text", "cross", "joint")
    )
    images = _self_relevance(vision)  # (B, N, N)
    if not cross and not joint:
        return images[:, 0, 1:]
    rows = _crossed(images, text, cross) if cross else _joined(images, joint)
    return torch.einsum("bk,bkn->bn", weights.double(), rows[:, -weights.shape[1] :, 1:])


def rollout(layers: list[Tensor]) -> Tensor:
    """How much of each input token (B, N, N; columns) is in each output token, if attention alone mixed them.

    `layers` are attention (B, R, N), mean over heads; R below N are the first tokens, and the rows of the rest are
    then no output. Abnar & Zuidema 2020, arXiv 2005.00928, equation 1: half of each layer is its residual connection.
    """
    mixed = _identity(layers[0], layers[0].shape[-1])
    for layer in layers:
        rows = slice(0, layer.shape[1])
        mixed[:, rows] = 0.5 * (layer @ mixed + mixed[:, rows])
    return mixed


def _weighted_attention(recording: Recording, weights: Tensor) -> list[Tensor]:
    """The mean over heads of the positive part of attention times its gradient (B, R, N) a layer: equation 5."""
    layers = [layer.probabilities for layer in recording.layers]
    gradients = torch.autograd.grad((recording.scores * weights).sum(), layers, retain_graph=True)
    # In double precision: what a layer adds to the identity is small, and is taken from it again where rows are scaled.
    return [
        (layer.detach() * gradient).clamp(min=0).mean(dim=1).double()
        for layer, gradient in zip(layers, gradients, strict=True)
    ]


def _self_relevance(layers: list[Tensor]) -> Tensor:
    """R + A R a layer, from the identity (B, N, N): equation 6. Rows that a layer leaves out are not the first."""
    relevance = _identity(layers[0], layers[0].shape[-1])
    for layer in layers:
        relevance[:, : layer.shape[1]] += layer @ relevance
    return relevance


def _joined(images: Tensor, joint: list[Tensor]) -> Tensor:
    """Rows (B, T, N) of text tokens on image tokens, by equation 6 over image and text as one sequence.

    The paper's models have no tower before their joint layers. Here it starts from the tower's relevance of image
    tokens, normalised as where text crosses to them: else each token's own share of itself would drown the rest.
    """
    length = images.shape[-1]
    relevance = _identity(joint[0], joint[0].shape[-1])
    relevance[:, :length, :length] = _normalised(images)
    for layer in joint:
        relevance[:, -layer.shape[1] :] += layer @ relevance
    return relevance[:, length:, :length]


def _crossed(images: Tensor, text: list[Tensor], cross: list[Tensor]) -> Tensor:
    """Rows (B, T, N) of text tokens on image tokens: equations 6 and 7 for text, 10 for its crossing to the picture.

    Equation 11 adds nothing here: image tokens never read text.
    """
    own = _identity(text[0], text[0].shape[-1])  # (B, T, T)
    rows = images.new_zeros(len(images), own.shape[-1], images.shape[-1])
    images = _normalised(images)
    for among, across in zip(text, cross, strict=True):
        read = slice(-among.shape[1], None)
        rows[:, read] += among @ rows
        own[:, read] += among @ own
        rows += _normalised(own)[:, read].transpose(1, 2) @ across @ images
    return rows


def _normalised(relevance: Tensor) -> Tensor:
    """Rows of what was added to the identity scaled to one, and the identity: equations 8 and 9. Empty rows stay so."""
    identity = torch.eye(relevance.shape[-1], dtype=relevance.dtype, device=relevance.device)
    added = relevance - identity
    total = added.sum(dim=-1, keepdim=True)
    return added / total.where(total > 0, 1) + identity


def _identity(like: Tensor, size: int) -> Tensor:
    return torch.eye(size, dtype=like.dtype, device=like.device).repeat(len(like), 1, 1)

"""Relevance of image tokens to a prediction, from the attention weights of a recorded pass.

The kinds of layers decide which rule applies: cross-attention from text to image tokens (BLIP), joint attention over
image and text (GIT), a learnt query's attention (SigLIP), or else what reaches the class token (CLIP), or the mean of
all patches where these are pooled.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vlm_core.attention.recording import Recording


def raw_relevance(recording: Recording, weights: Tensor) -> Tensor:
    """Return the attention to each patch (B, N - 1), unscaled, whatever the prediction.

    Where text attends to the picture (BLIP, GIT): the attention of the last K text tokens to image tokens, weighted by
    `weights` (B, K), mean over heads and layers; that of a learnt query (SigLIP) likewise. Else (CLIP): the row of
    the rollout that is read, or the mean of those.
    """
    layers = recording.of_kind("cross") + recording.of_kind("joint") + recording.of_kind("pool")
    if not layers:
        return _read(rollout([layer.detach().mean(dim=1) for layer in recording.of_kind("vision")]), recording)
    count, patches = weights.shape[1], slice(recording.prefix_tokens, recording.image_tokens)
    rows = torch.stack([layer.detach()[:, :, -count:, patches].mean(dim=1) for layer in layers]).mean(dim=0)
    return torch.einsum("bk,bkn->bn", weights, rows)


def gradient_relevance(recording: Recording, weights: Tensor) -> Tensor:
    """Return the relevance of each patch (B, N - 1) to the scores weighted by `weights` (B, K), unscaled, >= 0.

    Chefer et al. 2021, arXiv 2103.15679: attention weighted by the score's gradient and propagated through the layers.
    """
    weighted = _weighted_attention(recording, weights)
    kinds = [layer.kind for layer in recording.layers]
    vision, text, cross, joint, pool = (
        [layer for layer, layer_kind in zip(weighted, kinds, strict=True) if layer_kind == kind]
        for kind in ("vision", "text", "cross", "joint", "pool")
    )
    images = _self_relevance(vision)  # (B, N, N)
    if pool:
        rows = pool[0] @ _normalised(images)  # equation 10 for a query that attends to nothing else
    elif cross or joint:
        rows = _cross_relevance(images, text, cross) if cross else _joint_relevance(images, joint)
    else:
        return _read(images, recording)
    return torch.einsum("bk,bkn->bn", weights.double(), rows[:, -weights.shape[1] :, recording.prefix_tokens :])


def _read(tokens: Tensor, recording: Recording) -> Tensor:
    """Return the patches' columns (B, P) of a matrix (B, N, N) in the row that is read, or the mean of the patches'."""
    prefix = recording.prefix_tokens
    return tokens[:, prefix:, prefix:].mean(dim=1) if recording.pools_patches else tokens[:, 0, prefix:]


def rollout(layers: list[Tensor]) -> Tensor:
    """Return the share of each input token (columns) in each output token (B, N, N), if attention alone mixed them.

    `layers` are attention weights (B, Q, N), mean over heads; if Q < N they are those of the first tokens, and only
    their rows are output. Abnar & Zuidema 2020, arXiv 2005.00928, equation 1: half of each layer is its residual
    connection.
    """
    mixed = _identity(layers[0], layers[0].shape[-1])
    for layer in layers:
        rows = slice(0, layer.shape[1])
        mixed[:, rows] = 0.5 * (layer @ mixed + mixed[:, rows])
    return mixed


def _weighted_attention(recording: Recording, weights: Tensor) -> list[Tensor]:
    """Return the mean over heads of the positive part of attention times gradient (B, Q, N) per layer: equation 5."""
    layers = [layer.probabilities for layer in recording.layers]
    gradients = torch.autograd.grad((recording.scores * weights).sum(), layers, retain_graph=True)
    # In double precision: what a layer adds to the identity is small, and the identity is subtracted again later.
    return [
        (layer.detach() * gradient).clamp(min=0).mean(dim=1).double()
        for layer, gradient in zip(layers, gradients, strict=True)
    ]


def _self_relevance(layers: list[Tensor]) -> Tensor:
    """Return R (B, N, N) after R += A R per layer, from the identity: equation 6.

    A layer with fewer rows has those of the first tokens.
    """
    relevance = _identity(layers[0], layers[0].shape[-1])
    for layer in layers:
        relevance[:, : layer.shape[1]] += layer @ relevance
    return relevance


def _joint_relevance(images: Tensor, joint: list[Tensor]) -> Tensor:
    """Return relevance (B, T, N) of image tokens for text tokens, by equation 6 over image and text as one sequence.

    The paper's models have no tower before their joint layers. Here it starts from the tower's relevance of image
    tokens, normalised as for cross-attention: else each token's relevance to itself would dominate the rest.
    """
    length = images.shape[-1]
    relevance = _identity(joint[0], joint[0].shape[-1])
    relevance[:, :length, :length] = _normalised(images)
    for layer in joint:
        relevance[:, -layer.shape[1] :] += layer @ relevance
    return relevance[:, length:, :length]


def _cross_relevance(images: Tensor, text: list[Tensor], cross: list[Tensor]) -> Tensor:
    """Return relevance (B, T, N) of image tokens for text tokens: equations 6 and 7 for text, 10 for cross-attention.

    Equation 11 adds nothing here: image tokens never attend to text.
    """
    text_relevance = _identity(text[0], text[0].shape[-1])  # (B, T, T)
    rows = images.new_zeros(len(images), text_relevance.shape[-1], images.shape[-1])
    images = _normalised(images)
    for self_attention, cross_attention in zip(text, cross, strict=True):
        queries = slice(-self_attention.shape[1], None)
        rows[:, queries] += self_attention @ rows
        text_relevance[:, queries] += self_attention @ text_relevance
        rows += _normalised(text_relevance)[:, queries].transpose(1, 2) @ cross_attention @ images
    return rows


def _normalised(relevance: Tensor) -> Tensor:
    """Scale the rows of R minus identity to sum to one, empty ones excepted, and add the identity: equations 8, 9."""
    identity = torch.eye(relevance.shape[-1], dtype=relevance.dtype, device=relevance.device)
    added = relevance - identity
    total = added.sum(dim=-1, keepdim=True)
    return added / total.where(total > 0, 1) + identity


def _identity(like: Tensor, size: int) -> Tensor:
    return torch.eye(size, dtype=like.dtype, device=like.device).repeat(len(like), 1, 1)

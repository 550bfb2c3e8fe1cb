"""Explanation maps of a picture's own size, from attention or from perturbed pixels.

Models see a picture resized to a square, and the grid of patches covers the picture, or its centre, just as it covers
the square: maps are resized back the same way, bilinearly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isqrt
from typing import Final, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from vlm_core.attention.recording import (
    AttentionLayer,
    LayerKind,
    Recording,
    batches,
    category_scores,
    record,
    record_batches,
    record_text,
)
from vlm_core.attention.relevance import gradient_relevance, raw_relevance
from vlm_core.errors import UserError
from vlm_core.models.categoriser import VisionLanguageCategoriser
from vlm_core.models.heads import generate_ids
from vlm_core.models.positions import patch_size
from vlm_core.models.stages import Captioner
from vlm_core.pixels.views import DEFAULT, Preprocessing, centred

# The attention weights; those weighted by gradients; and two methods that do not use attention (Captum's).
Method = Literal["raw", "gradient", "saliency", "occlusion"]
METHODS: tuple[Method, ...] = get_args(Method)
_OCCLUSIONS: Final = 14  # per side, of a model without patches


@dataclass(frozen=True)
class LayerMaps:
    """The maps of a layer's heads: from the class token or all patches, or from the text tokens that are scored."""

    name: str
    kind: LayerKind
    maps: NDArray[np.float32]  # (B, heads, H, W), each sums to one
    of_patches: bool = False  # the mean of all patches' rows, in a tower that does not read its class token


@dataclass(frozen=True)
class WordMap:
    """One generated word, and the map of its relevance."""

    word: str
    map: NDArray[np.float32]  # (H, W), sums to one


def explain(
    model: VisionLanguageCategoriser,
    pictures: NDArray[np.uint8],
    *,
    method: Method,
    target: int | NDArray[np.int64] | None = None,
) -> NDArray[np.float32]:
    """Return maps (B, H, W) of the evidence for a category in pictures (B, H, W, 3); each sums to one.

    `target` is one category, one per picture (B,), or None for the predicted one; `raw` maps do not depend on it,
    unless categories are sentences. A picture without any evidence for its category has a uniform map.
    """
    size = pictures.shape[1:3]
    maps = [
        _resize(_relevance(model, pixels, targets, method), size, model.description.preprocessing)
        for pixels, targets in batches(model, pictures, target)
    ]
    return np.concatenate(maps) if maps else np.empty(pictures.shape[:3], np.float32)


def layer_maps(
    model: VisionLanguageCategoriser, pictures: NDArray[np.uint8], target: int | NDArray[np.int64] | None = None
) -> tuple[LayerMaps, ...]:
    """Return the maps of every layer and head that attends to image tokens, in order.

    Vision layers give the class token's row, or the mean of all patches' rows in a tower that pools them; layers from
    text to the picture give the mean over the text tokens that are scored. A convolutional network has none.
    """
    if not model.adapter.has_attention:
        return ()
    size, preprocessing = pictures.shape[1:3], model.description.preprocessing
    parts = [_layer_maps(recording, size, preprocessing) for recording in record_batches(model, pictures, target)]
    return tuple(
        LayerMaps(first.name, first.kind, np.concatenate([layer.maps for layer in (first, *rest)]), first.of_patches)
        for first, *rest in zip(*parts, strict=True)
    )


def _layer_maps(recording: Recording, size: tuple[int, ...], preprocessing: Preprocessing) -> list[LayerMaps]:
    return [
        LayerMaps(
            layer.name,
            layer.kind,
            _resize(_rows(recording, layer), size, preprocessing),
            of_patches=layer.kind == "vision" and recording.pools_patches,
        )
        for layer in recording.layers
        if layer.kind != "text"
    ]


def explain_words(
    model: VisionLanguageCategoriser, pictures: NDArray[np.uint8], *, method: Literal["raw", "gradient"]
) -> list[tuple[WordMap, ...]]:
    """Return the words that the model generates for each picture, with their maps.

    Raises UserError if the model generates no text.
    """
    if not model.writes_text:
        raise UserError("this model generates no text: choose a run of BLIP or GIT with objective=generate.")
    return [
        words
        for pixels, _ in batches(model, pictures, target=0)  # arbitrary: the words are explained, not a category
        for words in _word_maps(model, pixels, pictures.shape[1:3], method)
    ]


@dataclass(frozen=True)
class _Word:
    text: str
    tokens: list[int]  # positions in the generated text


def _words(captioner: Captioner, ids: Sequence[int]) -> list[_Word]:
    """Join generated tokens into words: WordPiece marks continuations with ##. Special tokens are skipped."""
    tokenizer = captioner.tokenizer
    words: list[_Word] = []
    for position, (number, piece) in enumerate(zip(ids, tokenizer.convert_ids_to_tokens(list(ids)), strict=True)):
        if number in tokenizer.all_special_ids:
            continue
        if piece.startswith("##") and words:
            words[-1] = _Word(words[-1].text + piece[2:], [*words[-1].tokens, position])
        else:
            words.append(_Word(piece, [position]))
    return words


def _word_maps(
    model: VisionLanguageCategoriser, pixels: Tensor, size: tuple[int, ...], method: Literal["raw", "gradient"]
) -> list[tuple[WordMap, ...]]:
    """Return the words of each picture with their maps, from one pass: the n-th words of all pictures together."""
    captioner = model.adapter
    assert isinstance(captioner, Captioner)
    ids = generate_ids(captioner, *model.run((pixels,)))
    words = [_words(captioner, row) for row in ids]
    longest = max(map(len, words))
    if not longest:
        return [()] * len(ids)
    recording = record_text(model, pixels, ids)
    relevance = gradient_relevance if method == "gradient" else raw_relevance
    maps = []
    for index in range(longest):
        weights = torch.zeros_like(recording.score_mask)
        for row, written in enumerate(words):
            weights[row, written[index].tokens if index < len(written) else []] = 1
        maps.append(_resize(relevance(recording, weights), size, model.description.preprocessing))
    return [
        tuple(WordMap(word.text, maps[index][row]) for index, word in enumerate(written))
        for row, written in enumerate(words)
    ]


def _relevance(model: VisionLanguageCategoriser, pixels: Tensor, targets: Tensor, method: Method) -> Tensor:
    """Return the relevance of patches (B, N - 1), or of pixels (B, S * S)."""
    if method == "raw" or method == "gradient":
        recording = record(model, pixels, targets)
        return (raw_relevance if method == "raw" else gradient_relevance)(recording, recording.score_mask)
    return _saliency(model, pixels, targets) if method == "saliency" else _occlusion(model, pixels, targets)


def _saliency(model: VisionLanguageCategoriser, pixels: Tensor, targets: Tensor) -> Tensor:
    """Return the gradient's magnitude at each pixel, summed over colours (Simonyan et al. 2013, arXiv 1312.6034)."""
    from captum.attr import Saliency

    saliency = Saliency(lambda pixels: category_scores(model, pixels, targets))
    gradients: Tensor = saliency.attribute(pixels.clone().requires_grad_())
    return gradients.detach().sum(dim=1).flatten(1)


def _occlusion(model: VisionLanguageCategoriser, pixels: Tensor, targets: Tensor) -> Tensor:
    """Return how far the score falls when a patch becomes the mean colour (Zeiler & Fergus 2014, arXiv 1311.2901)."""
    from captum.attr import Occlusion

    patch = patch_size(model.hf)
    patch = patch if patch > 1 else model.image_size // _OCCLUSIONS
    occlusion = Occlusion(lambda pixels: category_scores(model, pixels, targets))
    with torch.no_grad():
        drops: Tensor = occlusion.attribute(pixels, (3, patch, patch), strides=(3, patch, patch), baselines=0)
    return drops.mean(dim=1).clamp(min=0).flatten(1)


def _rows(recording: Recording, layer: AttentionLayer) -> Tensor:
    """Return the attention of a layer's heads to patches (B, heads, P)."""
    weights, mask, prefix = layer.probabilities.detach(), recording.score_mask, recording.prefix_tokens
    if layer.kind == "vision":
        return weights[:, :, prefix:, prefix:].mean(dim=2) if recording.pools_patches else weights[:, :, 0, prefix:]
    return torch.einsum("bk,bhkn->bhn", mask, weights[:, :, -mask.shape[1] :, prefix : recording.image_tokens])


def _resize(relevance: Tensor, size: tuple[int, ...], preprocessing: Preprocessing = DEFAULT) -> NDArray[np.float32]:
    """Return maps (..., H, W) that sum to one, from square grids (..., g * g); zero where the model sees nothing."""
    side = isqrt(relevance.shape[-1])
    grids = relevance.detach().reshape(-1, 1, side, side)
    height, width = size
    tall, wide = preprocessing.extent(height, width)
    covered = (round(height * tall), round(width * wide))
    maps = interpolate(grids, size=covered, mode="bilinear", antialias=True, align_corners=False)
    maps = centred(maps, (height, width), "constant")
    maps = maps.clamp(min=0)
    total = maps.sum(dim=(2, 3), keepdim=True)
    uniform = torch.full_like(maps, 1 / maps[0, 0].numel())
    normalised = torch.where(total > 0, maps / total.where(total > 0, 1), uniform)
    return normalised.reshape(*relevance.shape[:-1], *size).float().cpu().numpy()

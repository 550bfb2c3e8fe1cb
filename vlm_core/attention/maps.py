"""Where in a picture a model looked: maps of the picture's own size, from attention or from perturbed pixels.

Models see a picture stretched to a square, so a grid of patches lies over the picture just as it lies over the square:
maps are stretched back the same way, bilinearly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isqrt
from typing import Literal, get_args

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
from vlm_core.models.stages import Captioner

# The mechanism's own attention; that weighted by gradients; and two that know nothing of attention (Captum's).
Method = Literal["raw", "gradient", "saliency", "occlusion"]
METHODS: tuple[Method, ...] = get_args(Method)


@dataclass(frozen=True)
class LayerMaps:
    """What each head of a layer attends to: from the class token, or from the text tokens that answer."""

    name: str
    kind: LayerKind
    maps: NDArray[np.float32]  # (B, heads, H, W), each sums to one


@dataclass(frozen=True)
class WordMap:
    """One generated word, and what it was written from."""

    word: str
    map: NDArray[np.float32]  # (H, W), sums to one


def explain(
    model: VisionLanguageCategoriser,
    pictures: NDArray[np.uint8],
    *,
    method: Method,
    target: int | NDArray[np.int64] | None = None,
) -> NDArray[np.float32]:
    """Maps (B, H, W) over pictures (B, H, W, 3): what spoke for a category, each a share of the whole that sums to one.

    `target` is one category, one a picture (B,), or None for what the model predicts; `raw` maps do not depend on it,
    save where a category is a sentence. A picture in which nothing speaks for its category has an even map.
    """
    size = pictures.shape[1:3]
    maps = [
        _stretch(_relevance(model, pixels, targets, method), size)
        for pixels, targets in batches(model, pictures, target)
    ]
    return np.concatenate(maps) if maps else np.empty(pictures.shape[:3], np.float32)


def layer_maps(
    model: VisionLanguageCategoriser, pictures: NDArray[np.uint8], target: int | NDArray[np.int64] | None = None
) -> tuple[LayerMaps, ...]:
    """The attention of every layer and head that reads image tokens, in the chain's order.

    Of vision layers the class token's row, which every tower has; of those that read the picture for text the mean over
    the text tokens that answer.
    """
    parts = [_layer_maps(recording, pictures.shape[1:3]) for recording in record_batches(model, pictures, target)]
    return tuple(
        LayerMaps(first.name, first.kind, np.concatenate([layer.maps for layer in (first, *rest)]))
        for first, *rest in zip(*parts, strict=True)
    )


def _layer_maps(recording: Recording, size: tuple[int, ...]) -> list[LayerMaps]:
    return [
        LayerMaps(layer.name, layer.kind, _stretch(_rows(recording, layer), size))
        for layer in recording.layers
        if layer.kind != "text"
    ]


def explain_words(
    model: VisionLanguageCategoriser, pictures: NDArray[np.uint8], *, method: Literal["raw", "gradient"]
) -> list[tuple[WordMap, ...]]:
    """The words that the model writes about each picture, with the map of each. Raises UserError if it writes none."""
    if not model.writes_text:
        raise UserError("this model writes no text: give a run of BLIP or GIT with objective=generate.")
    return [
        words
        for pixels, _ in batches(model, pictures, target=0)  # whichever: the words are what is explained
        for words in _word_maps(model, pixels, pictures.shape[1:3], method)
    ]


@dataclass(frozen=True)
class _Word:
    text: str
    tokens: list[int]  # their places in the written text


def _words(captioner: Captioner, ids: Sequence[int]) -> list[_Word]:
    """The words of written tokens: WordPiece marks those that go on with ##. Special tokens are none."""
    tokenizer = captioner.tokenizer
    words: list[_Word] = []
    for place, (number, piece) in enumerate(zip(ids, tokenizer.convert_ids_to_tokens(list(ids)), strict=True)):
        if number in tokenizer.all_special_ids:
            continue
        if piece.startswith("##") and words:
            words[-1] = _Word(words[-1].text + piece[2:], [*words[-1].tokens, place])
        else:
            words.append(_Word(piece, [place]))
    return words


def _word_maps(
    model: VisionLanguageCategoriser, pixels: Tensor, size: tuple[int, ...], method: Literal["raw", "gradient"]
) -> list[tuple[WordMap, ...]]:
    """The words of each picture with their maps, from one pass: the n-th words of all pictures in one go."""
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
    for place in range(longest):
        weights = torch.zeros_like(recording.asked)
        for row, found in enumerate(words):
            weights[row, found[place].tokens if place < len(found) else []] = 1
        maps.append(_stretch(relevance(recording, weights), size))
    return [
        tuple(WordMap(word.text, maps[place][row]) for place, word in enumerate(found))
        for row, found in enumerate(words)
    ]


def _relevance(model: VisionLanguageCategoriser, pixels: Tensor, targets: Tensor, method: Method) -> Tensor:
    """Of patches (B, N - 1), or of pixels (B, S * S)."""
    if method == "raw" or method == "gradient":
        recording = record(model, pixels, targets)
        return (raw_relevance if method == "raw" else gradient_relevance)(recording, recording.asked)
    return _saliency(model, pixels, targets) if method == "saliency" else _occlusion(model, pixels, targets)


def _saliency(model: VisionLanguageCategoriser, pixels: Tensor, targets: Tensor) -> Tensor:
    """The size of the gradient at each pixel, summed over colours. Simonyan et al. 2013, arXiv 1312.6034."""
    from captum.attr import Saliency

    saliency = Saliency(lambda shown: category_scores(model, shown, targets))
    found: Tensor = saliency.attribute(pixels.clone().requires_grad_())
    return found.detach().sum(dim=1).flatten(1)


def _occlusion(model: VisionLanguageCategoriser, pixels: Tensor, targets: Tensor) -> Tensor:
    """How far the score falls when a patch gets the training pictures' mean colour. Zeiler & Fergus 2014, 1311.2901."""
    from captum.attr import Occlusion

    patch = model.hf.config.vision_config.patch_size
    occlusion = Occlusion(lambda shown: category_scores(model, shown, targets))
    with torch.no_grad():
        found: Tensor = occlusion.attribute(pixels, (3, patch, patch), strides=(3, patch, patch), baselines=0)
    return found.mean(dim=1).clamp(min=0).flatten(1)


def _rows(recording: Recording, layer: AttentionLayer) -> Tensor:
    """What a layer's heads attend to among patches (B, heads, N - 1)."""
    found, asked = layer.probabilities.detach(), recording.asked
    if layer.kind == "vision":
        return found[:, :, 0, 1:]
    return torch.einsum("bk,bhkn->bhn", asked, found[:, :, -asked.shape[1] :, 1 : recording.image_tokens])


def _stretch(relevance: Tensor, size: tuple[int, ...]) -> NDArray[np.float32]:
    """Maps (..., H, W) that sum to one, from square grids (..., g * g)."""
    side = isqrt(relevance.shape[-1])
    grids = relevance.detach().reshape(-1, 1, side, side)
    maps = interpolate(grids, size=size, mode="bilinear", antialias=True, align_corners=False)
    maps = maps.clamp(min=0)
    total = maps.sum(dim=(2, 3), keepdim=True)
    even = torch.full_like(maps, 1 / maps[0, 0].numel())
    shared = torch.where(total > 0, maps / total.where(total > 0, 1), even)
    return shared.reshape(*relevance.shape[:-1], *size).float().cpu().numpy()

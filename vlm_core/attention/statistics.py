"""What each layer's attention is like: how sharp, how far it reaches, how much of it lies on the product."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import combinations
from math import isqrt, log
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vlm_core.pixels.corruptions import studio_background

if TYPE_CHECKING:
    from vlm_core.attention.recording import AttentionLayer
    from vlm_core.models.categoriser import VisionLanguageCategoriser

AttentionWeights = NDArray[np.float32]  # (heads, R, N): what each of R tokens takes from each of N, which sums to one


@dataclass(frozen=True)
class LayerStatistics:
    """Means over pictures, heads and the tokens that ask.

    Those are no more than the answer depends on: one alone in a last block of which one is read.
    """

    name: str  # the layer's
    kind: str  # vision, text, cross, "joint, image" or "joint, text": who asks, and whom
    tokens: int  # that ask
    entropy: float  # nats
    relative_entropy: float | None  # of the entropy of even attention; None where each can ask one token alone
    distance_patches: float | None  # from the patch that asks, in patches; None where no patch does
    distance_share: float | None  # the same as a share of the picture's side
    class_share: float | None  # of the attention, what goes to the class token, of which no map shows anything
    product_share: float | None  # of the attention to patches, what lies on the product; None where text asks text
    product_area: float  # the product's share of the picture: what even attention would give it
    head_diversity: float | None  # 0 where all heads are alike, 1 where none shares a token; None for one head


def attention_statistics(model: VisionLanguageCategoriser, pictures: NDArray[np.uint8]) -> tuple[LayerStatistics, ...]:
    """The figures of every layer in the pass that answers for the predicted categories of pictures (B, H, W, 3).

    GIT's joint layers have two entries: its image tokens see one another alone, its text sees both. The product is what
    is no studio background (`studio_background`), by the share of each patch that it covers.
    """
    from vlm_core.attention.recording import record_batches

    found: list[list[LayerStatistics]] = []
    for recording in record_batches(model, pictures):
        images = recording.image_tokens
        layers = [part for layer in recording.layers for part in _parts(layer, images)]
        for row in range(len(recording.scores)):
            product = product_shares(pictures[len(found)], isqrt(images - 1))
            found.append([describe_layer(name, kind, part[row], images, product) for name, kind, part in layers])
    return tuple(_mean(layers) for layers in zip(*found, strict=True))


def product_shares(picture: NDArray[np.uint8], side: int) -> NDArray[np.float64]:
    """The share (side * side,) of each patch of a picture (H, W, 3) that shows the product."""
    from torch import from_numpy
    from torch.nn.functional import interpolate

    product = from_numpy(~studio_background(picture)).double()[None, None]
    shares: NDArray[np.float64] = interpolate(product, size=(side, side), mode="area").numpy()
    return shares.ravel()


def describe_layer(
    name: str, kind: str, attention: AttentionWeights, images: int, product: NDArray[np.float64]
) -> LayerStatistics:
    """The figures of one layer on one picture of `images` image tokens; `product` (g * g,) are the patches' shares."""
    entropy, relative = _entropies(attention)
    patches = attention[:, :, 1:images]
    asked_by_patches = kind in ("vision", "joint, image") and attention.shape[1] == images
    side = isqrt(images - 1)
    distance = mean_distance(patches[:, 1:]) if asked_by_patches else None
    return LayerStatistics(
        name=name,
        kind=kind,
        tokens=attention.shape[1],
        entropy=entropy,
        relative_entropy=relative,
        distance_patches=distance,
        distance_share=None if distance is None else distance / side,
        class_share=None if kind == "text" else float(attention[:, :, 0].mean()),
        product_share=None if kind == "text" else float((_shared(patches) @ product).mean()),
        product_area=float(product.mean()),
        head_diversity=head_diversity(attention),
    )


def mean_distance(patches: AttentionWeights) -> float:
    """How many patches lie between the one that asks and what it attends to, on average; other tokens left out.

    `patches` (heads, g * g, g * g), row by row. Dosovitskiy et al. 2021, arXiv 2010.11929, appendix D.7.
    """
    side = isqrt(patches.shape[-1])
    places = np.stack(np.divmod(np.arange(side**2), side), axis=1).astype(float)  # (g * g, 2)
    apart = np.linalg.norm(places[:, None] - places, axis=2)
    return float((_shared(patches) * apart).sum(axis=-1).mean())


def head_diversity(attention: AttentionWeights) -> float | None:
    """The Jensen-Shannon divergence of two heads' attention from one token, over log 2: mean over pairs and tokens.

    Lin 1991, https://doi.org/10.1109/18.61115. None for one head.
    """
    from scipy.special import entr

    own = entr(attention).sum(axis=-1)  # (heads, R)
    pairs = [
        entr((attention[a] + attention[b]) / 2).sum(axis=-1) - (own[a] + own[b]) / 2
        for a, b in combinations(range(len(attention)), 2)
    ]
    return float(np.mean(pairs) / log(2)) if pairs else None


def _entropies(attention: AttentionWeights) -> tuple[float, float | None]:
    """Shannon's entropy in nats, and as a share of the log of how many tokens a mask leaves: means over rows."""
    from scipy.special import entr

    entropy = entr(attention).sum(axis=-1)  # (heads, R)
    allowed = (attention > 0).sum(axis=-1)
    relative = entropy[allowed > 1] / np.log(allowed[allowed > 1])
    return float(entropy.mean()), float(relative.mean()) if relative.size else None


def _shared(attention: AttentionWeights) -> NDArray[np.float64]:
    """Rows that sum to one; even ones where there was nothing."""
    total = attention.sum(axis=-1, keepdims=True, dtype=np.float64)
    even = np.full(attention.shape, 1 / attention.shape[-1])
    shared: NDArray[np.float64] = np.divide(attention, total, out=even, where=total > 0)
    return shared


def _parts(layer: AttentionLayer, images: int) -> Iterator[tuple[str, str, AttentionWeights]]:
    """Name, kind and attention (B, heads, R, N) of a layer, a joint one by who asks."""
    attention = layer.probabilities.detach().cpu().numpy()
    if layer.kind != "joint":
        yield layer.name, layer.kind, attention
        return
    rows, tokens = attention.shape[2:]
    if rows == tokens:
        yield layer.name, "joint, image", attention[:, :, :images]
        attention = attention[:, :, images:]
    yield layer.name, "joint, text", attention


def _mean(layers: Sequence[LayerStatistics]) -> LayerStatistics:
    """Of one layer over all pictures; a figure is None where it is None for one."""
    means: dict[str, Any] = {}
    for field in fields(LayerStatistics):
        values = [getattr(layer, field.name) for layer in layers]
        if isinstance(values[0], float):
            means[field.name] = float(np.mean(values))
    return replace(layers[0], **means)

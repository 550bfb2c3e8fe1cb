"""Statistics of each layer's attention: entropy, distance, and the share of it on the product."""

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
    from vlm_core.pixels.views import Preprocessing

AttentionWeights = NDArray[np.float32]  # (heads, Q, N): of Q queries to N tokens; rows sum to one


@dataclass(frozen=True)
class LayerStatistics:
    """Means over pictures, heads and queries.

    Queries are those that the prediction depends on: a single one in a last block that computes only that. Where a
    tower pools its patches, its class token, if it has one, is counted among them.
    """

    name: str  # the layer's
    kind: str  # vision, text, cross, pool, "joint, image" or "joint, text"
    tokens: int  # queries
    entropy: float  # nats
    relative_entropy: float | None  # share of uniform attention's; None where no query has more than one token
    distance_patches: float | None  # from the querying patch, in patches; None where queries are no patches
    distance_share: float | None  # the same as a share of the picture's side
    class_share: float | None  # of the attention that goes to the class token, if any, which maps do not show
    product_share: float | None  # of the attention to patches that is on the product; None for text to text
    product_area: float  # the product's share of the picture: its share under uniform attention
    head_diversity: float | None  # 0 where all heads are equal, 1 where none share a token; None for one head


def attention_statistics(model: VisionLanguageCategoriser, pictures: NDArray[np.uint8]) -> tuple[LayerStatistics, ...]:
    """Return the statistics of every layer when scoring the predicted categories of pictures (B, H, W, 3).

    GIT's joint layers have two entries: image tokens attend to image tokens, text attends to both. The product is
    everything but the studio background (`studio_background`), by the share of each patch that it covers.
    """
    from vlm_core.attention.recording import record_batches

    statistics: list[list[LayerStatistics]] = []
    for recording in record_batches(model, pictures):
        images, prefix = recording.image_tokens, recording.prefix_tokens
        layers = [part for layer in recording.layers for part in _parts(layer, images)]
        for row in range(len(recording.scores)):
            picture, side = pictures[len(statistics)], isqrt(images - prefix)
            product = product_shares(picture, side, model.description.preprocessing)
            statistics.append(
                [describe_layer(name, kind, part[row], images, product, prefix) for name, kind, part in layers]
            )
    return tuple(_mean(layers) for layers in zip(*statistics, strict=True))


def product_shares(
    picture: NDArray[np.uint8], side: int, preprocessing: Preprocessing | None = None
) -> NDArray[np.float64]:
    """Return the share (side * side,) of each patch of a picture (H, W, 3) that shows the product."""
    from torch import from_numpy
    from torch.nn.functional import interpolate

    from vlm_core.pixels.views import DEFAULT, centred

    product = from_numpy(~studio_background(picture)).double()[None, None]
    tall, wide = (preprocessing or DEFAULT).extent(*picture.shape[:2])
    product = centred(product, (round(picture.shape[0] * tall), round(picture.shape[1] * wide)), "constant")
    shares: NDArray[np.float64] = interpolate(product, size=(side, side), mode="area").numpy()
    return shares.ravel()


def describe_layer(
    name: str, kind: str, attention: AttentionWeights, images: int, product: NDArray[np.float64], prefix: int = 1
) -> LayerStatistics:
    """Return one layer's statistics on one picture with `images` image tokens and patches' product shares (g * g,).

    The first `prefix` image tokens are no patches: the class token, and registers.
    """
    entropy, relative = _entropies(attention)
    patches = attention[:, :, prefix:images]
    from_patches = kind in ("vision", "joint, image") and attention.shape[1] == images
    side = isqrt(images - prefix)
    distance = mean_distance(patches[:, prefix:]) if from_patches else None
    return LayerStatistics(
        name=name,
        kind=kind,
        tokens=attention.shape[1],
        entropy=entropy,
        relative_entropy=relative,
        distance_patches=distance,
        distance_share=None if distance is None else distance / side,
        class_share=None if kind == "text" or not prefix else float(attention[:, :, 0].mean()),
        product_share=None if kind == "text" else float((_normalised(patches) @ product).mean()),
        product_area=float(product.mean()),
        head_diversity=head_diversity(attention),
    )


def mean_distance(patches: AttentionWeights) -> float:
    """Return the mean distance in patches between a querying patch and what it attends to, among patches alone.

    `patches` (heads, g * g, g * g), row by row. Dosovitskiy et al. 2021, arXiv 2010.11929, appendix D.7.
    """
    side = isqrt(patches.shape[-1])
    positions = np.stack(np.divmod(np.arange(side**2), side), axis=1).astype(float)  # (g * g, 2)
    distances = np.linalg.norm(positions[:, None] - positions, axis=2)
    return float((_normalised(patches) * distances).sum(axis=-1).mean())


def head_diversity(attention: AttentionWeights) -> float | None:
    """Return the Jensen-Shannon divergence between two heads over log 2, mean over pairs of heads and queries.

    Lin 1991, https://doi.org/10.1109/18.61115. None for one head.
    """
    from scipy.special import entr

    own = entr(attention).sum(axis=-1)  # (heads, Q)
    pairs = [
        entr((attention[a] + attention[b]) / 2).sum(axis=-1) - (own[a] + own[b]) / 2
        for a, b in combinations(range(len(attention)), 2)
    ]
    return float(np.mean(pairs) / log(2)) if pairs else None


def _entropies(attention: AttentionWeights) -> tuple[float, float | None]:
    """Return the mean Shannon entropy in nats, and as a share of the log of the number of unmasked tokens."""
    from scipy.special import entr

    entropy = entr(attention).sum(axis=-1)  # (heads, Q)
    allowed = (attention > 0).sum(axis=-1)
    relative = entropy[allowed > 1] / np.log(allowed[allowed > 1])
    return float(entropy.mean()), float(relative.mean()) if relative.size else None


def _normalised(attention: AttentionWeights) -> NDArray[np.float64]:
    """Return rows that sum to one, uniform ones for rows of zeros."""
    total = attention.sum(axis=-1, keepdims=True, dtype=np.float64)
    uniform = np.full(attention.shape, 1 / attention.shape[-1])
    normalised: NDArray[np.float64] = np.divide(attention, total, out=uniform, where=total > 0)
    return normalised


def _parts(layer: AttentionLayer, images: int) -> Iterator[tuple[str, str, AttentionWeights]]:
    """Yield name, kind and attention weights (B, heads, Q, N) of a layer, split by query for a joint one."""
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
    """Return one layer's means over all pictures; None stays None."""
    means: dict[str, Any] = {}
    for field in fields(LayerStatistics):
        values = [getattr(layer, field.name) for layer in layers]
        if isinstance(values[0], float):
            means[field.name] = float(np.mean(values))
    return replace(layers[0], **means)

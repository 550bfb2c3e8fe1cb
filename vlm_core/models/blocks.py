"""Transformer blocks over Hugging Face's own modules, able to compute no more tokens than are read.

Where only one token of a block's output is read, that token alone is a query and goes through the MLP; keys and values
still come from all tokens, so nothing changes but the cost. Attention is PyTorch's fused one, which two of the three
families' own code cannot use. Where few text tokens read many image tokens, keys and values are never made.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

from torch import Tensor, einsum, nn
from torch.nn.functional import linear, scaled_dot_product_attention

from vlm_core.models.contract import Stage

ALL = slice(None)
FIRST = slice(0, 1)
LAST = slice(-1, None)
# What mixes values: PyTorch's fused operation keeps no probabilities; `vlm_core.attention` puts there one that does.
OPERATION: ContextVar[Callable[..., Tensor]] = ContextVar("OPERATION", default=scaled_dot_product_attention)


def vision_stages(blocks: Any, read: slice = ALL) -> list[Stage]:
    """A vision tower's blocks as stages; of the last one's output only the tokens `read` are computed."""

    def stage(number: int, block: Any) -> Stage:
        wanted = read if number == len(blocks) else ALL
        return Stage(
            f"vision.block.{number}", "vision", (block,), lambda state: (vision_block(block, state[0], wanted),)
        )

    return [stage(number, block) for number, block in enumerate(blocks, start=1)]


def vision_block(block: Any, tokens: Tensor, read: slice = ALL) -> Tensor:
    """Tokens `read` (B, R, D) after a pre-norm block of a family's vision tower over `tokens` (B, N, D).

    Dropout of attention, which is 0 in the published towers, is not applied.
    """
    attention = block.self_attn
    normed = block.layer_norm1(tokens)
    if hasattr(attention, "qkv"):  # BLIP's three projections are one layer
        query, key, value = _thirds(attention.qkv, normed, read)
        output = attention.projection
    else:
        query, key, value = attention.q_proj(normed[:, read]), attention.k_proj(normed), attention.v_proj(normed)
        output = attention.out_proj
    kept = tokens[:, read] + output(attend(query, key, value, attention.num_heads))
    mixed: Tensor = kept + block.mlp(block.layer_norm2(kept))
    return mixed


def text_block(block: Any, text: Tensor, mask: Tensor, images: Tensor | None = None, read: slice = ALL) -> Tensor:
    """Tokens `read` (B, R, D) after a post-norm block of BLIP's decoder or GIT's joint encoder over `text` (B, T, D).

    `mask` (1, 1, T, T) is added to the scores. With `images` (B, N, D), the text attends to them as well.
    """
    mixed = _mix(block.attention, text[:, read], text, mask[:, :, read])
    if images is not None:
        cross = _mix_few if _are_few(block.crossattention.self, mixed, images) else _mix
        mixed = cross(block.crossattention, mixed, images)
    return block.output(block.intermediate(mixed), mixed)  # type: ignore[no-any-return]


def _mix(attention: Any, reading: Tensor, read: Tensor, mask: Tensor | None = None) -> Tensor:
    """`reading` (B, R, D) after BERT's attention to `read` (B, N, D), residual and norm included."""
    layers = attention.self
    mixed = attend(
        layers.query(reading),
        layers.key(read),
        layers.value(read),
        layers.num_attention_heads,
        mask,
        layers.dropout.p if layers.training else 0.0,
    )
    return attention.output(mixed, reading)  # type: ignore[no-any-return]


def _are_few(layers: Any, reading: Tensor, read: Tensor) -> bool:
    """Whether `_mix_few` may stand for `_mix`, and does at most half of its work."""
    projections = layers.key, layers.value  # with adapters they have no weight of their own
    plain = all(type(layer) is nn.Linear for layer in projections) and not (layers.training and layers.dropout.p)
    width, few = reading.shape[2], reading.shape[1]
    work = few / read.shape[1] + few * layers.num_attention_heads / width
    return plain and work <= 0.5 and OPERATION.get() is scaled_dot_product_attention


def _mix_few(attention: Any, reading: Tensor, read: Tensor) -> Tensor:
    """What `_mix` gives for few `reading` (B, R, D) and many `read` (B, N, D): products in another order.

    A query's product with a projected key is that of the query, projected back, with the token itself; and a mean of
    projected values is the projected mean of tokens. So R tokens a head are projected, where `_mix` projects N.
    """
    layers = attention.self
    heads = layers.num_attention_heads
    query = layers.query(reading).unflatten(2, (heads, -1))  # (B, R, H, E), E = D / H
    key, value = (layer.weight.unflatten(0, (heads, -1)) for layer in (layers.key, layers.value))  # each (H, E, D)
    back = einsum("brhe,hed->bhrd", query, key)
    same = einsum("brhe,he->bhr", query, layers.key.bias.view(heads, -1))  # what a query's every score has
    scores = (einsum("bhrd,bnd->bhrn", back, read) + same[..., None]) / query.shape[-1] ** 0.5
    means = einsum("bhrn,bnd->bhrd", scores.softmax(dim=-1), read)
    mixed = einsum("bhrd,hed->brhe", means, value).flatten(2) + layers.value.bias
    return attention.output(mixed, reading)  # type: ignore[no-any-return]


def attend(
    query: Tensor, key: Tensor, value: Tensor, heads: int, mask: Tensor | None = None, dropout: float = 0.0
) -> Tensor:
    """Multi-head attention (B, R, D) of projected queries (B, R, D) to projected keys and values (B, N, D)."""
    batch, _, width = query.shape
    query, key, value = (  # each (B, heads, tokens, D / heads)
        part.reshape(batch, -1, heads, width // heads).transpose(1, 2) for part in (query, key, value)
    )
    mixed = OPERATION.get()(query, key, value, attn_mask=mask, dropout_p=dropout)
    return mixed.transpose(1, 2).flatten(2)


def _thirds(layer: Any, tokens: Tensor, read: slice) -> tuple[Tensor, Tensor, Tensor]:
    """Queries of the tokens `read`, keys and values of all, by one layer that projects to all three."""
    if read == ALL or not isinstance(layer, nn.Linear):  # a layer with adapters has no weight of its own to divide
        query, key, value = layer(tokens).chunk(3, dim=-1)
        return query[:, read], key, value
    width = layer.out_features // 3
    query = linear(tokens[:, read], layer.weight[:width], layer.bias[:width])
    key, value = linear(tokens, layer.weight[width:], layer.bias[width:]).chunk(2, dim=-1)
    return query, key, value

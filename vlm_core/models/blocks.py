"""Transformer blocks over Hugging Face's own modules, able to compute no more tokens than are read.

Where only one token of a block's output is read, that token alone is a query and goes through the MLP; it still reads
all tokens, so nothing changes but the cost. Attention is PyTorch's fused one, which two of the three
families' own code cannot use. Where few tokens read many, keys and values of the many are never made.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

from torch import Tensor, einsum, nn
from torch.nn import functional
from torch.nn.functional import linear, scaled_dot_product_attention

from vlm_core.models.stages import Stage

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
        mixed, output = attend(*_thirds(attention.qkv, normed, read), attention.num_heads), attention.projection
    else:
        query, output = attention.q_proj(normed[:, read]), attention.out_proj
        mixed = _attend_to(query, normed, attention.k_proj, attention.v_proj, attention.num_heads)
    kept = tokens[:, read] + output(mixed)
    return kept + block.mlp(block.layer_norm2(kept))  # type: ignore[no-any-return]


def text_block(block: Any, text: Tensor, mask: Tensor, images: Tensor | None = None, read: slice = ALL) -> Tensor:
    """Tokens `read` (B, R, D) after a post-norm block of BLIP's decoder or GIT's joint encoder over `text` (B, T, D).

    `mask` (1, 1, T, T) is added to the scores. With `images` (B, N, D), the text attends to them as well.
    """
    mixed = _mix(block.attention, text[:, read], text, mask[:, :, read])
    if images is not None:
        mixed = _mix(block.crossattention, mixed, images)
    return block.output(block.intermediate(mixed), mixed)  # type: ignore[no-any-return]


def _mix(attention: Any, reading: Tensor, read: Tensor, mask: Tensor | None = None) -> Tensor:
    """`reading` (B, R, D) after BERT's attention to `read` (B, N, D), residual and norm included."""
    layers = attention.self
    heads, dropout = layers.num_attention_heads, layers.dropout.p if layers.training else 0.0
    mixed = _attend_to(layers.query(reading), read, layers.key, layers.value, heads, mask, dropout)
    return attention.output(mixed, reading)  # type: ignore[no-any-return]


def _attend_to(
    query: Tensor,
    tokens: Tensor,
    key: nn.Module,
    value: nn.Module,
    heads: int,
    mask: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Multi-head attention (B, R, D) of projected queries (B, R, D) to tokens (B, N, D), by the cheaper way."""
    few = query.shape[1]
    work = few / tokens.shape[1] + few * heads / query.shape[2]  # of `attend_few`, as a share of that of projecting all
    plain = type(key) is type(value) is nn.Linear  # layers with adapters have no weight of their own
    if plain and work <= 0.5 and OPERATION.get() is scaled_dot_product_attention:
        return attend_few(query, tokens, key, value, heads, mask, dropout)  # type: ignore[arg-type]
    return attend(query, key(tokens), value(tokens), heads, mask, dropout)


def attend_few(
    query: Tensor, tokens: Tensor, key: nn.Linear, value: nn.Linear, heads: int, mask: Tensor | None, dropout: float
) -> Tensor:
    """What `attend` gives of tokens (B, N, D) that `key` and `value` project: products in another order.

    A query's product with a projected key is that of the query, projected back, with the token itself; and a mean of
    projected values is the projected mean of tokens. So R tokens a head are projected instead of N.
    """
    query = query.view(*query.shape[:2], heads, -1)  # (B, R, H, E), E = D / H
    keys, values = (layer.weight.view(heads, query.shape[3], -1) for layer in (key, value))  # each (H, E, D)
    back = einsum("brhe,hed->bhrd", query, keys)
    same = einsum("brhe,he->bhr", query, key.bias.view(heads, -1))  # what a query's every score has
    scores = (einsum("bhrd,bnd->bhrn", back, tokens) + same[..., None]) / query.shape[-1] ** 0.5
    shares = (scores if mask is None else scores + mask).softmax(dim=-1)
    shares = functional.dropout(shares, dropout, training=dropout > 0)
    means = einsum("bhrn,bnd->bhrd", shares, tokens)
    mixed = einsum("bhrd,hed->brhe", means, values).flatten(2)
    bias = value.bias.view(heads, -1)
    return mixed + einsum("bhr,he->brhe", shares.sum(dim=-1), bias).flatten(2)


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

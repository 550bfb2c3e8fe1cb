"""Transformer blocks over Hugging Face's own modules that compute only the tokens whose output is used.

Where one token of a block's output is used, it is the only query and the only token in the MLP. It still attends to
all tokens, so the result is the same at a lower cost. Attention is PyTorch's fused operation, which two of the three
families' own code cannot use. Where few queries attend to many tokens, keys and values are never computed.

Shapes: B images, N tokens attended to, R queries, D width, H heads, E = D / H.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, einsum, nn
from torch.nn import functional
from torch.nn.functional import linear, scaled_dot_product_attention

from vlm_core.models.stages import Stage

ALL_TOKENS = slice(None)
FIRST_TOKEN = slice(0, 1)
LAST_TOKEN = slice(-1, None)
_UNCHANGED = nn.Identity()
# The fused operation keeps no attention weights; `vlm_core.attention` sets a kernel that does.
ATTENTION_KERNEL: ContextVar[Callable[..., Tensor]] = ContextVar(
    "ATTENTION_KERNEL", default=scaled_dot_product_attention
)


def vision_stages(
    blocks: Any, outputs: slice = ALL_TOKENS, run: Callable[[Any, Tensor, slice], Tensor] | None = None
) -> list[Stage]:
    """Return a vision tower's blocks as stages; the last one computes only the tokens `outputs`.

    `run` computes a block; `vision_block` without it.
    """
    run = run or vision_block

    def stage(number: int, block: Any) -> Stage:
        tokens = outputs if number == len(blocks) else ALL_TOKENS
        return Stage(f"vision.block.{number}", "vision", (block,), lambda state: (run(block, state[0], tokens),))

    return [stage(number, block) for number, block in enumerate(blocks, start=1)]


def vision_block(block: Any, x: Tensor, outputs: slice = ALL_TOKENS, mask: Tensor | None = None) -> Tensor:
    """Return the tokens `outputs` (B, R, D) of a vision tower's pre-norm block over tokens x (B, N, D).

    CLIP's text tower has the same blocks, with a `mask` (1, 1, R, N) that is added to the attention scores. Attention
    dropout is not applied; it is 0 in the published towers.
    """
    attention = block.self_attn
    normed = block.layer_norm1(x)  # (B, N, D)
    if hasattr(attention, "qkv"):  # BLIP projects to q, k and v by one layer
        q, k, v = _project_qkv(attention.qkv, normed, outputs)  # (B, R, D), (B, N, D), (B, N, D)
        y, out_proj = multi_head_attention(q, k, v, attention.num_heads, mask), attention.projection
    else:
        q, out_proj = attention.q_proj(normed[:, outputs]), attention.out_proj  # (B, R, D)
        y = _attention(q, normed, attention.k_proj, attention.v_proj, attention.num_heads, mask)
    x = x[:, outputs] + out_proj(y)  # (B, R, D)
    return x + block.mlp(block.layer_norm2(x))  # type: ignore[no-any-return]


def scaled_block(
    block: Any, x: Tensor, outputs: slice = ALL_TOKENS, rotation: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """Return the tokens `outputs` (B, R, D) of a pre-norm block of ViT or DINO over tokens x (B, N, D).

    DINO scales what each half of a block adds. `rotation`, cosines and sines (P, E), turns queries and keys of the last
    P tokens by their places (Su et al. 2021, arXiv 2104.09864). Dropout is not applied; it is 0 in published towers.
    """
    attention = block.attention
    norms = ("norm1", "norm2") if hasattr(block, "norm1") else ("layernorm_before", "layernorm_after")
    norm1, norm2 = (getattr(block, name) for name in norms)
    scale1, scale2, drop_path = (
        getattr(block, name, _UNCHANGED) for name in ("layer_scale1", "layer_scale2", "drop_path")
    )
    n_head = x.shape[2] // attention.head_dim
    normed = norm1(x)  # (B, N, D)
    q = attention.q_proj(normed[:, outputs])  # (B, R, D)
    if rotation is None:
        y = _attention(q, normed, attention.k_proj, attention.v_proj, n_head)
    else:
        k = _rotate(attention.k_proj(normed), n_head, *rotation)
        q = q if outputs == FIRST_TOKEN else _rotate(q, n_head, *rotation)  # the class token has no place
        y = multi_head_attention(q, k, attention.v_proj(normed), n_head)
    x = x[:, outputs] + drop_path(scale1(attention.o_proj(y)))  # (B, R, D)
    return x + drop_path(scale2(block.mlp(norm2(x))))  # type: ignore[no-any-return]


def _rotate(x: Tensor, n_head: int, cos: Tensor, sin: Tensor) -> Tensor:
    """Return x (B, N, D) with the heads of its last P tokens turned by cosines and sines (P, E)."""
    prefix, patches = x.tensor_split([x.shape[1] - len(cos)], dim=1)
    heads = patches.view(*patches.shape[:2], n_head, -1)  # (B, P, H, E)
    first, second = heads.chunk(2, dim=-1)
    turned = heads * cos[:, None] + torch.cat((-second, first), dim=-1) * sin[:, None]
    return torch.cat((prefix, turned.flatten(2)), dim=1)


def text_block(
    block: Any,
    x: Tensor,
    mask: Tensor,
    images: Tensor | None = None,
    outputs: slice = ALL_TOKENS,
    has_image: Tensor | None = None,
) -> Tensor:
    """Return the tokens `outputs` (B, R, D) of a post-norm block over tokens x (B, T, D).

    The block is one of BLIP's text decoder or of GIT's joint encoder. `mask` (B or 1, 1, T, T) is added to the
    attention scores. With image tokens `images` (B, N, D), the text cross-attends to them, but for rows where
    `has_image` (B,) is 0.
    """
    y = _bert_attention(block.attention, x[:, outputs], x, mask[:, :, outputs])  # (B, R, D)
    if images is not None:
        read = _bert_attention(block.crossattention, y, images)
        y = read if has_image is None else torch.where(has_image[:, None, None] > 0, read, y)
    return block.output(block.intermediate(y), y)  # type: ignore[no-any-return]


def _bert_attention(attention: Any, queries: Tensor, x: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return `queries` (B, R, D) after BERT's attention to tokens x (B, N, D), with residual and norm."""
    layers = attention.self
    n_head, dropout = layers.num_attention_heads, layers.dropout.p if layers.training else 0.0
    y = _attention(layers.query(queries), x, layers.key, layers.value, n_head, mask, dropout)
    return attention.output(y, queries)  # type: ignore[no-any-return]


def _attention(
    q: Tensor,
    x: Tensor,
    key: nn.Module,
    value: nn.Module,
    n_head: int,
    mask: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Return attention (B, R, D) of queries q (B, R, D) to tokens x (B, N, D), computed the cheaper way."""
    n_queries = q.shape[1]
    # multiply-adds of absorbed attention, as a share of those of projecting all tokens to keys and values
    cost = n_queries / x.shape[1] + n_queries * n_head / q.shape[2]
    plain = type(key) is type(value) is nn.Linear  # a layer with adapters has no weight of its own
    biased = plain and key.bias is not None and value.bias is not None
    if biased and cost <= 0.5 and ATTENTION_KERNEL.get() is scaled_dot_product_attention:
        return absorbed_attention(q, x, key, value, n_head, mask, dropout)  # type: ignore[arg-type]
    return multi_head_attention(q, key(x), value(x), n_head, mask, dropout)


def absorbed_attention(
    q: Tensor, x: Tensor, key: nn.Linear, value: nn.Linear, n_head: int, mask: Tensor | None, dropout: float
) -> Tensor:
    """Return attention (B, R, D) of queries q (B, R, D) to tokens x (B, N, D), without computing keys and values.

    The same as `multi_head_attention(q, key(x), value(x), ...)` with the matmuls in another order: the key projection
    is absorbed into the queries, and the value projection is applied after the tokens were averaged. So R tokens per
    head are projected instead of N. DeepSeek-V2 (arXiv 2405.04434, section 2.1.2) absorbs weights in the same way.
    """
    q = q.view(*q.shape[:2], n_head, -1)  # (B, R, H, E)
    w_k, w_v = (layer.weight.view(n_head, q.shape[3], -1) for layer in (key, value))  # (H, E, D) each

    # queries in the space of the tokens: q . (w_k x + b_k) = (q w_k) . x + q . b_k
    q_w = einsum("brhe,hed->bhrd", q, w_k)  # (B, H, R, D)
    q_b = einsum("brhe,he->bhr", q, key.bias.view(n_head, -1))  # (B, H, R)
    # scaled scores
    scores = (einsum("bhrd,bnd->bhrn", q_w, x) + q_b[..., None]) / q.shape[-1] ** 0.5  # (B, H, R, N)
    # attention weights
    att = (scores if mask is None else scores + mask).softmax(dim=-1)  # (B, H, R, N)
    att = functional.dropout(att, dropout, training=dropout > 0)
    # weighted mean of the tokens, then its value projection
    y = einsum("bhrn,bnd->bhrd", att, x)  # (B, H, R, D)
    y = einsum("bhrd,hed->brhe", y, w_v).flatten(2)  # (B, R, D)
    # value bias, by the sum of the weights: dropout moves it away from one
    return y + einsum("bhr,he->brhe", att.sum(dim=-1), value.bias.view(n_head, -1)).flatten(2)


def multi_head_attention(
    q: Tensor, k: Tensor, v: Tensor, n_head: int, mask: Tensor | None = None, dropout: float = 0.0
) -> Tensor:
    """Return attention (B, R, D) of queries q (B, R, D) to keys k and values v (B, N, D), all of them projected."""
    batch, _, width = q.shape
    q, k, v = (part.reshape(batch, -1, n_head, width // n_head).transpose(1, 2) for part in (q, k, v))  # (B, H, _, E)
    y = ATTENTION_KERNEL.get()(q, k, v, attn_mask=mask, dropout_p=dropout)  # (B, H, R, E)
    return y.transpose(1, 2).flatten(2)  # (B, R, D)


def _project_qkv(layer: Any, x: Tensor, outputs: slice) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries (B, R, D) of the tokens `outputs`, and keys and values (B, N, D) of all tokens x (B, N, D)."""
    if outputs == ALL_TOKENS or not isinstance(layer, nn.Linear):  # a layer with adapters has no weight to divide
        q, k, v = layer(x).chunk(3, dim=-1)
        return q[:, outputs], k, v
    width = layer.out_features // 3
    q = linear(x[:, outputs], layer.weight[:width], layer.bias[:width])  # (B, R, D)
    k, v = linear(x, layer.weight[width:], layer.bias[width:]).chunk(2, dim=-1)  # (B, N, D) each
    return q, k, v

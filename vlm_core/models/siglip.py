"""SigLIP and SigLIP 2: a learnt query attends to all image tokens; its features are the embedding shared with text."""

from __future__ import annotations

import string
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, normalize

from vlm_core.models.blocks import multi_head_attention, vision_block, vision_stages
from vlm_core.models.stages import Readout, Stage, State, encode_texts, run_stages, side_by_side
from vlm_core.pixels.views import Preprocessing

_PUNCTUATION = str.maketrans("", "", string.punctuation)


class Siglip:
    """Adapter of `transformers.SiglipModel`. Zhai et al. 2023, arXiv 2303.15343; Tschannen et al. 2025, 2502.14786.

    There is no class token: the `vision` readout is the mean of the patch tokens.
    """

    family = "siglip"
    hf_class = "SiglipModel"
    has_attention = True
    prefix_tokens = 0
    pools_patches = True
    preprocessing = Preprocessing((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bicubic")

    def __init__(self, hf: Any, tokenizer: Any) -> None:
        self.hf = hf
        self.tokenizer = tokenizer

    def width(self, readout: Readout) -> int:
        """Return the vision tower's width, which the shared space has as well."""
        return int(self.hf.config.vision_config.hidden_size)

    def stages(self, readout: Readout) -> tuple[Stage, ...]:
        """Return the chain: vision blocks, then for `fused` the attention pooling head (MAP)."""
        vision = self.hf.vision_model
        norm, head = vision.post_layernorm, vision.head
        chain = [
            Stage("vision.embed", "vision", (vision.embeddings,), lambda state: (vision.embeddings(state[0]),)),
            *vision_stages(vision.encoder.layers),
            Stage("vision.norm", "vision", (norm,), lambda state: (norm(state[0]),)),  # (B, N, D)
        ]
        if readout == "vision":
            chain.append(Stage("vision.pool", "vision", (), lambda state: (state[0].mean(dim=1),)))  # (B, D)
        if readout == "fused":
            chain.append(Stage("fusion.pool", "fusion", (head,), lambda state: (attention_pool(head, state[0]),)))
        return tuple(chain)

    def text_ends(self) -> tuple[list[int], list[int]]:
        """Return what the tokenizer puts before and after a text's words: of most checkpoints an end token."""
        words = self.tokenizer("a", add_special_tokens=False)["input_ids"]
        whole = list(self.tokenizer("a")["input_ids"])
        start = next(place for place in range(len(whole)) if whole[place : place + len(words)] == words)
        return whole[:start], whole[start + len(words) :]

    def text_stages(self, pooled: bool) -> tuple[Stage, ...]:
        """Return the chain of the text tower over all its positions; as in training, padding is attended to.

        Its pooled features are the last position's, whatever stands there.
        """
        text = self.hf.text_model
        norm, length = text.final_layer_norm, int(self.hf.config.text_config.max_position_embeddings)

        def embed(state: State) -> State:
            ids = nn.functional.pad(state[0][:, :length], (0, max(0, length - state[0].shape[1])), value=-1)
            mask = ids >= 0
            return text.embeddings(ids.where(mask, self.tokenizer.pad_token_id)), mask.float()  # (B, T, D), (B, T)

        def block_stage(number: int, block: Any) -> Stage:
            return Stage(
                f"text.block.{number}", "text", (block,), lambda state: (vision_block(block, state[0]), state[1])
            )

        return (
            Stage("text.embed", "text", (text.embeddings,), embed),
            *(block_stage(number, block) for number, block in enumerate(text.encoder.layers, start=1)),
            Stage("text.pool", "text", (norm, text.head), lambda state: (text.head(norm(state[0][:, -1])),))  # (B, D)
            if pooled
            else Stage("text.norm", "text", (norm,), lambda state: (norm(state[0]), state[1])),
        )

    def own_stages(self) -> tuple[Stage, ...]:
        """Return the chain of both towers: the mean of the embeddings that there are, as in `Clip`."""
        scale = self.width("fused") ** 0.5

        def average(state: State) -> State:
            given = state[2]
            picture, text = (normalize(part, dim=-1) for part in state[:2])
            total = picture * given[:, :1] + text * given[:, 1:]
            return (scale * total / given.sum(dim=1, keepdim=True).clamp(min=1),)  # (B, D)

        return (
            *side_by_side(self.stages("fused"), self.text_stages(pooled=True)),
            Stage("fusion.average", "fusion", (), average),
        )

    def text_embeddings(self, texts: list[str]) -> Tensor:
        """Return unit vectors (n, D) of texts in the shared space; as in training, in lower case, unpunctuated."""
        plain = [" ".join(text.lower().translate(_PUNCTUATION).split()) for text in texts]
        length = int(self.hf.config.text_config.max_position_embeddings)
        ids = encode_texts(self, plain, length).to(self.hf.device)
        return normalize(run_stages(self.text_stages(pooled=True), (ids,))[0], dim=-1)

    def match_logits(self, images: Tensor, texts: Tensor) -> Tensor:
        """Return log odds (B, C) that a text fits an image, each by itself, for unit vectors (B, D) and (C, D)."""
        return torch.exp(self.hf.logit_scale) * images @ texts.T + self.hf.logit_bias  # type: ignore[no-any-return]


def attention_pool(head: Any, tokens: Tensor) -> Tensor:
    """Return the features (B, D) of the learnt query that attends to tokens (B, N, D): SigLIP's pooling head."""
    attention = head.attention  # torch.nn.MultiheadAttention, whose own code keeps no attention weights
    (w_q, w_k, w_v), (b_q, b_k, b_v) = attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3)
    q = linear(head.probe, w_q, b_q).expand(tokens.shape[0], -1, -1)  # (B, 1, D)
    pooled = attention.out_proj(
        multi_head_attention(q, linear(tokens, w_k, b_k), linear(tokens, w_v, b_v), attention.num_heads)
    )
    return (pooled + head.mlp(head.layernorm(pooled)))[:, 0]  # type: ignore[no-any-return]

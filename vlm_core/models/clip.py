"""CLIP: self-attention over image tokens; the fused features are the embedding in the space shared with text.

A picture is pooled by its class token, as published, or by the mean of its patches, if it was pretrained so here.
"""

from __future__ import annotations

from typing import Any, Final, get_args

import torch
from torch import Tensor
from torch.nn.functional import normalize

from vlm_core.config.families import Pooling
from vlm_core.errors import UserError
from vlm_core.models.blocks import ALL_TOKENS, FIRST_TOKEN, vision_block, vision_stages
from vlm_core.models.stages import Readout, Stage, State, causal_mask, last_token, side_by_side
from vlm_core.pixels.views import DEFAULT

CLASS_TOKEN: Final[Pooling] = "class-token"


class Clip:
    """Adapter of `transformers.CLIPModel`. Radford et al. 2021, arXiv 2103.00020.

    With the mean of the patches for pooling, the class token is a register: it is attended to, and not read.
    """

    family = "clip"
    hf_class = "CLIPModel"
    has_attention = True
    prefix_tokens = 1  # the class token
    preprocessing = DEFAULT

    def __init__(self, hf: Any, tokenizer: Any) -> None:
        self.hf = hf
        self.tokenizer = tokenizer
        self.pools_patches = pooling_of(hf) != CLASS_TOKEN

    def width(self, readout: Readout) -> int:
        """Return the shared space's width for `fused`, else the vision tower's."""
        return int(self.hf.config.projection_dim if readout == "fused" else self.hf.config.vision_config.hidden_size)

    def stages(self, readout: Readout) -> tuple[Stage, ...]:
        """Return the chain; for `tokens` it ends at the last block, because no part of CLIP uses all tokens."""
        vision, projection = self.hf.vision_model, self.hf.visual_projection
        reads_all = readout == "tokens" or self.pools_patches

        def embed(state: State) -> State:
            return (vision.pre_layrnorm(vision.embeddings(state[0])),)  # (B, N, D)

        def pool(state: State) -> State:
            tokens = state[0]  # (B, N, D)
            pooled = tokens[:, 1:].mean(dim=1) if self.pools_patches else tokens[:, 0]
            return (vision.post_layernorm(pooled),)  # (B, D)

        chain = [
            Stage("vision.embed", "vision", (vision.embeddings, vision.pre_layrnorm), embed),
            *vision_stages(vision.encoder.layers, outputs=ALL_TOKENS if reads_all else FIRST_TOKEN),
        ]
        if readout == "tokens":
            return tuple(chain)
        chain.append(Stage("vision.pool", "vision", (vision.post_layernorm,), pool))
        if readout == "fused":
            chain.append(Stage("fusion.project", "fusion", (projection,), lambda state: (projection(state[0]),)))
        return tuple(chain)

    def text_ends(self) -> tuple[list[int], list[int]]:
        """Return the start and the end token."""
        return [self.tokenizer.bos_token_id], [self.tokenizer.eos_token_id]

    def text_stages(self, pooled: bool) -> tuple[Stage, ...]:
        """Return the chain of the text tower; its pooled features are the end token's."""
        text = self.hf.text_model
        norm = text.final_layer_norm

        def embed(state: State) -> State:
            mask = state[0] >= 0
            return text.embeddings(state[0].clamp(min=0)), mask.float()  # (B, T, D), (B, T)

        def block_stage(number: int, block: Any) -> Stage:
            def run(state: State) -> State:
                tokens, mask = state
                return vision_block(block, tokens, mask=causal_mask(tokens.shape[1], 0, tokens)), mask

            return Stage(f"text.block.{number}", "text", (block,), run)

        def pool(state: State) -> State:
            tokens, mask = state
            return (norm(last_token(tokens, mask)),)  # (B, D)

        return (
            Stage("text.embed", "text", (text.embeddings,), embed),
            *(block_stage(number, block) for number, block in enumerate(text.encoder.layers, start=1)),
            Stage("text.pool", "text", (norm,), pool)
            if pooled
            else Stage("text.norm", "text", (norm,), lambda state: (norm(state[0]), state[1])),
        )

    def own_stages(self) -> tuple[Stage, ...]:
        """Return the chain of both towers: the mean of the embeddings that there are, in the shared space.

        They are unit vectors, scaled so that their entries are about one, as a head expects.
        """
        picture, text = self.hf.visual_projection, self.hf.text_projection
        scale = self.width("fused") ** 0.5

        def project(state: State) -> State:
            return normalize(picture(state[0]), dim=-1), normalize(text(state[1]), dim=-1), state[2]

        def average(state: State) -> State:
            given = state[2]
            total = state[0] * given[:, :1] + state[1] * given[:, 1:]
            return (scale * total / given.sum(dim=1, keepdim=True).clamp(min=1),)  # (B, D)

        return (
            *side_by_side(self.stages("vision"), self.text_stages(pooled=True)),
            Stage("fusion.project", "fusion", (picture, text), project),
            Stage("fusion.average", "fusion", (), average),
        )

    def text_embeddings(self, texts: list[str]) -> Tensor:
        """Return unit vectors (n, D) of texts in the shared space."""
        max_length = self.hf.config.text_config.max_position_embeddings
        ids = self.tokenizer(texts, padding=True, truncation=True, max_length=max_length, return_tensors="pt").to(
            self.hf.device
        )
        features = self.hf.get_text_features(ids["input_ids"], ids["attention_mask"]).pooler_output
        return normalize(features, dim=-1)

    def match_logits(self, images: Tensor, texts: Tensor) -> Tensor:
        """Return the cosines (B, C) of unit vectors (B, D) and (C, D) over the learnt temperature."""
        return torch.exp(self.hf.logit_scale) * images @ texts.T


def pooling_of(hf: Any) -> Pooling:
    """Return how a model pools its image tokens, which `vision_config` says of a CLIP that takes their mean.

    Raise UserError for a way that is not known.
    """
    pooling = getattr(hf.config.vision_config, "pooling", CLASS_TOKEN)
    if pooling not in get_args(Pooling):
        raise UserError(
            f"The model's config.json has pooling={pooling} in its vision_config, which is not known: it takes "
            f"{' or '.join(get_args(Pooling))}."
        )
    return pooling

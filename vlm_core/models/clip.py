"""CLIP: self-attention over image tokens; the fused features are the embedding in the space shared with text."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vlm_core.models.blocks import ALL_TOKENS, FIRST_TOKEN, vision_stages
from vlm_core.models.stages import Readout, Stage, State


class Clip:
    """Adapter of `transformers.CLIPModel`. Radford et al. 2021, arXiv 2103.00020."""

    family = "clip"
    hf_class = "CLIPModel"

    def __init__(self, hf: Any, tokenizer: Any) -> None:
        self.hf = hf
        self.tokenizer = tokenizer

    def width(self, readout: Readout) -> int:
        """Return the shared space's width for `fused`, else the vision tower's."""
        return int(self.hf.config.projection_dim if readout == "fused" else self.hf.config.vision_config.hidden_size)

    def stages(self, readout: Readout) -> tuple[Stage, ...]:
        """Return the chain; for `tokens` it ends at the last block, because no part of CLIP uses all tokens."""
        vision, projection = self.hf.vision_model, self.hf.visual_projection

        def embed(state: State) -> State:
            return (vision.pre_layrnorm(vision.embeddings(state[0])),)  # (B, N, D)

        def pool(state: State) -> State:
            return (vision.post_layernorm(state[0][:, 0]),)  # (B, D)

        chain = [
            Stage("vision.embed", "vision", (vision.embeddings, vision.pre_layrnorm), embed),
            *vision_stages(vision.encoder.layers, outputs=ALL_TOKENS if readout == "tokens" else FIRST_TOKEN),
        ]
        if readout == "tokens":
            return tuple(chain)
        chain.append(Stage("vision.pool", "vision", (vision.post_layernorm,), pool))
        if readout == "fused":
            chain.append(Stage("fusion.project", "fusion", (projection,), lambda state: (projection(state[0]),)))
        return tuple(chain)

    def text_embeddings(self, texts: list[str]) -> Tensor:
        """Return unit vectors (n, D) of texts in the shared space."""
        max_length = self.hf.config.text_config.max_position_embeddings
        ids = self.tokenizer(texts, padding=True, truncation=True, max_length=max_length, return_tensors="pt").to(
            self.hf.device
        )
        features = self.hf.get_text_features(ids["input_ids"], ids["attention_mask"]).pooler_output
        return torch.nn.functional.normalize(features, dim=-1)

    def logit_scale(self) -> Tensor:
        """Return exp(`logit_scale`) (), which cosines are multiplied by before the softmax: one over a temperature."""
        return torch.exp(self.hf.logit_scale)

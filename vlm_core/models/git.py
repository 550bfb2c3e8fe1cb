"""GIT: joint self-attention over image and text tokens; the fused features are the last text token's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vlm_core.models.blip import PROMPT
from vlm_core.models.blocks import ALL_TOKENS, FIRST_TOKEN, LAST_TOKEN, text_block, vision_stages
from vlm_core.models.stages import Readout, Stage, State, beside_text, causal_mask, last_token
from vlm_core.pixels.views import DEFAULT


class Git:
    """Adapter of `transformers.GitForCausalLM`. Wang et al. 2022, arXiv 2205.14100."""

    family = "git"
    hf_class = "GitForCausalLM"
    has_attention = True
    prefix_tokens = 1  # the class token
    pools_patches = False
    preprocessing = DEFAULT

    def __init__(self, hf: Any, tokenizer: Any) -> None:
        self.hf = hf
        self.tokenizer = tokenizer

    def width(self, readout: Readout) -> int:
        """Return the joint encoder's width for `fused`, else the vision tower's."""
        config = self.hf.config
        return int(config.hidden_size if readout == "fused" else config.vision_config.hidden_size)

    def stages(self, readout: Readout) -> tuple[Stage, ...]:
        """Return the chain: vision blocks, then for `fused` the joint blocks over image and prompt."""
        vision = self.hf.git.image_encoder.vision_model
        norm = vision.post_layernorm

        def embed(state: State) -> State:
            return (vision.pre_layrnorm(vision.embeddings(state[0])),)  # (B, N, D)

        chain = [
            Stage("vision.embed", "vision", (vision.embeddings, vision.pre_layrnorm), embed),
            *vision_stages(vision.encoder.layers, outputs=FIRST_TOKEN if readout == "vision" else ALL_TOKENS),
            Stage("vision.norm", "vision", (norm,), lambda state: (norm(state[0]),)),
        ]
        if readout == "vision":
            chain.append(Stage("vision.pool", "vision", (), lambda state: (state[0][:, 0],)))  # (B, D)
        if readout == "fused":
            chain.extend(self._fusion_stages())
        return tuple(chain)

    def _fusion_stages(self) -> list[Stage]:
        git = self.hf.git
        text_length = len(self.prompt_ids())

        def join(state: State) -> State:
            return (self._join(state[0], self._prompt(state[0])),)  # (B, N + T, D)

        def block_stage(number: int, block: Any) -> Stage:
            outputs = LAST_TOKEN if number == len(git.encoder.layer) else ALL_TOKENS

            def run(state: State) -> State:
                return (text_block(block, state[0], _joint_mask(state[0], text_length), outputs=outputs),)

            return Stage(f"fusion.block.{number}", "fusion", (block,), run)

        return [
            Stage("fusion.join", "fusion", (git.visual_projection, git.embeddings), join),
            *(block_stage(number, block) for number, block in enumerate(git.encoder.layer, start=1)),
            Stage("fusion.read", "fusion", (), lambda state: (state[0][:, -1],)),  # (B, D)
        ]

    def text_ends(self) -> tuple[list[int], list[int]]:
        """Return [CLS] and the prompt: without a text the sentence is that which a picture alone is read with."""
        start, *prompt = self.prompt_ids()
        return [start], prompt

    def text_stages(self, pooled: bool) -> tuple[Stage, ...]:
        """Return the chain over the sentence alone; its pooled features are the last token's."""
        git = self.hf.git

        def block_stage(number: int, block: Any) -> Stage:
            def run(state: State) -> State:
                text, mask = state
                return text_block(block, text, causal_mask(text.shape[1], 0, text)), mask

            return Stage(f"text.block.{number}", "text", (block,), run)

        return (
            Stage("text.embed", "text", (git.embeddings,), self._embed),
            *(block_stage(number, block) for number, block in enumerate(git.encoder.layer, start=1)),
            *([Stage("text.pool", "text", (), lambda state: (last_token(*state),))] if pooled else []),  # (B, D)
        )

    def own_stages(self) -> tuple[Stage, ...]:
        """Return the chain over the picture, if there is one, and a sentence that begins with the text.

        The fused features are the sentence's last token's.
        """
        git = self.hf.git

        def join(state: State) -> State:
            tokens, text, mask, given = state
            return torch.cat((git.visual_projection(tokens), text), dim=1), mask, given  # (B, N + T, D)

        def block_stage(number: int, block: Any) -> Stage:
            def run(state: State) -> State:
                joint, mask, given = state
                hidden = _joint_mask(joint, mask.shape[1], given[:, 0])
                return text_block(block, joint, hidden), mask, given

            return Stage(f"fusion.block.{number}", "fusion", (block,), run)

        def read(state: State) -> State:
            joint, mask, _ = state
            return (last_token(joint[:, -mask.shape[1] :], mask),)  # (B, D)

        return (
            *beside_text(Stage("text.embed", "text", (git.embeddings,), self._embed), self.stages("tokens")),
            Stage("fusion.join", "fusion", (git.visual_projection,), join),
            *(block_stage(number, block) for number, block in enumerate(git.encoder.layer, start=1)),
            Stage("fusion.read", "fusion", (), read),
        )

    def _embed(self, state: State) -> State:
        """Return the embedded tokens (B, T, D) of ids (B, T), and a mask (B, T) of those that are no padding."""
        return self.hf.git.embeddings(state[0].clamp(min=0)), (state[0] >= 0).float()

    def _prompt(self, tokens: Tensor) -> Tensor:
        return tokens.new_tensor(self.prompt_ids()).long().expand(tokens.shape[0], -1)

    def _join(self, tokens: Tensor, ids: Tensor) -> Tensor:
        return torch.cat((self.hf.git.visual_projection(tokens), self.hf.git.embeddings(ids)), dim=1)

    def text_modules(self) -> tuple[nn.Module, ...]:
        """Return all after the vision tower: projection, embeddings, joint blocks and output layer."""
        git = self.hf.git
        return (git.visual_projection, git.embeddings, git.encoder, self.hf.output)

    def prompt_ids(self) -> list[int]:
        """Return [CLS] and the prompt."""
        words = self.tokenizer(PROMPT, add_special_tokens=False)["input_ids"]
        return [self.hf.config.bos_token_id, *words]

    def sentence_ids(self, text: str) -> list[int]:
        """Return the text's tokens and [SEP]."""
        return [*self.tokenizer(text, add_special_tokens=False)["input_ids"], self.hf.config.eos_token_id]

    def token_logits(self, tokens: Tensor, ids: Tensor) -> Tensor:
        """Return next-token logits (B, T, V) at each of `ids`; the last block computes no image tokens."""
        joint = self._join(tokens, ids)
        mask = _joint_mask(joint, ids.shape[1])
        *blocks, last = self.hf.git.encoder.layer
        for block in blocks:
            joint = text_block(block, joint, mask)
        text = text_block(last, joint, mask, outputs=slice(tokens.shape[1], None))
        return self.hf.output(text)  # type: ignore[no-any-return]

    def prefill(self, tokens: Tensor) -> tuple[Tensor, Any]:
        """Return logits (B, V) after the prompt, and a KV cache of image and prompt."""
        from transformers import DynamicCache

        cache = DynamicCache(config=self.hf.config)
        joint = self._join(tokens, self._prompt(tokens))
        mask = _joint_mask(joint, len(self.prompt_ids()))
        for block in self.hf.git.encoder.layer:
            joint = block(joint, mask, cache)
        return self.hf.output(joint[:, -1]), cache

    def decode_step(self, tokens: Tensor, ids: Tensor, cache: Any) -> Tensor:
        """Return next-token logits (B, T, V) at each of `ids`, which the KV cache then holds."""
        past = cache.get_seq_length()  # image and text tokens; text positions count from the prompt's first token
        first = past - tokens.shape[1]
        positions = torch.arange(first, first + ids.shape[1], device=ids.device)[None]  # (1, T)
        text = self.hf.git.embeddings(ids, position_ids=positions)
        mask = causal_mask(ids.shape[1], past, text)
        for block in self.hf.git.encoder.layer:
            text = block(text, mask, cache)
        return self.hf.output(text)  # type: ignore[no-any-return]

    def crop_cache(self, cache: Any, count: int) -> None:
        """Remove the last `count` text tokens from the KV cache."""
        cache.crop(-count)


def _joint_mask(joint: Tensor, text_length: int, has_image: Tensor | None = None) -> Tensor:
    """Return an additive mask (1, 1, N + T, N + T), or (B, 1, N + T, N + T) where not every row has an image.

    Image tokens see only each other; text tokens see the image, unless `has_image` (B,) is 0, and the text before them.
    """
    image_length = joint.shape[1] - text_length
    mask = causal_mask(text_length, image_length, joint)  # (1, 1, T, N + T)
    image_rows = joint.new_zeros((1, 1, image_length, image_length))
    image_rows = nn.functional.pad(image_rows, (0, text_length), value=float("-inf"))
    whole = torch.cat((image_rows, mask), dim=2)
    if has_image is None:
        return whole
    hidden = joint.new_zeros(has_image.shape).masked_fill(has_image == 0, float("-inf"))  # (B,)
    rows = hidden[:, None, None, None].expand(-1, 1, text_length, image_length)
    return whole + nn.functional.pad(rows, (0, text_length, image_length, 0))

"""BLIP: text tokens cross-attend to image tokens; the fused features are the text decoder's at the prompt's end."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from vlm_core.models.blocks import ALL_TOKENS, FIRST_TOKEN, LAST_TOKEN, text_block, vision_stages
from vlm_core.models.stages import Readout, Stage, State, beside_text, causal_mask
from vlm_core.pixels.views import DEFAULT

PROMPT = "a picture of"  # of the original captioner's training


class Blip:
    """Adapter of `transformers.BlipForConditionalGeneration`. Li et al. 2022, arXiv 2201.12086."""

    family = "blip"
    hf_class = "BlipForConditionalGeneration"
    has_attention = True
    prefix_tokens = 1  # the class token
    pools_patches = False
    preprocessing = DEFAULT

    def __init__(self, hf: Any, tokenizer: Any) -> None:
        self.hf = hf
        self.tokenizer = tokenizer

    def width(self, readout: Readout) -> int:
        """Return the text decoder's width for `fused`, else the vision tower's."""
        config = self.hf.config
        return int(config.text_config.hidden_size if readout == "fused" else config.vision_config.hidden_size)

    def stages(self, readout: Readout) -> tuple[Stage, ...]:
        """Return the chain: vision blocks, then for `fused` the text decoder's blocks over the prompt."""
        vision = self.hf.vision_model
        norm = vision.post_layernorm
        chain = [
            Stage("vision.embed", "vision", (vision.embeddings,), lambda state: (vision.embeddings(state[0]),)),
            *vision_stages(vision.encoder.layers, outputs=FIRST_TOKEN if readout == "vision" else ALL_TOKENS),
            Stage("vision.norm", "vision", (norm,), lambda state: (norm(state[0]),)),  # (B, N, D)
        ]
        if readout == "vision":
            # As Hugging Face's `pooler_output`, which applies the norm a second time.
            chain.append(Stage("vision.pool", "vision", (norm,), lambda state: (norm(state[0][:, 0]),)))
        if readout == "fused":
            chain.extend(self._fusion_stages())
        return tuple(chain)

    def _fusion_stages(self) -> list[Stage]:
        bert = self.hf.text_decoder.bert

        def start(state: State) -> State:
            ids = self._prompt(state[0])
            return state[0], bert.embeddings(ids)  # (B, N, D), (B, T, D)

        def block_stage(number: int, block: Any) -> Stage:
            outputs = LAST_TOKEN if number == len(bert.encoder.layer) else ALL_TOKENS

            def run(state: State) -> State:
                tokens, text = state
                return tokens, text_block(block, text, causal_mask(text.shape[1], 0, text), tokens, outputs)

            return Stage(f"fusion.block.{number}", "fusion", (block,), run)

        return [
            Stage("fusion.prompt", "fusion", (bert.embeddings,), start),
            *(block_stage(number, block) for number, block in enumerate(bert.encoder.layer, start=1)),
            Stage("fusion.read", "fusion", (), lambda state: (state[1][:, -1],)),  # (B, D)
        ]

    def text_ends(self) -> tuple[list[int], list[int]]:
        """Return [CLS] and [SEP]."""
        return [self.tokenizer.cls_token_id], [self.tokenizer.sep_token_id]

    def text_stages(self, pooled: bool) -> tuple[Stage, ...]:
        """Return the chain of the text encoder; its pooled features are the first token's.

        It is the text decoder's weights without cross-attention, where each token sees all others.
        """
        bert = self.hf.text_decoder.bert

        def block_stage(number: int, block: Any) -> Stage:
            outputs = FIRST_TOKEN if pooled and number == len(bert.encoder.layer) else ALL_TOKENS

            def run(state: State) -> State:
                text, mask = state
                return text_block(block, text, _padding_mask(mask), outputs=outputs), mask

            return Stage(f"text.block.{number}", "text", (block,), run)

        end = Stage("text.pool", "text", (), lambda state: (state[0][:, 0],))  # (B, D)
        return (
            Stage("text.embed", "text", (bert.embeddings,), self._embed),
            *(block_stage(number, block) for number, block in enumerate(bert.encoder.layer, start=1)),
            *([end] if pooled else []),
        )

    def own_stages(self) -> tuple[Stage, ...]:
        """Return the chain of image-text matching: the text encoder cross-attends to the picture, if there is one.

        The fused features are the first token's, as in `transformers.BlipForImageTextRetrieval`. Without a text it
        reads the picture from [CLS] and [SEP] alone.
        """
        bert = self.hf.text_decoder.bert

        def block_stage(number: int, block: Any) -> Stage:
            outputs = FIRST_TOKEN if number == len(bert.encoder.layer) else ALL_TOKENS

            def run(state: State) -> State:
                tokens, text, mask, given = state
                text = text_block(block, text, _padding_mask(mask), tokens, outputs, has_image=given[:, 0])
                return tokens, text, mask, given

            return Stage(f"fusion.block.{number}", "fusion", (block,), run)

        embed = Stage("text.embed", "text", (bert.embeddings,), self._embed)
        return (
            *beside_text(embed, self.stages("tokens")),
            *(block_stage(number, block) for number, block in enumerate(bert.encoder.layer, start=1)),
            Stage("fusion.read", "fusion", (), lambda state: (state[1][:, 0],)),  # (B, D)
        )

    def _embed(self, state: State) -> State:
        """Return the embedded tokens (B, T, D) of ids (B, T), and a mask (B, T) of those that are no padding."""
        return self.hf.text_decoder.bert.embeddings(state[0].clamp(min=0)), (state[0] >= 0).float()

    def _prompt(self, tokens: Tensor) -> Tensor:
        return tokens.new_tensor(self.prompt_ids()).long().expand(tokens.shape[0], -1)

    def text_modules(self) -> tuple[nn.Module, ...]:
        """Return the text decoder."""
        return (self.hf.text_decoder,)

    def prompt_ids(self) -> list[int]:
        """Return [DEC] and the prompt; the decoder was trained to start with [DEC], not with [CLS]."""
        words = self.tokenizer(PROMPT, add_special_tokens=False)["input_ids"]
        return [self.hf.config.text_config.bos_token_id, *words]

    def sentence_ids(self, text: str) -> list[int]:
        """Return the text's tokens and [SEP]."""
        words = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return [*words, self.hf.config.text_config.sep_token_id]

    def token_logits(self, tokens: Tensor, ids: Tensor) -> Tensor:
        """Return next-token logits (B, T, V) at each of `ids`."""
        decoder = self.hf.text_decoder
        text = decoder.bert.embeddings(ids)
        mask = causal_mask(ids.shape[1], 0, text)
        for block in decoder.bert.encoder.layer:
            text = text_block(block, text, mask, tokens)
        return decoder.cls(text)  # type: ignore[no-any-return]

    def prefill(self, tokens: Tensor) -> tuple[Tensor, Any]:
        """Return logits (B, V) after the prompt, and the decoder's KV cache."""
        output = self.hf.text_decoder(input_ids=self._prompt(tokens), encoder_hidden_states=tokens, use_cache=True)
        return output.logits[:, -1], output.cache

    def decode_step(self, tokens: Tensor, ids: Tensor, cache: Any) -> Tensor:
        """Return next-token logits (B, T, V) at each of `ids`, which the KV cache then holds."""
        output = self.hf.text_decoder(input_ids=ids, encoder_hidden_states=tokens, cache=cache, use_cache=True)
        return output.logits  # type: ignore[no-any-return]

    def crop_cache(self, cache: Any, count: int) -> None:
        """Remove the last `count` text tokens from the KV cache; the image's keys and values stay."""
        cache.self_attention_cache.crop(-count)


def _padding_mask(mask: Tensor) -> Tensor:
    """Return an additive mask (B, 1, T, T) that hides padding, of a mask (B, T) of what is none."""
    hidden = mask.new_zeros(mask.shape).masked_fill(mask == 0, float("-inf"))
    return hidden[:, None, None].expand(-1, 1, mask.shape[1], -1)

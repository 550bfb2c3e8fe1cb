"""BLIP: text tokens cross-attend to image tokens; the fused state is the decoder's after the prompt."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from vlm_core.models.blocks import ALL, FIRST, LAST, text_block, vision_stages
from vlm_core.models.stages import Readout, Stage, State, causal_mask

PROMPT = "a picture of"  # what the original captioner was trained with


class Blip:
    """Adapter of `transformers.BlipForConditionalGeneration`. Li et al. 2022, arXiv 2201.12086."""

    family = "blip"
    hf_class = "BlipForConditionalGeneration"

    def __init__(self, hf: Any, tokenizer: Any) -> None:
        self.hf = hf
        self.tokenizer = tokenizer

    def width(self, readout: Readout) -> int:
        """Decoder's width when fused, else the vision tower's."""
        config = self.hf.config
        return int(config.text_config.hidden_size if readout == "fused" else config.vision_config.hidden_size)

    def stages(self, readout: Readout) -> tuple[Stage, ...]:
        """The chain: vision blocks, then for `fused` the decoder's blocks over the prompt."""
        vision = self.hf.vision_model
        norm = vision.post_layernorm
        chain = [
            Stage("vision.embed", "vision", (vision.embeddings,), lambda state: (vision.embeddings(state[0]),)),
            *vision_stages(vision.encoder.layers, read=FIRST if readout == "vision" else ALL),
            Stage("vision.norm", "vision", (norm,), lambda state: (norm(state[0]),)),  # (B, N, D)
        ]
        if readout == "vision":
            # Hugging Face's `pooler_output` applies the norm a second time; a head trained on it expects that.
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
            read = LAST if number == len(bert.encoder.layer) else ALL

            def run(state: State) -> State:
                tokens, text = state
                return tokens, text_block(block, text, causal_mask(text.shape[1], 0, text), tokens, read)

            return Stage(f"fusion.block.{number}", "fusion", (block,), run)

        return [
            Stage("fusion.prompt", "fusion", (bert.embeddings,), start),
            *(block_stage(number, block) for number, block in enumerate(bert.encoder.layer, start=1)),
            Stage("fusion.read", "fusion", (), lambda state: (state[1][:, -1],)),  # (B, D)
        ]

    def _prompt(self, tokens: Tensor) -> Tensor:
        return tokens.new_tensor(self.prompt_ids()).long().expand(tokens.shape[0], -1)

    def writing_modules(self) -> tuple[nn.Module, ...]:
        """The text decoder."""
        return (self.hf.text_decoder,)

    def prompt_ids(self) -> list[int]:
        """[DEC] and the prompt: the decoder was trained to start with [DEC], not with [CLS]."""
        words = self.tokenizer(PROMPT, add_special_tokens=False)["input_ids"]
        return [self.hf.config.text_config.bos_token_id, *words]

    def sentence_ids(self, text: str) -> list[int]:
        """The text's tokens and [SEP]."""
        words = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return [*words, self.hf.config.text_config.sep_token_id]

    def token_logits(self, tokens: Tensor, ids: Tensor) -> Tensor:
        """Logits (B, T, V) of the token after each of `ids`."""
        decoder = self.hf.text_decoder
        text = decoder.bert.embeddings(ids)
        mask = causal_mask(ids.shape[1], 0, text)
        for block in decoder.bert.encoder.layer:
            text = text_block(block, text, mask, tokens)
        return decoder.cls(text)  # type: ignore[no-any-return]

    def read_prompt(self, tokens: Tensor) -> tuple[Tensor, Any]:
        """Logits (B, V) after the prompt, and the decoder's cache."""
        output = self.hf.text_decoder(input_ids=self._prompt(tokens), encoder_hidden_states=tokens, use_cache=True)
        return output.logits[:, -1], output.past_key_values

    def read_more(self, tokens: Tensor, ids: Tensor, cache: Any) -> Tensor:
        """Logits (B, T, V) after each of `ids`, read on from the cache."""
        output = self.hf.text_decoder(
            input_ids=ids, encoder_hidden_states=tokens, past_key_values=cache, use_cache=True
        )
        return output.logits  # type: ignore[no-any-return]

    def forget(self, cache: Any, count: int) -> None:
        """Take the last `count` text tokens out of the cache; what it holds of the picture stays."""
        cache.self_attention_cache.crop(-count)

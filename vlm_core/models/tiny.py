"""Tiny models of the same architectures with their own tokenizers, trained from scratch without a network.

All have the same vision tower (width 128, 4 blocks, patch 8 at 64 px, 0.8 M weights), so that they differ in the
family's mechanism only. Each model has 1.4 to 1.9 million weights; the tower alone, which has no language, 0.8.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any

from torch import nn

from vlm_core.models.blip import PROMPT
from vlm_core.models.heads import TEMPLATES

IMAGE_SIZE = 64
VOCABULARY = 2000
TEXT_LENGTH = 40
VISION: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "image_size": IMAGE_SIZE,
    "patch_size": 8,
    "hidden_act": "gelu",  # CLIP's and GIT's own quick_gelu takes three operations; BLIP uses gelu
    "initializer_range": 0.02,  # BLIP's default of 1e-10 is meant for loading a checkpoint: nothing learns from it
}
TEXT: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "hidden_act": "gelu",
    "max_position_embeddings": TEXT_LENGTH,
}


def build_tiny(family: str, texts: Iterable[str]) -> tuple[Any, Any]:
    """Return a family's Hugging Face model with random weights, and its tokenizer trained on `texts`, None without.

    The weights depend on torch's random state. Raise KeyError for an unknown family.
    """
    corpus = [*texts, PROMPT, *(template.format("") for template in TEMPLATES)]
    return {"clip": _clip, "blip": _blip, "git": _git, "siglip": _siglip, "vision": _vision}[family](corpus)


def _clip(corpus: list[str]) -> tuple[Any, Any]:
    from transformers import CLIPConfig, CLIPModel

    tokenizer = _train_clip_tokenizer(corpus)
    ends = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = CLIPConfig(
        text_config={**TEXT, "vocab_size": len(tokenizer), "projection_dim": 128, **ends},
        vision_config={**VISION, "projection_dim": 128},
        projection_dim=128,
    )
    return CLIPModel(config), tokenizer


def _blip(corpus: list[str]) -> tuple[Any, Any]:
    from transformers import BlipConfig, BlipForConditionalGeneration

    tokenizer = _train_bert_tokenizer(corpus, bos_token="[DEC]")
    ends = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.sep_token_id,
        "sep_token_id": tokenizer.sep_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = BlipConfig(text_config={**TEXT, "vocab_size": len(tokenizer), **ends}, vision_config=VISION)
    return BlipForConditionalGeneration(config), tokenizer


def _git(corpus: list[str]) -> tuple[Any, Any]:
    from transformers import GitConfig, GitForCausalLM

    tokenizer = _train_bert_tokenizer(corpus)
    config = GitConfig(
        vision_config=VISION,
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.cls_token_id,
        eos_token_id=tokenizer.sep_token_id,
        pad_token_id=tokenizer.pad_token_id,
        hidden_dropout_prob=0.0,  # as in CLIP and BLIP, so that the families differ in their mechanism only
        attention_probs_dropout_prob=0.0,
        **TEXT,
    )
    return GitForCausalLM(config), tokenizer


def _siglip(corpus: list[str]) -> tuple[Any, Any]:
    from transformers import SiglipConfig, SiglipModel

    tokenizer = _train_bert_tokenizer(corpus)
    ends = {
        "bos_token_id": tokenizer.cls_token_id,
        "eos_token_id": tokenizer.sep_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    text = {**TEXT, "vocab_size": len(tokenizer), "projection_size": VISION["hidden_size"], **ends}
    hf = SiglipModel(SiglipConfig(text_config=text, vision_config=VISION))
    nn.init.constant_(hf.logit_scale, math.log(10))  # with the bias as in the paper: at first, hardly any pair matches
    nn.init.constant_(hf.logit_bias, -10)
    return hf, tokenizer


def _vision(corpus: list[str]) -> tuple[Any, Any]:
    from transformers import Dinov2Config, Dinov2Model

    hidden = {"mlp_ratio": VISION["intermediate_size"] // VISION["hidden_size"], "layerscale_value": 1.0}
    return Dinov2Model(Dinov2Config(**VISION, **hidden, use_mask_token=False)), None


# The trainers number affixed characters in the order of a hash map, which differs between processes, and break ties by
# number, so two trainings on the same titles would differ. Listing these characters first fixes the order.
def _train_clip_tokenizer(corpus: list[str]) -> Any:
    """Return a byte-level BPE tokenizer like CLIP's, whose words end in </w>; deterministic."""
    from tokenizers import pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    ends = ["<|startoftext|>", "<|endoftext|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = CLIPTokenizer().backend_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=ends + alphabet + [character + "</w>" for character in alphabet],
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    vocabulary, merges = _train(backend, corpus, trainer)
    return CLIPTokenizer(vocab=vocabulary, merges=merges)  # type: ignore[arg-type]  # pairs, as its model takes


def _train_bert_tokenizer(corpus: list[str], bos_token: str | None = None) -> Any:
    """Return a lower-case WordPiece tokenizer like BLIP's and GIT's; deterministic."""
    from tokenizers import trainers
    from transformers import BertTokenizer

    ends = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    backend = BertTokenizer().backend_tokenizer
    alphabet = sorted(set("".join(backend.normalizer.normalize_str(text) for text in corpus)) - {" "})
    trainer = trainers.WordPieceTrainer(
        vocab_size=VOCABULARY,
        special_tokens=ends + alphabet + ["##" + character for character in alphabet],
        show_progress=False,
    )
    vocabulary, _ = _train(backend, corpus, trainer)
    tokenizer = BertTokenizer(vocab=vocabulary)
    if bos_token:
        tokenizer.add_special_tokens({"bos_token": bos_token})
    return tokenizer


def _train(backend: Any, corpus: list[str], trainer: Any) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Return vocabulary and merges, trained with the backend's own normaliser and word splitting."""
    backend.train_from_iterator(corpus, trainer)
    model = json.loads(backend.to_str())["model"]
    return model["vocab"], [tuple(pair) for pair in model.get("merges", ())]

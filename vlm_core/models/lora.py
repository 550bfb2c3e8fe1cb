"""Low-rank adapters (LoRA) in trainable attention layers, and how they are merged into the model's own weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

ADAPTER = ".lora_"  # in the names of the adapters' weights
ALPHA_PER_RANK = 2  # the usual scale of the adapters' output, whatever their rank


def add_adapters(hf: Any, modules: Iterable[nn.Module], rank: int) -> Callable[[], None]:
    """Add adapters to every attention projection within `modules`; return a function that merges them.

    Hu et al. 2021, arXiv 2106.09685. New adapters add zero, so the model's output does not change. Merging adds them
    to the projections and leaves an ordinary model.
    """
    from peft import LoraConfig
    from peft.tuners.lora import LoraModel

    targets = {
        id(layer)
        for module in modules
        for name, attention in module.named_modules()
        if name.split(".")[-1] in ("self_attn", "attention", "crossattention")
        for layer in attention.modules()
        if isinstance(layer, nn.Linear)
    }
    names = [name for name, layer in hf.named_modules() if id(layer) in targets]
    config = LoraConfig(r=rank, lora_alpha=ALPHA_PER_RANK * rank, lora_dropout=0.0, target_modules=names)
    tuner = LoraModel(hf, config, "default")

    def merge() -> None:
        tuner.merge_and_unload()

    return merge

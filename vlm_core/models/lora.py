"""Low-rank adapters in the attention of what learns, and their way back into the model's own weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

ADAPTER = ".lora_"  # in the names of the adapters' weights
ALPHA_PER_RANK = 2  # the usual scale of what adapters add, whatever their rank


def add_adapters(hf: Any, modules: Iterable[nn.Module], rank: int) -> Callable[[], None]:
    """What merges the adapters again, once they have been added to every attention projection within `modules`.

    Hu et al. 2021, arXiv 2106.09685. Adapters start as nothing: the model's answers are as before. Merged, they are
    part of the projections, and the model is an ordinary one.
    """
    from peft import LoraConfig
    from peft.tuners.lora import LoraModel

    wanted = {
        id(layer)
        for module in modules
        for name, attention in module.named_modules()
        if name.split(".")[-1] in ("self_attn", "attention", "crossattention")
        for layer in attention.modules()
        if isinstance(layer, nn.Linear)
    }
    names = [name for name, layer in hf.named_modules() if id(layer) in wanted]
    settings = LoraConfig(r=rank, lora_alpha=ALPHA_PER_RANK * rank, lora_dropout=0.0, target_modules=names)
    tuner = LoraModel(hf, settings, "default")

    def merge() -> None:
        tuner.merge_and_unload()

    return merge

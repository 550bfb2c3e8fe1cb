"""Low-rank adapters (LoRA) in trainable attention layers, and how they are merged into the model's own weights."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

from torch import nn

from vlm_core.errors import UserError

ADAPTER = ".lora_"  # in the names of the adapters' weights
ALPHA_PER_RANK = 2  # the usual scale of the adapters' output, whatever their rank
HIGHEST_RANK: Final = 4096  # of an adapter that is read
# What says how a saved adapter is applied. Others are about its training, or name code that peft would import.
_APPLIED: Final = (
    *("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "fan_in_fan_out", "bias"),
    *("target_modules", "exclude_modules", "modules_to_save", "layers_to_transform", "layers_pattern"),
)


def add_adapters(hf: Any, modules: Iterable[nn.Module], rank: int) -> Callable[[], None]:
    """Add adapters to every attention projection within `modules`; return a function that merges them.

    Hu et al. 2021, arXiv 2106.09685. New adapters add zero, so the model's output does not change. Merging adds them
    to the projections and leaves an ordinary model. Raise UserError if there is no attention.
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
    if not names:
        raise UserError(
            "mode=lora adapts attention layers, and none are among what is trained here: use mode=last-blocks, or "
            "more blocks=."
        )
    config = LoraConfig(r=rank, lora_alpha=ALPHA_PER_RANK * rank, lora_dropout=0.0, target_modules=names)
    tuner = LoraModel(hf, config, "default")

    def merge() -> None:
        tuner.merge_and_unload()

    return merge


def merge_saved_adapter(hf: Any, folder: Path) -> None:
    """Merge the LoRA adapter that peft has saved in `folder` into the model's own weights, in place.

    Raise ValueError if the adapter does not fit the model, and what its libraries raise if it cannot be read.
    """
    from peft import LoraConfig, PeftModel, set_peft_model_state_dict
    from safetensors.torch import load_file

    saved = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    settings = {name: saved[name] for name in _APPLIED if saved.get(name) is not None}
    ranks = [settings.get("r", 8), *dict(settings.get("rank_pattern", {})).values()]
    if not all(isinstance(rank, int) and 0 < rank <= HIGHEST_RANK for rank in ranks):
        raise ValueError(f"its rank is not between 1 and {HIGHEST_RANK}")
    model = PeftModel(hf, LoraConfig(**settings))
    report: Any = set_peft_model_state_dict(model, load_file(folder / "adapter_model.safetensors"))
    absent = [name for name in report.missing_keys if ADAPTER in name]
    if different := [*report.unexpected_keys, *absent]:
        raise ValueError(f"the adapter is of another model, which {different[0]} shows")
    model.merge_and_unload()
    hf.requires_grad_(True)

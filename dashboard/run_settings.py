"""A run's settings beside its preset's: those that had an effect, and what of them the user chose."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from vlm_core.config import OF_MACHINES, Config
from vlm_core.config.presets import HEAD, SUITING, choose_mode
from vlm_core.errors import UserError

_OF_THE_RUN: Final = ("preset", "run_name", "resume", "experiment", *OF_MACHINES)  # these do not change how it learns
_UNTRAINED: Final = ("baseline", "zero-shot")  # models or modes that take no step of training
_STEPS: Final = (
    *("augmentation", "epochs", "batch_size", "learning_rate", "weight_decay", "warmup", "clip_norm", "patience"),
    *("views", "cache_gib", "cache_precision", "prefix", "readout"),
)
_WEIGHTS: Final = (
    "checkpoint",
    "weights",
    "image_size",
    "mode",
    "objective",
    "threads",
    "device",
    "resize",
    "precision",
)
_OF_MODES: Final = {"blocks": ("last-blocks", "lora", "lp-ft"), "lora_rank": ("lora",)}  # the only ones that read them


def effective_settings(row: Mapping[str, Any]) -> dict[str, str]:
    """Return the settings in a row of `RunReader.runs` that its model and mode read: HOG has no learning rate."""
    model, mode = str(row.get("params.model", "")), str(row.get("params.mode", ""))
    idle = {name for name, modes in _OF_MODES.items() if model == "baseline" or mode not in modes}
    if model in _UNTRAINED or mode in _UNTRAINED:
        idle.update(_STEPS)
    if model == "baseline":
        idle.update(_WEIGHTS)
    return {
        name: str(row[f"params.{name}"])
        for name in Config.model_fields
        if isinstance(row.get(f"params.{name}"), str) and name not in idle
    }


def preset_settings(row: Mapping[str, Any]) -> dict[str, str]:
    """Return what the preset gives for the run's model and weights, in the preset's mode; {} without a known preset."""
    given = {name: row.get(f"params.{name}", "") for name in ("preset", "model", "objective")}
    try:
        preset = Config.build({name: value for name, value in given.items() if value})
    except UserError:
        return {}
    kind, of_run = str(row.get("tags.weights_source", "")).split(":")[0], str(row.get("params.mode", ""))
    mode = choose_mode(preset.objective, kind) if preset.mode == "auto" else preset.mode
    suiting = {**SUITING.get(kind, {}), **(HEAD if mode == "probe" and preset.model != "baseline" else {})}
    resize = str(row.get("params.resize", "")) if of_run == "zero-shot" else "stretch"  # as auto does
    return preset.model_copy(update={**suiting, "mode": mode, "resize": resize}).to_params()


def differing_params(row: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return name, the run's value and the preset's, of settings that differ from its preset; [] without a preset."""
    preset = preset_settings(row)
    return [
        (name, value or "(empty)", preset[name] or "(empty)")
        for name, value in effective_settings(row).items()
        if name in preset and name not in _OF_THE_RUN and value != preset[name]
    ]

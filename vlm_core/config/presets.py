"""Values of settings that go together: named sets, those that suit the weights, and those of a head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

# Named sets of settings. Precedence: a default < its preset < what the user gives.
PRESETS: Final[dict[str, dict[str, Any]]] = {
    # Hours instead of days without a GPU: the head first, then the last blocks, on cached features of the frozen ones.
    "cpu": {"mode": "auto", "batch_size": 32, "learning_rate": 5e-5, "modes": "zero-shot,probe,lp-ft"},
    # The original paper's settings: the defaults of `vlm_core.config`.
    "original": {},
    # One frozen encoder with exchangeable fusion: what the mechanism itself contributes.
    "ablation": {"weights": "tiny", "mode": "probe", "parts": "ablation"},
    # Small models on any data, in seconds on two cores.
    "demo": {"weights": "tiny", "mode": "probe", "modes": "zero-shot,probe,lp-ft"},
    # A tiny, randomly initialised model, trained on a catalogue's own titles and attributes for all epochs.
    "pretrain": {
        "weights": "tiny-random",
        "experiment": "pretraining",
        "batch_size": 128,
        "learning_rate": 1e-3,
        "augmentation": "mirror",
        "weight_decay": 0.05,
        "epochs": 20,
    },
}

# Settings that suit the weights, by the first word of their source; they replace the preset's values, which is logged.
# The original learning rate is for published weights and too small for tiny ones. Tiny GIT and BLIP, whose text blocks
# normalise after the residual, get stuck at 1e-3 when they are randomly initialised.
SUITING: Final[dict[str, dict[str, Any]]] = {
    "tiny-random": {"batch_size": 32, "learning_rate": 4e-4, "epochs": 8},
    "shipped": {"batch_size": 32, "learning_rate": 1e-4, "epochs": 8, "augmentation": "mirror"},
}

# Where a file of parts is named with split=, they are kept; the published protocol trains on all rows, each once.
WITH_A_FILE_OF_PARTS: Final[dict[str, Any]] = {"protocol": "given"}
OF_PROTOCOLS: Final[dict[str, dict[str, Any]]] = {"condition-cnn": {"balance": "none"}}

# A linear layer on frozen features: epochs cost next to nothing, and the original learning rate would not move it.
HEAD: Final[dict[str, Any]] = {"batch_size": 128, "learning_rate": 3e-3, "epochs": 30, "patience": 10, "views": 0}
# A mechanism of the ablation, on cached tokens: the same budget for each.
MECHANISM: Final[dict[str, Any]] = {"batch_size": 64, "epochs": 8, "patience": 8, "views": 1, "augmentation": "mirror"}
# Each mechanism is trained with each of them, and validation chooses. A wide grid: no choice should be at its edge.
MECHANISM_LEARNING_RATES: Final = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
# Search ranges for the head, instead of those that each setting declares for whole models.
HEAD_SEARCH: Final[dict[str, dict[str, Any]]] = {
    "learning_rate": {"low": 1e-4, "high": 1e-1, "log": True},
    "batch_size": {"low": 32, "high": 512, "log": True},
}
# What only reads pictures.
OF_PICTURES: Final = {"objective": "generate", "mode": "zero-shot", "readout": "vision", "prefix": "int8"}


def choose_mode(objective: str, weights_kind: str) -> str:
    """Return what `mode=auto` stands for: random weights are not worth freezing, and generation has no head."""
    if weights_kind == "tiny-random" or (weights_kind == "shipped" and objective == "generate"):
        return "full"
    return "fusion" if objective == "generate" else "lp-ft"


def reading_problem(settings: Mapping[str, Any]) -> str:
    """Return why these settings cannot read the texts that `inputs` names; "" if they can, or need not."""
    inputs = settings["inputs"]
    refused = [f"{name}={value}" for name, value in OF_PICTURES.items() if settings[name] == value]
    if inputs != "image" and refused:
        return f"{refused[0]} reads pictures alone, not inputs={inputs}: leave out one of them"
    if inputs == "text" and settings["mode"] == "fusion":
        return "mode=fusion trains what fuses picture and text, and inputs=text has none: use mode=probe"
    return ""

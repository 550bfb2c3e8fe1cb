"""Named sets of settings. Precedence: a setting's default < its preset < what the user gives."""

from typing import Any, Final

PRESETS: Final[dict[str, dict[str, Any]]] = {
    # The original study: what `Config` holds by default is exactly this preset.
    "study": {},
    # Small models on any data, in minutes on two cores.
    "demo": {
        "weights": "tiny",
        "batch_size": 32,
        "learning_rate": 4e-4,
        "epochs": 8,
    },
}

# The study's learning rate is for pretrained weights; a model that starts from nothing hardly moves with it, and at
# 1e-3 tiny GIT and BLIP, whose text blocks normalise after the residual, get stuck.
# Taken instead of the study's values, and said so, when `weights=auto` finds no checkpoint.
FROM_NOTHING: Final[dict[str, Any]] = {"batch_size": 32, "learning_rate": 4e-4}

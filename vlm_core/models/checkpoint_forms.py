"""Forms in which checkpoints come that are not a whole model in Hugging Face's format, and the way out of each."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any, Final

ADAPTER_CONFIG: Final = "adapter_config.json"
ADAPTER_WEIGHTS: Final = "adapter_model.safetensors"
OPEN_CLIP_CONFIG: Final = "open_clip_config.json"
OPEN_CLIP_WEIGHTS: Final = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
_POINTER: Final = b"version https://git-lfs.github.com/spec/"
_POINTER_BYTES: Final = 1024  # no pointer is larger
_STATE_DICTS: Final = (".pt", ".pth", ".ckpt")
_OTHER_LIBRARIES: Final = {
    ".h5": "TensorFlow",
    ".msgpack": "Flax",
    ".onnx": "ONNX",
    ".gguf": "llama.cpp",
    ".tflite": "TensorFlow Lite",
}
_WRAPPERS: Final = re.compile(r"\b(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_TRAINERS_CHECKPOINT: Final = re.compile(r"checkpoint-(\d+)")
_OPEN_CLIP: Final = (
    f"a model of open_clip that is not read here ({OPEN_CLIP_CONFIG} with a plain vision transformer or SigLIP's, "
    f"and {OPEN_CLIP_WEIGHTS[0]}, would be): take the same model in Hugging Face's format, as "
    "laion/CLIP-ViT-B-32-laion2B-s34B-b79K, or convert it with transformers' convert_clip_original_pytorch_to_hf.py"
)


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; empty if it is missing or broken."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):  # nested too deeply
        return {}
    return content if isinstance(content, dict) else {}


def find_pointer(folder: Path) -> str:
    """Return the name of a file in the folder that is only Git LFS's pointer to it, or ""."""
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.stat().st_size <= _POINTER_BYTES and path.read_bytes().startswith(_POINTER):
            return path.name
    return ""


def trainers_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints that a Trainer of transformers has written into its output folder, oldest first."""
    found = [path for path in folder.iterdir() if path.is_dir() and _TRAINERS_CHECKPOINT.fullmatch(path.name)]
    return sorted(found, key=lambda path: int(path.name.split("-")[1]))


def best_checkpoint(checkpoints: Collection[Path]) -> str:
    """Return the name of the one that its Trainer found best, as the newest of them states; "" if it does not."""
    states = [read_json(path / "trainer_state.json").get("best_model_checkpoint") for path in checkpoints]
    best = Path(str(states[-1] or "")).name if states else ""
    return best if best in {path.name for path in checkpoints} else ""


def foreign_form(names: Collection[str], config: dict[str, Any]) -> str:
    """Return what files of these names, and of that `config.json`, hold instead of a model, and the way out, or ""."""
    if any(name.startswith("open_clip") for name in names) or "open_clip" in json.dumps(config):
        return _OPEN_CLIP
    if ADAPTER_CONFIG in names:
        return (
            f"an adapter whose weights are not {ADAPTER_WEIGHTS}: save it again with peft, or merge it into its model "
            "with merge_and_unload and save that with save_pretrained"
        )
    for name in sorted(names):
        if library := _OTHER_LIBRARIES.get(Path(name).suffix):
            return f"weights of {library} ({name}): save the model in PyTorch with save_pretrained"
    if config:
        return ""
    states = [name for name in sorted(names) if name.endswith(_STATE_DICTS)]
    return state_dict_form(states[0]) if states else ""


def state_dict_form(name: str) -> str:
    """Return what a file of bare weights is, and the way out."""
    return (
        f"a state dict ({name}) without the model's configuration and tokenizer: load it into the model with "
        "load_state_dict, then save model and tokenizer into one folder with save_pretrained"
    )


def without_wrappers(name: str) -> str:
    """Return a weight's name without those of wrappers that training libraries put around modules."""
    return _WRAPPERS.sub("", name)


def common_prefix(unknown: Collection[str], missing: Collection[str]) -> str | None:
    """Return what most missing names of weights stand behind among the unknown ones, as `module.`; None for nothing.

    Not all: of weights that are shared, a file holds one name.
    """
    missing = set(missing)
    found: Counter[str] = Counter()
    for name in unknown:
        parts = name.split(".")
        whole = next((n for n in range(len(parts)) if ".".join(parts[n:]) in missing), None)
        if whole is not None:
            found["".join(f"{part}." for part in parts[:whole])] += 1
    prefix, count = found.most_common(1)[0] if found else ("", 0)
    return prefix if 2 * count > len(missing) else None

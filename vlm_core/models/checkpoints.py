"""Pretrained checkpoints: located in a folder, the hub's cache or on the hub, and downloaded."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from vlm_core.catalogue.fetching import call_with_timeout, silence_telemetry
from vlm_core.errors import UserError
from vlm_core.models.checkpoint_forms import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    OPEN_CLIP_WEIGHTS,
    best_checkpoint,
    find_pointer,
    foreign_form,
    read_json,
    state_dict_form,
    trainers_checkpoints,
)
from vlm_core.models.open_clip import open_clip_settings

logger = logging.getLogger(__name__)

CONFIG: Final = "config.json"
# In order of preference; each is a single file, or the index of several.
WEIGHTS: Final = tuple(
    file + index for file in ("model.safetensors", "pytorch_model.bin") for index in ("", ".index.json")
)
_VARIANT: Final = re.compile(r"model\.(\w+)\.safetensors")  # e.g. fp16, which is all that some folders hold
VOCABULARIES: Final = ("tokenizer.json", "vocab.txt", "vocab.json")


@dataclass(frozen=True)
class AvailableCheckpoint:
    """A checkpoint that can be loaded, and those of its files that are needed."""

    name: str  # as the user gave it: a hub name or a folder
    source: Literal["folder", "cache", "hub"]
    reference: str  # for `from_pretrained`: a local folder, or the hub name if the source is the hub
    revision: str | None  # commit on the hub, if known
    files: tuple[str, ...]  # configuration, tokenizer, and the weights in one form
    pinned: bool = False  # whether that commit was asked for, rather than the hub's newest
    base: AvailableCheckpoint | None = None  # the model that this one is an adapter (LoRA) of
    open_clip: str = ""  # the file of weights, if open_clip has saved them

    @property
    def local_files_only(self) -> bool:
        """Return whether all files are on this machine."""
        return self.source != "hub"

    @property
    def safetensors(self) -> bool:
        """Return whether the weights are safetensors rather than PyTorch's own files."""
        return any(file.endswith(".safetensors") for file in self.files)

    @property
    def variant(self) -> str | None:
        """Return what the weights' name ends in, as fp16, if they are not in any usual file."""
        names = [match[1] for file in self.files if (match := _VARIANT.fullmatch(file))]
        return names[0] if names else None


@dataclass(frozen=True)
class UnavailableCheckpoint:
    """A checkpoint that cannot be loaded now."""

    name: str
    reason: str  # a clause without a full stop

    def message(self) -> str:
        """Return an error message with the reason and what to do."""
        return (
            f"The checkpoint {self.name} is not available ({self.reason}): download it with `hf download {self.name}`, "
            "name a folder that holds it with checkpoint=, or use weights=tiny."
        )


def find_checkpoint(
    name: str, *, commit: str = "", seconds: float = 4.0, adapter: bool = True, has_language: bool = True
) -> AvailableCheckpoint | UnavailableCheckpoint:
    """Return where to load a checkpoint from: a folder of that name, else the hub's cache, else the hub.

    `name` is a hub name such as `openai/clip-vit-base-patch32`, or a folder in Hugging Face format. `commit` asks for
    that commit on the hub instead of the newest; a folder has none. The hub has `seconds` to respond. HF_ENDPOINT,
    HF_HOME, HF_HUB_CACHE and HF_HUB_OFFLINE are respected. Raise UserError for a folder that is missing or incomplete,
    or holds an adapter if it may not, and for an invalid name. A model that `has_language` needs a vocabulary.
    """
    if Path(name).expanduser().is_dir():
        return _in_folder(name, adapter)
    if (path := Path(name).expanduser()).is_file():
        if (path.parent / CONFIG).is_file():
            raise UserError(f"checkpoint={name} is a file: name its folder, checkpoint={Path(name).parent}.")
        raise UserError(f"checkpoint={name} is {state_dict_form(path.name)}.")
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name:
        raise UserError(f"checkpoint={name} is not a folder: name one in Hugging Face format, or a model on the hub.")
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # exported by name at run time

    try:
        validate_repo_id(name)
    except HFValidationError:
        raise UserError(
            f"checkpoint={name} is not a valid name on the hub: use one such as "
            "openai/clip-vit-base-patch32, or a folder."
        ) from None
    return _in_cache(name, commit, has_language) or _on_hub(name, commit, seconds)


def _in_folder(name: str, adapter: bool) -> AvailableCheckpoint:
    folder = Path(name).expanduser()
    if pointer := find_pointer(folder):
        raise UserError(
            f"checkpoint={name} holds only Git LFS's pointer to {pointer}: run `git lfs pull` in that folder, or "
            "download the file itself."
        )
    names = _files_in(folder)
    if ADAPTER_CONFIG in names and ADAPTER_WEIGHTS in names:
        if not adapter:
            raise UserError(f"{name} is an adapter itself: name the whole model.")
        return _adapter(name, folder, names)
    config, files = read_json(folder / CONFIG), _needed_files(names)
    if config and _has_complete_weights(folder, files) and "open_clip" not in json.dumps(config):
        return AvailableCheckpoint(name, "folder", str(folder), None, files)
    weights = next((file for file in OPEN_CLIP_WEIGHTS if file in names), "")
    if weights and open_clip_settings(folder):
        return AvailableCheckpoint(
            name, "folder", str(folder), None, (*_needed_files(names), weights), open_clip=weights
        )
    if not config and (checkpoints := trainers_checkpoints(folder)):
        return _of_trainer(name, checkpoints, adapter)
    if form := foreign_form(names, config):
        raise UserError(f"checkpoint={name} holds no model in Hugging Face's format but {form}.")
    if not config:
        inner = sorted(path.parent.name for path in folder.glob(f"*/{CONFIG}"))
        instead = f"checkpoint={Path(name) / inner[0]}" if inner else "a folder that save_pretrained wrote"
        raise UserError(f"checkpoint={name} holds no readable {CONFIG}: name {instead}.")
    raise UserError(
        f"checkpoint={name} holds no complete weights ({WEIGHTS[0]} or {WEIGHTS[2]}, with all parts that an "
        "index lists): name a folder that save_pretrained wrote."
    )


def _of_trainer(name: str, checkpoints: list[Path], adapter: bool) -> AvailableCheckpoint:
    """Return the only checkpoint in a Trainer's output folder. Raise UserError if there are several to choose from."""
    newest = checkpoints[-1].name
    if len(checkpoints) > 1:
        best = best_checkpoint(checkpoints)
        raise UserError(
            f"checkpoint={name} holds {len(checkpoints)} checkpoints of a Trainer: name one of them, as the "
            f"{'best' if best else 'newest'}, checkpoint={Path(name) / (best or newest)}."
        )
    logger.info(f"checkpoint={name} holds one checkpoint of a Trainer, {newest}, which is used.")
    return _in_folder(str(Path(name) / newest), adapter)


def _adapter(name: str, folder: Path, names: Collection[str]) -> AvailableCheckpoint:
    """Return an adapter in a folder, with the model that it is to be merged into. Raise UserError if there is none."""
    settings = read_json(folder / ADAPTER_CONFIG)
    kind, model = settings.get("peft_type"), str(settings.get("base_model_name_or_path") or "")
    what = f"checkpoint={name} is an adapter ({kind}) of {model or 'an unnamed model'}"
    merged = "merge it into that model with merge_and_unload and save that with save_pretrained"
    if kind != "LORA":
        raise UserError(f"{what}, and only LORA is merged here: {merged}.")
    if not model or Path(model).expanduser().resolve() == folder.resolve():
        raise UserError(f"{what}: write the model's name or folder into base_model_name_or_path of {ADAPTER_CONFIG}.")
    try:
        base = find_checkpoint(model, adapter=False)
    except UserError as error:
        raise UserError(f"{what}, which cannot be used: {error}") from None
    if isinstance(base, UnavailableCheckpoint):
        raise UserError(
            f"{what}, which is not available ({base.reason}): download it with `hf download {model}`, or {merged}."
        )
    return AvailableCheckpoint(name, "folder", str(folder), None, _needed_files(names), base=base)


def _in_cache(name: str, commit: str, has_language: bool) -> AvailableCheckpoint | None:
    """Return the commit, or else the last requested one of the hub's main branch, if the cache holds all of it."""
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(name, CONFIG, revision=commit or None)
    if not isinstance(config, str):
        return None
    folder = Path(config).parent
    files = _needed_files(_files_in(folder))
    complete = (
        read_json(folder / CONFIG)
        and _has_complete_weights(folder, files)
        and (not has_language or any(file in VOCABULARIES for file in files))
    )
    return AvailableCheckpoint(name, "cache", str(folder), folder.name, files, bool(commit)) if complete else None


def _on_hub(name: str, commit: str, seconds: float) -> AvailableCheckpoint | UnavailableCheckpoint:
    import httpx2
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    if constants.is_offline_mode():
        return UnavailableCheckpoint(name, "HF_HUB_OFFLINE is set, and the hub's cache holds no complete copy")
    silence_telemetry()
    try:
        info = call_with_timeout(seconds, lambda: HfApi().model_info(name, revision=commit or None, timeout=seconds))
    except (TimeoutError, httpx2.TimeoutException):
        return UnavailableCheckpoint(
            name, f"the hub did not respond within {seconds:g} seconds, and its cache holds no complete copy"
        )
    except RepositoryNotFoundError:
        return UnavailableCheckpoint(name, "the hub has no such model, or shows it only after `hf auth login`")
    except RevisionNotFoundError:
        return UnavailableCheckpoint(name, f"the hub no longer has its commit {commit}, which the run started from")
    except HfHubHTTPError as error:
        return UnavailableCheckpoint(name, f"the hub responds with HTTP {error.response.status_code}")
    except (httpx2.HTTPError, OSError, ValueError):
        return UnavailableCheckpoint(name, "the hub cannot be reached, and its cache holds no complete copy")
    names = [sibling.rfilename for sibling in info.siblings or ()]
    files = _needed_files(names)
    if ADAPTER_CONFIG in names:
        return UnavailableCheckpoint(
            name, f"the hub's copy is an adapter: `hf download {name} --local-dir <folder>`, and name that folder"
        )
    if CONFIG not in files and (form := foreign_form(names, {})):
        return UnavailableCheckpoint(name, f"the hub's copy is {form}")
    if CONFIG not in files or not any(re.search(r"\.(safetensors|bin)$", file) for file in files):
        return UnavailableCheckpoint(name, f"the hub's copy has no {CONFIG} or no weights that transformers reads")
    return AvailableCheckpoint(name, "hub", name, info.sha, files, bool(commit))


def _files_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.is_file()]


def _needed_files(names: Collection[str]) -> tuple[str, ...]:
    """Return the files of configuration and tokenizer, and the weights in the preferred format only."""
    weights: list[str] = []
    for form in WEIGHTS:
        if form in names:
            stem, kind = form.removesuffix(".index.json").rsplit(".", 1)
            parts = [name for name in names if re.fullmatch(rf"{stem}-\d+-of-\d+\.{kind}", name)]
            weights = [form, *(parts if form.endswith(".index.json") else [])]
            break
    if not weights:
        weights = [name for name in sorted(names) if _VARIANT.fullmatch(name)][:1]
    texts = [name for name in names if re.fullmatch(r"[^/]+\.(json|txt|model)", name) and name not in WEIGHTS]
    return tuple(sorted([*texts, *weights]))


def _has_complete_weights(folder: Path, files: Collection[str]) -> bool:
    """Return whether `files` hold weights, with every part that an index lists."""
    form = next((form for form in WEIGHTS if form in files), None)
    if form is None:
        return any(_VARIANT.fullmatch(file) for file in files)
    if not form.endswith(".index.json"):
        return True
    try:
        parts = set(json.loads((folder / form).read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return False
    return bool(parts) and parts <= set(files)


def fetch_checkpoint(checkpoint: AvailableCheckpoint) -> Path:
    """Return the local folder of the checkpoint, after downloading it into the hub's cache if necessary.

    Raise UserError if the download fails; files that arrived completely are kept.
    """
    if checkpoint.source != "hub":
        return Path(checkpoint.reference)
    from huggingface_hub import hf_hub_download

    try:
        paths = [hf_hub_download(checkpoint.reference, file, revision=checkpoint.revision) for file in checkpoint.files]
        if not checkpoint.pinned:
            # By branch, and last: this stores the branch's commit, without which the cache is unusable offline.
            hf_hub_download(checkpoint.reference, CONFIG)
    except Exception as error:
        raise UserError(
            f"The download of {checkpoint.name} failed ({first_line(error)}): run the command again, download it with "
            f"`hf download {checkpoint.name}`, or use weights=tiny."
        ) from error
    return Path(paths[0]).parent


def first_line(error: Exception) -> str:
    """Return the first line of an error's text, or else its type."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[0].rstrip(".")

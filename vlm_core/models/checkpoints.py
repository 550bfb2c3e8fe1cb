"""Pretrained checkpoints: located in a folder, the hub's cache or on the hub, and loaded as a model.

A model is always loaded from a local folder, so that loading never waits for the network.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

from vlm_core.catalogue.fetching import call_with_timeout, silence_telemetry
from vlm_core.errors import UserError
from vlm_core.models.checkpoint_forms import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    OPEN_CLIP_WEIGHTS,
    best_checkpoint,
    common_prefix,
    find_pointer,
    foreign_form,
    read_json,
    state_dict_form,
    trainers_checkpoints,
    without_wrappers,
)
from vlm_core.models.checksums import verify_checksums
from vlm_core.models.lora import merge_saved_adapter
from vlm_core.models.open_clip import convert_weights, open_clip_settings

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Model = TypeVar("Model", bound="PreTrainedModel")
logger = logging.getLogger(__name__)

CONFIG: Final = "config.json"
# In order of preference; each is a single file, or the index of several.
WEIGHTS: Final = tuple(
    file + index for file in ("model.safetensors", "pytorch_model.bin") for index in ("", ".index.json")
)
_VARIANT: Final = re.compile(r"model\.(\w+)\.safetensors")  # e.g. fp16, which is all that some folders hold
VOCABULARIES: Final = ("tokenizer.json", "vocab.txt", "vocab.json")
_FAMILIES: Final = ("clip", "blip", "git")


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
    name: str, *, commit: str = "", seconds: float = 4.0, adapter: bool = True
) -> AvailableCheckpoint | UnavailableCheckpoint:
    """Return where to load a checkpoint from: a folder of that name, else the hub's cache, else the hub.

    `name` is a hub name such as `openai/clip-vit-base-patch32`, or a folder in Hugging Face format. `commit` asks for
    that commit on the hub instead of the newest; a folder has none. The hub has `seconds` to respond. HF_ENDPOINT,
    HF_HOME, HF_HUB_CACHE and HF_HUB_OFFLINE are respected. Raise UserError for a folder that is missing or incomplete,
    or holds an adapter if it may not, and for an invalid name.
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
    return _in_cache(name, commit) or _on_hub(name, commit, seconds)


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


def _in_cache(name: str, commit: str) -> AvailableCheckpoint | None:
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
        and any(file in VOCABULARIES for file in files)
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
            f"The download of {checkpoint.name} failed ({_first_line(error)}): run the command again, download it with "
            f"`hf download {checkpoint.name}`, or use weights=tiny."
        ) from error
    return Path(paths[0]).parent


def load_pretrained(checkpoint: AvailableCheckpoint, model_class: type[Model], **settings: Any) -> tuple[Model, Any]:
    """Return the checkpoint's model, in float32 and evaluation mode, and its tokenizer.

    An adapter is merged into its model. `settings` go to `model_class.from_pretrained`. Raise UserError for a
    checkpoint that is not the one of its `checksums.json`, is of another family, cannot be read, lacks weights of the
    model, or has no matching tokenizer.
    """
    if checkpoint.base:
        return _load_adapter(checkpoint, model_class, **settings)
    folder = fetch_checkpoint(checkpoint)
    verify_checksums(folder)
    config = {"model_type": "clip"} if checkpoint.open_clip else read_json(folder / CONFIG)
    _require_family(checkpoint, config, model_class)
    read = _read_open_clip if checkpoint.open_clip else _read_weights
    with _naming(checkpoint), quiet_transformers():
        model, report = read(checkpoint, folder, model_class, settings)
        tokenizer = _load_tokenizer(checkpoint, folder, model.config)
    _require_fit(checkpoint, report, config, model_class)
    _require_numbers(checkpoint, model)
    model.config._name_or_path = checkpoint.name  # saved with the model, where a local path would be of no use
    return model, tokenizer


def _load_adapter(checkpoint: AvailableCheckpoint, model_class: type[Model], **settings: Any) -> tuple[Model, Any]:
    """Return the model that an adapter belongs to, with the adapter merged into it, and the tokenizer of either."""
    assert checkpoint.base
    folder = Path(checkpoint.reference)
    model, tokenizer = load_pretrained(checkpoint.base, model_class, **settings)
    with _naming(checkpoint):
        merge_saved_adapter(model, folder)
        if any(file in VOCABULARIES for file in checkpoint.files):
            tokenizer = _load_tokenizer(checkpoint, folder, model.config)
    _require_numbers(checkpoint, model)
    logger.info(f"The adapter in {checkpoint.name} is merged into {checkpoint.base.name}.")
    return model, tokenizer


@contextlib.contextmanager
def _naming(checkpoint: AvailableCheckpoint) -> Iterator[None]:
    """Turn what libraries raise about a checkpoint's files into a UserError that names it."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"The checkpoint {checkpoint.name} cannot be read ({_first_line(error)}): {_remedy(checkpoint)}."
        ) from error


def _loader(checkpoint: AvailableCheckpoint, model_class: type[Model], settings: dict[str, Any]) -> Any:
    """Return `from_pretrained`, which returns a model and a report, with what holds for every checkpoint."""
    import torch

    untyped: Any = model_class.from_pretrained  # its type lacks the report
    return partial(
        untyped,
        dtype=torch.float32,  # the default is the checkpoint's own
        use_safetensors=checkpoint.safetensors,
        variant=checkpoint.variant,
        weights_only=True,
        trust_remote_code=False,
        local_files_only=True,
        ignore_mismatched_sizes=True,  # reported; rejected with the weight's name
        output_loading_info=True,
        **settings,
    )


def _read_open_clip(
    checkpoint: AvailableCheckpoint, folder: Path, model_class: type[Model], settings: dict[str, Any]
) -> tuple[Model, dict[str, Any]]:
    """Return the model that open_clip has saved, and transformers' report."""
    from transformers.modeling_utils import load_state_dict

    make_config: Any = model_class.config_class
    weights = convert_weights(load_state_dict(str(folder / checkpoint.open_clip), weights_only=True))
    load = _loader(checkpoint, model_class, settings)
    return load(None, config=make_config(**(open_clip_settings(folder) or {})), state_dict=weights)  # type: ignore[no-any-return]


def _read_weights(
    checkpoint: AvailableCheckpoint, folder: Path, model_class: type[Model], settings: dict[str, Any]
) -> tuple[Model, dict[str, Any]]:
    """Return the model and transformers' report; names that a wrapper has lengthened are read without it."""
    from transformers.modeling_utils import load_state_dict

    load = _loader(checkpoint, model_class, settings)
    model, report = load(folder)
    unknown, missing = report["unexpected_keys"], set(report["missing_keys"])
    prefix = common_prefix({without_wrappers(name) for name in unknown}, missing)
    shapes = report["mismatched_keys"]
    single = {name: needed for name, held, needed in shapes if math.prod(held) == math.prod(needed) == 1}
    if prefix is None and not single:
        return model, report
    if prefix is not None:
        logger.info(f"{checkpoint.name} holds a model in a wrapper, as {min(unknown)}: it is read without it.")
    files = [file for file in checkpoint.files if file.endswith((".safetensors", ".bin"))]
    weights: dict[str, Any] = {}
    for file in files:
        weights |= load_state_dict(str(folder / file), weights_only=True)
    plain = {without_wrappers(name).removeprefix(prefix or ""): weight for name, weight in weights.items()}
    plain |= {name: plain[name].reshape(shape) for name, shape in single.items()}  # as [1] for []
    return load(None, config=model.config, state_dict=plain)  # type: ignore[no-any-return]


def _require_family(checkpoint: AvailableCheckpoint, config: dict[str, Any], model_class: type[Model]) -> None:
    """Raise UserError for a checkpoint whose configuration is of another family than the model."""
    expected, family = getattr(model_class.config_class, "model_type", None), config.get("model_type")
    if family == expected:
        return
    name = f"The checkpoint {checkpoint.name}"
    if family in _FAMILIES:
        raise UserError(
            f"{name} is of the family {family}, not {expected}: use model={family}, or another checkpoint=."
        )
    if str(family).startswith(f"{expected}_"):
        raise UserError(f"{name} is a part of a {expected} alone ({family}): name a checkpoint= with the whole model.")
    raise UserError(
        f"{name} is of {f'the family {family}' if family else 'an unknown family'}, and the model needs one of "
        f"{expected}: choose another model= or checkpoint=."
    )


def _require_fit(
    checkpoint: AvailableCheckpoint, report: dict[str, Any], config: dict[str, Any], model_class: type[Model]
) -> None:
    """Raise UserError if the checkpoint lacks weights of the model; log a warning about unused ones."""
    shapes = sorted(key if isinstance(key, str) else key[0] for key in report["mismatched_keys"])
    if missing := sorted(report["missing_keys"]) or shapes:
        held = next((str(name) for name in config.get("architectures") or () if name != model_class.__name__), "")
        if held and not shapes:
            raise UserError(
                f"The checkpoint {checkpoint.name} holds a {held}, which lacks {len(missing)} weights of the "
                f"{model_class.__name__} that is needed, the first is {missing[0]}; saving it again does not help: "
                "use a checkpoint= of that class."
            )
        raise UserError(
            f"The checkpoint {checkpoint.name} does not fit the model: {len(missing)} weights are missing or of "
            f"another shape, the first is {missing[0]}; {_remedy(checkpoint)}."
        )
    if unexpected := sorted(report["unexpected_keys"]):
        logger.warning(
            "%s holds %d weights that the model does not use, the first is %s: they are ignored.",
            checkpoint.name,
            len(unexpected),
            unexpected[0],
        )


def _require_numbers(checkpoint: AvailableCheckpoint, model: PreTrainedModel) -> None:
    """Raise UserError for a model with weights that are not finite."""
    if broken := next((name for name, weight in model.named_parameters() if not bool(weight.isfinite().all())), ""):
        raise UserError(f"The checkpoint {checkpoint.name} holds NaN or infinity in {broken}: {_remedy(checkpoint)}.")


def _load_tokenizer(checkpoint: AvailableCheckpoint, folder: Path, config: Any) -> Any:
    from transformers import AutoTokenizer

    # Otherwise transformers would return a tokenizer with special tokens only.
    if not any((folder / file).is_file() for file in VOCABULARIES):
        raise UserError(
            f"The checkpoint {checkpoint.name} holds no tokenizer ({', '.join(VOCABULARIES)}): save the tokenizer "
            "into the same folder with save_pretrained."
        )
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    vocabulary = int(config.get_text_config().vocab_size)
    if len(tokenizer) > vocabulary:
        raise UserError(
            f"The checkpoint {checkpoint.name} holds a tokenizer of {len(tokenizer)} tokens for a model of "
            f"{vocabulary}: save the tokenizer that belongs to the model."
        )
    return tokenizer


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence transformers' progress bars and reports within the context; this module reports what matters."""
    from transformers.utils import logging as untyped

    reports: Any = untyped
    level, bars = reports.get_verbosity(), reports.is_progress_bar_enabled()
    reports.set_verbosity_error()
    reports.disable_progress_bar()
    try:
        yield
    finally:
        reports.set_verbosity(level)
        if bars:
            reports.enable_progress_bar()


def _remedy(checkpoint: AvailableCheckpoint) -> str:
    if checkpoint.source == "folder":
        return "save it again with save_pretrained, or use another checkpoint="
    return f"download it again with `hf download --force-download {checkpoint.name}`, or use another checkpoint="


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[0].rstrip(".")

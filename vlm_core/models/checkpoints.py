"""Pretrained checkpoints: located in a folder, the hub's cache or on the hub, and loaded as a model.

A model is always loaded from a local folder, so that loading never waits for the network.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

from vlm_core.catalogue.fetching import call_with_timeout, silence_telemetry
from vlm_core.errors import UserError
from vlm_core.models.checksums import verify_checksums

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Model = TypeVar("Model", bound="PreTrainedModel")

CONFIG: Final = "config.json"
# In order of preference; each is a single file, or the index of several.
WEIGHTS: Final = tuple(
    file + index for file in ("model.safetensors", "pytorch_model.bin") for index in ("", ".index.json")
)
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

    @property
    def local_files_only(self) -> bool:
        """Return whether all files are on this machine."""
        return self.source != "hub"

    @property
    def safetensors(self) -> bool:
        """Return whether the weights are safetensors rather than PyTorch's own files."""
        return any(file.endswith(".safetensors") for file in self.files)


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
    name: str, *, commit: str = "", seconds: float = 4.0
) -> AvailableCheckpoint | UnavailableCheckpoint:
    """Return where to load a checkpoint from: a folder of that name, else the hub's cache, else the hub.

    `name` is a hub name such as `openai/clip-vit-base-patch32`, or a folder in Hugging Face format. `commit` asks for
    that commit on the hub instead of the newest; a folder has none. The hub has `seconds` to respond. HF_ENDPOINT,
    HF_HOME, HF_HUB_CACHE and HF_HUB_OFFLINE are respected. Raise UserError for a folder that is missing or incomplete,
    and for an invalid name.
    """
    if Path(name).expanduser().is_dir():
        return _in_folder(name)
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


def _in_folder(name: str) -> AvailableCheckpoint:
    folder = Path(name).expanduser()
    if not _read_config(folder):
        raise UserError(f"checkpoint={name} holds no readable {CONFIG}: name a folder that save_pretrained wrote.")
    files = _needed_files(_files_in(folder))
    weights = _has_complete_weights(folder, files)
    if not weights:
        raise UserError(
            f"checkpoint={name} holds no complete weights ({WEIGHTS[0]} or {WEIGHTS[2]}, with all parts that an "
            "index lists): name a folder that save_pretrained wrote."
        )
    return AvailableCheckpoint(name, "folder", str(folder), None, files)


def _in_cache(name: str, commit: str) -> AvailableCheckpoint | None:
    """Return the commit, or else the last requested one of the hub's main branch, if the cache holds all of it."""
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(name, CONFIG, revision=commit or None)
    if not isinstance(config, str):
        return None
    folder = Path(config).parent
    files = _needed_files(_files_in(folder))
    complete = (
        _read_config(folder) and _has_complete_weights(folder, files) and any(file in VOCABULARIES for file in files)
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
    files = _needed_files([sibling.rfilename for sibling in info.siblings or ()])
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
    texts = [name for name in names if re.fullmatch(r"[^/]+\.(json|txt|model)", name) and name not in WEIGHTS]
    return tuple(sorted([*texts, *weights]))


def _has_complete_weights(folder: Path, files: Collection[str]) -> bool:
    """Return whether `files` hold weights, with every part that an index lists."""
    form = next((form for form in WEIGHTS if form in files), None)
    if form is None or not form.endswith(".index.json"):
        return form is not None
    try:
        parts = set(json.loads((folder / form).read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return False
    return bool(parts) and parts <= set(files)


def _read_config(folder: Path) -> dict[str, Any]:
    """Return the folder's configuration; empty if it is missing or broken."""
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):  # nested too deeply
        return {}
    return config if isinstance(config, dict) else {}


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

    `settings` go to `model_class.from_pretrained`. Raise UserError for a checkpoint that is not the one of its
    `checksums.json`, is of another family, cannot be read, lacks weights of the model, or has no matching tokenizer.
    """
    import torch

    folder = fetch_checkpoint(checkpoint)
    verify_checksums(folder)
    expected, family = getattr(model_class.config_class, "model_type", None), _read_config(folder).get("model_type")
    if family != expected:
        raise UserError(
            f"The checkpoint {checkpoint.name} is of {f'the family {family}' if family else 'an unknown family'}, and "
            f"the model needs one of {expected}: choose another model= or checkpoint=."
        )
    load: Any = model_class.from_pretrained  # its type lacks the report
    try:
        with quiet_transformers():
            model, report = load(
                folder,
                dtype=torch.float32,  # the default is the checkpoint's own
                use_safetensors=checkpoint.safetensors,
                weights_only=True,
                trust_remote_code=False,
                local_files_only=True,
                ignore_mismatched_sizes=True,  # reported; rejected below with the weight's name
                output_loading_info=True,
                **settings,
            )
            tokenizer = _load_tokenizer(checkpoint, folder, model.config)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"The checkpoint {checkpoint.name} cannot be read ({_first_line(error)}): {_remedy(checkpoint)}."
        ) from error
    _require_fit(checkpoint, report)
    if broken := next((name for name, weight in model.named_parameters() if not bool(weight.isfinite().all())), ""):
        raise UserError(f"The checkpoint {checkpoint.name} holds NaN or infinity in {broken}: {_remedy(checkpoint)}.")
    model.config._name_or_path = checkpoint.name  # saved with the model, where a local path would be of no use
    return model, tokenizer


def _require_fit(checkpoint: AvailableCheckpoint, report: dict[str, Any]) -> None:
    """Raise UserError if the checkpoint lacks weights of the model; log a warning about unused ones."""
    shapes = sorted(key if isinstance(key, str) else key[0] for key in report["mismatched_keys"])
    if missing := sorted(report["missing_keys"]) or shapes:
        raise UserError(
            f"The checkpoint {checkpoint.name} does not fit the model: {len(missing)} weights are missing or of "
            f"another shape, the first is {missing[0]}; {_remedy(checkpoint)}."
        )
    if unexpected := sorted(report["unexpected_keys"]):
        logging.getLogger(__name__).warning(
            "%s holds %d weights that the model does not use, the first is %s: they are ignored.",
            checkpoint.name,
            len(unexpected),
            unexpected[0],
        )


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

"""Where a checkpoint can be had from, and how it becomes a model: a folder, the hub's cache, or the hub.

Whatever the source, a model is loaded from a local folder: nothing then waits for a network that is not there.
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

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Model = TypeVar("Model", bound="PreTrainedModel")

CONFIG: Final = "config.json"
# In the order of preference: each is one file, or an index of several.
WEIGHTS: Final = tuple(
    file + index for file in ("model.safetensors", "pytorch_model.bin") for index in ("", ".index.json")
)
VOCABULARIES: Final = ("tokenizer.json", "vocab.txt", "vocab.json")


@dataclass(frozen=True)
class FoundCheckpoint:
    """A checkpoint that can be had, and the files of it that are needed."""

    name: str  # as the user gave it: a hub name or a folder
    source: Literal["folder", "cache", "hub"]
    reference: str  # what `from_pretrained` takes: a local folder, or the hub name when the source is the hub
    revision: str | None  # commit on the hub, where it is known
    files: tuple[str, ...]  # configuration, tokenizer, and the weights in one form

    @property
    def local_files_only(self) -> bool:
        """Whether everything is on this machine."""
        return self.source != "hub"

    @property
    def safetensors(self) -> bool:
        """Whether the weights are safetensors rather than PyTorch's own files."""
        return any(file.endswith(".safetensors") for file in self.files)


@dataclass(frozen=True)
class MissingCheckpoint:
    """A checkpoint that cannot be had now, and why: half a sentence."""

    name: str
    reason: str

    def sentence(self) -> str:
        """What a UserError says where nothing else will do: the reason and the ways out."""
        return (
            f"The checkpoint {self.name} cannot be had ({self.reason}): fetch it with `hf download {self.name}` where "
            "there is a network, give a folder that holds it with checkpoint=, or take weights=tiny."
        )


def find_checkpoint(name: str, *, seconds: float = 4.0) -> FoundCheckpoint | MissingCheckpoint:
    """Where the checkpoint can be had from: a folder of that name, else the hub's cache, else the hub.

    `name` is a hub name such as `openai/clip-vit-base-patch32`, or a folder in Hugging Face format. The hub is given
    `seconds` to answer. HF_ENDPOINT, HF_HOME, HF_HUB_CACHE and HF_HUB_OFFLINE are obeyed. Raises UserError for a
    folder that is not there or lacks a file, and for what can be no name.
    """
    if Path(name).expanduser().is_dir():
        return _in_folder(name)
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name:
        raise UserError(f"checkpoint={name} is no folder: give one in Hugging Face format, or a name on the hub.")
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # exported by name at run time

    try:
        validate_repo_id(name)
    except HFValidationError:
        raise UserError(
            f"checkpoint={name} can be no name on the hub: give one such as openai/clip-vit-base-patch32, or a folder."
        ) from None
    return _in_cache(name) or _on_hub(name, seconds)


def _in_folder(name: str) -> FoundCheckpoint:
    folder = Path(name).expanduser()
    if not _read_config(folder):
        raise UserError(f"checkpoint={name} holds no readable {CONFIG}: give a folder that save_pretrained wrote.")
    files = _needed_files(_files_in(folder))
    weights = _whole_weights(folder, files)
    if not weights:
        raise UserError(
            f"checkpoint={name} holds no whole weights ({WEIGHTS[0]} or {WEIGHTS[2]}, with all parts that an index "
            "names): give a folder that save_pretrained wrote."
        )
    return FoundCheckpoint(name, "folder", str(folder), None, files)


def _in_cache(name: str) -> FoundCheckpoint | None:
    """The newest commit of the hub's main branch that was ever asked for, when all of it is in the cache."""
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(name, CONFIG)
    if not isinstance(config, str):
        return None
    folder = Path(config).parent
    files = _needed_files(_files_in(folder))
    whole = _read_config(folder) and _whole_weights(folder, files) and any(file in VOCABULARIES for file in files)
    return FoundCheckpoint(name, "cache", str(folder), folder.name, files) if whole else None


def _on_hub(name: str, seconds: float) -> FoundCheckpoint | MissingCheckpoint:
    import httpx2
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

    if constants.is_offline_mode():
        return MissingCheckpoint(name, "HF_HUB_OFFLINE is set, and the hub's cache holds no whole copy of it")
    silence_telemetry()
    try:
        info = call_with_timeout(seconds, lambda: HfApi().model_info(name, timeout=seconds))
    except (TimeoutError, httpx2.TimeoutException):
        return MissingCheckpoint(
            name, f"the hub did not answer within {seconds:g} seconds, and its cache holds no whole copy"
        )
    except RepositoryNotFoundError:
        return MissingCheckpoint(name, "the hub knows no such model, or shows it only after `hf auth login`")
    except HfHubHTTPError as error:
        return MissingCheckpoint(name, f"the hub answers with HTTP {error.response.status_code}")
    except (httpx2.HTTPError, OSError, ValueError):
        return MissingCheckpoint(name, "the hub cannot be reached, and its cache holds no whole copy")
    files = _needed_files([sibling.rfilename for sibling in info.siblings or ()])
    if CONFIG not in files or not any(re.search(r"\.(safetensors|bin)$", file) for file in files):
        return MissingCheckpoint(name, f"the hub's copy has no {CONFIG} or no weights that transformers reads")
    return FoundCheckpoint(name, "hub", name, info.sha, files)


def _files_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.is_file()]


def _needed_files(names: Collection[str]) -> tuple[str, ...]:
    """Of all files: what configures the model and its tokenizer, and the weights in the preferred form alone."""
    weights: list[str] = []
    for form in WEIGHTS:
        if form in names:
            stem, kind = form.removesuffix(".index.json").rsplit(".", 1)
            parts = [name for name in names if re.fullmatch(rf"{stem}-\d+-of-\d+\.{kind}", name)]
            weights = [form, *(parts if form.endswith(".index.json") else [])]
            break
    texts = [name for name in names if re.fullmatch(r"[^/]+\.(json|txt|model)", name) and name not in WEIGHTS]
    return tuple(sorted([*texts, *weights]))


def _whole_weights(folder: Path, files: Collection[str]) -> bool:
    """Whether the weights among `files` are there, with every part that an index names."""
    form = next((form for form in WEIGHTS if form in files), None)
    if form is None or not form.endswith(".index.json"):
        return form is not None
    try:
        parts = set(json.loads((folder / form).read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return False
    return bool(parts) and parts <= set(files)


def _read_config(folder: Path) -> dict[str, Any]:
    """The folder's configuration; empty when there is none that can be read."""
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def fetch_checkpoint(found: FoundCheckpoint) -> Path:
    """The local folder that holds the checkpoint, downloaded into the hub's cache when it was found on the hub.

    Raises UserError when the download fails; files that had arrived whole are kept.
    """
    if found.source != "hub":
        return Path(found.reference)
    from huggingface_hub import hf_hub_download

    try:
        paths = [hf_hub_download(found.reference, file, revision=found.revision) for file in found.files]
        # Asked for by branch and last: it notes the branch's commit, without which the cache is not found offline.
        hf_hub_download(found.reference, CONFIG)
    except Exception as error:
        raise UserError(
            f"The download of {found.name} failed ({_first_line(error)}): run the command again, fetch it with "
            f"`hf download {found.name}`, or take weights=tiny."
        ) from error
    return Path(paths[0]).parent


def load_pretrained(found: FoundCheckpoint, model_class: type[Model], **settings: Any) -> tuple[Model, Any]:
    """The checkpoint's model, float32 and in evaluation mode, and its tokenizer.

    `settings` go to `model_class.from_pretrained`. Raises UserError for a checkpoint of another family, one that
    cannot be read, one that lacks weights of the model, and one without a tokenizer that fits.
    """
    import torch

    folder = fetch_checkpoint(found)
    wanted, given = getattr(model_class.config_class, "model_type", None), _read_config(folder).get("model_type")
    if given != wanted:
        raise UserError(
            f"The checkpoint {found.name} is of the family {given or 'that its config.json does not name'}, and the "
            f"model needs one of {wanted}: choose another model= or checkpoint=."
        )
    load: Any = model_class.from_pretrained  # its type knows nothing of the report
    try:
        with quiet_transformers():
            model, report = load(
                folder,
                dtype=torch.float32,  # left to itself, transformers keeps the checkpoint's own
                use_safetensors=found.safetensors,
                weights_only=True,
                trust_remote_code=False,
                local_files_only=True,
                ignore_mismatched_sizes=True,  # reported, and refused below with the weight's name
                output_loading_info=True,
                **settings,
            )
            tokenizer = _load_tokenizer(found, folder, model.config)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"The checkpoint {found.name} cannot be read ({_first_line(error)}): {_way_to_renew(found)}."
        ) from error
    _require_fit(found, report)
    model.config._name_or_path = found.name  # saved with the model: a path of this machine tells nobody anything
    return model, tokenizer


def _require_fit(found: FoundCheckpoint, report: dict[str, Any]) -> None:
    """Raise UserError when weights of the model did not come from the checkpoint; log those it has besides."""
    shapes = sorted(key if isinstance(key, str) else key[0] for key in report["mismatched_keys"])
    if missing := sorted(report["missing_keys"]) or shapes:
        raise UserError(
            f"The checkpoint {found.name} does not fit the model: {len(missing)} weights are absent or of another "
            f"shape, the first is {missing[0]}; {_way_to_renew(found)}."
        )
    if unexpected := sorted(report["unexpected_keys"]):
        logging.getLogger(__name__).warning(
            "%s holds %d weights that the model has no place for, the first is %s: they are left out.",
            found.name,
            len(unexpected),
            unexpected[0],
        )


def _load_tokenizer(found: FoundCheckpoint, folder: Path, config: Any) -> Any:
    from transformers import AutoTokenizer

    # Without this, transformers makes up a tokenizer that knows its special tokens alone.
    if not any((folder / file).is_file() for file in VOCABULARIES):
        raise UserError(
            f"The checkpoint {found.name} holds no tokenizer ({', '.join(VOCABULARIES)}): save the tokenizer into the "
            "same folder with save_pretrained."
        )
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    places = int(config.get_text_config().vocab_size)
    if len(tokenizer) > places:
        raise UserError(
            f"The checkpoint {found.name} holds a tokenizer of {len(tokenizer)} tokens for a model of {places}: save "
            "the tokenizer that belongs to the model."
        )
    return tokenizer


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """While it lasts, transformers prints no bars and no reports: what matters of them is said in a sentence."""
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


def _way_to_renew(found: FoundCheckpoint) -> str:
    if found.source == "folder":
        return "save it again with save_pretrained, or give another checkpoint="
    return f"fetch it again with `hf download --force-download {found.name}`, or give another checkpoint="


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[0].rstrip(".")

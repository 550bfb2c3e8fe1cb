"""Pretrained checkpoints loaded as a model and its tokenizer.

A model is always loaded from a local folder, so that loading never waits for the network.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from vlm_core.config.families import FAMILIES
from vlm_core.errors import UserError
from vlm_core.models.checkpoint_forms import common_prefix, read_json, without_wrappers
from vlm_core.models.checkpoints import CONFIG, VOCABULARIES, AvailableCheckpoint, fetch_checkpoint, first_line
from vlm_core.models.checksums import verify_checksums
from vlm_core.models.lora import merge_saved_adapter
from vlm_core.models.open_clip import convert_weights, open_clip_family, open_clip_settings
from vlm_core.models.vision import TOWERS

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Model = TypeVar("Model", bound="PreTrainedModel")
logger = logging.getLogger(__name__)

TOKENIZER_CONFIG: Final = "tokenizer_config.json"


def load_pretrained(
    checkpoint: AvailableCheckpoint, model_class: type[Model], *, has_language: bool = True, **settings: Any
) -> tuple[Model, Any]:
    """Return the checkpoint's model, in float32 and evaluation mode, and its tokenizer; None without language.

    An adapter is merged into its model. `settings` go to `model_class.from_pretrained`. Raise UserError for a
    checkpoint that is not the one of its `checksums.json`, is of another family, cannot be read, lacks weights of the
    model, or has no matching tokenizer.
    """
    if checkpoint.base:
        return _load_adapter(checkpoint, model_class, has_language, **settings)
    folder = fetch_checkpoint(checkpoint)
    verify_checksums(folder)
    config = _read_config(checkpoint, folder)
    _require_family(checkpoint, config, model_class)
    read = _read_open_clip if checkpoint.open_clip else _read_weights
    with _naming(checkpoint), quiet_transformers():
        model, report = read(checkpoint, folder, model_class, settings)
        tokenizer = _load_tokenizer(checkpoint, folder, model.config) if has_language else None
    _require_fit(checkpoint, report, config, model_class)
    _require_numbers(checkpoint, model)
    model.config._name_or_path = checkpoint.name  # saved with the model, where a local path would be of no use
    return model, tokenizer


def family_of_checkpoint(checkpoint: AvailableCheckpoint) -> str:
    """Return the family of a checkpoint's model, an adapter's that of the model it belongs to; "" if none is stated."""
    model = checkpoint.base or checkpoint
    return str(_read_config(model, fetch_checkpoint(model)).get("model_type") or "")


def _read_config(checkpoint: AvailableCheckpoint, folder: Path) -> dict[str, Any]:
    """Return a checkpoint's `config.json`; of what open_clip has saved the family alone."""
    return {"model_type": open_clip_family(folder)} if checkpoint.open_clip else read_json(folder / CONFIG)


def _load_adapter(
    checkpoint: AvailableCheckpoint, model_class: type[Model], has_language: bool, **settings: Any
) -> tuple[Model, Any]:
    """Return the model that an adapter belongs to, with the adapter merged into it, and the tokenizer of either."""
    assert checkpoint.base
    folder = Path(checkpoint.reference)
    model, tokenizer = load_pretrained(checkpoint.base, model_class, has_language=has_language, **settings)
    with _naming(checkpoint):
        merge_saved_adapter(model, folder)
        if has_language and any(file in VOCABULARIES for file in checkpoint.files):
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
            f"The checkpoint {checkpoint.name} cannot be read ({first_line(error)}): {_remedy(checkpoint)}."
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
    if suiting := "vision" if family in TOWERS else family if family in FAMILIES else "":
        raise UserError(
            f"{name} is of the family {family}, not {expected}: use model={suiting}, or another checkpoint=."
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
    shapes = mismatched_weights(report)
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


def mismatched_weights(report: dict[str, Any]) -> list[str]:
    """Return the names of the weights that have another shape than the model's, by transformers' report of loading."""
    return sorted(key if isinstance(key, str) else key[0] for key in report["mismatched_keys"])


def _require_numbers(checkpoint: AvailableCheckpoint, model: PreTrainedModel) -> None:
    """Raise UserError for a model with weights that are not finite."""
    if broken := next((name for name, weight in model.named_parameters() if not bool(weight.isfinite().all())), ""):
        raise UserError(f"The checkpoint {checkpoint.name} holds NaN or infinity in {broken}: {_remedy(checkpoint)}.")


def _load_tokenizer(checkpoint: AvailableCheckpoint, folder: Path, config: Any) -> Any:
    # Otherwise transformers would return a tokenizer with special tokens only.
    if not any((folder / file).is_file() for file in VOCABULARIES):
        raise UserError(
            f"The checkpoint {checkpoint.name} holds no tokenizer ({', '.join(VOCABULARIES)}): save the tokenizer "
            "into the same folder with save_pretrained."
        )
    tokenizer = read_tokenizer(folder)
    vocabulary = int(config.get_text_config().vocab_size)
    if len(tokenizer) > vocabulary:
        raise UserError(
            f"The checkpoint {checkpoint.name} holds a tokenizer of {len(tokenizer)} tokens for a model of "
            f"{vocabulary}: save the tokenizer that belongs to the model."
        )
    return tokenizer


def read_tokenizer(folder: Path) -> Any:
    """Return the tokenizer in a folder. SigLIP's is read from `tokenizer.json`: its own class needs sentencepiece."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    kind = read_json(folder / TOKENIZER_CONFIG).get("tokenizer_class")
    own = kind == "SiglipTokenizer" and (folder / "tokenizer.json").is_file()
    reader: Any = PreTrainedTokenizerFast if own else AutoTokenizer
    return reader.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


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

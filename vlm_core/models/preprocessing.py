"""A checkpoint's own preprocessing: read from its `preprocessor_config.json`, and written beside saved weights."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from vlm_core.errors import UserError
from vlm_core.files.atomic import write_atomically
from vlm_core.models.checkpoint_forms import OPEN_CLIP_CONFIG, read_json
from vlm_core.pixels.views import MEAN, STD, Interpolation, Preprocessing, Resize

logger = logging.getLogger(__name__)

FILE: Final = "preprocessor_config.json"
NEWER_FILE: Final = "processor_config.json"  # of transformers 5, which writes image processor and tokenizer as one
_MOST_BYTES: Final = 1_000_000
_MOST_PIXELS: Final = 1024  # per side, as of the setting image_size
_WARPED: Final = 384  # from this side on, ConvNeXt stretches
_LARGEST: Final = 1e6  # of a number; the smallest is its inverse
_EIGHT_BITS: Final = 255
# Pillow's numbers, in which the files name an interpolation; PyTorch has no others.
_INTERPOLATIONS: Final[dict[int, Interpolation]] = {0: "nearest", 2: "bilinear", 3: "bicubic"}
_NUMBERS: Final = {name: number for number, name in _INTERPOLATIONS.items()}


def read_preprocessing(folder: Path) -> tuple[Preprocessing, int] | None:
    """Return a checkpoint's preprocessing and the side of its input in pixels (0: not stated); None without a file.

    What the file leaves out is as in CLIP's, BLIP's and GIT's own: their mean and deviation, and bicubic. Raise
    UserError if it cannot be read, or states what no image can be normalised by.
    """
    settings = _read(folder)
    if settings is None:
        return None
    mean, std = (_channels(folder, settings, name, own) for name, own in (("image_mean", MEAN), ("image_std", STD)))
    if settings.get("do_normalize", True) is False:
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if not all(value > 1 / _LARGEST for value in std):
        raise _unusable(folder, f"image_std={list(std)} is not above zero")
    if settings.get("include_top", False) is True:  # EfficientNet's processor divides by the deviation twice
        std = (std[0] ** 2, std[1] ** 2, std[2] ** 2)
    highest = _highest(folder, settings)
    if not math.isclose(highest, 1.0):  # values between 0 and 1 are normalised to the same by
        mean = (mean[0] / highest, mean[1] / highest, mean[2] / highest)
        std = (std[0] / highest, std[1] / highest, std[2] / highest)
    side = _side(settings)
    resize, shorter_side = _resize(settings, side)
    return Preprocessing(mean, std, _interpolation(settings), resize, shorter_side), side


def write_preprocessing(preprocessing: Preprocessing, image_size: int, folder: Path) -> None:
    """Write what `read_preprocessing` reads, as Hugging Face's image processors understand it."""
    is_cropped = preprocessing.resize == "crop"
    edges = {"shortest_edge": round(image_size * preprocessing.shorter_side)}
    size = edges if is_cropped else {"height": image_size, "width": image_size}
    settings = {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": size,
        "resample": _NUMBERS[preprocessing.interpolation],
        "do_center_crop": is_cropped,
        **({"crop_size": {"height": image_size, "width": image_size}} if is_cropped else {}),
        **({"do_pad": True} if preprocessing.resize == "pad" else {}),
        "do_rescale": True,
        "rescale_factor": 1 / _EIGHT_BITS,
        "do_normalize": True,
        "image_mean": list(preprocessing.mean),
        "image_std": list(preprocessing.std),
    }
    write_atomically(folder / FILE, lambda file: file.write(json.dumps(settings, indent=2).encode()))


def _read(folder: Path) -> Mapping[str, Any] | None:
    for name in (FILE, NEWER_FILE):
        try:
            with (folder / name).open("rb") as file:
                content = json.loads(file.read(_MOST_BYTES))
        except FileNotFoundError:
            continue
        except (OSError, ValueError, RecursionError) as error:
            raise _unusable(folder, f"{name} cannot be read: {error}") from None
        settings = content.get("image_processor") if name == NEWER_FILE and isinstance(content, dict) else content
        if isinstance(settings, dict):
            return settings
        if name == FILE:
            raise _unusable(folder, f"{name} is not a JSON object")
    return _of_open_clip(folder)


def _of_open_clip(folder: Path) -> Mapping[str, Any] | None:
    """Return the settings of a model that open_clip has saved, under the names of Hugging Face's; None if it is not."""
    saved = read_json(folder / OPEN_CLIP_CONFIG)
    stated = saved.get("preprocess_cfg", {})
    if not saved or not isinstance(stated, dict):
        return None
    interpolation = str(stated.get("interpolation", "bicubic"))
    numbers = {"resample": _NUMBERS[interpolation]} if interpolation in _NUMBERS else {}
    return {"image_mean": stated.get("mean"), "image_std": stated.get("std"), **numbers}


def _channels(
    folder: Path, settings: Mapping[str, Any], name: str, own: tuple[float, float, float]
) -> tuple[float, float, float]:
    """Return a value for each channel; one number stands for all three."""
    stated = settings.get(name)
    if stated is None:
        return own
    values = stated if isinstance(stated, list) else [stated]
    if len(values) not in (1, 3) or not all(_is_number(value) for value in values):
        raise _unusable(folder, f"{name}={stated} is not three numbers")
    red, green, blue = (float(value) for value in (values * 3 if len(values) == 1 else values))
    return red, green, blue


def _highest(folder: Path, settings: Mapping[str, Any]) -> float:
    """Return what white (255) is rescaled to before it is normalised."""
    if settings.get("do_rescale", True) is False:
        return float(_EIGHT_BITS)
    factor = settings.get("rescale_factor", 1 / _EIGHT_BITS)
    if not _is_number(factor) or factor < 1 / _LARGEST:
        raise _unusable(folder, f"rescale_factor={factor} is not a number above zero")
    return float(factor) * _EIGHT_BITS


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _LARGEST


def _interpolation(settings: Mapping[str, Any]) -> Interpolation:
    number = settings.get("resample", _NUMBERS["bicubic"])
    if isinstance(number, int) and number in _INTERPOLATIONS:
        return _INTERPOLATIONS[number]
    logger.warning(f"{FILE} asks for the interpolation {number}, which PyTorch does not have: bicubic is used.")
    return "bicubic"


def _resize(settings: Mapping[str, Any], side: int) -> tuple[Resize, float]:
    """Return how the file makes images square, and the shorter side before a crop, in sides of the input."""
    if settings.get("do_pad", False) is True:
        return "pad", 1.0
    size = settings.get("size")
    shorter = size.get("shortest_edge") if isinstance(size, dict) else None
    share = settings.get("crop_pct")  # ConvNeXt's, which crops images of up to 384 pixels to this share
    if shorter == side < _WARPED and _is_number(share) and 0 < float(str(share)) < 1:
        return "crop", 1 / float(str(share))
    if settings.get("do_center_crop", False) is not True or not side:
        return "stretch", 1.0
    return "crop", max(1.0, float(str(shorter)) / side) if _is_number(shorter) else 1.0


def _side(settings: Mapping[str, Any]) -> int:
    """Return the side of the square input; 0 where none is stated, or one that is not square."""
    cropped = settings.get("do_center_crop", False) and settings.get("crop_size")
    size: Any = cropped or settings.get("size")
    if isinstance(size, dict):
        size = [size.get("height", size.get("shortest_edge")), size.get("width", size.get("shortest_edge"))]
    first, *others = size if isinstance(size, list) and size else [size]
    if not isinstance(first, int) or any(side != first for side in others):
        return 0
    return first if 0 < first <= _MOST_PIXELS else 0


def _unusable(folder: Path, reason: str) -> UserError:
    return UserError(
        f"The preprocessing of the checkpoint in {folder} cannot be used ({reason}): get {FILE} again from where the "
        "checkpoint came from, or delete it to use CLIP's mean and deviation."
    )

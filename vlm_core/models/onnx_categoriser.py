"""A categoriser that onnxruntime runs: one ONNX graph from pixels to log-probabilities, without transformers."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import AliasChoices, Field, TypeAdapter

from vlm_core.errors import UserError
from vlm_core.evaluation.product_texts import TextReading
from vlm_core.files.atomic import write_atomically
from vlm_core.models.category_only import CategoryOnly
from vlm_core.models.token_ids import between_ends
from vlm_core.pixels.arrays import Float32Array, Pictures
from vlm_core.pixels.views import DEFAULT, Preprocessing, plain_view

Precision = Literal["fp32", "int8"]
ENGINE: Final = "onnx"  # `load_categoriser` tells an exported model by this field of categoriser.json
GRAPH: Final = "model.onnx"  # a graph beyond 1.5 GB keeps its weights beside it, in model.onnx.data
PIXELS: Final = "pixels"  # the graph's input (B, 3, S, S) float32
# Further inputs of a model that reads texts: token ids (B, T) int64, and which inputs are given (B, 2) float32. A model
# that reads texts alone has ids only.
IDS: Final = "ids"
GIVEN: Final = "given"
TOKENIZER: Final = "tokenizer.json"  # of such a model, as the library tokenizers reads it
LOG_PROBABILITIES: Final = "log_probabilities"  # its output (B, C) float32
SCHEMA: Final = 1
# Images per call. In int8 a call has one scale for all of its activations, and an image's prediction must not depend on
# the images beside it; docs/performance.md has what that costs.
IMAGES_PER_CALL: Final[dict[Precision, int]] = {"fp32": 32, "int8": 1}


@dataclass(frozen=True)
class OnnxDescription:
    """The content of an exported model's `categoriser.json`."""

    family: str  # of the exported model
    precision: Precision
    categories: tuple[str, ...]  # (C,)
    canvas: tuple[int, int]  # (height, width)
    image_size: int  # S
    head: Annotated[str, Field(validation_alias=AliasChoices("head", "answer"))]  # `answer` in earlier files
    readout: str
    preprocessing: Preprocessing = DEFAULT  # not in files of earlier versions
    reads: TextReading | None = None
    text_ends: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())  # token ids before and after the words of a text
    engine: Literal["onnx"] = ENGINE
    schema: Literal[1] = SCHEMA

    def write(self, folder: Path) -> None:
        """Write `categoriser.json` atomically."""
        content = _DESCRIPTION.dump_json(self, indent=2)
        write_atomically(folder / "categoriser.json", lambda file: file.write(content))

    @classmethod
    def read(cls, folder: Path) -> OnnxDescription:
        """Return the description that `write` wrote. Raise OSError or ValueError when it is not there or differs."""
        return _DESCRIPTION.validate_json((folder / "categoriser.json").read_bytes())


_DESCRIPTION = TypeAdapter(OnnxDescription)


class OnnxCategoriser(CategoryOnly):
    """A Categoriser without text generation. `save` copies the folder it was loaded from, which must still exist."""

    def __init__(self, folder: Path, description: OnnxDescription, session: Any) -> None:
        self.folder = folder
        self.description = description
        self.categories = description.categories
        self.canvas = description.canvas
        self._session = session  # onnxruntime.InferenceSession

    @property
    def reads(self) -> TextReading | None:
        """Return which texts of products the model reads; None for pictures alone."""
        return self.description.reads

    def log_probabilities(
        self, pictures: Pictures, texts: Sequence[str] | None = None, has_picture: NDArray[np.bool_] | None = None
    ) -> Float32Array:
        """Return log-probabilities (B, C) of images (B, H, W, 3), and of texts (B,) if the model reads any.

        An empty text is missing, and so is a picture where `has_picture` (B,) is false.
        """
        count, calls = IMAGES_PER_CALL[self.description.precision], []
        for start in range(0, len(pictures), count):
            some = slice(start, start + count)
            some_texts = None if texts is None else texts[some]
            inputs = self._inputs(pictures[some], some_texts, None if has_picture is None else has_picture[some])
            calls.append(self._session.run([LOG_PROBABILITIES], inputs)[0])
        return np.concatenate(calls) if calls else np.empty((0, len(self.categories)), np.float32)

    def _inputs(
        self, pictures: Pictures, texts: Sequence[str] | None, has_picture: NDArray[np.bool_] | None
    ) -> dict[str, NDArray[Any]]:
        """Return the graph's inputs by their names."""
        description, texts = self.description, [""] * len(pictures) if texts is None else texts
        ids = {IDS: self._ids(texts)} if description.reads else {}
        if description.reads and description.reads.inputs == "text":
            return ids
        pixels = {PIXELS: plain_view(pictures, description.image_size, description.preprocessing).numpy()}
        if not ids:
            return pixels
        has_picture = np.ones(len(pictures), dtype=bool) if has_picture is None else has_picture
        given = np.stack([has_picture, [bool(text) for text in texts]], axis=1).astype(np.float32)
        return {**pixels, **ids, GIVEN: given}

    def _ids(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """Return the token ids (B, T) of texts (B,)."""
        assert self.description.reads
        encoded = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return between_ends([each.ids for each in encoded], self.description.text_ends, self.description.reads.tokens)

    @cached_property
    def _tokenizer(self) -> Any:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(self.folder / TOKENIZER))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer

    def save(self, folder: Path) -> None:
        """Write `model.onnx` and the tokenizer, if there is one, then `categoriser.json`, each atomically."""
        for path in [*sorted(self.folder.glob(f"{GRAPH}*")), *self.folder.glob(TOKENIZER)]:
            with path.open("rb") as source:
                write_atomically(folder / path.name, lambda file, source=source: shutil.copyfileobj(source, file))  # type: ignore[misc]
        self.description.write(folder)

    @classmethod
    def load(cls, folder: Path, threads: int = 0) -> OnnxCategoriser:
        """Return the categoriser in a folder, run by `threads` threads (0: as many as PyTorch uses, at most the cores).

        Raise UserError when the folder holds no complete one.
        """
        try:
            description = OnnxDescription.read(folder)
        except (OSError, ValueError) as error:
            raise UserError(
                f"{folder} holds no complete ONNX model of schema {SCHEMA} ({error}): export again."
            ) from error
        return cls(folder, description, open_session(folder, threads))


def open_session(folder: Path, threads: int) -> Any:
    """Return an onnxruntime.InferenceSession of the folder's graph on the CPU. Raise UserError if it cannot be read."""
    import onnxruntime
    import torch

    path = folder / GRAPH
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = min(threads or torch.get_num_threads(), os.cpu_count() or 1)
    options.log_severity_level = 3  # errors only
    # Spinning threads would take the cores from those that prepare the next batch's pixels.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors share no narrower class
        reason = "it is missing" if not path.exists() else "it is damaged, or of a newer onnxruntime"
        raise UserError(f"{path} cannot be opened ({reason}): export again.") from error

"""A categoriser that onnxruntime computes: one ONNX graph from pixels to log-probabilities, no transformers."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from vlm_core.atomic import write_atomically
from vlm_core.errors import UserError
from vlm_core.pixels.views import plain_view

Precision = Literal["fp32", "int8"]
ENGINE: Final = "onnx"  # the field `engine` of categoriser.json, by which `load_categoriser` knows such a folder
GRAPH: Final = "model.onnx"  # a graph beyond 1.5 GB keeps its weights beside it, in model.onnx.data
PIXELS: Final = "pixels"  # the graph's input (B, 3, S, S) float32
LOG_PROBABILITIES: Final = "log_probabilities"  # its output (B, C) float32
SCHEMA: Final = 1
PICTURES_A_BATCH: Final = 32


@dataclass(frozen=True)
class OnnxDescription:
    """What is to be known about a graph beside itself."""

    family: str  # that it was exported from
    precision: Precision
    categories: tuple[str, ...]  # (C,)
    canvas: tuple[int, int]  # (height, width)
    image_size: int  # S
    answer: str
    readout: str

    def write(self, folder: Path) -> None:
        """Nothing; `categoriser.json` is in the folder, whole."""
        content = {"schema": SCHEMA, "engine": ENGINE, **asdict(self)}
        text = json.dumps(content, indent=2, ensure_ascii=False)
        write_atomically(folder / "categoriser.json", lambda file: file.write(text.encode()))

    @classmethod
    def read(cls, folder: Path) -> OnnxDescription:
        """What `write` wrote. Raises OSError, KeyError, TypeError or ValueError when it did not."""
        content: dict[str, Any] = json.loads((folder / "categoriser.json").read_bytes())
        if (content.pop("engine"), content.pop("schema")) != (ENGINE, SCHEMA):
            raise ValueError("another engine or schema")
        height, width = content.pop("canvas")
        return cls(**{**content, "categories": tuple(content["categories"]), "canvas": (int(height), int(width))})


class OnnxCategoriser:
    """A Categoriser that writes no text. The folder it was loaded from must stay for `save` to copy it."""

    def __init__(self, folder: Path, description: OnnxDescription, session: Any) -> None:
        self.folder = folder
        self.description = description
        self.categories = description.categories
        self.canvas = description.canvas
        self._session = session  # onnxruntime.InferenceSession

    @property
    def writes_text(self) -> bool:
        """Never, not even where the answer is the likelihood of sentences."""
        return False

    def log_probabilities(self, pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Rows (B, C) for pictures (B, H, W, 3)."""
        rows = [self._session.run([LOG_PROBABILITIES], {PIXELS: pixels})[0] for pixels in self._pixels(pictures)]
        return np.concatenate(rows) if rows else np.empty((0, len(self.categories)), np.float32)

    def _pixels(self, pictures: NDArray[np.uint8]) -> Iterator[NDArray[np.float32]]:
        for start in range(0, len(pictures), PICTURES_A_BATCH):
            yield plain_view(pictures[start : start + PICTURES_A_BATCH], self.description.image_size).numpy()

    def describe(self, pictures: NDArray[np.uint8]) -> tuple[list[str], NDArray[np.int64]] | None:
        """None: it writes nothing."""
        return None

    def save(self, folder: Path) -> None:
        """Write `model.onnx`, then `categoriser.json`, each whole or not at all."""
        for path in sorted(self.folder.glob(f"{GRAPH}*")):
            with path.open("rb") as source:
                write_atomically(folder / path.name, lambda file, source=source: shutil.copyfileobj(source, file))  # type: ignore[misc]
        self.description.write(folder)

    @classmethod
    def load(cls, folder: Path, threads: int = 0) -> OnnxCategoriser:
        """The categoriser in a folder, computed by `threads` threads (0: as many as PyTorch uses, capped at the cores).

        Raises UserError when the folder does not hold one whole.
        """
        try:
            description = OnnxDescription.read(folder)
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{folder} holds no whole ONNX model of schema {SCHEMA} ({error}): export again."
            ) from error
        return cls(folder, description, open_session(folder, threads))


def open_session(folder: Path, threads: int) -> Any:
    """An onnxruntime.InferenceSession over the folder's graph, on the CPU."""
    import onnxruntime
    import torch

    path = folder / GRAPH
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = min(threads or torch.get_num_threads(), os.cpu_count() or 1)
    options.log_severity_level = 3  # errors alone
    # threads that spin while they wait take the cores from those that make the next batch's pixels
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors have no class in common below this one
        reason = "it is missing" if not path.exists() else "it is damaged, or of a newer onnxruntime"
        raise UserError(f"{path} cannot be opened ({reason}): export again.") from error

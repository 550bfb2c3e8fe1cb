"""Models kept ready in this process, and the uploads that they are asked about; both bounded, and nothing on disk."""

from __future__ import annotations

import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

if TYPE_CHECKING:
    from vlm_core.models.categoriser import Categoriser

T = TypeVar("T")
MOST_MODELS: Final = 4
MOST_UPLOADED_BYTES: Final = 96_000_000  # of all visitors together; the oldest go first


@dataclass(frozen=True)
class ModelPrediction:
    """What one model says of one picture."""

    answer: dict[str, Any]  # a row of vlm_core.workflows.predict.answer_pictures
    seconds: float  # of the prediction alone
    image_size: int  # pixels a side that the model saw; 0 where it sees the canvas
    canvas: tuple[int, int]  # height and width that the picture was fitted to


class ModelCache:
    """At most four models in memory; the least recently asked one goes. One is at work at a time."""

    def __init__(self, resolve: Callable[[str], Path], most: int = MOST_MODELS) -> None:
        self._resolve = resolve
        self._most = most
        self._models: OrderedDict[str, Categoriser] = OrderedDict()
        self._turn = threading.Lock()

    def __contains__(self, run_id: str) -> bool:
        return run_id in self._models

    def ask(self, run_id: str, pictures: Sequence[bytes]) -> list[ModelPrediction]:
        """What the run's model says of each picture. Raises UserError when the run holds no model."""
        return self.use(run_id, lambda model: [_answer(model, data) for data in pictures])

    def use(self, run_id: str, act: Callable[[Categoriser], T]) -> T:
        """What `act` makes of the run's model, in its turn. Raises UserError when the run holds no model."""
        with self._turn:
            return act(self._model(run_id))

    def _model(self, run_id: str) -> Categoriser:
        from vlm_core.models.saved import load_categoriser

        if run_id not in self._models:
            while len(self._models) >= self._most:
                self._models.popitem(last=False)
            self._models[run_id] = load_categoriser(self._resolve(run_id))
        self._models.move_to_end(run_id)
        return self._models[run_id]


def _answer(model: Categoriser, data: bytes) -> ModelPrediction:
    from vlm_core.inference import predict_records

    started = time.perf_counter()
    (answer,) = predict_records(model, [lambda: data])
    seconds = time.perf_counter() - started
    return ModelPrediction(answer, seconds, getattr(model, "image_size", 0), model.canvas)


class Uploads:
    """Bytes of uploads in memory, under names that nobody can guess; the oldest make way."""

    def __init__(self, most_bytes: int = MOST_UPLOADED_BYTES) -> None:
        self._most = most_bytes
        self._kept: OrderedDict[str, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def put(self, data: bytes) -> str:
        """The name under which the bytes are kept."""
        name = secrets.token_urlsafe(16)
        with self._lock:
            self._kept[name] = data
            while len(self._kept) > 1 and sum(map(len, self._kept.values())) > self._most:
                self._kept.popitem(last=False)
        return name

    def get(self, name: str) -> bytes | None:
        """The bytes of that name; None when they had to make way."""
        with self._lock:
            return self._kept.get(name)

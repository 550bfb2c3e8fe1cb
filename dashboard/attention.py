"""Where warm models looked in one picture."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from dashboard.model_cache import ModelCache, Uploads
from dashboard.pictures import read_picture
from dashboard.predictions import SAMPLES, sample_picture
from vlm_core.errors import UserError
from vlm_core.pixels.picture_store import UnreadablePicture, decode_picture, fit_picture

if TYPE_CHECKING:
    from vlm_core.attention.faithfulness import PictureCurves
    from vlm_core.attention.maps import LayerMaps, Method
    from vlm_core.models.categoriser import Categoriser, VisionLanguageCategoriser

T = TypeVar("T")
MOST_LOOKS: Final = 48
MOST_SECONDS: Final = 1.0  # to follow a map through one picture
MOST_LAYERS: Final = 12  # of a full-sized model 3 MB each
METHODS: Final = {
    "gradient": "Gradient",
    "raw": "Attention",
    "saliency": "Saliency",
    "occlusion": "Occlusion",
}
_NO_ATTENTION: Final = "This model has no attention to show: choose a run of CLIP, BLIP or GIT."


@dataclass(frozen=True)
class AttentionView:
    """What one model says of a picture, and where it looked for that."""

    categories: tuple[str, ...]
    probabilities: NDArray[np.float64]  # (C,)
    target: int  # the category that the map is of
    picture: NDArray[np.uint8]  # (H, W, 3), on the model's canvas
    map: NDArray[np.float32]  # (H, W), sums to one
    words: tuple[tuple[str, NDArray[np.float32]], ...]  # each word that the model writes, with its map (H, W)
    followed: PictureCurves | None  # None where it would take a second


class AttentionExplainer:
    """Asks the warm models where they looked; pictures go by the name of where they are. What was asked is kept."""

    def __init__(self, root: Path, models: ModelCache, uploads: Uploads) -> None:
        self._root, self._models, self._uploads = root, models, uploads
        self.look = lru_cache(maxsize=MOST_LOOKS)(self._look)
        self.layers = lru_cache(maxsize=MOST_LAYERS)(self._layers)

    def picture(self, source: str) -> bytes:
        """The picture named "sample:<place>", "upload:<token>" or "product:<catalogue>:<id>".

        Raises UserError where there is none.
        """
        kind, _, rest = source.partition(":")
        if kind == "sample" and rest.isdecimal() and int(rest) < SAMPLES:
            return sample_picture(int(rest))
        data = self._uploads.get(rest) if kind == "upload" else None
        if kind == "product":
            data = read_picture(self._root, *rest.split(":", 1)) if ":" in rest else None
        if data is None:
            raise UserError("This picture is not here any more: choose it again.")
        return data

    def _look(self, run_id: str, source: str, method: Method, category: str) -> AttentionView:
        """Where the run's model looked for the category ("" for its own answer). Raises UserError."""
        return self._ask(run_id, source, lambda model, pictures: _look(model, pictures, method, category))

    def _layers(self, run_id: str, source: str, category: str) -> tuple[LayerMaps, ...]:
        """What each layer and head of the run's model attends to. Raises UserError."""
        from vlm_core.attention.maps import layer_maps

        return self._ask(run_id, source, lambda model, pictures: layer_maps(model, pictures, _target(model, category)))

    def _ask(self, run_id: str, source: str, act: Callable[[VisionLanguageCategoriser, NDArray[np.uint8]], T]) -> T:
        data = self.picture(source)
        return self._models.use(run_id, lambda model: act(explainable(model), _fitted(data, model)))


def explainable(model: Categoriser) -> VisionLanguageCategoriser:
    """The model, if it is one whose attention can be read. Raises UserError."""
    from vlm_core.models.categoriser import VisionLanguageCategoriser

    if not isinstance(model, VisionLanguageCategoriser):
        raise UserError(_NO_ATTENTION)
    return model


def _look(
    model: VisionLanguageCategoriser, pictures: NDArray[np.uint8], method: Method, category: str
) -> AttentionView:
    from vlm_core.attention.faithfulness import STEPS, measure_picture_curves
    from vlm_core.attention.maps import explain, explain_words

    probabilities = np.exp(model.log_probabilities(pictures)[0].astype(np.float64))
    chosen = _target(model, category)
    target = int(probabilities.argmax()) if chosen is None else chosen
    words: tuple[tuple[str, NDArray[np.float32]], ...] = ()
    if model.writes_text and method in ("raw", "gradient"):
        words = tuple((word.word, word.map) for word in explain_words(model, pictures, method=method)[0])
    heat = explain(model, pictures, method=method, target=target)[0]
    started = time.perf_counter()  # not before: a model's first pass takes longer than all others
    model.log_probabilities(pictures)
    quick = time.perf_counter() - started < MOST_SECONDS / (2 * STEPS)  # passes
    followed = measure_picture_curves(model, pictures[0], heat, target) if quick else None
    return AttentionView(tuple(model.categories), probabilities, target, pictures[0], heat, words, followed)


def _target(model: VisionLanguageCategoriser, category: str) -> int | None:
    return model.categories.index(category) if category in model.categories else None


def _fitted(data: bytes, model: Categoriser) -> NDArray[np.uint8]:
    try:
        return fit_picture(decode_picture(data), model.canvas)[None]
    except UnreadablePicture as error:
        raise UserError(f"This cannot be read as a picture: {error}.") from error

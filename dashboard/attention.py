"""What the predictions of cached models depend on in one picture."""

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
MOST_VIEWS: Final = 48
MOST_SECONDS: Final = 1.0  # to measure a map's faithfulness on one picture
MOST_LAYERS: Final = 12  # each holds 3 MB of a full-sized model's maps
METHODS: Final = {
    "gradient": "Gradient",
    "raw": "Attention",
    "saliency": "Saliency",
    "occlusion": "Occlusion",
}
_NO_ATTENTION: Final = "This model has no attention to show. Choose a CLIP, BLIP or GIT run."


@dataclass(frozen=True)
class AttentionView:
    """One model's prediction for a picture, and the map that explains a category."""

    categories: tuple[str, ...]
    probabilities: NDArray[np.float64]  # (C,)
    target: int  # the category that the map explains
    picture: NDArray[np.uint8]  # (H, W, 3), on the model's canvas
    map: NDArray[np.float32]  # (H, W), sums to one
    words: tuple[tuple[str, NDArray[np.float32]], ...]  # each generated word with its map (H, W)
    curves: PictureCurves | None  # deletion and insertion; None where measuring them would take too long


class AttentionExplainer:
    """Explains predictions of cached models; remembers its latest views. A picture is named by its source."""

    def __init__(self, root: Path, models: ModelCache, uploads: Uploads) -> None:
        self._root, self._models, self._uploads = root, models, uploads
        self.explain = lru_cache(maxsize=MOST_VIEWS)(self._explain)
        self.layers = lru_cache(maxsize=MOST_LAYERS)(self._layers)

    def picture(self, source: str) -> bytes:
        """Return the picture of the source "sample:<place>", "upload:<token>" or "product:<catalogue>:<id>".

        Raises UserError where there is none.
        """
        kind, _, rest = source.partition(":")
        if kind == "sample" and rest.isdecimal() and int(rest) < SAMPLES:
            return sample_picture(int(rest))
        data = self._uploads.get(rest) if kind == "upload" else None
        if kind == "product":
            data = read_picture(self._root, *rest.split(":", 1)) if ":" in rest else None
        if data is None:
            raise UserError("This image is no longer available: choose it again.")
        return data

    def _explain(self, run_id: str, source: str, method: Method, category: str) -> AttentionView:
        """Return what speaks for the category ("" for the predicted one). Raises UserError."""
        return self._use(run_id, source, lambda model, pictures: _view(model, pictures, method, category))

    def _layers(self, run_id: str, source: str, category: str) -> tuple[LayerMaps, ...]:
        """Return what each layer and head of the run's model attends to. Raises UserError."""
        from vlm_core.attention.maps import layer_maps

        return self._use(run_id, source, lambda model, pictures: layer_maps(model, pictures, _target(model, category)))

    def _use(self, run_id: str, source: str, act: Callable[[VisionLanguageCategoriser, NDArray[np.uint8]], T]) -> T:
        """Return what `act` makes of the run's model and the picture, as a batch of one on the model's canvas."""
        data = self.picture(source)
        return self._models.use(run_id, lambda model: act(_with_attention(model), _decoded(data, model)))


def _with_attention(model: Categoriser) -> VisionLanguageCategoriser:
    """Return the model if its attention can be read. Raises UserError."""
    from vlm_core.models.categoriser import VisionLanguageCategoriser

    if not isinstance(model, VisionLanguageCategoriser):
        raise UserError(_NO_ATTENTION)
    return model


def _view(
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
    curves = measure_picture_curves(model, pictures[0], heat, target) if quick else None
    return AttentionView(tuple(model.categories), probabilities, target, pictures[0], heat, words, curves)


def _target(model: VisionLanguageCategoriser, category: str) -> int | None:
    return model.categories.index(category) if category in model.categories else None


def _decoded(data: bytes, model: Categoriser) -> NDArray[np.uint8]:
    try:
        return fit_picture(decode_picture(data), model.canvas)[None]
    except UnreadablePicture as error:
        raise UserError(f"This file cannot be read as an image: {error}.") from error

"""What the predictions of cached models depend on in one picture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from dashboard.model_cache import ModelCache, Uploads
from dashboard.picture_server import read_picture
from dashboard.upload_predictions import SAMPLES, fitted, sample_picture
from vlm_core.errors import UserError
from vlm_core.pixels.picture_store import UnreadablePicture, decode_picture, fit_picture

if TYPE_CHECKING:
    from PIL.Image import Image

    from vlm_core.attention.faithfulness import PictureCurves
    from vlm_core.attention.maps import LayerMaps, Method
    from vlm_core.models.categoriser import Categoriser, VisionLanguageCategoriser

T = TypeVar("T")
MOST_VIEWS: Final = 48
MOST_LAYERS: Final = 12  # each holds 3 MB of a full-sized model's maps
METHODS: Final = {
    "gradient": "Gradient",
    "raw": "Attention",
    "saliency": "Saliency",
    "occlusion": "Occlusion",
}
_GONE: Final = "This image is no longer available: choose it again."
_NO_ATTENTION: Final = "This model has no attention to show. Choose a run of a transformer, such as CLIP or BLIP."


@dataclass(frozen=True)
class AttentionView:
    """One model's prediction for a picture, and the map that explains a category."""

    categories: tuple[str, ...]
    probabilities: NDArray[np.float64]  # (C,)
    target: int  # the category that the map explains
    picture: NDArray[np.uint8]  # (H, W, 3), on the model's canvas
    map: NDArray[np.float32]  # (H, W), sums to one
    words: tuple[tuple[str, NDArray[np.float32]], ...]  # each generated word with its map (H, W)


class AttentionExplainer:
    """Explains predictions of cached models; remembers its latest views. A picture is named by its source."""

    def __init__(self, root: Path, models: ModelCache, uploads: Uploads) -> None:
        self._root, self._models, self._uploads = root, models, uploads
        self._views = lru_cache(maxsize=MOST_VIEWS)(self._explain)
        self._layer_maps = lru_cache(maxsize=MOST_LAYERS)(self._layers)
        self._curves = lru_cache(maxsize=MOST_VIEWS)(self._measure)

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
            raise UserError(_GONE)
        return data

    def explain(self, run_id: str, source: str, method: Method, category: str) -> AttentionView:
        """Return what the prediction for a category ("" for the predicted one) depends on. Raises UserError."""
        self._check(source)
        return self._views(run_id, source, method, category)

    def layers(self, run_id: str, source: str, category: str) -> tuple[LayerMaps, ...]:
        """Return what each layer and head of the run's model attends to. Raises UserError."""
        self._check(source)
        return self._layer_maps(run_id, source, category)

    def curves(self, run_id: str, source: str, method: Method, category: str) -> PictureCurves:
        """Return deletion and insertion of the map, which take some twenty passes. Raises UserError."""
        self._check(source)
        return self._curves(run_id, source, method, category)

    def _check(self, source: str) -> None:
        """Raise UserError for another browser's upload: what is remembered of it is not for everybody."""
        kind, _, name = source.partition(":")
        if kind == "upload" and self._uploads.get(name) is None:
            raise UserError(_GONE)

    def _explain(self, run_id: str, source: str, method: Method, category: str) -> AttentionView:
        return self._use(run_id, source, lambda model, pictures: _view(model, pictures, method, category))

    def _layers(self, run_id: str, source: str, category: str) -> tuple[LayerMaps, ...]:
        from vlm_core.attention.maps import layer_maps

        return self._use(run_id, source, lambda model, pictures: layer_maps(model, pictures, _target(model, category)))

    def _measure(self, run_id: str, source: str, method: Method, category: str) -> PictureCurves:
        from vlm_core.attention.faithfulness import measure_picture_curves

        view = self._views(run_id, source, method, category)
        return self._use(
            run_id, source, lambda model, pictures: measure_picture_curves(model, pictures[0], view.map, view.target)
        )

    def _use(self, run_id: str, source: str, act: Callable[[VisionLanguageCategoriser, NDArray[np.uint8]], T]) -> T:
        """Return what `act` makes of the run's model and the picture, as a batch of one on the model's canvas."""
        return self._models.use(run_id, lambda model: act(_with_attention(model), self._fitted(source, model)))

    def _fitted(self, source: str, model: Categoriser) -> NDArray[np.uint8]:
        """Return the picture on the model's canvas, as a batch of one. Raises UserError."""

        def decode() -> Image:
            return decode_picture(self.picture(source))

        kind, _, name = source.partition(":")
        try:
            if kind == "upload":
                return fitted(self._uploads, name, model.canvas, decode)[None]
            return fit_picture(decode(), model.canvas)[None]
        except UnreadablePicture as error:
            raise UserError(f"This file cannot be read as an image: {error}.") from error


def _with_attention(model: Categoriser) -> VisionLanguageCategoriser:
    """Return the model if its attention can be read. Raises UserError."""
    from vlm_core.models.categoriser import VisionLanguageCategoriser

    if not isinstance(model, VisionLanguageCategoriser):
        raise UserError(_NO_ATTENTION)
    return model


def _view(
    model: VisionLanguageCategoriser, pictures: NDArray[np.uint8], method: Method, category: str
) -> AttentionView:
    from vlm_core.attention.maps import explain, explain_words

    probabilities = np.exp(model.log_probabilities(pictures)[0].astype(np.float64))
    chosen = _target(model, category)
    target = int(probabilities.argmax()) if chosen is None else chosen
    words: tuple[tuple[str, NDArray[np.float32]], ...] = ()
    if model.writes_text and method in ("raw", "gradient"):
        words = tuple((word.word, word.map) for word in explain_words(model, pictures, method=method)[0])
    heat = explain(model, pictures, method=method, target=target)[0]
    return AttentionView(tuple(model.categories), probabilities, target, pictures[0], heat, words)


def _target(model: VisionLanguageCategoriser, category: str) -> int | None:
    return model.categories.index(category) if category in model.categories else None

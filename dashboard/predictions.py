"""Uploads in, answers out: plain data that a page can hold, with nothing that is not bounded."""

from __future__ import annotations

import base64
import csv
import io
import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from dashboard.heatmaps import overlay
from dashboard.model_cache import ModelCache, ModelPrediction, Uploads
from vlm_core.errors import UserError
from vlm_core.evaluation.texts import UNKNOWN_CATEGORY
from vlm_core.pixels.picture_store import UnreadablePicture, decode_picture, fit_picture
from vlm_core.tracking.serving import picture_bytes

if TYPE_CHECKING:
    from vlm_core.models.categoriser import Categoriser

MOST_PICTURES: Final = 8
SAMPLES: Final = 8
THUMBNAIL_PIXELS: Final = 320
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")  # a spreadsheet computes what begins so


def receive(uploads: Uploads, contents: Sequence[str | None], names: Sequence[str]) -> list[dict[str, str]]:
    """One entry an upload, `name` with `token` or `error`; only eight are taken. Length is bounded before decoding."""
    entries = []
    for place, (content, name) in enumerate(zip(contents, names, strict=True)):
        if place >= MOST_PICTURES:
            entries.append({"name": name, "error": f"Only {MOST_PICTURES} pictures are taken at once."})
            continue
        try:
            entries.append({"name": name, "token": uploads.put(picture_bytes(content))})
        except ValueError as error:
            entries.append({"name": name, "error": str(error)})
    return entries


def categorise(
    models: ModelCache, uploads: Uploads, pictures: Sequence[Mapping[str, str]], run_ids: Sequence[str]
) -> list[dict[str, Any]]:
    """One result a picture: `name`, `thumbnail`, `answers` by run id, or an `error`.

    An answer has `top` (category and probability, at most five), `confidence`, `ms`, `seen` (the picture as the model
    saw it), `map` (where it looked, None where that cannot be said) and, where the model writes, `text` and
    `text_category`; or an `error` of its own. A result's `source` names the picture for `dashboard.attention`.
    """
    results: list[dict[str, Any]] = []
    for picture in pictures:
        data = uploads.get(picture.get("token", ""))
        if data is None:
            gone = "It is no longer in memory: upload it again."
            results.append({"name": picture["name"], "error": picture.get("error", gone)})
            continue
        try:
            thumbnail = _thumbnail(data)
        except UnreadablePicture as error:
            results.append({"name": picture["name"], "error": f"This cannot be read as a picture: {error}."})
            continue
        answers = {run_id: _ask(models, run_id, data) for run_id in run_ids}
        source = f"sample:{picture['sample']}" if "sample" in picture else f"upload:{picture['token']}"
        results.append({"name": picture["name"], "source": source, "thumbnail": thumbnail, "answers": answers})
    return results


def answer_shown(answer: Mapping[str, Any], threshold: float) -> str:
    """The most probable category, or "Unknown Category" below the threshold."""
    return str(answer["top"][0][0]) if answer["confidence"] >= threshold else UNKNOWN_CATEGORY


def as_csv(results: Sequence[Mapping[str, Any]], names: Mapping[str, str], threshold: float) -> str:
    """One row a picture and model; texts that a spreadsheet would compute are led by an apostrophe."""
    columns = (
        "picture",
        "run",
        "run_id",
        "category",
        "confidence",
        "threshold",
        "text",
        "text_category",
        "ms",
        "error",
    )
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns)
    writer.writeheader()
    for result in results:
        if "error" in result:
            writer.writerow(_safe({"picture": result["name"], "error": result["error"]}))
        for run_id, answer in result.get("answers", {}).items():
            row = {
                "picture": result["name"],
                "run": names.get(run_id, run_id),
                "run_id": run_id,
                "threshold": threshold,
            }
            if "error" in answer:
                row["error"] = answer["error"]
            else:
                row |= {name: answer[name] for name in ("confidence", "text", "text_category", "ms") if name in answer}
                row["category"] = answer_shown(answer, threshold)
            writer.writerow(_safe(row))
    return buffer.getvalue()


@lru_cache(maxsize=SAMPLES)
def sample_picture(place: int) -> bytes:
    """A product of the invented shop, drawn now, as JPEG; places count from 0 and begin anew behind the last."""
    from vlm_core.catalogue.sample import draw_picture, plan_rows

    looks: dict[str, Any] = {}
    for row in plan_rows(200, seed=2027):
        looks.setdefault(row.looks_like, row)
    return draw_picture(list(looks.values())[place % SAMPLES], seed=2027)


def _ask(models: ModelCache, run_id: str, data: bytes) -> dict[str, Any]:
    try:
        (answered,) = models.ask(run_id, [data])
    except UserError as error:
        return {"error": str(error)}
    answer = answered.answer
    if "error" in answer:
        return {"error": answer["error"]}
    probabilities = [(name[2:], value) for name, value in answer.items() if name.startswith("p_")]
    top = sorted(probabilities, key=lambda pair: -pair[1])[:5]
    texts: dict[str, Any] = {name: answer[name] for name in ("text", "text_category") if name in answer}
    shown: dict[str, Any] = {
        "confidence": answer["confidence"],
        "ms": round(answered.seconds * 1000, 1),
        "seen": _seen(data, answered),
        "map": models.use(run_id, lambda model: _map(data, model)),
    }
    return {"top": [[name, round(value, 6)] for name, value in top], **shown, **texts}


def _thumbnail(data: bytes) -> str:
    picture = decode_picture(data)
    picture.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
    return _data_url(picture)


def _seen(data: bytes, answered: ModelPrediction) -> str:
    """The picture fitted to the catalogue's canvas and resized to the model's input, as it is before normalising."""
    from PIL import Image

    picture = Image.fromarray(fit_picture(decode_picture(data), answered.canvas))
    if answered.image_size:
        picture = picture.resize((answered.image_size, answered.image_size), Image.Resampling.BILINEAR)
    return _data_url(picture)


def _map(data: bytes, model: Categoriser) -> str | None:
    """Where the model looked for its answer; None for one without attention."""
    from vlm_core.attention.maps import explain
    from vlm_core.models.categoriser import VisionLanguageCategoriser

    if not isinstance(model, VisionLanguageCategoriser):
        return None
    picture = fit_picture(decode_picture(data), model.canvas)
    return overlay(picture, explain(model, picture[None], method="gradient")[0])


def _data_url(picture: Any) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _safe(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value
        for name, value in row.items()
        if not (isinstance(value, float) and math.isnan(value))
    }

"""Uploads of every kind, through real tiny models."""

import base64
import csv
import io
import struct
import zlib
from functools import partial

import numpy as np
import pytest
from dash import no_update
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dashboard.figures.categorise import coverage_at, coverage_curves
from dashboard.figures.compare import run_styles
from dashboard.leaderboard import run_choices
from dashboard.model_cache import ModelCache, Uploads
from dashboard.pages import categorise as page
from dashboard.runs import Runs
from dashboard.upload_predictions import as_csv, categorise, predicted_category, receive, sample_picture
from vlm_core.errors import UserError
from vlm_core.evaluation.predictions import Predictions
from vlm_core.inference import predict_records
from vlm_core.pixels.picture_store import decode_picture
from vlm_core.tracking.registry import resolve


@pytest.fixture
def models(runs):
    return ModelCache(partial(resolve, uri=runs.uri))


@pytest.fixture
def names(runs):
    table = runs.table()
    return table[table["metrics.test_macro_f1"].notna()].set_index("params.model")["run_id"].to_dict()


def _encoded(mode="RGB", form="PNG", size=(60, 80), **more):
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, form, **more)
    return buffer.getvalue()


def _url(data):
    return "data:image/png;base64," + base64.b64encode(data).decode()


def _bomb():
    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(b"\0" * 100_000))
        + chunk(b"IEND", b"")
    )


def _upside_down():
    picture = Image.new("RGB", (60, 80))
    exif = picture.getexif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", exif=exif)
    return buffer.getvalue()


GOOD = {
    "jpeg": _encoded(form="JPEG"),
    "webp": _encoded(form="WEBP"),
    "gif": _encoded(mode="P", form="GIF", save_all=True, append_images=[Image.new("P", (60, 80), 1)]),
    "cmyk": _encoded(mode="CMYK", form="JPEG"),
    "alpha": _encoded(mode="RGBA"),
    "16 bit": _encoded(mode="I;16"),
    "rotated": _upside_down(),
}
BAD = {
    "text named .jpg": (b"this is a text", "format is not supported"),
    "cut short": (_encoded(form="JPEG", size=(600, 800))[:400], "truncated or broken"),
    "bomb": (_bomb(), "megapixels"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>", "format is not supported"),
    "empty": (b"", ""),
}


@pytest.mark.parametrize("kind", GOOD)
def test_every_kind_of_picture_has_a_prediction(models, names, kind):
    uploads = Uploads()
    (result,) = categorise(models, uploads, receive(uploads, [_url(GOOD[kind])], ["x"]), [names["clip"]])
    prediction = result["predictions"][names["clip"]]
    assert sum(share for _, share in prediction["top"]) == pytest.approx(1, abs=1e-3) and prediction["ms"] > 0
    assert result["thumbnail"].startswith("data:image/png") and prediction["seen"].startswith("data:image/png")
    if kind == "rotated":
        data = base64.b64decode(result["thumbnail"].split(",")[1])
        assert Image.open(io.BytesIO(data)).size == (80, 60)


def test_an_upload_is_decoded_once_for_all_models_with_the_same_predictions(models, names, monkeypatch):
    decoded = []
    for module in ("dashboard.upload_predictions", "vlm_core.inference"):
        monkeypatch.setattr(f"{module}.decode_picture", lambda data, *_: decoded.append(data) or decode_picture(data))
    uploads = Uploads()
    run_ids = [names[model] for model in ("clip", "blip", "baseline")]
    (result,) = categorise(models, uploads, receive(uploads, [_url(GOOD["rotated"])], ["x"]), run_ids)
    assert decoded == [GOOD["rotated"]]
    (again,) = categorise(models, uploads, [{"name": "x", "token": result["source"].removeprefix("upload:")}], run_ids)
    assert again == result and decoded == [GOOD["rotated"]]  # nor for another choice of models
    for run_id in run_ids:
        (row,) = models.use(run_id, lambda model: predict_records(model, [lambda: GOOD["rotated"]]))
        prediction = result["predictions"][run_id]
        assert prediction["confidence"] == row["confidence"]
        assert dict(prediction["top"]) == {name: round(row[f"p_{name}"], 6) for name, _ in prediction["top"]}
        assert prediction.get("text") == row.get("text")


@pytest.mark.parametrize("kind", BAD)
def test_what_is_no_picture_has_an_error_and_its_neighbour_a_prediction(models, names, kind):
    uploads = Uploads()
    data, error = BAD[kind]
    entries = receive(uploads, [_url(data), _url(GOOD["jpeg"])], ["<b>bad</b>", "good"])
    bad, good = categorise(models, uploads, entries, [names["baseline"]])
    assert error in bad["error"] and "predictions" not in bad
    assert "error" not in good["predictions"][names["baseline"]]


def test_too_large_too_many_and_no_base64_are_refused_before_anything_is_decoded():
    uploads = Uploads()
    large = "data:image/png;base64," + "A" * 14_000_000
    entries = receive(uploads, [large, "no data url", None, *[_url(b"x")] * 7], [str(n) for n in range(10)])
    assert "larger than 10 MB" in entries[0]["error"]
    assert "not base64" in entries[1]["error"] and "error" in entries[2]
    assert [("token" in entry) for entry in entries[3:]] == [True] * 5 + [False] * 2
    assert "Only 8" in entries[-1]["error"]


@settings(max_examples=60)
@given(data=st.binary(max_size=400), broken=st.booleans())
def test_no_upload_raises(data, broken):
    uploads = Uploads()
    content = _url(data) if not broken else data.decode("latin1")
    results = categorise(
        ModelCache(lambda name: pytest.fail("no model is used")), uploads, receive(uploads, [content], ["x"]), []
    )
    assert len(results) == 1 and ("error" in results[0] or "thumbnail" in results[0])


def test_nothing_of_an_upload_is_written(models, names, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    uploads = Uploads()
    models.use(names["clip"], lambda model: None)  # loaded, as for the visitors before
    before = sorted(tmp_path.rglob("*"))
    categorise(models, uploads, receive(uploads, [_url(data) for data in GOOD.values()], list(GOOD)), [names["clip"]])
    assert sorted(tmp_path.rglob("*")) == before


def test_models_are_cached_and_the_least_recently_used_one_is_dropped(runs, names):
    loaded = []
    models = ModelCache(lambda name: loaded.append(name) or resolve(name, runs.uri), most=2)
    for model in ("clip", "baseline", "clip", "blip", "clip"):
        models.use(names[model], lambda model: model.categories)
    assert loaded == [names["clip"], names["baseline"], names["blip"]]
    assert names["clip"] in models and names["baseline"] not in models


def test_a_run_without_a_model_has_an_error_on_its_card(models):
    uploads = Uploads()
    (result,) = categorise(models, uploads, receive(uploads, [_url(GOOD["jpeg"])], ["x"]), ["nothing"])
    assert "not a run with a model" in result["predictions"]["nothing"]["error"]
    with pytest.raises(UserError):
        models.use("nothing", lambda model: None)


def test_uploads_are_bounded_and_the_oldest_make_way():
    uploads = Uploads(most_bytes=10_000)
    first, second = uploads.put(b"a" * 6_000), uploads.put(b"b" * 6_000)
    assert uploads.get(first) is None and uploads.get(second) == b"b" * 6_000
    (result,) = categorise(
        ModelCache(lambda name: pytest.fail("a model was used")), uploads, [{"name": "x", "token": first}], []
    )
    assert "upload it again" in result["error"]


def test_many_small_uploads_are_bounded_too():
    uploads = Uploads(most_bytes=10_000)
    names = [uploads.put(b"a") for _ in range(100)]
    assert 5 <= sum(uploads.get(name) is not None for name in names) <= 10  # each has a name beside its byte


def test_below_the_threshold_the_category_is_unknown_and_the_table_is_safe():
    prediction = {
        "top": [["Shoes", 0.6], ["Hats", 0.4]],
        "confidence": 0.6,
        "ms": 3.0,
        "text": "=cmd()",
        "text_category": "Shoes",
    }
    assert predicted_category(prediction, 0.6) == "Shoes" and predicted_category(prediction, 0.61) == "Unknown Category"
    results = [{"name": "+1.jpg", "predictions": {"r": prediction}}, {"name": "bad", "error": "broken"}]
    rows = list(csv.DictReader(io.StringIO(as_csv(results, {"r": "run"}, 0.7))))
    assert (
        rows[0]["category"] == "Unknown Category" and rows[0]["text"] == "'=cmd()" and rows[0]["picture"] == "'+1.jpg"
    )
    assert rows[1]["error"] == "broken" and rows[1]["category"] == ""
    assert rows[0]["levels"] == ""
    several = {**prediction, "levels": [["department", "=Clothes", 0.9], ["range", "Sale", 0.8]]}
    results = [{"name": "1.jpg", "predictions": {"r": several}}]
    (row,) = csv.DictReader(io.StringIO(as_csv(results, {"r": "run"}, 0.5)))
    assert row["levels"] == "department==Clothes; range=Sale"


def test_coverage_and_accuracy_by_hand():
    logs = np.log([[0.9, 0.1], [0.6, 0.4], [0.3, 0.7], [0.55, 0.45]])
    predictions = Predictions(list("abcd"), np.array([0, 1, 1, -1]), logs, ("x", "y"))
    assert coverage_at(predictions, 0.0) == (1.0, pytest.approx(2 / 3))
    assert coverage_at(predictions, 0.65) == (pytest.approx(2 / 3), 1.0)
    assert coverage_at(predictions, 0.95)[0] == 0.0
    lines = coverage_curves(run_styles(["a"], ["clip"]), [predictions], 0.5).data
    assert [(line.name, line.showlegend, line.y[0]) for line in lines] == [
        ("a", True, 1.0),
        ("a", False, pytest.approx(2 / 3)),
    ]


def test_samples_are_pictures_that_differ():
    assert len({sample_picture(place) for place in range(8)}) == 8
    assert Image.open(io.BytesIO(sample_picture(0))).format == "JPEG"


def test_the_validation_predictions_that_thresholds_need_are_stored_with_each_run(runs, names):
    figure, note = page.update_coverage(runs, [names["clip"], names["baseline"]], 0.5)
    assert len(figure.data) == 4 and "validation products" in note[0].children
    assert "No chosen model" in page.update_coverage(runs, [], 0.5)[0].layout.annotations[0].text
    predictions = runs.predictions(names["clip"], "validation")
    last = max(runs.epochs(names["clip"]), key=lambda entry: entry["validation_summary"]["macro_f1"])
    assert (predictions.predicted == predictions.labels).mean() == pytest.approx(
        last["validation_summary"]["overall_accuracy"]
    )
    assert runs.row(names["clip"])["metrics.seconds_per_image"] > 0


def test_a_new_threshold_needs_no_new_predictions(runs, names, models):
    uploads = Uploads()
    results = page.update_results(models, uploads, receive(uploads, [_url(GOOD["jpeg"])], ["x"]), [names["clip"]])
    assert page.update_cards(runs, None, 0.5) is None
    sure, unsure = (str(page.update_cards(runs, results, threshold)) for threshold in (0.0, 1.0))
    assert "Unknown Category" in unsure and "Unknown Category" not in sure
    assert page.download(runs, 1, results, 0.0)["filename"] == "categories.csv"


def test_a_model_is_suggested_on_the_first_visit_and_never_again(filled_store):
    late = Runs(f"sqlite:///{filled_store}/mlflow.db", filled_store)
    state, hidden, choices, chosen = page.update_state(late, 0, [], [])
    assert state is not None and hidden and (choices, chosen) == ([], no_update)
    late.refresh()
    state, hidden, choices, chosen = page.update_state(late, 1, [], [])
    assert (state, hidden, len(chosen)) == (None, False, 1) and chosen[0] in {each["value"] for each in choices}
    assert page.update_state(late, 2, [], choices)[3] is no_update  # who has removed all models wants none
    assert page.update_state(late, 1, ["mine"], [])[3] is no_update


def test_without_an_honest_run_the_newest_is_suggested(runs, monkeypatch):
    monkeypatch.setattr(page, "best_run", lambda leaderboard: "")
    newest = run_choices(runs.table())[0]["value"]
    assert page.update_state(runs, 1, [], [])[3] == [newest]


def test_a_title_is_read_by_models_that_read_texts_alone(tmp_path):
    from tests.models.families import make_categoriser
    from tests.models.test_fusion import make_reader

    made = {
        "both": make_reader("clip", fusion="late"),
        "text": make_reader("blip", "text"),
        "picture": make_categoriser("clip"),
    }
    for name, model in made.items():
        model.save(tmp_path / name)
    models, uploads = ModelCache(lambda run_id: tmp_path / run_id), Uploads()
    entries = receive(uploads, [_url(GOOD["jpeg"])], ["x"])

    def predict(title):
        return categorise(models, uploads, entries, list(made), title)[0]["predictions"]

    without, titled = predict(""), predict("<b>Blue</b> Jacket " * 1000)
    assert without["both"]["read"] == "image" and titled["both"]["read"] == "image+text"
    assert without["both"]["confidence"] != titled["both"]["confidence"]
    assert titled["both"]["map"].startswith("data:image") and titled["text"]["map"] is None
    assert titled["both"]["words"][0][0] == "the image" and len(without["both"]["words"]) == 1
    assert "type the product's title" in without["text"]["error"] and titled["text"]["confidence"] > 0
    assert "read" not in titled["picture"] and titled["picture"]["confidence"] == without["picture"]["confidence"]
    card = str(page._prediction({}, titled["both"], 0, "run", "upload:x"))
    assert "From image and title. Drop in log odds without each: the image" in card

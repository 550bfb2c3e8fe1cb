"""Maps over pictures, through real tiny models."""

import base64
import io
import json
import time
from functools import partial

import numpy as np
import pytest
from flask import Flask, g
from PIL import Image

from dashboard.attention import AttentionExplainer
from dashboard.heatmaps import describe_map, overlay, picture_url
from dashboard.model_cache import ModelCache, Uploads
from dashboard.pages import attention as page
from dashboard.pages.attention import attention_panel
from dashboard.runs import Runs
from dashboard.sessions import name_visitors
from dashboard.upload_predictions import categorise, receive, sample_picture
from tests.dashboard.made_study import make_results
from vlm_core.attention.faithfulness import measure_picture_curves
from vlm_core.attention.maps import explain, layer_maps
from vlm_core.errors import UserError
from vlm_core.models.saved import load_categoriser
from vlm_core.pixels.picture_store import decode_picture, fit_picture
from vlm_core.study.results_json import to_json
from vlm_core.tracking.registry import resolve
from vlm_core.tracking.writer import RunWriter


def _text(component):
    return json.dumps(component, default=lambda part: part.to_plotly_json())


@pytest.fixture
def names(runs):
    table = runs.table()
    return table[table["metrics.test_macro_f1"].notna()].set_index("params.model")["run_id"].to_dict()


@pytest.fixture
def explainer(runs):
    return AttentionExplainer(runs.root, ModelCache(partial(resolve, uri=runs.uri)), Uploads())


def _pixels(address):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(address.split(",")[1]))).convert("RGB")).astype(int)


def test_an_overlay_is_warm_where_the_map_is_and_grey_elsewhere():
    heat = np.zeros((80, 60), np.float32)
    heat[:40, :30] = 1
    shown = _pixels(overlay(np.full((80, 60, 3), 128, np.uint8), heat))
    assert shown.shape == (400, 300, 3)
    warm, grey = shown[20:150, 20:120], shown[250:380, 180:280]
    assert (warm[..., 0] - warm[..., 2]).min() > 60 and np.ptp(grey, axis=2).max() < 12


def test_an_even_map_colours_nothing_and_a_plain_picture_is_as_it_was():
    picture = np.full((80, 60, 3), (200, 30, 30), np.uint8)
    assert np.ptp(_pixels(overlay(picture, np.full((80, 60), 1 / 4800, np.float32))), axis=2).max() < 12
    assert np.abs(_pixels(picture_url(picture)) - (200, 30, 30)).max() < 12


@pytest.mark.parametrize(
    ("row", "column", "text"), [(0, 0, "top left"), (79, 59, "bottom right"), (40, 30, "middle centre")]
)
def test_a_map_in_words(row, column, text):
    heat = np.zeros((80, 60), np.float32)
    heat[row, column] = 1
    assert text in describe_map(heat) and "on 0% of the image" in describe_map(heat)
    assert "half of the total lies on 50%" in describe_map(np.ones((80, 60), np.float32))


def test_a_view_holds_what_the_library_computes_and_is_computed_once(explainer, runs, names):
    model = load_categoriser(resolve(names["clip"], runs.uri))
    picture = fit_picture(decode_picture(sample_picture(1)), model.canvas)
    view = explainer.explain(names["clip"], "sample:1", "gradient", model.categories[0])
    np.testing.assert_allclose(view.map, explain(model, picture[None], method="gradient", target=0)[0], atol=1e-6)
    np.testing.assert_array_equal(view.picture, picture)
    assert view.target == 0 and view.probabilities.sum() == pytest.approx(1, abs=1e-5)
    assert explainer.explain(names["clip"], "sample:1", "gradient", model.categories[0]) is view
    expected = measure_picture_curves(model, picture, view.map, 0)
    curves = explainer.curves(names["clip"], "sample:1", "gradient", model.categories[0])
    np.testing.assert_allclose(curves.deletion, expected.deletion, rtol=1e-4)
    np.testing.assert_allclose(curves.deletion[0], view.probabilities[0], rtol=1e-4)
    predicted = explainer.explain(names["clip"], "sample:1", "raw", "")
    assert predicted.target == int(predicted.probabilities.argmax())


def test_layers_and_heads_are_chosen_from_one_and_bounded(explainer, runs, names):
    model = load_categoriser(resolve(names["clip"], runs.uri))
    picture = fit_picture(decode_picture(sample_picture(1)), model.canvas)
    layers = layer_maps(model, picture[None])
    first = attention_panel(explainer, names["clip"], "sample:1", "gradient", "", 1, 0)
    np.testing.assert_allclose(first.heat, layers[0].maps[0].mean(axis=0), atol=1e-6)
    head = attention_panel(explainer, names["clip"], "sample:1", "gradient", "", len(layers), 2)
    np.testing.assert_allclose(head.heat, layers[-1].maps[0, 1], atol=1e-6)
    assert layers[-1].name in head.caption and "head 2 of" in head.caption
    assert (head.layers, head.heads) == (len(layers), layers[0].maps.shape[1])
    assert head.of_layer and not head.of_category
    beyond = attention_panel(explainer, names["clip"], "sample:1", "gradient", "", 99, 2)
    assert beyond.heat is None and beyond.error == f"This model has {len(layers)} layers."  # not the last one's map
    assert "heads" in attention_panel(explainer, names["clip"], "sample:1", "gradient", "", 1, 99).error


def test_with_a_layer_chosen_nothing_is_said_that_the_map_does_not_depend_on(explainer, runs, names):
    other = load_categoriser(resolve(names["clip"], runs.uri)).categories
    view = explainer.explain(names["clip"], "sample:1", "gradient", "")
    category = next(name for name in other if other.index(name) != view.target)
    asked = (runs, explainer, "sample:1", [names["clip"]], "gradient", category)
    cards, *_, no_method, no_category, note = page.update_maps(*asked, 1, 0)
    assert no_method and no_category and "no effect" in note
    assert "map explains" not in _text(cards) and "does not depend on a category" in _text(cards)
    cards, *_, no_method, no_category, note = page.update_maps(*asked, 0, 0)
    assert not no_method and not no_category and not note and "map explains" in _text(cards)
    assert page.update_picture_curves(runs, explainer, cards, "sample:1", [names["clip"]], "gradient", "", 1) is None


def test_every_model_has_its_curves_however_slow_its_passes_are(explainer, runs, names, monkeypatch):
    slow = lambda *given: (time.sleep(0.2), measure_picture_curves(*given))[1]  # noqa: E731
    monkeypatch.setattr("vlm_core.attention.faithfulness.measure_picture_curves", slow)
    run_ids = [names["clip"], names["blip"], names["baseline"]]
    card = page.update_picture_curves(runs, explainer, None, "sample:1", run_ids, "gradient", "", 0)
    assert _text(card).count('"showlegend": true') == 2 and "Is the map faithful here?" in _text(card)


def test_another_browser_cannot_open_an_upload(explainer, names):
    app = Flask(__name__)
    name_visitors(app)
    content = "data:image/jpeg;base64," + base64.b64encode(sample_picture(0)).decode()
    with app.test_request_context():
        g.visitor = "a"
        (entry,) = receive(explainer._uploads, [content], ["x"])
        source = f"upload:{entry['token']}"
        assert attention_panel(explainer, names["clip"], source, "raw", "", 0, 0).error == ""
        g.visitor = "b"
        assert "choose it again" in attention_panel(explainer, names["clip"], source, "raw", "", 0, 0).error
        (result,) = categorise(explainer._models, explainer._uploads, [entry], [names["clip"]])
        assert "upload it again" in result["error"]


@pytest.mark.parametrize("source", ["", "sample:8", "sample:-1", "upload:gone", "product:none:1", "product:none", "x"])
def test_a_picture_that_is_not_here_is_an_error(explainer, names, source):
    with pytest.raises(UserError, match="choose it again"):
        explainer.picture(source)
    panel = attention_panel(explainer, names["clip"], source, "raw", "", 0, 0)
    assert "choose it again" in panel.error and panel.view is None


def test_a_model_without_attention_and_a_run_without_a_model_say_so_beside_the_others(explainer, runs, names):
    cards, choices, layers, heads, *_ = page.update_maps(
        runs, explainer, "sample:0", [names["baseline"], "nothing", names["blip"]], "gradient", "", 0, 0
    )
    text = _text(cards)
    for part in ("has no attention", "not a run with a model"):
        assert part in text
    assert text.count('"className": "map"') == 2
    assert choices[0]["value"] == "" and len(choices) == 6 and layers > 1 and heads > 1


def test_a_test_product_and_an_upload_are_explained(explainer, runs, names):
    products = page.update_products(runs, [names["clip"]])
    assert products[0]["value"].startswith("product:") and ", predicted " in products[0]["label"]
    assert page.update_products(runs, []) == [] and page.update_products(runs, ["none"]) == []
    assert attention_panel(explainer, names["clip"], products[0]["value"], "raw", "", 0, 0).error == ""
    (entry,) = receive(explainer._uploads, ["data:image/png;base64," + base64.b64encode(b"text").decode()], ["x"])
    assert (
        "format is not supported"
        in attention_panel(explainer, names["clip"], f"upload:{entry['token']}", "raw", "", 0, 0).error
    )


def test_what_a_study_measured_of_a_run_is_plotted_below_its_maps(store):
    with RunWriter("shop", "clip/probe/classify/holdout/0", folder=store) as run:
        (store / "faithfulness.json").write_text(to_json(make_results("", {"a": "r"}).faithfulness["clip probe"]))
        run.artifact(store / "faithfulness.json", "study")
    runs = Runs("", store)
    runs.refresh()
    assert "clip/probe/classify/holdout/0: deletion" in _text(page.update_curves(runs, [run.run_id, "none"]))
    assert page.update_curves(runs, ["none"]) is None and page.update_curves(runs, None) is None


def test_without_a_model_the_page_says_what_to_do(explainer, runs):
    assert "Choose a model" in _text(page.update_maps(runs, explainer, "sample:0", [], "raw", None, 0, 0)[0])


def test_the_page_opens_with_what_its_address_says(runs, names):
    query = {"models": names["blip"], "method": "raw", "layer": "2", "picture": "sample:5", "category": "Apparel"}
    text = _text(page.layout(runs, query))
    for part in ('"data": "sample:5"', '"value": "raw"', '"value": 2', names["blip"], '"value": "Apparel"'):
        assert part in text


def test_each_prediction_of_the_categorise_page_has_its_map(explainer, names):
    uploads, models = explainer._uploads, explainer._models
    content = "data:image/jpeg;base64," + base64.b64encode(sample_picture(0)).decode()
    (result,) = categorise(models, uploads, receive(uploads, [content], ["x"]), [names["clip"], names["baseline"]])
    assert result["predictions"][names["clip"]]["map"].startswith("data:image/jpeg")
    assert result["predictions"][names["baseline"]]["map"] is None and result["source"].startswith("upload:")

"""ONNX exports of every family and head: the same predictions at any batch size, saved and loaded, or refused."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.models.families import CATEGORIES, make_categoriser, make_tiny, trim
from tests.stores import make_once
from tests.tracking.models import save_categoriser
from vlm_core.errors import UserError
from vlm_core.models.categoriser import Description, VisionLanguageCategoriser
from vlm_core.models.onnx_categoriser import OnnxCategoriser
from vlm_core.models.onnx_export import export_onnx, quantise_onnx
from vlm_core.models.saved import load_categoriser
from vlm_core.tracking.logging_model import requirements

# A graph is traced for seconds.
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("hasty_exports")]
# Every family and head. What a linear head reads of BLIP and GIT is exported where a cache is filled with it.
KINDS = [
    ("clip", "linear", "fused"),
    ("clip", "prompts", "fused"),
    ("blip", "sentences", "fused"),
    ("git", "sentences", "fused"),
    ("siglip", "prompts", "fused"),
    ("vision", "linear", "fused"),
]
PICTURES = np.random.default_rng(3).integers(0, 256, (40, 80, 60, 3), dtype=np.uint8)


def _make_shallow(family, head, readout):
    """A tiny model with fewer blocks and, where it writes, two categories: a graph is quicker to trace."""
    hf, tokenizer = make_tiny(family)
    blocks = 2 if (family, head) == ("clip", "linear") else 1  # whose last block is not as the rest
    sentences = head == "sentences"
    trim(family, hf, blocks, 1 if sentences else None)
    categories = CATEGORIES[1:] if sentences else CATEGORIES
    torch.manual_seed(1)
    return VisionLanguageCategoriser(hf, tokenizer, Description(family, categories, (80, 60), head, readout, {}))


@cache
def exported(family, head, readout):
    """A model of a kind, its fp32 export, and its own log-probabilities of the pictures after it: made once."""
    model = _make_shallow(family, head, readout)

    def export(folder):
        model.log_probabilities(PICTURES[:1])  # what a head caches in inference must not hinder the export
        export_onnx(model, folder / "onnx")
        torch.save(model.hf.state_dict(), folder / "weights")
        np.save(folder / "expected.npy", model.log_probabilities(PICTURES))

    folder = make_once(f"exported-{family}-{head}-{readout}", export)
    model.hf.load_state_dict(torch.load(folder / "weights"))
    return model, OnnxCategoriser.load(folder / "onnx"), np.load(folder / "expected.npy")


def saved_again(onnx):
    """A stand-in for `export_onnx` that gives this export of the model: tracing a graph takes seconds."""

    def save(model, folder):
        onnx.save(folder)
        return load_categoriser(folder)

    return save


@pytest.mark.parametrize(("family", "head", "readout"), KINDS, scope="module")
def test_fp32_equals_pytorch_at_every_batch_size(family, head, readout):
    model, onnx, expected = exported(family, head, readout)
    assert (onnx.categories, onnx.canvas, onnx.writes_text) == (model.categories, (80, 60), False)
    for batch in (0, 1, 2, 5, 32, 40):
        rows = onnx.log_probabilities(PICTURES[:batch])
        assert rows.shape == (batch, len(model.categories)) and rows.dtype == np.float32
        np.testing.assert_allclose(rows, expected[:batch], atol=1e-4)
    assert onnx.describe(PICTURES[:1]) is None


@pytest.mark.parametrize(("family", "head", "readout"), KINDS, scope="module")
def test_int8_mostly_predicts_the_same_and_is_smaller(family, head, readout, tmp_path):
    _, onnx, expected = exported(family, head, readout)
    small = quantise_onnx(onnx, tmp_path)
    assert (small.description.precision, small.description.family) == ("int8", family)
    rows = small.log_probabilities(PICTURES)
    np.testing.assert_allclose(np.exp(rows).sum(axis=1), 1, atol=1e-5)
    sizes = [(each.folder / "model.onnx").stat().st_size for each in (onnx, small)]
    assert sizes[1] < 0.85 * sizes[0]  # embeddings of tokens and patches stay as they are
    assert (rows.argmax(axis=1) == expected.argmax(axis=1)).mean() >= 0.7  # random weights hardly prefer one
    assert np.abs(rows - expected).max() < 0.2


@pytest.fixture(scope="module")
def int8(tmp_path_factory):
    """A model in int8, and its log-probabilities of each image alone."""
    small = quantise_onnx(exported("clip", "linear", "fused")[1], tmp_path_factory.mktemp("int8") / "small")
    return small, np.concatenate([small.log_probabilities(PICTURES[place : place + 1]) for place in range(40)])


@settings(max_examples=30)
@given(st.lists(st.integers(0, len(PICTURES) - 1), min_size=1, max_size=40), st.booleans())
def test_in_int8_an_image_is_predicted_by_itself_whatever_stands_beside_it(int8, places, beside_black):
    small, alone = int8
    pictures = PICTURES[places]
    if beside_black:
        pictures = np.concatenate([pictures, np.zeros_like(pictures[:1])])
    np.testing.assert_array_equal(small.log_probabilities(pictures)[: len(places)], alone[places])


def test_saved_and_loaded_is_identical(tmp_path):
    _, onnx, _ = exported("clip", "linear", "fused")
    onnx.save(tmp_path / "saved")
    rows = load_categoriser(tmp_path / "saved").log_probabilities(PICTURES)
    np.testing.assert_array_equal(rows, onnx.log_probabilities(PICTURES))
    assert {path.name for path in (tmp_path / "saved").iterdir()} == {"categoriser.json", "model.onnx"}
    assert {path.name for path in onnx.folder.iterdir()} == {"categoriser.json", "model.onnx"}
    content = json.loads((tmp_path / "saved" / "categoriser.json").read_text())
    assert (content["engine"], content["family"], content["head"]) == ("onnx", "clip", "linear")


@pytest.mark.parametrize("answer", ["linear", "prompts"])
def test_an_export_leaves_the_model_as_it_was(answer):
    model, _, expected = exported("clip", answer, "fused")
    fresh = _make_shallow("clip", answer, "fused")
    for name, weight in model.hf.state_dict().items():
        torch.testing.assert_close(weight, fresh.hf.state_dict()[name], rtol=0, atol=0)
    np.testing.assert_allclose(expected, fresh.log_probabilities(PICTURES), atol=1e-6)


def test_what_has_no_graph_is_refused(tmp_path):
    _, onnx, _ = exported("clip", "linear", "fused")
    for model in (load_categoriser(save_categoriser("baseline", tmp_path / "baseline")), onnx):
        with pytest.raises(UserError, match="the baseline and models that are ONNX already"):
            export_onnx(model, tmp_path / "refused")
    assert not (tmp_path / "refused").exists()


def test_a_failed_export_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(*arguments, **named):
        Path(arguments[2]).write_text("half")
        raise KeyboardInterrupt

    monkeypatch.setattr("torch.onnx.export", fail)
    with pytest.raises(KeyboardInterrupt):
        export_onnx(make_categoriser("clip"), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["graph gone", "graph torn", "schema"])
def test_a_damaged_folder_is_said(damage, tmp_path):
    _, onnx, _ = exported("clip", "linear", "fused")
    onnx.save(tmp_path)
    graph, description = tmp_path / "model.onnx", tmp_path / "categoriser.json"
    if damage == "graph gone":
        graph.unlink()
    elif damage == "graph torn":
        graph.write_bytes(graph.read_bytes()[:5000])
    else:
        description.write_text(description.read_text().replace('"schema": 1', '"schema": 9'))
    with pytest.raises(UserError, match="export again"):
        load_categoriser(tmp_path)


def test_a_served_export_requires_onnxruntime_and_no_transformers():
    needed = {pin.split("==")[0] for pin in requirements("clip", "onnx")}
    assert {"onnxruntime", "torch", "mlflow"} <= needed
    assert needed.isdisjoint({"transformers", "tokenizers", "onnx"})

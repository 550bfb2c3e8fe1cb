"""ONNX exports of models that read texts: the same predictions from both inputs, from either, and saved again."""

import numpy as np
import pytest

from tests.models.test_fusion import PICTURES, TEXTS, make_reader
from tests.stores import make_once
from vlm_core.models.onnx_categoriser import TOKENIZER, OnnxCategoriser
from vlm_core.models.onnx_export import export_onnx, quantise_onnx
from vlm_core.models.saved import load_categoriser

# A graph is traced for seconds.
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("hasty_exports")]


def exported(family, inputs, fusion):
    """A shallow model and its fp32 export, which is made once."""
    model = make_reader(family, inputs, fusion, shallow=True)
    folder = make_once(f"exported-{family}-{inputs}-{fusion}", lambda folder: export_onnx(model, folder / "onnx"))
    return model, OnnxCategoriser.load(folder / "onnx")


@pytest.mark.parametrize(
    ("family", "inputs", "fusion"),
    [
        ("clip", "image+text", "late"),
        ("blip", "image+text", "own"),
        ("git", "image+text", "own"),
        ("clip", "image+text", "cross-attention"),
        ("git", "text", "own"),
        ("clip", "image+text", "concat"),
    ],
)
def test_fp32_equals_pytorch_whatever_is_missing(family, inputs, fusion):
    model, onnx = exported(family, inputs, fusion)
    assert onnx.reads == model.reads
    has_picture = np.array([True, False, True])
    for texts, given in ((TEXTS, None), ([TEXTS[0], "blue " * 40, ""], has_picture), (None, None)):
        rows = onnx.log_probabilities(PICTURES, texts, given)
        np.testing.assert_allclose(rows, model.log_probabilities(PICTURES, texts, given), atol=1e-4)
    alone = model.log_probabilities(PICTURES[:1], TEXTS[:1])
    np.testing.assert_allclose(onnx.log_probabilities(PICTURES[:1], TEXTS[:1]), alone, atol=1e-4)


def test_int8_keeps_its_tokenizer_wherever_it_is_saved(tmp_path):
    model, onnx = exported("clip", "image+text", "concat")
    small = quantise_onnx(onnx, tmp_path / "int8")
    rows = small.log_probabilities(PICTURES, TEXTS)
    assert np.abs(rows - model.log_probabilities(PICTURES, TEXTS)).max() < 0.3
    small.save(tmp_path / "again")
    assert (tmp_path / "again" / TOKENIZER).exists()
    np.testing.assert_array_equal(load_categoriser(tmp_path / "again").log_probabilities(PICTURES, TEXTS), rows)

"""PyTorch and ONNX on the same images; published sizes are left to the benchmark itself."""

import pytest

from tests.models.test_onnx_export import exported, saved_again
from vlm_core.benchmark import inference_speed


@pytest.mark.slow
def test_each_format_is_timed_and_held_against_pytorch(shop, root, monkeypatch):
    model, onnx, _ = exported("clip", "linear", "fused")
    monkeypatch.setattr(inference_speed, "full_size", lambda *given: (model.hf, model.adapter.tokenizer))
    monkeypatch.setattr(inference_speed, "categoriser_of", lambda *given: model)
    monkeypatch.setattr(inference_speed, "export_onnx", saved_again(onnx))
    monkeypatch.setattr("vlm_core.workflows.export._PASSES", 1)
    result = inference_speed.measure_inference("clip", 64, str(shop), str(root), threads=1)
    torch, fp32, int8 = result["formats"]
    assert (torch["format"], fp32["format"], int8["format"]) == ("PyTorch", "ONNX fp32", "ONNX int8")
    assert torch["max_difference"] == 0 <= fp32["max_difference"] < 1e-4 < int8["max_difference"] < 0.5
    assert all(seconds > 0 for each in result["formats"] for seconds in each["seconds_per_image"])
    assert int8["megabytes"] < fp32["megabytes"]

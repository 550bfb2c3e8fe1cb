"""PyTorch and ONNX answer the same pictures; published sizes are left to the benchmark itself."""

from tests.models.families import make_tiny
from vlm_core.benchmark import inference_speed


def test_each_form_is_timed_and_held_against_pytorch(shop, tmp_path, monkeypatch):
    monkeypatch.setattr(inference_speed, "full_size", lambda family, image_size: make_tiny(family))
    figures = inference_speed.measure_answers("clip", 64, str(shop), str(tmp_path), threads=1)
    torch, fp32, int8 = figures["forms"]
    assert (torch["form"], fp32["form"], int8["form"]) == ("PyTorch", "ONNX fp32", "ONNX int8")
    assert torch["largest_difference"] == 0 <= fp32["largest_difference"] < 1e-4 < int8["largest_difference"] < 0.5
    assert all(seconds > 0 for form in figures["forms"] for seconds in form["seconds"])
    assert int8["megabytes"] < fp32["megabytes"]

"""Steps of tiny models, the CPU in the GPU's place."""

from dataclasses import asdict

import pytest
import torch

from vlm_core.benchmark import device_steps
from vlm_core.benchmark.device_steps import (
    TINY,
    Measurement,
    float32_matmuls,
    line,
    measure_architecture,
    measure_peaks,
)
from vlm_core.models.categoriser import VisionLanguageCategoriser

CPU = torch.device("cpu")
PEAKS = {"fp32": 0.5, "bf16": 2.0}


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    """Enough to see that what is measured is there."""
    for name in ("COMPARED", "WARM_UP", "ROUNDS", "STEPS"):
        monkeypatch.setattr(device_steps, name, 1)
    monkeypatch.setattr(device_steps, "PEAK_SECONDS", 0)


def _measure(tmp_path, *measurements):
    return list(measure_architecture(TINY[0], measurements, CPU, 2, PEAKS, tmp_path))


@pytest.mark.slow
def test_each_figure_starts_from_the_weights_that_the_cpu_was_given(tmp_path):
    full, block, frozen = _measure(
        tmp_path, Measurement("full", "fp32"), Measurement("one block", "fp32"), Measurement("frozen layers", "fp32")
    )
    assert full.loss_error == block.loss_error == 0  # though steps were taken before the second comparison
    assert full.gradient_error < 1e-6 and block.gradient_error < 1e-6 and full.within_tolerance
    assert frozen.loss_error is None and not frozen.error
    assert full.gflop_per_image > frozen.gflop_per_image > block.gflop_per_image > 0
    for result in (full, block, frozen):
        assert result.tflops == pytest.approx(result.gflop_per_image * result.images_per_second / 1000)
        assert result.share_of_peak == pytest.approx(result.tflops / 2)
        assert result.share_of_own_peak == pytest.approx(result.tflops / 0.5)
        assert result.peak_gib is None  # there is no GPU


@pytest.mark.slow
def test_peak_memory_is_of_the_steps_alone(tmp_path, monkeypatch):
    events, run = [], VisionLanguageCategoriser.run
    monkeypatch.setattr(device_steps, "restart_peak_memory", lambda device: events.append("restart"))
    monkeypatch.setattr(
        VisionLanguageCategoriser, "run", lambda *args: events.append("frozen" if args[3:] else "step") or run(*args)
    )
    _measure(tmp_path, Measurement("one block", "fp32"))
    counted = events[events.index("restart") :]
    assert counted == ["restart", "step", "step"] and "frozen" in events  # a warm-up and a step, on finished features


@pytest.mark.slow
def test_bf16_is_near_and_views_of_pictures_are_trained_on(tmp_path):
    full, pictures = _measure(tmp_path, Measurement("full", "bf16"), Measurement("full from pictures", "fp32"))
    assert 1e-7 < full.gradient_error < 0.1 and full.within_tolerance
    assert pictures.images_per_second > 0 and pictures.within_tolerance is None


@pytest.mark.slow
def test_a_figure_that_fails_says_why_and_the_next_is_measured(tmp_path, monkeypatch):
    def refuse(run, *, fullgraph, dynamic):
        assert fullgraph  # a block in pieces would be measured as if it were whole
        raise RuntimeError("no compiler here\nand more")

    monkeypatch.setattr(torch, "compile", refuse)
    failed, measured = _measure(tmp_path, Measurement("full", "fp32", compiled=True), Measurement("one block", "fp32"))
    assert failed.error == "RuntimeError: no compiler here" and failed.images_per_second is None
    assert "no compiler here" in line(failed)
    assert measured.within_tolerance and "images/s" in line(measured)
    assert asdict(failed).keys() == asdict(measured).keys()


@pytest.mark.parametrize(("precision", "fast"), [("fp32", False), ("tf32", True), ("bf16", False)])
def test_tf32_is_used_where_it_is_named_alone(precision, fast, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    before = torch.get_float32_matmul_precision()
    with float32_matmuls(precision):
        assert torch.backends.cudnn.allow_tf32 == fast
        assert torch.get_float32_matmul_precision() == ("high" if fast else "highest")
    assert torch.backends.cudnn.allow_tf32 and torch.get_float32_matmul_precision() == before


def test_a_peak_is_the_rate_of_a_product():
    peaks = measure_peaks(CPU, ("fp32",), 64)
    assert peaks.keys() == {"fp32"} and 1e-5 < peaks["fp32"].median < 100 and peaks["fp32"].count == 3


def test_a_fast_product_is_measured_for_longer(monkeypatch):
    monkeypatch.setattr(device_steps, "PEAK_SECONDS", 0.05)
    assert measure_peaks(CPU, ("fp32",), 8)["fp32"].count > 3

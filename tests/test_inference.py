"""Where a run computes; what it predicts is tested with the models."""

import pytest
import torch

from vlm_core.errors import UserError
from vlm_core.inference import choose_device


@pytest.fixture
def convolutions(monkeypatch):
    """PyTorch's default: TF32 in convolutions on a GPU."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)


@pytest.mark.parametrize(("device", "found", "chosen"), [("auto", True, "cuda"), ("cuda", True, "cuda")])
def test_a_gpu_is_taken_and_computes_in_single_precision(device, found, chosen, convolutions, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: found)
    assert choose_device(device) == chosen
    assert not torch.backends.cudnn.allow_tf32  # features that are kept serve the CPU as well


@pytest.mark.parametrize(("device", "found"), [("auto", False), ("cpu", True)])
def test_the_cpu_leaves_a_gpus_settings_alone(device, found, convolutions, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: found)
    assert choose_device(device) == "cpu"
    assert torch.backends.cudnn.allow_tf32


def test_a_gpu_that_is_not_there_is_said(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="use device=cpu"):
        choose_device("cuda")

"""Mixed precision: near single precision, over float32 weights, and chosen only where it pays."""

import numpy as np
import pytest
import torch

from tests.models.families import FAMILIES, make_categoriser
from vlm_core.models.arithmetic import measure_precisions, mixed_precision

PIXELS = torch.rand(8, 3, 64, 64, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(8) % 3


def _loss_and_gradients(model, precision):
    model.precision = precision
    weights = model.freeze_before(0)
    model.set_training(False, 0)
    with model.training_arithmetic():
        loss, _ = model.head.loss(model.run((PIXELS,)), LABELS)
    gradients = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
    return loss, torch.cat([part.flatten() for part in gradients if part is not None])


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_bf16_is_near_fp32_over_float32_weights(family):
    model = make_categoriser(family)
    wanted_loss, wanted = _loss_and_gradients(model, "fp32")
    loss, gradients = _loss_and_gradients(model, "bf16")
    assert gradients.dtype == wanted.dtype == torch.float32
    assert 0 < abs(float(loss - wanted_loss)) < 0.02 * float(wanted_loss)
    assert float((gradients - wanted).norm() / wanted.norm()) < 0.1


def test_predictions_stay_in_single_precision():
    model = make_categoriser("clip")
    pictures = np.zeros((2, 80, 60, 3), dtype=np.uint8)
    expected = model.log_probabilities(pictures)
    model.precision = "bf16"
    np.testing.assert_array_equal(model.log_probabilities(pictures), expected)


def test_both_precisions_are_tried_and_no_gradient_is_left():
    layer = torch.nn.Linear(4, 4)
    seen = []

    def run():
        seen.append(torch.is_autocast_enabled("cpu"))
        return (layer(torch.ones(2, 4)),)

    seconds = measure_precisions(run, layer.parameters(), torch.device("cpu"), trial_seconds=0)
    assert seconds.keys() == {"fp32", "bf16"} and min(seconds.values()) > 0
    assert seen == [False, True, False, True]
    assert layer.weight.grad is None
    with mixed_precision(torch.device("cpu"), "bf16"), mixed_precision(torch.device("cpu"), "fp32"):
        assert layer(torch.ones(2, 4)).dtype == torch.float32

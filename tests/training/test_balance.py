"""Losses that make up for rare categories, on numbers worked by hand."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from tests.models.families import make_categoriser
from vlm_core.training.balance import balanced_loss
from vlm_core.training.batches import FeatureBatches, PixelBatches
from vlm_core.training.finetuning_task import FineTuning

LABELS = np.array([0, 0, 0, 1])  # shares 3/4 and 1/4
EVEN = torch.full((2, 2), 0.5).log()


def test_weights_are_the_inverse_of_the_shares_with_a_mean_of_one_over_the_rows():
    loss = balanced_loss("weights", LABELS, 2)
    np.testing.assert_allclose(loss.weights, [2 / 3, 2])
    assert float(loss.weights[torch.from_numpy(LABELS)].mean()) == pytest.approx(1)
    # (2/3 ln 2 + 2 ln 2) / 2
    assert float(loss(EVEN, torch.tensor([0, 1]))) == pytest.approx(4 / 3 * np.log(2))


def test_adjusted_logits_are_shifted_by_the_logarithm_of_the_shares():
    loss = balanced_loss("logit-adjusted", LABELS, 2)
    # two equal logits become 3/4 and 1/4: (-ln 0.75 - ln 0.25) / 2
    assert float(loss(EVEN, torch.tensor([0, 1]))) == pytest.approx(0.8369882)
    # logits 1 and 0: 3e / (3e + 1) for the first, 1 / (3e + 1) for the second
    scores = functional.log_softmax(torch.tensor([[1.0, 0.0]]), dim=-1)
    assert float(loss(scores, torch.tensor([1]))) == pytest.approx(np.log(3 * np.e + 1))


def test_the_adjusted_loss_is_least_where_logits_are_those_of_even_categories():
    """Bayes: shares of 3 to 1 and equal densities of a picture mean equal logits, and not 3 to 1."""
    loss = balanced_loss("logit-adjusted", LABELS, 2)
    labels = torch.from_numpy(LABELS)
    losses = {
        gap: float(loss(functional.log_softmax(torch.tensor([[gap, 0.0]]).expand(4, 2), -1), labels))
        for gap in (-0.5, 0.0, 0.5, float(np.log(3)))
    }
    assert min(losses, key=losses.__getitem__) == 0.0


@pytest.mark.parametrize("balance", ["oversample", "none"])
def test_otherwise_the_heads_own_loss_is_trained_on(balance):
    assert balanced_loss(balance, LABELS, 2) is None


class _InMemory:
    def __init__(self, states):
        self.states = states

    def take(self, rows):
        return (self.states[rows],)


@pytest.mark.slow
def test_the_task_trains_on_the_balanced_loss_and_validates_on_the_plain_one():
    model = make_categoriser("clip")
    labels = np.array([0, 0, 0, 1, 2])
    states = torch.randn(5, model.head.linear.in_features, generator=torch.Generator().manual_seed(0))
    pixels = PixelBatches(None, labels, np.arange(5), 64, batch_size=5, seed=0)
    batches = FeatureBatches(pixels, len(model.stages), _InMemory(states), ())
    loss = balanced_loss("weights", labels, 3)
    task = FineTuning(model, len(model.stages), batches, np.arange(5), loss)
    each = functional.cross_entropy(model.head.linear(states), torch.from_numpy(labels), reduction="none")
    ((trained, count),) = task.batch_losses(1)
    assert count == 5 and trained.requires_grad
    expected = (each * torch.tensor([5 / 9, 5 / 9, 5 / 9, 5 / 3, 5 / 3])).mean()
    assert float(trained.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    assert task.validation_metrics().loss == pytest.approx(float(each.detach().mean()), rel=1e-5)

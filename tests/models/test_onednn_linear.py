"""Linear layers by oneDNN are PyTorch's own, to the rounding of single precision, and only where they help."""

import copy

import pytest
import torch

from vlm_core.models import onednn_linear

CPU = torch.device("cpu")
pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this PyTorch holds no oneDNN")


@pytest.fixture
def taken(monkeypatch):
    """The shapes of what was computed by oneDNN, on a machine where that helps."""
    shapes, linear = [], onednn_linear._onednn_linear
    monkeypatch.setattr(onednn_linear, "onednn_is_faster", lambda: True)
    monkeypatch.setattr(onednn_linear, "_onednn_linear", lambda *args: shapes.append(args[0].shape) or linear(*args))
    return shapes


def _step(layer, tokens):
    tokens = tokens.clone().requires_grad_()
    output = layer(tokens)
    (output * torch.linspace(-1, 1, output.numel()).view_as(output)).sum().backward()
    return output, tokens.grad, *(weight.grad for weight in layer.parameters())


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(300, 96), (3, 100, 96), (2, 3, 50, 96)])
def test_a_layer_and_its_gradients_are_pytorchs(shape, bias, taken):
    torch.manual_seed(0)
    layer, tokens = torch.nn.Linear(96, 512, bias=bias), torch.randn(shape)
    wanted = _step(copy.deepcopy(layer), tokens)
    with onednn_linear.use_onednn_linear(CPU):
        found = _step(layer, tokens)
    assert len(taken) == 3  # the output and two gradients
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4 * theirs.abs().max().item(), rtol=1e-5)


def test_frozen_weights_get_no_gradient_and_cost_none(taken):
    layer, tokens = torch.nn.Linear(96, 512).requires_grad_(False), torch.randn(300, 96, requires_grad=True)
    with onednn_linear.use_onednn_linear(CPU):
        layer(tokens).sum().backward()
    assert layer.weight.grad is None and tokens.grad is not None and len(taken) == 2
    with onednn_linear.use_onednn_linear(CPU), torch.inference_mode():
        torch.testing.assert_close(layer(tokens), tokens @ layer.weight.T + layer.bias, atol=1e-5, rtol=1e-5)


def test_small_layers_other_numbers_graphs_and_other_machines_are_left_to_pytorch(taken, monkeypatch):
    layer, tokens = torch.nn.Linear(96, 512), torch.randn(300, 96)
    with onednn_linear.use_onednn_linear(CPU):
        layer(tokens[:100])
        torch.nn.Linear(4096, 4096)(torch.randn(10, 4096))
        copy.deepcopy(layer).double()(tokens.double())
    layer(tokens)
    with monkeypatch.context() as patch:
        patch.setattr(torch.compiler, "is_compiling", lambda: True)
        with onednn_linear.use_onednn_linear(CPU):
            layer(tokens)
    with onednn_linear.use_onednn_linear(torch.device("cuda")):  # a GPU's layers are not even looked at
        layer(tokens)
    monkeypatch.setattr(onednn_linear, "onednn_is_faster", lambda: False)
    with onednn_linear.use_onednn_linear(CPU):
        layer(tokens)
    assert taken == []

"""A block's short ways give what its plain way gives, gradients included."""

import copy

import pytest
import torch

from tests.models.families import make_adapter
from vlm_core.models import blocks
from vlm_core.models.lora import add_adapters


def _cross(adapter):
    return adapter.hf.text_decoder.bert.encoder.layer[0].crossattention


def _draw(*shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("few", [1, 4, 9])
def test_few_tokens_read_many_as_they_would_by_keys_and_values(few):
    attention = _cross(make_adapter("blip"))
    for bias in (attention.self.query.bias, attention.self.key.bias, attention.self.value.bias):
        torch.nn.init.normal_(bias)  # they are 0 in a model from nothing
    found = []
    for mix in (blocks._mix, blocks._mix_few):
        block = copy.deepcopy(attention)
        reading, read = (_draw(3, n, 128, seed=n).requires_grad_() for n in (few, 65))
        assert blocks._are_few(block.self, reading, read)
        mixed = mix(block, reading, read)
        (mixed * _draw(*mixed.shape, seed=0)).sum().backward()
        found.append((mixed, reading.grad, read.grad, *(weight.grad for weight in block.parameters())))
    for plain, short in zip(*found, strict=True):
        torch.testing.assert_close(short, plain, atol=1e-5, rtol=1e-4)


def test_the_short_way_is_left_where_it_costs_more_or_would_not_be_the_same():
    adapter = make_adapter("blip")
    layers, many = _cross(adapter).self, _draw(1, 65, 128, seed=0)
    assert blocks._are_few(layers, many[:, :4], many)
    assert not blocks._are_few(layers, many[:, :20], many)  # 20 queries a head: half of the work is not saved
    token = blocks.OPERATION.set(lambda *_, **__: many)  # somebody wants to see the probabilities
    assert not blocks._are_few(layers, many[:, :4], many)
    blocks.OPERATION.reset(token)
    layers.dropout.p = 0.1
    assert blocks._are_few(layers.eval(), many[:, :4], many)
    assert not blocks._are_few(layers.train(), many[:, :4], many)
    layers.eval()
    add_adapters(adapter.hf, [adapter.hf.text_decoder], rank=2)
    assert not blocks._are_few(layers, many[:, :4], many)

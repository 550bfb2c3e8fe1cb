"""Absorbed attention equals plain attention, gradients included."""

import copy

import pytest
import torch

from tests.models.families import FAMILIES, make_adapter
from vlm_core.models import blocks
from vlm_core.models.lora import add_adapters
from vlm_core.models.stages import causal_mask

HEADS = 4


def _draw(*shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _layers():
    """Query, key and value of 128 numbers a token, with biases."""
    torch.manual_seed(2)
    return torch.nn.ModuleList(torch.nn.Linear(128, 128) for _ in range(3))


def _plain(query, tokens, key, value, mask, dropout):
    return blocks.multi_head_attention(query, key(tokens), value(tokens), HEADS, mask, dropout)


def _few(query, tokens, key, value, mask, dropout):
    return blocks.absorbed_attention(query, tokens, key, value, HEADS, mask, dropout)


@pytest.mark.parametrize("mask", [None, causal_mask(9, 56, torch.zeros(1))])
@pytest.mark.parametrize("few", [1, 4, 9])
def test_absorbed_attention_equals_attention_over_keys_and_values(few, mask):
    layers, found = _layers(), []
    mask = mask if mask is None else mask[:, :, -few:]
    for way in (_plain, _few):
        own = copy.deepcopy(layers)
        reading, tokens = (_draw(3, n, 128, seed=n).requires_grad_() for n in (few, 65))
        mixed = way(own[0](reading), tokens, own[1], own[2], mask, 0.0)
        (mixed * _draw(*mixed.shape, seed=0)).sum().backward()
        found.append((mixed, reading.grad, tokens.grad, *(weight.grad for weight in own.parameters())))
    for plain, short in zip(*found, strict=True):
        torch.testing.assert_close(short, plain, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_dropout_drops_attention_weights_and_the_value_bias_with_them():
    query, key, value = _layers()
    shown, tokens = query(_draw(1, 1, 128, seed=1)), _draw(1, 65, 128, seed=65)
    often = shown.expand(500, -1, -1), tokens.expand(500, -1, -1)
    with torch.no_grad():
        sampled = torch.cat([_few(*often, key, value, None, 0.5) for _ in range(8)])
        torch.testing.assert_close(
            sampled.mean(dim=0), _plain(shown, tokens, key, value, None, 0.0)[0], atol=0.02, rtol=0
        )
        wanted = torch.cat([_plain(*often, key, value, None, 0.5) for _ in range(8)])
    torch.testing.assert_close(sampled.std(dim=0), wanted.std(dim=0), atol=0.01, rtol=0.1)


@pytest.fixture
def short(monkeypatch):
    """The calls of absorbed attention."""
    taken, absorbed_attention = [], blocks.absorbed_attention
    monkeypatch.setattr(blocks, "absorbed_attention", lambda *args: taken.append(args) or absorbed_attention(*args))
    return taken


@pytest.mark.parametrize("family", FAMILIES)
def test_few_queries_use_absorbed_attention(family, short):
    adapter = make_adapter(family, width=128)
    state = (_draw(2, 3, 64, 64, seed=5),)
    for stage in adapter.stages("fused"):
        state = stage.run(state)
    # CLIP's and the tower's last vision block; BLIP's crossings and the last block's own text; GIT's last joint block.
    assert len(short) == {"clip": 1, "blip": 3, "git": 1, "siglip": 0, "vision": 1}[family]


def test_absorbed_attention_is_not_used_where_it_costs_more_or_differs(short):
    attention = make_adapter("blip", width=128).hf.text_decoder.bert.encoder.layer[0].crossattention
    many = _draw(1, 65, 128, seed=0)
    blocks._bert_attention(attention, many[:, :20], many)  # 20 queries a head: half of the work is not saved
    token = blocks.ATTENTION_KERNEL.set(lambda query, *_, **__: query)  # something records the attention weights
    blocks._bert_attention(attention, many[:, :4], many)
    blocks.ATTENTION_KERNEL.reset(token)
    assert not short
    blocks._bert_attention(attention, many[:, :4], many)
    assert len(short) == 1
    adapter = make_adapter("blip", width=128)
    add_adapters(adapter.hf, [adapter.hf.text_decoder], rank=2)
    blocks._bert_attention(adapter.hf.text_decoder.bert.encoder.layer[0].crossattention, many[:, :4], many)
    assert len(short) == 1

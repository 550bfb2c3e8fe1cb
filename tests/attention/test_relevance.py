"""Relevance is what the papers' formulas give in loops, on attention and gradients of Hugging Face's own classes."""

import numpy as np
import pytest
import torch

from tests.attention.reference import attention_of_hugging_face, chefer_by_hand, rollout_by_hand, weighted_by_hand
from tests.models.families import CAPTIONERS, FAMILIES, make_categoriser, make_mean_pooled
from vlm_core.attention.recording import log_odds, record, record_text
from vlm_core.attention.relevance import (
    _cross_relevance,
    _joint_relevance,
    _self_relevance,
    gradient_relevance,
    raw_relevance,
    rollout,
)

PIXELS = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(4))
TARGETS = torch.tensor([2, 0])


def _head_scores(model, state):
    return log_odds(model.head.linear(state), TARGETS).sum()


def _weighted(attention, score, picture):
    flat = [layer for layers in attention.values() for layer in layers]
    gradients = iter(torch.autograd.grad(score, flat, retain_graph=True))
    return {
        kind: [
            weighted_by_hand(layer[picture].detach().double().numpy(), next(gradients)[picture].double().numpy())
            for layer in layers
        ]
        for kind, layers in attention.items()
    }


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_relevance_is_chefers_rule_in_loops(family: str) -> None:
    model = make_categoriser(family)
    recording = record(model, PIXELS, TARGETS)
    ours = gradient_relevance(recording, recording.score_mask)
    attention, state = attention_of_hugging_face(model, PIXELS)
    for picture in range(2):
        rows = chefer_by_hand(_weighted(attention, _head_scores(model, state), picture))
        by_hand = rows[-1, model.adapter.prefix_tokens :]
        np.testing.assert_allclose(ours[picture], by_hand, rtol=1e-3, atol=1e-4 * by_hand.max())


@pytest.mark.parametrize("last", [1, 3])
def test_the_rules_in_loops_where_attention_weighs_as_much_as_identity(last: int) -> None:
    """Of untrained models second terms are a thousandth of first ones; here they are not. `last` rows are computed."""
    generator = torch.Generator().manual_seed(last)

    def draw(*shape: int) -> list[torch.Tensor]:
        whole = torch.rand(2, 1, *shape, generator=generator, dtype=torch.float64)
        whole[1, :, :-last] = 0  # of the last layer
        return list(whole)

    def cut(layers: list[torch.Tensor]) -> list[torch.Tensor]:
        return [layers[0], layers[1][:, -last:]]

    vision = list(torch.rand(2, 1, 5, 5, generator=generator, dtype=torch.float64))
    text, cross, joint = draw(3, 3), draw(3, 5), draw(8, 8)
    images = _self_relevance(vision)
    by_hand = chefer_by_hand(_first({"vision": vision, "text": text, "cross": cross}))
    np.testing.assert_allclose(_cross_relevance(images, cut(text), cut(cross))[0], by_hand, rtol=1e-9)
    by_hand = chefer_by_hand(_first({"vision": vision, "joint": joint}))
    np.testing.assert_allclose(_joint_relevance(images, cut(joint))[0], by_hand, rtol=1e-9)


def _first(layers: dict[str, list[torch.Tensor]]) -> dict[str, list[np.ndarray]]:
    return {kind: [layer[0].numpy() for layer in found] for kind, found in layers.items()}


@pytest.mark.slow
@pytest.mark.parametrize("family", CAPTIONERS)
def test_a_words_relevance_is_chefers_rule_at_the_tokens_that_wrote_it(family: str) -> None:
    model = make_categoriser(family, "sentences", "tokens")
    written = model.adapter.sentence_ids("titan silver")  # type: ignore[union-attr]
    prompt = model.adapter.prompt_ids()  # type: ignore[union-attr]
    recording = record_text(model, PIXELS, [written] * 2)
    weights = torch.zeros_like(recording.scores)
    weights[:, 1] = 1
    ours = gradient_relevance(recording, weights)
    attention, logits = attention_of_hugging_face(model, PIXELS, [*prompt, *written[:-1]])
    place = len(prompt)  # the first written token, which the second is predicted at
    score = log_odds(logits[:, place], torch.tensor([written[1]] * 2)).sum()
    for picture in range(2):
        by_hand = chefer_by_hand(_weighted(attention, score, picture))[place, 1:]
        np.testing.assert_allclose(ours[picture], by_hand, rtol=1e-3, atol=1e-4 * by_hand.max())


def test_clips_raw_relevance_is_rollout_in_loops() -> None:
    model = make_categoriser("clip")
    recording = record(model, PIXELS, TARGETS)
    attention, _ = attention_of_hugging_face(model, PIXELS)
    ours = raw_relevance(recording, recording.score_mask)
    for picture in range(2):
        by_hand = rollout_by_hand([layer[picture].detach().double().numpy() for layer in attention["vision"]])
        np.testing.assert_allclose(ours[picture], by_hand[0, 1:], rtol=1e-4)


@pytest.mark.parametrize(("family", "kind"), [("blip", "cross"), ("git", "joint")])
def test_raw_relevance_of_text_is_its_mean_attention_to_image_tokens(family: str, kind: str) -> None:
    model = make_categoriser(family)
    recording = record(model, PIXELS, TARGETS)
    attention, _ = attention_of_hugging_face(model, PIXELS)
    by_hand = np.mean([layer.detach().numpy()[:, :, -1, 1:65] for layer in attention[kind]], axis=(0, 2))
    np.testing.assert_allclose(raw_relevance(recording, recording.score_mask), by_hand, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_vision_readout_is_explained_by_its_tower(family: str) -> None:
    recording = record(make_categoriser(family, "linear", "vision"), PIXELS, TARGETS)
    assert {layer.kind for layer in recording.layers} == {"vision"}
    raw = raw_relevance(recording, recording.score_mask)
    assert raw.shape == (2, 64)
    rolled = rollout([layer.detach().mean(dim=1) for layer in recording.of_kind("vision")])
    torch.testing.assert_close(raw, rolled.mean(dim=1) if family == "siglip" else rolled[:, 0, 1:])
    assert (gradient_relevance(recording, recording.score_mask) >= 0).all()


def test_pooled_patches_are_explained_by_the_mean_of_their_rows() -> None:
    model = make_mean_pooled()
    recording = record(model, PIXELS, TARGETS)
    hf = model.hf
    hf.set_attn_implementation("eager")
    seen = hf.vision_model(PIXELS, output_attentions=True)
    pooled = hf.vision_model.post_layernorm(seen.last_hidden_state[:, 1:].mean(dim=1))
    rolled = rollout_by_hand([layer[0].detach().double().numpy() for layer in seen.attentions])
    raw = raw_relevance(recording, recording.score_mask)
    np.testing.assert_allclose(raw[0], rolled[1:, 1:].mean(axis=0), rtol=1e-4)
    score = _head_scores(model, hf.visual_projection(pooled))
    relevance = _self_relevance(
        [torch.from_numpy(each)[None] for each in _weighted({"vision": seen.attentions}, score, 0)["vision"]]
    )
    ours = gradient_relevance(recording, recording.score_mask)[0]
    by_hand = relevance[0, 1:, 1:].mean(dim=0)
    np.testing.assert_allclose(ours, by_hand, rtol=1e-3, atol=1e-4 * float(by_hand.max()))


def test_rollout_of_identity_stays_and_of_uniform_attention_by_hand() -> None:
    identity = torch.eye(3)[None]
    assert torch.equal(rollout([identity, identity]), identity)
    uniform = torch.full((1, 2, 2), 0.5)
    # Half of the residual: [[.75, .25], [.25, .75]], squared.
    torch.testing.assert_close(rollout([uniform, uniform])[0], torch.tensor([[0.625, 0.375], [0.375, 0.625]]))

"""Pretraining losses, held against Hugging Face's own losses and heads and against hand-worked numbers."""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy, log_softmax
from transformers import BlipForImageTextRetrieval

from tests.models.families import CAPTIONERS, WITH_LANGUAGE, make_adapter
from vlm_core.models.objectives import (
    Bootstrapping,
    captioning_loss,
    contrastive_loss,
    hard_negatives,
    make_objective,
    max_text_length,
    sigmoid_loss,
)
from vlm_core.models.stages import run_stages

PIXELS = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(5))
TEXTS = ["a picture of men shirt", "silver watch", "a photo of women watch.", "turtle check"]


def _state(adapter, objective):
    return run_stages(adapter.stages(objective.readout), (PIXELS,))


def test_the_contrastive_loss_of_different_sentences_is_hugging_faces():
    adapter = make_adapter("clip")
    objective = make_objective(adapter)
    encoded = adapter.tokenizer(TEXTS, padding=True, return_tensors="pt")
    theirs = adapter.hf(pixel_values=PIXELS, return_loss=True, **encoded).loss
    torch.testing.assert_close(objective.terms(_state(adapter, objective), TEXTS)["contrastive"], theirs)


def test_what_pretraining_adds_is_on_the_models_device(monkeypatch):
    monkeypatch.setattr(Bootstrapping, "_share", lambda objective: None)  # no weights can be copied from this device
    adapter = make_adapter("blip")
    adapter.hf.to("meta")
    assert Bootstrapping(adapter).logit_scale.device.type == "meta"


def test_equal_sentences_share_the_target():
    logits = torch.tensor([[2.0, 1.0, 0.0], [1.0, 3.0, 0.5], [0.0, 0.0, 1.0]])
    rows, columns = log_softmax(logits, dim=1), log_softmax(logits.T, dim=1)

    def one_way(scores):
        first = -(scores[0, 0] + scores[0, 1]) / 2
        second = -(scores[1, 0] + scores[1, 1]) / 2
        return (first + second - scores[2, 2]) / 3

    expected = (one_way(rows) + one_way(columns)) / 2
    torch.testing.assert_close(contrastive_loss(logits, ["shirt", "shirt", "watch"]), expected)


@pytest.mark.parametrize("family", CAPTIONERS)
def test_the_captioning_loss_is_the_cross_entropy_of_hugging_faces_logits(family):
    adapter = make_adapter(family)
    tokens = run_stages(adapter.stages("tokens"), (PIXELS,))[0]
    losses, counts = [], []
    for number, text in enumerate(TEXTS):
        ids = torch.tensor([[adapter.prompt_ids()[0], *adapter.sentence_ids(text)]])
        logits = adapter.hf(pixel_values=PIXELS[number : number + 1], input_ids=ids).logits[:, -ids.shape[1] :]
        losses.append(cross_entropy(logits[0, :-1], ids[0, 1:], reduction="sum"))
        counts.append(ids.shape[1] - 1)
    theirs = torch.stack(losses).sum() / sum(counts)
    torch.testing.assert_close(captioning_loss(adapter, tokens, TEXTS), theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", WITH_LANGUAGE)
def test_sentences_longer_than_the_text_positions_are_cut(family):
    adapter = make_adapter(family)
    objective = make_objective(adapter)
    long = ["watch " * 3 * max_text_length(adapter.hf)] * 4
    assert all(torch.isfinite(term) for term in objective.terms(_state(adapter, objective), long).values())


def test_blips_similarity_and_matching_are_hugging_faces():
    adapter = make_adapter("blip")
    objective = make_objective(adapter)
    assert isinstance(objective, Bootstrapping)
    theirs = BlipForImageTextRetrieval(adapter.hf.config).eval()
    theirs.load_state_dict(objective.retrieval.state_dict())
    encoded = adapter.tokenizer(TEXTS, padding=True, return_tensors="pt")
    cosines = theirs(pixel_values=PIXELS, use_itm_head=False, **encoded).itm_score
    (tokens,) = _state(adapter, objective)
    terms = objective.eval().terms((tokens,), TEXTS)
    torch.testing.assert_close(
        terms["contrastive"], contrastive_loss(cosines * objective.logit_scale.exp(), TEXTS), atol=1e-5, rtol=1e-5
    )
    matched = theirs(pixel_values=PIXELS, **encoded).itm_score
    ours = objective.retrieval.itm_head(objective._encode(encoded["input_ids"], encoded["attention_mask"], tokens))
    torch.testing.assert_close(ours, matched, atol=1e-5, rtol=1e-5)


def test_blips_encoder_shares_all_but_its_self_attention_with_the_decoder():
    objective = make_objective(make_adapter("blip"))
    encoder, decoder = objective.retrieval.text_encoder, objective.hf.text_decoder.bert
    assert encoder.embeddings is decoder.embeddings
    for own, shared in zip(encoder.encoder.layer, decoder.encoder.layer, strict=True):
        assert own.crossattention is shared.crossattention and own.output is shared.output
        assert own.attention is not shared.attention
        torch.testing.assert_close(own.attention.state_dict(), shared.attention.state_dict())
    names = dict(objective.named_parameters())
    assert len({id(weight) for weight in names.values()}) == len(names)
    assert any("retrieval.itm_head" in name for name in names)


def test_every_weight_of_the_objective_gets_a_gradient():
    for family in WITH_LANGUAGE:
        adapter = make_adapter(family)
        objective = make_objective(adapter)
        weights = dict(objective.named_parameters())
        torch.stack(list(objective.terms(_state(adapter, objective), TEXTS).values())).sum().backward()
        assert {name for name, weight in weights.items() if weight.grad is None} == set()
        assert set(map(id, adapter.hf.parameters())) <= set(map(id, weights.values()))


def test_hard_negatives_are_wrong_and_mostly_the_likeliest():
    torch.manual_seed(0)
    texts = ["a", "a", "b", "c"]
    logits = torch.zeros(4, 4)
    logits[0, 3] = logits[2, 0] = 20
    for _ in range(20):
        wrong_text, wrong_picture = hard_negatives(logits, texts)
        assert all(texts[chosen] != texts[row] for row, chosen in enumerate(wrong_text.tolist()))
        assert all(texts[chosen] != texts[row] for row, chosen in enumerate(wrong_picture.tolist()))
        assert wrong_text[0] == 3 and wrong_text[2] == 0
        assert wrong_picture[3] == 0
    assert hard_negatives(torch.zeros(3, 3), ["a"] * 3)[0].shape == (3,)


def test_guessing_costs_the_logarithm_of_the_batch():
    assert float(contrastive_loss(torch.zeros(8, 8), list("abcdefgh"))) == pytest.approx(math.log(8))


def test_siglips_loss_is_hugging_faces_where_all_sentences_differ():
    adapter = make_adapter("siglip")
    objective = make_objective(adapter)
    texts = ["blue shirt", "silver watch", "red shoes", "black belt"][: len(PIXELS)]
    ids = adapter.tokenizer(texts, padding="max_length", max_length=40, return_tensors="pt")["input_ids"]
    theirs = adapter.hf(pixel_values=PIXELS, input_ids=ids, return_loss=True).loss
    torch.testing.assert_close(objective.terms(_state(adapter, objective), texts)["sigmoid"], theirs)


def test_equal_sentences_are_pairs_of_all_their_images():
    logits = torch.tensor([[2.0, 3.0, -1.0]] * 3)
    expected = -torch.nn.functional.logsigmoid(torch.tensor([[2.0, 3.0, 1.0], [2.0, 3.0, 1.0], [-2.0, -3.0, -1.0]]))
    torch.testing.assert_close(sigmoid_loss(logits, ["a", "a", "b"]), expected.sum(dim=1).mean())

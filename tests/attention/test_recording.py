"""What is recorded is what Hugging Face's eager attention gives, and the recorded pass answers as the everyday one."""

import threading

import numpy as np
import pytest
import torch

from tests.attention.reference import attention_of_hugging_face
from tests.models.families import CAPTIONERS, FAMILIES, make_categoriser, make_tower
from vlm_core.attention.recording import category_scores, log_odds, record, record_text
from vlm_core.attention.relevance import gradient_relevance
from vlm_core.errors import UserError
from vlm_core.models.blocks import multi_head_attention
from vlm_core.models.vision import Vision
from vlm_core.pixels.views import plain_view

PICTURES = np.random.default_rng(3).integers(0, 256, (3, 80, 60, 3), dtype=np.uint8)
PIXELS = plain_view(PICTURES, 64)
TARGETS = torch.tensor([0, 2, 1])
ANSWERS = [
    *((family, "linear", readout) for family in FAMILIES for readout in ("fused", "vision")),
    ("clip", "prompts", "fused"),
    ("siglip", "prompts", "fused"),
    *((family, "sentences", "tokens") for family in CAPTIONERS),
]


@pytest.mark.parametrize(("family", "answer", "readout"), ANSWERS)
def test_the_recorded_pass_answers_as_the_everyday_one(family: str, answer: str, readout: str) -> None:
    model = make_categoriser(family, answer, readout)
    with torch.no_grad():
        everyday = category_scores(model, PIXELS, TARGETS)
    recorded = record(model, PIXELS, TARGETS)
    torch.testing.assert_close(recorded.scores.sum(dim=1), everyday, atol=1e-5, rtol=1e-6)
    for layer in recorded.layers:
        torch.testing.assert_close(layer.probabilities.sum(dim=-1), torch.ones(layer.probabilities.shape[:-1]))


@pytest.mark.parametrize("family", FAMILIES)
def test_states_of_both_passes_agree_to_a_millionth(family: str) -> None:
    model = make_categoriser(family)
    kept = []
    model.head.log_probabilities = lambda state: kept.append(state[0].detach()) or torch.zeros(3, 3)  # type: ignore[method-assign]
    record(model, PIXELS, TARGETS)
    category_scores(model, PIXELS, TARGETS)
    torch.testing.assert_close(kept[0], kept[1], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_heads_layers_are_hugging_faces(family: str) -> None:
    model = make_categoriser(family)
    recording = record(model, PIXELS, TARGETS)
    theirs, _ = attention_of_hugging_face(model, PIXELS)
    assert {layer.kind for layer in recording.layers} == set(theirs)
    for kind, layers in theirs.items():
        for ours, whole in zip(recording.of_kind(kind), layers, strict=True):
            count = ours.shape[2]  # the class token, or the last text token, where one is read alone
            rows = slice(count) if kind == "vision" else slice(-count, None)
            torch.testing.assert_close(ours, whole[:, :, rows], atol=1e-6, rtol=1e-5)


def test_one_row_is_computed_where_one_token_is_read() -> None:
    rows = {
        family: [layer.probabilities.shape[2] for layer in record(make_categoriser(family), PIXELS, TARGETS).layers]
        for family in FAMILIES
    }
    text = len(make_categoriser("blip").adapter.prompt_ids())  # type: ignore[union-attr]
    assert rows["clip"] == [65, 65, 65, 1]
    assert rows["blip"] == [65] * 4 + [text, text, 1, 1]
    assert rows["git"] == [65] * 4 + [65 + text, 1]
    assert rows["siglip"] == [64] * 4 + [1]
    assert rows["vision"] == [65, 65, 65, 1]


def test_a_convolutional_network_has_no_attention_and_says_so() -> None:
    model = make_categoriser("vision")
    model.adapter = Vision(make_tower("convnext"))
    with pytest.raises(UserError, match="convolutional network"):
        record(model, PIXELS, TARGETS)


def test_registers_are_no_patches() -> None:
    model = make_categoriser("vision")
    model.adapter = Vision(make_tower("dinov3_vit"))
    model.stages = model.adapter.stages("fused")
    recording = record(model, PIXELS, TARGETS)
    assert (recording.image_tokens, recording.prefix_tokens) == (68, 4)
    assert gradient_relevance(recording, recording.score_mask).shape == (3, 64)


@pytest.mark.parametrize("family", CAPTIONERS)
def test_the_layers_and_scores_of_a_text_are_hugging_faces(family: str) -> None:
    model = make_categoriser(family, "sentences", "tokens")
    written = model.adapter.sentence_ids("silver watch")  # type: ignore[union-attr]
    prompt = model.adapter.prompt_ids()  # type: ignore[union-attr]
    recording = record_text(model, PIXELS, [written] * 3)
    theirs, logits = attention_of_hugging_face(model, PIXELS, [*prompt, *written[:-1]])
    for kind, layers in theirs.items():
        for ours, whole in zip(recording.of_kind(kind), layers, strict=True):
            computed = ours.shape[2]  # of GIT's last joint block the text alone
            assert computed in (whole.shape[2], len(prompt) + len(written) - 1)
            torch.testing.assert_close(ours, whole[:, :, -computed:], atol=1e-6, rtol=1e-5)
    probabilities = logits[:, len(prompt) - 1 :].double().softmax(-1)[:, range(len(written)), written]
    expected = (probabilities / (1 - probabilities)).log()
    torch.testing.assert_close(recording.scores.double(), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", CAPTIONERS)
def test_a_categorys_score_is_that_of_its_sentences_tokens(family: str) -> None:
    model = make_categoriser(family, "sentences", "tokens")
    recording = record(model, PIXELS, TARGETS)
    for row, target in enumerate(TARGETS.tolist()):
        alone = record_text(model, PIXELS[row : row + 1], [model.head.sentences[target]])  # type: ignore[union-attr]
        has_target = recording.score_mask[row] > 0
        torch.testing.assert_close(recording.scores[row][has_target], alone.scores[0], atol=1e-5, rtol=1e-5)
        assert recording.scores[row][~has_target].abs().sum() == 0


def test_log_odds_do_not_flatten_where_a_probability_is_one() -> None:
    logits = torch.tensor([[200.0, 0.0, 0.0]], requires_grad=True)
    odds = log_odds(logits.log_softmax(-1), torch.tensor([0]))
    odds.sum().backward()
    assert odds.item() == pytest.approx(200 - np.log(2))
    assert logits.grad is not None
    np.testing.assert_allclose(logits.grad[0], [1, -0.5, -0.5], atol=1e-5)


def test_a_model_with_frozen_weights_has_gradients_of_attention() -> None:
    model = make_categoriser("blip")
    model.freeze_before(len(model.stages))
    recording = record(model, PIXELS, TARGETS)
    gradients = torch.autograd.grad(recording.scores.sum(), [layer.probabilities for layer in recording.layers])
    assert all(gradient.abs().sum() > 0 for gradient in gradients)


def test_recording_neither_stays_nor_reaches_another_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_categoriser("clip")
    shown = torch.randn(1, 4, 8)
    before = multi_head_attention(shown, shown, shown, 2)
    kept_elsewhere = []

    def head(state: tuple[torch.Tensor, ...]) -> torch.Tensor:
        thread = threading.Thread(target=lambda: kept_elsewhere.append(multi_head_attention(shown, shown, shown, 2)))
        thread.start()
        thread.join()
        raise ValueError("in the middle")

    monkeypatch.setattr(model.head, "log_probabilities", head)
    with pytest.raises(ValueError, match="in the middle"):
        record(model, PIXELS, TARGETS)
    assert not kept_elsewhere[0].requires_grad
    assert not multi_head_attention(shown, shown, shown, 2).requires_grad
    assert torch.equal(before, multi_head_attention(shown, shown, shown, 2))

"""The chain of stages computes what Hugging Face's own classes compute, to 1e-5, on the same weights."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from tests.models.families import CAPTIONERS, CATEGORIES, make_adapter, make_tower
from vlm_core.models.heads import PromptHead, SentenceHead, generate_texts
from vlm_core.models.stages import run_stages
from vlm_core.models.vision import TOWERS, Vision

PIXELS = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(5))


def _end(adapter, readout):
    with torch.no_grad():
        return run_stages(adapter.stages(readout), (PIXELS,))[0]


def _close(ours, theirs):
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_clip_fused_state_is_the_projected_embedding():
    adapter = make_adapter("clip")
    _close(_end(adapter, "fused"), adapter.hf.get_image_features(PIXELS).pooler_output)


def test_clip_vision_state_is_the_pooled_output():
    adapter = make_adapter("clip")
    _close(_end(adapter, "vision"), adapter.hf.vision_model(PIXELS).pooler_output)


def test_clip_tokens_are_the_last_blocks():
    adapter = make_adapter("clip")
    _close(_end(adapter, "tokens"), adapter.hf.vision_model(PIXELS).last_hidden_state)


def test_blip_vision_state_is_the_pooled_output():
    adapter = make_adapter("blip")
    _close(_end(adapter, "vision"), adapter.hf.vision_model(PIXELS).pooler_output)


def test_blip_fused_state_is_the_decoders_after_the_prompt():
    adapter = make_adapter("blip")
    images = adapter.hf.vision_model(PIXELS).last_hidden_state
    ids = torch.tensor([adapter.prompt_ids()] * 3)
    theirs = adapter.hf.text_decoder.bert(ids, encoder_hidden_states=images, is_decoder=True).last_hidden_state[:, -1]
    _close(_end(adapter, "fused"), theirs)


def test_git_vision_state_is_the_class_token():
    adapter = make_adapter("git")
    _close(_end(adapter, "vision"), adapter.hf.git.image_encoder(PIXELS).last_hidden_state[:, 0])


def test_git_fused_state_is_the_last_text_tokens():
    adapter = make_adapter("git")
    ids = torch.tensor([adapter.prompt_ids()] * 3)
    theirs = adapter.hf.git(input_ids=ids, pixel_values=PIXELS).last_hidden_state[:, -1]
    _close(_end(adapter, "fused"), theirs)


@pytest.mark.parametrize("family", CAPTIONERS)
def test_token_logits_are_the_models(family):
    adapter = make_adapter(family)
    ids = torch.tensor([[*adapter.prompt_ids(), *adapter.sentence_ids("silver watch")[:-1]]] * 3)
    theirs = adapter.hf(pixel_values=PIXELS, input_ids=ids).logits[:, -ids.shape[1] :]
    _close(adapter.token_logits(_end(adapter, "tokens"), ids), theirs)


@pytest.mark.parametrize("family", CAPTIONERS)
def test_loss_is_the_models_with_prompt_and_padding_masked(family):
    adapter = make_adapter(family)
    sentences = SentenceHead(adapter, CATEGORIES)
    labels = torch.tensor([2, 0, 1])
    rows = [sentences.prompt + sentences.sentences[label] for label in labels]
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    asked = torch.tensor(
        [
            [-100] * len(sentences.prompt) + s + [-100] * (width - len(sentences.prompt) - len(s))
            for s in (sentences.sentences[label] for label in labels)
        ]
    )
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    theirs = adapter.hf(pixel_values=PIXELS, input_ids=ids, attention_mask=mask, labels=asked).loss
    ours, _ = sentences.loss((_end(adapter, "tokens"),), labels)
    _close(ours, theirs)


@pytest.mark.parametrize("family", CAPTIONERS)
def test_hugging_face_loss_is_a_hand_computed_cross_entropy(family):
    """Guards against the double shift that GIT had from transformers 4.49 to July 2026 (transformers#47394)."""
    adapter = make_adapter(family)
    ids = torch.tensor([[*adapter.prompt_ids(), *adapter.sentence_ids("silver watch")]] * 3)
    output = adapter.hf(pixel_values=PIXELS, input_ids=ids, labels=ids)
    logits = output.logits[:, -ids.shape[1] :]
    by_hand = cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    _close(output.loss, by_hand)


@pytest.mark.parametrize("family", CAPTIONERS)
def test_sentence_likelihood_is_the_sum_over_uncached_token_probabilities(family):
    adapter = make_adapter(family)
    sentences = SentenceHead(adapter, CATEGORIES)
    tokens = _end(adapter, "tokens")
    scores = []
    for sentence in sentences.sentences:
        ids = torch.tensor([sentences.prompt + sentence] * 3)
        steps = adapter.token_logits(tokens, ids).log_softmax(-1)[:, len(sentences.prompt) - 1 : -1]
        scores.append(steps.gather(2, torch.tensor(sentence).expand(3, -1)[..., None]).sum(dim=(1, 2)))
    _close(sentences.log_probabilities((tokens,)), torch.stack(scores, 1).log_softmax(1))


@pytest.mark.parametrize("family", CAPTIONERS)
def test_written_text_is_what_generate_writes(family):
    adapter = make_adapter(family)
    prompt = adapter.prompt_ids()
    # BLIP's generate drops the last token of its input and forces the first to be [DEC].
    ids = torch.tensor([[*prompt, 0] if family == "blip" else prompt] * 3)
    theirs = adapter.hf.generate(pixel_values=PIXELS, input_ids=ids, max_new_tokens=20, do_sample=False, num_beams=1)
    texts = [adapter.tokenizer.decode(row[len(prompt) :], skip_special_tokens=True).strip() for row in theirs]
    assert generate_texts(adapter, _end(adapter, "tokens")) == texts
    assert any(texts)


def test_siglip_fused_state_is_the_pooled_embedding():
    adapter = make_adapter("siglip")
    _close(_end(adapter, "fused"), adapter.hf.get_image_features(PIXELS).pooler_output)


def test_siglip_tokens_are_the_normalised_last_blocks_and_its_vision_state_is_their_mean():
    adapter = make_adapter("siglip")
    theirs = adapter.hf.vision_model(PIXELS).last_hidden_state
    _close(_end(adapter, "tokens"), theirs)
    _close(_end(adapter, "vision"), theirs.mean(dim=1))


@pytest.mark.parametrize("kind", TOWERS)
def test_a_vision_towers_state_is_its_pooled_output(kind):
    hf = make_tower(kind)
    output = hf(PIXELS)
    theirs = output.last_hidden_state[:, 0] if kind == "vit" else output.pooler_output.flatten(1)
    for readout in ("fused", "vision"):
        _close(_end(Vision(hf), readout), theirs)
    assert Vision(hf).width("fused") == theirs.shape[1]


@pytest.mark.parametrize(("kind", "registers"), [("vit", 0), ("dinov2", 0), ("dinov3_vit", 3)])
def test_a_vision_towers_tokens_are_its_last_ones_without_registers(kind, registers):
    hf = make_tower(kind)
    theirs = hf(PIXELS).last_hidden_state
    _close(_end(Vision(hf), "tokens"), torch.cat((theirs[:, :1], theirs[:, 1 + registers :]), dim=1))


def test_prompts_are_clips_zero_shot_probabilities_for_one_template(monkeypatch):
    monkeypatch.setattr("vlm_core.models.heads.TEMPLATES", ("a photo of {}.",))
    adapter = make_adapter("clip")
    texts = [f"a photo of {name.lower()}." for name in CATEGORIES]
    inputs = adapter.tokenizer(texts, padding=True, return_tensors="pt")
    theirs = adapter.hf(pixel_values=PIXELS, **inputs).logits_per_image.log_softmax(-1)
    _close(PromptHead(adapter, CATEGORIES).log_probabilities((_end(adapter, "fused"),)), theirs)


def test_prompts_are_siglips_odds_given_that_one_category_is_right(monkeypatch):
    monkeypatch.setattr("vlm_core.models.heads.TEMPLATES", ("A photo of {}!",))
    adapter = make_adapter("siglip")
    texts = [f"a photo of {name.lower()}" for name in CATEGORIES]
    ids = adapter.tokenizer(texts, padding="max_length", max_length=40, return_tensors="pt")["input_ids"]
    matches = adapter.hf(pixel_values=PIXELS, input_ids=ids).logits_per_image.sigmoid()
    one = torch.stack(  # the probability that this match alone holds, if matches are independent
        [matches[:, c] * (1 - matches[:, [o for o in range(3) if o != c]]).prod(dim=1) for c in range(3)], dim=1
    )
    ours = PromptHead(adapter, CATEGORIES).log_probabilities((_end(adapter, "fused"),))
    _close(ours, (one / one.sum(dim=1, keepdim=True)).log())

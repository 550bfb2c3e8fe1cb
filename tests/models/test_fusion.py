"""Models that read texts: the towers against Hugging Face's classes, every fusion's chain and head, missing inputs."""

import json

import numpy as np
import pytest
import torch
from transformers import BlipForImageTextRetrieval

from tests.models.families import CAPTIONERS, CATEGORIES, WITH_LANGUAGE, make_adapter, make_tiny, trim
from vlm_core.evaluation.product_texts import TextReading
from vlm_core.models.categoriser import Description, VisionLanguageCategoriser
from vlm_core.models.fusion import LateHead, reading_stages, tokens_needed
from vlm_core.models.saved import load_categoriser
from vlm_core.models.stages import encode_texts, run_stages

FUSIONS = ("late", "concat", "cross-attention", "own")
TEXTS = ["Turtle Check Men Navy Blue Shirt", "Titan Women Silver Watch", "Footwear"]
PIXELS = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(5))
PICTURES = np.random.default_rng(3).integers(0, 256, (3, 80, 60, 3), dtype=np.uint8)
BOTH = torch.ones(3, 2)
KINDS = [("text", "own"), *(("image+text", fusion) for fusion in FUSIONS)]


def make_reader(family, inputs="image+text", fusion="own", tokens=16, shallow=False):
    """A categoriser of three categories that reads titles; a shallow one has as few blocks as it can do with."""
    hf, tokenizer = make_tiny(family)
    if shallow:
        trim(family, hf, 0 if family in CAPTIONERS else 1, 1)
    torch.manual_seed(1)
    description = Description(
        family,
        CATEGORIES,
        (80, 60),
        "linear",
        "fused",
        {},
        reads=TextReading(inputs, ("title",), ("shirt",), tokens),
        fusion=fusion,
    )
    model = VisionLanguageCategoriser(hf, tokenizer, description)
    return model


def _close(ours, theirs):
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def _end(stages, *state):
    with torch.no_grad():
        return run_stages(stages, state)


def _tokenised(adapter, texts=TEXTS):
    return adapter.tokenizer(texts, padding=True, return_tensors="pt")


def test_clips_text_tower_is_the_pooled_output():
    adapter = make_adapter("clip")
    theirs = adapter.hf.text_model(**_tokenised(adapter)).pooler_output
    _close(_end(adapter.text_stages(True), encode_texts(adapter, TEXTS, 16))[0], theirs)


def test_clips_text_tokens_are_the_last_hidden_state():
    adapter = make_adapter("clip")
    words = _tokenised(adapter)
    tokens, mask = _end(adapter.text_stages(False), encode_texts(adapter, TEXTS, words["input_ids"].shape[1]))
    kept = words["attention_mask"].bool()
    assert torch.equal(mask.bool(), kept)
    _close(tokens[kept], adapter.hf.text_model(**words).last_hidden_state[kept])


def test_clips_own_fusion_is_the_mean_of_its_image_and_text_embeddings():
    adapter = make_adapter("clip")
    output = adapter.hf(pixel_values=PIXELS, **_tokenised(adapter))
    ours = _end(adapter.own_stages(), PIXELS, encode_texts(adapter, TEXTS, 16), BOTH)[0]
    _close(ours / adapter.width("fused") ** 0.5, (output.image_embeds + output.text_embeds) / 2)


@pytest.fixture
def siglip():
    """Its adapter, and Hugging Face's ids of TEXTS, which have neither capitals nor punctuation then."""
    adapter = make_adapter("siglip")
    texts = [text.lower() for text in TEXTS]
    return adapter, adapter.tokenizer(texts, padding="max_length", max_length=40, return_tensors="pt")["input_ids"]


def test_siglips_text_tower_reads_its_last_position_and_attends_to_padding(siglip):
    adapter, ids = siglip
    theirs = adapter.hf.text_model(ids)
    _close(_end(adapter.text_stages(True), encode_texts(adapter, TEXTS, 16))[0], theirs.pooler_output)
    tokens, mask = _end(adapter.text_stages(False), encode_texts(adapter, TEXTS, 16))
    _close(tokens, theirs.last_hidden_state)
    assert torch.equal(mask.bool(), ids != adapter.tokenizer.pad_token_id)


def test_siglips_own_fusion_is_the_mean_of_its_image_and_text_embeddings(siglip):
    adapter, ids = siglip
    output = adapter.hf(pixel_values=PIXELS, input_ids=ids)
    ours = _end(adapter.own_stages(), PIXELS, encode_texts(adapter, TEXTS, 16), BOTH)[0]
    _close(ours / adapter.width("fused") ** 0.5, (output.image_embeds + output.text_embeds) / 2)


def _retrieval(adapter):
    """Hugging Face's model of image-text matching, with the tower and the text weights of the adapter's."""
    theirs = BlipForImageTextRetrieval(adapter.hf.config).eval()
    theirs.vision_model = adapter.hf.vision_model
    theirs.text_encoder.load_state_dict(adapter.hf.text_decoder.bert.state_dict(), strict=False)
    return theirs


def test_blips_own_fusion_is_what_image_text_matching_reads():
    adapter = make_adapter("blip")
    theirs = _retrieval(adapter)(pixel_values=PIXELS, **{name: _tokenised(adapter)[name] for name in NAMES})
    ours = _end(adapter.own_stages(), PIXELS, encode_texts(adapter, TEXTS, 16), BOTH)[0]
    _close(ours, theirs.question_embeds[:, 0])


NAMES = ("input_ids", "attention_mask")


def test_blips_text_tower_is_the_unimodal_text_encoder():
    adapter = make_adapter("blip")
    words = {name: _tokenised(adapter)[name] for name in NAMES}
    theirs = _retrieval(adapter).text_encoder(**words).last_hidden_state
    _close(_end(adapter.text_stages(True), encode_texts(adapter, TEXTS, 16))[0], theirs[:, 0])
    tokens, mask = _end(adapter.text_stages(False), encode_texts(adapter, TEXTS, words["input_ids"].shape[1]))
    kept = words["attention_mask"].bool()
    assert torch.equal(mask.bool(), kept)
    _close(tokens[kept], theirs[kept])


@pytest.mark.parametrize("with_picture", [True, False])
def test_gits_sentence_begins_with_the_title(with_picture):
    adapter = make_adapter("git")
    start, *prompt = adapter.prompt_ids()
    stages = adapter.own_stages() if with_picture else adapter.text_stages(True)
    ids = encode_texts(adapter, TEXTS, 16)
    state = (PIXELS, ids, BOTH) if with_picture else (ids,)
    ours = _end(stages, *state)[0]
    for row, text in enumerate(TEXTS):
        words = adapter.tokenizer(text, add_special_tokens=False)["input_ids"]
        sentence = torch.tensor([[start, *words, *prompt]])
        pixels = PIXELS[row : row + 1] if with_picture else None
        _close(ours[row], adapter.hf.git(input_ids=sentence, pixel_values=pixels).last_hidden_state[0, -1])


@pytest.mark.parametrize("family", WITH_LANGUAGE)
@pytest.mark.parametrize(("inputs", "fusion"), KINDS)
def test_a_chain_cut_anywhere_gives_the_same_end(family, inputs, fusion):
    adapter = make_adapter(family)
    stages = reading_stages(adapter, inputs, fusion)
    ids = encode_texts(adapter, TEXTS, 16)
    state = (ids,) if inputs == "text" else (PIXELS, ids, torch.tensor([[1.0, 1], [0, 1], [1, 0]]))
    with torch.inference_mode():
        whole = run_stages(stages, state)
        for cut in range(1, len(stages) + 1):
            before = run_stages(stages[:cut], state)
            assert all(part.is_floating_point() for part in before)  # as the feature cache keeps them
            for ours, theirs in zip(run_stages(stages[cut:], before), whole, strict=True):
                torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("family", WITH_LANGUAGE)
@pytest.mark.parametrize("fusion", FUSIONS)
def test_each_input_is_read_where_it_is_given_and_only_there(family, fusion):
    model = make_reader(family, fusion=fusion)
    has_picture = np.array([True, False, True])
    texts = [TEXTS[0], TEXTS[1], ""]
    rows = model.log_probabilities(PICTURES, texts, has_picture)
    np.testing.assert_allclose(np.exp(rows).sum(axis=1), 1, atol=1e-5)
    other = model.log_probabilities(PICTURES[::-1].copy(), texts, has_picture)
    assert not np.allclose(rows[[0, 2]], other[[0, 2]], atol=1e-6)
    np.testing.assert_allclose(rows[1], other[1], atol=1e-6)  # its picture is missing, whatever stands in its place
    changed = model.log_probabilities(PICTURES, ["Titan Watch", "Silver", ""], has_picture)
    assert not np.allclose(rows[:2], changed[:2], atol=1e-6)
    np.testing.assert_allclose(rows[2], changed[2], atol=1e-6)
    np.testing.assert_allclose(model.log_probabilities(PICTURES)[2], rows[2], atol=1e-6)  # no texts at all


@pytest.mark.parametrize("family", WITH_LANGUAGE)
def test_text_alone_reads_no_picture(family):
    model = make_reader(family, "text")
    rows = model.log_probabilities(PICTURES, TEXTS)
    np.testing.assert_array_equal(rows, model.log_probabilities(255 - PICTURES, TEXTS))
    assert not np.allclose(rows, model.log_probabilities(PICTURES, TEXTS[::-1]))


def test_gits_picture_without_a_title_is_read_as_by_a_model_of_pictures():
    from tests.models.families import make_categoriser

    model, plain = make_reader("git"), make_categoriser("git")
    plain.head.load_state_dict(model.head.state_dict())
    np.testing.assert_allclose(model.log_probabilities(PICTURES), plain.log_probabilities(PICTURES), atol=1e-5)


@pytest.mark.parametrize(
    ("family", "inputs", "fusion"), [(WITH_LANGUAGE[n % 3], *kind) for n, kind in enumerate(KINDS)]
)
def test_saved_and_loaded_is_identical(family, inputs, fusion, tmp_path):
    model = make_reader(family, inputs, fusion)
    model.save(tmp_path)
    loaded = load_categoriser(tmp_path)
    assert loaded.description == model.description
    np.testing.assert_array_equal(loaded.log_probabilities(PICTURES, TEXTS), model.log_probabilities(PICTURES, TEXTS))
    content = json.loads((tmp_path / "categoriser.json").read_text())
    assert content["reads"] == {"inputs": inputs, "columns": ["title"], "masked": ["shirt"], "tokens": 16}


def test_the_last_blocks_of_both_towers_are_trained_and_ids_never_reach_a_cut():
    model = make_reader("clip", fusion="late")
    names = [stage.name for stage in model.stages]
    assert names == [
        *("text.embed", "vision.embed", "vision.block.1", "vision.block.2"),
        *("vision.block.3", "text.block.1", "vision.block.4", "text.block.2", "vision.pool", "text.pool"),
    ]
    assert names[model.cut("last-blocks", 1)] == "vision.block.4"
    assert names[model.cut("last-blocks", 2)] == "vision.block.3"
    assert model.cut("probe", 2) == model.cut("fusion", 2) == len(names)
    assert make_reader("clip", "text").cut("last-blocks", 1) == 2


def test_late_fusion_weighs_log_probabilities_and_fits_the_weight():
    torch.manual_seed(0)
    head = LateHead(4, 6, 3)
    labels = torch.arange(60) % 3
    picture, text = torch.randn(60, 4), torch.randn(60, 6)
    state = (picture, text, torch.ones(60, 2))
    with torch.no_grad():
        head.text.weight[:, :3], head.text.bias[:] = 3 * torch.eye(3), 0
        text[:, :3] = torch.eye(3)[labels] + 0.1 * torch.randn(60, 3)
        each = head.each(state)
        _close(head.log_probabilities(state), each.mean(dim=1).log_softmax(-1))
        assert head.fit_weight(state, labels) < 0.2  # the text tells, the picture is noise
        alone = head.log_probabilities((picture, text, torch.tensor([[1.0, 0]]).expand(60, 2)))
        _close(alone, each[:, 0])


def test_texts_are_cut_to_what_the_model_can_read():
    adapter = make_adapter("blip")
    assert tokens_needed(adapter, ["blue shirt"]) == (8, 0)
    tokens, cut = tokens_needed(adapter, ["blue " * 60, "blue"])
    assert (tokens, cut) == (40, 1)
    for family in WITH_LANGUAGE:
        ids = encode_texts(make_adapter(family), ["blue shirt " * 60, ""], 16)
        assert ids.shape == (2, 16) and (ids[0] >= 0).all() and (ids[1] >= 0).sum() >= 2

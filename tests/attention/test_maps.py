"""Maps lie over the picture they were made from, and find a planted cue."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import wilcoxon

from tests.attention.planted import CATEGORIES, SIDE, draw_cues, draw_pictures, learnt, mass_on_cue
from tests.models.families import (
    CAPTIONERS,
    FAMILIES,
    SHIPPED,
    WITH_LANGUAGE,
    make_categoriser,
    make_mean_pooled,
)
from vlm_core.attention.maps import _resize, _words, explain, explain_words, layer_maps
from vlm_core.attention.recording import record
from vlm_core.errors import UserError
from vlm_core.models.heads import generate_ids
from vlm_core.pixels.views import Preprocessing, plain_view

PICTURES = np.random.default_rng(3).integers(0, 256, (9, 80, 60, 3), dtype=np.uint8)
CHANCE = 1 / SIDE**2


def _cued(count: int) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]:
    pictures, labels, places = draw_pictures(2 * count, seed=9)
    cued = np.flatnonzero(labels < len(CATEGORIES) - 1)[:count]
    return pictures[cued], labels[cued], places[cued]


def _centre_mass(places: NDArray[np.int64]) -> NDArray[np.float64]:
    from_centre = (np.arange(32) - 15.5) ** 2
    prior = np.exp(-(from_centre[:, None] + from_centre) / (2 * 8**2))
    return mass_on_cue(np.repeat((prior / prior.sum())[None], len(places), axis=0).astype(np.float32), places)


@pytest.mark.slow
@pytest.mark.parametrize("family", WITH_LANGUAGE)
def test_gradient_maps_find_the_planted_cue(family: str) -> None:
    pictures, labels, places = _cued(60)
    model = learnt(family)
    assert (model.log_probabilities(pictures).argmax(axis=1) == labels).mean() > 0.95
    mass = mass_on_cue(explain(model, pictures, method="gradient"), places)
    assert mass.mean() > 2.5 * CHANCE
    assert wilcoxon(mass, np.maximum(CHANCE, _centre_mass(places)), alternative="greater").pvalue < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("family", SHIPPED)
def test_hiding_the_cue_is_what_moves_the_answer(family: str) -> None:
    pictures, _, places = _cued(12)
    assert mass_on_cue(explain(learnt(family), pictures, method="occlusion"), places).mean() > 0.6


@pytest.mark.slow
@pytest.mark.parametrize("family", SHIPPED)
def test_of_two_cues_the_map_of_a_category_is_on_its_own(family: str) -> None:
    pictures, labels, places = _cued(30)
    others, second = (labels + 1) % 3, (places + 5) % SIDE**2
    pictures = draw_cues(pictures, others, second)
    first_map = explain(learnt(family), pictures, method="gradient", target=labels)
    second_map = explain(learnt(family), pictures, method="gradient", target=others)
    for own, others_place, maps in ((places, second, first_map), (second, places, second_map)):
        assert mass_on_cue(maps, own).mean() > 4 * mass_on_cue(maps, others_place).mean()


@pytest.mark.slow
def test_one_target_is_that_of_all_pictures() -> None:
    one = explain(learnt("clip"), PICTURES[:3, :32, :32], method="gradient", target=2)
    each = explain(learnt("clip"), PICTURES[:3, :32, :32], method="gradient", target=np.array([2, 2, 2]))
    np.testing.assert_array_equal(one, each)


@pytest.mark.slow
def test_the_word_for_the_cue_is_written_from_the_cue() -> None:
    pictures, labels, places = _cued(40)
    words = explain_words(learnt("git", "sentences"), pictures, method="gradient")
    assert np.mean([found[0].word == CATEGORIES[label] for found, label in zip(words, labels, strict=True)]) > 0.9
    assert mass_on_cue(np.stack([found[0].map for found in words]), places).mean() > 2 * CHANCE


@pytest.mark.parametrize("method", ["raw", "gradient", "saliency"])
@pytest.mark.parametrize("family", FAMILIES)
def test_maps_are_shares_of_the_picture_and_no_picture_moves_anothers(family: str, method: str) -> None:
    model = make_categoriser(family)
    maps = explain(model, PICTURES, method=method)  # type: ignore[arg-type]
    assert maps.shape == PICTURES.shape[:3] and maps.dtype == np.float32
    np.testing.assert_allclose(maps.sum(axis=(1, 2)), 1, rtol=1e-5)
    assert maps.min() >= 0
    alone = explain(model, PICTURES[-1:], method=method)  # type: ignore[arg-type]
    np.testing.assert_allclose(maps[-1:], alone, rtol=1e-2, atol=1e-6)


def test_no_picture_has_no_map() -> None:
    assert explain(make_categoriser("clip"), PICTURES[:0], method="raw").shape == (0, 80, 60)


def test_prompts_are_explained_after_they_have_answered() -> None:
    """What the answer keeps of its prompts in a pass without gradients must serve one with them."""
    model = make_categoriser("clip", "prompts")
    model.log_probabilities(PICTURES)
    assert explain(model, PICTURES[:1], method="gradient").max() > 1.2 / (80 * 60)


def test_a_grid_lies_over_the_picture_as_over_the_square() -> None:
    grid = torch.zeros(1, 16)
    grid[0, 4 * 1 + 3] = 1  # second row of patches, last column
    (resized,) = _resize(grid, (80, 60))
    rows, columns = np.indices((80, 60)) + 0.5
    assert (resized * rows).sum() == pytest.approx(30, abs=0.5)  # the middle of rows 20 to 40
    assert resized[:, 45:].sum() > 0.85 and (resized * columns).sum() > 50


def test_a_map_lies_where_the_model_looked() -> None:
    even = torch.ones(1, 16)
    (cropped,) = _resize(even, (80, 60), Preprocessing(resize="crop"))
    assert cropped[:10].max() == cropped[70:].max() == 0 and cropped[10:70].min() > 0
    (padded,) = _resize(even, (80, 60), Preprocessing(resize="pad"))
    np.testing.assert_allclose(padded, 1 / (80 * 60), rtol=1e-5)
    left = torch.zeros(1, 4, 4)
    left[:, :, 0] = 1  # the column of patches that is half padding
    assert _resize(left.flatten(1), (80, 60), Preprocessing(resize="pad"))[0, :, 20:].max() == 0


def test_a_picture_that_nothing_speaks_for_has_an_even_map() -> None:
    np.testing.assert_allclose(_resize(torch.zeros(1, 16), (8, 6)), 1 / 48)


@pytest.mark.parametrize("family", FAMILIES)
def test_layer_maps_are_each_heads_row(family: str) -> None:
    model = make_categoriser(family)
    layers = layer_maps(model, PICTURES)
    recording = record(model, plain_view(PICTURES[8:], 64), torch.tensor([0]))
    reading = [layer for layer in recording.layers if layer.kind != "text"]
    assert [(layer.name, layer.kind) for layer in layers] == [(layer.name, layer.kind) for layer in reading]
    for ours, layer in zip(layers, reading, strict=True):
        heads = layer.probabilities[0, 1].detach()
        of_one = heads[0 if layer.kind == "vision" else -1, 1:65]
        row = heads.mean(dim=0) if family == "siglip" else of_one  # it has no class token
        assert ours.maps.shape == (9, 4, 80, 60)
        np.testing.assert_allclose(ours.maps[8, 1], _resize(row[None], (80, 60))[0], rtol=1e-3)


def test_layer_maps_of_pooled_patches_are_the_mean_of_their_rows() -> None:
    model = make_mean_pooled()
    layers = layer_maps(model, PICTURES[:1])
    recording = record(model, plain_view(PICTURES[:1], 64), torch.tensor([0]))
    for ours, layer in zip(layers, recording.layers, strict=True):
        mean = layer.probabilities[0, 1, 1:, 1:].detach().mean(dim=0)
        np.testing.assert_allclose(ours.maps[0, 1], _resize(mean[None], (80, 60))[0], rtol=1e-3)
    assert all(layer.of_patches for layer in layers)
    assert not any(layer.of_patches for layer in layer_maps(make_categoriser("clip"), PICTURES[:1]))


@pytest.mark.slow
@pytest.mark.parametrize("family", CAPTIONERS)
def test_words_are_those_that_are_written(family: str) -> None:
    model = make_categoriser(family, "sentences", "tokens")
    described = model.describe(PICTURES)
    assert described is not None
    for text, words in zip(described[0], explain_words(model, PICTURES, method="raw"), strict=True):
        assert "".join(word.word for word in words) == text.replace(" ", "")
        assert all(word.map.shape == (80, 60) for word in words)


def test_a_words_tokens_are_its_pieces_and_special_ones_are_no_word() -> None:
    adapter = make_categoriser("git", "sentences", "tokens").adapter
    tokenizer = adapter.tokenizer
    pieces = ["[PAD]", "shirt", "s", "##y", "##e", "[SEP]", "silver"]
    found = _words(adapter, tokenizer.convert_tokens_to_ids(pieces))  # type: ignore[arg-type]
    assert [(word.text, word.tokens) for word in found] == [("shirt", [1]), ("sye", [2, 3, 4]), ("silver", [6])]


def test_a_model_that_writes_nothing_at_all_has_no_words(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_categoriser("git", "sentences", "tokens")
    end = model.adapter.sentence_ids("")[-1]  # type: ignore[union-attr]
    with torch.no_grad():
        model.hf.output.bias[end] = 1e4
    assert generate_ids(model.adapter, *model.run((plain_view(PICTURES[:2], 64),))) == [[], []]  # type: ignore[arg-type]
    assert explain_words(model, PICTURES[:2], method="gradient") == [(), ()]


def test_a_head_writes_no_words() -> None:
    with pytest.raises(UserError, match="generates no text"):
        explain_words(make_categoriser("blip"), PICTURES, method="raw")

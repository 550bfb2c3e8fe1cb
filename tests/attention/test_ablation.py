"""The ablation on real towers: what learns, what is shared, what is chosen and by which rows."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from tests.models.families import SHIPPED, make_adapter, make_tiny
from vlm_core.attention.ablation import Ablation, MechanismCategoriser, name_vectors
from vlm_core.attention.mechanisms import MECHANISMS
from vlm_core.config import Config
from vlm_core.models.loading import LoadedWeights
from vlm_core.pixels.picture_store import PictureStore
from vlm_core.training.feature_cache import FeatureCache

CATEGORIES = ("Apparel", "Footwear", "Free Items")
CANVAS = (20, 15)
LABELS = np.arange(36) % 3
TEST = np.arange(24, 36)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """36 pictures whose colour tells the category."""
    path = tmp_path_factory.mktemp("store") / "pictures.npy"
    pixels = np.random.default_rng(0).integers(0, 60, (36, *CANVAS, 3), dtype=np.uint8)
    pixels[np.arange(36), :, :, LABELS] += 150
    np.save(path, pixels)
    products = pd.DataFrame({"product_id": [str(number) for number in range(36)]})
    catalogue = SimpleNamespace(pictures=PictureStore(path), products=products, pictures_fingerprint="these")
    split = SimpleNamespace(
        labels=LABELS, train=np.arange(16), validation=np.arange(16, 24), test=TEST, categories=CATEGORIES
    )
    return SimpleNamespace(catalogue=catalogue, split=split)


def _tower(family="clip"):
    return LoadedWeights(*make_tiny(family), source="tiny-random", pretrained=False, exposure=None)


def _run(data, folder, mechanism="attention-pool-all", tower=None, rates=(1e-3,), **settings):
    given = {"model": "clip", "batch_size": 4, "cache_precision": "fp32", "epochs": 3, "patience": 3, "views": 2}
    config = Config.build({**given, **settings})
    cache = FeatureCache(folder, int(config.cache_gib * 2**30), config.cache_precision)
    return Ablation(config, data, tower or _tower(), cache).run(mechanism, rates)


def test_a_mechanism_is_trained_where_the_settings_say(data, tmp_path, monkeypatch):
    devices = []
    monkeypatch.setattr("vlm_core.attention.ablation.choose_device", lambda device: f"chosen for {device}")
    monkeypatch.setattr(MechanismCategoriser, "to", lambda model, device: devices.append(device) or model)
    config = Config.build({"model": "clip", "device": "cuda"})
    Ablation(config, data, _tower(), FeatureCache(tmp_path, 0))._trainer("class-token", 1e-3, tmp_path)
    assert devices == ["chosen for cuda"]


@pytest.mark.parametrize("family", SHIPPED)
@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_nothing_but_the_mechanism_learns(family, mechanism):
    model = MechanismCategoriser(mechanism, *make_tiny(family), family, CATEGORIES, CANVAS)
    weights = model.freeze_before(len(model.stages))
    assert {id(weight) for weight in weights.values()} == {id(weight) for weight in model.head.parameters()}
    loss, _ = model.head.loss(model.run((torch.randn(2, 3, 64, 64),)), torch.tensor([0, 2]))
    loss.backward()
    assert all(weight.grad is not None for weight in weights.values())
    assert all(weight.grad is None for weight in model.hf.parameters())


@pytest.mark.slow
@pytest.mark.parametrize(
    "mechanism",
    ["mean-pool-penultimate", "attention-pool-all-shuffled", "cross-attention", "joint-self-attention-all-own-names"],
)
def test_a_mechanism_is_trained_chosen_and_asked(data, tmp_path, mechanism):
    tower = _tower()
    before = {name: weight.clone() for name, weight in tower.hf.state_dict().items()}
    result = _run(data, tmp_path, mechanism, tower, rates=(1e-9, 3e-3))
    assert (result.mechanism, result.seed, result.learning_rate) == (mechanism, 0, 3e-3)
    assert result.validation_macro_f1[1e-9] < result.validation_macro_f1[3e-3]
    assert 1 <= result.best_epoch <= 3 and result.seconds > 0
    assert result.test.product_ids.tolist() == [str(row) for row in TEST]
    assert result.test.labels.tolist() == LABELS[TEST].tolist()
    assert (result.test.predicted == result.test.labels).mean() > 0.9
    assert len(result.validation) == 8
    assert all(torch.equal(weight, before[name]) for name, weight in tower.hf.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize("mechanism", ["attention-pool-all", "attention-pool-all-shuffled"])
def test_the_same_call_gives_the_same_result(data, tmp_path, mechanism):
    one, other = _run(data, tmp_path / "one", mechanism), _run(data, tmp_path / "other", mechanism)
    torch.manual_seed(99)
    third = _run(data, tmp_path / "one", mechanism)  # tokens found, not computed
    for again in (other, third):
        np.testing.assert_array_equal(again.test.log_probabilities, one.test.log_probabilities)
        assert replace(again, seconds=0, test=None, validation=None) == replace(
            one, seconds=0, test=None, validation=None
        )
    assert not np.array_equal(
        _run(data, tmp_path / "one", mechanism, seed=1).test.log_probabilities, one.test.log_probabilities
    )


@pytest.mark.slow
def test_kept_tokens_are_what_the_tower_gives(data, tmp_path):
    kept, anew = _run(data, tmp_path / "kept"), _run(data, tmp_path / "anew", cache_gib=0)
    np.testing.assert_allclose(kept.test.log_probabilities, anew.test.log_probabilities, atol=1e-4)


@pytest.mark.slow
def test_the_test_rows_decide_nothing(data, tmp_path):
    wrong = SimpleNamespace(**{**vars(data.split), "test": TEST[:3]})
    short = _run(SimpleNamespace(catalogue=data.catalogue, split=wrong), tmp_path, rates=(1e-4, 3e-3))
    whole = _run(data, tmp_path, rates=(1e-4, 3e-3))
    assert short.validation_macro_f1 == whole.validation_macro_f1
    np.testing.assert_array_equal(short.validation.log_probabilities, whole.validation.log_probabilities)
    np.testing.assert_allclose(short.test.log_probabilities, whole.test.log_probabilities[:3], atol=1e-6)


def test_a_picture_is_answered_alike_in_any_company():
    model = MechanismCategoriser("attention-pool-all-shuffled", *make_tiny("clip"), "clip", CATEGORIES, CANVAS)
    pictures = np.random.default_rng(3).integers(0, 256, (5, *CANVAS, 3), dtype=np.uint8)
    order = [4, 2, 0, 1, 3]
    np.testing.assert_allclose(
        model.log_probabilities(pictures[order]), model.log_probabilities(pictures)[order], atol=1e-5
    )


@pytest.mark.parametrize("family", SHIPPED)
def test_a_penultimate_control_reads_the_tokens_before_the_last_block(family):
    whole, control = (
        MechanismCategoriser(name, *make_tiny(family), family, CATEGORIES, CANVAS)
        for name in ("attention-pool-all", "attention-pool-penultimate")
    )
    blocks = [stage.name for stage in whole.stages if stage.name.startswith("vision.block")]
    left = [stage.name for stage in whole.stages if stage.name != blocks[-1]]
    assert [stage.name for stage in control.stages] == left and len(left) == len(whole.stages) - 1
    state = whole.run((torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)),), 0, 1)
    assert control.run(state, 1)[0].shape == whole.run(state, 1)[0].shape


def test_a_mechanism_is_not_saved(tmp_path):
    model = MechanismCategoriser("mean-pool", *make_tiny("clip"), "clip", CATEGORIES, CANVAS)
    with pytest.raises(TypeError, match="cannot be saved"):
        model.save(tmp_path)


def test_clips_names_are_its_text_towers_unit_vectors():
    hf, tokenizer = make_tiny("clip")
    ids = tokenizer(["free items"], return_tensors="pt")
    theirs = hf.get_text_features(**ids).pooler_output
    ours = name_vectors(make_adapter("clip"), ("Free Items", "Apparel"))
    torch.testing.assert_close(ours[:1], theirs / theirs.norm(), atol=1e-5, rtol=0)
    assert not ours.requires_grad


@pytest.mark.parametrize(("family", "table"), [("blip", "text_decoder.bert.embeddings"), ("git", "git.embeddings")])
def test_captioners_names_are_the_means_of_their_word_embeddings(family, table):
    hf, tokenizer = make_tiny(family)
    embeddings = hf.get_submodule(table).word_embeddings.weight
    ids = tokenizer("free items", add_special_tokens=False)["input_ids"]
    assert len(ids) > 1
    torch.testing.assert_close(name_vectors(make_adapter(family), ("Free Items",))[0], embeddings[ids].mean(dim=0))

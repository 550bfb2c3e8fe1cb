"""Training of models that read texts: what is left out, what is cached, and that it learns from either input."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from tests.models.test_fusion import make_reader
from vlm_core.config import Config
from vlm_core.models.fusion import LateHead
from vlm_core.pixels.picture_store import PictureStore
from vlm_core.training.batches import WITHOUT_PICTURE, WITHOUT_TEXT, FeatureBatches, sample_modality_mask
from vlm_core.training.feature_cache import FeatureCache
from vlm_core.training.finetuning_task import FineTuning
from vlm_core.training.fit import Trainer

LABELS = np.arange(24) % 3
WORDS = ("turtle blue", "silver watch", "free gift")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """24 products whose title tells the category; two have none."""
    path = tmp_path_factory.mktemp("store") / "pictures.npy"
    np.save(path, np.random.default_rng(0).integers(0, 255, (24, 20, 15, 3), dtype=np.uint8))
    titles = [WORDS[label] for label in LABELS]
    titles[3] = titles[20] = ""
    catalogue = SimpleNamespace(
        pictures=PictureStore(path),
        products=pd.DataFrame({"title": titles}),
        pictures_fingerprint="these",
        fingerprint="all",
    )
    split = SimpleNamespace(labels=LABELS, train=np.arange(16), validation=np.arange(16, 24), categories="abc")
    return SimpleNamespace(catalogue=catalogue, split=split)


def _trainer(data, model, folder, **settings):
    given = {"model": model.description.family, "inputs": "image+text", "fusion": model.description.fusion}
    given |= {"batch_size": 4, "cache_precision": "fp32", "learning_rate": 1e-2, "epochs": 8, "patience": 8, "views": 0}
    config = Config.build({**given, **settings})
    return Trainer(config, data, model, folder / "checkpoints", FeatureCache(folder / "cache", 2**30, "fp32"))


def test_each_input_is_left_out_for_its_share_and_never_both():
    rows = np.arange(4000)
    kept = sample_modality_mask(0, 1, rows, np.zeros_like(rows), 0.2)
    assert kept.any(axis=1).all()
    np.testing.assert_allclose(kept.mean(axis=0), [0.8, 0.8], atol=0.02)
    assert (kept != sample_modality_mask(0, 2, rows, np.zeros_like(rows), 0.2)).any()
    assert sample_modality_mask(0, 1, rows, np.zeros_like(rows), 0).all()


@pytest.mark.parametrize(("family", "fusion"), [("clip", "late"), ("git", "own")])
def test_the_cached_features_of_a_probe_are_those_of_the_inputs_it_is_shown(data, tmp_path, family, fusion):
    model = make_reader(family, fusion=fusion, tokens=8)
    trainer = _trainer(data, model, tmp_path, mode="probe", modality_dropout=0.3)
    pixels, cut = trainer.pixel_batches(), len(model.stages)
    batches = trainer.feature_batches(pixels, cut, 0)
    assert isinstance(batches, FeatureBatches) and batches.dropped
    seen = set()
    for batch in batches.training(1):
        kept = pixels.modality_mask(1, batch.rows, np.zeros(len(batch.rows), np.int64))
        for place, row in enumerate(batch.rows):
            view = 0 if kept[place].all() else WITHOUT_TEXT if kept[place, 0] else WITHOUT_PICTURE
            seen.add(view)
            (plain,) = pixels.view(view, np.array([row]))
            with torch.inference_mode():
                wanted = model.run(plain.state)
            for part, other in zip(batch.state, wanted, strict=True):
                torch.testing.assert_close(part[place], other[0], atol=1e-5, rtol=1e-5)
    assert seen == {0, WITHOUT_TEXT, WITHOUT_PICTURE}


def test_a_product_without_a_title_keeps_its_picture(data, tmp_path):
    pixels = _trainer(data, make_reader("clip", tokens=8), tmp_path, mode="full").pixel_batches()
    (batch,) = pixels.view(WITHOUT_PICTURE, np.array([2, 3]))
    assert batch.state[2].tolist() == [[0, 1], [1, 0]]
    (batch,) = pixels.view(WITHOUT_TEXT, np.array([2, 3]))
    assert batch.state[2].tolist() == [[1, 0], [1, 0]]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("clip", {"mode": "probe", "fusion": "late"}),
        ("blip", {"mode": "probe", "fusion": "concat"}),
        ("git", {"mode": "probe", "fusion": "cross-attention"}),
        ("clip", {"mode": "full", "learning_rate": 1e-3}),
        ("blip", {"mode": "lp-ft", "blocks": 1, "learning_rate": 1e-3}),
        ("git", {"mode": "last-blocks", "blocks": 1, "views": 1, "learning_rate": 1e-3}),
        ("clip", {"mode": "lora", "fusion": "concat", "learning_rate": 1e-3}),
        ("blip", {"mode": "fusion", "learning_rate": 1e-3}),
        ("git", {"mode": "probe", "inputs": "text"}),
    ],
    ids=lambda part: "-".join(map(str, part.values())) if isinstance(part, dict) else part,
)
def test_every_mode_trains_and_learns_from_titles(data, tmp_path, family, settings):
    model = make_reader(family, settings.get("inputs", "image+text"), settings.get("fusion", "own"), tokens=8)
    trainer = _trainer(data, model, tmp_path, **settings)
    before = {name: weight.clone() for name, weight in model.hf.state_dict().items()}
    losses = []
    state = trainer.fit(on_epoch=lambda report: losses.append(report.training.loss))
    assert state.best_epoch >= 1 and losses[-1] < losses[0]
    if settings["mode"] == "probe":
        assert all(torch.equal(weight, before[name]) for name, weight in model.hf.state_dict().items())
    if isinstance(model.head, LateHead):
        assert float(model.head.picture_weight) < 0.5  # the pictures are noise
    rows = model.log_probabilities(data.catalogue.pictures.take(np.arange(2)), ["turtle blue", "silver watch"])
    assert rows.shape == (2, 3) and np.isfinite(rows).all()


def test_validation_reads_the_titles(data, tmp_path):
    model = make_reader("clip", fusion="late", tokens=8)
    pixels = _trainer(data, model, tmp_path, mode="full").pixel_batches()
    summary = FineTuning(model, 0, pixels, data.split.validation).validation_metrics()
    texts = model.reads.texts(data.catalogue.products.iloc[data.split.validation])
    rows = model.log_probabilities(data.catalogue.pictures.take(data.split.validation), texts)
    assert summary.accuracy == pytest.approx((rows.argmax(axis=1) == LABELS[16:]).mean())

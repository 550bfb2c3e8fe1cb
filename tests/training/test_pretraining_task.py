"""Pretraining as a task: sampled patches, falling losses, and a resumed run that equals an uninterrupted one."""

import numpy as np
import pandas as pd
import pytest
import torch

from tests.models.families import WITH_LANGUAGE, make_adapter
from vlm_core.catalogue.captions import describe_products
from vlm_core.models.blip import PROMPT
from vlm_core.models.heads import TEMPLATES
from vlm_core.models.objectives import make_objective
from vlm_core.pixels.picture_store import PictureStore
from vlm_core.training.batches import PixelBatches
from vlm_core.training.checkpoint import Checkpoint
from vlm_core.training.loop import EpochReport, StepReport, TrainingArguments, train
from vlm_core.training.pretraining_metrics import evaluate_adapter
from vlm_core.training.pretraining_task import Pretraining, sample_patches

COLOURS, KINDS = ("red", "green", "blue"), ("shirt", "watch")
PLAN = TrainingArguments(epochs=3, learning_rate=1e-3, weight_decay=0.01, warmup=0.1, clip_norm=1.0, patience=3, seed=3)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """24 pictures whose colour stands in their titles."""
    path = tmp_path_factory.mktemp("store") / "pictures.npy"
    pixels = np.random.default_rng(0).integers(0, 60, (24, 20, 15, 3), dtype=np.uint8)
    pixels[np.arange(24), :, :, np.arange(24) % 3] += 150
    np.save(path, pixels)
    return PictureStore(path)


def _captions():
    products = pd.DataFrame(
        {
            "title": [f"turtle men {COLOURS[row % 3]} {KINDS[row % 2]}" for row in range(24)],
            "colour": [COLOURS[row % 3] for row in range(24)],
            "kind": [KINDS[row % 2] for row in range(24)],
        }
    )
    return describe_products(products, ("colour", "kind"), (), PROMPT, TEMPLATES)


def _task(pictures, family, patches_kept=0.5, products=16, seed=7):
    adapter = make_adapter(family)
    torch.manual_seed(seed)  # BLIP's own parts of pretraining are initialised when the task is made
    rows = np.arange(products)
    batches = PixelBatches(pictures, np.zeros(24, dtype=np.int64), rows, 64, batch_size=8, seed=3)
    return Pretraining(
        adapter, make_objective(adapter), batches, _captions(), patches_kept, lambda: {"probe_macro_f1": 0.5}
    )


def _epochs(reports):
    return [report for report in reports if isinstance(report, EpochReport)]


@pytest.mark.slow
@pytest.mark.parametrize("family", WITH_LANGUAGE)
def test_terms_in_bf16_are_near_those_in_fp32(pictures, family):
    losses = []
    for precision in ("fp32", "bf16"):
        task = _task(pictures, family)
        task.precision = precision
        torch.manual_seed(0)  # of the sampled patches
        (loss, _), *_ = task.batch_losses(1)
        loss.backward()
        losses.append(float(loss))
        assert {weight.dtype for weight in task.trainable_parameters().values()} == {torch.float32}
    assert 0 < abs(losses[1] - losses[0]) < 0.02 * losses[0]


@pytest.mark.slow
@pytest.mark.parametrize("family", WITH_LANGUAGE)
def test_a_stopped_pretraining_ends_with_the_same_weights(pictures, tmp_path, family):
    whole = _task(pictures, family)
    losses = [report.training.metrics for report in _epochs(train(whole, PLAN, Checkpoint(tmp_path / "whole")))]
    stopped = _task(pictures, family)
    halfway = Checkpoint(tmp_path / "halfway")
    for report in train(stopped, PLAN, halfway):
        if isinstance(report, StepReport) and (report.epoch, report.step) == (3, 1):
            break
    resumed = _task(pictures, family, seed=11)  # another start: the checkpoint holds everything that learns
    rest = _epochs(train(resumed, PLAN, halfway))
    assert [report.epoch for report in rest] == [3] and rest[0].training.metrics == losses[2]
    for name, weight in whole.trainable_parameters().items():
        torch.testing.assert_close(resumed.trainable_parameters()[name], weight, rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("family", WITH_LANGUAGE)
def test_every_term_falls(pictures, tmp_path, family):
    task = _task(pictures, family, patches_kept=1.0)
    plan = TrainingArguments(**{**PLAN.__dict__, "epochs": 12, "patience": 12})
    epochs = _epochs(train(task, plan, Checkpoint(tmp_path)))
    first, last = epochs[0].training.metrics, epochs[-1].training.metrics
    assert sum(last.values()) < 0.9 * sum(first.values())
    assert first.keys() == {"clip": {"contrastive"}, "git": {"captioning"}, "siglip": {"sigmoid"}}.get(
        family, {"contrastive", "matching", "captioning"}
    )


def test_kept_patches_are_the_pictures_own_in_their_order_behind_the_class_token():
    tokens = torch.arange(2 * 9, dtype=torch.float32).view(2, 9, 1).repeat(1, 1, 4)
    torch.manual_seed(0)
    (sampled,) = sample_patches((tokens,), 0.5)
    assert sampled.shape == (2, 5, 4)
    for row, whole in zip(sampled[..., 0], tokens[..., 0], strict=True):
        assert row[0] == whole[0] and (row.diff() > 0).all() and set(row.tolist()) <= set(whole.tolist())
    assert not torch.equal(sampled[0, :, 0], sampled[1, :, 0] - 9)
    assert sample_patches((tokens,), 1.0)[0] is tokens


@pytest.mark.slow
@pytest.mark.parametrize("family", WITH_LANGUAGE)
def test_scores_name_what_each_family_can_do(pictures, family):
    task = _task(pictures, family, products=24)
    task.adapter.hf.eval()
    labels = np.array([KINDS[row // 2 % 2] for row in range(24)])
    scores = evaluate_adapter(task.adapter, task.batches, task.captions, labels, KINDS)
    expected = (
        {"zero_shot_accuracy"}
        if family in ("clip", "siglip")
        else {"caption_colour", "caption_kind", "caption_all", "caption_bleu"}
    )
    assert scores.keys() == {"probe_macro_f1"} | expected
    assert all(0 <= scores[name] <= 1 for name in expected)

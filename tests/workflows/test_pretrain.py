"""Whole pretrainings on a small generated catalogue: tracked, stored, resumed, and fine-tuned."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.messages import collected_messages
from tests.stores import make_once
from tests.stub_training import Killed, kill_on_entry
from vlm_core.catalogue.exposure import RULE, Exposure
from vlm_core.catalogue.sample import draw_sample
from vlm_core.config import Config, PretrainingConfig
from vlm_core.errors import UserError
from vlm_core.models import tiny
from vlm_core.tracking import writer
from vlm_core.tracking.reader import RunReader
from vlm_core.tracking.writer import RunWriter
from vlm_core.training.pretraining_task import Pretraining
from vlm_core.workflows.pretrain import run_pretraining
from vlm_core.workflows.train import run_training

SMALL = {"preset": "pretrain", "epochs": 1, "batch_size": 32, "patches_kept": 0.5, "threads": 1}


@pytest.fixture(scope="session")
def little_shop():
    """The sample catalogue with so few products that an epoch takes moments."""
    return make_once("little-catalogue", lambda folder: draw_sample(folder / "shop", products=120)) / "shop"


@pytest.fixture
def pretrain(little_shop, stocked, monkeypatch):
    """Run a pretraining of a narrow model in a store of its own: the outcome, and the messages that were logged."""
    for settings in (tiny.VISION, tiny.TEXT):
        monkeypatch.setitem(settings, "hidden_size", 32)
        monkeypatch.setitem(settings, "intermediate_size", 128)

    def start(**settings):
        with collected_messages() as lines:
            return run_pretraining(
                PretrainingConfig.build({**SMALL, "data": str(little_shop), **settings}), stocked
            ), lines

    return start


@pytest.mark.slow
def test_weights_are_stored_with_what_they_saw_and_fine_tuned_without_a_leak(pretrain, shop, store):
    outcome, lines = pretrain(model="clip", data=str(shop))
    files = {path.name for path in outcome.folder.iterdir()}
    assert {
        "model.safetensors",
        "config.json",
        "tokenizer.json",
        "exposure.json",
        "README.md",
        "checksums.json",
    } <= files
    assert {str(array.dtype) for array in load_file(outcome.folder / "model.safetensors").values()} == {"float16"}
    exposure = Exposure.read(outcome.folder)
    assert exposure.rule == RULE and f"Pretraining on {exposure.products:,} products" in " ".join(lines)
    tags, metrics = RunReader().tags(outcome.run_id), RunReader().metrics(outcome.run_id)
    assert tags["kind"] == "pretraining" and tags["products_seen_fingerprint"] == exposure.products_fingerprint
    assert metrics["stored_zero_shot_accuracy"] == outcome.metrics["zero_shot_accuracy"]
    assert {"train_contrastive", "validation_zero_shot_accuracy", "seconds", "learning_rate"} <= metrics.keys()
    card = (outcome.folder / "README.md").read_text()
    assert "--model clip" in card and exposure.products_fingerprint in card and "| 1 |" in card
    assert RunReader().artifact(outcome.run_id, "weights/model.safetensors").exists()
    assert RunReader().leaderboard().empty

    config = Config.build(
        {"preset": "demo", "weights": "auto", "checkpoint": str(outcome.folder), "model": "clip", "data": str(shop)}
        | {"mode": "probe", "epochs": 1, "per_category": 20, "train_per_category": 12, "threads": 1, "resamples": 100}
    )
    tuned = run_training(config, store)
    tags = RunReader().tags(tuned.run_id)
    assert tags["pretraining_rule"] == RULE and tags["pretraining_catalogue"] == exposure.catalogue_fingerprint
    assert (tags["leaking"] == "true") == (float(tags["leakage_pretraining"]) > 0)


@pytest.mark.slow
def test_blip_and_git_start_from_a_contrastive_tower_and_record_what_it_saw(pretrain):
    start, _ = pretrain(model="clip")
    for model in ("blip", "git"):
        outcome, lines = pretrain(model=model, tower=str(start.folder))
        assert any("Vision tower initialised from" in line for line in lines)
        exposure = Exposure.read(outcome.folder)
        assert [before.products_fingerprint for before in exposure.before] == [exposure.products_fingerprint]
        assert 0 <= outcome.metrics["caption_all"] <= 1


def test_a_checkpoint_is_pretrained_further(pretrain):
    start, _ = pretrain(model="git")
    outcome, _ = pretrain(model="git", checkpoint=str(start.folder), weights="auto", learning_rate=1e-9, warmup=0)
    for name, weights in load_file(start.folder / "model.safetensors").items():
        after = load_file(outcome.folder / "model.safetensors")[name]
        np.testing.assert_allclose(after.astype(float), weights.astype(float), atol=1e-3)


def test_an_interrupted_pretraining_is_resumed_to_the_same_weights(pretrain, monkeypatch):
    whole, _ = pretrain(model="git", epochs=2)
    losses = Pretraining.batch_losses

    def interrupted(task, epoch):
        for step in losses(task, epoch):
            if epoch == 2:
                raise KeyboardInterrupt
            yield step

    with monkeypatch.context() as patch:
        patch.setattr(Pretraining, "batch_losses", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pretrain(model="git", epochs=2)
    stopped = RunReader().runs("tags.kind = 'pretraining' and attributes.status = 'KILLED'")["run_id"].item()
    assert json.loads((Path("checkpoints") / stopped / "position.json").read_text())["epoch"] == 1
    resumed, _ = pretrain(resume=stopped)
    assert resumed.run_id == stopped
    ours, theirs = (load_file(outcome.folder / "model.safetensors") for outcome in (resumed, whole))
    for name, weights in theirs.items():
        np.testing.assert_array_equal(ours[name], weights)
    assert RunReader().history(stopped, "train_captioning")["step"].tolist() == [1, 2]


@pytest.mark.slow
def test_a_pretraining_killed_at_its_end_is_resumed_to_the_same_weights(pretrain, monkeypatch):
    monkeypatch.setattr("vlm_core.tracking.tags.process_is_alive", lambda tag: False)
    steps = ((RunWriter, "artifact"), (writer, "end_run"))  # the weights have got their name
    for killed, deaths in (({"model": "git"}, steps), ({"model": "git", "output": "own"}, steps[:1])):
        for owner, name in deaths:
            with monkeypatch.context() as patch, pytest.raises(Killed):
                kill_on_entry(patch, owner, name)
                pretrain(**killed)
            stopped = RunReader().runs("attributes.status = 'RUNNING'")["run_id"].item()
            killed = {"resume": stopped}
        folder = Path("own") if Path("own").exists() else Path("pretrained") / stopped
        before = {path.name: path.read_bytes() for path in folder.iterdir()}
        outcome, _ = pretrain(resume=stopped)
        assert outcome.folder.resolve() == folder.resolve()
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
        metrics = RunReader().metrics(stopped)
        assert outcome.metrics and all(metrics[f"stored_{key}"] == value for key, value in outcome.metrics.items())
        assert RunReader().artifact(stopped, "weights/model.safetensors").exists()
        assert not list(Path("checkpoints").glob("*"))


def test_what_cannot_be_pretrained_is_refused(pretrain, tmp_path):
    with pytest.raises(UserError, match="cannot be pretrained"):
        pretrain(model="baseline")
    with pytest.raises(UserError, match="lower batch_size"):
        pretrain(model="clip", batch_size=4096)
    with pytest.raises(UserError, match="neither titles nor"):
        pretrain(model="clip", title_column="nothing", caption_columns="nothing")
    with pytest.raises(UserError, match="exists already"):
        pretrain(model="clip", output=str(tmp_path))
    with pytest.raises(UserError, match="is not a folder"):
        pretrain(model="git", tower=str(tmp_path / "nowhere"))


@pytest.mark.slow
def test_a_mean_pooled_clip_is_resumed_continued_and_contradicted(pretrain, monkeypatch):
    def stopped(**given):
        """The run of a pretraining that is stopped before its first step."""
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(Pretraining, "batch_losses", interrupted)
            pretrain(model="clip", **given)
        return RunReader().runs("attributes.status = 'KILLED'")["run_id"].iloc[0]

    def interrupted(task, epoch):
        assert task.adapter.pools_patches
        raise KeyboardInterrupt

    start, _ = pretrain(resume=stopped(pooling="mean"))
    assert json.loads((start.folder / "config.json").read_text())["vision_config"]["pooling"] == "mean"
    card = (start.folder / "README.md").read_text()
    assert "--pooling mean" in card and "Hugging Face's own `CLIPModel` does not" in card
    assert RunReader().params(stopped(checkpoint=str(start.folder)))["pooling"] == "mean"
    with pytest.raises(UserError, match=r"were pretrained with pooling=mean, and keep it: omit pooling=class-token"):
        pretrain(model="clip", checkpoint=str(start.folder), pooling="class-token")

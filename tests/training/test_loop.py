"""The loop: reports, early stopping, what learns, and a resumed run that ends as an uninterrupted one."""

import itertools
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.models.families import make_categoriser
from vlm_core.errors import UserError
from vlm_core.pixels.picture_store import PictureStore
from vlm_core.training.batches import PixelBatches
from vlm_core.training.checkpoint import Checkpoint, TrainingState
from vlm_core.training.finetuning_task import FineTuning
from vlm_core.training.loop import EpochReport, StepReport, TrainingArguments, train, warmup_cosine

LABELS = np.arange(24) % 3
TRAIN, VALIDATION = np.arange(15), np.arange(15, 24)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """24 pictures whose colour tells the category."""
    path = tmp_path_factory.mktemp("store") / "pictures.npy"
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 60, (24, 20, 15, 3), dtype=np.uint8)
    pixels[np.arange(24), :, :, LABELS] += 150
    np.save(path, pixels)
    return PictureStore(path)


def _batches(pictures, train=TRAIN, size=64):
    return PixelBatches(pictures, LABELS, train, size, batch_size=4, seed=3)


def _plan(**changes):
    values = dict(epochs=3, learning_rate=1e-3, weight_decay=0.01, warmup=0.1, clip_norm=1.0, patience=3, seed=3)
    return TrainingArguments(**{**values, **changes})


def _epochs(reports):
    return [report for report in reports if isinstance(report, EpochReport)]


def _weights(model):
    return {name: weight.clone() for name, weight in model.hf.state_dict().items()}


@pytest.mark.slow
def test_reports_count_steps_and_epochs_and_the_loss_falls(pictures, tmp_path):
    model = make_categoriser("clip")
    reports = list(
        train(FineTuning(model, 0, _batches(pictures), VALIDATION), _plan(epochs=6, patience=6), Checkpoint(tmp_path))
    )
    steps = [report for report in reports if isinstance(report, StepReport)]
    assert len(steps) == 6 * 4 and [step.step for step in steps[:4]] == [1, 2, 3, 4]
    assert sum(step.products for step in steps[:4]) == 15
    epochs = _epochs(reports)
    assert [epoch.epoch for epoch in epochs] == [1, 2, 3, 4, 5, 6]
    assert epochs[-1].training.loss < epochs[0].training.loss
    assert epochs[-1].validation.confusion.sum() == 9
    assert epochs[-1].learning_rate == pytest.approx(0, abs=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "head"), [("clip", "linear"), ("blip", "sentences"), ("git", "linear")])
def test_an_interrupted_run_ends_with_the_same_weights(pictures, tmp_path, family, head):
    whole = make_categoriser(family, head)
    reports = _epochs(
        train(FineTuning(whole, 0, _batches(pictures), VALIDATION), _plan(), Checkpoint(tmp_path / "whole"))
    )

    stopped = make_categoriser(family, head)
    halfway = Checkpoint(tmp_path / "halfway")
    for report in train(FineTuning(stopped, 0, _batches(pictures), VALIDATION), _plan(), halfway):
        if isinstance(report, StepReport) and (report.epoch, report.step) == (3, 2):
            break  # in the third epoch: two are saved
    assert halfway.state().epoch == 2
    resumed = make_categoriser(family, head)
    rest = _epochs(train(FineTuning(resumed, 0, _batches(pictures), VALIDATION), _plan(), halfway))

    assert [report.epoch for report in rest] == [3]
    assert rest[0].validation.loss == reports[2].validation.loss
    assert rest[0].training.loss == reports[2].training.loss
    for name, weight in _weights(whole).items():
        torch.testing.assert_close(resumed.hf.state_dict()[name], weight, rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize(("head", "measured"), [("linear", 15), ("sentences", 7)])
def test_predictions_that_take_an_extra_pass_are_made_for_every_third_batch(pictures, tmp_path, head, measured):
    task = FineTuning(make_categoriser("git", head), 0, _batches(pictures), VALIDATION[:5])
    (epoch,) = _epochs(train(task, _plan(epochs=1), Checkpoint(tmp_path)))
    assert (epoch.training.confusion.sum(), epoch.validation.confusion.sum()) == (measured, 5)


@pytest.mark.slow
def test_a_finished_run_has_nothing_left_to_do(pictures, tmp_path):
    for expected in (3, 0):
        model = make_categoriser("clip")
        assert (
            len(_epochs(train(FineTuning(model, 0, _batches(pictures), VALIDATION), _plan(), Checkpoint(tmp_path))))
            == expected
        )


@pytest.mark.slow
def test_the_best_epochs_weights_come_back(pictures, tmp_path):
    model, checkpoint = make_categoriser("clip"), Checkpoint(tmp_path)
    best = {}
    for report in train(FineTuning(model, 0, _batches(pictures), VALIDATION), _plan(epochs=5, patience=5), checkpoint):
        if isinstance(report, EpochReport) and report.best:
            best = _weights(model)
    state = checkpoint.load_best(model.freeze_before(0))
    assert state.best_macro_f1 == max(state.best_macro_f1, state.macro_f1)
    for name, weight in best.items():
        torch.testing.assert_close(model.hf.state_dict()[name], weight, rtol=0, atol=0)
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".safetensors", ".safetensors"]


def test_patience_stops_and_says_why():
    state = TrainingState()
    for macro_f1 in (0.5, 0.6, 0.6, 0.55):
        state = state.next_epoch(macro_f1)
    assert (state.best_epoch, state.best_macro_f1) == (2, 0.6)
    assert not state.finished(epochs=10, patience=3) and state.finished(epochs=10, patience=2)
    assert state.early_stopping_message(3) == "Validation macro-F1 0.5500 is not above 0.6000: 2 of 3."
    assert "improved to 0.7000 (before: 0.6000)" in state.next_epoch(0.7).early_stopping_message(3)


def test_a_loss_that_is_no_number_stops_with_the_way_out(pictures, tmp_path):
    model = make_categoriser("clip")
    with torch.no_grad():
        model.head.linear.bias.fill_(math.nan)
    with pytest.raises(UserError, match="lower learning_rate"):
        list(train(FineTuning(model, 0, _batches(pictures), VALIDATION), _plan(), Checkpoint(tmp_path)))


def test_oversampled_copies_get_views_of_their_own(pictures):
    batches = _batches(pictures, train=np.array([0, 0, 0, 0]))
    (batch,) = batches.training(1)
    views = batch.state[0]
    assert not any(torch.allclose(views[i], views[j]) for i in range(4) for j in range(i))
    torch.testing.assert_close(next(batches.training(1)).state[0], views, rtol=0, atol=0)


@pytest.mark.slow
def test_a_checkpoint_of_another_mode_is_refused(pictures, tmp_path):
    model = make_categoriser("clip")
    list(train(FineTuning(model, 0, _batches(pictures), VALIDATION), _plan(epochs=1), Checkpoint(tmp_path)))
    with pytest.raises(UserError, match="another model or mode"):
        list(train(FineTuning(model, 3, _batches(pictures), VALIDATION), _plan(), Checkpoint(tmp_path)))


def test_the_optimisers_state_comes_back_to_the_device_of_its_weight(tmp_path):
    weight, away = torch.nn.Parameter(torch.zeros(3)), torch.nn.Parameter(torch.zeros(3, device="meta"))
    optimiser = torch.optim.AdamW([weight], fused=True)
    weight.grad = torch.ones(3)
    optimiser.step()
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1.0)
    Checkpoint(tmp_path).save(TrainingState().next_epoch(0.5), {"w": weight}, optimiser, schedule)
    restored = SimpleNamespace(param_groups=[{"params": [away]}], state={})  # PyTorch's is for real devices only
    scheduler = SimpleNamespace(base_lrs=[1e-3], lr_lambdas=[lambda step: 1.0])
    Checkpoint(tmp_path).restore({"w": away}, restored, scheduler)
    assert {name: tensor.device for name, tensor in restored.state[away].items()} == dict.fromkeys(
        ("step", "exp_avg", "exp_avg_sq"), away.device
    )


@pytest.mark.slow
def test_a_checkpoint_cut_short_while_written_leaves_the_old_one(pictures, tmp_path, monkeypatch):
    model, checkpoint = make_categoriser("clip"), Checkpoint(tmp_path)
    list(train(FineTuning(model, 0, _batches(pictures), VALIDATION), _plan(epochs=1), checkpoint))
    before = json.loads((tmp_path / "position.json").read_text())

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(UserError, match="No space left on device"):
        list(train(FineTuning(model, 0, _batches(pictures), VALIDATION), _plan(), checkpoint))
    assert json.loads((tmp_path / "position.json").read_text()) == before
    assert not list(tmp_path.glob("*.part"))
    assert checkpoint.load_best(model.freeze_before(0)).epoch == 1


def test_the_learning_rate_rises_linearly_to_its_peak_and_falls_by_a_cosine_to_zero():
    shares = [warmup_cosine(step, warmup_steps=4, total_steps=24) for step in range(25)]
    assert shares[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert shares[14] == pytest.approx(0.5) and shares[24] == pytest.approx(0)
    assert all(later < earlier for earlier, later in itertools.pairwise(shares[4:]))

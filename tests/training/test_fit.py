"""Which weights each mode trains; training on cached features equals training on pixels."""

import shutil
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from tests.messages import collected_messages
from tests.models.families import CAPTIONERS, FAMILIES, SHIPPED, RoundedPrefix, make_categoriser, make_shallow
from vlm_core.config import Config
from vlm_core.models.onnx_prefix import OnnxPrefix
from vlm_core.pixels.picture_store import PictureStore
from vlm_core.training.batches import FeatureBatches, PixelBatches
from vlm_core.training.checkpoint import Checkpoint
from vlm_core.training.feature_cache import FeatureCache
from vlm_core.training.finetuning_task import FineTuning
from vlm_core.training.fit import Trainer
from vlm_core.training.loop import StepReport, TrainingArguments, train

LABELS = np.arange(24) % 3
MODES = [
    {"mode": "probe"},
    {"mode": "fusion"},
    {"mode": "last-blocks", "blocks": 1},
    {"mode": "last-blocks", "blocks": 2},
    {"mode": "lora", "blocks": 1},
    {"mode": "full"},
]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """24 pictures whose colour tells the category, the first 16 to train on, the last of these twice."""
    path = tmp_path_factory.mktemp("store") / "pictures.npy"
    pixels = np.random.default_rng(0).integers(0, 60, (24, 20, 15, 3), dtype=np.uint8)
    pixels[np.arange(24), :, :, LABELS] += 150
    np.save(path, pixels)
    catalogue = SimpleNamespace(
        pictures=PictureStore(path), products=pd.DataFrame(index=range(24)), pictures_fingerprint="these"
    )
    split = SimpleNamespace(labels=LABELS, train=np.arange(16), validation=np.arange(16, 24), categories="abc")
    return SimpleNamespace(catalogue=catalogue, split=split)


def _make(family, settings):
    """A model of two vision blocks; of four where the last two learn: of CLIP's two nothing would be left to cache."""
    return (make_categoriser if settings.get("blocks") == 2 else make_shallow)(family)


def _fit(data, model, folder, log=lambda metrics: None, **settings):
    given = {"model": model.description.family, "batch_size": 4, "cache_precision": "fp32", "learning_rate": 1e-3}
    config = Config.build({**given, "epochs": 3, "patience": 3, **settings})
    cache = FeatureCache(folder / "cache", int(config.cache_gib * 2**30), config.cache_precision)
    return Trainer(config, data, model, folder / "checkpoints", cache, log)


def _batches(trainer, cut):
    """The run's batches at the cut, and the same views from pixels."""
    views = trainer.config.views
    pixels = trainer.pixel_batches()
    return trainer.feature_batches(pixels, cut, views), pixels


def _first_step(model, cut, batches):
    task = FineTuning(model, cut, batches, np.arange(16, 24))
    weights = task.trainable_parameters()
    (loss, _), *_ = task.batch_losses(1)
    return loss, dict(zip(weights, torch.autograd.grad(loss, list(weights.values()), allow_unused=True), strict=True))


def _compare(model, cut, cached, pixels, loss_error, gradient_error):
    loss, gradients = _first_step(model, cut, cached)
    wanted_loss, wanted = _first_step(model, cut, pixels)
    torch.testing.assert_close(loss, wanted_loss, rtol=loss_error, atol=loss_error)
    whole = torch.cat([gradient.flatten() for gradient in wanted.values() if gradient is not None])
    for name, gradient in wanted.items():
        if gradient is None:
            assert gradients[name] is None
        else:
            torch.testing.assert_close(gradients[name], gradient, rtol=0, atol=gradient_error * float(whole.norm()))


@pytest.mark.slow
@pytest.mark.parametrize("family", SHIPPED)
@pytest.mark.parametrize(
    ("settings", "precision", "loss_error", "gradient_error"),
    [
        *((settings, "fp32", 1e-6, 1e-6) for settings in MODES[:-1]),
        *((settings, "fp16", 1e-3, 2e-3) for settings in (MODES[0], MODES[2])),  # a feature, and tokens
    ],
    ids=lambda part: "-".join(map(str, part.values())) if isinstance(part, dict) else str(part),
)
def test_a_cached_step_is_the_uncached_one(data, tmp_path, family, settings, precision, loss_error, gradient_error):
    model = _make(family, settings)
    trainer = _fit(data, model, tmp_path, cache_precision=precision, **settings)
    cut = model.cut(trainer.config.mode, trainer.config.blocks)
    cached, pixels = _batches(trainer, cut)
    assert isinstance(cached, FeatureBatches) and isinstance(pixels, PixelBatches) and cached.start == cut > 0
    if trainer.config.mode == "lora":
        model.add_adapters(cut, 4)
        with torch.no_grad():  # adapters start as nothing, and nothing would then reach their first half
            for name, weight in model.freeze_before(cut).items():
                weight.add_(0.01 if "lora_B" in name else 0.0)
    _compare(model, cut, cached, pixels, loss_error, gradient_error)


@pytest.mark.slow
@pytest.mark.parametrize("family", CAPTIONERS)
def test_a_cached_step_of_writing_is_the_uncached_one(data, tmp_path, family):
    model = make_categoriser(family, "sentences")
    trainer = _fit(data, model, tmp_path, mode="fusion", objective="generate")
    cut = model.cut("fusion", 0)
    assert cut == len(model.stages)
    _compare(model, cut, *_batches(trainer, cut), 1e-6, 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "settings"),
    [*zip(("clip", "blip", "git", "clip", "blip"), MODES[:-1], strict=True)],
    ids=lambda part: "-".join(map(str, part.values())) if isinstance(part, dict) else part,
)
def test_eight_cached_steps_end_in_the_uncached_weights(data, tmp_path, family, settings):
    ends = []
    for use_cache in (True, False):
        model = _make(family, settings)
        trainer = _fit(data, model, tmp_path, **settings)
        cut = model.cut(trainer.config.mode, trainer.config.blocks)
        cached, pixels = _batches(trainer, cut)
        if trainer.config.mode == "lora":
            torch.manual_seed(5)
            model.add_adapters(cut, 4)
        plan = TrainingArguments(
            epochs=2, learning_rate=1e-3, weight_decay=0.01, warmup=0.1, clip_norm=1.0, patience=3, seed=3
        )
        task = FineTuning(model, cut, cached if use_cache else pixels, data.split.validation)
        reports = list(train(task, plan, Checkpoint(tmp_path / str(use_cache))))
        assert sum(isinstance(report, StepReport) for report in reports) == 8
        ends.append(task.trainable_parameters())
    for name, weight in ends[1].items():
        torch.testing.assert_close(ends[0][name], weight, rtol=0, atol=2e-4)  # a fifth of one step at this rate


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "settings"),
    [
        (family, settings)
        for family in FAMILIES
        for settings in [*MODES, {"mode": "lp-ft", "blocks": 2}]
        if (family, settings["mode"]) != ("vision", "fusion")  # nothing comes after its tower
    ],
    ids=lambda part: "-".join(map(str, part.values())) if isinstance(part, dict) else part,
)
def test_each_mode_learns_what_it_says_and_nothing_else(data, tmp_path, family, settings):
    model = _make(family, settings)
    before = {name: weight.detach().clone() for name, weight in model.hf.named_parameters()}
    trainer = _fit(data, model, tmp_path, epochs=2, **settings)
    counts = []
    best = trainer.fit(counts.append)
    after = dict(model.hf.named_parameters())
    assert after.keys() == before.keys() and best.epoch == 2 and counts[0] > 0
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    cut = model.cut(trainer.config.mode, trainer.config.blocks)
    frozen = {id(w) for stage in model.stages[:cut] for module in stage.modules for w in module.parameters()}
    owned = {id(w) for stage in model.stages[cut:] for module in stage.modules for w in module.parameters()} - frozen
    names = {name for name, weight in model.hf.named_parameters() if id(weight) in owned}
    assert moved <= names
    if trainer.config.mode == "lora":
        assert moved and all("attn" in name or "attention" in name for name in moved)
    elif trainer.config.mode != "probe":
        assert moved


def test_a_cut_counts_blocks_from_the_end():
    for family, fusion in (("clip", "fusion.project"), ("blip", "fusion.prompt"), ("git", "fusion.join")):
        model = make_categoriser(family)
        names = [stage.name for stage in model.stages]
        assert names[model.cut("fusion", 0)] == fusion
        blocks = [name for name in names if ".block." in name]
        assert [names[model.cut("last-blocks", k)] for k in (1, 2)] == [blocks[-1], blocks[-2]]
        assert model.cut("last-blocks", 0) == model.cut("last-blocks", 99) == model.cut("full", 1) == 0
        assert model.cut("probe", 1) == len(names)


def test_views_are_walked_through_and_copies_are_a_view_apart(data, tmp_path):
    model = make_categoriser("clip")
    split = SimpleNamespace(**{**vars(data.split), "train": np.array([0, 0, 1])})
    trainer = _fit(SimpleNamespace(catalogue=data.catalogue, split=split), model, tmp_path, mode="last-blocks", views=2)
    cached = trainer.feature_batches(trainer.pixel_batches(), model.cut("last-blocks", 1), 2)
    seen = {}
    for epoch in (1, 2, 3):
        (batch,) = cached.training(epoch)
        seen[epoch] = {}
        for row, state in zip(batch.rows, batch.state[0], strict=True):
            seen[epoch].setdefault(int(row), []).append(state)
    assert torch.equal(seen[1][1][0], seen[3][1][0]) and not torch.equal(seen[1][1][0], seen[2][1][0])
    assert not torch.equal(*seen[1][0])
    assert {state.sum().item() for state in seen[1][0]} == {state.sum().item() for state in seen[2][0]}


def test_a_second_run_and_a_probe_of_another_seed_find_what_is_kept(data, tmp_path):
    model = make_categoriser("git")
    trainer = _fit(data, model, tmp_path, mode="probe", views=0)
    cut = len(model.stages)
    trainer.feature_batches(trainer.pixel_batches(), cut, 0)
    model.run = None  # nothing may be computed any more
    again = _fit(data, model, tmp_path, mode="probe", views=0, seed=9)
    entry = again.cache_entry(model.fingerprint(cut), 0)
    assert not len(entry.missing(np.arange(24)))


def test_a_warm_cache_costs_what_filling_it_did(data, tmp_path):
    costs = []
    for seed in (0, 9):
        model = make_categoriser("git")
        trainer = _fit(data, model, tmp_path, mode="probe", views=0, seed=seed)
        trainer.feature_batches(trainer.pixel_batches(), len(model.stages), 0)
        costs.append(trainer.cost)
    cold, warm = costs
    assert cold.computed_rows == warm.cached_rows == 24 and cold.cached_rows == warm.computed_rows == 0
    assert warm.metrics(1.0)["prefix_seconds"] == pytest.approx(cold.metrics(1.0)["prefix_seconds"])
    assert warm.metrics(1.0)["train_seconds_full"] == pytest.approx(1.0 + cold.computed_seconds)
    assert cold.metrics(9.0)["train_seconds_full"] == 9.0  # what was computed is in the training's own time
    assert warm.tags() == {"prefix_rows_computed": "0", "prefix_rows_cached": "24"}


def test_what_an_earlier_version_cached_without_its_time_has_no_known_cost(data, tmp_path):
    for seed in (0, 9):
        model = make_categoriser("git")
        trainer = _fit(data, model, tmp_path, mode="probe", views=0, seed=seed)
        trainer.feature_batches(trainer.pixel_batches(), len(model.stages), 0)
        for record in (tmp_path / "cache").rglob("cost.json"):
            record.unlink()
    assert set(trainer.cost.metrics(1.0)) == {"prefix_seconds_computed"}


def test_other_weights_are_not_served_stale_states(data, tmp_path):
    model = make_categoriser("clip")
    before = model.fingerprint(3)
    late = model.hf.vision_model.encoder.layers[3].mlp.fc1.weight
    early = model.hf.vision_model.encoder.layers[0].mlp.fc1.weight
    with torch.no_grad():
        late.add_(1)
    assert model.fingerprint(3) == before
    with torch.no_grad():
        early.add_(1)
    assert model.fingerprint(3) != before


@pytest.mark.parametrize("family", CAPTIONERS)
def test_another_prompt_is_another_state(family, monkeypatch):
    model = make_categoriser(family)
    before = model.fingerprint(3)
    monkeypatch.setattr(model.adapter, "prompt_ids", lambda: [1, 2, 3])
    assert model.fingerprint(3) != before


def _trained(data, folder, family="git", log=lambda metrics: None, **settings):
    """The weights after two epochs, and the messages."""
    settings = {"blocks": 1, "epochs": 2, **settings}
    model = _make(family, settings)
    with collected_messages() as lines:
        _fit(data, model, folder, log, **settings).fit()
    return model.hf.state_dict() | {f"head.{name}": weight for name, weight in model.head.state_dict().items()}, lines


def _assert_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    assert [name for name, weight in ours.items() if not torch.equal(weight, theirs[name])] == []


@pytest.fixture(scope="module")
def uneven(data):
    """The same pictures with rows that fill no batch, in training and in validation, and with two oversampled ones."""
    rows = {"train": np.array([0, 2, 3, 5, 5, 6, 7, 8, 9, 10, 10, 11]), "validation": np.arange(12, 23)}
    return SimpleNamespace(catalogue=data.catalogue, split=SimpleNamespace(**{**vars(data.split), **rows}))


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        pytest.param("git", {"mode": "lp-ft"}, marks=pytest.mark.slow),
        ("blip", {"mode": "probe", "views": 0}),
        pytest.param("clip", {"mode": "fusion", "prefix": "int8"}, marks=pytest.mark.slow),
    ],
)
def test_room_in_the_cache_changes_no_weight(uneven, tmp_path, monkeypatch, family, settings):
    monkeypatch.setattr("vlm_core.models.onnx_prefix.OnnxPrefix", RoundedPrefix)
    logged = [{}, {}]
    kept, _ = _trained(uneven, tmp_path / "kept", family, logged[0].update, cache_precision="fp16", **settings)
    without = {"cache_precision": "fp16", "cache_gib": 1e-7, **settings}
    anew, lines = _trained(uneven, tmp_path / "anew", family, logged[1].update, **without)
    _assert_same(anew, kept)
    assert any("run in every epoch, to the same result" in line for line in lines)
    assert logged[0] == logged[1] and bool(logged[0]) == ("prefix" in settings)


def test_an_entry_that_vanishes_again_and_again_changes_no_weight(uneven, tmp_path, monkeypatch):
    kept, _ = _trained(uneven, tmp_path / "kept", mode="last-blocks", epochs=1, views=1)

    def vanish(entry, rows):
        raise KeyError(rows)

    monkeypatch.setattr("vlm_core.training.feature_cache.CacheEntry.read", vanish)
    anew, lines = _trained(uneven, tmp_path / "anew", mode="last-blocks", epochs=1, views=1)
    _assert_same(anew, kept)
    assert any("does not keep what is put into it" in line for line in lines)


def test_a_cache_deleted_while_it_is_filled_changes_no_weight(uneven, tmp_path, monkeypatch):
    monkeypatch.setattr("vlm_core.training.feature_cache.SECONDS_BETWEEN_COMMITS", 0.0)
    kept, _ = _trained(uneven, tmp_path / "kept", mode="last-blocks", epochs=1, views=1)
    view, seen = PixelBatches.view, []

    def deleting(batches, number, rows):
        seen.append(number)
        if len(seen) == 3:
            shutil.rmtree(tmp_path / "deleted" / "cache")
        return view(batches, number, rows)

    monkeypatch.setattr(PixelBatches, "view", deleting)
    for _ in range(2):  # the second run reads what the first one has left
        anew, _ = _trained(uneven, tmp_path / "deleted", mode="last-blocks", epochs=1, views=1)
        _assert_same(anew, kept)
        shutil.rmtree(tmp_path / "deleted" / "checkpoints")
    assert len(seen) > 3


@pytest.mark.slow
def test_what_other_runs_have_kept_changes_no_weight(uneven, data, tmp_path):
    settings = {"cache_precision": "fp16", "views": 0}
    alone, _ = _trained(uneven, tmp_path / "alone", mode="lp-ft", **settings)
    for mode, rows in (("probe", data), ("probe", uneven)):  # another split, and features computed in one go
        _trained(rows, tmp_path / "shared", mode=mode, **settings)
        shutil.rmtree(tmp_path / "shared" / "checkpoints")
    shared, _ = _trained(uneven, tmp_path / "shared", mode="lp-ft", **settings)
    _assert_same(shared, alone)


@pytest.mark.parametrize(
    ("family", "settings", "prefix"),
    [
        ("clip", MODES[2], RoundedPrefix),
        ("git", MODES[1], RoundedPrefix),
        pytest.param("blip", MODES[0], OnnxPrefix, marks=pytest.mark.slow),
    ],
)
@pytest.mark.usefixtures("hasty_exports")
def test_an_int8_prefix_tells_its_error_whoever_filled_the_cache(data, tmp_path, family, settings, prefix, monkeypatch):
    monkeypatch.setattr("vlm_core.models.onnx_prefix.OnnxPrefix", prefix)
    model, logged = make_shallow(family, blocks=2 if family == "clip" else 1), {}
    trainer = _fit(data, model, tmp_path, logged.update, prefix="int8", views=1, **settings)
    cut = model.cut(trainer.config.mode, trainer.config.blocks)
    cached, pixels = _batches(trainer, cut)
    int8, exact = next(cached.plain(np.arange(16, 24))), next(pixels.plain(np.arange(16, 24)))
    with torch.inference_mode():
        wanted = torch.cat([part.flatten() for part in model.run(exact.state, 0, cut)]).double()
    error = torch.cat([part.flatten() for part in int8.state]).double() - wanted
    expected = {
        "prefix_error": float((error @ error).sqrt() / (wanted @ wanted).sqrt()),
        "prefix_error_largest": float(error.abs().max()),
    }
    assert 1e-4 < expected["prefix_error"] < 0.1
    assert logged == pytest.approx(expected, rel=1e-3)
    logged.clear()
    again = _fit(data, model, tmp_path, logged.update, prefix="int8", views=1, **settings)
    with collected_messages() as lines:
        again.feature_batches(again.pixel_batches(), cut, 1)
    assert logged == pytest.approx(expected, rel=1e-3)
    difference = f"differ from PyTorch's by {expected['prefix_error']:.2%}"
    assert any("ran in int8" in line and difference in line for line in lines)


def test_states_of_int8_are_not_taken_for_others(data, tmp_path):
    model = make_categoriser("clip")
    entries = [_fit(data, model, tmp_path, prefix=prefix).cache_entry("w", 1) for prefix in ("torch", "int8")]
    entries += [_fit(data, model, tmp_path, prefix="int8").cache_entry("w", 1, start) for start in (3, 4)]
    assert len({entry.folder for entry in entries}) == 4
    exact = _fit(data, model, tmp_path)
    # rounded at stage 3 on the way
    assert exact.cache_entry("w", 1, 3).folder != exact.cache_entry("w", 1).folder


def test_features_in_bf16_are_float32_near_others_and_another_entry(data, tmp_path):
    model = make_shallow("clip")
    end, rows = len(model.stages), np.arange(16)
    taken, folders = [], set()
    for precision in ("fp32", "bf16"):
        model.precision = precision
        trainer = _fit(data, model, tmp_path, mode="probe", views=0, precision=precision)
        taken.append(trainer.feature_batches(trainer.pixel_batches(), end, 0).plain_features.take(rows)[0])
        folders.add(trainer.cache_entry("w", 0).folder)
    exact, rounded = taken
    assert rounded.dtype == torch.float32 and len(folders) == 2
    assert 0 < float((rounded - exact).norm() / exact.norm()) < 0.02


@pytest.mark.slow
def test_the_head_of_lp_ft_reads_what_the_blocks_make_of_int8_states(data, tmp_path, monkeypatch):
    monkeypatch.setattr("vlm_core.models.onnx_prefix.OnnxPrefix", RoundedPrefix)
    model = make_shallow("clip")
    trainer = _fit(data, model, tmp_path, prefix="int8", mode="lp-ft", blocks=1)
    cut, end = model.cut("lp-ft", 1), len(model.stages)
    cached = trainer.feature_batches(trainer.pixel_batches(), cut, 1)
    features = trainer.feature_batches(cached, end, 1)
    with torch.inference_mode():
        wanted = model.run(next(cached.view(1, np.arange(16))).state, cut, end)
    torch.testing.assert_close(next(features.view(1, np.arange(16))).state, wanted, rtol=1e-5, atol=1e-5)
    assert trainer.fit().epoch == 3


def test_where_int8_has_no_effect_it_is_said(data, tmp_path):
    logged = {}
    trainer = _fit(data, make_categoriser("clip"), tmp_path, logged.update, prefix="int8", mode="full")
    with collected_messages() as lines:
        trainer.fit()
    assert any("no layer is frozen" in line for line in lines) and not logged

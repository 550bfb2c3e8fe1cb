"""Whole runs on a small generated catalogue: in every mode, interrupted and resumed, and refused."""

import json
import shutil
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient

from tests.messages import collected_messages
from tests.standins import HubStandIn
from tests.standins import hub_stand_in as hub_stand_in  # the fixture `hub`
from tests.stub_training import Killed, kill_on_entry
from vlm_core.config import Config, ExtensionConfig, PretrainingConfig
from vlm_core.config.presets import SUITING
from vlm_core.data import load_catalogue, load_data, text_reading
from vlm_core.errors import UserError
from vlm_core.models.saved import load_categoriser
from vlm_core.tracking import logging_model, registry, tags, writer
from vlm_core.tracking.reader import RunReader
from vlm_core.tracking.store import connect
from vlm_core.tracking.writer import RunWriter
from vlm_core.workflows import train
from vlm_core.workflows.evaluate import run_evaluation
from vlm_core.workflows.resuming import resumed_config, resumed_extension

SMALL = {
    "preset": "demo", "epochs": 1, "train_per_category": 12, "per_category": 20, "threads": 1, "resamples": 100,
}  # fmt: skip


@pytest.fixture
def run(shop, stocked):
    """Run a small training in a store of its own: the outcome, and the messages that were logged."""

    def start(**settings):
        config = Config.build({**SMALL, "data": str(shop), **settings})
        with collected_messages() as lines:
            return train.run_training(config, stocked), lines

    return start


def _slow(**settings):
    return pytest.param(settings, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    "settings",
    [
        {"model": "clip"},
        {"model": "git", "mode": "zero-shot"},
        {"model": "baseline"},
        _slow(model="clip", mode="zero-shot"),
        _slow(model="blip", mode="fusion", objective="generate", views=1),
        _slow(model="blip", mode="lora", blocks=1, image_size=96, views=1),
        _slow(model="clip", preset="cpu", weights="tiny", blocks=2, views=1, augmentation="mirror"),
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
def test_a_run_ends_evaluated_logged_and_registered(run, settings):
    outcome, lines = run(**settings)
    assert any(f"resume={outcome.run_id}" in line for line in lines)
    reader = RunReader()
    board = reader.leaderboard()
    assert board["run_id"].tolist() == [outcome.run_id]
    assert board["test_macro_f1"].iloc[0] == pytest.approx(outcome.evaluation.macro_f1.value)
    assert outcome.evaluation.n == len(outcome.split.test)
    stored = reader.evaluation(outcome.run_id)
    np.testing.assert_array_equal(stored.confusion, outcome.evaluation.confusion)
    assert reader.params(outcome.run_id)["model"] == settings["model"]
    writes = settings["model"] in ("blip", "git") and ("objective" in settings or settings.get("mode") == "zero-shot")
    assert (reader.predictions(outcome.run_id).texts is not None) == writes
    assert ("test_caption_gender" in reader.metrics(outcome.run_id)) == writes
    info = json.loads(reader.artifact(outcome.run_id, "dataset_info.json").read_text())
    assert info["split_fingerprint"] == outcome.split.fingerprint
    assert ("train_seconds" in reader.metrics(outcome.run_id)) == (settings.get("mode") != "zero-shot")
    assert reader.metrics(outcome.run_id)["seconds_per_image"] > 0
    validation = reader.predictions(outcome.run_id, "validation")
    assert len(validation) == len(outcome.split.validation) and set(validation.product_ids).isdisjoint(
        stored.predictions.product_ids
    )
    assert "champion" in outcome.registered
    assert not list(Path("checkpoints").glob("*/*"))


def test_the_original_protocol_is_marked_as_leaking_everywhere(run):
    outcome, lines = run(model="baseline", protocol="original", train_per_category=40)
    assert any(line.startswith("LEAKING") for line in lines)
    assert RunReader().leaderboard()["leaking"].tolist() == [True]
    assert "cannot be champion" in outcome.registered
    assert outcome.split.leakage.near_by_category["Free Items"] > 0


@pytest.mark.parametrize("moves", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_an_interrupted_run_is_resumed_to_the_same_result(run, monkeypatch, moves):
    shared = {"shared_checkpoints": str(Path("shared").resolve())} if moves else {}
    whole, _ = run(model="clip", epochs=3)
    from vlm_core.training.finetuning_task import FineTuning

    original = FineTuning.validation_metrics
    calls = []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(FineTuning, "validation_metrics", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(model="clip", epochs=3, **shared)
    monkeypatch.setattr(FineTuning, "validation_metrics", original)
    if moves:  # to a machine that has nothing but the store
        shutil.rmtree("checkpoints")
    stopped = RunReader().runs("attributes.status = 'KILLED'")["run_id"].item()
    resumed, lines = run(resume=stopped, model="git", epochs=7)  # the run's own settings count, not these
    assert resumed.run_id == stopped
    assert any("Resuming run" in line for line in lines)
    assert any("Checkpoint of epoch 1 fetched from" in line for line in lines) == moves
    np.testing.assert_array_equal(
        resumed.evaluation.predictions.log_probabilities, whole.evaluation.predictions.log_probabilities
    )
    history = RunReader().history(stopped, "validation_macro_f1")
    assert history["step"].tolist() == [1, 2, 3]
    assert history["value"].tolist() == RunReader().history(whole.run_id, "validation_macro_f1")["value"].tolist()
    with pytest.raises(UserError, match="finished"):
        run(resume=stopped)


def test_a_run_that_was_stopped_before_its_settings_were_logged_is_not_resumed_with_others(store):
    with suppress(ValueError), RunWriter("made") as run:
        raise ValueError
    with pytest.raises(UserError, match="before its settings were logged: repeat its command"):
        resumed_config(Config(resume=run.run_id))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("begun", "given", "used"),
    [
        ("abfs://c@host/shop?se=1&sig=hunter2", "abfs://c@host/shop?se=2&sig=new", "abfs://c@host/shop?se=2&sig=new"),
        ("s3://key:hunter2@b/shop", "s3://key:hunter2@b/shop", "s3://key:hunter2@b/shop"),
        ("s3://b/shop", "s3://other/shop", "s3://b/shop"),
        ("s3://b/shop", "sample", "s3://b/shop"),
        ("shop", "other", "shop"),
    ],
)
def test_a_resumed_run_reads_its_address_with_what_is_given_now_to_open_it(store, begun, given, used):
    for kind, resumed, needed in (
        (Config, resumed_config, {}),
        (PretrainingConfig, resumed_config, {}),
        (ExtensionConfig, resumed_extension, {"run": "old"}),
    ):
        with suppress(ValueError), RunWriter("made") as run:
            run.params(kind.build({**needed, "data": begun, "seed": "7"}).to_params())
            run.tags({tags.EXTENDS: "old"} if needed else {})
            raise ValueError
        config = resumed(kind.build({**needed, "data": given, "resume": run.run_id}))
        assert (config.data, config.seed, config.resume) == (used, 7, run.run_id)


def test_a_resumed_run_asks_for_the_commit_it_started_from(run, hub: HubStandIn, tmp_path, monkeypatch):
    from tests.models.families import make_tiny

    hf, tokenizer = make_tiny("clip")
    hf.save_pretrained(tmp_path / "saved")
    tokenizer.save_pretrained(tmp_path / "saved")
    files = {path.name: path.read_bytes() for path in (tmp_path / "saved").iterdir()}
    hub.repositories["shop/clip"] = files
    commit = hub.commit("shop/clip")

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunWriter, "evaluation", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(model="clip", mode="probe", weights="auto", checkpoint="shop/clip")
    stopped = RunReader().runs()["run_id"].item()
    assert RunReader().tags(stopped)["weights_commit"] == commit
    hub.supersede("shop/clip", {**files, "model.safetensors": b"another model"})
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "another machine's"))
    assert run(resume=stopped)[0].run_id == stopped
    assert RunReader().tags(stopped)["weights_commit"] == commit


@pytest.mark.slow
def test_a_run_killed_between_any_two_steps_of_its_end_is_resumed_to_one_of_each(run, monkeypatch):
    whole, _ = run(model="clip")
    steps = (
        (RunWriter, "predictions"),
        (MlflowClient, "log_model_artifacts"), (MlflowClient, "finalize_logged_model"), (MlflowClient, "log_outputs"),
        (logging_model, "_link_scores"), (registry, "_new_version"), (registry, "_update_champion"),
        (writer, "end_run"),
    )  # fmt: skip
    killed = {"model": "clip"}
    monkeypatch.setattr("vlm_core.tracking.tags.process_is_alive", lambda tag: False)
    for owner, name in steps:
        with monkeypatch.context() as patch, pytest.raises(Killed):
            kill_on_entry(patch, owner, name)
            run(**killed)
        killed = {"resume": RunReader().runs("attributes.status = 'RUNNING'")["run_id"].item()}
    resumed, _ = run(**killed)
    np.testing.assert_array_equal(
        resumed.evaluation.predictions.log_probabilities, whole.evaluation.predictions.log_probabilities
    )
    client, reader = connect(), RunReader()
    scores = [name for name in reader.metrics(whole.run_id) if name.startswith("test_")]
    assert {len(client.get_metric_history(resumed.run_id, name)) for name in scores} == {1}
    assert all(reader.metrics(resumed.run_id)[name] == reader.metrics(whole.run_id)[name] for name in scores)
    stored = client.get_run(resumed.run_id)
    (model,) = client.search_logged_models([stored.info.experiment_id], f"source_run_id = '{resumed.run_id}'")
    assert str(model.status) == "READY" and {metric.key for metric in model.metrics} == set(scores)
    assert [output.model_id for output in stored.outputs.model_outputs] == [model.model_id]
    (version,) = client.search_model_versions(f"run_id = '{resumed.run_id}'")
    assert version.source == f"models:/{model.model_id}"
    assert len(stored.inputs.dataset_inputs) == len(client.get_run(whole.run_id).inputs.dataset_inputs)
    assert stored.info.status == "FINISHED" and not list(Path("checkpoints").glob("*"))


def test_a_trial_that_is_pruned_says_so_and_leaves_no_checkpoint(shop, stocked):
    config = Config.build({**SMALL, "data": str(shop), "model": "clip"})
    begun, asked = [], []

    def stop(epoch, macro_f1):
        asked.append((epoch, macro_f1))
        return False

    result = train.run_trial(config, load_data(config, stocked), stocked, "", begun.append, stop)
    assert result == train.TrialResult(0.0, float("inf"), pruned=True)
    run = RunReader().runs().iloc[0]
    assert ([run["run_id"]], run["status"]) == (begun, "FINISHED")
    assert (run["tags.kind"], run["tags.pruned"]) == ("trial", "true")
    assert asked == [(1, run["metrics.validation_macro_f1"])]
    assert not any(name.startswith("metrics.test") for name in run.index)
    assert not list(Path("checkpoints").glob("*"))


def test_auto_weights_fall_back_with_a_warning_and_adapt_the_settings(run):
    outcome, lines = run(preset="original", model="clip", batch_size=16)
    assert sum(line.startswith("WARNING") for line in lines) == 2
    assert outcome.config.learning_rate == SUITING["shipped"]["learning_rate"]
    assert outcome.config.batch_size == 16  # the user's own
    assert RunReader().params(outcome.run_id)["learning_rate"] == str(SUITING["shipped"]["learning_rate"])
    assert RunReader().tags(outcome.run_id)["weights_source"] == "shipped:clip"


@pytest.mark.parametrize(("share", "chosen"), [(0.5, "bf16"), (0.95, "fp32")])
def test_auto_precision_is_what_pays_here(shop, stocked, monkeypatch, share, chosen):
    monkeypatch.setattr(
        "vlm_core.models.arithmetic.measure_precisions", lambda *given: {"fp32": 2.0, "bf16": 2.0 * share}
    )
    config = Config.build({**SMALL, "data": str(shop), "model": "clip", "mode": "probe", "precision": "auto"})
    with collected_messages() as lines:
        prepared, _, model, *_ = train.prepare(config, load_data(config, stocked))
    assert prepared.precision == model.precision == chosen
    assert any(f"precision={chosen}: a pass in bf16 takes {share:.2f} of the time in fp32" in line for line in lines)


def test_pretrained_weights_never_fall_back(run):
    with pytest.raises(UserError, match="hf download openai/clip-vit-base-patch32"):
        run(model="clip", weights="pretrained")


def test_a_checkpoint_folder_is_used_and_named(run, tmp_path):
    from tests.models.families import make_tiny

    hf, tokenizer = make_tiny("git")
    hf.save_pretrained(tmp_path / "own")
    tokenizer.save_pretrained(tmp_path / "own")
    outcome, _ = run(model="git", weights="auto", checkpoint=str(tmp_path / "own"), mode="probe", readout="vision")
    assert RunReader().tags(outcome.run_id)["weights_source"] == f"folder:{tmp_path / 'own'}"
    assert load_categoriser(registry.resolve(outcome.run_id)).description.readout == "vision"
    with pytest.raises(UserError, match="family"):
        run(model="blip", weights="auto", checkpoint=str(tmp_path / "own"))


def test_a_run_is_evaluated_on_what_it_was_not_trained_on(run, shop, store):
    outcome, _ = run(model="baseline")
    config = Config.build({"data": str(shop), "resamples": 100, "threads": 1})
    with collected_messages() as lines:
        child, evaluation = run_evaluation(outcome.run_id, config, store)
    digests = load_catalogue(config, store).products["picture_digest"]
    used = np.union1d(outcome.split.train, outcome.split.validation)
    seen = digests.isin(digests.iloc[used]).to_numpy() & (outcome.split.labels >= 0)  # and byte-identical pictures
    assert evaluation.n == (outcome.split.labels >= 0).sum() - seen.sum()
    assert any(f"{seen.sum()} that the model was pretrained, trained or selected on" in line for line in lines)
    assert RunReader().tags(child)["mlflow.parentRunId"] == outcome.run_id
    assert RunReader().evaluation(child, "external").n == evaluation.n


def test_a_table_of_ones_own_works(run, tmp_path):
    from PIL import Image

    lines = ["kind;file;name"]
    for number in range(40):
        colour = ("red", "blue")[number % 2]
        Image.new("RGB", (50 + number % 7, 70), colour).save(tmp_path / f"{number}.png")
        lines.append(f"{colour};{number}.png;A {colour} thing {number}")
    (tmp_path / "own.csv").write_text("\n".join(lines))
    outcome, _ = run(
        model="baseline", data=str(tmp_path / "own.csv"), label="kind", picture_column="file", title_column="name"
    )
    assert outcome.split.categories == ("blue", "red")
    assert outcome.evaluation.accuracy.value == 1.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"label": "colour"}, "label=colour is not a column"),
        ({"categories": "Hats"}, "categories=Hats"),
        ({"data": "nowhere"}, "data=nowhere does not exist"),
        ({"resume": "0" * 32}, "no run|no such run"),
        ({"image_size": 70}, "image_size=70"),
        ({"device": "cuda"}, "device=cuda"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_sentence_and_leaves_no_run(run, settings, message):
    with pytest.raises(UserError, match=message) as error:
        run(**{"model": "clip", **settings})
    assert "\n" not in str(error.value)
    assert RunReader().runs().empty


TEXT_RUNS = [
    {"model": "baseline", "inputs": "text"},
    {"model": "baseline", "inputs": "image+text", "mask_label_words": "true"},
    {"model": "clip", "inputs": "text", "text_columns": "title,gender"},
    {"model": "clip", "inputs": "image+text", "fusion": "late"},
    {"model": "git", "inputs": "image+text", "fusion": "own", "mask_label_words": "true"},
]


@pytest.mark.slow
@pytest.mark.parametrize("settings", TEXT_RUNS, ids=lambda settings: "-".join(settings.values()))
def test_a_run_that_reads_texts_tells_what_they_give_away(run, settings):
    outcome, lines = run(**settings)
    masked = "mask_label_words" in settings
    assert outcome.texts is not None and outcome.texts.masked == masked
    assert settings["inputs"] in RunReader().runs()["name"].item()
    metrics = RunReader().metrics(outcome.run_id)
    assert metrics["text_leak"] == pytest.approx(outcome.texts.leak.share)
    assert (metrics["text_leak"] == 0) == masked and metrics["text_absent"] < 0.5
    assert metrics["text_alone_macro_f1"] == pytest.approx(outcome.texts.alone_macro_f1)
    assert any("UNMASKED" in line for line in lines) != masked
    folder = registry.resolve(outcome.run_id)
    card = (folder / "README.md").read_text()
    assert "## Texts" in card and ("UNMASKED" in card) != masked
    model = load_categoriser(folder)
    assert model.reads.columns == tuple(settings.get("text_columns", "title").split(","))
    assert ("shirt" in model.reads.masked) == masked


@pytest.mark.slow
def test_a_model_that_reads_texts_is_evaluated_on_them_elsewhere(run, shop):
    outcome, _ = run(model="baseline", inputs="text")
    accuracy = {}
    for title_column in ("articleType", "id"):  # a type names the category as a title does, an id does not
        settings = {"data": str(shop), "experiment": "elsewhere", "title_column": title_column}
        child, evaluation = run_evaluation(outcome.run_id, Config.build({**SMALL, **settings}), Path.cwd())
        accuracy[title_column] = evaluation.accuracy.value
        leak = RunReader().metrics(child)["text_leak"]
        assert (leak > 0.5) == (title_column == "articleType")
        assert RunReader().params(child)["mask_label_words"] == "False"
    assert accuracy["articleType"] > accuracy["id"] + 0.1


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"text_columns": "masterCategory"}, "is the label itself"),
        ({"text_columns": "brand"}, "text_columns=brand is not a column"),
    ],
)
def test_texts_that_cannot_be_read_are_refused(stocked, shop, settings, said):
    config = Config.build({**SMALL, "data": str(shop), "model": "baseline", "inputs": "text", **settings})
    with pytest.raises(UserError, match=said):
        text_reading(config, load_catalogue(config, stocked), ("Apparel", "Footwear"))

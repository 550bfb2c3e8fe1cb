from __future__ import annotations

import importlib.metadata
import json
import logging.handlers
import re
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from transformers.utils import logging as reports

from tests.standins import HubStandIn
from tests.standins import hub_stand_in as hub_stand_in  # the fixture `hub`
from tests.stores import run_python
from vlm_core.errors import UserError
from vlm_core.models.checkpoints import (
    AvailableCheckpoint,
    UnavailableCheckpoint,
    fetch_checkpoint,
    find_checkpoint,
)
from vlm_core.models.pretrained import load_pretrained
from vlm_core.models.tiny import build_tiny

NAME = "openai/clip-vit-base-patch32"
CONFIG = {"config.json": b'{"model_type": "clip"}'}
NEEDED = ("config.json", "merges.txt", "model.safetensors", "tokenizer.json", "vocab.json")
REPOSITORY = {
    **dict.fromkeys([*NEEDED, "README.md", "pytorch_model.bin", "tf_model.h5", "onnx/config.json"], b"{}"),
    **CONFIG,
    "model.safetensors": bytes(200_000),
}


@pytest.fixture
def full_hub(hub: HubStandIn) -> HubStandIn:
    hub.repositories[NAME] = dict(REPOSITORY)
    return hub


def fill(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


@cache
def make_tiny(family: str) -> tuple[Any, Any]:
    """A family's tiny model and its tokenizer, the same object at every call."""
    torch.manual_seed(0)
    return build_tiny(family, ["Titan Women Silver Watch", "Turtle Check Men Navy Blue Shirt"])


def save_tiny(family: str, folder: Path) -> type[Any]:
    """Save a tiny model and its tokenizer in Hugging Face format; the model's class comes back."""
    model, tokenizer = make_tiny(family)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return type(model)


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    change(weights)
    safetensors.torch.save_file(weights, folder / "model.safetensors", {"format": "pt"})


def find(name: str | Path) -> AvailableCheckpoint:
    found = find_checkpoint(str(name))
    assert isinstance(found, AvailableCheckpoint)
    return found


def reason_of(name: str, seconds: float = 4.0) -> str:
    missing = find_checkpoint(name, seconds=seconds)
    assert isinstance(missing, UnavailableCheckpoint)
    return missing.reason


PART = "model-00001-of-00001.safetensors"
INDEX = {"model.safetensors.index.json": json.dumps({"weight_map": {"a": PART}}).encode()}


@pytest.mark.parametrize("weights", [{"model.safetensors": b""}, {"pytorch_model.bin": b""}, {**INDEX, PART: b""}])
def test_folder_with_a_configuration_and_weights_is_found(tmp_path: Path, weights: dict[str, bytes]) -> None:
    folder = fill(tmp_path / "model", {**CONFIG, **weights})
    found = find(folder)
    assert found == AvailableCheckpoint(str(folder), "folder", str(folder), None, tuple(sorted([*CONFIG, *weights])))
    assert found.local_files_only
    assert found.safetensors == ("pytorch_model.bin" not in weights)


@pytest.mark.parametrize(
    ("files", "lack"),
    [
        ({"model.safetensors": b""}, "config.json"),
        ({"model.safetensors": b"", "config.json": b"{"}, "config.json"),
        ({"model.safetensors": b"", "config.json": b"[]"}, "config.json"),
        ({**CONFIG, **INDEX}, "weights"),
        ({**CONFIG, "model.safetensors.index.json": b"[1]"}, "weights"),
    ],
)
def test_folder_that_lacks_a_file_is_refused(tmp_path: Path, files: dict[str, bytes], lack: str) -> None:
    with pytest.raises(UserError, match=rf"holds no .*{lack}.*save_pretrained"):
        find_checkpoint(str(fill(tmp_path / "model", files)))


@pytest.mark.parametrize("name", ["./nowhere", "/no/where", "~/nowhere", "a/b/c", "no\\where", "a name", "a--b", ""])
def test_what_is_neither_a_folder_nor_a_name_is_refused(full_hub: HubStandIn, name: str) -> None:
    with pytest.raises(UserError, match="checkpoint="):
        find_checkpoint(name)
    assert full_hub.asked == []


def test_hub_is_asked_once_and_only_what_is_needed_is_named(full_hub: HubStandIn) -> None:
    assert find_checkpoint(NAME) == AvailableCheckpoint(NAME, "hub", NAME, full_hub.commit(NAME), NEEDED)
    assert [asked.path for asked in full_hub.asked] == [f"/api/models/{NAME}"]
    del full_hub.repositories[NAME]["model.safetensors"]
    assert not find(NAME).safetensors
    full_hub.repositories[NAME] |= {**INDEX, PART: b"", "model.fp16.safetensors": b""}
    assert {*find(NAME).files} - {*NEEDED} == {*INDEX, PART}


def test_hub_that_never_answers_is_given_up_in_time(full_hub: HubStandIn) -> None:
    full_hub.hanging = True
    start = time.monotonic()
    assert "did not respond within 0.3 seconds" in reason_of(NAME, seconds=0.3)
    assert time.monotonic() - start < 1.5


@pytest.mark.parametrize("status", [401, 403, 404, 429, 500, 503])
def test_hub_that_refuses_is_named_with_its_status(full_hub: HubStandIn, status: int) -> None:
    full_hub.status = status
    assert f"HTTP {status}" in reason_of(NAME)
    assert len(full_hub.asked) == 1


def test_hub_without_the_model_or_its_weights_or_a_network(full_hub: HubStandIn) -> None:
    assert "has no such model" in reason_of("openai/clip-vit-bse-patch32")
    full_hub.repositories[NAME] = {"config.json": b"{}", "tf_model.h5": b""}
    assert "no weights" in reason_of(NAME)
    full_hub.status = 200  # a page, as the network of a hotel answers everything with
    assert "cannot be reached" in reason_of(NAME)
    full_hub.close()
    assert "cannot be reached" in reason_of(NAME)


def test_message_names_the_command_that_downloads_it() -> None:
    message = UnavailableCheckpoint(NAME, "the hub did not respond").message()
    assert re.search(f"`hf download {NAME}`.*weights=tiny", message)
    (command,) = importlib.metadata.entry_points(group="console_scripts", name="hf")
    assert command.module.startswith("huggingface_hub")


def test_what_was_fetched_is_found_in_the_cache_without_a_network(
    full_hub: HubStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        assert "HF_HUB_OFFLINE" in reason_of(NAME)
        assert full_hub.asked == []
    folder = fetch_checkpoint(find(NAME))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {name: REPOSITORY[name] for name in NEEDED}
    full_hub.asked.clear()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    found = find(NAME)
    assert found == AvailableCheckpoint(NAME, "cache", str(folder), full_hub.commit(NAME), NEEDED)
    assert found.local_files_only
    assert fetch_checkpoint(found) == folder
    assert full_hub.asked == []


def test_a_commit_is_found_on_the_hub_and_in_the_cache_after_a_newer_one(full_hub: HubStandIn) -> None:
    first = full_hub.commit(NAME)
    full_hub.supersede(NAME, {**REPOSITORY, "model.safetensors": b"newer"})
    newest = fetch_checkpoint(find(NAME))
    assert (newest / "model.safetensors").read_bytes() == b"newer"
    for source in ("hub", "cache"):
        found = find_checkpoint(NAME, commit=first)
        assert isinstance(found, AvailableCheckpoint)
        assert (found.source, found.revision) == (source, first)
        assert (fetch_checkpoint(found) / "model.safetensors").read_bytes() == REPOSITORY["model.safetensors"]
    assert find(NAME).reference == str(newest)  # asking for a commit moves no branch
    missing = find_checkpoint(NAME, commit="0" * 40)
    assert isinstance(missing, UnavailableCheckpoint)
    assert f"no longer has its commit {'0' * 40}" in missing.reason


@pytest.mark.parametrize("lost", ["config.json", "model.safetensors", "vocabularies"])
def test_incomplete_copy_in_the_cache_is_not_taken(full_hub: HubStandIn, lost: str) -> None:
    folder = fetch_checkpoint(find(NAME))
    for file in ("tokenizer.json", "vocab.json") if lost == "vocabularies" else (lost,):
        (folder / file).unlink()
    assert [find(NAME).source, fetch_checkpoint(find(NAME)), find(NAME).source] == ["hub", folder, "cache"]


def test_interrupted_download_is_not_taken_for_a_checkpoint(full_hub: HubStandIn) -> None:
    full_hub.cut_after, full_hub.dead_after_cut = 100_000, True
    with pytest.raises(UserError, match=f"`hf download {NAME}`"):
        fetch_checkpoint(find(NAME))
    assert find(NAME).source == "hub"
    full_hub.cut_after = None
    assert (fetch_checkpoint(find(NAME)) / "model.safetensors").read_bytes() == REPOSITORY["model.safetensors"]
    assert find(NAME).source == "cache"


@pytest.mark.slow
def test_new_process_obeys_the_environment(full_hub: HubStandIn, tmp_path: Path) -> None:
    folder = fetch_checkpoint(find(NAME))
    assert folder.is_relative_to(tmp_path / "hub")
    code = f"from vlm_core.models.checkpoints import *; print(fetch_checkpoint(find_checkpoint({NAME!r})))"
    offline = {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9"}
    done = run_python(code, tmp_path, **{**full_hub.environment(tmp_path), **offline})
    assert done.stdout.strip() == str(folder), done.stderr


@pytest.mark.parametrize("family", ["clip", "blip", "git"])
def test_model_and_tokenizer_come_back_as_they_were_saved(full_hub: HubStandIn, tmp_path: Path, family: str) -> None:
    model_class = save_tiny(family, tmp_path / "model")
    edit_weights(tmp_path / "model", lambda weights: weights.update((name, weights[name].half()) for name in weights))
    config = tmp_path / "model" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "dtype": "float16"}))
    model, tokenizer = load_pretrained(find(tmp_path / "model"), model_class, attn_implementation="eager")
    expected, words = make_tiny(family)
    assert (type(model), model.training, model.config._attn_implementation) == (model_class, False, "eager")
    weights = model.state_dict()
    for name, weight in expected.state_dict().items():
        assert weights[name].dtype == weight.dtype  # float32, though the file holds float16
        torch.testing.assert_close(weights[name], weight, rtol=1e-3, atol=1e-4)
    assert tokenizer("titan women shirt")["input_ids"] == words("titan women shirt")["input_ids"]
    assert full_hub.asked == []


@pytest.mark.slow
def test_model_comes_from_the_hub_and_then_from_the_cache(full_hub: HubStandIn, tmp_path: Path) -> None:
    model_class = save_tiny("clip", tmp_path / "saved")
    full_hub.repositories[NAME] = {path.name: path.read_bytes() for path in (tmp_path / "saved").iterdir()}
    first, _ = load_pretrained(find(NAME), model_class)
    full_hub.close()
    second, _ = load_pretrained(find(NAME), model_class)
    assert all(torch.equal(weight, second.state_dict()[name]) for name, weight in first.state_dict().items())
    second.save_pretrained(tmp_path / "again")
    assert str(tmp_path) not in (tmp_path / "again" / "config.json").read_text()
    assert first.config._name_or_path == second.config._name_or_path == NAME


def test_pytorch_file_is_read_and_never_run(tmp_path: Path) -> None:
    model_class = save_tiny("clip", folder := tmp_path / "model")
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    model, _ = load_pretrained(find(folder), model_class)
    assert torch.equal(model.state_dict()["logit_scale"], weights["logit_scale"])

    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "run",)

    torch.save({**weights, "bomb": Bomb()}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="cannot be read"):
        load_pretrained(find(folder), model_class)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_damaged_weights_are_said_with_the_way_to_renew_them(full_hub: HubStandIn, tmp_path: Path) -> None:
    model_class = save_tiny("clip", tmp_path / "saved")
    full_hub.repositories[NAME] = {path.name: path.read_bytes() for path in (tmp_path / "saved").iterdir()}
    file = fetch_checkpoint(find(NAME)) / "model.safetensors"
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    for damaged in (b"", b"no safetensors at all " * 100, file.read_bytes()[:-1000], pointer):
        file.write_bytes(damaged)
        with pytest.raises(UserError, match="cannot be read.*`hf download --force-download") as caught:
            load_pretrained(find(NAME), model_class)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [lambda weights: weights.pop("logit_scale"), lambda weights: weights.update(logit_scale=torch.zeros(3))],
    ids=["absent", "of another shape"],
)
def test_weights_that_do_not_fit_are_refused_by_name(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], change: Callable[[dict[str, torch.Tensor]], object]
) -> None:
    model_class = save_tiny("clip", tmp_path / "model")
    edit_weights(tmp_path / "model", change)
    before = reports.get_verbosity(), reports.is_progress_bar_enabled()
    records = logging.handlers.BufferingHandler(100)
    reports.add_handler(records)
    capfd.readouterr()
    with pytest.raises(UserError, match=r"1 weights are missing or of another shape, the first is logit_scale"):
        load_pretrained(find(tmp_path / "model"), model_class)
    reports.remove_handler(records)
    assert (records.buffer, capfd.readouterr()) == ([], ("", ""))  # neither the library's table nor its bar
    assert (reports.get_verbosity(), reports.is_progress_bar_enabled()) == before


def test_weights_to_spare_are_logged_and_old_buffers_are_not(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model_class = save_tiny("clip", tmp_path / "model")
    buffer = {"vision_model.embeddings.position_ids": torch.arange(17)[None]}  # in every checkpoint older than 2023
    edit_weights(tmp_path / "model", lambda weights: weights.update(buffer))
    with caplog.at_level(logging.WARNING):
        load_pretrained(find(tmp_path / "model"), model_class)
        assert caplog.text == ""
        edit_weights(tmp_path / "model", lambda weights: weights.update({"head.weight": torch.zeros(2)}))
        load_pretrained(find(tmp_path / "model"), model_class)
    assert "holds 1 weights that the model does not use, the first is head.weight" in caplog.text


def test_checkpoint_of_another_family_is_refused(tmp_path: Path) -> None:
    save_tiny("git", tmp_path / "git")
    model_class = save_tiny("blip", tmp_path / "blip")
    with pytest.raises(UserError, match="is of the family git, not blip: use model=git"):
        load_pretrained(find(tmp_path / "git"), model_class)
    for name, reason in {
        "blip_vision_model": "a part of a blip alone",
        "siglip_text_model": "family siglip_text.*one of blip",
    }.items():
        (tmp_path / "git" / "config.json").write_text(json.dumps({"model_type": name}))
        with pytest.raises(UserError, match=reason):
            load_pretrained(find(tmp_path / "git"), model_class)
    (tmp_path / "git" / "config.json").write_text('{"architectures": []}')
    with pytest.raises(UserError, match="unknown family"):
        load_pretrained(find(tmp_path / "git"), model_class)


def test_tokenizer_that_is_absent_or_broken_or_too_large_is_refused(tmp_path: Path) -> None:
    model_class = save_tiny("clip", tmp_path / "model")
    tokenizer = make_tiny("clip")[1].from_pretrained(tmp_path / "model")
    tokenizer.add_tokens(["one-more"])
    tokenizer.save_pretrained(tmp_path / "model")
    found = find(tmp_path / "model")
    with pytest.raises(UserError, match=rf"tokenizer of {len(tokenizer)} tokens for a model of {len(tokenizer) - 1}"):
        load_pretrained(found, model_class)
    (tmp_path / "model" / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        load_pretrained(found, model_class)
    (tmp_path / "model" / "tokenizer.json").unlink()
    with pytest.raises(UserError, match="holds no tokenizer"):
        load_pretrained(found, model_class)

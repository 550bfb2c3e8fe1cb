from __future__ import annotations

import importlib.metadata
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from tests.standins import HubStandIn, hub  # noqa: F401
from vlm_core.errors import UserError
from vlm_core.models.checkpoints import Found, Missing, fetch_checkpoint, find_checkpoint, load_pretrained
from vlm_core.models.tiny import build_tiny

NAME = "openai/clip-vit-base-patch32"
REPOSITORY = {
    "README.md": b"a model",
    "config.json": b'{"model_type": "clip"}',
    "tokenizer.json": b"{}",
    "vocab.json": b"{}",
    "merges.txt": b"",
    "model.safetensors": b"s" * 200_000,
    "pytorch_model.bin": b"b" * 200_000,
    "tf_model.h5": b"t",
    "onnx/config.json": b"{}",
}
NEEDED = ("config.json", "merges.txt", "model.safetensors", "tokenizer.json", "vocab.json")


@pytest.fixture
def full_hub(hub: HubStandIn) -> HubStandIn:  # noqa: F811
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


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    weights = change(safetensors.torch.load_file(folder / "model.safetensors"))
    safetensors.torch.save_file(weights, folder / "model.safetensors", {"format": "pt"})


def find(name: str | Path) -> Found:
    found = find_checkpoint(str(name))
    assert isinstance(found, Found)
    return found


# --- where it can be had from


@pytest.mark.parametrize(
    "weights",
    [
        {"model.safetensors": b""},
        {"pytorch_model.bin": b""},
        {
            "model.safetensors.index.json": b'{"weight_map": {"a": "model-00001-of-00001.safetensors"}}',
            "model-00001-of-00001.safetensors": b"",
        },
    ],
)
def test_folder_with_a_configuration_and_weights_is_found(tmp_path: Path, weights: dict[str, bytes]) -> None:
    folder = fill(tmp_path / "model", {"config.json": b'{"model_type": "clip"}', **weights})
    found = find(folder)
    assert found == Found(str(folder), "folder", str(folder), None, tuple(sorted(["config.json", *weights])))
    assert found.local_files_only
    assert found.safetensors == ("pytorch_model.bin" not in weights)


@pytest.mark.parametrize(
    ("files", "lack"),
    [
        ({"model.safetensors": b""}, "config.json"),
        ({"model.safetensors": b"", "config.json": b"{"}, "config.json"),
        ({"model.safetensors": b"", "config.json": b"[]"}, "config.json"),
        ({"config.json": b'{"model_type": "clip"}', "tf_model.h5": b""}, "weights"),
        (
            {
                "config.json": b'{"model_type": "clip"}',
                "pytorch_model.bin.index.json": b'{"weight_map": {"a": "pytorch_model-00001-of-00002.bin"}}',
            },
            "weights",
        ),
        ({"config.json": b'{"model_type": "clip"}', "model.safetensors.index.json": b"[1]"}, "weights"),
    ],
)
def test_folder_that_lacks_a_file_is_refused(tmp_path: Path, files: dict[str, bytes], lack: str) -> None:
    with pytest.raises(UserError, match=rf"holds no .*{lack}.*save_pretrained"):
        find_checkpoint(str(fill(tmp_path / "model", files)))


@pytest.mark.parametrize(
    "name", ["./nowhere", "/no/where", "~/nowhere-at-all", "a/b/c", "no\\where", "a name", "a--b", ""]
)
def test_what_is_neither_a_folder_nor_a_name_is_refused(
    full_hub: HubStandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="checkpoint="):
        find_checkpoint(name)
    assert full_hub.asked == []


def test_hub_is_asked_once_and_only_what_is_needed_is_named(full_hub: HubStandIn) -> None:
    assert find_checkpoint(NAME) == Found(NAME, "hub", NAME, full_hub.commit(NAME), NEEDED)
    assert [asked.path for asked in full_hub.asked] == [f"/api/models/{NAME}"]


def test_hub_with_parts_or_with_pytorch_files_alone(full_hub: HubStandIn) -> None:
    files = full_hub.repositories[NAME]
    del files["model.safetensors"]
    assert not find(NAME).safetensors
    parts = {f"model-0000{part}-of-00002.safetensors" for part in (1, 2)}
    files.update(dict.fromkeys([*parts, "model.safetensors.index.json", "model.fp16.safetensors"], b""))
    assert set(find(NAME).files) - set(NEEDED) == {"model.safetensors.index.json", *parts}


def test_hub_that_never_answers_is_given_up_in_time(full_hub: HubStandIn) -> None:
    full_hub.hanging = True
    start = time.monotonic()
    missing = find_checkpoint(NAME, seconds=0.3)
    assert time.monotonic() - start < 1.5
    assert isinstance(missing, Missing)
    assert "did not answer within 0.3 seconds" in missing.reason


@pytest.mark.parametrize(
    ("status", "reason"), [(404, "HTTP 404"), (403, "HTTP 403"), (500, "HTTP 500"), (429, "HTTP 429")]
)
def test_hub_that_refuses_is_named_with_its_status(full_hub: HubStandIn, status: int, reason: str) -> None:
    full_hub.status = status
    missing = find_checkpoint(NAME)
    assert isinstance(missing, Missing)
    assert reason in missing.reason
    assert len(full_hub.asked) == 1


def test_name_that_the_hub_does_not_know(full_hub: HubStandIn) -> None:
    missing = find_checkpoint("openai/clip-vit-bse-patch32")
    assert isinstance(missing, Missing)
    assert "knows no such model" in missing.reason


def test_hub_without_usable_weights(full_hub: HubStandIn) -> None:
    full_hub.repositories[NAME] = {"config.json": b"{}", "tf_model.h5": b""}
    missing = find_checkpoint(NAME)
    assert isinstance(missing, Missing)
    assert "no weights" in missing.reason


def test_no_network(full_hub: HubStandIn) -> None:
    full_hub.close()
    missing = find_checkpoint(NAME)
    assert isinstance(missing, Missing)
    assert "cannot be reached" in missing.reason


def test_answer_that_is_no_hubs(full_hub: HubStandIn) -> None:
    full_hub.status = 200  # a log-in page of a hotel's network
    missing = find_checkpoint(NAME)
    assert isinstance(missing, Missing)


def test_sentence_names_the_command_that_fetches_it() -> None:
    sentence = Missing(NAME, "the hub did not answer").sentence()
    assert f"`hf download {NAME}`" in sentence
    assert "weights=tiny" in sentence
    assert "\n" not in sentence
    commands = importlib.metadata.entry_points(group="console_scripts", name="hf")
    assert [command.dist.name for command in commands if command.dist] == ["huggingface_hub"]


def test_what_was_fetched_is_found_in_the_cache_without_a_network(full_hub: HubStandIn, tmp_path: Path) -> None:
    folder = fetch_checkpoint(find(NAME))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {name: REPOSITORY[name] for name in NEEDED}
    full_hub.asked.clear()
    found = find(NAME)
    assert found == Found(NAME, "cache", str(folder), full_hub.commit(NAME), NEEDED)
    assert found.local_files_only
    assert fetch_checkpoint(found) == folder
    assert full_hub.asked == []


def test_offline_switch_leaves_the_cache_alone(
    full_hub: HubStandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    missing = find_checkpoint(NAME)
    assert isinstance(missing, Missing)
    assert "HF_HUB_OFFLINE" in missing.reason
    assert full_hub.asked == []
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    fetch_checkpoint(find(NAME))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert find(NAME).source == "cache"


@pytest.mark.parametrize("lost", ["config.json", "model.safetensors", "vocabularies"])
def test_incomplete_copy_in_the_cache_is_not_taken(full_hub: HubStandIn, lost: str) -> None:
    folder = fetch_checkpoint(find(NAME))
    for file in ("tokenizer.json", "vocab.json") if lost == "vocabularies" else (lost,):
        (folder / file).unlink()
    assert find(NAME).source == "hub"
    assert fetch_checkpoint(find(NAME)) == folder
    assert find(NAME).source == "cache"


def test_interrupted_download_is_not_taken_for_a_checkpoint(full_hub: HubStandIn) -> None:
    full_hub.cut_after, full_hub.dead_after_cut = 100_000, True
    with pytest.raises(UserError, match=f"`hf download {NAME}`"):
        fetch_checkpoint(find(NAME))
    assert find(NAME).source == "hub"
    full_hub.cut_after = None
    assert (fetch_checkpoint(find(NAME)) / "model.safetensors").read_bytes() == REPOSITORY["model.safetensors"]
    assert find(NAME).source == "cache"


def test_new_process_obeys_the_environment(full_hub: HubStandIn, tmp_path: Path) -> None:
    code = (
        "from vlm_core.models.checkpoints import find_checkpoint, fetch_checkpoint\n"
        f"print(fetch_checkpoint(find_checkpoint({NAME!r})))"
    )
    environment = {**os.environ, **full_hub.environment(tmp_path / "home")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert Path(done.stdout.strip()).is_relative_to(tmp_path / "home" / "hub")
    environment |= {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9"}
    again = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert again.stdout == done.stdout


# --- how it becomes a model


@pytest.mark.parametrize("family", ["clip", "blip", "git"])
def test_model_and_tokenizer_come_back_as_they_were_saved(full_hub: HubStandIn, tmp_path: Path, family: str) -> None:
    model_class = save_tiny(family, tmp_path / "model")
    edit_weights(tmp_path / "model", lambda weights: {name: weight.half() for name, weight in weights.items()})
    config = tmp_path / "model" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "dtype": "float16"}))
    model, tokenizer = load_pretrained(find(tmp_path / "model"), model_class, attn_implementation="eager")
    expected, words = make_tiny(family)
    assert type(model) is model_class
    assert not model.training
    assert model.config._attn_implementation == "eager"
    weights = model.state_dict()
    for name, weight in expected.state_dict().items():
        assert weights[name].dtype == weight.dtype  # float32, though the file holds float16
        torch.testing.assert_close(weights[name], weight, rtol=1e-3, atol=1e-4)
    assert tokenizer("titan women shirt")["input_ids"] == words("titan women shirt")["input_ids"]
    assert full_hub.asked == []


def test_model_comes_from_the_hub_and_then_from_the_cache(full_hub: HubStandIn, tmp_path: Path) -> None:
    model_class = save_tiny("clip", tmp_path / "saved")
    full_hub.repositories[NAME] = {path.name: path.read_bytes() for path in (tmp_path / "saved").iterdir()}
    first, _ = load_pretrained(find(NAME), model_class)
    full_hub.close()
    second, _ = load_pretrained(find(NAME), model_class)
    for name, weight in first.state_dict().items():
        assert torch.equal(weight, second.state_dict()[name])
    second.save_pretrained(tmp_path / "again")
    assert str(tmp_path) not in (tmp_path / "again" / "config.json").read_text()
    assert first.config._name_or_path == second.config._name_or_path == NAME


def test_pytorch_file_is_read_and_never_run(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    model_class = save_tiny("clip", folder)
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


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: b"no safetensors at all " * 100,
        lambda data: data[:-1000],
        lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
    ],
    ids=["empty", "garbage", "truncated", "pointer"],
)
def test_damaged_weights_are_said(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    model_class = save_tiny("clip", tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(UserError, match="cannot be read") as caught:
        load_pretrained(find(tmp_path / "model"), model_class)
    assert "\n" not in str(caught.value)


def test_damaged_cache_names_the_command_that_renews_it(full_hub: HubStandIn, tmp_path: Path) -> None:
    model_class = save_tiny("clip", tmp_path / "saved")
    full_hub.repositories[NAME] = {path.name: path.read_bytes() for path in (tmp_path / "saved").iterdir()}
    (fetch_checkpoint(find(NAME)) / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=f"`hf download --force-download {NAME}`"):
        load_pretrained(find(NAME), model_class)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda weights: {name: weight for name, weight in weights.items() if name != "logit_scale"}, "logit_scale"),
        (lambda weights: {**weights, "logit_scale": torch.zeros(3)}, "logit_scale"),
    ],
    ids=["absent", "of another shape"],
)
def test_weights_that_do_not_fit_are_refused_by_name(
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]],
    named: str,
) -> None:
    model_class = save_tiny("clip", tmp_path / "model")
    edit_weights(tmp_path / "model", change)
    capfd.readouterr()
    with pytest.raises(UserError, match=rf"1 weights are absent or of another shape, the first is {named}"):
        load_pretrained(find(tmp_path / "model"), model_class)
    assert capfd.readouterr() == ("", "")  # one sentence, not the library's table


def test_weights_to_spare_are_logged_and_old_buffers_are_not(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model_class = save_tiny("clip", tmp_path / "model")
    buffer = {"vision_model.embeddings.position_ids": torch.arange(17)[None]}  # in every checkpoint older than 2023
    edit_weights(tmp_path / "model", lambda weights: {**weights, **buffer})
    with caplog.at_level(logging.WARNING):
        load_pretrained(find(tmp_path / "model"), model_class)
        assert caplog.text == ""
        edit_weights(tmp_path / "model", lambda weights: {**weights, "head.weight": torch.zeros(2)})
        load_pretrained(find(tmp_path / "model"), model_class)
    assert "holds 1 weights that the model has no place for, the first is head.weight" in caplog.text


def test_checkpoint_of_another_family_is_refused(tmp_path: Path) -> None:
    save_tiny("git", tmp_path / "git")
    model_class = save_tiny("blip", tmp_path / "blip")
    with pytest.raises(UserError, match=r"is of the family git, and the model needs one of blip"):
        load_pretrained(find(tmp_path / "git"), model_class)
    config = tmp_path / "git" / "config.json"
    config.write_text(json.dumps({"architectures": []}))
    with pytest.raises(UserError, match="does not name"):
        load_pretrained(find(tmp_path / "git"), model_class)


def test_missing_tokenizer_is_not_made_up(tmp_path: Path) -> None:
    model_class = save_tiny("clip", tmp_path / "model")
    (tmp_path / "model" / "tokenizer.json").unlink()
    with pytest.raises(UserError, match="holds no tokenizer"):
        load_pretrained(find(tmp_path / "model"), model_class)


def test_tokenizer_with_more_tokens_than_the_model_is_refused(tmp_path: Path) -> None:
    model_class = save_tiny("clip", tmp_path / "model")
    _, tokenizer = make_tiny("clip")
    tokenizer = type(tokenizer).from_pretrained(tmp_path / "model")
    tokenizer.add_tokens(["one-more"])
    tokenizer.save_pretrained(tmp_path / "model")
    with pytest.raises(UserError, match=r"tokenizer of (\d+) tokens for a model of (\d+)"):
        load_pretrained(find(tmp_path / "model"), model_class)


def test_unreadable_tokenizer_is_said(tmp_path: Path) -> None:
    model_class = save_tiny("clip", tmp_path / "model")
    (tmp_path / "model" / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        load_pretrained(find(tmp_path / "model"), model_class)


def test_loading_prints_nothing_and_leaves_the_librarys_settings(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from transformers.utils import logging as reports

    before = reports.get_verbosity(), reports.is_progress_bar_enabled()
    model_class = save_tiny("clip", tmp_path / "model")
    capfd.readouterr()
    load_pretrained(find(tmp_path / "model"), model_class)
    assert capfd.readouterr() == ("", "")
    assert (reports.get_verbosity(), reports.is_progress_bar_enabled()) == before

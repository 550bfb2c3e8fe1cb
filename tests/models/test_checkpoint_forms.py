"""Checkpoints in the forms that people have: loaded where that is safe, else a sentence that names the way out."""

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from transformers import BlipForImageTextRetrieval

from tests.messages import collected_messages
from tests.models.families import WITH_LANGUAGE, make_tiny
from vlm_core.errors import UserError
from vlm_core.models.checkpoint_forms import best_checkpoint, common_prefix
from vlm_core.models.checkpoints import AvailableCheckpoint, find_checkpoint
from vlm_core.models.pretrained import load_pretrained

WEIGHTS = "model.safetensors"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0000\nsize 605247071\n"


def _save(folder: Path, family: str = "clip", hf: Any = None) -> Path:
    model, tokenizer = make_tiny(family)
    (hf or model).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _rename(folder: Path, rename: Callable[[str], str]) -> Path:
    weights = safetensors.torch.load_file(folder / WEIGHTS)
    renamed = {rename(name): weight for name, weight in weights.items()}
    safetensors.torch.save_file(renamed, folder / WEIGHTS, {"format": "pt"})
    return folder


def _load(folder: Path, family: str = "clip") -> Any:
    found = find_checkpoint(str(folder))
    assert isinstance(found, AvailableCheckpoint)
    return load_pretrained(found, type(make_tiny(family)[0]))[0]


def _refusal(folder: Path, family: str = "clip") -> str:
    with pytest.raises(UserError) as caught:
        _load(folder, family)
    return str(caught.value)


def _same(model: Any, other: Any) -> bool:
    weights = other.state_dict()
    return all(torch.equal(weight, weights[name]) for name, weight in model.state_dict().items())


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "clip_model.", "model.", "module._orig_mod."])
def test_names_behind_a_prefix_are_read_without_it(tmp_path: Path, prefix: str) -> None:
    folder = _rename(_save(tmp_path), lambda name: prefix + name)
    with collected_messages() as lines:
        assert _same(_load(folder), make_tiny("clip")[0])
    assert any(f"a wrapper, as {prefix}" in line and "read without it" in line for line in lines)


@pytest.mark.parametrize("family", ["blip", "git"])
def test_so_are_those_of_the_other_families(tmp_path: Path, family: str) -> None:
    folder = _rename(_save(tmp_path, family), lambda name: f"module.{name}")
    assert _same(_load(folder, family), make_tiny(family)[0])


def test_so_are_wrappers_within_the_names(tmp_path: Path) -> None:
    folder = _rename(_save(tmp_path), lambda name: name.replace("vision_model.", "vision_model._fsdp_wrapped_module."))
    assert _same(_load(folder), make_tiny("clip")[0])


def test_a_prefix_is_one_that_most_missing_names_stand_behind() -> None:
    assert common_prefix({"a.x", "a.y.z", "b"}, {"x", "y.z"}) == "a."
    assert common_prefix({"a.b.x", "a.b.y.z"}, {"x", "y.z", "shared"}) == "a.b."
    assert common_prefix({"x", "y.z"}, {"x", "y.z"}) == ""
    assert common_prefix({"a.x", "b.y.z"}, {"x", "y.z"}) is None
    assert common_prefix({"a.x"}, set()) is None


def test_what_was_in_a_wrapper_is_saved_without_it(tmp_path: Path) -> None:
    folder = _rename(_save(tmp_path / "wrapped"), lambda name: f"module.{name}")
    _load(folder).save_pretrained(tmp_path / "again")
    make_tiny("clip")[1].save_pretrained(tmp_path / "again")
    with collected_messages() as lines:
        assert _same(_load(tmp_path / "again"), make_tiny("clip")[0])
    assert lines == []


def test_a_number_in_a_vector_is_a_number(tmp_path: Path) -> None:
    weights = safetensors.torch.load_file(_save(tmp_path) / WEIGHTS)
    weights["logit_scale"] = weights["logit_scale"].reshape(1)
    safetensors.torch.save_file(weights, tmp_path / WEIGHTS, {"format": "pt"})
    assert _same(_load(tmp_path), make_tiny("clip")[0])


def test_weights_of_a_variant_are_read(tmp_path: Path) -> None:
    (_save(tmp_path) / WEIGHTS).rename(tmp_path / "model.fp16.safetensors")
    assert _same(_load(tmp_path), make_tiny("clip")[0])


def test_the_one_checkpoint_of_a_trainer_is_used(tmp_path: Path) -> None:
    _save(tmp_path / "output" / "checkpoint-500")
    with collected_messages() as lines:
        assert _same(_load(tmp_path / "output"), make_tiny("clip")[0])
    assert any("checkpoint-500, which is used" in line for line in lines)


def test_of_several_the_newest_or_the_best_is_named(tmp_path: Path) -> None:
    for number in (500, 1000):
        (tmp_path / f"checkpoint-{number}").mkdir()
    assert f"the newest, checkpoint={tmp_path}/checkpoint-1000" in _refusal(tmp_path)
    state = {"best_model_checkpoint": "/elsewhere/output/checkpoint-500"}
    (tmp_path / "checkpoint-1000" / "trainer_state.json").write_text(json.dumps(state))
    assert f"the best, checkpoint={tmp_path}/checkpoint-500" in _refusal(tmp_path)
    assert best_checkpoint([]) == ""


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"epoch_10.pt": ""}, r"state dict \(epoch_10.pt\).*save_pretrained"),
        ({"pytorch_model.bin": ""}, "no readable config.json"),
        ({"config.json": '{"model_type": "clip"}', "tf_model.h5": ""}, r"weights of TensorFlow \(tf_model.h5\)"),
        ({"config.json": '{"model_type": "clip"}', "flax_model.msgpack": ""}, "weights of Flax"),
        ({"open_clip_config.json": "{}", "open_clip_model.safetensors": ""}, "a model of open_clip"),
        ({"config.json": '{"open_clip_model_name": "a/b"}', WEIGHTS: ""}, "a model of open_clip"),
        ({"0_CLIP/config.json": "{}"}, "name checkpoint=.*0_CLIP"),
        ({"adapter_config.json": "{}", "adapter_model.bin": ""}, "an adapter whose weights are not"),
        ({"config.json": '{"model_type": "clip"}', WEIGHTS: POINTER}, f"Git LFS's pointer to {WEIGHTS}.*git lfs pull"),
        ({"tokenizer.json": POINTER}, "Git LFS's pointer to tokenizer.json"),
    ],
)
def test_another_form_is_named_with_the_way_out(tmp_path: Path, files: dict[str, str], said: str) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert re.search(said, _refusal(tmp_path))


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    assert f"name its folder, checkpoint={tmp_path}" in _refusal(_save(tmp_path) / WEIGHTS)
    (tmp_path / "config.json").unlink()
    assert "is a state dict" in _refusal(tmp_path / WEIGHTS)


def test_another_class_of_the_family_is_named(tmp_path: Path) -> None:
    _save(tmp_path, "blip", BlipForImageTextRetrieval(make_tiny("blip")[0].config))
    said = _refusal(tmp_path, "blip")
    assert "BlipForImageTextRetrieval" in said and "saving it again does not help" in said


@pytest.mark.parametrize(("family", "other"), [("clip", "blip"), ("blip", "git"), ("git", "clip")])
def test_a_checkpoint_of_another_family_names_its_model(tmp_path: Path, family: str, other: str) -> None:
    assert f"family {other}, not {family}: use model={other}" in _refusal(_save(tmp_path, other), family)


def test_weights_that_are_no_numbers_are_named(tmp_path: Path) -> None:
    name = "vision_model.encoder.layers.0.mlp.fc1.weight"
    weights = safetensors.torch.load_file(_save(tmp_path) / WEIGHTS)
    safetensors.torch.save_file({**weights, name: weights[name] * torch.nan}, tmp_path / WEIGHTS, {"format": "pt"})
    assert f"NaN or infinity in {name}" in _refusal(tmp_path)


def _adapter(folder: Path, family: str, base: Path | str, **settings: Any) -> Any:
    """Save an adapter with random weights, and return the model with the adapter in it."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    hf = copy.deepcopy(make_tiny(family)[0])
    targets = ["query", "value"] if family == "git" else ["qkv", "query"] if family == "blip" else ["q_proj", "v_proj"]
    model: Any = get_peft_model(hf, LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": targets, **settings}))
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    model.peft_config["default"].base_model_name_or_path = str(base)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("family", WITH_LANGUAGE)
def test_an_adapter_is_merged_into_its_model(tmp_path: Path, family: str) -> None:
    base = _save(tmp_path / "base", family)
    expected = _adapter(tmp_path / "adapter", family, base).merge_and_unload().eval()
    loaded = _load(tmp_path / "adapter", family)
    assert type(loaded) is type(expected) and not loaded.training
    assert not any("lora" in name for name, _ in loaded.named_parameters())
    assert all(weight.requires_grad for weight in loaded.parameters())
    weights = loaded.state_dict()
    for name, weight in expected.state_dict().items():
        torch.testing.assert_close(weights[name], weight)
    assert not _same(loaded, make_tiny(family)[0])


def test_so_are_its_rarer_kinds(tmp_path: Path) -> None:
    base = _save(tmp_path / "base")
    settings = {"use_rslora": True, "rank_pattern": {"v_proj": 2}, "modules_to_save": ["visual_projection"]}
    expected = _adapter(tmp_path / "adapter", "clip", base, **settings).merge_and_unload().state_dict()
    for name, weight in _load(tmp_path / "adapter").state_dict().items():
        torch.testing.assert_close(weight, expected[name])


def test_an_adapter_without_its_model_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    _adapter(folder, "clip", "openai/clip-vit-base-patch32")
    said = _refusal(folder)
    assert "is an adapter (LORA) of openai/clip-vit-base-patch32, which is not available" in said
    assert "merge_and_unload" in said
    _adapter(tmp_path / "other", "clip", folder)
    path = folder / "adapter_config.json"
    settings = json.loads(path.read_text())
    for change, reason in [
        ({"base_model_name_or_path": str(tmp_path / "gone")}, "which cannot be used: .*is not a folder"),
        ({"base_model_name_or_path": str(folder)}, "write the model's name"),
        ({"base_model_name_or_path": None}, "an unnamed model: write"),
        ({"base_model_name_or_path": str(tmp_path / "other")}, "other is an adapter itself"),
        ({"peft_type": "IA3"}, "only LORA is merged"),
    ]:
        path.write_text(json.dumps({**settings, **change}))
        assert re.search(reason, _refusal(folder))


def test_an_adapter_of_another_model_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    _adapter(folder, "clip", _save(tmp_path / "base"))
    path = folder / "adapter_model.safetensors"
    weights = safetensors.torch.load_file(path)
    name = min(weights)
    safetensors.torch.save_file({**weights, name.replace("layers.0", "layers.99"): weights[name].clone()}, path)
    assert "layers.99" in _refusal(folder)
    safetensors.torch.save_file({key: weight for key, weight in weights.items() if key != name}, path)
    assert "the adapter is of another model" in _refusal(folder)
    safetensors.torch.save_file({**weights, name: weights[name] * torch.nan}, path)
    assert "NaN or infinity in" in _refusal(folder)
    settings = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**settings, "r": 10**9}))
    assert "its rank is not between" in _refusal(folder)

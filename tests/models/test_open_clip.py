"""CLIP as open_clip saves it: read to the same model, or refused by name."""

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from tests.models.families import make_tiny
from vlm_core.errors import UserError
from vlm_core.models import open_clip_siglip
from vlm_core.models.checkpoints import AvailableCheckpoint, find_checkpoint
from vlm_core.models.preprocessing import read_preprocessing
from vlm_core.models.pretrained import load_pretrained

NAMES = {
    "embeddings.class_embedding": "class_embedding",
    "embeddings.position_embedding.weight": "positional_embedding",
    "embeddings.patch_embedding.weight": "conv1.weight",
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "pre_layrnorm": "ln_pre",
    "post_layernorm": "ln_post",
    "final_layer_norm": "ln_final",
    "encoder.layers": "transformer.resblocks",
    "layer_norm": "ln_",
    "self_attn": "attn",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}


def _as_open_clip(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights of a CLIPModel as open_clip's own classes name and shape them."""
    renamed: dict[str, torch.Tensor] = {}
    for name, weight in weights.items():
        for ours, theirs in NAMES.items():
            name = name.replace(ours, theirs)
        name = name.replace("vision_model.", "visual.").removeprefix("text_model.")
        if name in ("visual_projection.weight", "text_projection.weight"):
            name, weight = {"v": "visual.proj", "t": "text_projection"}[name[0]], weight.T
        for part in "kv":
            if f"attn.{part}_proj" in name:
                break
        else:
            if "attn.q_proj" in name:
                kind = name.rsplit(".", 1)[1]
                query = f"{name.rsplit('.', 2)[0].replace('transformer.resblocks', 'encoder.layers')}"
                place = query.replace("visual.", "vision_model.").replace("attn", "self_attn")
                place = place if place.startswith("vision_model.") else f"text_model.{place}"
                weight = torch.cat([weights[f"{place}.{part}_proj.{kind}"] for part in "qkv"])
                name = name.replace(f"q_proj.{kind}", f"in_proj_{kind}")
            renamed[name] = weight.contiguous()
    return renamed


def _save(folder: Path, **changes: Any) -> Any:
    hf, tokenizer = make_tiny("clip")
    vision, text = hf.config.vision_config, hf.config.text_config
    model = {
        "embed_dim": hf.config.projection_dim,
        "vision_cfg": {
            "image_size": vision.image_size,
            "layers": vision.num_hidden_layers,
            "width": vision.hidden_size,
            "patch_size": vision.patch_size,
            "head_width": vision.hidden_size // vision.num_attention_heads,
        },
        "text_cfg": {
            "context_length": text.max_position_embeddings,
            "vocab_size": text.vocab_size,
            "width": text.hidden_size,
            "heads": text.num_attention_heads,
            "layers": text.num_hidden_layers,
        },
    }
    stated = {"mean": [0.5, 0.5, 0.5], "std": [0.4, 0.4, 0.4], "interpolation": "bilinear", "resize_mode": "squash"}
    content = {"model_cfg": {**model, **changes}, "preprocess_cfg": stated}
    tokenizer.save_pretrained(folder)
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    weights = _as_open_clip({name: weight.clone() for name, weight in hf.state_dict().items()})
    safetensors.torch.save_file(weights, folder / "open_clip_model.safetensors")
    return hf


def _load(folder: Path, family: str = "clip") -> Any:
    found = find_checkpoint(str(folder))
    assert isinstance(found, AvailableCheckpoint)
    return load_pretrained(found, type(make_tiny(family)[0]))[0]


def test_it_is_the_same_model(tmp_path: Path) -> None:
    expected, loaded = _save(tmp_path), _load(tmp_path)
    weights = loaded.state_dict()
    assert all(torch.equal(weights[name], weight) for name, weight in expected.state_dict().items())
    end = expected.config.text_config.vocab_size - 1
    expected.text_model.eos_token_id = end
    pixels, ids = torch.rand(2, 3, 64, 64), torch.tensor([[0, 5, 6, end, 7]])
    with torch.no_grad():
        ours, theirs = (model(pixel_values=pixels, input_ids=ids).logits_per_image for model in (loaded, expected))
    torch.testing.assert_close(ours, theirs)


def test_its_preprocessing_is_its_own(tmp_path: Path) -> None:
    _save(tmp_path)
    stated = read_preprocessing(tmp_path)
    assert stated is not None
    assert (stated[0].mean, stated[0].std, stated[0].interpolation) == ((0.5,) * 3, (0.4,) * 3, "bilinear")


def test_its_activation_is_what_it_states(tmp_path: Path) -> None:
    _save(tmp_path)
    assert _load(tmp_path).config.vision_config.hidden_act == "gelu"
    _save(tmp_path, quick_gelu=True)
    assert _load(tmp_path).config.text_config.hidden_act == "quick_gelu"


@pytest.mark.parametrize(
    "changes",
    [{"custom_text": True}, {"vision_cfg": {"timm_model_name": "vit"}}, {"text_cfg": {"hf_model_name": "bert"}}],
)
def test_what_clip_model_cannot_be_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    _save(tmp_path, **changes)
    with pytest.raises(UserError, match="a model of open_clip that is not read here"):
        _load(tmp_path)


def test_another_family_names_the_model(tmp_path: Path) -> None:
    _save(tmp_path)
    with pytest.raises(UserError, match="family clip, not blip: use model=clip"):
        _load(tmp_path, "blip")


def test_weights_that_are_not_its_own_are_refused(tmp_path: Path) -> None:
    _save(tmp_path)
    safetensors.torch.save_file({"visual.proj": torch.zeros(4, 4)}, tmp_path / "open_clip_model.safetensors")
    with pytest.raises(UserError, match="does not fit the model"):
        _load(tmp_path)


def _as_timm(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights of a SiglipModel as open_clip's text tower and timm's vision tower name and shape them."""
    saved: dict[str, torch.Tensor] = {}
    for tower, place, joint in (
        ("vision_model", "visual.trunk.blocks", "qkv."),
        ("text_model", "text.transformer.resblocks", "in_proj_"),
    ):
        layers = {name for name in weights if name.startswith(f"{tower}.encoder.layers.")}
        renames = (
            {"layer_norm": "norm", "self_attn.out_proj": "attn.proj"}
            if tower == "vision_model"
            else {"layer_norm": "ln_", "self_attn": "attn", "fc1": "c_fc", "fc2": "c_proj"}
        )
        for name in layers:
            number, layer = name.removeprefix(f"{tower}.encoder.layers.").split(".", 1)
            if "q_proj" in layer:
                kind = layer.rsplit(".", 1)[1]
                thirds = [weights[name.replace("q_proj", f"{part}_proj")] for part in "qkv"]
                saved[f"{place}.{number}.attn.{joint}{kind}"] = torch.cat(thirds)
            elif "k_proj" not in layer and "v_proj" not in layer:
                for ours, theirs in renames.items():
                    layer = layer.replace(ours, theirs)
                saved[f"{place}.{number}.{layer}"] = weights[name]
    vision, text = "vision_model.", "text_model."
    for kind in ("weight", "bias"):
        q, k, v = weights[f"{vision}head.attention.in_proj_{kind}"].chunk(3)
        saved[f"visual.trunk.attn_pool.q.{kind}"] = q
        saved[f"visual.trunk.attn_pool.kv.{kind}"] = torch.cat([k, v])
        for ours, theirs in {
            f"{vision}head.attention.out_proj": "visual.trunk.attn_pool.proj",
            f"{vision}head.layernorm": "visual.trunk.attn_pool.norm",
            f"{vision}head.mlp.fc1": "visual.trunk.attn_pool.mlp.fc1",
            f"{vision}head.mlp.fc2": "visual.trunk.attn_pool.mlp.fc2",
            f"{vision}embeddings.patch_embedding": "visual.trunk.patch_embed.proj",
            f"{vision}post_layernorm": "visual.trunk.norm",
            f"{text}final_layer_norm": "text.ln_final",
            f"{text}head": "text.text_projection",
        }.items():
            saved[f"{theirs}.{kind}"] = weights[f"{ours}.{kind}"]
    saved["visual.trunk.pos_embed"] = weights[f"{vision}embeddings.position_embedding.weight"][None]
    saved["visual.trunk.attn_pool.latent"] = weights[f"{vision}head.probe"]
    saved["text.token_embedding.weight"] = weights[f"{text}embeddings.token_embedding.weight"]
    saved["text.positional_embedding"] = weights[f"{text}embeddings.position_embedding.weight"]
    saved |= {name: weights[name].squeeze() for name in ("logit_scale", "logit_bias")}
    return {name: weight.clone() for name, weight in saved.items()}


def _save_siglip(folder: Path, monkeypatch: pytest.MonkeyPatch, **text: Any) -> Any:
    hf, tokenizer = make_tiny("siglip")
    vision, words = hf.config.vision_config, hf.config.text_config
    small = (vision.hidden_size, vision.num_hidden_layers, vision.num_attention_heads, vision.intermediate_size, "gelu")
    monkeypatch.setitem(open_clip_siglip._SIZES, "base", small)
    model = {
        "embed_dim": vision.hidden_size,
        "init_logit_bias": -10,
        "custom_text": True,
        "vision_cfg": {
            "image_size": vision.image_size,
            "timm_model_name": f"vit_base_patch{vision.patch_size}_siglip_224",
            "timm_model_pretrained": False,
            "timm_pool": "map",
            "timm_proj": "none",
        },
        "text_cfg": {
            "context_length": words.max_position_embeddings,
            "vocab_size": words.vocab_size,
            "hf_tokenizer_name": "timm/ViT-B-16-SigLIP",
            "width": words.hidden_size,
            "heads": words.num_attention_heads,
            "layers": words.num_hidden_layers,
            "no_causal_mask": True,
            "proj_bias": True,
            "pool_type": "last",
            "norm_kwargs": {"eps": 1e-6},
            **text,
        },
    }
    stated = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash"}
    tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text('{"architectures": ["MarqoFashionSigLIP"], "open_clip_model_name": "x"}')
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model, "preprocess_cfg": stated}))
    safetensors.torch.save_file(_as_timm(hf.state_dict()), folder / "open_clip_model.safetensors")
    return hf


def test_siglip_on_timms_tower_is_the_same_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = _save_siglip(tmp_path, monkeypatch)
    loaded = _load(tmp_path, "siglip")
    weights = loaded.state_dict()
    assert weights.keys() == expected.state_dict().keys()
    assert all(torch.equal(weights[name], weight) for name, weight in expected.state_dict().items())
    pixels, ids = torch.rand(2, 3, 64, 64), torch.randint(0, 50, (2, 40))
    with torch.no_grad():
        ours, theirs = (model(pixel_values=pixels, input_ids=ids).logits_per_image for model in (loaded, expected))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    with pytest.raises(UserError, match="is of the family siglip, not clip: use model=siglip"):
        _load(tmp_path, "clip")


@pytest.mark.parametrize("text", [{"pool_type": "argmax"}, {"hf_model_name": "bert"}, {"no_causal_mask": False}])
def test_another_text_tower_beside_it_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: dict[str, Any]
) -> None:
    _save_siglip(tmp_path, monkeypatch, **text)
    with pytest.raises(UserError, match="open_clip"):
        find_checkpoint(str(tmp_path))

"""One suite over every family and head: what the rest of the platform relies on."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.models.families import CATEGORIES, FAMILIES, WITH_LANGUAGE, make_adapter, make_categoriser, make_tower
from vlm_core.errors import UserError
from vlm_core.models.categoriser import ADAPTERS
from vlm_core.models.checksums import CHECKSUMS
from vlm_core.models.saved import load_categoriser
from vlm_core.models.stages import run_stages
from vlm_core.models.vision import TOWERS, Vision

KINDS = [
    *((family, "linear", readout) for family in FAMILIES for readout in ("fused", "vision")),
    ("clip", "prompts", "fused"),
    ("siglip", "prompts", "fused"),
    ("blip", "sentences", "fused"),
    ("git", "sentences", "fused"),
]
PICTURES = np.random.default_rng(3).integers(0, 256, (5, 80, 60, 3), dtype=np.uint8)


@pytest.mark.parametrize(("family", "head", "readout"), KINDS)
def test_rows_are_log_probabilities(family, head, readout):
    rows = make_categoriser(family, head, readout).log_probabilities(PICTURES)
    assert rows.shape == (5, 3) and rows.dtype == np.float32
    np.testing.assert_allclose(np.exp(rows).sum(axis=1), 1, atol=1e-5)


@pytest.mark.parametrize(("family", "head", "readout"), KINDS)
def test_permuting_a_batch_permutes_the_result(family, head, readout):
    model = make_categoriser(family, head, readout)
    order = [4, 2, 0, 1, 3]
    np.testing.assert_allclose(
        model.log_probabilities(PICTURES[order]), model.log_probabilities(PICTURES)[order], atol=1e-5
    )


@pytest.mark.slow
@pytest.mark.parametrize(("family", "head", "readout"), KINDS)
def test_saved_and_loaded_is_identical(family, head, readout, tmp_path):
    model = make_categoriser(family, head, readout)
    model.save(tmp_path)
    loaded = load_categoriser(tmp_path)
    assert loaded.categories == CATEGORIES and loaded.canvas == (80, 60)
    np.testing.assert_array_equal(loaded.log_probabilities(PICTURES), model.log_probabilities(PICTURES))
    assert loaded.describe(PICTURES) is None or loaded.describe(PICTURES)[0] == model.describe(PICTURES)[0]
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} <= {
        ".json",
        ".safetensors",
        ".jinja",
        ".txt",
    }


@pytest.mark.parametrize(("head", "readout"), [("linear", "vision"), ("sentences", "tokens")])
def test_a_description_of_an_earlier_version_is_read(head, readout, tmp_path):
    model = make_categoriser("git", head, readout)
    model.save(tmp_path)
    path = tmp_path / "categoriser.json"
    content = json.loads(path.read_text())
    assert content.pop("head") == head
    path.write_text(json.dumps({**content, "answer": "head" if head == "linear" else head}))
    loaded = load_categoriser(tmp_path)
    assert loaded.description == model.description
    np.testing.assert_array_equal(loaded.log_probabilities(PICTURES), model.log_probabilities(PICTURES))


@pytest.mark.parametrize("file", ["model/model.safetensors", "head.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "shape"])
def test_weights_that_do_not_fit_are_refused(file, damage, tmp_path):
    model = make_categoriser("clip")
    model.save(tmp_path)
    weights = load_file(tmp_path / file)
    name = next(name for name in sorted(weights) if name.endswith("bias"))
    del weights[name]
    save_file(weights | ({name: torch.zeros(1)} if damage == "shape" else {}), tmp_path / file, {"format": "pt"})
    (tmp_path / CHECKSUMS).unlink(missing_ok=True)
    with pytest.raises(UserError, match=f"1 weights are missing or of another shape, the first is {name}"):
        load_categoriser(tmp_path)


@pytest.mark.parametrize("family", FAMILIES)
def test_saved_weights_load_with_transformers_alone(family, tmp_path):
    import transformers
    from transformers import AutoConfig, AutoTokenizer

    model = make_categoriser(family)
    model.save(tmp_path)
    hf_class = getattr(transformers, ADAPTERS[family].hf_class)
    theirs, info = hf_class.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    kind = AutoConfig.from_pretrained(tmp_path / "model").model_type
    assert kind == family if family in WITH_LANGUAGE else kind in TOWERS
    if family in WITH_LANGUAGE:
        assert (
            AutoTokenizer.from_pretrained(tmp_path / "model")("blue shirt")["input_ids"]
            == model.adapter.tokenizer("blue shirt")["input_ids"]
        )
    for name, weight in theirs.state_dict().items():
        torch.testing.assert_close(weight, model.hf.state_dict()[name], rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "head", "readout"), [kind for kind in KINDS if kind[1] != "prompts"])
def test_only_what_follows_the_cut_moves_and_the_loss_falls(family, head, readout):
    model = make_categoriser(family, head, readout, width=128)
    cut = 3
    weights = model.freeze_before(cut)
    before = {name: tensor.clone() for name, tensor in model.hf.state_dict().items()}
    optimiser = torch.optim.AdamW(weights.values(), lr=3e-3)
    pixels, labels = torch.randn(6, 3, 64, 64), torch.tensor([0, 1, 2, 0, 1, 2])
    model.set_training(False, cut)
    losses = []
    for _ in range(12):
        loss, _ = model.head.loss(model.run((pixels,)), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]
    frozen = {id(weight) for stage in model.stages[:cut] for module in stage.modules for weight in module.parameters()}
    for name, weight in model.hf.named_parameters():
        if id(weight) in frozen:
            torch.testing.assert_close(weight.detach(), before[name], rtol=0, atol=0)
    assert all(not torch.equal(weight.detach(), before[name]) for name, weight in weights.items() if name in before)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("readout", ["fused", "vision"])
def test_a_chain_cut_anywhere_gives_the_same_end(family, readout):
    stages = make_adapter(family).stages(readout)
    pixels = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        whole = run_stages(stages, (pixels,))[0]
        for cut in range(len(stages) + 1):
            torch.testing.assert_close(run_stages(stages[cut:], run_stages(stages[:cut], (pixels,)))[0], whole)


@pytest.mark.parametrize("family", FAMILIES)
def test_tiny_models_hold_at_most_four_million_weights_and_share_the_vision_shape(family):
    hf = make_adapter(family, width=128).hf
    assert 8e5 < sum(weight.numel() for weight in hf.parameters()) < 4e6
    vision = getattr(hf.config, "vision_config", hf.config)
    assert (vision.hidden_size, vision.num_hidden_layers, vision.patch_size, vision.image_size) == (128, 4, 8, 64)


@pytest.mark.parametrize("kind", TOWERS)
def test_every_tower_is_cut_anywhere_and_an_image_stands_alone_in_training(kind):
    model = make_categoriser("vision")
    model.hf = make_tower(kind)
    model.adapter = Vision(model.hf)
    model.stages = model.adapter.stages("fused")
    pixels = torch.randn(2, 3, 64, 64)
    model.set_training(True, 0)
    for layer in model.hf.modules():  # dropout is random, and of no batch
        if isinstance(layer, torch.nn.Dropout) or "DropPath" in type(layer).__name__:
            layer.eval()
    with torch.inference_mode():
        whole = model.run((pixels,))[0]
        for cut in range(len(model.stages) + 1):
            torch.testing.assert_close(model.run(model.run((pixels,), 0, cut), cut)[0], whole)
        torch.testing.assert_close(model.run((pixels[:1],))[0], whole[:1], atol=1e-5, rtol=1e-5)
    assert 0 < model.cut("last-blocks", 1) < len(model.stages)


def test_adapters_need_attention():
    model = make_categoriser("vision")
    model.hf = make_tower("resnet")
    model.adapter = Vision(model.hf)
    model.stages = model.adapter.stages("fused")
    with pytest.raises(UserError, match="mode=lora adapts attention"):
        model.add_adapters(0, 2)

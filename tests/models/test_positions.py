"""Another input size gives what Hugging Face's own interpolation gives."""

import pytest
import torch

from tests.models.families import FAMILIES, WITH_LANGUAGE, make_adapter, make_categoriser, make_tower
from vlm_core.errors import UserError
from vlm_core.models.positions import input_size, resize_input
from vlm_core.models.saved import load_categoriser
from vlm_core.models.stages import run_stages
from vlm_core.models.vision import TOWERS, Vision

PIXELS = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(1))


def _vision(adapter):
    hf = adapter.hf
    return hf.git.image_encoder if adapter.family == "git" else hf.vision_model


@pytest.mark.parametrize("family", WITH_LANGUAGE)
def test_resized_positions_are_hugging_faces_interpolated_ones(family):
    adapter = make_adapter(family, width=128)
    theirs = _vision(adapter)(PIXELS, interpolate_pos_encoding=True).last_hidden_state
    resize_input(adapter.hf, 96)
    torch.testing.assert_close(_vision(adapter)(PIXELS).last_hidden_state, theirs, atol=1e-5, rtol=1e-5)
    assert run_stages(adapter.stages("fused"), (PIXELS,))[0].shape == (2, 128)


@pytest.mark.parametrize("kind", TOWERS)
def test_a_resized_tower_is_hugging_faces_at_that_size(kind):
    hf = make_tower(kind)
    wanted = {"interpolate_pos_encoding": True} if kind == "vit" else {}  # the others do so by themselves
    theirs = hf(PIXELS, **wanted).last_hidden_state
    resize_input(hf, 96)
    assert input_size(hf) == hf.config.to_dict()["image_size"] == 96
    torch.testing.assert_close(hf(PIXELS).last_hidden_state, theirs, atol=1e-5, rtol=1e-5)
    assert run_stages(Vision(hf).stages("fused"), (PIXELS,))[0].shape == (2, Vision(hf).width("fused"))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_resized_model_saves_and_loads(family, tmp_path):
    model = make_categoriser(family)
    resize_input(model.hf, 96)
    model.save(tmp_path)
    loaded = load_categoriser(tmp_path)
    assert loaded.image_size == 96
    torch.testing.assert_close(loaded.run((PIXELS,))[0], model.run((PIXELS,))[0])


def test_generation_works_at_another_size():
    adapter = make_adapter("git")
    resize_input(adapter.hf, 96)
    ids = torch.tensor([adapter.prompt_ids()] * 2)
    assert adapter.hf.generate(pixel_values=PIXELS, input_ids=ids, max_new_tokens=4).shape[1] > ids.shape[1]


def test_a_size_that_cuts_a_patch_is_refused():
    with pytest.raises(UserError, match="image_size=70"):
        resize_input(make_adapter("clip").hf, 70)


def test_a_convolutional_network_takes_any_size_that_is_not_too_small():
    hf = make_tower("convnext")
    resize_input(hf, 70)
    assert run_stages(Vision(hf).stages("fused"), (torch.zeros(1, 3, 70, 70),))[0].shape == (1, 16)
    with pytest.raises(UserError, match="image_size=24 is too small"):
        resize_input(hf, 24)

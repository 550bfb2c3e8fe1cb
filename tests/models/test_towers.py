"""A vision tower taken over from CLIP: the same function in GIT, and in BLIP as near as it can be."""

import pytest
import torch

from tests.models.families import make_adapter, make_tiny
from vlm_core.catalogue.exposure import record_exposure
from vlm_core.errors import UserError
from vlm_core.models.towers import clip_tower_as_blip, load_vision_tower

PIXELS = torch.randn(6, 3, 64, 64, generator=torch.Generator().manual_seed(5))


@pytest.fixture
def clip(tmp_path):
    """A CLIP model whose first norm is no identity, saved in a folder."""
    hf, tokenizer = make_tiny("clip", 128)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in (hf.vision_model.pre_layrnorm.weight, hf.vision_model.pre_layrnorm.bias):
            weight.add_(torch.randn(weight.shape, generator=generator) * 0.3)
    hf.save_pretrained(tmp_path / "clip")
    tokenizer.save_pretrained(tmp_path / "clip")
    return hf, tmp_path / "clip"


def test_git_then_sees_what_clip_sees(clip):
    hf, folder = clip
    adapter = make_adapter("git", 128)
    load_vision_tower(adapter.hf, folder, PIXELS)
    theirs = hf.vision_model(PIXELS)
    ours = adapter.hf.git.image_encoder.vision_model(PIXELS).last_hidden_state
    torch.testing.assert_close(ours[:, 0], theirs.pooler_output)


def test_blips_blocks_are_clips(clip):
    hf, folder = clip
    adapter = make_adapter("blip", 128)
    load_vision_tower(adapter.hf, folder, PIXELS)
    state = torch.randn(2, 65, 128)
    for ours, theirs in zip(adapter.hf.vision_model.encoder.layers, hf.vision_model.encoder.layers, strict=True):
        torch.testing.assert_close(ours(state, attention_mask=None), theirs(state, attention_mask=None))
    torch.testing.assert_close(adapter.hf.vision_model.post_layernorm(state), hf.vision_model.post_layernorm(state))


def test_blips_embedding_is_clips_norm_with_one_deviation_for_all_patches(clip):
    hf, folder = clip
    adapter = make_adapter("blip", 128)
    load_vision_tower(adapter.hf, folder, PIXELS)
    embedded, norm = hf.vision_model.embeddings(PIXELS), hf.vision_model.pre_layrnorm
    deviation = embedded.std(dim=2, correction=0)
    deviation = torch.cat([deviation[:, :1].mean().expand(1), deviation[:, 1:].mean().expand(64)])[None, :, None]
    centred = embedded - embedded.mean(dim=2, keepdim=True)
    expected = norm.weight * centred / deviation + norm.bias
    ours = adapter.hf.vision_model.embeddings(PIXELS)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-4)
    assert torch.nn.functional.cosine_similarity(ours, norm(embedded), dim=2).mean() > 0.97


@pytest.mark.slow
def test_the_towers_exposure_comes_along(clip):
    _, folder = clip
    assert load_vision_tower(make_tiny("git", 128)[0], folder, PIXELS) is None
    import pandas as pd

    exposure = record_exposure("shop", "cafe", pd.Series(["1", "2"]))
    exposure.write(folder)
    assert load_vision_tower(make_tiny("git", 128)[0], folder, PIXELS) == exposure


def test_a_tower_of_another_shape_or_family_is_refused(clip, tmp_path):
    hf, folder = clip
    from vlm_core.models.positions import resize_input

    git, tokenizer = make_tiny("git", 128)
    git.save_pretrained(tmp_path / "git")
    tokenizer.save_pretrained(tmp_path / "git")
    with pytest.raises(UserError, match="family"):
        load_vision_tower(make_tiny("blip", 128)[0], tmp_path / "git", PIXELS)
    resize_input(git, 96)
    with pytest.raises(UserError, match="another shape.*position_embedding"):
        load_vision_tower(git, folder, PIXELS)
    with pytest.raises(UserError, match="is not a folder"):
        load_vision_tower(git, tmp_path / "nothing", PIXELS)
    assert clip_tower_as_blip(dict(hf.vision_model.state_dict()), hf.vision_model.embeddings(PIXELS))


def test_a_tower_that_pools_in_another_way_is_refused(clip):
    hf, folder = clip
    hf.config.vision_config.pooling = "mean"
    hf.save_pretrained(folder)
    with pytest.raises(UserError, match=r"pretrained with pooling=mean, and model=blip.*: give another tower"):
        load_vision_tower(make_tiny("blip", 128)[0], folder, PIXELS)
    with pytest.raises(UserError, match="model=clip reads with pooling=class-token: add pooling=mean, or give another"):
        load_vision_tower(make_tiny("clip", 128)[0], folder, PIXELS)

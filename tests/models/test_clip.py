"""CLIP pooled by the mean of its patches: computed by hand, kept with the weights, and refused where it is unknown."""

import numpy as np
import pytest
import torch

from tests.models.families import make_categoriser, make_mean_pooled, make_tiny
from vlm_core.errors import UserError
from vlm_core.models.categoriser import VisionLanguageCategoriser
from vlm_core.models.clip import Clip, pooling_of
from vlm_core.models.stages import run_stages

PIXELS = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(5))


def test_the_embedding_is_the_projected_norm_of_the_patches_mean():
    adapter = make_mean_pooled().adapter
    tokens = adapter.hf.vision_model(PIXELS).last_hidden_state
    pooled = adapter.hf.vision_model.post_layernorm(tokens[:, 1:].mean(dim=1))
    ends = {"vision": pooled, "fused": adapter.hf.visual_projection(pooled), "tokens": tokens}
    for readout, theirs in ends.items():
        (ours,) = run_stages(adapter.stages(readout), (PIXELS,))
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(ends["fused"], adapter.hf.get_image_features(PIXELS).pooler_output, atol=1e-3)


def test_weights_that_were_saved_pool_on_as_they_did(tmp_path):
    model = make_mean_pooled()
    model.save(tmp_path)
    pictures = np.random.default_rng(3).integers(0, 256, (2, 80, 60, 3), dtype=np.uint8)
    again = VisionLanguageCategoriser.load(tmp_path)
    np.testing.assert_allclose(again.log_probabilities(pictures), model.log_probabilities(pictures), atol=1e-6)
    assert pooling_of(again.hf) == "mean"


def test_a_cached_state_of_one_pooling_is_none_of_the_other():
    assert make_categoriser("clip").fingerprint(3) != make_mean_pooled().fingerprint(3)


def test_another_pooling_is_refused():
    hf, tokenizer = make_tiny("clip")
    hf.config.vision_config.pooling = "max"
    with pytest.raises(UserError, match=r"pooling=max in its vision_config.*class-token or mean"):
        Clip(hf, tokenizer)

"""The tiny pretrained weights that come with the package: whole, small, and what they say they are."""

import json
import shutil

import numpy as np
import pytest
import torch

from tests.messages import collected_messages
from tests.models.families import CAPTIONERS, SHIPPED
from vlm_core.catalogue.exposure import RULE, Exposure
from vlm_core.errors import UserError
from vlm_core.models.heads import generate_texts
from vlm_core.models.loading import load_weights
from vlm_core.models.positions import input_size
from vlm_core.models.shipped import FOLDER, shipped_weights
from vlm_core.models.stages import run_stages


def _load(family, **changes):
    given = {"checkpoint": "", "weights": "tiny", "image_size": 0, "texts": (), "seed": 0}
    with collected_messages() as lines:
        return load_weights(family, **{**given, **changes}), lines


@pytest.mark.parametrize("family", SHIPPED)
def test_a_familys_weights_are_whole_small_and_carry_what_they_saw(family):
    found = shipped_weights(family)
    folder = FOLDER / family
    assert sum(path.stat().st_size for path in folder.iterdir()) < 6_000_000
    assert {path.suffix for path in folder.iterdir()} <= {".json", ".md", ".safetensors"}
    assert found.safetensors
    exposure = Exposure.read(folder)
    assert exposure.rule == RULE and exposure.products > 20_000
    assert {before.rule for before in exposure.before} <= {RULE}
    card = (folder / "README.md").read_text()
    for text in ("## What it saw", exposure.products_fingerprint, exposure.catalogue_fingerprint, "Licence", "Limits"):
        assert text in card


def test_the_families_saw_the_same_products_and_share_the_towers_shape():
    exposures = [Exposure.read(FOLDER / family) for family in SHIPPED]
    assert len({exposure.products_fingerprint for exposure in exposures}) == 1
    shapes = []
    for family in SHIPPED:
        config = json.loads((FOLDER / family / "config.json").read_text())["vision_config"]
        shapes.append(
            [config[name] for name in ("hidden_size", "num_hidden_layers", "patch_size", "image_size", "hidden_act")]
        )
    assert shapes[0] == shapes[1] == shapes[2]


@pytest.mark.parametrize("family", SHIPPED)
def test_tiny_means_the_shipped_weights_and_tiny_random_means_nothing_was_learnt(family):
    shipped, _ = _load(family)
    assert shipped.source == f"shipped:{family}" and shipped.pretrained and shipped.exposure is not None
    assert all(weight.dtype == torch.float32 for weight in shipped.hf.parameters())
    random, _ = _load(family, weights="tiny-random", texts=["men shirt"])
    assert random.source == "tiny-random" and not random.pretrained and random.exposure is None


@pytest.mark.parametrize("family", ["siglip", "vision"])
def test_a_family_without_shipped_weights_says_what_to_do(family, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for weights in ("tiny", "auto"):
        with pytest.raises(UserError, match=f"no tiny weights of {family} are included.*use weights=tiny-random"):
            _load(family, weights=weights)
    random, _ = _load(family, weights="tiny-random", texts=["men shirt"], image_size=128)
    assert input_size(random.hf) == 128 and (random.tokenizer is None) == (family == "vision")


def test_auto_falls_back_on_the_shipped_weights_and_says_so(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    weights, lines = _load("clip", weights="auto")
    assert weights.source == "shipped:clip"
    assert sum(line.startswith("WARNING") for line in lines) == 2


@pytest.mark.parametrize("family", CAPTIONERS)
def test_a_captioner_writes_words_of_the_shop_about_any_picture(family):
    weights, _ = _load(family)
    from vlm_core.models.categoriser import ADAPTERS

    adapter = ADAPTERS[family](weights.hf, weights.tokenizer)
    pixels = torch.full((2, 3, 64, 64), 1.9)
    pixels[0, :, 16:48, 20:44] = torch.tensor([-1.7, -1.6, 1.0])[:, None, None]  # something blue on white
    with torch.inference_mode():
        texts = generate_texts(adapter, *run_stages(adapter.stages("tokens"), (pixels,)))
    assert all(np.any([word in text.split() for word in ("men", "women", "unisex", "boys", "girls")]) for text in texts)


def test_a_changed_or_absent_file_is_refused_with_the_way_out(tmp_path):
    shutil.copytree(FOLDER / "clip", tmp_path / "clip")
    assert shipped_weights("clip", tmp_path).reference == str(tmp_path / "clip")
    (tmp_path / "clip" / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"config\.json.*git checkout.*tiny-random"):
        shipped_weights("clip", tmp_path)
    (tmp_path / "clip" / "model.safetensors").unlink()
    with pytest.raises(UserError, match="cannot be read.*git checkout"):
        shipped_weights("clip", tmp_path)
    with pytest.raises(UserError, match="cannot be read"):
        shipped_weights("git", tmp_path)


def test_weights_that_are_not_those_of_their_checksums_are_trained_by_nobody(tmp_path):
    folder = tmp_path / "own"
    shutil.copytree(FOLDER / "clip", folder)
    assert _load("clip", weights="auto", checkpoint=str(folder))[0].source == f"folder:{folder}"
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "model.safetensors").write_bytes(data)
    with pytest.raises(UserError, match=r"model\.safetensors in .*own is not the file"):
        _load("clip", weights="auto", checkpoint=str(folder))
    (folder / "checksums.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match="cannot be verified"):
        _load("clip", weights="auto", checkpoint=str(folder))


def test_weights_that_are_no_numbers_are_refused(tmp_path):
    from safetensors.numpy import load_file, save_file

    folder = tmp_path / "own"
    shutil.copytree(FOLDER / "clip", folder)
    (folder / "checksums.json").unlink()
    tensors = load_file(folder / "model.safetensors")
    tensors["visual_projection.weight"][0, 0] = np.nan
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"holds NaN or infinity in visual_projection\.weight"):
        _load("clip", weights="auto", checkpoint=str(folder))
    (folder / "config.json").write_text('{"a":' * 100_000)
    with pytest.raises(UserError, match="no readable config"):
        _load("clip", weights="auto", checkpoint=str(folder))

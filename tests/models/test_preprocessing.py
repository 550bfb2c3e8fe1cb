"""A checkpoint's own mean, deviation, size and interpolation: read, used, and kept with the saved model."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.models.families import make_categoriser, make_tiny
from vlm_core.errors import UserError
from vlm_core.models.categoriser import VisionLanguageCategoriser
from vlm_core.models.loading import load_weights
from vlm_core.models.preprocessing import FILE, NEWER_FILE, read_preprocessing, write_preprocessing
from vlm_core.pixels.views import DEFAULT, MEAN, STD, Preprocessing, Resize

HALF = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.5, 1.0]}
PICTURES = np.random.default_rng(0).integers(0, 256, (3, 80, 60, 3), np.uint8)


def _stated(folder: Path, **settings: object) -> tuple[Preprocessing, int] | None:
    (folder / FILE).write_text(json.dumps(settings))
    return read_preprocessing(folder)


def test_a_checkpoint_without_a_file_states_nothing(tmp_path: Path) -> None:
    assert read_preprocessing(tmp_path) is None


def test_what_is_left_out_is_as_in_clips_own(tmp_path: Path) -> None:
    assert _stated(tmp_path) == (Preprocessing(MEAN, STD, "bicubic"), 0)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (HALF, Preprocessing((0.5,) * 3, (0.25, 0.5, 1.0), "bicubic")),
        ({"image_mean": 0.5, "image_std": [0.5], "resample": 2}, Preprocessing((0.5,) * 3, (0.5,) * 3, "bilinear")),
        ({"resample": 0}, Preprocessing(MEAN, STD, "nearest")),
        ({"resample": 1}, Preprocessing(MEAN, STD, "bicubic")),  # Lanczos
        ({**HALF, "do_normalize": False}, Preprocessing((0.0,) * 3, (1.0,) * 3, "bicubic")),
        ({**HALF, "rescale_factor": 1 / 127.5}, Preprocessing((0.25,) * 3, (0.125, 0.25, 0.5), "bicubic")),
        ({**HALF, "do_rescale": False}, Preprocessing((0.5 / 255,) * 3, (0.25 / 255, 0.5 / 255, 1 / 255), "bicubic")),
    ],
    ids=["three", "one for all", "nearest", "lanczos", "not normalised", "to two", "to 255"],
)
def test_mean_deviation_and_interpolation(tmp_path: Path, settings: dict[str, object], expected: Preprocessing) -> None:
    stated = _stated(tmp_path, **settings)
    assert stated is not None
    np.testing.assert_allclose(stated[0].mean, expected.mean)
    np.testing.assert_allclose(stated[0].std, expected.std)
    assert stated[0].interpolation == expected.interpolation


@pytest.mark.parametrize(
    ("settings", "side"),
    [
        ({"size": 224}, 224),
        ({"size": {"height": 384, "width": 384}}, 384),
        ({"size": {"shortest_edge": 240}, "crop_size": {"height": 224, "width": 224}, "do_center_crop": True}, 224),
        ({"size": {"shortest_edge": 240}, "crop_size": 224, "do_center_crop": False}, 240),
        ({"size": {"height": 224, "width": 160}}, 0),
        ({"size": {"longest_edge": 224}}, 0),
        ({"size": [224, 224]}, 224),
        ({"size": []}, 0),
        ({"size": "large"}, 0),
    ],
)
def test_the_side_of_the_input(tmp_path: Path, settings: dict[str, object], side: int) -> None:
    stated = _stated(tmp_path, **settings)
    assert stated is not None and stated[1] == side


@pytest.mark.parametrize(
    ("settings", "resize", "shorter_side"),
    [
        ({"size": {"height": 224, "width": 224}}, "stretch", 1.0),  # ViT, BLIP, SigLIP
        ({"size": 224}, "stretch", 1.0),
        ({"size": {"shortest_edge": 224}, "crop_size": 224, "do_center_crop": True}, "crop", 1.0),  # CLIP
        ({"size": {"shortest_edge": 256}, "crop_size": 224, "do_center_crop": True}, "crop", 256 / 224),  # DINOv2
        ({"size": {"shortest_edge": 256}, "crop_size": 224, "do_center_crop": False}, "stretch", 1.0),
        ({"size": {"shortest_edge": 224}, "crop_pct": 0.875}, "crop", 1 / 0.875),  # ConvNeXt
        ({"size": {"shortest_edge": 384}, "crop_pct": 0.875}, "stretch", 1.0),
    ],
)
def test_how_images_become_square(
    tmp_path: Path, settings: dict[str, object], resize: str, shorter_side: float
) -> None:
    stated = _stated(tmp_path, **settings)
    assert stated is not None
    assert (stated[0].resize, stated[0].shorter_side) == (resize, pytest.approx(shorter_side))


@pytest.mark.parametrize("resize", ["stretch", "crop", "pad"])
def test_what_is_written_is_read_as_it_was(tmp_path: Path, resize: Resize) -> None:
    written = Preprocessing(interpolation="bicubic", resize=resize, shorter_side=1.25 if resize == "crop" else 1.0)
    write_preprocessing(written, 64, tmp_path)
    assert read_preprocessing(tmp_path) == (written, 64)


def test_efficientnets_second_division_is_kept(tmp_path: Path) -> None:
    stated = _stated(tmp_path, **HALF, include_top=True)
    assert stated is not None
    np.testing.assert_allclose(stated[0].std, (0.25**2, 0.5**2, 1.0))


def test_a_processor_of_transformers_5_holds_it_as_well(tmp_path: Path) -> None:
    (tmp_path / NEWER_FILE).write_text(json.dumps({"processor_class": "CLIPProcessor"}))
    assert read_preprocessing(tmp_path) is None
    (tmp_path / NEWER_FILE).write_text(json.dumps({"image_processor": HALF}))
    stated = read_preprocessing(tmp_path)
    assert stated is not None and stated[0].mean == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "cannot be read"),
        ("[" * 100_000, "cannot be read"),
        ("[1]", "not a JSON object"),
        ('{"image_mean": [0.5, 0.5]}', "is not three numbers"),
        ('{"image_mean": [0.5, NaN, 0.5]}', "is not three numbers"),
        ('{"image_mean": "0.5"}', "is not three numbers"),
        ('{"image_std": [0.5, 0, 0.5]}', "is not above zero"),
        ('{"rescale_factor": 0}', "rescale_factor=0"),
    ],
)
def test_what_no_picture_can_be_normalised_by_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / FILE).write_text(text)
    with pytest.raises(UserError, match=f"{reason}.*get {FILE} again"):
        read_preprocessing(tmp_path)


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 400) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["height", "width"]), inner),
    max_leaves=4,
)
_NAMES = ("image_mean", "image_std", "resample", "size", "crop_size", "do_center_crop", "do_rescale", "rescale_factor")


@given(st.dictionaries(st.sampled_from(_NAMES), _VALUES))
def test_any_file_is_used_or_refused_in_a_sentence(tmp_path_factory: pytest.TempPathFactory, settings: dict) -> None:  # type: ignore[type-arg]
    folder = tmp_path_factory.getbasetemp()
    try:
        stated = _stated(folder, **settings)
    except UserError:
        return
    assert stated is not None and stated[1] >= 0 and min(stated[0].std) > 0


@pytest.mark.parametrize("preprocessing", [DEFAULT, Preprocessing((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "bicubic")])
def test_what_is_written_is_read_to_the_last_digit(tmp_path: Path, preprocessing: Preprocessing) -> None:
    write_preprocessing(preprocessing, 64, tmp_path)
    assert read_preprocessing(tmp_path) == (preprocessing, 64)


@pytest.mark.slow
def test_it_is_what_hugging_faces_own_processor_does(tmp_path: Path) -> None:
    from transformers import AutoImageProcessor

    preprocessing = Preprocessing((0.5, 0.4, 0.3), (0.2, 0.3, 0.4), "bicubic")
    write_preprocessing(preprocessing, 64, tmp_path)
    model = make_categoriser("clip", preprocessing=preprocessing)
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    down, across = np.mgrid[0:80, 0:60]
    picture = np.stack([down * 3, across * 4, (down + across) % 100 * 2], axis=2).astype(np.uint8)
    theirs = processor([picture], return_tensors="pt")["pixel_values"]
    ours = model.pixels(picture[None])
    assert (ours - theirs).abs().median() < 0.01  # they round to 8 bits in between,
    assert ((ours - theirs).abs() > 0.04).float().mean() < 0.01  # and cut off what overshoots at an edge twice


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A folder as Hugging Face's libraries write it, without preprocessing."""
    folder = tmp_path / "checkpoint"
    hf, tokenizer = make_tiny("clip")
    hf.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _load(folder: Path, image_size: int = 0) -> tuple[Preprocessing, int]:
    loaded = load_weights("clip", checkpoint=str(folder), weights="auto", image_size=image_size, texts=(), seed=0)
    return loaded.preprocessing, loaded.hf.config.vision_config.image_size


def test_a_checkpoint_is_used_as_it_states(checkpoint: Path) -> None:
    assert _load(checkpoint) == (DEFAULT, 64)
    (checkpoint / FILE).write_text(json.dumps({**HALF, "size": {"height": 96, "width": 96}}))
    preprocessing, side = _load(checkpoint)
    assert (preprocessing.mean, preprocessing.interpolation, side) == ((0.5, 0.5, 0.5), "bicubic", 96)
    assert _load(checkpoint, image_size=32)[1] == 32
    (checkpoint / FILE).write_text(json.dumps({**HALF, "size": 99}))
    assert _load(checkpoint)[1] == 64  # which no patch of 8 pixels divides


def test_a_saved_model_keeps_it(tmp_path: Path) -> None:
    own = Preprocessing((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bicubic")
    answers = []
    for name, preprocessing in (("own", own), ("default", DEFAULT)):
        model = make_categoriser("clip", preprocessing=preprocessing)
        answers.append(model.log_probabilities(PICTURES))
        model.save(tmp_path / name)
        loaded = VisionLanguageCategoriser.load(tmp_path / name)
        assert loaded.description.preprocessing == preprocessing
        assert (loaded.log_probabilities(PICTURES) == answers[-1]).all()
        assert _load(tmp_path / name / "model") == (preprocessing, 64)
    assert not np.allclose(answers[0], answers[1], atol=1e-4)


def test_a_model_saved_before_it_was_kept_answers_as_before(tmp_path: Path) -> None:
    model = make_categoriser("clip")
    model.save(tmp_path)
    path = tmp_path / "categoriser.json"
    content = json.loads(path.read_text())
    del content["preprocessing"]
    path.write_text(json.dumps(content))
    (tmp_path / "model" / FILE).unlink()
    assert (
        VisionLanguageCategoriser.load(tmp_path).log_probabilities(PICTURES) == model.log_probabilities(PICTURES)
    ).all()

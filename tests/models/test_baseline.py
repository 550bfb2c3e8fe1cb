import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from skimage.color import rgb2gray
from skimage.feature import hog
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score

from vlm_core.errors import UserError
from vlm_core.models import baseline as module
from vlm_core.models.baseline import Baseline, FeatureExtractor, fit_baseline

CATEGORIES = ("bars", "blobs", "rings")
CANVAS = (80, 60)


class Shelf:
    """Pictures in memory that notes which rows were taken."""

    def __init__(self, pictures: NDArray[np.uint8]) -> None:
        self.pictures = pictures
        self.taken: list[list[int]] = []

    def take(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        self.taken.append(rows.tolist())
        return self.pictures[rows]


def _draw(kind: int, generator: np.random.Generator) -> NDArray[np.uint8]:
    """One of three shapes, of any colour, on any background: the mean colour tells nothing."""
    y, x = np.indices(CANVAS)
    row, column = generator.uniform(37, 43), generator.uniform(27, 33)
    far = np.hypot(y - row, x - column)
    shape = [np.abs(x - column) < 5, far < 16, np.abs(far - 16) < 4][kind]
    background, colour = generator.integers(0, 256, (2, 3))
    picture = np.where(shape[..., None], colour, background) + generator.normal(0, 6, (*CANVAS, 3))
    return picture.clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def labels() -> NDArray[np.int64]:
    return np.arange(120) % 3


@pytest.fixture(scope="module")
def pictures(labels: NDArray[np.int64]) -> NDArray[np.uint8]:
    generator = np.random.default_rng(0)
    return np.stack([_draw(kind, generator) for kind in labels])


@pytest.fixture(scope="module")
def fitted(pictures: NDArray[np.uint8], labels: NDArray[np.int64]) -> Baseline:
    return _fit(pictures, labels)


def _fit(
    pictures: NDArray[np.uint8] | Shelf,
    labels: NDArray[np.int64],
    training: NDArray[np.int64] | None = None,
    categories: tuple[str, ...] = CATEGORIES,
) -> Baseline:
    shelf = pictures if isinstance(pictures, Shelf) else Shelf(pictures)
    rows = np.arange(60) if training is None else training
    return fit_baseline(shelf, labels, rows, np.arange(60, 84), categories, CANVAS, 0)


def test_features_are_hog_colour_shares_and_a_thumbnail(pictures: NDArray[np.uint8]) -> None:
    features = FeatureExtractor().extract(pictures[:2])
    assert features.shape == (2, FeatureExtractor().count)
    assert features.dtype == np.float32
    picture, row = pictures[1], features[1]
    shape, colour, thumbnail = np.split(row, [7 * 5 * 4 * 9, 7 * 5 * 4 * 9 + 64])
    np.testing.assert_allclose(shape, hog(rgb2gray(picture), 9, (10, 10), (2, 2)), atol=1e-6)
    shares, _ = np.histogramdd(picture.reshape(-1, 3), bins=4, range=[(0, 256)] * 3)
    np.testing.assert_allclose(colour**2, shares.ravel() / 4800, atol=1e-6)
    # the first of 10 x 8 cells is 8 pixels high and 7.5 wide
    weights = np.r_[np.ones(7), 0.5]
    first = (picture[:8, :8] * weights[None, :, None]).sum((0, 1)) / (8 * 7.5)
    np.testing.assert_allclose(thumbnail[:3] * 255, first, atol=1)


@pytest.mark.parametrize("canvas", [(64, 64), (80, 60), (224, 160), (20, 30)])
def test_pictures_of_any_size_have_the_same_features(canvas: tuple[int, int]) -> None:
    plain = np.full((1, *canvas, 3), 200, np.uint8)
    np.testing.assert_allclose(
        FeatureExtractor().extract(plain), FeatureExtractor().extract(np.full((1, 80, 60, 3), 200, np.uint8))
    )


@pytest.mark.slow
def test_it_learns_what_colour_does_not_tell(
    fitted: Baseline, pictures: NDArray[np.uint8], labels: NDArray[np.int64]
) -> None:
    predictions = fitted.log_probabilities(pictures[84:]).argmax(axis=1)
    assert f1_score(labels[84:], predictions, average="macro") > 0.85
    assert fitted.categories == CATEGORIES
    assert fitted.canvas == CANVAS
    assert fitted.describe(pictures[:2]) is None


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3])
def test_it_is_scikit_learns_regression_of_rows_repeated(
    count: int, pictures: NDArray[np.uint8], labels: NDArray[np.int64], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A picture drawn several times counts several times, as in balanced training rows."""
    monkeypatch.setattr(module, "PENALTIES", (0.01,))
    rows = np.arange(60)[labels[:60] < count]
    training = np.repeat(rows, 1 + 3 * (labels[rows] == 1))
    keep = np.where(labels < count, labels, -1)
    shelf = Shelf(pictures)
    validation = np.flatnonzero(keep >= 0)[-20:]
    ours = fit_baseline(shelf, keep, training, validation, CATEGORIES[:count], CANVAS, 0)
    once = FeatureExtractor().extract(pictures[rows])
    scale = np.maximum(once.std(axis=0), 0.01)
    standard = (FeatureExtractor().extract(pictures[training]) - once.mean(axis=0)) / scale
    reference = LogisticRegression(C=0.01, max_iter=5000, tol=1e-7).fit(standard.astype(float), labels[training])
    expected = reference.predict_log_proba((FeatureExtractor().extract(pictures[84:]) - once.mean(axis=0)) / scale)
    np.testing.assert_allclose(ours.log_probabilities(pictures[84:]), expected, atol=0.02)


@pytest.mark.slow
def test_the_penalty_is_the_one_that_does_best_on_the_validation_rows(
    pictures: NDArray[np.uint8], labels: NDArray[np.int64], monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = {}
    for penalty in (1e-9, 1e-2):  # the first one learns next to nothing
        monkeypatch.setattr(module, "PENALTIES", (penalty,))
        predictions = _fit(pictures, labels).log_probabilities(pictures[60:84]).argmax(axis=1)
        scores[penalty] = f1_score(labels[60:84], predictions, average="macro")
    assert scores[1e-9] < scores[1e-2]
    for order in ((1e-9, 1e-2), (1e-2, 1e-9)):
        monkeypatch.setattr(module, "PENALTIES", order)
        assert _fit(pictures, labels).penalty == 1e-2


def test_each_picture_is_measured_once_and_in_parts(
    pictures: NDArray[np.uint8], labels: NDArray[np.int64], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_IMAGES_PER_CHUNK", 16)
    shelf = Shelf(pictures)
    _fit(shelf, labels, training=np.repeat(np.arange(60), 4))
    assert max(len(part) for part in shelf.taken) <= 16
    assert sorted(row for part in shelf.taken for row in part) == list(range(84))


def test_of_very_many_training_rows_every_category_keeps_its_share(
    pictures: NDArray[np.uint8], labels: NDArray[np.int64], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_TRAINING_ROWS", 14)
    rare = np.r_[np.flatnonzero(labels[:60] < 2), 2]  # 40 rows of two categories, one of the third
    shelf = Shelf(pictures)
    model = _fit(shelf, labels, training=rare)
    taken = labels[[row for part in shelf.taken for row in part if row < 60]]
    assert np.bincount(taken).tolist() == [7, 7, 1]
    assert model.weights.shape == (3, FeatureExtractor().count)


def test_rows_of_log_probabilities_belong_to_their_pictures(fitted: Baseline, pictures: NDArray[np.uint8]) -> None:
    rows = fitted.log_probabilities(pictures[:12])
    assert rows.dtype == np.float32
    np.testing.assert_allclose(np.exp(rows.astype(float)).sum(axis=1), 1, atol=1e-6)
    order = np.random.default_rng(0).permutation(12)
    np.testing.assert_allclose(fitted.log_probabilities(pictures[:12][order]), rows[order], atol=1e-5)
    assert fitted.log_probabilities(pictures[:0]).shape == (0, 3)


@pytest.mark.slow
def test_a_fit_is_the_same_again(fitted: Baseline, pictures: NDArray[np.uint8], labels: NDArray[np.int64]) -> None:
    np.testing.assert_array_equal(_fit(pictures, labels).weights, fitted.weights)


@pytest.mark.slow
def test_it_is_saved_without_pickle_and_loads_as_it_was(
    fitted: Baseline, pictures: NDArray[np.uint8], tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    fitted.save(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["categoriser.json", "model.safetensors"]
    assert set(load_file(folder / "model.safetensors")) == {"weights", "bias", "mean", "scale"}
    content = json.loads((folder / "categoriser.json").read_text())
    assert (content["family"], content["categories"], content["canvas"]) == ("baseline", list(CATEGORIES), [80, 60])
    loaded = Baseline.load(folder)
    assert (loaded.categories, loaded.canvas, loaded.features) == (CATEGORIES, CANVAS, fitted.features)
    assert loaded.penalty == fitted.penalty
    np.testing.assert_array_equal(loaded.log_probabilities(pictures), fitted.log_probabilities(pictures), strict=True)


def _cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _shrink(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, "bias": tensors["bias"][:2]}, folder / "model.safetensors")


def _rewrite(**changes: object) -> Callable[[Path], object]:
    def write(folder: Path) -> None:
        path = folder / "categoriser.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return write


@pytest.mark.parametrize(
    "spoil",
    [
        _cut,
        _shrink,
        lambda folder: (folder / "model.safetensors").unlink(),
        lambda folder: (folder / "categoriser.json").unlink(),
        lambda folder: (folder / "categoriser.json").write_text("{"),
        _rewrite(family="clip"),
        _rewrite(schema=2),
        _rewrite(canvas=80),
        _rewrite(settings={"penalty": 1, "features": {"height": 80, "colour": 1}}),
    ],
)
def test_a_spoilt_folder_gives_one_clear_sentence(
    spoil: Callable[[Path], object], fitted: Baseline, tmp_path: Path
) -> None:
    fitted.save(tmp_path)
    spoil(tmp_path)
    with pytest.raises(UserError, match="train again"):
        Baseline.load(tmp_path)


def test_a_category_without_training_products_is_named(pictures: NDArray[np.uint8], labels: NDArray[np.int64]) -> None:
    with pytest.raises(UserError, match="rings"):
        _fit(pictures, labels, training=np.flatnonzero(labels[:60] < 2))
    with pytest.raises(UserError, match="two categories"):
        _fit(pictures, np.zeros_like(labels), categories=("bars",))


@pytest.mark.slow
def test_serving_it_needs_neither_torch_nor_a_fit(fitted: Baseline, tmp_path: Path) -> None:
    fitted.save(tmp_path)
    script = """
import sys
from pathlib import Path
import numpy as np
from vlm_core.models.baseline import Baseline
predictions = Baseline.load(Path(sys.argv[1])).log_probabilities(np.zeros((1, 80, 60, 3), np.uint8))
print(predictions.shape, sorted({"torch", "sklearn"} & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "(1, 3) []"


@pytest.mark.slow
def test_rare_categories_are_weighted_as_scikit_learn_balances_them_or_their_logits_adjusted(
    pictures: NDArray[np.uint8], labels: NDArray[np.int64], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PENALTIES", (0.01,))
    training = np.concatenate([np.flatnonzero(labels[:60] == 0), np.flatnonzero(labels[:60] > 0)[:20]])
    fits = {
        balance: fit_baseline(
            Shelf(pictures), labels, training, np.arange(60, 84), CATEGORIES, CANVAS, 0, balance=balance
        )
        for balance in ("none", "weights", "logit-adjusted")
    }
    features = FeatureExtractor().extract(pictures[training])
    standard = (features - features.mean(axis=0)) / np.maximum(features.std(axis=0), 0.01)
    reference = LogisticRegression(C=0.01, max_iter=5000, tol=1e-7, class_weight="balanced")
    expected = reference.fit(standard.astype(float), labels[training]).predict_log_proba(standard)
    np.testing.assert_allclose(fits["weights"].log_probabilities(pictures[training]), expected, atol=0.05)
    shift = fits["none"].bias - fits["logit-adjusted"].bias
    np.testing.assert_allclose(shift, np.log([0.5, 0.25, 0.25]), atol=1e-5)
    np.testing.assert_array_equal(fits["none"].weights, fits["logit-adjusted"].weights)

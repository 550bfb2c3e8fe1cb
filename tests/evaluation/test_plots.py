import warnings
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from tests.evaluation.made_predictions import CATEGORIES, GIT, random_predictions
from vlm_core.evaluation import plots
from vlm_core.evaluation.calibration import measure_calibration
from vlm_core.evaluation.plots import plot_confusion, plot_reliability


@pytest.fixture
def plotted_figure(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Takes the figures that would be saved."""
    figures: list[Figure] = []
    monkeypatch.setattr(plots, "_save", lambda figure, path: figures.append(figure))
    return figures


def _texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text) if isinstance(text, Text)]


def test_each_cell_has_its_count_and_share(plotted_figure: list[Figure]) -> None:
    plot_confusion(GIT, CATEGORIES, "git, epoch 4", Path("unused"))
    axes = plotted_figure[0].axes[0]
    cells = {(text.get_position(), text.get_text()) for text in axes.texts}
    assert ((3, 0 - 0.1), "25") in cells  # column 3, row 0: Accessories taken for Free Items
    assert ((3, 0 + 0.22), "20.8%") in cells
    assert ((1, 1 + 0.22), "100%") in cells
    assert sum(text == "0" for _, text in cells) == int((GIT == 0).sum())
    assert axes.get_yticklabels()[0].get_text() == "Accessories\nn 120 · recall 63.3%"
    assert axes.get_xticklabels()[3].get_text() == "Free Items\nprecision 81.4%"
    assert {"git, epoch 4", "600 products, 91.5% correct"} <= set(_texts(plotted_figure[0]))
    (shares,) = axes.get_images()
    np.testing.assert_allclose(shares.get_array(), GIT / 120)
    assert shares.get_clim() == (0, 1)


def test_with_many_categories_only_what_is_there_is_written(plotted_figure: list[Figure]) -> None:
    confusion = np.diag(np.arange(1, 61))
    confusion[7] = 0
    plot_confusion(confusion, [f"kind {index}" for index in range(60)], "", Path("unused"))
    axes = plotted_figure[0].axes[0]
    numbers = [text.get_text() for text in axes.texts if text.get_text().isdigit()]
    assert numbers == [str(index) for index in range(1, 61) if index != 8]
    assert axes.get_yticklabels()[7].get_text() == "kind 7   n 0 · recall –"


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 15, 81])
def test_the_picture_is_a_whole_png(count: int, tmp_path: Path) -> None:
    confusion = np.random.default_rng(0).integers(0, 9, (count, count))
    names = [f"A category of ${index}^{{ with a name far too long for its row" for index in range(count)]
    plot_confusion(confusion, names, "up to $5_ or $6^{", tmp_path / "results" / "picture.png")
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["picture.png"]
    with Image.open(tmp_path / "results" / "picture.png") as picture:
        picture.load()
        assert picture.format == "PNG"
        assert 400 < picture.width < 4000
        assert 400 < picture.height < 4000


def test_an_empty_matrix_is_plotted_too(tmp_path: Path) -> None:
    plot_confusion(np.zeros((3, 3), np.int64), ["a", "b", "c"], "nothing yet", tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 1000


def test_the_reliability_diagram_shows_each_filled_bin(plotted_figure: list[Figure]) -> None:
    predictions = random_predictions(300, 4, seed=0)
    calibration = measure_calibration(predictions.labels, predictions.log_probabilities)
    plot_reliability(calibration, "git, test", Path("unused"))
    above, below = plotted_figure[0].axes
    filled = [part for part in calibration.curve if part.n]
    assert [bar.get_height() for bar in above.patches] == [part.accuracy for part in filled]
    assert [bar.get_height() for bar in below.patches] == [part.n for part in filled]
    offsets = above.collections[0].get_offsets()
    assert np.asarray(offsets) == pytest.approx(np.array([(part.confidence, part.accuracy) for part in filled]))
    assert any(f"ECE {calibration.ece:.3f}" in text for text in _texts(plotted_figure[0]))


@pytest.mark.slow
def test_the_reliability_picture_is_a_whole_png(tmp_path: Path) -> None:
    predictions = random_predictions(300, 4, seed=0)
    calibration = measure_calibration(predictions.labels, predictions.log_probabilities)
    plot_reliability(calibration, "git, test", tmp_path / "reliability.png")
    with Image.open(tmp_path / "reliability.png") as picture:
        picture.load()
        assert picture.format == "PNG"


def test_letters_that_the_font_lacks_cost_no_warning(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plot_confusion(np.eye(3, dtype=np.int64), ("👟 Shoes", "鞋", "ถุง"), "👟", tmp_path / "confusion.png")
    assert Image.open(tmp_path / "confusion.png").size > (100, 100)

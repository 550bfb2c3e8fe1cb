"""The sample catalogue: Kaggle's layout, its defects, and that it is neither trivial nor hopeless to learn."""

import csv
import hashlib
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlm_core.catalogue.assortment import ARTICLES, COLOURS, SHARES
from vlm_core.catalogue.drawing.pen import PATTERNS
from vlm_core.catalogue.sample import HEADER, Defects, count_defects, draw_picture, draw_sample, plan_rows
from vlm_core.errors import UserError
from vlm_core.progress import T, track

FIVE = {"Accessories", "Apparel", "Footwear", "Free Items", "Personal Care"}


@dataclass(frozen=True)
class Drawn:
    rows: list[dict[str, str]]  # of readable pictures, titles whole
    pictures: np.ndarray  # (n, 80, 60, 3) uint8

    @property
    def categories(self) -> np.ndarray:
        return np.array([row["masterCategory"] for row in self.rows])


def read_rows(folder: Path) -> list[dict[str, str]]:
    header, *lines = (folder / "styles.csv").read_text(encoding="utf-8").splitlines()
    return [dict(zip(header.split(","), line.split(",", 9), strict=True)) for line in lines]


def read_picture(path: Path) -> np.ndarray | None:
    try:
        with Image.open(path) as picture:
            return np.asarray(picture.convert("RGB"))
    except OSError:
        return None


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Drawn:
    folder = draw_sample(tmp_path_factory.mktemp("sample") / "catalogue", products=800)
    read = [(row, read_picture(folder / "images" / f"{row['id']}.jpg")) for row in read_rows(folder)]
    whole = [(row, picture) for row, picture in read if picture is not None and row["masterCategory"] in FIVE]
    return Drawn([row for row, _ in whole], np.stack([picture for _, picture in whole]))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_sample(tmp_path_factory.mktemp("small") / "catalogue", products=60)


def halves(categories: np.ndarray, wanted: Iterable[str]) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.model_selection import train_test_split

    rows = np.flatnonzero(np.isin(categories, list(wanted)))
    first, second = train_test_split(rows, test_size=0.5, stratify=categories[rows], random_state=0)
    return first, second


def macro_f1(model, features: np.ndarray, categories: np.ndarray, wanted: Iterable[str]) -> float:
    from sklearn.metrics import f1_score

    train, test = halves(categories, wanted)
    predicted = model.fit(features[train], categories[train]).predict(features[test])
    return float(f1_score(categories[test], predicted, average="macro"))


def test_layout_is_that_of_kaggle(small: Path) -> None:
    assert (small / "styles.csv").read_text(encoding="utf-8").splitlines()[0] == HEADER
    rows = read_rows(small)
    assert len(rows) == 60
    assert len({row["id"] for row in rows}) == 60
    for path in (small / "images").iterdir():
        with Image.open(path) as picture:
            assert (picture.format, picture.mode, picture.size) == ("JPEG", "RGB", (60, 80))


@pytest.mark.slow
def test_same_seed_same_bytes_and_another_seed_others(small: Path, tmp_path: Path) -> None:
    assert digests(draw_sample(tmp_path / "again", products=60)) == digests(small)
    assert digests(draw_sample(tmp_path / "other", products=60, seed=8)) != digests(small)


def test_a_complete_folder_is_left_alone(tmp_path: Path) -> None:
    folder = draw_sample(tmp_path / "sample", products=40)
    (folder / "styles.csv").write_text("edited", encoding="utf-8")
    assert draw_sample(folder, products=40) == folder
    assert (folder / "styles.csv").read_text(encoding="utf-8") == "edited"


def test_an_incomplete_or_different_folder_is_drawn_anew(tmp_path: Path) -> None:
    folder = draw_sample(tmp_path / "sample", products=40)
    whole = digests(folder)
    next((folder / "images").iterdir()).unlink()
    assert digests(draw_sample(folder, products=40)) == whole
    assert len(read_rows(draw_sample(folder, products=45))) == 45


def test_a_folder_of_something_else_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "styles.csv").write_text("mine", encoding="utf-8")
    with pytest.raises(UserError, match="not a sample catalogue"):
        draw_sample(tmp_path, products=40)
    assert (tmp_path / "styles.csv").read_text(encoding="utf-8") == "mine"


def test_too_few_products_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="at least 40"):
        draw_sample(tmp_path / "sample", products=39)


def test_an_interrupted_drawing_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(iterable: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
        for number, value in enumerate(iterable):
            if number == 5:
                raise KeyboardInterrupt
            yield value

    monkeypatch.setattr("vlm_core.catalogue.sample.track", stopped)
    with pytest.raises(KeyboardInterrupt):
        draw_sample(tmp_path / "sample", products=40)
    assert list(tmp_path.iterdir()) == []


def test_two_drawings_at_once_end_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, first = tmp_path / "sample", []

    def overtaken(iterable: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
        with monkeypatch.context() as patch:
            patch.setattr("vlm_core.catalogue.sample.track", track)
            first.append(digests(draw_sample(folder, products=40)))
        yield from iterable

    monkeypatch.setattr("vlm_core.catalogue.sample.track", overtaken)
    draw_sample(folder, products=40)
    assert digests(folder) == first[0]
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.slow
@pytest.mark.parametrize("products", [40, 60, 240])
def test_defects_are_those_counted(products: int, tmp_path: Path) -> None:
    folder = draw_sample(tmp_path / "sample", products=products)
    rows, paths = read_rows(folder), {path.stem: path for path in (folder / "images").iterdir()}
    with (folder / "styles.csv").open(encoding="utf-8", newline="") as table:
        too_long = sum(len(cells) > 10 for cells in csv.reader(table))
    groups: dict[bytes, list[str]] = {}
    for row in rows:
        if row["id"] in paths:
            groups.setdefault(paths[row["id"]].read_bytes(), []).append(row["masterCategory"])
    found = Defects(
        unquoted_commas=too_long,
        pictures_missing=sum(row["id"] not in paths for row in rows),
        pictures_truncated=sum(read_picture(path) is None for path in paths.values()),
        copies=sum(len(group) - 1 for group in groups.values() if len(set(group)) == 1),
        disagreeing_copies=sum(len(group) - 1 for group in groups.values() if len(set(group)) > 1),
        home_products=sum(row["masterCategory"] == "Home" for row in rows),
    )
    assert found == count_defects(products)


def test_categories_are_as_uneven_as_in_a_real_shop() -> None:
    counts = Counter(row.master_category for row in plan_rows(1600, seed=7))
    assert set(counts) == FIVE | {"Home"}
    assert counts["Home"] == 1
    assert counts["Free Items"] >= 80
    assert [name for name, _ in counts.most_common(5)] == ["Apparel", *SHARES]
    assert counts["Personal Care"] / 1600 == pytest.approx(0.12, abs=0.005)


def test_titles_say_what_the_row_says() -> None:
    for row in plan_rows(400, seed=3):
        for word in (row.gender, row.base_colour, ARTICLES[row.looks_like].noun):
            assert word in row.title


def test_gifts_look_like_what_is_sold() -> None:
    gifts = [row for row in plan_rows(1600, seed=7) if row.master_category == "Free Items"]
    looks = Counter(ARTICLES[row.looks_like].category for row in gifts)
    assert set(looks) == {"Accessories", "Apparel", "Personal Care"}
    assert Counter(row.article_type for row in gifts).most_common(1)[0][0] == "Free Gifts"


@pytest.mark.slow
def test_the_colour_of_a_row_is_the_colour_drawn(drawn: Drawn) -> None:
    names, values = list(COLOURS), np.array(list(COLOURS.values()), dtype=float)
    agree = []
    for row, picture in zip(drawn.rows, drawn.pictures, strict=True):
        plain = not any(pattern in row["productDisplayName"] for pattern in PATTERNS)
        if plain and row["articleType"] in {"Tshirts", "Backpacks", "Wallets", "Shorts", "Skirts"}:
            seen = np.median(picture[30:50, 22:38].reshape(-1, 3), axis=0)
            nearest_two = np.argsort(np.linalg.norm(values - seen, axis=1))[:2]
            agree.append(row["baseColour"] in {names[index] for index in nearest_two})
    assert len(agree) > 50
    assert np.mean(agree) > 0.75


@pytest.mark.slow
def test_the_whole_sample_is_drawn_in_seconds() -> None:
    rows, seconds = plan_rows(1600, seed=7)[:80], []
    for _ in range(3):
        started = time.process_time()
        for row in rows:
            draw_picture(row, seed=7)
        seconds.append(time.process_time() - started)
    assert min(seconds) / len(rows) * 1600 < 10


@pytest.mark.slow
def test_nearest_mean_on_raw_pixels_is_not_enough(drawn: Drawn) -> None:
    from sklearn.neighbors import NearestCentroid

    flat = drawn.pictures.reshape(len(drawn.pictures), -1).astype(np.float32)
    assert macro_f1(NearestCentroid(), flat, drawn.categories, FIVE) < 0.75


@pytest.mark.slow
def test_background_and_size_do_not_tell_the_category(drawn: Drawn) -> None:
    from sklearn.ensemble import RandomForestClassifier

    corners = drawn.pictures[:, [1, 1, -2, -2], [1, -2, 1, -2]].astype(float)  # (n, 4, 3)
    size = (np.abs(drawn.pictures - corners.mean(1)[:, None, None]).sum(-1) > 60).mean((1, 2))
    features = np.concatenate([corners.reshape(len(corners), -1), size[:, None]], axis=1)
    forest = RandomForestClassifier(100, min_samples_leaf=3, class_weight="balanced", random_state=0)
    assert macro_f1(forest, features, drawn.categories, FIVE) < 0.5


@pytest.mark.slow
def test_shapes_tell_the_four_visual_categories_but_not_gifts(drawn: Drawn) -> None:
    from skimage.feature import hog
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    grey = drawn.pictures.mean(-1)
    features = np.stack([hog(picture, pixels_per_cell=(10, 10), cells_per_block=(2, 2)) for picture in grey])
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=500, class_weight="balanced"))
    four = macro_f1(model, features, drawn.categories, FIVE - {"Free Items"})
    assert 0.8 < four < 0.97
    assert macro_f1(model, features, drawn.categories, FIVE) < four - 0.05

"""Unlabelled images: wherever they are, each gets a prediction or an error of its own, and the file appears whole."""

import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tests.models.families import make_categoriser
from vlm_core.errors import UserError
from vlm_core.inference import record_columns
from vlm_core.workflows.predict import find_pictures, predict_batches, write_predictions


@pytest.fixture
def photos(tmp_path):
    """Three pictures and a broken one, as a folder, a zip and a table."""
    folder = tmp_path / "photos"
    (folder / "deep").mkdir(parents=True)
    for name, colour in (("a.jpg", "red"), ("b.png", "blue"), ("deep/c.webp", "white")):
        Image.new("RGB", (40, 50), colour).save(folder / name)
    (folder / "broken.jpg").write_text("text")
    (folder / "table.csv").write_text("id,photo\n1,a.jpg\n2,deep/c.webp\n3,gone.jpg\n")
    shutil.make_archive(str(tmp_path / "photos"), "zip", folder)
    return folder


def _predict(place, output, **columns):
    model = make_categoriser("git", "sentences")
    pictures = find_pictures(place, columns.get("id_column", "id"), columns.get("picture_column", ""))
    count = write_predictions(output, ["id", *record_columns(model)], predict_batches(model, pictures))
    table = pd.read_csv(output) if output.suffix == ".csv" else pd.read_parquet(output)
    assert len(table) == count
    return table


@pytest.mark.slow
def test_a_folder_and_its_zip_give_the_same_rows(photos, tmp_path):
    table = _predict(photos, tmp_path / "out.csv")
    assert table["id"].tolist() == ["a", "b", "broken", "deep/c"]
    assert table["error"].notna().tolist() == [False, False, True, False]
    assert table["category"].isna().tolist() == [False, False, True, False]
    shares = table.filter(like="p_").dropna().sum(axis=1)
    np.testing.assert_allclose(shares, 1, atol=1e-5)
    assert {"text", "text_category"} <= set(table.columns)
    zipped = _predict(photos.with_suffix(".zip"), tmp_path / "out.parquet")
    pd.testing.assert_series_equal(zipped["confidence"], table["confidence"], atol=1e-6)


def test_a_table_names_its_pictures(photos, tmp_path):
    table = _predict(photos / "table.csv", tmp_path / "out.csv", picture_column="photo")
    assert table["id"].tolist() == [1, 2, 3]
    assert table["error"].notna().tolist() == [False, False, True]


def test_a_stop_leaves_no_file(photos, tmp_path):
    def broken():
        yield [{"id": "a"}]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_predictions(tmp_path / "out.csv", ["id", "category"], broken())
    assert not list(tmp_path.glob("*out*"))


def test_what_cannot_be_read_or_written_is_refused(photos, tmp_path):
    (tmp_path / "none").mkdir()
    (tmp_path / "torn.zip").write_bytes(photos.with_suffix(".zip").read_bytes()[:300])
    for place, message in [
        ("none", "contains no images"),
        ("torn.zip", "is not a folder"),
        ("gone", "is not a folder"),
    ]:
        with pytest.raises(UserError, match=message):
            find_pictures(tmp_path / place, "id", "")
    with pytest.raises(UserError, match="picture_column=file is not a column"):
        find_pictures(photos / "table.csv", "id", "file")
    with pytest.raises(UserError, match=r"must end in .csv or .parquet"):
        write_predictions(tmp_path / "out.txt", ["id"], iter([]))

"""A whole catalogue is predicted part by part: the same rows as in one file, each once, however often it was killed."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from tests.messages import collected_messages
from tests.models.families import make_categoriser
from tests.object_store import MemoryStore
from vlm_core.catalogue import shards
from vlm_core.catalogue.reading import Columns
from vlm_core.catalogue.sources import open_source
from vlm_core.config import EngineSettings
from vlm_core.errors import UserError
from vlm_core.inference import record_columns
from vlm_core.models.saved import load_categoriser
from vlm_core.tracking import registry
from vlm_core.workflows.predict import find_pictures, predict_batches, write_predictions
from vlm_core.workflows.predict_parts import Predictor, predict_into_folder

COLUMNS = Columns("id", "photo", "", "", ())
LOCAL = EngineSettings()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    make_categoriser("clip").save(folder)
    return folder


@pytest.fixture(autouse=True)
def _small_groups(monkeypatch, model):
    monkeypatch.setattr(shards, "ROWS_PER_GROUP", 32)
    monkeypatch.setattr(registry, "resolve", lambda address: Path(address))


@pytest.fixture
def shop(tmp_path):
    """A table of 100 pictures, some of which are broken, missing or not named at all."""
    folder = tmp_path / "shop"
    folder.mkdir()
    lines = ["id,photo"]
    for number in range(100):
        lines.append(f"{number},{number}.png")
        if number % 40:
            Image.new("RGB", (6, 8), (number, 255 - number, number)).save(folder / f"{number}.png")
    (folder / "3.png").write_text("no picture")
    lines.insert(50, "torn")
    lines.insert(60, ",61.png")
    (folder / "shop.csv").write_text("\n".join(lines))
    return folder / "shop.csv"


def _in_one_file(model, place, output, columns=COLUMNS):
    loaded = load_categoriser(model)
    pictures = find_pictures([str(place)], columns.id, columns.picture, output.parent)
    write_predictions(output, ["id", *record_columns(loaded)], predict_batches(loaded, pictures))
    return pd.read_parquet(output)


def _predict(model, place, output, columns=COLUMNS):
    written = predict_into_folder(LOCAL, str(model), [str(place)], columns, output, root=output.parent)
    files = sorted(output.glob("*.parquet"))
    table = pd.concat([pd.read_parquet(file) for file in files], ignore_index=True)
    assert (written.rows, written.failed) == (len(table), int(table["error"].notna().sum()))
    assert not list(output.parent.glob(".*")) and not list(output.glob(".*"))
    return table


def _pack(place, output):
    source = open_source(str(place), output.parent)
    return shards.pack(source, COLUMNS, output, rows_per_shard=64, bytes_per_shard=10**7)


def test_parts_are_the_rows_of_one_file(model, shop, tmp_path):
    expected = _in_one_file(model, shop, tmp_path / "one.parquet")
    assert len(expected) == 102 and expected["error"].notna().sum() == 5
    pd.testing.assert_frame_equal(_predict(model, shop, tmp_path / "out"), expected)


def test_a_packed_catalogue_is_read_where_it_lies(model, shop, tmp_path):
    _pack(shop, tmp_path / "shards")
    table = _predict(model, tmp_path / "shards", tmp_path / "out")
    pd.testing.assert_frame_equal(table, _in_one_file(model, tmp_path / "shards", tmp_path / "one.parquet"))
    plain = _in_one_file(model, shop, tmp_path / "plain.parquet")
    pd.testing.assert_frame_equal(table.drop(columns=["id", "error"]), plain.drop(columns=["id", "error"]))
    assert (table["error"].isna() == plain["error"].isna()).all()
    assert "1 field where the header has 2" in table["error"][49]
    assert len(list((tmp_path / "out").glob("*.parquet"))) == 4


def test_a_folder_of_pictures_is_packed_on_the_way(model, shop, tmp_path):
    files = Columns("id", "", "", "", ())  # where no column is named, the table among the pictures is passed over
    expected = _in_one_file(model, shop.parent, tmp_path / "one.parquet", files)
    assert len(expected) == 97
    pd.testing.assert_frame_equal(_predict(model, shop.parent, tmp_path / "out", files), expected)


def test_what_lies_at_an_address_is_packed_on_the_way(model, shop, tmp_path):
    address = MemoryStore(tmp_path.name).put_all(shop.parent)
    _pack(f"{address}/shop.csv", tmp_path / "shards")
    packed = MemoryStore(tmp_path.name).put_all(tmp_path / "shards")
    expected = _in_one_file(model, shop, tmp_path / "table.parquet")
    for number, place in enumerate((f"{address}/shop.csv", packed)):
        found = _predict(model, place, tmp_path / f"out-{number}")
        pd.testing.assert_frame_equal(found.drop(columns=["id", "error"]), expected.drop(columns=["id", "error"]))
        assert (found["error"].isna() == expected["error"].isna()).all()
    files = Columns("id", "", "", "", ())
    expected = _in_one_file(model, shop.parent, tmp_path / "folder.parquet", files)
    pd.testing.assert_frame_equal(_in_one_file(model, address, tmp_path / "far.parquet", files), expected)
    pd.testing.assert_frame_equal(_predict(model, address, tmp_path / "out", files), expected)


def test_an_address_is_predicted_alone(tmp_path):
    store = MemoryStore(tmp_path.name)
    store.put("photos/1.jpg", b"x")
    alone = find_pictures([f"{store.top}/photos/1.jpg"], "id", "", tmp_path)
    assert [picture.id for picture in alone] == ["1"]
    with pytest.raises(UserError, match="is an address, which is predicted alone: give no other place beside it"):
        find_pictures([f"{store.top}/photos", str(tmp_path)], "id", "", tmp_path)
    with pytest.raises(UserError, match="is not there: check the names"):
        find_pictures([f"{store.top}/photos/*.jpg"], "id", "", tmp_path)


def test_a_prediction_that_was_cut_goes_on(model, shop, tmp_path, monkeypatch):
    _pack(shop, tmp_path / "shards")
    expected = _predict(model, tmp_path / "shards", tmp_path / "whole")
    predict, done = Predictor.__call__, []

    def cut(self, part):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(part.name)
        return predict(self, part)

    monkeypatch.setattr(Predictor, "__call__", cut)
    with pytest.raises(KeyboardInterrupt):
        _predict(model, tmp_path / "shards", tmp_path / "out")
    unfinished = tmp_path / ".out.predicting"
    assert not (tmp_path / "out").exists() and len(done) == 3
    torn = unfinished / done[1]
    torn.write_bytes(torn.read_bytes()[:-20])
    (unfinished / ".part-000003.parquet.0-1-0.part").write_text("of a process that died")
    again = []
    monkeypatch.setattr(Predictor, "__call__", lambda self, part: (again.append(part.name), predict(self, part))[1])
    table = _predict(model, tmp_path / "shards", tmp_path / "out")
    assert again == [done[1], "part-000003.parquet"]
    pd.testing.assert_frame_equal(table, expected)


def test_what_is_there_is_kept_or_refused(model, shop, tmp_path, monkeypatch):
    _pack(shop, tmp_path / "shards")
    first = _predict(model, tmp_path / "shards", tmp_path / "out")
    (tmp_path / ".out.lock").touch()  # of a process that died right after all was done
    with collected_messages() as messages:
        pd.testing.assert_frame_equal(_predict(model, tmp_path / "shards", tmp_path / "out"), first)
    assert any("is whole already" in message for message in messages)
    other = tmp_path / "other"
    shutil.copytree(model, other)
    (other / "more.json").write_text("{}")
    with pytest.raises(UserError, match="holds something else"):
        _predict(other, tmp_path / "shards", tmp_path / "out")
    with pytest.raises(UserError, match="holds something else"):
        _predict(model, shop, tmp_path / "out")
    assert not (tmp_path / ".out.pictures").exists()
    monkeypatch.setattr(Predictor, "__call__", lambda self, part: json.loads(""))
    with pytest.raises(json.JSONDecodeError):
        _predict(model, tmp_path / "shards", tmp_path / "cut")
    with pytest.raises(UserError, match="unfinished prediction by another model"):
        _predict(other, tmp_path / "shards", tmp_path / "cut")
    with pytest.raises(UserError, match="id_column=sku is not a column"):
        _predict(model, shop, tmp_path / "new", Columns("sku", "", "", "", ()))
    with pytest.raises(UserError, match="picture_column=sku is not a column"):
        _predict(model, tmp_path / "shards", tmp_path / "new", Columns("id", "sku", "", "", ()))


def test_a_model_of_texts_reads_them_in_parts_as_well(tmp_path, shop):
    from tests.models.test_fusion import make_reader

    make_reader("clip", fusion="concat").save(tmp_path / "reader")
    rows = ["1,1.png,Blue Jacket", "2,2.png,", "3,gone.png,Blue Jacket", "4,,Blue Jacket", "5,,", "6,3.png,Blue Jacket"]
    (shop.parent / "titled.csv").write_text("id,photo,title\n" + "\n".join(rows) + "\n")
    loaded = load_categoriser(tmp_path / "reader")
    pictures = find_pictures([str(shop.parent / "titled.csv")], "id", "photo", tmp_path, text_columns=["title"])
    columns = ["id", *record_columns(loaded)]
    expected = write_predictions(tmp_path / "one.parquet", columns, predict_batches(loaded, pictures))
    assert (expected.failed, expected.without_image) == (1, 2)
    _pack(shop.parent / "titled.csv", tmp_path / "shards")
    for place in ("shop/titled.csv", "shards"):
        written = predict_into_folder(
            LOCAL, str(tmp_path / "reader"), [str(tmp_path / place)], COLUMNS, tmp_path / f"{place[:4]}-out",
            root=tmp_path, title_column="title",
        )  # fmt: skip
        assert written == expected
        table = pd.read_parquet(tmp_path / f"{place[:4]}-out")
        pd.testing.assert_frame_equal(table, pd.read_parquet(tmp_path / "one.parquet"))

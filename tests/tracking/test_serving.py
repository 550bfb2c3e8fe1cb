"""The served model: rows that answer for themselves, and a model that loads where nothing of ours is installed."""

from __future__ import annotations

import base64
import io
import json
import shutil
import threading
import zlib
from functools import partial
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow.exceptions import MlflowException
from PIL import Image

from tests.models.families import CATEGORIES, make_categoriser
from tests.models.test_fusion import make_reader
from tests.models.test_onnx_export import exported
from tests.stores import run_python
from tests.tracking.models import save_categoriser
from vlm_core.inference import REQUEST_BATCH
from vlm_core.pixels.picture_store import PixelBudget, decode_picture, fit_picture
from vlm_core.tracking.logging_model import requirements, save_model
from vlm_core.tracking.serving import ServedCategoriser, picture_bytes

COLUMNS = ["category", "confidence", *(f"p_{name}" for name in CATEGORIES)]


def _picture(shade: int, size: tuple[int, int] = (60, 80)) -> bytes:
    data = io.BytesIO()
    picture = Image.new("RGB", size, (shade, 255 - shade, 128))
    picture.paste((0, 0, shade), (5, 5, 5 + shade % 40 + 5, 60))
    picture.save(data, "PNG")
    return data.getvalue()


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


@given(st.binary(min_size=1, max_size=200), st.sampled_from(["", "data:image/png;base64,", "DATA:;Base64,", "\n"]))
def test_any_bytes_come_through_base64_and_data_urls(data: bytes, header: str) -> None:
    text = _text(data)
    assert picture_bytes(header + text) == data
    assert picture_bytes(header + "\n".join(text[start : start + 7] for start in range(0, len(text), 7))) == data
    assert picture_bytes(header + text.rstrip("=")) == data
    assert picture_bytes(header + base64.urlsafe_b64encode(data).decode()) == data
    assert picture_bytes(header + quote(text, safe="")) == data


@pytest.mark.parametrize(
    ("picture", "said"),
    [
        (None, "not a text"),
        (float("nan"), "not a text"),
        (7, "not a text"),
        (b"bytes", "not a text"),
        ("  ", "not a text"),
        ("not base64 at all!", "not base64"),
        ("abcde", "not base64"),
        ("data:image/png,abcd", "does not hold base64"),
        ("data:image/png;base64", "does not hold base64"),
        ("A" * 14_000_000, "larger than 10 MB"),
        ("A" * 13_333_336, "larger than 10 MB"),
        ("https://cdn.shop.example/1.jpg", "is an address: send the picture itself, as base64"),
        (" s3://bucket/1.jpg", "is an address: send the picture itself, as base64"),
        ("file:///home/me/1.jpg", "is an address: send the picture itself, as base64"),
        ("images/1.jpg", "send the picture itself, as base64"),
        ("b'" + _text(b"bytes") + "'", "Python's notation of bytes"),
    ],
)
def test_what_is_no_base64_is_said(picture: object, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        picture_bytes(picture)


def _huge_picture() -> bytes:
    """A PNG of a few hundred bytes that claims 900 megapixels."""
    header = b"\x00\x00\x75\x30\x00\x00\x75\x30\x08\x02\x00\x00\x00"  # 30,000 x 30,000, RGB

    def chunk(kind: bytes, body: bytes) -> bytes:
        return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")

    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.slow
def test_bad_pictures_are_answered_in_their_row_and_good_ones_in_theirs() -> None:
    model = make_categoriser("clip")
    good = [_picture(shade) for shade in range(70)]  # more than two batches
    bad = {3: "bad!", 31: None, 32: _text(good[0][:90]), 50: _text(_huge_picture()), 69: _text(b"x" * 10_000_001)}
    column: list[object] = [bad.get(row, _text(picture)) for row, picture in enumerate(good)]
    rows = ServedCategoriser(model).predict(pd.DataFrame({"picture": column}))
    assert list(rows) == [*COLUMNS, "error"]
    wrong = rows.index[rows["error"].notna()].tolist()
    assert wrong == sorted(bad)
    assert rows.loc[wrong, COLUMNS].map(lambda value: value is None).all(axis=None)
    assert "megapixels" in rows["error"][50]
    assert "MB" in rows["error"][69]
    right = [row for row in range(70) if row not in bad]
    fitted = np.stack([fit_picture(decode_picture(good[row]), model.canvas) for row in right])
    expected = np.exp(model.log_probabilities(fitted))
    np.testing.assert_allclose(rows.loc[right, COLUMNS[2:]].astype(float), expected, atol=1e-5)
    assert rows["category"][right].tolist() == [CATEGORIES[index] for index in expected.argmax(axis=1)]
    np.testing.assert_allclose(rows["confidence"][right].astype(float), expected.max(axis=1), atol=1e-5)


def test_a_request_is_bounded_in_all_and_says_which_pictures_it_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlm_core.tracking.serving.PixelBudget", partial(PixelBudget, 3 * 60 * 80 + 5))
    monkeypatch.setattr("vlm_core.tracking.serving.REQUEST_BATCH", 2)
    served = ServedCategoriser(make_categoriser("clip"))
    column = [_text(_picture(shade)) for shade in range(4)]
    for _ in range(2):  # a budget for each request
        rows = served.predict(pd.DataFrame({"picture": [*column, "bad!", _text(_picture(7, (2, 2)))]}))
        assert rows.index[rows["error"].notna()].tolist() == [3, 4]
        assert "send fewer at once" in rows["error"][3]


def test_a_long_request_lets_short_ones_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    served = ServedCategoriser(make_categoriser("clip"))
    free = []
    monkeypatch.setattr(
        "vlm_core.tracking.serving.predict_records",
        lambda model, readers, budget, texts: free.append(served._turn.locked()) or [{} for _ in readers],
    )
    monkeypatch.setattr(served, "_turn", turns := _Turns())
    served.predict(pd.DataFrame({"picture": ["bad!"] * (2 * REQUEST_BATCH + 1)}))
    assert (free, turns.taken) == ([True] * 3, 3)


class _Turns:
    """A lock that counts how often it was taken."""

    def __init__(self) -> None:
        self.taken = 0
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        self.taken += 1
        self._lock.acquire()

    def __exit__(self, *error: object) -> None:
        self._lock.release()

    def locked(self) -> bool:
        return self._lock.locked()


def test_a_model_that_writes_answers_with_its_text() -> None:
    model = make_categoriser("git", "sentences")
    picture = _picture(7)
    rows = ServedCategoriser(model).predict(pd.DataFrame({"picture": ["bad!", _text(picture)]}))
    assert list(rows) == [*COLUMNS, "text", "text_category", "error"]
    described = model.describe(np.stack([fit_picture(decode_picture(picture), model.canvas)]))
    assert described is not None
    index = int(described[1][0])
    assert rows["text"].tolist() == [None, described[0][0]]
    assert rows["text_category"].tolist() == [None, CATEGORIES[index] if index >= 0 else "Unknown Category"]


def test_an_answer_is_json_without_nan() -> None:
    rows = ServedCategoriser(make_categoriser("clip")).predict(pd.DataFrame({"picture": ["bad!", _text(_picture(1))]}))
    json.dumps(rows.to_dict(orient="records"), allow_nan=False)


def test_a_request_with_other_columns_alone_is_refused_with_those_that_are_read() -> None:
    served = ServedCategoriser(make_reader("clip", "text"))
    with pytest.raises(MlflowException, match="no column named picture, nor one named text") as refused:
        served.predict(pd.DataFrame(index=range(0)))
    assert refused.value.get_http_status_code() == 400


def test_no_pictures_no_answers() -> None:
    rows = ServedCategoriser(make_categoriser("clip")).predict(pd.DataFrame({"picture": []}))
    assert (len(rows), list(rows)) == (0, [*COLUMNS, "error"])


def test_requirements_are_pinned_to_what_is_installed_and_any_build_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "vlm_core.tracking.logging_model.version", lambda name: "2.14.1+cpu" if name == "torch" else "1.0"
    )
    assert "torch==2.14.1" in requirements("clip")
    assert "scikit-image==1.0" in requirements("baseline")
    assert "torch==2.14.1" not in requirements("baseline")
    assert "scikit-image==1.0" not in requirements("git")


ELSEWHERE = """
import importlib.metadata, json, os, re, sys
from importlib.machinery import PathFinder
from pathlib import Path

def brought(model):
    "The distributions that the model's requirements bring, and no others."
    found, waiting = set(), [line.split("==")[0] for line in (model / "requirements.txt").read_text().split()]
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in found:
            continue
        found.add(name)
        try:
            needed = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        waiting += [re.match(r"[\\w.-]+", line)[0] for line in needed if "extra ==" not in line]
    return found

owners = importlib.metadata.packages_distributions()
models = [Path(word) for word in sys.argv[1:]]

class Door(PathFinder):
    "Stands for an environment that holds the requirements alone: what they do not bring cannot be imported."
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        makers = {re.sub(r"[-_.]+", "-", maker).lower() for maker in owners.get(name.split(".")[0], ())}
        return None if makers and not makers & allowed else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Door
for place, model in enumerate(models):
    allowed = set.intersection(*map(brought, models[place:]))
    import mlflow, pandas  # which takes seconds, as PyTorch does, and is common to all that follow
    from mlflow.utils.requirements_utils import _init_modules_to_packages_map as list_packages
    list_packages()  # so does this, which loading a model begins with
    if "torch" in allowed:
        import torch
    child = os.fork()
    if not child:
        break
    if os.waitpid(child, 0)[1]:
        sys.exit(f"{model} does not answer")
else:
    sys.exit()
allowed = brought(model)
served = mlflow.pyfunc.load_model(str(model))
import vlm_core
example = served.input_example
rows = served.predict(pandas.DataFrame({"picture": [example["picture"][0], "bad!"]}))
schema = {spec["name"] for spec in served.metadata.signature.outputs.to_dict()}
print(json.dumps([vlm_core.__file__, sorted(schema), rows.to_dict(orient="records")]))
"""
ENGINES = ("baseline", "blip", "onnx")


def _save(engine: str, folder: Path) -> Path:
    if engine == "onnx":
        _, onnx, _ = exported("clip", "linear", "fused")
        onnx.save(folder)
        return folder
    return save_categoriser(engine, folder)


@pytest.mark.slow
def test_saved_models_answer_in_processes_that_know_nothing_of_us(tmp_path: Path) -> None:
    models = [tmp_path / engine / "model" for engine in ENGINES]
    for engine, model in zip(ENGINES, models, strict=True):
        folder = _save(engine, tmp_path / engine / "some-folder")
        (folder / "README.md").write_text("a card")
        save_model(folder, model)
        assert not list((model / "code").rglob("*.safetensors"))  # the tiny weights stay at home
        shutil.rmtree(folder)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = run_python(ELSEWHERE, elsewhere, *map(str, models), PYTHONPATH="", PYTHONDONTWRITEBYTECODE="1")
    assert done.returncode == 0, done.stderr
    for model, line in zip(models, done.stdout.splitlines()[-len(models) :], strict=True):
        place, schema, (answer, refused) = json.loads(line)
        assert Path(place).is_relative_to(model / "code")
        assert sorted(answer) == schema
        assert sum(answer[f"p_{name}"] for name in CATEGORIES) == pytest.approx(1)
        assert (answer["error"], refused["category"]) == (None, None)
        assert refused["error"].startswith("The picture is not base64")
        files = {path.name for path in model.rglob("*") if path.is_file()}
        assert not {name for name in files if name.endswith((".pkl", ".pickle", ".bin", ".pt", ".pyc"))}
        assert (model / "README.md").read_text() == "a card"
        assert (model / "data" / "categoriser" / "categoriser.json").exists()


def test_a_model_that_reads_texts_answers_from_what_there_is() -> None:
    from tests.models.test_fusion import make_reader

    served = ServedCategoriser(make_reader("clip", fusion="late"))
    picture, title = _text(_picture(7)), "Blue Jacket"
    pictures, sent = [picture, None, "", "bad!", "bad!", picture], [title, title, "", title, "", None]
    table = pd.DataFrame({"picture": pictures, "text": sent})
    rows = served.predict(table)
    assert list(rows) == [*COLUMNS, "read", "error"]
    assert rows["read"].tolist() == ["image+text", "text", None, "text", None, "image"]
    assert rows["error"].notna().tolist() == [False, False, True, True, True, False]
    assert "neither an image nor a text" in rows["error"][2] and "base64" in rows["error"][3]
    assert rows["category"].notna().tolist() == [True, True, False, True, False, True]
    old = served.predict(table[["picture"]])  # a client of before
    np.testing.assert_allclose(old["confidence"][5], rows["confidence"][5], atol=1e-6)
    assert old["read"].tolist() == ["image", None, None, None, None, "image"]
    titles = served.predict(table[["text"]])
    assert titles["read"].tolist() == ["text", "text", None, "text", None, None]
    np.testing.assert_allclose(titles["confidence"][0], rows["confidence"][1], atol=1e-6)


def test_a_model_of_texts_alone_needs_no_picture() -> None:
    from tests.models.test_fusion import make_reader

    served = ServedCategoriser(make_reader("blip", "text"))
    rows = served.predict(pd.DataFrame({"text": ["Blue Jacket", "", "Shirt"]}))  # the model masks "shirt"
    assert rows["read"].tolist() == ["text", None, None]
    assert rows["error"].notna().tolist() == [False, True, True]


@pytest.mark.slow
def test_the_signature_of_a_model_that_reads_texts_takes_them_and_old_requests(tmp_path: Path) -> None:
    import mlflow

    from tests.models.test_fusion import make_reader

    make_reader("git").save(tmp_path / "saved")
    save_model(tmp_path / "saved", tmp_path / "model")
    model = mlflow.pyfunc.load_model(str(tmp_path / "model"))
    inputs = {column.name: column.required for column in model.metadata.signature.inputs}
    assert inputs == {"picture": False, "text": False}
    picture = _text(_picture(7))
    for sent in ({"picture": [picture], "text": ["Blue"]}, {"picture": [picture]}, {"text": ["Blue"]}):
        assert model.predict(pd.DataFrame(sent))["error"].isna().all()

"""The audit of a catalogue alone: what is planted is found, and the table that is written corrects it."""

import re

import pandas as pd
import pytest
from PIL import Image

from experiments.audit import main
from tests.messages import collected_messages
from tests.shops import write_shop
from vlm_core.config import AuditConfig
from vlm_core.data import load_catalogue
from vlm_core.errors import UserError
from vlm_core.workflows import audit as module
from vlm_core.workflows.audit import run_audit

COLUMNS = ["--label", "category", "--picture_column", "photo", "--title_column", "", "--attributes", ""]


@pytest.fixture
def shop(tmp_path, monkeypatch):
    """Round and square products, one of each wrong in one way."""
    table = write_shop(tmp_path, {"Round": 16, "Square": 16, "round": 1, "n/a": 1})
    photos = tmp_path / "photos"
    photos.joinpath("2.png").write_bytes(photos.joinpath("1.png").read_bytes())  # duplicates
    photos.joinpath("20.png").write_bytes(photos.joinpath("19.png").read_bytes())
    Image.open(photos / "3.png").resize((20, 26)).save(photos / "3.png")
    Image.new("RGB", (60, 80), "white").save(photos / "4.png")
    photos.joinpath("5.png").write_bytes(photos.joinpath("5.png").read_bytes()[:80])
    for number in (6, 7, 8, 21, 22):
        photos.joinpath(f"{number}.png").write_bytes(photos.joinpath("23.png").read_bytes())
    lines = table.read_text().splitlines()
    lines[20] = lines[20].replace("Square", "Round")  # the twin of p19, so they conflict
    lines.append("p99,photos/9.png")
    table.write_text("\n".join(lines) + "\n")
    monkeypatch.chdir(tmp_path)
    return table


def _found(table, kind):
    return table.loc[table["finding"] == kind, "id"].tolist()


@pytest.mark.slow
def test_what_is_planted_is_found_and_can_be_corrected(shop, tmp_path, capsys):
    main(["--data", str(shop), *COLUMNS, "--threads", "1"])
    assert "Wrote audit.csv and audit.html to audit." in capsys.readouterr().out
    table = pd.read_csv(tmp_path / "audit" / "audit.csv", dtype=str, keep_default_na=False)
    assert _found(table, "conflict") >= ["p19", "p20"]
    assert {"p19", "p20"} <= set(_found(table, "conflict"))
    assert set(_found(table, "placeholder")) == {"p6", "p7", "p8", "p21", "p22", "p23"}
    assert {"p1", "p2"} <= set(_found(table, "duplicate")) and "p6" not in _found(table, "duplicate")
    assert (_found(table, "tiny picture"), _found(table, "blank picture")) == (["p3"], ["p4"])
    assert _found(table, "spelling") == ["p33", "p34"]
    unreadable = table[table["finding"] == "unreadable picture"]
    assert unreadable["line"].tolist() == ["6"] and "photos/5.png" in unreadable["details"].item()
    page = (tmp_path / "audit" / "audit.html").read_text()
    assert page.count("<h2>") == len(module.KINDS) and "data:image/jpeg;base64," in page
    assert "<script" not in page and "http" not in page

    table.loc[table["id"] == "p20", "new"] = "Square"
    table.to_csv(tmp_path / "decided.csv", index=False)
    config = AuditConfig.build(
        {"data": str(shop), "label": "category", "picture_column": "photo", "corrections": "decided.csv"}
    )
    products = load_catalogue(config, tmp_path).products.set_index("product_id")
    assert products.loc["p20", "category"] == "Square" and products.loc["p19", "category"] == "Square"


def _audit(shop, root, **settings):
    config = AuditConfig.build({
        "data": str(shop), "label": "category", "picture_column": "photo", "title_column": "", "threads": 1, **settings,
    })  # fmt: skip
    return run_audit(config, root)


def test_a_catalogue_without_two_categories_is_audited_all_the_same(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = _audit(write_shop(tmp_path, {"Round": 8, "Square": 2}), tmp_path)
    assert any("Labels were not audited" in note for note in found.notes)
    table = (tmp_path / "audit" / "audit.csv").read_text(encoding="utf-8")  # with a mark, by which Excel knows it
    assert table.startswith("\ufefffinding,id,column,old,new,suggested")


def test_decisions_are_never_written_over(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shop = write_shop(tmp_path, {"Round": 8, "round": 2})
    _audit(shop, tmp_path)
    _audit(shop, tmp_path)  # nothing was decided yet
    file = tmp_path / "audit" / "audit.csv"
    decided = file.read_text().replace("category,round,,", "category,round,Round,", 1)
    file.write_text(decided)
    with pytest.raises(UserError, match="corrections of yours"):
        _audit(shop, tmp_path)
    assert file.read_text() == decided


def test_no_text_of_a_table_is_markup_or_a_formula(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shop = write_shop(tmp_path, {"<b>a</b>": 6, "=A1": 2, "=a1": 1})
    _audit(shop, tmp_path, corrected="fixed.csv")
    page = (tmp_path / "audit" / "audit.html").read_text()
    assert "<b>a</b>" not in page
    table = (tmp_path / "audit" / "audit.csv").read_text()
    assert "category,'=a1,,'=A1," in table
    fixed = pd.read_csv(tmp_path / "fixed.csv", dtype=str)
    assert (tmp_path / "fixed.csv").read_bytes().startswith(b"\xef\xbb\xbf")
    assert list(fixed.columns) == ["id", "photo", "category"] and "'=A1" in fixed["category"].tolist()


def test_the_corrected_table_has_every_row_that_can_be_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shop = write_shop(tmp_path, {"Round": 8, "Chair": 2}, columns=("product_id", "photo", "category"))
    with shop.open("a", encoding="utf-8") as file:
        file.write("p0,photos/none.png,Round\np1,photos/2.png,Round\np11,photos/1.png,Round,more,cells\n")
    (tmp_path / "made.csv").write_text(
        "id,column,old,new\np9,category,Chair,Stühle\np0,category,Round,Chair\np1,category,Round,Chair\n"
    )
    settings = {"id_column": "product_id", "corrections": "made.csv"}
    with collected_messages() as messages:
        _audit(shop, tmp_path, corrected="new/fixed.csv", **settings)
    said = "\n".join(messages)
    assert re.search(
        r"Wrote 12 rows to new/fixed.csv \(4 corrected\); 1 more could not .* as \S+left_out.csv lists", said
    )
    assert "Relative paths of pictures in new/fixed.csv start from the folder of" in said
    before, fixed = (pd.read_csv(path, nrows=12) for path in (shop, tmp_path / "new" / "fixed.csv"))
    changed = {"p9": "Stühle", "p0": "Chair", "p1": "Chair"}
    before["category"] = before["product_id"].map(changed).fillna(before["category"])
    pd.testing.assert_frame_equal(fixed, before)


@pytest.mark.parametrize(
    ("name", "said"), [("shop.csv", "write over"), ("made.csv", "write over"), ("fixed.xlsx", "end in .csv")]
)
def test_no_input_is_written_over_by_the_corrected_table(tmp_path, monkeypatch, name, said):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=said):
        _audit("shop.csv", tmp_path, corrected=name, corrections="./made.csv")
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "styles.csv").write_text("id\n")
    with pytest.raises(UserError, match="write over"):
        _audit("shop", tmp_path, corrected="shop/styles.csv")

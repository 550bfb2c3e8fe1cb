"""From the settings to a catalogue and its split: what is said of labels and pictures, merged and corrected."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from tests.messages import collected_messages
from tests.shops import write_shop
from vlm_core.catalogue.catalogue import find_prepared
from vlm_core.catalogue.sample import plan_rows
from vlm_core.config import Config
from vlm_core.config.lists import split_list
from vlm_core.data import SAMPLE, corrections_file, load_catalogue, load_data, run_artifact
from vlm_core.errors import UserError

COLUMNS = {"label": "category", "picture_column": "photo", "title_column": "", "attributes": ""}


@pytest.fixture
def shop(tmp_path):
    """A table whose categories are written in several ways."""
    return write_shop(tmp_path, {"Shoes": 6, "shoes": 5, "Bags": 7, "BAGS": 5, "nan": 6, "": 2})


def _load(place, root, **settings):
    with collected_messages() as messages:
        return load_data(Config.build({"data": str(place), **COLUMNS, **settings}), root), "\n".join(messages)


def test_spellings_are_warned_of_and_merged_on_request(shop, tmp_path):
    data, said = _load(shop, tmp_path)
    assert data.split.categories == ("BAGS", "Bags", "Shoes", "nan", "shoes")
    assert "Bags (7), BAGS (5) are written differently; Shoes (6), shoes (5) are written differently" in said
    assert "nan (6) may say that there is no category" in said and "normalise_labels=true" in said
    assert "2 products have no category" in said
    merged, said = _load(shop, tmp_path, normalise_labels="true")
    assert merged.split.categories == ("Bags", "Shoes")
    assert "BAGS to Bags" in said and "nan to no category" in said and "8 products have no category" in said
    assert merged.catalogue.fingerprint != data.catalogue.fingerprint
    place = find_prepared(tmp_path, merged.catalogue.fingerprint)
    assert place is not None and (place / "pictures.npy").samefile(data.catalogue.pictures.path)


def test_labels_that_are_all_in_order_stay_one_catalogue(tmp_path):
    shop = write_shop(tmp_path, {"Shoes": 6, "Bags": 6})
    data, said = _load(shop, tmp_path)
    merged, _ = _load(shop, tmp_path, normalise_labels="true")
    assert merged.catalogue.fingerprint == data.catalogue.fingerprint and "written differently" not in said


def test_a_difference_that_cannot_be_seen_is_shown(tmp_path):
    shop = write_shop(tmp_path, {"Bags": 6, "Bags\u200b": 5, "Shoes": 5})
    assert "Bags (6), Bags\\u200b (5) are written differently" in _load(shop, tmp_path)[1]
    assert "merged in the column category: Bags\\u200b to Bags." in _load(shop, tmp_path, normalise_labels="true")[1]


def test_a_picture_under_many_products_is_said(shop, tmp_path):
    for number in (1, 2, 8, 9, 14):
        shutil.copy(tmp_path / "photos" / "20.png", tmp_path / "photos" / f"{number}.png")
    assert "one under 6 products of 4 categories (such as p1, p2, p8)" in _load(shop, tmp_path)[1]


def test_corrections_are_part_of_the_catalogue_and_the_stale_ones_are_named(shop, tmp_path):
    file = tmp_path / "corrections.csv"
    file.write_text("id,column,old,new\np7,category,shoes,Shoes\np8,category,Bags,Shoes\np1,category,Shoes,\n")
    plain, _ = _load(shop, tmp_path)
    data, said = _load(shop, tmp_path, corrections=str(file))
    assert data.catalogue.products["category"].iloc[6] == "Shoes"
    assert "Corrections: 1 applied, 0 in the table already, 1 not decided" in said
    assert "1 correction does not fit the table and was not applied: line 3: category of p8 is shoes, not Bags" in said
    assert data.catalogue.fingerprint != plain.catalogue.fingerprint
    assert (data.catalogue.picture_sizes() == [80, 60]).all()
    with pytest.raises(UserError, match="none.csv cannot be read"):
        _load(shop, tmp_path, corrections=str(tmp_path / "none.csv"))


def test_a_file_names_all_corrections_that_do_not_fit(shop, tmp_path):
    file = tmp_path / "mine.csv"
    file.write_text("id,column,old,new\n" + "".join(f"p{number},category,=Hats,Caps\n" for number in range(1, 9)))
    _, said = _load(shop, tmp_path, corrections=str(file))
    listed = tmp_path / "data" / "corrections" / "mine-not_applied.csv"
    assert f"line 6: category of p5 is Shoes, not =Hats; and 3 more. {listed} lists all. Take them out" in said
    assert listed.read_text().splitlines() == [
        "file,line,reason",
        *(f'{file},{n + 1},"category of p{n} is {"Shoes" if n < 7 else "shoes"}, not =Hats"' for n in range(1, 9)),
    ]


def test_corrections_of_a_run_are_read_from_where_they_are_copied_to(tmp_path):
    config = Config.build({"corrections": "runs:/abc123/corrections.csv"})
    assert run_artifact(config.corrections) == ("abc123", "corrections.csv")
    assert corrections_file(config, tmp_path) == tmp_path / "data" / "corrections" / "abc123" / "corrections.csv"
    assert run_artifact("runs:/abc123") == run_artifact("runs:/abc123/") == ("abc123", "corrections.csv")
    assert run_artifact("runs:/abc/../../x.csv") is None and run_artifact("fixed.csv") is None


def test_a_catalogue_that_no_weights_have_seen_is_split_freely_and_says_so(tmp_path):
    shop = write_shop(tmp_path, {"Shoes": 30, "Bags": 30})
    data, said = _load(shop, tmp_path)
    assert not data.split.reserved and "Any product may be tested on" in said
    assert np.bincount(data.split.labels[data.split.test]).tolist() == [6, 6]
    bound, said = _load(shop, tmp_path, test_ids="reserved")
    assert bound.split.reserved and "Any product" not in said
    assert f"{bound.evaluable.sum()} of 60 products may be tested on: weights may be, or have been, pretrained" in said
    assert "among the others" not in said


def test_a_category_with_too_few_products_that_may_be_tested_on_is_told_of_before_a_run_leaks(tmp_path):
    data, said = _load(write_shop(tmp_path, {"Shoes": 30, "Bags": 30, "Hats": 7}), tmp_path, test_ids="reserved")
    evaluated = np.concatenate([data.split.validation, data.split.test])
    seen = int((~data.evaluable[evaluated]).sum())
    assert seen and f"{seen} of the {len(evaluated)} evaluated products are among the others" in said


def test_the_sample_keeps_the_rule_and_a_catalogue_of_its_name_does_not(tmp_path):
    shop = write_shop(tmp_path, {"Shoes": 30, "Bags": 30})
    config = Config.build({"data": str(shop), **COLUMNS})
    other = replace(load_catalogue(config, tmp_path), name=SAMPLE)
    assert not load_data(config, tmp_path, other).split.reserved
    ids = [str(row.id) for row in plan_rows(1600, 7)[:60]]
    sample = replace(other, name="shop.csv", products=other.products.assign(product_id=ids))
    assert load_data(config, tmp_path, sample).split.reserved


def test_a_run_of_earlier_code_keeps_the_rule():
    from vlm_core.config.aliases import stored_settings

    before = Config.from_params(stored_settings({"label": "category", "data": "shop.csv"}))
    assert (before.test_ids, before.row_order) == ("reserved", "table")
    assert Config.from_params(stored_settings({"label": "category", "test_ids": "auto"})).test_ids == "auto"


def test_categories_that_are_too_small_are_listed_together(tmp_path):
    shop = write_shop(tmp_path, {"Shoes": 9, "Bags": 8, "Hats": 3, "Caps": 2, "Home, Kitchen": 6})
    data, said = _load(shop, tmp_path)
    assert data.split.categories == ("Bags", "Home, Kitchen", "Shoes")
    assert "Left out 2 categories (fewer than 5 products with different images): Hats (3), Caps (2)." in said
    named, _ = _load(shop, tmp_path, categories='"Home, Kitchen",Shoes')
    assert named.split.categories == ("Home, Kitchen", "Shoes")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ()),
        ("a, b ,,c", ("a", "b", "c")),
        ('"Home, Kitchen", Shoes', ("Home, Kitchen", "Shoes")),
        ('5" pipes,"open', ('5" pipes', '"open')),
        ('"19"" racks",x', ('19" racks', "x")),
        ("a\nb,c", ("a\nb", "c")),
    ],
)
def test_a_list_may_hold_names_with_commas(text, parts):
    assert split_list(text) == parts


def test_the_catalogue_of_corrected_cells_is_made_once(shop, tmp_path):
    file = tmp_path / "corrections.csv"
    file.write_text("id,column,old,new\np7,category,shoes,Shoes\n")
    config = Config.build({"data": str(shop), **COLUMNS, "corrections": str(file)})
    first, second = load_catalogue(config, tmp_path), load_catalogue(config, tmp_path)
    assert first.fingerprint == second.fingerprint and first.pictures.path == second.pictures.path
    folders = [path for path in (tmp_path / "data" / "processed").iterdir() if path.is_dir()]
    assert len(folders) == 2
    assert json.loads((first.pictures.path.parent / "reading.json").read_text())["fingerprint"] == first.fingerprint


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"label": "Category"}, "label=Category is not a column of shop.csv, .* Did you mean label=category"),
        ({"picture_column": "foto"}, "picture_column=foto .* Did you mean picture_column=photo"),
        ({"picture_column": "", "id_column": "ID"}, "id_column=ID .*: id, photo, category. Did you mean id_column=id"),
    ],
)
def test_the_refusal_of_a_column_proposes_one(shop, tmp_path, settings, message):
    with pytest.raises(UserError, match=message):
        _load(shop, tmp_path, **settings)


def test_a_column_that_was_asked_for_and_is_not_there_is_warned_of(tmp_path):
    shop = write_shop(tmp_path, {"Shoes": 6, "Bags": 6}, columns=("id", "photo", "category"))
    _, said = _load(shop, tmp_path, title_column="Catgory", attributes="brand,category,gender")
    assert (
        "title_column=Catgory is not a column of shop.csv, which has: id, photo, category. "
        "Did you mean title_column=category? It is passed over." in said
    )
    assert "attributes=brand is not a column of shop.csv, which has: id, photo, category. It is passed over." in said
    assert "attributes=category" not in said and "attributes=gender" not in said
    with collected_messages() as messages:
        load_catalogue(Config.build({"data": str(shop), "label": "category", "picture_column": "photo"}), tmp_path)
    assert "is not a column" not in "".join(messages)


def test_a_category_that_only_a_correction_has_is_said(shop, tmp_path, caplog):
    file = tmp_path / "corrections.csv"
    file.write_bytes("id;column;old;new\np7;category;shoes;Stühle\np8;category;shoes;Shoes\n".encode("cp1252"))
    config = Config.build({"data": str(shop), **COLUMNS, "corrections": str(file)})
    with caplog.at_level("INFO"):
        load_catalogue(config, tmp_path)
    assert "creates the category 'Stühle' (1 product)" in caplog.text
    assert "creates the category 'Shoes'" not in caplog.text
    assert "Assumed of the corrections: fields end at a semicolon; read as cp1252" in caplog.text


def test_what_is_no_part_in_a_column_of_parts_is_said(tmp_path):
    shop = write_shop(tmp_path, {"Shoes": 10, "Bags": 10})
    header, *rows = shop.read_text().splitlines()
    parts = ["unused" if number % 9 == 0 else "test" if number % 3 == 0 else "train" for number in range(len(rows))]
    shop.write_text("\n".join([f"{header},split", *(f"{row},{part}" for row, part in zip(rows, parts, strict=True))]))
    _, said = _load(shop, tmp_path)
    assert "The column split divides the catalogue, but also has unused (3): it is split anew." in said
    with pytest.raises(UserError, match=r"also has unused \(3\)"):
        _load(shop, tmp_path, protocol="given")


def _parts(path, **parts):
    """A file with the ids of each part."""
    path.write_text("\n".join(["id,part", *(f"{name},{part}" for part, names in parts.items() for name in names)]))
    return str(path)


def test_parts_of_a_file_are_kept_and_what_does_not_fit_it_is_said(tmp_path):
    shop = write_shop(tmp_path, {"Shoes": 10, "Bags": 10})
    ids = load_catalogue(Config.build({"data": str(shop), **COLUMNS}), tmp_path).products["product_id"].tolist()
    train, test = [*ids[:7], *ids[10:17]], [*ids[7:9], *ids[17:19], "stranger"]
    file = _parts(tmp_path / "parts.csv", train=train, test=test)
    data, said = _load(shop, tmp_path, split=file, train_per_category=0)
    split = data.split
    assert split.protocol == "given"
    assert {ids[row] for row in split.test} == set(test) - {"stranger"}
    assert {ids[row] for row in (*split.train, *split.validation)} == set(train) and len(split.validation)
    assert "parts.csv names 19 products, of which the catalogue does not have 1" in said
    assert f"The parts are those of {file}" in said and "2 products in no part are not used" in said


def test_the_published_protocol_keeps_its_lists_trains_on_all_rows_and_leaks(tmp_path):
    shop = write_shop(tmp_path, {"Shoes": 12, "Bags": 10})
    ids = load_catalogue(Config.build({"data": str(shop), **COLUMNS}), tmp_path).products["product_id"].tolist()
    shoes, bags = ids[:12], ids[12:]
    file = _parts(
        tmp_path / "parts.csv",
        train=[*shoes[:8], *bags[:5]],
        validation=[shoes[8], bags[5]],
        test=[*shoes[9:], *bags[6:]],
    )
    data, _ = _load(shop, tmp_path, protocol="condition-cnn", split=file)
    split = data.split
    assert (len(split.train), len(split.validation), len(split.test)) == (13, 2, 7)
    assert split.leaking and split.leakage.near == 0 and split.protocol == "condition-cnn"
    given, _ = _load(shop, tmp_path, split=file, balance="none")
    assert not given.split.leaking and given.split.fingerprint != split.fingerprint


def test_test_products_that_are_new_to_models_are_known(tmp_path):
    shop = write_shop(tmp_path, {"Shoes": 10, "Bags": 10})
    data, _ = _load(shop, tmp_path)
    assert data.test_subsets() == {}
    test = data.split.test
    seen = replace(data, evaluable=~np.isin(np.arange(20), test[:1]))
    assert {name: rows.tolist() for name, rows in seen.test_subsets().items()} == {
        "unseen": [False] + [True] * (len(test) - 1)
    }
    groups = data.groups.copy()
    groups[test[1]] = groups[data.split.train[0]]
    copied = replace(seen, groups=groups).test_subsets()
    assert (
        copied["new"].tolist() == [False, False] + [True] * (len(test) - 2) and copied["unseen"].sum() == len(test) - 1
    )
    assert list(replace(data, groups=groups).test_subsets()) == ["new"]

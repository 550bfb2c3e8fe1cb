"""A catalogue that weights were pretrained on is known in every form it comes in, and no other is taken for it."""

import io
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageOps

from vlm_core.catalogue.duplicates import hash_pictures
from vlm_core.catalogue.exposure import (
    RULE,
    SHIPPED,
    Exposure,
    allowed_for_pretraining,
    record_exposure,
    reserved_for_evaluation,
    shipped_exposures,
)
from vlm_core.catalogue.recognition import SeenProducts
from vlm_core.catalogue.sample import draw_picture, plan_rows
from vlm_core.pixels.picture_store import PictureStore, decode_picture

SIZE = (60, 80)


@dataclass(frozen=True)
class Made:
    """The fields of a Catalogue that recognising reads."""

    products: pd.DataFrame
    pictures: PictureStore
    fingerprint: str = "another"


def _drawn(count, seed):
    found = {}
    for row in plan_rows(count, seed):
        data = draw_picture(row, seed)
        try:
            found.setdefault(data, ImageOps.pad(decode_picture(data), SIZE, color="white"))
        except Exception:  # the sample holds a broken picture on purpose
            continue
    return list(found.values())


def _store(folder, pictures):
    folder.mkdir(exist_ok=True)
    np.save(folder / "pictures.npy", np.stack([np.asarray(picture) for picture in pictures]))
    return PictureStore(folder / "pictures.npy")


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    """A catalogue of drawn products, and the exposure of weights that were pretrained on what they may be."""
    pictures = _drawn(180, 3)
    store = _store(tmp_path_factory.mktemp("known"), pictures)
    ids = pd.Series([str(20_000 + number) for number in range(len(pictures))])
    rows = np.flatnonzero(allowed_for_pretraining(ids))
    seen = SeenProducts.of(ids.iloc[rows], hash_pictures(store, rows))
    exposure = record_exposure("shop", "c0ffee", ids.iloc[rows], seen=seen)
    return Made(pd.DataFrame({"product_id": ids}), store, "c0ffee"), exposure, pictures


def _made(folder, pictures, ids):
    return Made(pd.DataFrame({"product_id": pd.Series(ids)}), _store(folder / "other", pictures))


def _encoded(picture):
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=50)
    return Image.open(file).convert("RGB")


FORMS = {
    "another table or container": lambda picture: picture,
    "encoded anew": _encoded,
    "larger": lambda picture: picture.resize((120, 160), Image.Resampling.BICUBIC),
    "on a wider ground": lambda picture: ImageOps.pad(picture, (90, 90), color="white"),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("part", [slice(None), slice(20, 60)], ids=["all", "a part"])
def test_with_its_ids_it_is_as_strict_as_by_its_fingerprint(known, tmp_path, form, part):
    catalogue, exposure, pictures = known
    ids = catalogue.products["product_id"].iloc[part].tolist()
    other = _made(tmp_path, [FORMS[form](picture) for picture in pictures[part]], ids)
    groups = np.arange(len(ids))
    expected = ~reserved_for_evaluation(pd.Series(ids), groups)
    np.testing.assert_array_equal(exposure.may_have_seen(other, groups), expected)


@pytest.mark.parametrize("form", ["another table or container", "encoded anew", "larger"])
def test_with_other_ids_it_is_known_by_its_pictures(known, tmp_path, form):
    catalogue, exposure, pictures = known
    other = _made(tmp_path, [FORMS[form](picture) for picture in pictures], [f"sku-{n}" for n in range(len(pictures))])
    seen = exposure.may_have_seen(other, np.arange(len(pictures)))
    shown = allowed_for_pretraining(catalogue.products["product_id"])
    assert seen[shown].mean() > 0.9  # nearly all that was seen is known again
    assert seen.mean() < 1.0  # and what was reserved can still be tested on


def test_a_product_of_ours_among_many_others_is_known_by_its_picture(known, tmp_path):
    _, exposure, pictures = known
    others = _drawn(140, 11)[:100]
    other = _made(tmp_path, [*others, *pictures[:40]], [f"sku-{number}" for number in range(140)])
    seen = exposure.may_have_seen(other, np.arange(140))
    shown = allowed_for_pretraining(pd.Series([str(20_000 + number) for number in range(40)]))
    assert seen[100:][shown].all() and seen[:100].mean() < 0.2


def test_equal_ids_with_other_pictures_are_another_catalogue(known, tmp_path):
    catalogue, exposure, _ = known
    other = _made(tmp_path, _drawn(80, 11)[:60], catalogue.products["product_id"].iloc[:60].tolist())
    assert not exposure.may_have_seen(other, np.arange(60)).any()


def test_a_shop_whose_pictures_are_all_blank_was_not_seen(known, tmp_path):
    _, exposure, _ = known
    other = _made(tmp_path, [Image.new("RGB", SIZE, "white")] * 30, [str(number) for number in range(30)])
    assert not exposure.may_have_seen(other, np.arange(30)).any()


def test_what_was_seen_before_counts_as_well(known, tmp_path):
    catalogue, first, _ = known
    later = record_exposure("mine", "beef", pd.Series(["1", "2"]), before=[first], seen=SeenProducts.of(
        pd.Series(["1"]), np.array([7], np.uint64)))  # fmt: skip
    groups = np.arange(len(catalogue.products))
    np.testing.assert_array_equal(later.may_have_seen(catalogue, groups), first.may_have_seen(catalogue, groups))


def test_weights_without_hashes_bind_every_catalogue(known):
    catalogue, exposure, _ = known
    old = Exposure(RULE, "shop", "other", exposure.products, exposure.products_fingerprint)
    groups = np.arange(len(catalogue.products))
    expected = ~reserved_for_evaluation(catalogue.products["product_id"], groups)
    np.testing.assert_array_equal(old.may_have_seen(catalogue, groups), expected)


def test_hashes_travel_with_the_weights(known, tmp_path):
    _, exposure, _ = known
    exposure.write(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "exposure.json", f"seen-{exposure.products_fingerprint}.npz",
    ]  # fmt: skip
    again = Exposure.read(tmp_path)
    assert again == exposure
    np.testing.assert_array_equal(again.seen.ids, exposure.seen.ids)
    np.testing.assert_array_equal(again.seen.pictures, exposure.seen.pictures)


@pytest.mark.parametrize("content", [b"", b"PK\3\4 no zip", b"\x93NUMPY"])
def test_broken_hashes_are_an_error(known, tmp_path, content):
    _, exposure, _ = known
    exposure.write(tmp_path)
    (tmp_path / f"seen-{exposure.products_fingerprint}.npz").write_bytes(content)
    with pytest.raises(ValueError, match="does not hold hashes"):
        Exposure.read(tmp_path)


def test_hashes_of_another_form_are_an_error(tmp_path):
    np.savez(tmp_path / "seen.npz", ids=np.zeros(2), pictures=np.zeros(3))
    with pytest.raises(ValueError, match="does not hold hashes"):
        SeenProducts.read(tmp_path / "seen.npz")


def test_the_shipped_weights_are_known_by_what_they_saw():
    (shipped,) = shipped_exposures()
    assert shipped.products_fingerprint == "5c8f23d3a5cbe224" and len(shipped.seen.ids) == 28_669
    assert (np.diff(shipped.seen.ids.astype(np.int64)) >= 0).all()
    assert sum(path.stat().st_size for path in SHIPPED.iterdir()) < 400_000

"""Copies of a picture are found however they were made, and different products are left apart."""

import io
import tempfile
from contextlib import nullcontext

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

from vlm_core.catalogue.duplicates import LabelConflict, label_conflicts, near_duplicate_groups
from vlm_core.catalogue.framing import frame_picture
from vlm_core.catalogue.sample import draw_picture, plan_rows
from vlm_core.errors import UserError
from vlm_core.pixels.picture_store import PictureStore, decode_picture

SIZE = (60, 80)


@pytest.fixture(scope="module")
def pictures():
    """Drawn products, no two of them copies."""
    found = {}
    for row in plan_rows(120, 3):
        data = draw_picture(row, 3)
        try:
            found.setdefault(data, decode_picture(data))
        except Exception:  # the sample holds a broken picture on purpose
            continue
    return [ImageOps.pad(picture, SIZE, color="white") for picture in list(found.values())[:60]]


def _groups(folder, pictures, digests=None):
    pixels = np.stack([np.asarray(picture) for picture in pictures])
    np.save(folder / "pictures.npy", pixels)
    digests = digests or [f"{number:032x}" for number in range(len(pixels))]
    return near_duplicate_groups(pd.DataFrame({"picture_digest": digests}), PictureStore(folder / "pictures.npy"))


def _jpeg(picture, quality):
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality)
    return Image.open(io.BytesIO(file.getvalue())).convert("RGB")


def _widened(picture, across, down):
    """With a margin of so many pixels in which the border goes on."""
    return Image.fromarray(np.pad(np.asarray(picture), ((down, down), (across, across), (0, 0)), mode="edge"))


def _shifted(picture, right, down):
    return _widened(picture, 2, 2).crop((2 - right, 2 - down, 62 - right, 82 - down))


def _resized(picture, width, height):
    return picture.resize((width, height), Image.Resampling.BICUBIC).resize(SIZE, Image.Resampling.BICUBIC)


ALTERATIONS = {
    "encoded again": lambda picture: _jpeg(picture, 70),
    "smaller": lambda picture: _resized(picture, 54, 72),
    "larger": lambda picture: _resized(picture, 120, 160),
    "squeezed": lambda picture: _widened(picture.resize((58, 80), Image.Resampling.BICUBIC), 1, 0),
    "brighter": lambda picture: ImageEnhance.Brightness(picture).enhance(1.05),
    "darker": lambda picture: ImageEnhance.Brightness(picture).enhance(0.9),
    "one pixel on": lambda picture: _shifted(picture, 1, 1),
    "two pixels on": lambda picture: _shifted(picture, -2, 2),
    "all of it": lambda picture: _jpeg(ImageEnhance.Brightness(_shifted(picture, 1, 1)).enhance(1.05), 70),
}


@pytest.mark.parametrize("alteration", ALTERATIONS)
def test_a_copy_is_found(tmp_path, pictures, alteration):
    copies = [ALTERATIONS[alteration](picture) for picture in pictures]
    groups = _groups(tmp_path, [*pictures, *copies])
    assert np.mean(groups[: len(pictures)] == groups[len(pictures) :]) >= 0.9


def test_different_products_stay_apart(tmp_path, pictures):
    assert np.bincount(_groups(tmp_path, pictures)).max() <= 2


def test_a_print_a_colour_or_a_ground_makes_another_picture(tmp_path):
    def shirt(colour="navy", ground="white", mark=None):
        picture = Image.new("RGB", SIZE, ground)
        draw = ImageDraw.Draw(picture)
        draw.rectangle((15, 15, 45, 70), fill=colour)
        if mark:
            draw.ellipse((20, 25, 40, 50), fill=mark)
        return picture

    shirts = [shirt(), shirt("red"), shirt(mark="yellow"), shirt(ground="silver"), shirt("black", mark="white")]
    assert _groups(tmp_path, [*shirts, *shirts]).tolist() == [0, 1, 2, 3, 4] * 2


@pytest.mark.parametrize("colours", [("white", "white"), ("white", "black"), ("red", "blue")])
def test_blank_pictures_are_told_apart_by_their_colour(tmp_path, colours):
    first, second = _groups(tmp_path, [Image.new("RGB", SIZE, colour) for colour in colours])
    assert (first == second) == (colours[0] == colours[1])


def test_identical_bytes_are_one_group_whatever_the_pixels_say(tmp_path, pictures):
    groups = _groups(tmp_path, pictures[:4], ["aa", "bb", "aa", "cc"])
    assert groups.tolist() == [0, 1, 0, 2]


def test_the_order_of_products_changes_no_group(tmp_path, pictures):
    shown = [*pictures[:20], *(ALTERATIONS["encoded again"](picture) for picture in pictures[:20])]
    order = np.random.default_rng(0).permutation(len(shown))
    straight = _groups(tmp_path, shown)
    (tmp_path / "other").mkdir()
    mixed = _groups(tmp_path / "other", [shown[row] for row in order])
    together = straight[order][:, None] == straight[order][None]
    assert ((mixed[:, None] == mixed[None]) == together).all()


def test_groups_are_kept_for_the_next_call(tmp_path, pictures, monkeypatch):
    first = _groups(tmp_path, pictures[:6])
    monkeypatch.setattr("vlm_core.catalogue.linking.frame_picture", None)
    assert (_groups(tmp_path, pictures[:6]) == first).all()
    with pytest.raises(TypeError):  # other products: what was kept is not theirs
        _groups(tmp_path, pictures[:6], list("abcdef"))


def test_kept_groups_that_are_damaged_are_found_again(tmp_path, pictures):
    first = _groups(tmp_path, pictures[:6])
    (kept,) = tmp_path.glob("near-duplicates-*.npy")
    kept.write_bytes(b"damaged")
    assert (_groups(tmp_path, pictures[:6]) == first).all()


def test_a_full_temporary_folder_is_named(tmp_path, pictures, monkeypatch):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "frames").symlink_to("/dev/full")
    monkeypatch.setattr(tempfile, "TemporaryDirectory", lambda: nullcontext(str(tmp_path / "full")))
    with pytest.raises(UserError, match=r"cannot store the pictures' frames \(No space left on device\)"):
        _groups(tmp_path, pictures)


def test_a_frame_follows_the_content():
    def square(left, top, side):
        picture = Image.new("RGB", (60, 80), "white")
        ImageDraw.Draw(picture).rectangle((left, top, left + side - 1, top + side - 1), fill="black")
        return frame_picture(np.asarray(picture)).astype(int)

    there = square(10, 10, 20)
    assert there.shape == (32, 32, 3) and there[16, 16].max() == 0 and there[0, 0].min() == 255
    assert (square(31, 47, 20) == there).all()
    assert np.abs(square(10, 10, 40) - there).mean() < 8
    # A square of side s spreads over s / sqrt(12): the window of 2 * 2.2 spreads is 1.27 s wide.
    assert (there[16, :, 0] < 128).sum() == pytest.approx(32 / (4.4 / 12**0.5), abs=1)


def test_a_frame_takes_pictures_of_any_size():
    for size in ((1, 1), (256, 3), (256, 256)):
        pixels = np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8)
        assert frame_picture(pixels).shape == (32, 32, 3)


def test_identical_pictures_that_disagree_on_the_category():
    products = pd.DataFrame(
        [("1", "aa", "Apparel"), ("2", "bb", "Apparel"), ("3", "aa", "Free Items"), ("4", "bb", "Apparel"),
         ("5", "cc", "Footwear"), ("6", "cc", "")],
        columns=["product_id", "picture_digest", "masterCategory"],
    )  # fmt: skip
    groups = np.array([7, 1, 7, 1, 2, 2])
    assert label_conflicts(products, groups, "masterCategory") == [
        LabelConflict(7, ("1", "3"), ("Apparel", "Free Items"))
    ]

"""From any file's bytes to pixels: every format that is promised, and every bound before decoding."""

import io
import struct
import threading
import time
import tracemalloc
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from tests.stores import run_python
from vlm_core.pixels import picture_store
from vlm_core.pixels.picture_store import (
    MAX_BYTES,
    MAX_PIXELS,
    MOST_SCANS,
    PictureStore,
    PixelBudget,
    UnreadablePicture,
    decode_picture,
    fit_picture,
    fit_pictures,
)

RED = (200, 30, 30)


def _encoded(picture, kind, **options):
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def _plain(mode="RGB", colour=RED, size=(6, 8)):
    return Image.new(mode, size, colour)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_formats(kind):
    picture = decode_picture(_encoded(_plain(), kind))
    assert picture.mode == "RGB" and picture.size == (6, 8)
    assert np.abs(np.asarray(picture, dtype=int) - RED).max() <= 6


@pytest.mark.parametrize(
    ("picture", "kind", "expected"),
    [
        (_plain("L", 90), "PNG", (90, 90, 90)),
        (_plain("1", 1), "PNG", (255, 255, 255)),
        (_plain(colour=(204, 51, 51)).convert("P"), "PNG", (204, 51, 51)),
        (_plain("CMYK", (0, 255, 255, 0)), "JPEG", (255, 0, 0)),
        (_plain("RGBA", (*RED, 0)), "PNG", (255, 255, 255)),
        (_plain("RGBA", (0, 0, 0, 51)), "PNG", (204, 204, 204)),
        (_plain("LA", (0, 51)), "PNG", (204, 204, 204)),
        (_plain("RGBA", (0, 0, 0, 51)), "WEBP", (204, 204, 204)),
        (Image.fromarray(np.full((8, 6), 32_896, np.uint16)), "PNG", (128, 128, 128)),
    ],
    ids=["grey", "one-bit", "palette", "cmyk", "clear", "alpha", "grey-alpha", "webp-alpha", "16-bit"],
)
def test_modes_become_rgb_on_white(picture, kind, expected):
    pixels = np.asarray(decode_picture(_encoded(picture, kind)), dtype=int)
    assert pixels.shape == (8, 6, 3)
    assert np.abs(pixels - np.array(expected)).max() <= 3


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_picture_with_pixels_that_are_not_numbers_is_refused(value):
    values = np.full((8, 6), 0.5, np.float32)
    values[7, 5] = value
    with pytest.raises(UnreadablePicture, match="not numbers"):
        decode_picture(_encoded(Image.fromarray(values), "TIFF"))


@pytest.mark.parametrize(
    ("white", "mode"), [(1.0, "F"), (255.0, "F"), (65535.0, "F"), (255, "I"), (65535, "I"), (10**6, "I")]
)
def test_the_values_of_a_tiff_are_scaled_to_its_white(white, mode):
    values = np.linspace(0, white, 48).reshape(8, 6).astype(np.float32 if mode == "F" else np.int32)
    pixels = np.asarray(decode_picture(_encoded(Image.fromarray(values, mode), "TIFF")), dtype=float)[..., 0]
    np.testing.assert_allclose(pixels, values / white * 255, atol=0.51)


def test_glare_in_a_picture_of_fractions_is_white():
    values = np.full((8, 6), 0.5, np.float32)
    values[0, 0] = 2.5
    pixels = np.asarray(decode_picture(_encoded(Image.fromarray(values), "TIFF")))
    assert pixels[0, 0, 0] == 255 and pixels[7, 5, 0] == 128


def test_a_colour_that_stands_for_nothing_is_white():
    picture = _plain().convert("P", palette=Image.Palette.ADAPTIVE)
    clear = picture.getpixel((0, 0))
    assert np.asarray(decode_picture(_encoded(picture, "GIF", transparency=clear))).min() == 255


def test_the_first_frame_of_an_animation():
    file = _encoded(_plain(), "GIF", save_all=True, append_images=[_plain(colour=(0, 0, 255))], duration=100)
    assert np.asarray(decode_picture(file))[0, 0, 0] > 150


def test_a_camera_that_was_held_sideways():
    picture = _plain(size=(8, 6))
    picture.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by 90 degrees
    upright = decode_picture(_encoded(picture, "PNG", exif=exif))
    assert upright.size == (6, 8)
    assert upright.getpixel((5, 0)) == (255, 255, 255)


def _png_of_size(width, height):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def _tiled_tiff(side):
    """A TIFF of 16 x 16 pixels in one tile of `side` x `side`, which libtiff would fill: 1 GB for 250 bytes."""
    data = zlib.compress(bytes(256))
    short, long = 3, 4
    tags = [
        *((256, short, 16), (257, short, 16), (258, short, 8), (259, short, 8), (262, short, 1), (277, short, 1)),
        *((322, long, side), (323, long, side), (324, long, 8), (325, long, len(data))),
    ]
    directory = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    return struct.pack("<2sHI", b"II", 42, 8 + len(data)) + data + struct.pack("<H", len(tags)) + directory + bytes(4)


def _jpeg_of_scans(count):
    """A progressive JPEG whose last scan is repeated: each costs a pass over all pixels, for 82 bytes."""
    data = _encoded(_plain("L", 90), "JPEG", progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + last * (count - data.count(b"\xff\xda")) + data[-2:]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"a text that is named .jpg", "format is not supported"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "format is not supported"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer.*git lfs pull"),
        (b"\n<!DOCTYPE html><html>404</html>", "web page.*download the picture again"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC picture.*save it as JPEG"),
        (_encoded(_plain(size=(60, 80)), "JPEG")[:300], "truncated"),
        (_encoded(_plain(size=(60, 80)), "PNG")[:60], "truncated"),
        (_png_of_size(12_000, 9_000), "takes 864 MB to decode, and PICTURE_MEMORY_MB allows 400"),
        (_png_of_size(60_000, 60_000), "200 megapixels"),
        (_png_of_size(70_000, 2), "longer side exceeds 65,535 pixels"),
        (_tiled_tiff(32_768), "tiles exceed 50 megapixels"),
        (_jpeg_of_scans(MOST_SCANS + 1), "more than 100 scans"),
        (_encoded(_plain(), "PNG") + bytes(MAX_BYTES), "50 MB"),
    ],
    ids=[
        "no-bytes",
        "text",
        "svg",
        "git lfs pointer",
        "web page",
        "heic",
        "cut-jpeg",
        "cut-png",
        "bomb",
        "huge-bomb",
        "wide",
        "tiles",
        "scans",
        "heavy",
    ],
)
def test_what_is_no_picture_is_said_so(data, reason):
    with pytest.raises(UnreadablePicture, match=reason):
        decode_picture(data)


def test_a_video_behind_a_phones_picture_is_no_scan():
    data = _jpeg_of_scans(8)
    assert decode_picture(data + b"\xff\xda\0\x02" * 1000).size == (6, 8)
    assert decode_picture(_jpeg_of_scans(MOST_SCANS)).size == (6, 8)


def test_a_picture_of_more_than_eight_bits_is_converted_in_strips():
    wide = np.arange(1_000_000, dtype=np.uint16).reshape(1000, 1000)
    data = _encoded(Image.fromarray(wide), "PNG")
    tracemalloc.start()
    pixels = np.asarray(decode_picture(data))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (pixels[..., 0] == np.round(wide / 65535 * 255)).all()
    assert peak < 12 * wide.size  # numpy's own: a float alone has eight bytes


@pytest.mark.parametrize(
    ("picture", "kind", "expected"),
    [
        (_plain(size=(41, 60)), "JPEG", RED),
        (_plain(size=(41, 60)), "WEBP", RED),
        (_plain(colour=(204, 51, 51), size=(41, 60)).convert("P"), "PNG", (204, 51, 51)),
        (_plain("RGBA", (0, 0, 0, 51), (41, 60)), "PNG", (204, 204, 204)),
        (Image.fromarray(np.full((60, 41), 32_896, np.uint16)), "PNG", (128, 128, 128)),
    ],
    ids=["jpeg", "webp", "palette", "alpha", "16-bit"],
)
def test_a_large_picture_is_halved_and_upright(monkeypatch, picture, kind, expected):
    monkeypatch.setattr(picture_store, "LARGE_PIXELS", 1000)
    monkeypatch.setattr(picture_store, "STRIP_PIXELS", 200)
    exif = Image.Exif()
    exif[0x0112] = 6
    halved = decode_picture(_encoded(picture, kind, exif=exif))
    assert halved.size == (30, 21)
    assert np.abs(np.asarray(halved, dtype=int) - expected).max() <= 6


@pytest.mark.parametrize(("size", "reduced"), [((40, 25), 1), ((41, 25), 2), ((80, 50), 2), ((81, 50), 4)])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_sides_are_halved_until_no_more_pixels_are_left(monkeypatch, kind, size, reduced):
    monkeypatch.setattr(picture_store, "LARGE_PIXELS", 1000)
    halved = decode_picture(_encoded(_plain(size=size), kind))
    assert halved.size == tuple(-(-side // reduced) for side in size)
    assert np.abs(np.asarray(halved, dtype=int) - RED).max() <= 6


def test_a_jpeg_is_bounded_by_what_it_takes_while_it_is_reduced(monkeypatch):
    picture = _plain(size=(1000, 800))
    monkeypatch.setattr(picture_store, "LARGE_PIXELS", 100_000)
    monkeypatch.setenv("PICTURE_MEMORY_MB", "1")
    assert decode_picture(_encoded(picture, "JPEG")).size == (250, 200)
    with pytest.raises(UnreadablePicture, match="a JPEG of 1000 x 800 pixels takes 3 MB"):  # all coefficients at once
        decode_picture(_encoded(picture, "JPEG", progressive=True))
    monkeypatch.setenv("PICTURE_MEMORY_MB", "3")
    assert decode_picture(_encoded(picture, "JPEG", progressive=True)).size == (250, 200)


def test_scans_are_bounded_by_the_pixels_that_they_pass_over(monkeypatch):
    monkeypatch.setattr(picture_store, "MOST_SCANNED_PIXELS", 20 * 6 * 8)
    assert decode_picture(_jpeg_of_scans(20)).size == (6, 8)
    with pytest.raises(UnreadablePicture, match="more than 20 scans"):
        decode_picture(_jpeg_of_scans(21))


@pytest.mark.slow
@pytest.mark.parametrize("size", [(8160, 6120), (12_000, 9_000)], ids=["50 megapixels", "108 megapixels"])
def test_a_phones_picture_is_reduced(size):
    file = _encoded(_plain(size=size), "JPEG", quality=30)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decode_picture(file).size[0] * 2 > picture_store.LARGE_PIXELS**0.5


def test_strips_leave_no_seam(monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (97, 61, 3), dtype=np.uint8)
    data = _encoded(Image.fromarray(pixels), "PNG")
    monkeypatch.setattr(picture_store, "STRIP_PIXELS", 300)
    assert (np.asarray(decode_picture(data)) == pixels).all()
    monkeypatch.setattr(picture_store, "LARGE_PIXELS", 2000)
    assert (np.asarray(decode_picture(data)) == np.asarray(Image.fromarray(pixels).reduce(2))).all()


def test_large_pictures_are_decoded_one_at_a_time(monkeypatch):
    busy, most, decode = threading.Semaphore(1), [], picture_store._decode

    def counted(picture):
        most.append(busy.acquire(blocking=False))
        time.sleep(0.005)
        busy.release()
        return decode(picture)

    monkeypatch.setattr(picture_store, "_decode", counted)
    monkeypatch.setattr(picture_store, "LARGE_DECODER_BYTES", 0)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(decode_picture, [_encoded(_plain(), "PNG")] * 4))
    assert most == [True] * 4


def test_what_a_decoder_would_take_is_bounded_by_a_setting(monkeypatch):
    picture = _plain(size=(500, 250))
    monkeypatch.setenv("PICTURE_MEMORY_MB", "1")
    assert decode_picture(_encoded(picture, "PNG")).size == (500, 250)
    with pytest.raises(UnreadablePicture, match="a WEBP of 500 x 250 pixels takes 2 MB to decode, and .* allows 1"):
        decode_picture(_encoded(picture, "WEBP"))
    monkeypatch.setenv("PICTURE_MEMORY_MB", "2")
    assert decode_picture(_encoded(picture, "WEBP")).size == (500, 250)
    for text in ("much", "-1", "1.5"):
        monkeypatch.setenv("PICTURE_MEMORY_MB", text)
        with pytest.raises(UnreadablePicture, match=f"PICTURE_MEMORY_MB={text} is not a number of MB"):
            decode_picture(_encoded(picture, "PNG"))


def test_a_request_has_a_budget_of_pixels():
    budget = PixelBudget(100)
    decode_picture(_encoded(_plain(), "PNG"), budget)
    decode_picture(_encoded(_plain(), "PNG"), budget)
    with pytest.raises(UnreadablePicture, match="one request exceed 320 megapixels together: send fewer at once"):
        decode_picture(_encoded(_plain(), "PNG"), budget)
    assert budget.left == 4
    assert PixelBudget().left >= MAX_PIXELS


def test_a_picture_is_fitted_whole_and_centred_on_white():
    fitted = fit_picture(_plain(size=(40, 40)), (80, 60))
    assert fitted.shape == (80, 60, 3) and fitted.dtype == np.uint8
    assert (fitted[:10] == 255).all() and (fitted[-10:] == 255).all()
    assert (fitted[10:70] == RED).all()


def test_a_picture_of_the_canvas_size_is_left_as_it_is():
    pixels = np.random.default_rng(0).integers(0, 256, (80, 60, 3), dtype=np.uint8)
    assert (fit_picture(Image.fromarray(pixels), (80, 60)) == pixels).all()
    assert (fit_pictures(pixels[None], (80, 60))[0] == pixels).all()
    assert fit_pictures(pixels[None], (40, 30)).shape == (1, 40, 30, 3)


def test_a_store_gives_rows_in_the_order_asked_and_cannot_be_written(tmp_path):
    pixels = np.arange(5 * 4 * 3 * 3, dtype=np.uint8).reshape(5, 4, 3, 3)
    np.save(tmp_path / "pictures.npy", pixels)
    store = PictureStore(tmp_path / "pictures.npy")
    assert (len(store), store.canvas) == (5, (4, 3))
    taken = store.take(np.array([3, 0, 3]))
    assert (taken == pixels[[3, 0, 3]]).all()
    taken[:] = 0
    assert (store.take(np.array([3])) == pixels[[3]]).all()


@pytest.mark.slow
def test_broken_metadata_are_no_warning(tmp_path):
    broken = b"Exif\0\0MM\0*\0\0\0\x08\0\x02"  # a directory of two entries, of which none is there
    (tmp_path / "picture.png").write_bytes(_encoded(_plain(), "PNG", exif=broken))
    script = """
from pathlib import Path
from vlm_core.pixels.picture_store import decode_picture
decode_picture(Path("picture.png").read_bytes())
"""
    done = run_python(script, tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

"""Pictures whose pixels are whole are read, whatever is wrong with what stands beside the pixels."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vlm_core.pixels.metadata import without_metadata
from vlm_core.pixels.picture_store import UnreadablePicture, decode_picture

PIXELS = np.random.default_rng(0).integers(0, 256, (80, 60, 3), np.uint8)
EXIF = b"Exif\0\0"


def _encoded(kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, kind, **options)
    return file.getvalue()


JPEG, PNG = _encoded("JPEG"), _encoded("PNG")


def _segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def _chunk(name: bytes, content: bytes, *, crc: int | None = None) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", crc or zlib.crc32(name + content))


def _in_jpeg(*segments: bytes) -> bytes:
    return JPEG[:2] + b"".join(segments) + JPEG[2:]


def _in_png(*chunks: bytes) -> bytes:
    return PNG[:33] + b"".join(chunks) + PNG[33:]  # behind the header


def _assert_whole(data: bytes, like: bytes) -> None:
    assert (np.asarray(decode_picture(data)) == np.asarray(decode_picture(like))).all()


@pytest.mark.parametrize(
    "data",
    [
        _in_jpeg(_segment(0xE1, EXIF)),
        _in_jpeg(_segment(0xE1, EXIF + b"II*\0\xff\xff\xff\x7f")),
        _in_jpeg(_segment(0xE1, EXIF + bytes(40)), _segment(0xE1, EXIF + b"MM\0*\0\0\0\x08\xff\xff")),
        _in_jpeg(_segment(0xE2, b"MPF\0II*\0\x08\0\0\0\xff\xff")),
        _in_jpeg(_segment(0xE2, b"ICC_PROFILE\0\x09\x01broken")),
        _in_jpeg(_segment(0xED, b"Photoshop 3.0\x008BIM\x04\x04\0\0\0\0\xff\xff")),
        _in_jpeg(_segment(0xFE, b"\xff\xd8\xff\xd9" * 10)),
        _in_jpeg(_segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta tiff:Orientation='nine'")),
        b"\r\n" + JPEG,
        b"\xef\xbb\xbf\n" + JPEG,
        JPEG + b"<html>" * 100,
        JPEG[:-2],
        JPEG[:-1],
        _in_jpeg(_segment(0xE1, EXIF + bytes(40)))[:-2],
    ],
    ids=["blank", "offset", "two", "mpf", "icc", "photoshop", "comment", "xmp", "newline", "bom", "tail", "no end",
         "half an end", "exif and no end"],
)  # fmt: skip
def test_a_jpeg(data: bytes) -> None:
    _assert_whole(data, JPEG)


@pytest.mark.parametrize(
    "data",
    [
        _in_png(_chunk(b"eXIf", b"II*\0\xff\xff\xff\x7f")),
        _in_png(_chunk(b"eXIf", b"nothing")),
        _in_png(_chunk(b"iCCP", b"ICC profile\0\0" + b"broken")),
        _in_png(_chunk(b"zTXt", b"parameters\0\0" + zlib.compress(bytes(3_000_000)))),
        _in_png(*[_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(900_000)))] * 80),
        _in_png(_chunk(b"iTXt", b"a\0\1\0\0\0broken")),
        _in_png(_chunk(b"tEXt", b"Comment\0text", crc=1)),
        _in_png(_chunk(b"tIME", b"\0")),
        PNG[:-12],
        PNG + bytes(100),
    ],
    ids=["exif offset", "exif", "icc", "bomb", "bombs", "itxt", "checksum", "time", "no end", "tail"],
)
def test_a_png(data: bytes) -> None:
    _assert_whole(data, PNG)


@given(st.lists(st.tuples(st.sampled_from([*range(0xE1, 0xEE), 0xEF, 0xFE]), st.binary(max_size=60)), max_size=4))
def test_any_segment_of_a_jpeg(segments: list[tuple[int, bytes]]) -> None:
    assert without_metadata(_in_jpeg(*(_segment(*segment) for segment in segments))) == without_metadata(JPEG)


@given(st.binary(max_size=60))
def test_any_exif_of_a_jpeg_and_a_png(content: bytes) -> None:
    for data in (_in_jpeg(_segment(0xE1, EXIF + content)), _in_png(_chunk(b"eXIf", content))):
        assert sorted(decode_picture(data).size) == [60, 80]  # some bytes say that the camera was held sideways


@pytest.mark.parametrize("kept", [0.3, 0.6, 0.9, 0.99])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 4}], ids=str)
def test_a_jpeg_without_some_of_its_pixels_is_refused(options: dict[str, object], kept: float) -> None:
    data = _encoded("JPEG", **options)
    with pytest.raises(UnreadablePicture, match="truncated"):
        decode_picture(data[: int(len(data) * kept)])


def test_a_png_without_some_of_its_pixels_is_refused() -> None:
    with pytest.raises(UnreadablePicture, match="truncated"):
        decode_picture(PNG[: len(PNG) // 2])


@given(st.binary(max_size=200))
def test_whatever_cannot_be_read_comes_back_as_some_bytes(content: bytes) -> None:
    for start in (b"", JPEG[:2], PNG[:8], JPEG[:200], PNG[:50]):
        without_metadata(start + content)

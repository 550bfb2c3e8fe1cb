"""Hostile image files and requests, made from a seed: mutated, generated, and texts of odd shapes."""

from __future__ import annotations

import base64
import io
import json
import random
import struct
import zlib
from collections.abc import Callable
from functools import cache
from typing import Any, Final

import numpy as np
from PIL import Image

MODES: Final = {
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16", "I"),
    "JPEG": ("L", "RGB", "CMYK"),
    "WEBP": ("RGB", "RGBA"),
    "TIFF": ("1", "L", "RGB", "RGBA", "CMYK", "LAB", "I;16", "I", "F"),
    "GIF": ("L", "P", "RGB"),
    "BMP": ("1", "L", "P", "RGB"),
    "ICO": ("RGBA",),
    "PPM": ("L", "RGB"),
    "TGA": ("RGB",),
    "JPEG2000": ("RGB",),
    "AVIF": ("RGB",),
}
_FORMATS: Final = ("PNG", "PNG", "JPEG", "JPEG", "WEBP", "WEBP", "TIFF", "TIFF", "GIF", "BMP")  # most are of those read
_ANIMATED: Final = ("PNG", "WEBP", "GIF", "TIFF", "AVIF")
_NUMBERS: Final = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def picture(shade: int = 200, size: tuple[int, int] = (60, 80)) -> bytes:
    """Return a harmless PNG."""
    image = Image.new("RGB", size, (shade, 255 - shade, 128))
    image.paste((0, 0, shade), (5, 5, 40, 60))
    return _encoded(image, "PNG")


def _encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    data = io.BytesIO()
    image.save(data, form, **options)
    return data.getvalue()


def _image(mode: str, size: tuple[int, int], chance: random.Random) -> Image.Image:
    width, height = size
    noise = np.random.default_rng(chance.getrandbits(32)).integers(0, 256, (height, width, 3), dtype=np.uint8)
    if mode == "I;16":
        return Image.fromarray(noise[..., 0].astype(np.uint16) * 257)
    if mode == "F":
        values = noise[..., 0].astype(np.float32)
        values[chance.randrange(height), :] = chance.choice((np.nan, np.inf, -np.inf, 1e38, -1.0))
        return Image.fromarray(values)
    return Image.fromarray(noise).convert("RGB" if mode == "LAB" else mode)


@cache
def _seed(form: str, mode: str, number: int) -> bytes:
    """Return a valid image of that format and mode, of one of a few sizes and ways of saving; b"" if there is none."""
    chance = random.Random(f"{form} {mode} {number}")
    size = chance.choice(((1, 1), (3, 200), (60, 80), (33, 47), (120, 90)))
    options: dict[str, Any] = {}
    if form in _ANIMATED and number % 3 == 1:
        options |= {"save_all": True, "append_images": [_image(mode, size, chance) for _ in range(3)]}
    if form == "JPEG":
        exif = Image.Exif()
        exif[0x0112] = chance.randrange(12)
        options |= {"progressive": number % 2 == 1, "exif": exif, "quality": chance.choice((1, 50, 95))}
    if form == "WEBP":
        options["lossless"] = number % 2 == 1
    if form == "TIFF":
        options["compression"] = chance.choice((None, "tiff_lzw", "tiff_adobe_deflate", "packbits"))
    try:
        return _encoded(_image(mode, size, chance), form, **options)
    except (OSError, ValueError, KeyError, SystemError, RuntimeError):  # a mode that the format has not
        return b""


def _flip(data: bytearray, chance: random.Random) -> bytearray:
    for _ in range(chance.choice((1, 1, 2, 8, 64))):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return data


def _truncate(data: bytearray, chance: random.Random) -> bytearray:
    return data[: chance.randrange(len(data))]


def _insert(data: bytearray, chance: random.Random) -> bytearray:
    place = chance.randrange(len(data))
    return data[:place] + chance.randbytes(chance.choice((1, 4, 100, 5000))) + data[place:]


def _delete(data: bytearray, chance: random.Random) -> bytearray:
    place = chance.randrange(len(data))
    return data[:place] + data[place + chance.choice((1, 2, 4, 64)) :]


def _repeat(data: bytearray, chance: random.Random) -> bytearray:
    place = chance.randrange(len(data))
    part = data[place : place + chance.randrange(1, 400)]
    return data[:place] + part * chance.choice((2, 10, 200)) + data[place:]


def _number(data: bytearray, chance: random.Random) -> bytearray:
    """Put an extreme number where a header may have a size, an offset or a count."""
    form = chance.choice((">H", "<H", ">I", "<I"))
    width = struct.calcsize(form)
    place = chance.randrange(max(1, min(len(data), chance.choice((32, 128, 100_000))) - width))
    data[place : place + width] = struct.pack(form, chance.choice(_NUMBERS) & (256**width - 1))
    return data


def _zeros(data: bytearray, chance: random.Random) -> bytearray:
    place = chance.randrange(len(data))
    stop = min(len(data), place + chance.randrange(1, 2000))
    data[place:stop] = bytes(stop - place)
    return data


def _splice(data: bytearray, chance: random.Random) -> bytearray:
    other = valid(chance)
    return data[: chance.randrange(len(data))] + other[chance.randrange(len(other)) :]


def _repair_png(data: bytearray, chance: random.Random) -> bytearray:
    """Change the header of a PNG and correct its checksum, so that the change is believed."""
    if data[:4] != b"\x89PNG" or len(data) < 33:
        return _number(data, chance)
    width, height = (chance.choice((0, 1, 60, 4000, 6300, 20_000, 65_536, 2**31 - 1)) for _ in range(2))
    header = struct.pack(">IIBBBBB", width, height, chance.choice((1, 8, 16)), chance.choice((0, 2, 3, 4, 6)), 0, 0, 0)
    data[16:29] = header[:13]
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return data


MUTATORS: Final[tuple[Callable[[bytearray, random.Random], bytearray], ...]] = (
    *(_flip, _truncate, _insert, _delete, _repeat, _number, _number, _zeros, _splice, _repair_png),
)


def valid(chance: random.Random) -> bytes:
    """Return a valid image of a random format and mode."""
    while True:
        form = chance.choice(_FORMATS if chance.random() < 0.85 else tuple(MODES))
        if data := _seed(form, chance.choice(MODES[form]), chance.randrange(6)):
            return data


def mutated(chance: random.Random) -> bytes:
    """Return an image that one to four mutators have changed."""
    data = bytearray(valid(chance))
    for _ in range(chance.randrange(1, 5)):
        data = (chance.choice(MUTATORS)(data, chance) if data else data)[:200_000]
    return bytes(data)


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _png(width: int, height: int, depth: int, kind: int, body: bytes, *chunks: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + b"".join(chunks) + _chunk(b"IDAT", body) + _chunk(b"IEND", b"")
    )


@cache
def _zlib_bomb(size: int) -> bytes:
    packer = zlib.compressobj(9)
    return b"".join(packer.compress(bytes(1 << 20)) for _ in range(size >> 20)) + packer.flush()


def _large_grey(chance: random.Random) -> bytes:
    """A true image of few bytes: its pixels are all there, 16 bits each."""
    side = chance.choice((3000, 4000, 6300))
    return _png(side, side, 16, 0, _zlib_bomb((2 * side + 1) * side + (1 << 20) & ~((1 << 20) - 1)))


def _claims(chance: random.Random) -> bytes:
    side = chance.choice((7000, 20_000, 65_536, 2**31 - 1))
    kind = chance.randrange(4)
    if kind == 0:
        return _png(side, side, 8, 2, zlib.compress(b""))
    if kind == 1:
        return b"GIF89a" + struct.pack("<HH", side & 0xFFFF, 0xFFFF) + b"\xf0\0\0" + bytes(6) + b",\0\0\0\0" + bytes(99)
    if kind == 2:
        size = struct.pack("<IiiHHIIiiII", 40, side, -side, 1, 24, 0, 0, 0, 0, 0, 0)
        return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + size + bytes(99)
    tags = ((256, 4, 1, side), (257, 4, 1, side), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 8))
    more = ((277, 3, 1, 1), (278, 4, 1, side), (279, 4, 1, 99))
    entries = b"".join(struct.pack("<HHII", *tag) for tag in (*tags, *more))
    return b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", 9) + entries + bytes(4) + bytes(99)


def _text_bomb(chance: random.Random) -> bytes:
    body = _zlib_bomb(64 << 20)
    kinds = (b"zTXt", b"a\0\0" + body), (b"iCCP", b"a\0\0" + body), (b"iTXt", b"a\0\1\0\0\0" + body)
    return _png(4, 4, 8, 2, zlib.compress(bytes(52)), _chunk(*chance.choice(kinds)))


def _many_scans(chance: random.Random) -> bytes:
    data = _encoded(_image("L", (200, 200), chance), "JPEG", progressive=True)
    place = data.index(b"\xff\xda")
    return data[:place] + data[place:-2] * 300 + data[-2:]


def _long_side(chance: random.Random) -> bytes:
    return _encoded(Image.new("L", chance.choice(((1, 65_535), (65_535, 1), (20_000, 3)))), "PNG")


def _nothing_like_it(chance: random.Random) -> bytes:
    magic = chance.choice(
        (b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"GIF89a", b"BM", b"II*\0", b"RIFF\0\0\0\0WEBP")
    )
    others = (b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"%PDF-1.4", b"MZ", b"PK\3\4", b"\x80\x04cos\nsystem\n")
    return chance.choice((magic + chance.randbytes(chance.choice((0, 10, 5000))), chance.choice(others)))


def _too_long(chance: random.Random) -> bytes:
    return picture() + bytes(10_000_001)


GENERATORS: Final[tuple[Callable[[random.Random], bytes], ...]] = (
    *(_claims, _claims, _text_bomb, _many_scans, _long_side, _nothing_like_it, _nothing_like_it, _large_grey),
    _too_long,
)


def hostile_picture(chance: random.Random, *, rarely: float = 0.002) -> bytes:
    """Return a mutated image, or one of the generated ones; `rarely` is the share of those that cost much."""
    if chance.random() < rarely:
        return chance.choice((_large_grey, _too_long, _text_bomb))(chance)
    if chance.random() < 0.06:
        return chance.choice(GENERATORS[:2] + GENERATORS[3:7])(chance)
    return valid(chance) if chance.random() < 0.08 else mutated(chance)


def hostile_text(chance: random.Random, data: bytes) -> Any:
    """Return an image as a client may send it: base64, a data URL, or what is neither."""
    text = base64.b64encode(data).decode()
    url = f"data:image/png;base64,{text}"
    broken = ("data:image/png," + text[:99], "data:", url[:-3] + "é", text.replace("A", "-"), text + "====", " ", "=")
    odd = (
        None,
        7,
        1e308,
        True,
        [],
        {},
        [text[:50]],
        {"picture": text[:50]},
        "\0",
        "\ud800",
        "💥" * 50,
        "../../etc/passwd",
    )
    kind = chance.random()
    if kind < 0.6:
        return chance.choice((text, url))
    if kind < 0.75:
        return chance.choice(
            ("\n".join(text[at : at + 76] for at in range(0, len(text), 76)), text.rstrip("="), url.upper())
        )
    return chance.choice(broken if kind < 0.9 else odd)


def hostile_request(chance: random.Random, pictures: Callable[[random.Random], bytes]) -> tuple[bytes, str, int]:
    """Return body, content type and number of rows (0: a body of another form) of a request to the served model."""
    if chance.random() < 0.75:
        texts = [hostile_text(chance, pictures(chance)) for _ in range(chance.choice((1, 1, 1, 2, 5)))]
        texts = [text if isinstance(text, str) and "\ud800" not in text else "odd" for text in texts]
        frame = {"columns": ["picture"], "data": [[text] for text in texts]}
        records = [{"picture": text} for text in texts]
        body = chance.choice(({"dataframe_split": frame}, {"dataframe_records": records}))
        return json.dumps(body).encode(), "application/json", len(texts)
    text = hostile_text(chance, b"x")
    bodies: tuple[Any, ...] = (
        *({"dataframe_records": [{"picture": text}]}, {"dataframe_records": text}, {"dataframe_records": [text]}),
        *({"dataframe_records": []}, {"dataframe_records": [{}]}, {"dataframe_records": [{"image": "x"}]}),
        *({"dataframe_records": [{"picture": "x"}, {"other": 1}]}, {"dataframe_split": {"columns": ["picture"]}}),
        *({"dataframe_split": {"columns": ["picture", "picture"], "data": [["a", "b"]]}}, {"dataframe_split": text}),
        *({"dataframe_split": {"columns": ["picture"], "data": [["a", "b"]]}}, {"inputs": text}, {"inputs": [[[]]]}),
        *({"inputs": {"picture": [text]}}, {"instances": [text]}, {"instances": [{"picture": "x"}]}, [], 7, None, "x"),
        *({"dataframe_records": [{"picture": "x"}], "params": {"a": [text]}}, {"inputs": [], "instances": []}, {}),
    )
    raw = (b"", b"{", b"[" * 50_000, b"\xff\xfe", b'{"dataframe_records": NaN}', b"picture\nx\n", b"\0" * 100)
    kinds = (
        "application/json",
        "text/csv",
        "text/plain",
        "",
        "multipart/form-data; boundary=x",
        "application/json; charset=x",
    )
    if chance.random() < 0.3:
        return chance.choice(raw), chance.choice(kinds), 0
    return json.dumps(chance.choice(bodies)).encode(), "application/json", 0

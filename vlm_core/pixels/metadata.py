"""Pictures without their metadata: a broken comment, colour profile or EXIF block must not cost whole pixels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

JPEG_START: Final = b"\xff\xd8"
_PNG_START: Final = b"\x89PNG\r\n\x1a\n"
_PNG_PIXELS: Final = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
_START_OF_SCAN: Final = 0xDA
_COMMENT: Final = 0xFE
# Application segments of a JPEG; the first and Adobe's say what its colours are.
_JPEG_METADATA: Final = (*range(0xE1, 0xEE), 0xEF, _COMMENT)


def without_metadata(data: bytes) -> bytes:
    """Return a PNG or JPEG with no more than its pixels need; what is of another format, or cut, as it is."""
    if data.startswith(_PNG_START):
        return _PNG_START + b"".join(_png_pixels(data))
    if data.startswith(JPEG_START):
        return JPEG_START + b"".join(_jpeg_pixels(data))
    return data


def _png_pixels(data: bytes) -> Iterator[bytes]:
    place = len(_PNG_START)
    while place < len(data):
        end = place + 12 + int.from_bytes(data[place : place + 4], "big")
        if data[place + 4 : place + 8] in _PNG_PIXELS:
            yield data[place:end]
        place = end


def _jpeg_pixels(data: bytes) -> Iterator[bytes]:
    place = len(JPEG_START)
    while data[place : place + 1] == b"\xff" and place + 4 <= len(data):
        marker = data[place + 1]
        end = place + 2 + int.from_bytes(data[place + 2 : place + 4], "big")
        if marker == _START_OF_SCAN:
            break
        if marker not in _JPEG_METADATA:
            yield data[place:end]
        place = end
    yield data[place:]

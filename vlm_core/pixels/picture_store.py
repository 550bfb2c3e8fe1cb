"""A memory-mapped array of decoded images, and the decoding of untrusted image files within limits."""

from __future__ import annotations

import ctypes
import io
import os
import re
import sys
import threading
import warnings
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np
from numpy.typing import NDArray

from vlm_core.pixels.arrays import Picture, Pictures, Rows
from vlm_core.pixels.metadata import JPEG_START, without_metadata

if TYPE_CHECKING:
    from PIL import Image

MAX_BYTES: Final = 50_000_000  # of a file
MAX_SENT_BYTES: Final = 10_000_000  # of a picture in a request
MAX_PIXELS: Final = 200_000_000
MAX_SIDE: Final = 65_535  # pixels
LARGE_PIXELS: Final = 16_000_000  # images above are halved, and halved again, until they have no more
MOST_REQUEST_PIXELS: Final = 320_000_000
MEMORY_SETTING: Final = "PICTURE_MEMORY_MB"  # in the environment: what decoding one image may take
DEFAULT_MEMORY_MB: Final = 400
LARGE_DECODER_BYTES: Final = 128_000_000  # of images above, one is decoded at a time
MOST_SCANS: Final = 100  # of a JPEG: each passes over all of its pixels, however few bytes it has
MOST_SCANNED_PIXELS: Final = 4_000_000_000  # in all scans together
STRIP_PIXELS: Final = 1 << 18
# Pillow warns of metadata that are broken; what counts here is whether the pixels are whole.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
FORMATS: Final = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")

# Markers of a JPEG but for those without a length, of which all but the end of the image stand inside a scan
_JPEG_MARKER: Final = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")
_END_OF_IMAGE: Final = 0xD9
_START_OF_SCAN: Final = 0xDA
_LEADING: Final = b" \t\r\n\xef\xbb\xbf"  # what scripts write before a picture; no format begins with one of these
# Two ends for a JPEG without one. Where pixels are missing, they would be made of different bytes.
_JPEG_ENDS: Final = (
    b"\xff\xd9",
    b"".join(b"\xaa" * 32 + bytes((0xFF, restart)) for restart in range(0xD0, 0xD8)) + b"\xff\xd9",
)
_LFS_POINTER: Final = b"version https://git-lfs.github.com/spec/"
_HEIC: Final = re.compile(rb".{4}ftyp(?:hei[cxms]|hev[cx])", re.DOTALL)
_BYTES_PER_PIXEL: Final = {"WEBP": 16, "AVIF": 16}  # their decoders hold several copies
_LEAST_WHITE: Final = 16.0  # of pixels that are not whole numbers: up to here, 1 is white, and more is glare
_one_large_picture = threading.Lock()


class UnreadablePicture(Exception):
    """Raised for bytes that are not an accepted image; the message gives the reason."""


@dataclass(frozen=True)
class PictureStore:
    """All images of a catalogue in a memory-mapped file; only the rows that are taken are read."""

    path: Path  # .npy, uint8 (n, height, width, 3)

    @cached_property
    def _pictures(self) -> Pictures:
        pictures: Pictures = np.load(self.path, mmap_mode="r", allow_pickle=False)
        return pictures

    @property
    def canvas(self) -> tuple[int, int]:
        """Return height and width of every image."""
        _, height, width, _ = self._pictures.shape
        return height, width

    def __len__(self) -> int:
        return len(self._pictures)

    def take(self, rows: Rows) -> Pictures:
        """Return the images (B, height, width, 3) of the rows (B,), in their order."""
        return np.asarray(self._pictures[rows])


@dataclass
class PixelBudget:
    """How many pixels may still be decoded for one request."""

    left: int = MOST_REQUEST_PIXELS

    def spend(self, pixels: int) -> None:
        """Take a picture's pixels. Raise UnreadablePicture, and take none, where fewer are left."""
        if pixels > self.left:
            most = MOST_REQUEST_PIXELS // 1_000_000
            raise UnreadablePicture(f"the images of one request exceed {most} megapixels together: send fewer at once")
        self.left -= pixels


def decode_picture(data: bytes, budget: PixelBudget | None = None) -> Image.Image:
    """Return the image as RGB, upright, with transparency on white; the first frame of an animation.

    All that decoding may cost is checked before it. The sides of an image of more than `LARGE_PIXELS` are halved until
    it has no more, and only one such image is decoded at a time, whatever the number of threads. Metadata that is
    broken, or too large, is left out. Raise UnreadablePicture.
    """
    from PIL import Image, UnidentifiedImageError

    if not data:
        raise UnreadablePicture("the file is empty")
    if len(data) > MAX_BYTES:
        raise UnreadablePicture(f"the file is larger than {MAX_BYTES // 1_000_000} MB")
    Image.MAX_IMAGE_PIXELS = MAX_PIXELS  # Pillow's own is lower, and is no error but a message on the console
    data = data.lstrip(_LEADING)
    try:
        return _decode_whole(data, budget)
    except UnreadablePicture:
        raise
    except Image.DecompressionBombError as error:
        raise UnreadablePicture(f"its pixels exceed {MAX_PIXELS // 1_000_000} megapixels") from error
    except Exception as error:  # Pillow's decoders raise many types on broken files
        with suppress(Exception):
            return _decode_bare(without_metadata(data), budget)
        reason = (
            "its format is not supported" if isinstance(error, UnidentifiedImageError) else "it is truncated or broken"
        )
        if _HEIC.match(data):
            reason = "it is a HEIC picture, whose format is not supported: save it as JPEG"
        if data.startswith(_LFS_POINTER):
            reason = "it is a Git LFS pointer in place of the picture: run git lfs pull"
        if data[:100].lstrip().lower().startswith((b"<!doctype html", b"<html")):
            reason = "it is a web page, not a picture: download the picture again"
        raise UnreadablePicture(reason) from error


def _decode_bare(data: bytes, budget: PixelBudget | None) -> Image.Image:
    """Return a picture that was stripped of its metadata, a JPEG also where all of its pixels but no end are there."""
    try:
        return _decode_whole(data, budget)
    except Exception:
        if not data.startswith(JPEG_START):
            raise
    ended = (_decode_whole(data.rstrip(b"\xff") + end, budget) for end in _JPEG_ENDS)
    first, second = ended
    if first.tobytes() != second.tobytes():
        raise UnreadablePicture("some of its pixels are missing")
    return first


def _decode_whole(data: bytes, budget: PixelBudget | None) -> Image.Image:
    """Return a picture after its cost was checked. Raise UnreadablePicture, and whatever Pillow raises."""
    from PIL import Image

    picture = Image.open(io.BytesIO(data), formats=FORMATS)
    scans = _count_scans(data) if picture.format in ("JPEG", "MPO") else 1
    _check_cost(picture, scans)
    if budget:
        budget.spend(picture.width * picture.height)
    if _decoder_bytes(picture, scans) <= LARGE_DECODER_BYTES and _reduction(picture.size) == 1:
        return _decode(picture)
    with _one_large_picture:
        decoded = _decode(picture)
        picture.close()
        _return_memory()
        return decoded


def memory_limit() -> int:
    """Return how many MB decoding one image may take. Raise UnreadablePicture if the setting is no whole number."""
    text = os.environ.get(MEMORY_SETTING) or str(DEFAULT_MEMORY_MB)
    if not (text.isdecimal() and text.isascii()):
        raise UnreadablePicture(f"{MEMORY_SETTING}={text} is not a number of MB: correct or unset that variable")
    return int(text)


def _check_cost(picture: Image.Image, scans: int) -> None:
    """Raise UnreadablePicture for an image, opened but not decoded, that would take too much memory or time."""
    from PIL import TiffImagePlugin

    width, height = picture.size
    most = MAX_PIXELS // 1_000_000
    if width * height > MAX_PIXELS:
        raise UnreadablePicture(f"{width} x {height} pixels exceed {most} megapixels")
    if max(width, height) > MAX_SIDE:
        raise UnreadablePicture(f"its longer side exceeds {MAX_SIDE:,} pixels")
    allowed_mb = memory_limit()
    if (needed := _decoder_bytes(picture, scans)) > allowed_mb * 1_000_000:
        raise UnreadablePicture(
            f"a {picture.format} of {width} x {height} pixels takes {-(-needed // 1_000_000)} MB to decode, and "
            f"{MEMORY_SETTING} allows {allowed_mb}"
        )
    if scans > (allowed := min(MOST_SCANS, MOST_SCANNED_PIXELS // max(1, width * height))):
        raise UnreadablePicture(f"it has more than {allowed} scans")
    if isinstance(picture, TiffImagePlugin.TiffImageFile):
        tile = [picture.tag_v2.get(tag, 1) for tag in (TiffImagePlugin.TILEWIDTH, TiffImagePlugin.TILELENGTH)]
        if tile[0] * tile[1] * 8 > allowed_mb * 1_000_000:
            raise UnreadablePicture(f"its tiles exceed {allowed_mb // 8} megapixels")


def _count_scans(data: bytes) -> int:
    """Return the scans of a JPEG up to its end, after which a phone may store a video; no more than one too many."""
    scans, place = 0, 2
    while scans <= MOST_SCANS and (marker := _JPEG_MARKER.search(data, place)) and marker[0][1] != _END_OF_IMAGE:
        scans += marker[0][1] == _START_OF_SCAN
        place = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2], "big")
    return scans


def _decoder_bytes(picture: Image.Image, scans: int) -> int:
    """Return about how much memory decoding takes beside the result.

    A JPEG is reduced while it is decoded; one of several scans is first held as coefficients of two bytes each.
    """
    pixels = picture.width * picture.height
    if picture.format not in ("JPEG", "MPO"):
        return pixels * _BYTES_PER_PIXEL.get(str(picture.format), 8)
    sampling = [(across, down) for _, across, down, _ in getattr(picture, "layer", ())] or [(1, 1)] * 4
    largest = max(across for across, _ in sampling) * max(down for _, down in sampling)
    samples = sum(across * down for across, down in sampling) / max(1, largest)
    held = round(2 * samples * pixels) if scans > 1 else 0
    return held + 8 * pixels // _reduction(picture.size) ** 2


def _reduction(size: tuple[int, int]) -> int:
    """Return what an image's sides are divided by, a power of two."""
    factor = 1
    while size[0] * size[1] > LARGE_PIXELS * factor**2:
        factor *= 2
    return factor


def _decode(picture: Image.Image) -> Image.Image:
    """Return an opened image as RGB and upright, reduced if it is large."""
    from PIL import ExifTags, ImageOps

    if (factor := _reduction(picture.size)) > 1:  # a JPEG is reduced while it is decoded, at little cost
        picture.draft(None, (max(1, picture.width // factor), max(1, picture.height // factor)))
    picture.load()
    rgb = _to_rgb(picture, _reduction(picture.size))
    if (orientation := _orientation(picture)) in range(2, 9):
        rgb.getexif()[ExifTags.Base.Orientation] = orientation
        ImageOps.exif_transpose(rgb, in_place=True)
    return rgb


def _orientation(picture: Image.Image) -> object:
    """Return how the camera was held, in EXIF's numbers, as far as the image says so."""
    from PIL import ExifTags

    try:
        return picture.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # a broken EXIF block raises as many types as a broken picture
        return None


def _return_memory() -> None:
    """Give freed memory back to the system; glibc would keep it for the thread that freed it."""
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None:
        trim(0)


def _to_rgb(picture: Image.Image, factor: int) -> Image.Image:
    """Return an image in RGB, its sides reduced by a whole factor.

    It works strip by strip: beside the image and the result little is in memory.
    """
    from PIL import Image

    width, height = picture.size
    result = Image.new("RGB", (-(-width // factor), -(-height // factor)))
    white = _white(picture)
    rows = max(1, STRIP_PIXELS // width // factor) * factor
    for start in range(0, height, rows):
        strip = picture.crop((0, start, width, min(start + rows, height)))
        result.paste(_strip_to_rgb(strip, white).reduce(factor), (0, start // factor))
    return result


def _white(picture: Image.Image) -> float:
    """Return the value of white in an image of more than 8 bits a sample: the next of those that programs write."""
    if picture.mode.startswith("I;16"):
        return 65535.0
    highest = cast(float, picture.getextrema()[1]) if picture.mode in ("I", "F") else 0.0
    if picture.mode == "F" and highest <= _LEAST_WHITE:
        return 1.0
    return next((white for white in (255.0, 65535.0) if highest <= white), highest)


def _strip_to_rgb(strip: Image.Image, white: float) -> Image.Image:
    from PIL import Image

    if strip.mode.startswith("I;16"):
        strip = Image.fromarray(_to_eight_bits(np.arange(65536), white)[np.asarray(strip)])
    elif strip.mode in ("I", "F"):  # Pillow's convert clips instead of scaling
        values = np.asarray(strip)
        if not np.isfinite(values).all():
            raise UnreadablePicture("some of its pixels are not numbers")
        strip = Image.fromarray(_to_eight_bits(values, white))
    if strip.mode in ("RGBA", "LA", "PA") or "transparency" in strip.info:
        layer = strip.convert("RGBA")
        background = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(background, layer).convert("RGB")
    return strip.convert("RGB")


def _to_eight_bits(values: NDArray[Any], white: float) -> NDArray[np.uint8]:
    return np.clip(values.astype(np.float64) / white * 255, 0, 255).round().astype(np.uint8)


def fit_picture(picture: Image.Image, canvas: tuple[int, int]) -> Picture:
    """Return the whole image (height, width, 3), scaled to the canvas and centred on white."""
    from PIL import Image, ImageOps

    height, width = canvas
    fitted = ImageOps.pad(picture, (width, height), method=Image.Resampling.BICUBIC, color="white")
    return np.asarray(fitted, dtype=np.uint8)


def fit_pictures(pictures: Pictures, canvas: tuple[int, int]) -> Pictures:
    """Return images (B, H, W, 3) fitted to the canvas; unchanged if they already have its size."""
    from PIL import Image

    if pictures.shape[1:3] == canvas:
        return pictures
    return np.stack([fit_picture(Image.fromarray(picture), canvas) for picture in pictures])

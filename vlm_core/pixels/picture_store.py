"""A memory-mapped array of decoded images, and the decoding of untrusted image files within limits."""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from vlm_core.pixels.arrays import Picture, Pictures, Rows

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_BYTES: Final = 10_000_000
MAX_PIXELS: Final = 40_000_000
FORMATS: Final = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")


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


def decode_picture(data: bytes) -> Image:
    """Return the image as RGB, upright, with transparency on white; the first frame of an animation.

    Its size in bytes and in pixels is checked before decoding. Raise UnreadablePicture.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    if not data:
        raise UnreadablePicture("the file is empty")
    if len(data) > MAX_BYTES:
        raise UnreadablePicture(f"the file is larger than {MAX_BYTES // 1_000_000} MB")
    try:
        picture: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
        if picture.width * picture.height > MAX_PIXELS:
            raise UnreadablePicture(
                f"{picture.width} x {picture.height} pixels exceed {MAX_PIXELS // 1_000_000} megapixels"
            )
        picture.load()
        return _to_rgb(ImageOps.exif_transpose(picture))
    except UnreadablePicture:
        raise
    except Image.DecompressionBombError as error:  # Pillow's own, higher limit
        raise UnreadablePicture(f"its pixels exceed {MAX_PIXELS // 1_000_000} megapixels") from error
    except Exception as error:  # Pillow's decoders raise many types on broken files
        unknown = isinstance(error, UnidentifiedImageError)
        reason = "its format is not supported" if unknown else "it is truncated or broken"
        raise UnreadablePicture(reason) from error


def _to_rgb(picture: Image) -> Image:
    from PIL import Image

    if picture.mode.startswith(("I;16", "I", "F")):  # 16 bits: Pillow's convert clips instead of scaling
        values = np.asarray(picture, dtype=np.float64)
        top = 65535.0 if picture.mode.startswith("I;16") or values.max(initial=0) > 255 else 255.0
        picture = Image.fromarray(np.clip(values / top * 255, 0, 255).round().astype(np.uint8))
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        layer = picture.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(white, layer).convert("RGB")
    return picture.convert("RGB")


def fit_picture(picture: Image, canvas: tuple[int, int]) -> Picture:
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

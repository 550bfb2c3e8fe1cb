"""Pictures decoded once into one memory-mapped array, and the bounded way from any file's bytes to a picture."""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.Image import Image

LARGEST_BYTES: Final = 10_000_000
MOST_PIXELS: Final = 40_000_000
FORMATS: Final = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")


class UnreadablePicture(Exception):
    """Bytes that are no picture we take; the text says why."""


@dataclass(frozen=True)
class PictureStore:
    """All pictures of a catalogue, in a file: memory holds the rows that are taken and no more."""

    path: Path  # .npy, uint8 (n, height, width, 3)

    @cached_property
    def _pictures(self) -> NDArray[np.uint8]:
        pictures: NDArray[np.uint8] = np.load(self.path, mmap_mode="r", allow_pickle=False)
        return pictures

    @property
    def canvas(self) -> tuple[int, int]:
        """Height and width of every picture."""
        _, height, width, _ = self._pictures.shape
        return height, width

    def __len__(self) -> int:
        return len(self._pictures)

    def take(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Pictures (B, height, width, 3) of the rows (B,), in their order."""
        return np.asarray(self._pictures[rows])


def decode_picture(data: bytes) -> Image:
    """The picture as RGB, upright, with transparency on white; of an animation its first frame.

    Size in bytes and in pixels is bounded before anything is decoded. Raises UnreadablePicture.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    if not data:
        raise UnreadablePicture("the file is empty")
    if len(data) > LARGEST_BYTES:
        raise UnreadablePicture(f"the file is larger than {LARGEST_BYTES // 1_000_000} MB")
    try:
        picture: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
        if picture.width * picture.height > MOST_PIXELS:
            raise UnreadablePicture(
                f"{picture.width} x {picture.height} pixels are more than {MOST_PIXELS // 1_000_000} megapixels"
            )
        picture.load()
        return _to_rgb(ImageOps.exif_transpose(picture))
    except UnreadablePicture:
        raise
    except Image.DecompressionBombError as error:  # beyond Pillow's own bound, which is higher
        raise UnreadablePicture(f"its pixels are more than {MOST_PIXELS // 1_000_000} megapixels") from error
    except Exception as error:  # Pillow's decoders raise nearly everything on broken files
        unknown = isinstance(error, UnidentifiedImageError)
        reason = "it is in no picture format that is taken" if unknown else "it is cut short or broken"
        raise UnreadablePicture(reason) from error


def _to_rgb(picture: Image) -> Image:
    from PIL import Image

    if picture.mode.startswith(("I;16", "I", "F")):  # 16 bits: Pillow's convert would clip, not scale
        values = np.asarray(picture, dtype=np.float64)
        top = 65535.0 if picture.mode.startswith("I;16") or values.max(initial=0) > 255 else 255.0
        picture = Image.fromarray(np.clip(values / top * 255, 0, 255).round().astype(np.uint8))
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        layer = picture.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(white, layer).convert("RGB")
    return picture.convert("RGB")


def fit_picture(picture: Image, canvas: tuple[int, int]) -> NDArray[np.uint8]:
    """The whole picture (height, width, 3), scaled to the canvas and centred on white."""
    from PIL import Image, ImageOps

    height, width = canvas
    fitted = ImageOps.pad(picture, (width, height), method=Image.Resampling.BICUBIC, color="white")
    return np.asarray(fitted, dtype=np.uint8)


def fit_pictures(pictures: NDArray[np.uint8], canvas: tuple[int, int]) -> NDArray[np.uint8]:
    """Stored pictures (B, H, W, 3) on another canvas; as they are where the canvas is theirs."""
    from PIL import Image

    if pictures.shape[1:3] == canvas:
        return pictures
    return np.stack([fit_picture(Image.fromarray(picture), canvas) for picture in pictures])

"""A model's input: plain or augmented views of images, as normalised tensors.

By default the whole image is stretched to a square, as by BLIP's own processor: the centre crop of a 60x80 garment
would lose a quarter of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import grid_sample, interpolate, pad

from vlm_core.pixels.arrays import Float32Array, Pictures
from vlm_core.pixels.augmentation_params import AugmentationParams

# Of CLIP's training images; BLIP and GIT use the same (`image_mean` and `image_std` of their processors).
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow's and torchvision's grey

_ROUNDING: Final = 1e-6  # Hugging Face's processors cut a side to whole pixels, which an inexact quotient would halve

Interpolation = Literal["nearest", "bilinear", "bicubic"]
# stretch: the whole image, in other proportions; crop: its centre, in its own; pad: the whole, its border repeated.
Resize = Literal["stretch", "crop", "pad"]


@dataclass(frozen=True)
class Preprocessing:
    """How images become a model's input: resized by an interpolation, then normalised channel by channel."""

    mean: tuple[float, float, float] = MEAN  # of values between 0 and 1
    std: tuple[float, float, float] = STD
    interpolation: Interpolation = "bilinear"
    # Not in the repr, which is part of the feature cache's key from before there was a choice.
    resize: Resize = field(default="stretch", repr=False)
    shorter_side: float = field(default=1.0, repr=False)  # of the image before it is cropped, in sides of the input

    def extent(self, height: int, width: int) -> tuple[float, float]:
        """Return how many of the image's heights and widths the square input covers."""
        if self.resize == "stretch":
            return 1.0, 1.0
        side = min(height, width) / self.shorter_side if self.resize == "crop" else max(height, width)
        return side / height, side / width


DEFAULT: Final = Preprocessing()  # of the shipped weights, and of checkpoints that do not state their own


def plain_view(pictures: Pictures, image_size: int, preprocessing: Preprocessing = DEFAULT) -> Tensor:
    """Return pixels (B, 3, S, S) of images (B, H, W, 3), resized with antialiasing and normalised."""
    pixels, mode = _to_tensor(pictures), preprocessing.interpolation
    tall, wide = preprocessing.extent(*pixels.shape[2:])
    whole = (max(1, int(image_size / tall + _ROUNDING)), max(1, int(image_size / wide + _ROUNDING)))
    pixels = _resize(pixels, whole, mode)
    return _normalise(centred(pixels, (image_size, image_size), "replicate"), preprocessing)


def centred(pixels: Tensor, size: tuple[int, int], beyond: Literal["replicate", "constant"]) -> Tensor:
    """Return the middle (B, C, H, W) of pixels (B, C, h, w), with the border repeated beyond it, or zeros."""
    if pixels.shape[2:] == size:
        return pixels
    (top, bottom), (left, right) = (
        (int(missing / 2), missing - int(missing / 2))  # of an odd number of pixels, processors cut the fewer first
        for missing in (wanted - given for wanted, given in zip(size, pixels.shape[2:], strict=True))
    )
    pixels = pixels[:, :, max(0, -top) :, max(0, -left) :][:, :, : size[0], : size[1]]
    return pad(pixels, [max(0, side) for side in (left, right, top, bottom)], mode=beyond)


def augmented_view(
    pictures: Pictures, image_size: int, params: AugmentationParams, preprocessing: Preprocessing = DEFAULT
) -> Tensor:
    """Return pixels (B, 3, S, S) of images (B, H, W, 3): colour jitter, then all geometry in one resampling.

    Colour changes are applied at the source's size, where there are the fewest pixels; pointwise and nearly linear,
    they commute with the resampling. Outside the image, its border is repeated, as shops' backgrounds are plain.
    """
    pixels = _to_tensor(pictures)
    height, width = pixels.shape[2:]
    if max(height, width) > 2 * image_size:  # one bilinear tap would alias
        scale = 2 * image_size / max(height, width)
        pixels = _resize(pixels, (round(height * scale), round(width * scale)), preprocessing.interpolation)
    pixels = _jitter(pixels, params)
    homographies = params.homographies(height, width)
    if preprocessing.resize != "stretch":
        tall, wide = preprocessing.extent(height, width)
        homographies = homographies @ np.diag([wide, tall, 1]).astype(np.float32)
    grid = _grid(homographies, image_size)
    mode = preprocessing.interpolation
    pixels = grid_sample(pixels, grid, mode=mode, padding_mode="border", align_corners=False)
    return _normalise(_within_range(pixels, mode), preprocessing)


def mirrored_view(
    pictures: Pictures, image_size: int, params: AugmentationParams, preprocessing: Preprocessing = DEFAULT
) -> Tensor:
    """Return pixels (B, 3, S, S) of the plain view, mirrored where `params.flip` is set."""
    flip = params.flip[:, None, None, None]
    return plain_view(np.where(flip, pictures[:, :, ::-1], pictures), image_size, preprocessing)


def _to_tensor(pictures: Pictures) -> Tensor:
    writable = np.require(pictures, requirements=["C", "W"])  # PyTorch warns of what is read-only
    return torch.from_numpy(writable).permute(0, 3, 1, 2).float().div_(255)


def _resize(pixels: Tensor, size: tuple[int, int], mode: Interpolation) -> Tensor:
    if mode == "nearest":
        return interpolate(pixels, size=size, mode="nearest-exact")
    return _within_range(interpolate(pixels, size=size, mode=mode, antialias=True, align_corners=False), mode)


def _within_range(pixels: Tensor, mode: Interpolation) -> Tensor:
    """Return pixels without what bicubic interpolation adds below black and above white."""
    return pixels.clamp_(0, 1) if mode == "bicubic" else pixels


def _normalise(pixels: Tensor, preprocessing: Preprocessing) -> Tensor:
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (preprocessing.mean, preprocessing.std))
    return pixels.sub_(mean).div_(std)


def _grid(homographies: Float32Array, image_size: int) -> Tensor:
    """Return the source coordinates (x, y in -1..1) of each output pixel (B, S, S, 2)."""
    centres = (torch.arange(image_size) * 2 + 1) / image_size - 1
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    points = torch.stack((x, y, torch.ones_like(x)), dim=-1).view(-1, 3)  # (S * S, 3)
    mapped = points @ torch.from_numpy(homographies).transpose(1, 2)  # (B, S * S, 3)
    return (mapped[..., :2] / mapped[..., 2:]).view(-1, image_size, image_size, 2)


def _jitter(pixels: Tensor, params: AugmentationParams) -> Tensor:
    """Return pixels with each image's own brightness, contrast, saturation and hue.

    The first three are torchvision's. Hue rotates the colour plane of YIQ, one matrix per image; HSV's hue would need
    branches per pixel.
    """
    brightness, contrast, saturation = (
        torch.from_numpy(factor).view(-1, 1, 1, 1) for factor in (params.brightness, params.contrast, params.saturation)
    )
    luma = torch.tensor(LUMA).view(1, 3, 1, 1)
    pixels = (pixels * brightness).clamp_(0, 1)
    mean_grey = (pixels * luma).sum(dim=1, keepdim=True).mean(dim=(2, 3), keepdim=True)
    pixels = torch.lerp(mean_grey.expand_as(pixels), pixels, contrast).clamp_(0, 1)
    grey = (pixels * luma).sum(dim=1, keepdim=True)
    pixels = torch.lerp(grey.expand_as(pixels), pixels, saturation).clamp_(0, 1)
    rotated = torch.from_numpy(params.hue_matrices()) @ pixels.flatten(2)
    return rotated.view_as(pixels).clamp_(0, 1)

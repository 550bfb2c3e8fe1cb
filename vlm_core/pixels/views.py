"""What a model sees of a picture: the plain view, or one with the study's augmentations, as normalised tensors.

Both stretch the whole picture to a square, as BLIP's own processor does: cropping a 60x80 garment to its
middle square would cut a quarter of it away.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import grid_sample, interpolate

from vlm_core.pixels.augmentation_params import AugmentationParams

# Of CLIP's training pictures; BLIP and GIT were trained with the same (their processors' `image_mean`, `image_std`).
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow's and torchvision's grey


def plain_view(pictures: NDArray[np.uint8], image_size: int) -> Tensor:
    """Pixels (B, 3, S, S) of pictures (B, H, W, 3), resized with antialiasing and normalised."""
    return _normalise(_resize(_to_tensor(pictures), (image_size, image_size)))


def augmented_view(pictures: NDArray[np.uint8], image_size: int, draws: AugmentationParams) -> Tensor:
    """Pixels (B, 3, S, S) under one draw a picture: colour first, then all geometry in one resampling.

    Colour is applied at the source's size, where there are the fewest pixels; pointwise and nearly linear, it
    commutes with the resampling. Outside of the picture its border goes on, as shops' backgrounds do.
    """
    pixels = _to_tensor(pictures)
    height, width = pixels.shape[2:]
    if max(height, width) > 2 * image_size:  # one bilinear tap would alias
        scale = 2 * image_size / max(height, width)
        pixels = _resize(pixels, (round(height * scale), round(width * scale)))
    pixels = _jitter(pixels, draws)
    grid = _grid(draws.homographies(height, width), image_size)
    return _normalise(grid_sample(pixels, grid, mode="bilinear", padding_mode="border", align_corners=False))


def mirrored_view(pictures: NDArray[np.uint8], image_size: int, draws: AugmentationParams) -> Tensor:
    """Pixels (B, 3, S, S) as in the plain view, those mirrored that are drawn to be."""
    flip = draws.flip[:, None, None, None]
    return plain_view(np.where(flip, pictures[:, :, ::-1], pictures), image_size)


def _to_tensor(pictures: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float().div_(255)


def _resize(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    return interpolate(pixels, size=size, mode="bilinear", antialias=True, align_corners=False)


def _normalise(pixels: Tensor) -> Tensor:
    mean = torch.tensor(MEAN).view(1, 3, 1, 1)
    return pixels.sub_(mean).div_(torch.tensor(STD).view(1, 3, 1, 1))


def _grid(homographies: NDArray[np.float32], image_size: int) -> Tensor:
    """Where in the source (x, y in -1..1) each output pixel is taken from: (B, S, S, 2)."""
    centres = (torch.arange(image_size) * 2 + 1) / image_size - 1
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    points = torch.stack((x, y, torch.ones_like(x)), dim=-1).view(-1, 3)  # (S * S, 3)
    mapped = points @ torch.from_numpy(homographies).transpose(1, 2)  # (B, S * S, 3)
    return (mapped[..., :2] / mapped[..., 2:]).view(-1, image_size, image_size, 2)


def _jitter(pixels: Tensor, draws: AugmentationParams) -> Tensor:
    """Brightness, contrast, saturation and hue by each picture's own factors, as torchvision defines the first three.

    Hue turns the colour plane of YIQ, which is one matrix a picture; HSV's hue needs branches a pixel.
    """
    brightness, contrast, saturation = (
        torch.from_numpy(factor).view(-1, 1, 1, 1) for factor in (draws.brightness, draws.contrast, draws.saturation)
    )
    luma = torch.tensor(LUMA).view(1, 3, 1, 1)
    pixels = (pixels * brightness).clamp_(0, 1)
    mean_grey = (pixels * luma).sum(dim=1, keepdim=True).mean(dim=(2, 3), keepdim=True)
    pixels = torch.lerp(mean_grey.expand_as(pixels), pixels, contrast).clamp_(0, 1)
    grey = (pixels * luma).sum(dim=1, keepdim=True)
    pixels = torch.lerp(grey.expand_as(pixels), pixels, saturation).clamp_(0, 1)
    turned = torch.from_numpy(draws.hue_matrices()) @ pixels.flatten(2)
    return turned.view_as(pixels).clamp_(0, 1)

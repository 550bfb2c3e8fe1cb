"""Random parameters of augmented views, a function of seed, epoch, product and copy only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vlm_core.pixels.arrays import Float32Array, FloatArray, Rows

# The original paper names six augmentations without strengths; these are torchvision's usual ones for small images.
MIN_CROP_AREA = 0.7
MAX_ASPECT_RATIO = 4 / 3
MAX_JITTER = 0.2
MAX_HUE_TURN = 0.05  # of a full turn
MAX_ROTATION_DEGREES = 10.0
MAX_DISTORTION = 0.2
PERSPECTIVE_PROBABILITY = 0.5
NUMBERS_PER_VIEW = 19

_YIQ = np.array([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
_RGB = np.linalg.inv(_YIQ)
_CORNERS = np.array([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])


@dataclass(frozen=True)
class AugmentationParams:
    """The parameters of every augmentation for each of B images; shapes are (B,) unless given."""

    area: Float32Array  # share of the image that the crop keeps
    ratio: Float32Array  # width / height of the crop, in pixels
    left: Float32Array  # 0..1: the crop's position in the space it can move in
    top: Float32Array
    flip: NDArray[np.bool_]
    brightness: Float32Array
    contrast: Float32Array
    saturation: Float32Array
    hue: Float32Array  # radians
    rotation: Float32Array  # radians
    corners: Float32Array  # (B, 4, 2) inward shift of the corners in half sides; zero: no perspective

    def homographies(self, height: int, width: int) -> Float32Array:
        """Return matrices (B, 3, 3) from output to source coordinates, both in -1..1.

        They undo perspective, rotation, flip and crop in turn.
        """
        crop = self._crops(height, width)
        flip = _diagonal(np.where(self.flip, -1.0, 1.0), np.ones(len(self.flip)))
        cos, sin, zero, one = np.cos(self.rotation), np.sin(self.rotation), 0 * self.rotation, 0 * self.rotation + 1
        rotation = np.stack([cos, -sin, zero, sin, cos, zero, zero, zero, one], axis=1).reshape(-1, 3, 3)
        matrices: FloatArray = crop @ flip @ rotation @ self._perspectives()
        return matrices.astype(np.float32)

    def _crops(self, height: int, width: int) -> FloatArray:
        """Return matrices (B, 3, 3) of the crops; a box larger than the image is cut to it (torchvision resamples)."""
        aspect = np.sqrt(self.ratio * height / width)
        width_share = np.minimum(np.sqrt(self.area) * aspect, 1.0)
        height_share = np.minimum(np.sqrt(self.area) / aspect, 1.0)
        matrices = _diagonal(width_share, height_share)
        matrices[:, 0, 2] = (2 * self.left - 1) * (1 - width_share)
        matrices[:, 1, 2] = (2 * self.top - 1) * (1 - height_share)
        return matrices

    def _perspectives(self) -> FloatArray:
        """Return homographies (B, 3, 3) from the shifted corners to the square's, by the usual eight equations."""
        moved = _CORNERS * (1 - self.corners.astype(np.float64))  # (B, 4, 2)
        x, y = moved[..., 0], moved[..., 1]
        one, zero = np.ones_like(x), np.zeros_like(x)
        u, v = np.broadcast_to(_CORNERS[:, 0], x.shape), np.broadcast_to(_CORNERS[:, 1], x.shape)
        rows_u = np.stack([x, y, one, zero, zero, zero, -u * x, -u * y], axis=-1)
        rows_v = np.stack([zero, zero, zero, x, y, one, -v * x, -v * y], axis=-1)
        equations = np.concatenate([rows_u, rows_v], axis=1)  # (B, 8, 8)
        solved = np.linalg.solve(equations, np.concatenate([u, v], axis=1)[..., None])[..., 0]
        return np.concatenate([solved, np.ones((len(solved), 1))], axis=1).reshape(-1, 3, 3)

    def hue_matrices(self) -> Float32Array:
        """Return matrices (B, 3, 3) that rotate RGB about the grey axis of YIQ."""
        cos, sin, zero, one = np.cos(self.hue), np.sin(self.hue), 0 * self.hue, 0 * self.hue + 1
        turn = np.stack([one, zero, zero, zero, cos, -sin, zero, sin, cos], axis=1).reshape(-1, 3, 3)
        matrices: FloatArray = _RGB @ turn @ _YIQ
        return matrices.astype(np.float32)


def sample_params(seed: int, epoch: int, rows: Rows, copies: Rows) -> AugmentationParams:
    """Return the parameters for catalogue rows (B,); `copies` (B,) number the oversampled copies of a product."""
    numbers = np.stack([_numbers(seed, epoch, int(row), int(copy)) for row, copy in zip(rows, copies, strict=True)])
    spread = 2 * numbers - 1  # -1..1
    perspective = numbers[:, 10] < PERSPECTIVE_PROBABILITY
    return AugmentationParams(
        area=MIN_CROP_AREA + (1 - MIN_CROP_AREA) * numbers[:, 0],
        ratio=np.exp(np.log(MAX_ASPECT_RATIO) * spread[:, 1]).astype(np.float32),
        left=numbers[:, 2],
        top=numbers[:, 3],
        flip=numbers[:, 4] < 0.5,
        brightness=1 + MAX_JITTER * spread[:, 5],
        contrast=1 + MAX_JITTER * spread[:, 6],
        saturation=1 + MAX_JITTER * spread[:, 7],
        hue=np.float32(2 * np.pi * MAX_HUE_TURN) * spread[:, 8],
        rotation=np.float32(np.deg2rad(MAX_ROTATION_DEGREES)) * spread[:, 9],
        corners=np.where(perspective[:, None], MAX_DISTORTION * numbers[:, 11:], 0).reshape(-1, 4, 2),
    )


def _numbers(seed: int, epoch: int, row: int, copy: int) -> Float32Array:
    """Return uniform random numbers (NUMBERS_PER_VIEW,) of one view."""
    generator = np.random.Generator(np.random.Philox(key=np.array([seed, epoch]), counter=np.array([0, 0, row, copy])))
    return generator.random(NUMBERS_PER_VIEW, dtype=np.float32)


def _diagonal(x: NDArray[np.floating], y: NDArray[np.floating]) -> FloatArray:
    matrices = np.zeros((len(x), 3, 3))
    matrices[:, 0, 0], matrices[:, 1, 1], matrices[:, 2, 2] = x, y, 1.0
    return matrices

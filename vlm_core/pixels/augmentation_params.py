"""The random numbers behind an augmented view: a function of seed, epoch, product and copy, and of nothing else."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]  # (B,)

# The study names six augmentations but not their strengths; these are torchvision's usual ones for small pictures.
SMALLEST_AREA = 0.7
WIDEST_RATIO = 4 / 3
LARGEST_JITTER = 0.2
LARGEST_HUE_TURN = 0.05  # of a full turn
LARGEST_ROTATION_DEGREES = 10.0
LARGEST_DISTORTION = 0.2
PERSPECTIVE_SHARE = 0.5
NUMBERS_A_VIEW = 19

_YIQ = np.array([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
_RGB = np.linalg.inv(_YIQ)
_CORNERS = np.array([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])


@dataclass(frozen=True)
class AugmentationParams:
    """One draw of every augmentation for each of B pictures."""

    area: Floats  # share of the picture that the crop keeps
    ratio: Floats  # width / height of the crop, in pixels
    left: Floats  # 0..1: where the crop lies in the room it has
    top: Floats
    flip: NDArray[np.bool_]
    brightness: Floats
    contrast: Floats
    saturation: Floats
    hue: Floats  # radians
    rotation: Floats  # radians
    corners: NDArray[np.float32]  # (B, 4, 2) how far the corners move inwards, in half sides; zero: no perspective

    def homographies(self, height: int, width: int) -> NDArray[np.float32]:
        """Matrices (B, 3, 3) from output to source, both in -1..1: crop, flip, rotation, perspective undone in turn."""
        crop = self._crops(height, width)
        flip = _diagonal(np.where(self.flip, -1.0, 1.0), np.ones(len(self.flip)))
        cos, sin, zero, one = np.cos(self.rotation), np.sin(self.rotation), 0 * self.rotation, 0 * self.rotation + 1
        rotation = np.stack([cos, -sin, zero, sin, cos, zero, zero, zero, one], axis=1).reshape(-1, 3, 3)
        matrices: NDArray[np.float64] = crop @ flip @ rotation @ self._perspectives()
        return matrices.astype(np.float32)

    def _crops(self, height: int, width: int) -> NDArray[np.float64]:
        """The crop's box; a box wider or higher than the picture is cut to it (torchvision draws again)."""
        shape = np.sqrt(self.ratio * height / width)
        wide = np.minimum(np.sqrt(self.area) * shape, 1.0)  # share of the width
        high = np.minimum(np.sqrt(self.area) / shape, 1.0)
        matrices = _diagonal(wide, high)
        matrices[:, 0, 2] = (2 * self.left - 1) * (1 - wide)
        matrices[:, 1, 2] = (2 * self.top - 1) * (1 - high)
        return matrices

    def _perspectives(self) -> NDArray[np.float64]:
        """Homographies that take the moved corners back to the square's (the usual eight equations)."""
        moved = _CORNERS * (1 - self.corners.astype(np.float64))  # (B, 4, 2)
        x, y = moved[..., 0], moved[..., 1]
        one, zero = np.ones_like(x), np.zeros_like(x)
        u, v = np.broadcast_to(_CORNERS[:, 0], x.shape), np.broadcast_to(_CORNERS[:, 1], x.shape)
        rows_u = np.stack([x, y, one, zero, zero, zero, -u * x, -u * y], axis=-1)
        rows_v = np.stack([zero, zero, zero, x, y, one, -v * x, -v * y], axis=-1)
        equations = np.concatenate([rows_u, rows_v], axis=1)  # (B, 8, 8)
        solved = np.linalg.solve(equations, np.concatenate([u, v], axis=1)[..., None])[..., 0]
        return np.concatenate([solved, np.ones((len(solved), 1))], axis=1).reshape(-1, 3, 3)

    def hue_matrices(self) -> NDArray[np.float32]:
        """Matrices (B, 3, 3) that turn RGB about the grey axis of YIQ."""
        cos, sin, zero, one = np.cos(self.hue), np.sin(self.hue), 0 * self.hue, 0 * self.hue + 1
        turn = np.stack([one, zero, zero, zero, cos, -sin, zero, sin, cos], axis=1).reshape(-1, 3, 3)
        matrices: NDArray[np.float64] = _RGB @ turn @ _YIQ
        return matrices.astype(np.float32)


def draw_params(seed: int, epoch: int, rows: NDArray[np.int64], copies: NDArray[np.int64]) -> AugmentationParams:
    """The draws for catalogue rows (B,); `copies` (B,) tells oversampled copies of one product apart."""
    numbers = np.stack([_numbers(seed, epoch, int(row), int(copy)) for row, copy in zip(rows, copies, strict=True)])
    spread = 2 * numbers - 1  # -1..1
    perspective = numbers[:, 10] < PERSPECTIVE_SHARE
    return AugmentationParams(
        area=SMALLEST_AREA + (1 - SMALLEST_AREA) * numbers[:, 0],
        ratio=np.exp(np.log(WIDEST_RATIO) * spread[:, 1]).astype(np.float32),
        left=numbers[:, 2],
        top=numbers[:, 3],
        flip=numbers[:, 4] < 0.5,
        brightness=1 + LARGEST_JITTER * spread[:, 5],
        contrast=1 + LARGEST_JITTER * spread[:, 6],
        saturation=1 + LARGEST_JITTER * spread[:, 7],
        hue=np.float32(2 * np.pi * LARGEST_HUE_TURN) * spread[:, 8],
        rotation=np.float32(np.deg2rad(LARGEST_ROTATION_DEGREES)) * spread[:, 9],
        corners=np.where(perspective[:, None], LARGEST_DISTORTION * numbers[:, 11:], 0).reshape(-1, 4, 2),
    )


def _numbers(seed: int, epoch: int, row: int, copy: int) -> Floats:
    generator = np.random.Generator(np.random.Philox(key=np.array([seed, epoch]), counter=np.array([0, 0, row, copy])))
    return generator.random(NUMBERS_A_VIEW, dtype=np.float32)


def _diagonal(x: NDArray[np.floating], y: NDArray[np.floating]) -> NDArray[np.float64]:
    matrices = np.zeros((len(x), 3, 3))
    matrices[:, 0, 0], matrices[:, 1, 1], matrices[:, 2, 2] = x, y, 1.0
    return matrices

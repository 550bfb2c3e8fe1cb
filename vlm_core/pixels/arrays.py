"""Names of the arrays that pass between rooms, by what they hold. Shapes are given where an array is used."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Rows: TypeAlias = NDArray[np.int64]  # row numbers of a catalogue
Labels: TypeAlias = NDArray[np.int64]  # category numbers; -1 where there is none
Picture: TypeAlias = NDArray[np.uint8]  # (H, W, 3) RGB
Pictures: TypeAlias = NDArray[np.uint8]  # (B, H, W, 3) RGB
FloatArray: TypeAlias = NDArray[np.float64]
Float32Array: TypeAlias = NDArray[np.float32]

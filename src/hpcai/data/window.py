"""Values of a scanner -> grey from 0 to 1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt


class Refused(Exception):
    """Why one image is refused, in words that end a message: no value of a header, no name of a file."""


def windowed(x: npt.NDArray[Any], window: Sequence[float] | None) -> npt.NDArray[np.float32]:
    """`x` of any shape as float32: [centre, width] becomes 0 to 1, what lies outside is cut; None: least to greatest value.

    Source: DICOM PS3.3 section C.11.2.1.3.2 (LINEAR_EXACT): (x - centre) / width + 0.5.
    """
    y = x.astype(np.float64)
    if window is None:
        low, high = float(y.min()), float(y.max())
        centre, width = (low + high) / 2, high - low
    else:
        centre, width = window
    if not width > 0:  # one value all over
        return np.zeros(x.shape, np.float32)
    return np.clip((y - centre) / width + 0.5, 0.0, 1.0).astype(np.float32)

"""One 2D DICOM image -> pixels.   modality LUT (rescale) -> window -> grey from 0 to 1, white is high   (extra imaging)

Refused: several frames, no pixels, a size that the header says and memory should not hold. Compressed transfer syntaxes are
decoded by pydicom's plug-ins (pylibjpeg). Overlays, annotations and shutters are not drawn.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from hpcai.data.window import Refused, windowed

Check = Callable[[int, int, int], None]
GREY = ("MONOCHROME1", "MONOCHROME2")


def header(file: BinaryIO) -> Any:
    """The data set up to its pixels; values that break the standard are taken as they are."""
    import pydicom

    with _lenient():
        return pydicom.dcmread(file, stop_before_pixels=True)


def size(file: BinaryIO) -> tuple[int, int]:
    """(rows, columns)."""
    import pydicom

    with _lenient():
        found = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=["Rows", "Columns"])
        return int(found.Rows), int(found.Columns)


def pixels(data: bytes, window: Sequence[float] | None, check: Check) -> npt.NDArray[Any]:
    """(H, W) float32 from 0 to 1, or (H, W, 3) uint8 for colour. `window`: [centre, width]; None: the file's own.

    Raises: Refused; what pydicom raises for a damaged file.
    """
    import pydicom
    from pydicom.pixels import apply_modality_lut, pixel_array

    with _lenient():
        found = pydicom.dcmread(io.BytesIO(data))
        if "PixelData" not in found and "FloatPixelData" not in found:
            raise Refused("holds no image (a structure set, a report, a plan?). Remove it.")
        if int(found.get("NumberOfFrames") or 1) != 1:
            raise Refused("has several frames. Save one image a file.")
        check(int(found.Rows), int(found.Columns), int(found.get("SamplesPerPixel", 1)))
        grey = str(found.get("PhotometricInterpretation", "MONOCHROME2"))
        x = pixel_array(found)
        if x.ndim == 3 and x.shape[2] == 3:
            if x.dtype != np.uint8:
                raise Refused("is colour of more than 8 bits. Save 8 bits.")
            colour: npt.NDArray[Any] = x
            return colour
        if grey not in GREY:
            raise Refused("is neither grey nor RGB. Save it as one of them.")
        y = apply_modality_lut(x, found)
        z = windowed(y, window) if window is not None else _own_window(y, found)
    return 1 - z if grey == "MONOCHROME1" else z


def _own_window(x: npt.NDArray[Any], found: Any) -> npt.NDArray[np.float32]:
    """By the file's VOI LUT or first window, else from its least to its greatest value.

    Source: DICOM PS3.3 sections C.11.2.1.2 (LINEAR), C.11.2.1.3.1 (SIGMOID), C.11.2.1.3.2 (LINEAR_EXACT).
    """
    from pydicom.pixels import apply_voi_lut

    if found.get("VOILUTSequence"):
        top = 2.0 ** int(found.VOILUTSequence[0].LUTDescriptor[2]) - 1
        return windowed(apply_voi_lut(x, found), (top / 2, top))
    centre, width = _first(found.get("WindowCenter")), _first(found.get("WindowWidth"))
    function = str(found.get("VOILUTFunction") or "LINEAR")
    if centre is None or width is None or width < 1e-6 or (function == "LINEAR" and width < 1):
        return windowed(x, None)
    if function == "SIGMOID":
        y = 1 / (1 + np.exp(-4 * (x.astype(np.float64) - centre) / width))
        return np.asarray(y, np.float32)
    if function == "LINEAR":  # whole numbers: the window ends half a value earlier on each side
        centre, width = centre - 0.5, max(width - 1, 1e-6)
    return windowed(x, (centre, width))


def _first(value: Any) -> float | None:
    """The first of one or several numbers."""
    if value is None or value == "":
        return None
    several = isinstance(value, (list, tuple)) or type(value).__name__ == "MultiValue"
    number = float(value[0] if several else value)
    return number if np.isfinite(number) else None


class _lenient:
    """Within it pydicom warns of nothing: its words cite values."""

    def __enter__(self) -> None:
        import logging
        import warnings

        self._caught = warnings.catch_warnings()
        self._caught.__enter__()
        warnings.simplefilter("ignore")
        logging.getLogger("pydicom").setLevel(logging.CRITICAL)

    def __exit__(self, *_: object) -> None:
        self._caught.__exit__(None, None, None)

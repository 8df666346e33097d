"""One 2D NIfTI image (.nii, .nii.gz) -> pixels.   scaled values -> DICOM's axes -> window -> grey from 0 to 1   (extra imaging)

A volume is refused. Rows and columns lie as in DICOM: columns to the patient's left, rows to the back (or the feet); a file
without orientation gives its first axis as columns.
"""

from __future__ import annotations

import gzip
import io
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from hpcai.data.window import Refused, windowed

Check = Callable[[int, int, int], None]
SPARE = 2**20  # bytes of extensions before, and of anything behind the image


def size(file: BinaryIO) -> tuple[int, int]:
    """(height, width) of the image as it lies in the file's array, first axis as columns."""
    head = file.read(544)
    if head[:2] == b"\x1f\x8b":
        file.seek(0)
        with gzip.GzipFile(fileobj=file) as unpacked:
            head = unpacked.read(544)
    columns, rows = _shape(_header(head))
    return rows, columns


def pixels(data: bytes, window: Sequence[float] | None, check: Check) -> npt.NDArray[np.float32]:
    """(H, W) float32 from 0 to 1.

    Raises: Refused; what gzip and nibabel raise for a damaged file.
    """
    import nibabel as nib

    packed = data[:2] == b"\x1f\x8b"
    head = _unpacked(data, 544) if packed else data[:544]
    found = _header(head)
    columns, rows = _shape(found)
    check(rows, columns, found.get_data_dtype().itemsize)
    if packed:
        most = int(found["vox_offset"]) + columns * rows * found.get_data_dtype().itemsize + SPARE
        data = _unpacked(data, most)
        if len(data) == most:
            raise ValueError("unpacks to more than its header says")
    kind = nib.Nifti2Image if isinstance(found, nib.Nifti2Header) else nib.Nifti1Image
    image = kind.from_stream(io.BytesIO(data))
    x = np.asarray(image.get_fdata(dtype=np.float32)).reshape(columns, rows, 1)
    if not np.isfinite(x).all():
        raise Refused("holds NaN or infinite pixels. Mend or remove this case.")
    return windowed(_as_dicom(x, image), window)


def _as_dicom(x: npt.NDArray[np.float32], image: Any) -> npt.NDArray[np.float32]:
    """(X, Y, 1) -> (H, W)."""
    from nibabel.orientations import apply_orientation, io_orientation

    if not (int(image.header["sform_code"]) or int(image.header["qform_code"])):
        return x[:, :, 0].T
    turn = io_orientation(image.affine)
    if np.isnan(turn).any():
        return x[:, :, 0].T
    y = np.asarray(apply_orientation(x, turn))  # axes to the patient's right, front and head
    flat = y.squeeze(axis=int(turn[2, 0]))
    return np.ascontiguousarray(flat[::-1, ::-1].T)


def _unpacked(data: bytes, most: int) -> bytes:
    """At most so many bytes. Read to its end, gzip compares its checksum."""
    with gzip.GzipFile(fileobj=io.BytesIO(data)) as f:
        return f.read(most)


def _header(head: bytes) -> Any:
    import nibabel as nib

    kind = nib.Nifti2Header if head[4:7] == b"n+2" else nib.Nifti1Header
    return kind.from_fileobj(io.BytesIO(head))


def _shape(found: Any) -> tuple[int, int]:
    """(columns, rows).

    Raises: Refused for a volume.
    """
    shape = tuple(int(n) for n in found.get_data_shape())
    if len(shape) < 2 or any(n != 1 for n in shape[2:]):
        raise Refused("is no flat image (a volume, or a series). Save one slice a file.")
    return shape[0], shape[1]

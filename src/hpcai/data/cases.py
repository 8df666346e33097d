"""Cases: what every reader gives, and how a reader may touch a file.   file -> bytes, checked -> pixels, checked

A message names rows, never cases, patients or image files: those can name people.
Shapes: n cases, C channels, *size = (H, W) or (D, H, W).
"""

from __future__ import annotations

import hashlib
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from hpcai.errors import DataError, Faults, HpcaiError

SPLITS = ("train", "val", "test")
MAX_FAULTS = 20  # a listing with a wrong column has a fault a row: the first ones say it all

Pixels = npt.NDArray[Any]  # uint8 or float32


class Cases(ABC):
    """A table of cases whose pixels are read when asked for.

    `labels` is int64 (n,), -1 where there is none; `published` says train, val or test for each case; `groups` has n texts
    for each of data.group_cols, empty where a value is missing.
    """

    ids: list[str]
    labels: npt.NDArray[np.int64]
    patients: list[str] | None = None
    published: list[str] | None = None
    groups: Mapping[str, list[str]] = MappingProxyType({})
    first_row = 0  # what a person calls the row of case 0 (a listing's header is row 1)

    def __len__(self) -> int:
        return len(self.ids)

    def row(self, index: int) -> str:
        """How a message names case `index`."""
        return f"data: row {index + self.first_row}"

    def stored_size(self, index: int) -> tuple[int, ...] | None:
        """The pixels of case `index` along each axis in its file, before data.image_size; None if unknown."""
        return None

    @abstractmethod
    def read(self, index: int) -> Pixels:
        """The pixels of case `index`, (C, *size), uint8 or float32, finite.

        Raises: DataError, naming the row only.
        """

    def read_many(self, indices: Sequence[int] | npt.NDArray[np.int64]) -> Pixels:
        """The pixels of several cases (one at least), (n, C, *size).

        Raises: DataError at the first case that cannot be read, or has another size or type than the one before.
        """
        first = self.read(int(indices[0]))
        many = np.empty((len(indices), *first.shape), first.dtype)
        for place, i in enumerate(indices):
            x = self.read(int(i))
            if (x.shape, x.dtype) != (first.shape, first.dtype):
                raise DataError(
                    f"{self.row(int(i))}: is {x.dtype} {x.shape}, others {first.dtype} {first.shape}. Set data.image_size."
                )
            many[place] = x
        return many


def open_plain(path: Path, what: str) -> BinaryIO:
    """`path`, open for reading, if it is a plain file: a FIFO is refused, not waited for.

    Raises: DataError beginning with `what`.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as fault:  # ValueError: a NUL in the path
        why = fault.strerror if isinstance(fault, OSError) else "not a path"
        raise DataError(f"{what}: cannot be read ({why}). Check path and rights.") from None
    if stat.S_ISREG(os.fstat(fd).st_mode):
        return os.fdopen(fd, "rb")
    os.close(fd)
    raise DataError(f"{what}: is no plain file (a folder, a pipe, a device). Name a file.")


def read_file(path: Path, what: str, fingerprint: dict[str, str] | None = None) -> bytes:
    """The bytes of a plain file, the same as at submission if there is a `fingerprint` ({path: sha256}).

    Raises: DataError beginning with `what`.
    """
    with open_plain(path, what) as f:
        try:
            data = f.read()
        except OSError as fault:
            raise DataError(f"{what}: cannot be read ({fault.strerror}). Check the disk.") from None
    if fingerprint is not None:
        expected = fingerprint.get(str(path))
        if hashlib.sha256(data).hexdigest() != expected:
            change = "changed since submission" if expected else "was not there at submission"
            raise DataError(f"{what}: {change}. Restore the file, or start another run with the data as it is.")
    return data


def raise_faults(faults: Sequence[str]) -> None:
    """Raises what is wrong with a table, the first of it in words and the rest as a count; nothing if nothing is."""
    if not faults:
        return
    shown: list[HpcaiError] = [DataError(text) for text in faults[:MAX_FAULTS]]
    if len(faults) > MAX_FAULTS:
        shown.append(DataError(f"data.path: {len(faults) - MAX_FAULTS} more rows have faults. Mend these first."))
    raise shown[0] if len(shown) == 1 else Faults(shown)


def resized(x: Pixels, size: Sequence[int]) -> Pixels:
    """`x` (..., *old) brought to (..., *size), axis by axis, linear, anti-aliased when it shrinks; same dtype.

    Pillow's bilinear filter in any number of dimensions. Source: Pillow, ImagingResample (triangle, scaled support).
    """
    y = x.astype(np.float32)
    for axis, new in zip(range(x.ndim - len(size), x.ndim), size):
        if x.shape[axis] != new:
            y = np.moveaxis(np.tensordot(y, _triangle(x.shape[axis], new), axes=(axis, 1)), -1, axis)
    if x.dtype == np.uint8:
        return np.clip(np.rint(y), 0, 255).astype(np.uint8)
    return np.ascontiguousarray(y)


def _triangle(old: int, new: int) -> npt.NDArray[np.float32]:
    """(new, old) weights of a triangle filter, as wide as one new pixel at least as wide as one old pixel."""
    scale = old / new
    width = max(scale, 1.0)
    centre = (np.arange(new) + 0.5) * scale
    distance = np.abs(np.arange(old) + 0.5 - centre[:, None]) / width
    weights = np.maximum(0.0, 1.0 - distance)
    normalised: npt.NDArray[np.float32] = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    return normalised

"""Arrays in one .npz: MedMNIST's layout (its published split), or `images` with `labels` and, if wanted, `patients`.

    {train,val,test}_images, _labels[, _patients]    case ids train/0, train/1 ...
    images, labels[, patients]                       case ids 0, 1 ...

and for each NAME of data.group_cols {train,val,test}_NAME or NAME, numbers or texts (n,).

Images are uint8 or float32: (n, H, W) grey, (n, H, W, 3) colour (data.channels=3), (n, D, H, W) grey volumes.
Source: MedMNIST v2 (Yang et al., Scientific Data 2023), for the names of the arrays.
"""

from __future__ import annotations

import io
import os
import struct
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hpcai.config.schema import Data
from hpcai.data.cases import SPLITS, Cases, Pixels, read_file, resized
from hpcai.errors import DataError, one_line

Array = npt.NDArray[Any]
# what zipfile and numpy raise for a damaged or foreign file (RuntimeError: encrypted; MemoryError: a header that lies)
UNREADABLE = (OSError, ValueError, EOFError, KeyError, RuntimeError, MemoryError, struct.error, zipfile.BadZipFile, zlib.error)


class NpzCases(Cases):
    """Cases of one .npz, held in memory as stored."""

    def __init__(self, parts: dict[str, Pixels], channels: int, size: list[int] | None) -> None:
        """`parts` are arrays (n, *size) or (n, *size, 3) by name, one after another; `size` to resize to."""
        arrays = list(parts.values())
        self._x: Pixels = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
        self._places = [(name, i) for name, x in parts.items() for i in range(len(x))]
        self._colour = is_colour(self._x.shape, channels)
        self._channels, self._size = channels, size

    def row(self, index: int) -> str:
        """See Cases.row: the array and the place in it, from 0."""
        name, place = self._places[index]
        return f"data: row {place} of `{name}`"

    def stored_size(self, index: int) -> tuple[int, ...]:
        """See Cases.stored_size."""
        return self._x.shape[1 : self._x.ndim - self._colour]

    def read(self, index: int) -> Pixels:
        """See Cases.read."""
        x: Pixels = self.read_many([index])[0]
        return x

    def read_many(self, indices: Sequence[int] | npt.NDArray[np.int64]) -> Pixels:
        """See Cases.read_many."""
        x = self._x[np.asarray(indices, dtype=np.int64)]
        if x.dtype == np.float32:
            finite = np.isfinite(x).reshape(len(x), -1).all(axis=1)
            if not finite.all():
                bad = int(np.asarray(indices)[int(np.argmin(finite))])
                raise DataError(f"{self.row(bad)}: holds NaN or infinite pixels. Mend or remove this case.")
        x = np.moveaxis(x, -1, 1) if self._colour else np.repeat(x[:, None], self._channels, axis=1)
        return np.ascontiguousarray(x) if self._size is None else resized(x, self._size)


def is_colour(shape: tuple[int, ...], channels: int) -> bool:
    """Whether an array of `shape` (n, ...) has its colours on the last axis.

    Raises: DataError if that cannot be told, or has no meaning.
    """
    if len(shape) == 4 and shape[-1] == 3 and channels == 1:
        raise DataError("data.channels=1: the images are (n, H, W, 3), colour. Set data.channels=3.")
    if len(shape) not in (3, 4) or 0 in shape[1:]:
        raise DataError(f"data: images of shape (n, {', '.join(map(str, shape[1:]))}). "
                        "Give (n, H, W), (n, H, W, 3) or (n, D, H, W).")  # fmt: skip
    return len(shape) == 4 and shape[-1] == 3


def open_npz(cfg: Data, fingerprint: dict[str, str] | None, labelled: bool) -> NpzCases:
    """The cases of the .npz at `cfg.path`.

    Raises: DataError.
    """
    arrays = _load(read_file(Path(cfg.path), "data.path", fingerprint), labelled, cfg.group_cols)
    prefixes = [f"{s}_" for s in SPLITS if f"{s}_images" in arrays] or [""]
    if prefixes == [""] and "images" not in arrays:
        raise DataError(
            "data.path: holds neither `images` nor `train_images`, `val_images`, `test_images`. Name its arrays so."
        )
    parts = [arrays[f"{p}images"] for p in prefixes]
    _check_images(parts)
    dims = parts[0].ndim - 1 - is_colour(parts[0].shape, cfg.channels)
    if cfg.image_size is not None and len(cfg.image_size) != dims:
        raise DataError(f"data.image_size={cfg.image_size}: the images have another number of dimensions. Match them.")
    cases = NpzCases({f"{p}images": arrays[f"{p}images"] for p in prefixes}, cfg.channels, cfg.image_size)
    cases.ids = [f"{p[:-1]}/{i}" if p else str(i) for p, x in zip(prefixes, parts) for i in range(len(x))]
    if prefixes != [""]:
        cases.published = [p[:-1] for p, x in zip(prefixes, parts) for _ in range(len(x))]
    cases.labels = np.full(len(cases.ids), -1)
    if labelled:
        each = [_labels(arrays, f"{p}labels", len(x), len(cfg.labels)) for p, x in zip(prefixes, parts)]
        cases.labels = np.concatenate(each)
        cases.groups = {
            name: [v for p, x in zip(prefixes, parts) for v in _group(arrays, f"{p}{name}", len(x))] for name in cfg.group_cols
        }
    if any(f"{p}patients" in arrays for p in prefixes):
        cases.patients = [str(v) for p, x in zip(prefixes, parts) for v in _patients(arrays, f"{p}patients", len(x))]
    return cases


def _load(data: bytes, labelled: bool, groups: Sequence[str]) -> dict[str, Array]:
    """The arrays of an .npz that we know by name; nothing is unpickled, and nothing larger than the machine unpacked."""
    wanted = {f"{p}{k}" for p in ("", "train_", "val_", "test_") for k in ("images", "labels", "patients", *groups)}
    wanted = {k for k in wanted if labelled or not k.endswith(("labels", *groups))}
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as z:
            unpacked = sum(i.file_size for i in z.infolist() if i.filename.removesuffix(".npy") in wanted)
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if unpacked > memory:
            raise DataError(f"data.path: unpacks to {unpacked / 1e9:.0f} GB, the machine has {memory / 1e9:.0f} GB. "
                            "Use data.reader=images or csv, which read case by case.")  # fmt: skip
        with np.load(io.BytesIO(data), allow_pickle=False) as z:
            return {k: z[k] for k in z.files if k in wanted}
    except UNREADABLE as fault:  # numpy's words name arrays and types, never their content
        why = one_line(str(fault), 120)
        raise DataError(f"data.path: is no readable .npz of plain arrays ({why}). Write it with np.savez.") from None


def _check_images(parts: list[Array]) -> None:
    kinds = sorted({str(x.dtype) for x in parts})
    if kinds not in (["uint8"], ["float32"]):
        raise DataError(f"data: images of type {', '.join(kinds)}. Save them as uint8 or float32, all alike.")
    sizes = sorted({str(x.shape[1:]) for x in parts})
    if len(sizes) > 1:
        raise DataError(f"data: images of sizes {', '.join(sizes)}. One .npz holds one size.")


def _labels(arrays: dict[str, Array], name: str, n: int, classes: int) -> npt.NDArray[np.int64]:
    """Labels (n,) or, as MedMNIST has them, (n, 1), whole numbers from 0 to classes - 1."""
    labels = arrays.get(name)
    if labels is None:
        raise DataError(f"data.path: has no `{name}`. Add the labels, whole numbers from 0 to {classes - 1}.")
    if labels.shape not in ((n,), (n, 1)) or labels.dtype.kind not in "iub":
        raise DataError(f"data: `{name}` is {labels.dtype} {labels.shape}. Give one whole number for each of {n} images.")
    labels = labels.reshape(n)
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(wrong):
        raise DataError(f"data: row {wrong[0]} of `{name}` and {len(wrong) - 1} more lie outside 0..{classes - 1}. "
                        "Name every class in data.labels.")  # fmt: skip
    return labels.astype(np.int64)


def _group(arrays: dict[str, Array], name: str, n: int) -> list[str]:
    """What data.group_cols tells of n cases, numbers or texts; NaN is missing."""
    values = arrays.get(name)
    if values is None or values.shape != (n,) or values.dtype.kind not in "iufbU":
        found = "missing" if values is None else f"{values.dtype} {values.shape}"
        raise DataError(f"data.group_cols: `{name}` is {found}. Give a number or text for each of {n} images.")
    return ["" if v == "nan" else v.strip() for v in values.astype(str).tolist()]


def _patients(arrays: dict[str, Array], name: str, n: int) -> Array:
    """Patients (n,), numbers or texts, none empty."""
    patients = arrays.get(name)
    if patients is None or patients.shape != (n,) or patients.dtype.kind not in "iuU" or (patients.astype(str) == "").any():
        found = "missing" if patients is None else f"{patients.dtype} {patients.shape}"
        raise DataError(f"data: `{name}` is {found}. Give a number or text, not empty, for each of {n} images.")
    return patients

"""Each image read once.   file -> Look: what the fingerprint needs of it, and no pixel more than 256"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hpcai.config.schema import Data
from hpcai.data import dicom
from hpcai.data.cases import read_file
from hpcai.data.decode import decode, format_of, size_of
from hpcai.errors import DataError
from hpcai.intake import alike
from hpcai.intake.faults import Notes
from hpcai.intake.identifiers import kinds_of
from hpcai.intake.join import Joined

SAMPLE = 256  # pixels of an image that stand for its intensities


@dataclass(frozen=True)
class Look:
    """What one image is. `size`: (height, width); `depth`: in words; `pixels`: a sample; `persons`: see identifiers.py."""

    format: str
    size: tuple[int, int]
    depth: str
    colour: bool
    pixels: npt.NDArray[np.float32]
    blank: bool
    digest: bytes
    hash: int
    sketch: npt.NDArray[np.float32]
    persons: frozenset[str] | None

    @property
    def whole(self) -> bool:
        """Whether its pixels are uint8, else float32."""
        return self.depth == "8 bits" and self.format in ("PNG", "JPEG", "npz")


def look_at(folder: Path, cases: Sequence[Joined], window: tuple[float, float] | None, notes: Notes,
            told: Callable[[int], None] = lambda n: None) -> tuple[list[Joined], list[Look]]:  # fmt: skip
    """The cases whose image can be read, with what it is. `told` is called with the number of images read so far.

    Raises: ConfigError if an extra is missing.
    """
    cfg = Data(path="x", reader="csv", labels=["0", "1"], channels=3, window=list(window) if window else None)

    def one(case: Joined) -> Look | str:
        try:
            return _look(folder / case.file, cfg)
        except DataError as fault:
            return str(fault).removeprefix("image: ")

    kept: list[Joined] = []
    looks: list[Look] = []
    with ThreadPoolExecutor(4) as pool:
        for n, (case, found) in enumerate(zip(cases, pool.map(one, cases)), 1):
            if isinstance(found, str):
                notes.add("image cannot be read", case.row, f"its image {found}")
            else:
                kept.append(case)
                looks.append(found)
            told(n)
    return _of_one_type(kept, looks, notes)


def _look(path: Path, cfg: Data) -> Look:
    data = read_file(path, "image")
    x = decode(data, "image", cfg)
    colour = bool((x[0] != x[1]).any() or (x[0] != x[2]).any())
    grey = x.astype(np.float32).mean(axis=0) if colour else x[0]
    kind = format_of(data[:352])
    header = dicom.header(io.BytesIO(data)) if kind == "DICOM" else None
    depth = f"{int(header.get('BitsStored', 0))} bits" if header is not None else "8 bits" if x.dtype == np.uint8 else "float32"
    flat = grey.ravel()
    value, sketch = alike.sketch(grey)
    return Look(
        format=kind,
        size=size_of(io.BytesIO(data)) or (x.shape[1], x.shape[2]),
        depth=depth,
        colour=colour,
        pixels=flat[:: max(1, len(flat) // SAMPLE)][:SAMPLE].astype(np.float32),
        blank=bool(flat.min() == flat.max()),
        digest=alike.digest(x if colour else x[0]),
        hash=value,
        sketch=sketch,
        persons=frozenset(kinds_of(header)) if header is not None else None,
    )


def _of_one_type(cases: list[Joined], looks: list[Look], notes: Notes) -> tuple[list[Joined], list[Look]]:
    """One run takes whole numbers (PNG, JPEG) or grey from 0 to 1 (DICOM, NIfTI): the fewer ones are at fault."""
    whole = [look.whole for look in looks]
    if not looks or all(whole) or not any(whole):
        return cases, looks
    (most, _), (_, fewer) = Counter(whole).most_common(2)
    for case, is_whole in zip(cases, whole):
        if is_whole != most:
            text = f"its image and {fewer - 1:,} more hold another type of pixel than most. Save all in one format."
            notes.add("another type of pixel", case.row, text)
    kept = [i for i, is_whole in enumerate(whole) if is_whole == most]
    return [cases[i] for i in kept], [looks[i] for i in kept]

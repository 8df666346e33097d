"""Which images are equal, or nearly so: as bytes, and as a person sees them.   pixels -> digest, hash, sketch -> groups

Shapes: (H, W) grey; n images, P = SKETCH * SKETCH.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from itertools import combinations

import numpy as np
import numpy.typing as npt

from hpcai.data.cases import Pixels, resized

SIDE, LOW, SKETCH = 32, 8, 16
BITS = 3  # of 63 in which the hashes of a pair may differ; at most this many, so one of BANDS parts is equal in both
BANDS = 4
ALIKE = 0.99  # least correlation of two sketches that are called nearly equal
CROWD = 200  # images of one part of the hash; each is compared with the next so many, not with all


def digest(x: Pixels) -> bytes:
    """Of the pixels, (H, W) or (H, W, C), with type and shape: equal pixels, equal digest, whatever the file."""
    return hashlib.sha256(f"{x.dtype} {x.shape}".encode() + np.ascontiguousarray(x).tobytes()).digest()


def sketch(grey: Pixels) -> tuple[int, npt.NDArray[np.float32]]:
    """Hash (63 bits) and sketch (P,), mean 0 and length 1 (0 for a blank image), of (H, W).

    The hash: the signs, about their median, of the lowest frequencies but the mean of a cosine transform of the image at
    32 x 32. Source: Zauner 2010, "Implementation and benchmarking of perceptual image hash functions" (thesis), its pHash.
    """
    small = resized(grey.astype(np.float32), (SIDE, SIDE)).astype(np.float64)
    low = (_COSINES @ small @ _COSINES.T).ravel()[1:]
    bits = low > np.median(low)
    value = int(sum(1 << k for k in np.flatnonzero(bits).tolist()))
    y = resized(grey.astype(np.float32), (SKETCH, SKETCH)).ravel().astype(np.float64)
    y -= y.mean()
    length = float(np.sqrt((y**2).sum()))
    return value, (y / length if length > 1e-6 else np.zeros_like(y)).astype(np.float32)


_COSINES = np.cos(np.pi / SIDE * np.outer(np.arange(LOW), np.arange(SIDE) + 0.5))  # DCT-II, its first LOW rows


def same(keys: Iterable[Hashable]) -> list[list[int]]:
    """The places of equal keys, groups of two and more."""
    of: dict[Hashable, list[int]] = defaultdict(list)
    for i, key in enumerate(keys):
        of[key].append(i)
    return [group for group in of.values() if len(group) > 1]


def nearly(hashes: Sequence[int], sketches: npt.NDArray[np.float32]) -> list[tuple[int, int]]:
    """Pairs whose hashes differ in at most BITS bits and whose sketches (n, P) correlate by ALIKE or more; no blank one."""
    bands: dict[tuple[int, int], list[int]] = defaultdict(list)
    blank = (sketches == 0).all(axis=1).tolist()
    for i, value in enumerate(hashes):
        if not blank[i]:
            for band in range(BANDS):
                bands[band, (value >> (16 * band)) & 0xFFFF].append(i)
    pairs: set[tuple[int, int]] = set()
    for group in bands.values():
        near = combinations(group, 2) if len(group) <= CROWD else (
            (a, b) for k, a in enumerate(group) for b in group[k + 1 : k + 1 + CROWD]
        )  # fmt: skip
        pairs |= {(a, b) for a, b in near if (hashes[a] ^ hashes[b]).bit_count() <= BITS}
    return sorted((a, b) for a, b in pairs if float(sketches[a] @ sketches[b]) >= ALIKE)

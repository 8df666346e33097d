"""Thumbnails of the most wrong cases.   pixels -> PNG, at most SIDE a side -> pictures.json, or the internal page

Made anew from pixels: nothing of a file's own header, name or text comes along.
"""

from __future__ import annotations

import base64
import io

import numpy as np

from hpcai.data.cases import Cases, Pixels
from hpcai.errors import DataError
from hpcai.report.folder import Folder, may_show, read_folder
from hpcai.report.mistakes import mistakes
from hpcai.rundir import RunDir, write_json

SIDE = 128  # pixels of the longer side at most


def note_pictures(run: RunDir, cases: Cases) -> None:
    """Writes pictures.json, from which the report is made without the data; nothing unless data.shareable.

    Raises: RunError if a file of the folder is damaged.
    """
    folder = read_folder(run)
    if may_show(folder.config, folder.screening):
        write_json(run.pictures, {"cases": pictures(folder, cases)})


def pictures(folder: Folder, cases: Cases) -> dict[str, str]:
    """{case: PNG as base64} of the most wrong cases; one that cannot be read has none."""
    block = mistakes(folder, ids=True) or {}
    place = {case: k for k, case in enumerate(cases.ids)}
    found = {}
    for entry in (entry for kind in block.values() if isinstance(kind, list) for entry in kind):
        try:
            found[entry["case"]] = thumbnail(cases.read(place[entry["case"]]))
        except (DataError, KeyError):
            continue
    return found


def thumbnail(x: Pixels) -> str:
    """A PNG as base64 of (C, H, W), of a volume (C, D, H, W) its middle slice; float32 from its least to its most."""
    from PIL import Image

    flat = x if x.ndim == 3 else x[:, x.shape[1] // 2]
    if flat.dtype != np.uint8:
        low, high = float(flat.min()), float(flat.max())
        flat = np.rint((flat - low) * (255 / (high - low) if high > low else 0)).astype(np.uint8)
    picture = Image.fromarray(flat.transpose(1, 2, 0).copy() if len(flat) == 3 else flat[0])
    picture.thumbnail((SIDE, SIDE))
    to = io.BytesIO()
    picture.save(to, "PNG")
    return base64.b64encode(to.getvalue()).decode()

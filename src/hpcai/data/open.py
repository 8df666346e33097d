"""From a config to its cases: the one place that knows the readers."""

from __future__ import annotations

from collections.abc import Callable

from hpcai.config.schema import Data
from hpcai.data.cases import Cases
from hpcai.data.images import open_csv, open_images
from hpcai.data.npz import open_npz
from hpcai.data.table import open_table
from hpcai.errors import DataError

Reader = Callable[[Data, dict[str, str] | None, bool], Cases]
READERS: dict[str, Reader] = {"npz": open_npz, "images": open_images, "csv": open_csv, "table": open_table}


def open_cases(cfg: Data, fingerprint: dict[str, str] | None = None, *, labelled: bool = True) -> Cases:
    """The cases behind `cfg`; `cfg.path` is absolute. Images and listings are read case by case, an .npz at once.

    `fingerprint` maps an absolute path to the sha256 it had at submission: a file is compared when it is read.
    Without `labelled` no label is looked for, and each is -1.

    Raises: DataError (also as Faults) for what is missing, changed, malformed, or no case at all.
    """
    cases = READERS[cfg.reader](cfg, fingerprint, labelled)
    if not len(cases):
        raise DataError("data.path: holds no case. Check data.path and data.reader.")
    assert len(cases.ids) == len(set(cases.ids)) == len(cases.labels)
    return cases

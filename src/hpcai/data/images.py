"""Image files, decoded (decode.py) when asked for: a folder whose sub-folders are classes, or a listing (listing.py).

    FOLDER/<class>/...            label = first sub-folder            case id = path in the folder
    FOLDER/{train,val,test}/<class>/...    with data.split.by=published
    FOLDER/...                    without labels (predict): any depth

EXIF orientation is not applied. Hidden files are skipped.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import numpy as np

from hpcai.config.schema import Data
from hpcai.data.cases import SPLITS, Cases, Pixels, open_plain, raise_faults, read_file
from hpcai.data.decode import decode, size_of
from hpcai.data.listing import read_listing
from hpcai.errors import DataError
from hpcai.inputs import is_image


class ImageCases(Cases):
    """Cases of one image file each."""

    def __init__(self, folder: Path, files: list[str], cfg: Data, fingerprint: dict[str, str] | None) -> None:
        """`files` are paths in `folder`, one a case.

        Raises: DataError if `cfg.image_size` is no (height, width).
        """
        self._folder, self._files, self._fingerprint = folder, files, fingerprint
        self._real = folder.resolve()
        self._cfg, self._size = cfg, cfg.image_size
        if cfg.image_size is not None and len(cfg.image_size) != 2:
            raise DataError(f"data.image_size={cfg.image_size}: these images are flat. Give (height, width).")

    def read(self, index: int) -> Pixels:
        """See Cases.read."""
        what = self.row(index)
        return decode(read_file(self._path(index), what, self._fingerprint), what, self._cfg)

    def _path(self, index: int) -> Path:
        path = self._folder / self._files[index]
        if not path.resolve().is_relative_to(self._real):
            raise DataError(f"{self.row(index)}: a link leads out of the folder. Put the image itself there.")
        return path

    def stored_size(self, index: int) -> tuple[int, int] | None:
        """See Cases.stored_size; from the header alone."""
        try:
            with open_plain(self._path(index), "") as f:
                return size_of(f)
        except DataError:
            return None

    def check_one_size(self) -> None:
        """Reads every header; an unreadable image has no size, and is told when it is read.

        Raises: DataError if the images differ in size and `image_size` is null.
        """
        if self._size is not None:
            return
        sizes = Counter(size for index in range(len(self._files)) if (size := self.stored_size(index)) is not None)
        if len(sizes) > 1:
            found = ", ".join(f"{h}x{w} ({n})" for (h, w), n in sizes.most_common(5))
            more = f" and {len(sizes) - 5} more" if len(sizes) > 5 else ""
            (h, w), _ = sizes.most_common(1)[0]
            raise DataError(f"data.image_size=null: the images have {len(sizes)} sizes, {found}{more}. "
                            f"Set one, as data.image_size=[{h},{w}].")  # fmt: skip


def open_images(cfg: Data, fingerprint: dict[str, str] | None, labelled: bool) -> Cases:
    """The images below the folder `cfg.path`, sorted by path.

    Raises: DataError.
    """
    folder = Path(cfg.path)
    files = _walk(folder)
    _check_same_files(folder, files, fingerprint)
    cases = ImageCases(folder, files, cfg, fingerprint)
    cases.first_row = 1
    cases.ids = files
    cases.labels = np.full(len(files), -1)
    if labelled:
        places = [f.split("/")[:-1] for f in files]
        if cfg.split.by == "published" and any(p and p[0] in SPLITS for p in places):
            cases.published = [p[0] if p else "" for p in places]
            lost = [i for i, s in enumerate(cases.published, 1) if s not in SPLITS]
            if lost:
                raise DataError(f"data.split.by=published: {len(lost)} images (first: row {lost[0]}) lie outside "
                                f"{', '.join(SPLITS)}. Move them, or take data.split.by=random.")  # fmt: skip
            places = [p[1:] for p in places]
        cases.labels = _labels([p[0] if p else "" for p in places], cfg.labels)
        cases.check_one_size()
    return cases


def _walk(folder: Path) -> list[str]:
    """The image files below `folder`, as sorted relative paths with `/`.

    Raises: DataError for a link to a folder, an unreadable sub-folder, a name that is no UTF-8.
    """

    def refuse(fault: OSError) -> None:
        raise DataError(f"data.path: a folder cannot be read ({fault.strerror}). Check path and rights.") from None

    files: list[str] = []
    for parent, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        if any((Path(parent) / name).is_symlink() for name in folders):
            raise DataError("data.path: holds a link to a folder. Put the folder itself there.")
        inside = Path(parent).relative_to(folder)
        files += [(inside / name).as_posix() for name in names if is_image(folder, inside / name)]
    files.sort()
    for number, name in enumerate(files, 1):
        if any("\ud800" <= c <= "\udfff" for c in name):
            raise DataError(f"data: row {number}: the file's name is not UTF-8. Rename it.")
    return files


def _check_same_files(folder: Path, files: list[str], fingerprint: dict[str, str] | None) -> None:
    """Raises DataError if images came or went since submission; what changed within one is seen when it is read."""
    if fingerprint is None:
        return
    now = set(files)
    inside = (Path(f).relative_to(folder) for f in fingerprint if Path(f).is_relative_to(folder))
    then = {f.as_posix() for f in inside}
    if now != then:
        raise DataError(f"data.path: {len(now - then)} images are new since submission and {len(then - now)} are gone. "
                        "Restore the folder, or start another run with the data as it is.")  # fmt: skip


def _labels(classes: list[str], known: list[str]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """The number of each case's class; a folder's name is not cited: it may be a patient's."""
    number = {name: i for i, name in enumerate(known)}
    unknown = [row for row, name in enumerate(classes, 1) if name not in number]
    if unknown:
        raise DataError(f"data.labels: {len(unknown)} images (first: row {unknown[0]} of the sorted files) lie in no folder "
                        f"named {' or '.join(known[:10])}. Rename the folder, or name its class.")  # fmt: skip
    return np.array([number[name] for name in classes], dtype=np.int64)


def open_csv(cfg: Data, fingerprint: dict[str, str] | None, labelled: bool) -> Cases:
    """The images that the listing `cfg.path` names; they lie in `cfg.root`, or in its folder.

    Raises: DataError, or Faults with a line a row.
    """
    listing = Path(cfg.path)
    wanted = {"case_col": cfg.case_col, "path_col": cfg.path_col, "patient_col": cfg.patient_col}
    if labelled:
        wanted |= {"label_col": cfg.label_col, "split_col": cfg.split_col}
    columns = {key: name for key, name in wanted.items() if name is not None}
    groups = {f"group_cols[{k}]": name for k, name in enumerate(cfg.group_cols if labelled else [])}
    rows = read_listing(read_file(listing, "data.path", fingerprint), columns | groups, blank=groups)
    raise_faults(_row_faults(rows, cfg.labels))
    cases = ImageCases(Path(cfg.root) if cfg.root else listing.parent, [r["path_col"] for r in rows], cfg, fingerprint)
    cases.first_row = 2
    cases.ids = [r["case_col"] for r in rows]
    number = {name: i for i, name in enumerate(cfg.labels)}
    cases.labels = np.array([number[r["label_col"]] if labelled else -1 for r in rows], dtype=np.int64)
    cases.patients = [r["patient_col"] for r in rows] if "patient_col" in columns else None
    cases.published = [r["split_col"] for r in rows] if "split_col" in columns else None
    cases.groups = {name: [r[key].strip() for r in rows] for key, name in groups.items()}
    if labelled:  # without labels each case stands for itself
        cases.check_one_size()
    return cases


def _row_faults(rows: list[dict[str, str]], labels: list[str]) -> list[str]:
    """What is wrong with the rows of a listing, a line each."""
    faults: list[str] = []
    first: dict[str, int] = {}
    for number, row in enumerate(rows, 2):
        if (seen := first.setdefault(row["case_col"], number)) != number:
            faults.append(f"data: row {number} names the same case as row {seen}. A listing has one row a case.")
        path = Path(os.path.normpath(row["path_col"]))
        if path.is_absolute() or path.parts[:1] == ("..",) or "\0" in row["path_col"]:
            faults.append(f"data: row {number}: the path leaves the listing's folder. Give it relative to that folder.")
        if row.get("label_col", labels[0]) not in labels:
            faults.append(f"data: row {number}: the class is none of {', '.join(labels[:10])}. Mend it, or data.labels.")
        if row.get("split_col", SPLITS[0]) not in SPLITS:
            faults.append(f"data: row {number}: the split is none of {', '.join(SPLITS)}. Mend it.")
    return faults

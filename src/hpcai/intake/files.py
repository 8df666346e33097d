"""The images below a folder, and which of them a cell means.

A cell may be the path below the folder, the file's name, either without its suffix, or a path that begins with the folder.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from hpcai.config.site import is_folder
from hpcai.errors import DataError, one_line
from hpcai.inputs import IMAGE_SUFFIXES, is_image


@dataclass
class Images:
    """`files`: paths below `folder`, sorted; `outside`: links that lead out of it; `links`: linked folders, not entered."""

    folder: Path
    files: list[str]
    outside: list[str] = field(default_factory=list)
    links: int = 0
    keys: dict[str, set[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for i, file in enumerate(self.files):
            name = PurePosixPath(file).name
            for key in {file, _bare(file), name, _bare(name)}:
                self.keys.setdefault(key, set()).add(i)
        self._beyond = {key for f in self.outside for n in (f, PurePosixPath(f).name) for key in (n, _bare(n))}

    def means(self, cell: str) -> tuple[int | None, str]:
        """The number of the file that a cell means; else None and why: `outside`, `several`, `none`."""
        cell = cell.replace("\\", "/")
        if cell.startswith("/"):
            try:
                cell = str(Path(os.path.normpath(cell)).relative_to(os.path.normpath(self.folder.absolute())))
            except ValueError:
                return None, "outside"
        cell = os.path.normpath(cell) if cell and "\0" not in cell else ""
        if cell.split("/")[0] == ".." or (len(cell) > 1 and cell[1] == ":" and cell[0].isalpha()):
            return None, "outside"
        tries = [cell, cell.removeprefix(f"{self.folder.name}/")]
        for key in tries:
            found = self.keys.get(key, set())
            whole = {i for i in found if self.files[i] == key} or found
            if len(whole) == 1:
                return next(iter(whole)), ""
            if whole:
                return None, "several"
        return None, "outside" if self._beyond & set(tries) else "none"


def find_images(folder: Path) -> Images:
    """Every image below `folder`.

    Raises: DataError if there is none, or a folder cannot be read.
    """
    shown = f"--images={one_line(str(folder), 120)}"
    if not is_folder(folder):
        raise DataError(f"{shown}: is no folder. Give the folder of the images.")

    def refuse(fault: OSError) -> None:
        raise DataError(f"{shown}: a folder in it cannot be read ({fault.strerror}). Check its rights.") from None

    real, links, odd = folder.resolve(), 0, 0
    files: list[str] = []
    outside: list[str] = []
    for parent, folders, names in os.walk(folder, onerror=refuse):
        links += sum((Path(parent) / name).is_symlink() for name in folders)
        folders[:] = [name for name in folders if not name.startswith(".")]
        inside = Path(parent).relative_to(folder)
        for name in names:
            path = inside / name
            if not is_image(folder, path):
                continue
            if not (folder / path).resolve().is_relative_to(real):
                outside.append(path.as_posix())
            elif not path.as_posix().isprintable():
                odd += 1
            else:
                files.append(path.as_posix())
    if odd:
        raise DataError(f"{shown}: {odd:,} files have names with control characters or no UTF-8. Rename them.")
    if not files:
        more = f" {len(outside):,} links lead out of it: put the images themselves there." if outside else ""
        raise DataError(
            f"{shown}: holds no image ({', '.join(IMAGE_SUFFIXES)}, or DICOM without suffix).{more} Check the folder."
        )
    return Images(folder, sorted(files), outside, links)


def _bare(name: str) -> str:
    """Without the suffix of an image."""
    small = name.lower()
    suffix = next((s for s in sorted(IMAGE_SUFFIXES, key=len, reverse=True) if small.endswith(s)), "")
    return name[: len(name) - len(suffix)] if suffix else name

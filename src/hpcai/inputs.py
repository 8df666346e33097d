"""The files that a run reads, and their digests.   config's data -> [Input] -> data.json -> checked again when read

Standard library only: the submitter calls it on a login node. No message names an image file: file names can name patients.
"""

from __future__ import annotations

import csv
import hashlib
import os
import stat
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import hpcai
from hpcai.config.schema import Data, Screening
from hpcai.errors import DataError, near, one_line

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".npz", ".dcm", ".nii", ".nii.gz")
_DIGESTS: dict[tuple[object, ...], str] = {}  # of this process: the members of a sweep read the same files
SHIPPED = Path(hpcai.__file__).parent / "shipped"
BOOKS = ("analytes", "diseases", "specimen", "policy", "control_rules")  # of schema.Screening, which names one file each


@dataclass(frozen=True)
class Input:
    """One file as it was at submission."""

    path: str
    bytes: int
    sha256: str


def locate(path: str, key: str = "data.path") -> Path:
    """The absolute path that `key` means; `shipped:x` is the package's own.

    Raises: DataError for a shipped file that is not shipped.
    """
    if not path.startswith("shipped:"):
        return expanded(path)
    file = SHIPPED / path.removeprefix("shipped:")
    if ".." in Path(path).parts or not file.resolve().is_relative_to(SHIPPED.resolve()) or not exists(file):
        files = sorted(f for f in SHIPPED.glob("*/*") if f.suffix in (".npz", ".parquet", ".csv"))
        shipped = [f"shipped:{f.relative_to(SHIPPED)}" for f in files]
        raise DataError(f"{key}={one_line(path, 80)}: is not shipped. {near(path, shipped)}")
    return file


def located(data: Data) -> Data:
    """`data` with absolute paths.

    Raises: DataError for a shipped file that is not shipped.
    """
    root = None if data.root is None else str(expanded(data.root))
    label_path = None if data.label_path is None else str(expanded(data.label_path))
    return data.model_copy(update={"path": str(locate(data.path)), "root": root, "label_path": label_path})


def located_books(stated: Screening) -> Screening:
    """`stated` with absolute paths; a name stays a name.

    Raises: DataError for shipped controls that are not shipped.
    """

    def at(name: str) -> str:
        return str(expanded(name)) if is_own(name) else name

    update: dict[str, str | list[str]] = {key: at(getattr(stated, key)) for key in BOOKS}
    update |= {"controls": str(locate(stated.controls, "screening.controls"))} if stated.controls else {}
    return stated.model_copy(update=update | {"rules": [at(name) for name in stated.rules]})


def is_own(name: str) -> bool:
    """Whether a book (analytes, rules ...) is a file of the user's, not one of configs/ by name."""
    return "/" in name or name.endswith((".yaml", ".yml"))


def listed_books(stated: Screening) -> list[Path]:
    """The files of the user's among them, absolute, and the table of controls."""
    names = [*(getattr(stated, key) for key in BOOKS), *stated.rules]
    return [Path(n) for n in dict.fromkeys(names) if is_own(n)] + ([Path(stated.controls)] if stated.controls else [])


def expanded(path: str) -> Path:
    """`path` as an absolute one; `~` is the home folder, `~nobody` stays as it is, and so does `./~`."""
    return Path(os.path.expanduser(path)).absolute()  # noqa: PTH111  (pathlib's raises for ~nobody and takes ./~ for ~)


def exists(path: Path) -> bool:
    """Whether something lies there; a path that no file system can hold does not exist, where pathlib's own raises."""
    try:
        return path.exists()
    except OSError:
        return False


def fingerprint(data: Data, more: Sequence[Path] = ()) -> list[Input]:
    """Every file behind `data` with its digest, sorted by path; `data.path` is absolute. Then those of `more`.

    Raises: DataError if something is missing, is no plain file, or has another digest than `data.sha256`.
    """
    files = [*list_files(data), *more]
    if len(files) == 1:
        inputs = [digest_file(files[0])]
    else:
        with ThreadPoolExecutor(4) as pool:
            inputs = list(pool.map(digest_file, files))
    if data.sha256 is not None and inputs[0].sha256 != data.sha256:
        raise DataError(
            f"data.sha256={data.sha256[:12]}...: the file has {inputs[0].sha256[:12]}... "
            "Get the right file, or state its digest."
        )
    return inputs


def list_files(data: Data) -> list[Path]:
    """The files behind `data`: the npz; the images below a folder; or the listing, then what it lists.

    Raises: DataError.
    """
    path = Path(data.path)
    shown = f"data.path={one_line(data.path, 120)}"
    try:
        path.stat()
    except FileNotFoundError as e:
        origin = f" Its source: {one_line(data.source, 300)}" if data.source else ""
        raise DataError(f"{shown}: does not exist. Give the file or folder with data.path=...{origin}") from e
    except OSError as e:
        raise DataError(f"{shown}: cannot be reached ({e.strerror}). Correct it, or ask for the right to read it.") from e
    if data.reader == "images":
        if not path.is_dir():
            raise DataError(f"{shown}: is no folder. data.reader=images reads a folder of image files.")
        images = sorted(f for f in path.rglob("*") if is_image(path, f.relative_to(path)))
        if not images:
            raise DataError(
                f"{shown}: holds no image ({', '.join(IMAGE_SUFFIXES)}, or DICOM without suffix). Check the folder."
            )
        return images
    if not path.is_file():
        raise DataError(f"{shown}: is no plain file. data.reader={data.reader} reads one.")
    if not os.access(path, os.R_OK):
        raise DataError(f"{shown}: may not be read. Ask for the right to read it.")
    if data.reader == "table" and data.label_path:
        return [path, Path(data.label_path)]
    return (
        [path, *_listed(path, Path(data.root) if data.root else path.parent, data.path_col)] if data.reader == "csv" else [path]
    )


def is_image(folder: Path, path: Path) -> bool:
    """By the name of `path`, relative to `folder`; nothing hidden counts. Without a suffix, or with one of digits as UIDs have,
    a file that says of itself that it is DICOM (and no DICOMDIR)."""
    if any(part.startswith(".") for part in path.parts):
        return False
    if path.name.lower().endswith(IMAGE_SUFFIXES):
        return True
    bare = not path.suffix or path.suffix[1:].isdigit()
    return bare and path.name != "DICOMDIR" and _says_dicom(folder / path)


def _says_dicom(path: Path) -> bool:
    """Whether a plain file has `DICM` behind 128 bytes. Source: DICOM PS3.10, section 7.1."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(fd, "rb") as f:
            return stat.S_ISREG(os.fstat(fd).st_mode) and f.read(132)[128:] == b"DICM"
    except OSError:
        return False


def _listed(listing: Path, root: Path, path_col: str) -> list[Path]:
    """The files that a listing names and that exist; what is wrong with the others is the reader's to say, by row."""
    with listing.open(newline="", encoding="utf-8-sig", errors="replace") as f:
        head = f.readline()
        f.seek(0)
        rows = csv.DictReader(f, delimiter=";" if head.count(";") > head.count(",") else ",")
        try:
            names = [row.get(path_col) for row in rows]
        except csv.Error as e:
            raise DataError(f"data: line {rows.line_num} of the listing cannot be read ({e}). Mend it.") from e
    return sorted({root / n for n in names if n and exists(root / n) and (root / n).is_file()})


def digest_file(path: Path) -> Input:
    """`path` with its size and sha256. A file that has not changed since this process last read it is not read again.

    Raises: DataError if it is no plain file (a FIFO would block) or cannot be read.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        with os.fdopen(fd, "rb") as f:
            facts = os.fstat(fd)
            if not stat.S_ISREG(facts.st_mode):
                raise DataError("data.path: an input is no plain file (a pipe, a folder, a device). Remove it.")
            key = (str(path), facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns)
            if key not in _DIGESTS:
                _DIGESTS[key] = hashlib.file_digest(f, "sha256").hexdigest()
            return Input(str(path), facts.st_size, _DIGESTS[key])
    except OSError as e:
        raise DataError(f"data.path: an input cannot be read ({e.strerror}). Check its rights.") from e

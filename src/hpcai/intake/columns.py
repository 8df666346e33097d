"""Which column is which.   header + words -> Columns; a guess is told, an ambiguous one is a question (exit 2)

Columns are cited only where the first row is known to be a header: without one it would be a patient's.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from hpcai.errors import ConfigError, DataError, near, one_line
from hpcai.intake.table import Table
from hpcai.new import Asked

# a column's words, without case and signs; the first lists win
ROLES: dict[str, tuple[tuple[str, ...], ...]] = {
    "label": (
        ("label", "labels", "class", "diagnosis", "target", "groundtruth"),
        ("dx", "finding", "findings", "category", "outcome", "pathology", "y", "klasse", "diagnose", "diagnostic"),
    ),
    "patient": (
        ("patient", "patientid", "patientnumber", "subject", "subjectid", "participantid"),
        ("participant", "person", "personid", "pid", "mrn"),
    ),
    "split": (("split",), ("set", "subset", "partition")),
    "path": (
        ("path", "file", "filename", "filepath", "imagepath", "imagefile"),
        ("case", "caseid", "image", "imageid", "imageindex", "imagename", "img", "id", "dicomid", "study", "studyid", "scan"),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Columns:
    """The columns' names in the listing; `guessed`: which of them nobody named."""

    path: str
    case: str
    label: str
    patient: str | None
    split: str | None
    groups: tuple[str, ...]
    guessed: tuple[str, ...]


def choose(table: Table, asked: Asked, fits: Callable[[str], bool]) -> Columns:
    """The columns as asked, the others guessed. `fits`: whether a cell names an image.

    Raises: ConfigError for an ambiguous guess, DataError (row 1) for a column that is not there or stands twice.
    """
    named = {"path": asked.path_col, "case": asked.case_col, "label": asked.label_col, "patient": asked.patient_col,
             "split": asked.split_col}  # fmt: skip
    header = table.header
    known = any(name in header for name in (*named.values(), *asked.group_cols) if name) or _is_header(header)
    for option, name in [
        *((f"--{role}-col", name) for role, name in named.items() if name),
        *(("--group-cols", g) for g in asked.group_cols),
    ]:
        _must_be_there(header, option, name, known)
    label = asked.label_col or _guess(header, "label", known, {asked.path_col, asked.case_col, asked.patient_col})
    patient = asked.patient_col or _guess(header, "patient", known, {label}, needed=False)
    path = asked.path_col or _where(table, label, fits, known)
    assert label is not None
    guessed = tuple(role for role, name in (("path", asked.path_col), ("label", asked.label_col)) if name is None)
    guessed += ("patient",) if patient and asked.patient_col is None else ()
    used = [name for name in (path, asked.case_col, label, patient, asked.split_col, *asked.group_cols) if name]
    _check_names(header, used, asked.group_cols)
    return Columns(path, asked.case_col or path, label, patient, asked.split_col, asked.group_cols, guessed)


def _must_be_there(header: list[str], option: str, name: str, known: bool) -> None:
    if name not in header:
        cure = near(name, header) if known else "Its first row names none of the columns asked for: give it a header."
        raise DataError(f"--labels: row 1: has no column {option}={one_line(name, 80)}. {cure}")


def _check_names(header: list[str], used: list[str], groups: tuple[str, ...]) -> None:
    """Raises: DataError for a column twice, or a name that a config or spreadsheet would act on."""
    for name in used:
        if header.count(name) > 1:
            raise DataError(f"--labels: row 1: the column {one_line(name, 80)} stands {header.count(name)} times. Keep one.")
    for name in groups:
        if hostile(name) or name[:1] in tuple("=+-@") or name in ("case", "path", "label", "patient", "split"):
            raise DataError(f"--labels: row 1: a column of --group-cols is called so that config or listing would take it for "
                            f"something else ({one_line(name, 40)}). Rename it.")  # fmt: skip


def hostile(text: str) -> bool:
    """What no config can hold as plain text: a reference ${...}, control characters, OmegaConf's ???, over 1,000 letters."""
    return "${" in text or not text.isprintable() or text == "???" or len(text) > 1000


def _fitting(header: list[str], role: str) -> list[str]:
    """The columns whose name fits a role, by the first of its lists that any fits; whole names before words of a name."""
    for split in (_whole, _words):
        for names in ROLES[role]:
            if found := [name for name in header if split(name) & set(names)]:
                return found
    return []


def _is_header(cells: list[str]) -> bool:
    """Whether a cell is, as a whole, what columns are called: a word within one may stand before a patient's name."""
    return any(_whole(cell) & set(names) for cell in cells for lists in ROLES.values() for names in lists)


def _whole(name: str) -> set[str]:
    return {re.sub(r"[\W_]+", "", name).lower()}


def _words(name: str) -> set[str]:
    return {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)}


def _guess(header: list[str], role: str, known: bool, taken: set[str | None], needed: bool = True) -> str | None:
    found = [name for name in dict.fromkeys(_fitting(header, role)) if name not in taken]
    if len(found) == 1 or (not found and not needed):
        return found[0] if found else None
    if found:
        cited = f": {_listed(found)}" if known else ""
        raise ConfigError(f"--{role}-col: {len(found)} columns could be it{cited}. Name one.")
    choices = f"Name one of: {_listed(header)}." if known else "Name it, and see that the first row is a header."
    raise ConfigError(f"--{role}-col: no column looks like it. {choices}")


def _listed(names: list[str]) -> str:
    return ", ".join(one_line(name, 40) for name in names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")


def _where(table: Table, label: str | None, fits: Callable[[str], bool], known: bool) -> str:
    """The column most of whose cells name an image; of equals the one called so, then the first.

    Raises: DataError if none names one.
    """
    called = _fitting(table.header, "path")
    score = {name: sum(map(fits, table.column(name).values())) for name in dict.fromkeys(table.header) if name != label}
    best = max(score, key=lambda name: (score[name], name in called), default="")
    if not score or not score[best]:
        more = f" Its columns: {_listed(table.header)}." if known else ""
        raise DataError(f"--labels: row 1: no column holds names of files in --images. Check both, or give --path-col.{more}")
    return best

"""Rows + images -> joined cases; each fault noted by its row.   table, columns, images -> [Joined]"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass

from hpcai.errors import DataError
from hpcai.intake.columns import Columns, hostile
from hpcai.intake.faults import Notes
from hpcai.intake.files import Images
from hpcai.intake.table import Table, decimal_points

SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val",
          "test": "test", "testing": "test"}  # fmt: skip
LEAST = 3  # patients of a class: one each in train, val and test
CLASSES = 100  # more are rather ids than classes


@dataclass(frozen=True)
class Joined:
    """One row with its image."""

    row: int
    file: str
    case: str
    label: str
    patient: str | None
    split: str | None
    groups: tuple[str, ...]


def join(table: Table, columns: Columns, images: Images, notes: Notes) -> list[Joined]:
    """The rows that name one image, one class, and what else is asked for; each image and case once.

    Raises: DataError if no row does.
    """
    groups = [dict(zip(table.rows, decimal_points(table.column(name).values()))) for name in columns.groups]
    told = {name: table.column(name) for name in {columns.path, columns.case, columns.label}}
    patient = table.column(columns.patient) if columns.patient else None
    split = table.column(columns.split) if columns.split else None
    found = []
    for row in table.rows:
        at, why = images.means(told[columns.path][row])
        cells = [group[row] for group in groups]
        fault = _image_fault(why, told[columns.path][row]) or _cell_fault(
            told[columns.case][row], told[columns.label][row], None if patient is None else patient[row], cells
        ) or _split_fault(None if split is None else split[row])  # fmt: skip
        if fault:
            notes.add(fault[0], row, fault[1])
            continue
        assert at is not None
        found.append(Joined(
            row, images.files[at], told[columns.case][row], told[columns.label][row], patient[row] if patient else None,
            SPLITS[split[row].lower()] if split else None, tuple(g[row] for g in groups),
        ))  # fmt: skip
    return _split_patients(_once(found, notes), notes)


Fault = tuple[str, str] | None


def _image_fault(why: str, cell: str) -> Fault:
    if not cell:
        return "no image named", "names no image. Fill the cell, or delete the row."
    return {
        "": None,
        "outside": ("path leaves the folder", "the path leads out of --images. Give it relative to that folder."),
        "several": ("several images fit", "several images fit. Give the path below --images."),
        "none": ("no such image", "no image of that name lies in --images. Mend the name, or delete the row."),
    }[why]


def _cell_fault(case: str, label: str, patient: str | None, groups: list[str]) -> Fault:
    if not label:
        return "no class", "has no class. Fill the cell, or delete the row."
    if hostile(label):
        return "class cannot be written", "the class holds ${, ??? or a control character, which no config may. Rename it."
    if patient == "":
        return "no patient", "has no patient. Fill the cell, or delete the row."
    if not case or not all(text.isprintable() for text in (case, patient or "", *groups)):
        return "cell cannot be written", "a cell is empty or holds a control character (a line break?). Mend it."
    return None


def _split_fault(split: str | None) -> Fault:
    if split is not None and split.lower() not in SPLITS:
        return "no such split", "the split is none of train, val, test. Mend it."
    return None


def _once(found: list[Joined], notes: Notes) -> list[Joined]:
    """Rows of one image or case: the first of them stands for all if they agree; if they do not, none does."""
    for key in ("file", "case"):
        of: dict[str, list[Joined]] = defaultdict(list)
        for joined in found:
            of[getattr(joined, key)].append(joined)
        drop: set[int] = set()
        for same in of.values():
            rows = [j.row for j in same]
            if len({(j.label, j.patient, j.file) for j in same}) > 1:
                what = (
                    "label"
                    if len({j.label for j in same}) > 1
                    else "patient"
                    if len({j.patient for j in same}) > 1
                    else "image"
                )
                for row in rows:
                    other = next(r for r in rows if r != row)
                    notes.add(
                        f"two {what}s for one case", row, f"gives its case another {what} than row {other}. Keep the right one."
                    )
                drop |= set(rows)
            elif len(same) > 1:
                for row in rows[1:]:
                    notes.add("case listed twice", row, f"names the same case as row {rows[0]}. A listing has one row a case.")
                drop |= set(rows[1:])
        found = [j for j in found if j.row not in drop]
    return found


def _split_patients(found: list[Joined], notes: Notes) -> list[Joined]:
    """A patient of several splits is in none."""
    of: dict[str, set[str]] = defaultdict(set)
    for j in found:
        if j.patient is not None and j.split is not None:
            of[j.patient].add(j.split)
    both = {patient for patient, splits in of.items() if len(splits) > 1}
    for j in found:
        if j.patient in both:
            notes.add("patient in two splits", j.row, "its patient is in another split too. Put all of a patient into one.")
    return [j for j in found if j.patient not in both]


def without_rare(found: list[Joined], notes: Notes) -> list[Joined]:
    """Without the classes of too few patients: a slip of the pen, or nothing that can be taught, chosen and judged.

    Raises: DataError if one class or none is left, or there are so many that they are no classes.
    """
    people: dict[str, set[str]] = defaultdict(set)
    for j in found:
        people[j.label].add(j.patient or j.case)
    if len(people) > CLASSES:
        raise DataError(f"--labels: row 1: the class column holds {len(people):,} values. Name the right one: --label-col.")
    kept = {label for label, who in people.items() if len(who) >= LEAST}
    if len(kept) < 2:
        counts = sorted(Counter(j.label for j in found).values(), reverse=True)
        raise DataError(
            f"--labels: row {found[0].row if found else 2} and {max(0, len(found) - 1):,} more: {len(kept)} class of at least "
            f"{LEAST} patients "
            f"({len(people)} in all, of {', '.join(map(str, counts[:5])) or 'no'} cases). Two are needed to learn anything."
        )
    for j in found:
        if j.label not in kept:
            notes.add("class too rare", j.row, f"its class has under {LEAST} patients. Mend a slip, or add cases.")
    return [j for j in found if j.label in kept]

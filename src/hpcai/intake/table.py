"""A CSV as people have it -> header and rows.   bytes -> Table; what is wrong with single rows is noted, not raised

UTF-8 with or without a byte order mark; `,`, `;` or tab between cells, whichever the header holds most of. The header is row 1.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable
from dataclasses import dataclass

from hpcai.errors import DataError
from hpcai.intake.faults import Notes

FORMULA = "=+-@\t\r"  # a cell that begins so is run by a spreadsheet. Source: OWASP, "CSV Injection"
NUMBER = re.compile(r"[+-]?[0-9]+(?:[.,][0-9]+)?")


@dataclass(frozen=True)
class Table:
    """`rows`: {number: cells}, each as long as `header`; stripped of blanks around."""

    header: list[str]
    rows: dict[int, list[str]]

    def column(self, name: str) -> dict[int, str]:
        """{row: cell} of a column."""
        place = self.header.index(name)
        return {number: cells[place] for number, cells in self.rows.items()}


def read_table(data: bytes, notes: Notes) -> Table:
    """The table. Ragged rows and repeated headers are noted and left out; empty rows are left out.

    Raises: DataError for what is no listing at all.
    """
    lines = _parsed(data)
    if not lines:
        raise DataError("--labels: the listing is empty. Give a header and a row a case.")
    header = [cell.strip() for cell in lines[0]]
    rows: dict[int, list[str]] = {}
    for number, line in enumerate(lines[1:], 2):
        cells = [cell.strip() for cell in line]
        if not any(cells):
            continue
        if cells == header:
            notes.add("header repeated", number, "is the header again. Delete it.")
        elif len(cells) != len(header):
            notes.add(
                "ragged row", number,
                f"has {len(cells)} cells, the header {len(header)}. Quote a cell that holds the delimiter (a decimal comma?).",
            )  # fmt: skip
        else:
            rows[number] = cells
    if not rows and not notes.found:
        raise DataError("--labels: the listing has a header and no row. Give a row a case.")
    return Table(header, rows)


def _parsed(data: bytes) -> list[list[str]]:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as fault:
        line = data[: fault.start].count(b"\n") + 1
        raise DataError(f"--labels: row {line} is not UTF-8. Save the listing as UTF-8 (in Excel: CSV UTF-8).") from None
    first = text.partition("\n")[0]
    delimiter = max(",;\t", key=first.count)
    lines: list[list[str]] = []
    try:
        lines.extend(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True))
    except csv.Error as fault:
        raise DataError(f"--labels: row {len(lines) + 1} is malformed ({fault}). Check its quotes.") from None
    return lines


def decimal_points(cells: Iterable[str]) -> list[str]:
    """The cells; where all that are filled are numbers, decimal commas become points."""
    listed = list(cells)
    if all(NUMBER.fullmatch(cell) for cell in listed if cell):
        return [cell.replace(",", ".") for cell in listed]
    return listed


def safe_cell(text: str) -> str:
    """`text` as a spreadsheet may open it: what it would take for a formula gets a `'` in front; a number stays."""
    return f"'{text}" if text[:1] and text[0] in FORMULA and not NUMBER.fullmatch(text) else text

"""A CSV listing, read strictly.   bytes -> rows of the columns that the config names

UTF-8 with or without a byte order mark; the delimiter is `;` if the header holds more of them than of `,`. The header is row 1,
as in a spreadsheet. No message cites a value: any cell can hold a name.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Container

from hpcai.data.cases import raise_faults
from hpcai.errors import DataError, near


def read_listing(data: bytes, columns: dict[str, str], blank: Container[str] = ()) -> list[dict[str, str]]:
    """One dict a row, with the keys of `columns` ({"case_col": "case", ...}: our key, the header's name).

    None is empty but those of the keys in `blank`.

    Raises: DataError, or Faults with a line a row, for what is no listing, a missing column, a ragged row, an empty cell.
    """
    table = _parse(data)
    if not table:
        raise DataError("data.path: the listing is empty. Give a header and a row a case.")
    header, rows = table[0], table[1:]
    places = _places(header, columns)
    faults = [
        f"data: row {number} has {len(row)} columns, the header {len(header)}. Quote a cell that holds the delimiter."
        for number, row in enumerate(rows, 2)
        if len(row) != len(header)
    ]
    raise_faults(faults)
    listed = [{key: row[place] for key, place in places.items()} for row in rows]
    raise_faults([
        f"data: row {number} has nothing in the column of data.{key}. Fill it, or leave the row out."
        for number, row in enumerate(listed, 2)
        for key, value in row.items()
        if not value and key not in blank
    ])  # fmt: skip
    return listed


def _parse(data: bytes) -> list[list[str]]:
    """Every row, without the empty ones at the end."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as fault:
        line = data[: fault.start].count(b"\n") + 1
        raise DataError(f"data.path: line {line} of the listing is not UTF-8. Save it as UTF-8.") from None
    first = text.partition("\n")[0]
    reader = csv.reader(
        io.StringIO(text, newline=""),
        delimiter=";" if first.count(";") > first.count(",") else ",",
        strict=True,
    )
    table: list[list[str]] = []
    try:
        table.extend(reader)
    except csv.Error as fault:
        raise DataError(f"data: row {len(table) + 1} of the listing is malformed ({fault}). Check its quotes.") from None
    while table and not table[-1]:
        table.pop()
    return table


def _places(header: list[str], columns: dict[str, str]) -> dict[str, int]:
    """Where each column stands.

    Raises: DataError; the header's words are cited only if it is one: without a header, the first row is a patient's.
    """
    if not set(columns.values()) & set(header):
        raise DataError(f"data.path: the first row names none of {', '.join(columns.values())}. Give the listing a header, "
                        "or name its columns in data.case_col, path_col, label_col.")  # fmt: skip
    raise_faults([
        f"data.{key}={name}: the listing has no such column. {near(name, header)}"
        for key, name in columns.items() if name not in header
    ] + [
        f"data.{key}={name}: the listing has this column {header.count(name)} times. Keep one."
        for key, name in columns.items() if header.count(name) > 1
    ])  # fmt: skip
    return {key: header.index(name) for key, name in columns.items()}

"""Numbers of cases in one table.   CSV, CSV.gz or Parquet -> TableCases: one row of features a case, NaN where a cell is empty

    samples_in=rows       a case a row: data.case_col, the class, patient, groups and split by name, all other columns features
    samples_in=columns    a feature a row, its name first; a case a column, under its id; classes from data.label_path

Shapes: n cases, F features. No message cites a cell, or the name of a column that is a case's id.
"""

from __future__ import annotations

import csv
import gzip
import io
import math
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hpcai.config.schema import Data
from hpcai.data.cases import SPLITS, Cases, Pixels, raise_faults, read_file
from hpcai.data.listing import read_listing
from hpcai.errors import DataError, near

if TYPE_CHECKING:
    from polars import DataFrame, Series

Floats = NDArray[np.float64]

EMPTY = ("", "NA", "NaN", "nan", "null", "NULL")  # cells that say `not measured`
CUT = 10.0  # standard deviations, beyond which a value moves the correlation of two cases no further
REFERENCE = 20  # cases of the first class, below which all cases give the standard deviations


class TableCases(Cases):
    """Cases of one table, held in memory.

    Attributes:
        names: F features, in the table's order.
        x_nF: float64, NaN where not measured; infinity never.
        left_out: cases of a class that data.labels has not (data.unlisted=leave_out).
    """

    def __init__(self, names: list[str], x_nF: Floats, first_row: int, axis: str) -> None:
        self.names, self.x_nF, self.first_row, self._axis = names, x_nF, first_row, axis
        self.left_out = 0
        self.places = list(range(len(x_nF)))

    def row(self, index: int) -> str:
        """See Cases.row: the row, or the column, that a case stands in, counted from 1."""
        return f"data: {self._axis} {self.places[index] + self.first_row}"

    def read(self, index: int) -> Pixels:
        """The features of a case, (1, F) float64; unlike pixels they may be NaN: not measured."""
        return self.x_nF[index : index + 1]


def open_table(cfg: Data, fingerprint: dict[str, str] | None, labelled: bool) -> TableCases:
    """The cases of the table at `cfg.path`.

    Raises: DataError, or Faults with a line a row.
    """
    frame = _frame(Path(cfg.path), fingerprint)
    cases = _of_rows(frame, cfg, labelled) if cfg.samples_in == "rows" else _of_columns(frame)
    raise_faults([f"{cases.row(i)}: has the id of a case before it. Keep one." for i in _again(cases.ids)])
    cases.labels = np.full(len(cases.ids), -1)
    if labelled:
        _label(cases, frame, cfg, fingerprint)
    if labelled and cfg.near_duplicates is not None:
        cases.patients = kin(cases, cfg.near_duplicates)
    return cases


def _again(names: Sequence[str]) -> list[int]:
    """Where a name stands that stood before."""
    first = {name: i for i, name in reversed(list(enumerate(names)))}
    return [i for i, name in enumerate(names) if first[name] != i]


# --- bytes -> cells


def _frame(path: Path, fingerprint: dict[str, str] | None) -> DataFrame:
    """The table as texts (CSV), or as it is typed (Parquet).

    Raises: DataError.
    """
    import polars as pl

    data = read_file(path, "data.path", fingerprint)
    if path.name.endswith(".parquet"):
        try:
            return pl.read_parquet(io.BytesIO(data))
        except (pl.exceptions.PolarsError, OSError, ValueError, MemoryError, pl.exceptions.PanicException):
            raise DataError("data.path: is no readable Parquet. Write it again.") from None
    if path.name.endswith(".gz"):
        data = _unpacked(data)
    return _csv(data)


def _unpacked(data: bytes) -> bytes:
    """A gzip's content, no more than half of the memory."""
    most = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    try:
        with gzip.open(io.BytesIO(data)) as f:
            out = f.read(most + 1)
    except (OSError, EOFError, zlib.error):
        raise DataError("data.path: is no whole gzip. Pack it again.") from None
    if len(out) > most:
        raise DataError("data.path: unpacks to more than half of this machine's memory. Give a smaller table, or Parquet.")
    return out


def _csv(data: bytes) -> DataFrame:
    """Cells as texts, the header checked first: it is row 1, as in a spreadsheet; `,`, `;` or tab, whichever it has most of."""
    import polars as pl

    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as fault:
        line = data.count(b"\n", 0, fault.start) + 1
        raise DataError(f"data.path: line {line} is not UTF-8. Save it as UTF-8.") from None
    if "\0" in text:
        raise DataError("data.path: holds a NUL: is no text. Save it as CSV.")
    first = text.partition("\n")[0]
    mark = max(",;\t", key=first.count)
    rows: list[list[str]] = []
    try:
        rows.extend(csv.reader(io.StringIO(text, newline=""), delimiter=mark, strict=True))
    except csv.Error as fault:
        raise DataError(f"data: row {len(rows) + 1} is malformed ({fault}). Check its quotes.") from None
    while rows and not any(rows[-1]):
        rows.pop()
    if len(rows) < 2:
        raise DataError("data.path: the table is empty. Give a header and at least one row.")
    width = len(rows[0])
    raise_faults([
        f"data: row {i} has {len(row)} cells, the header {width}. Quote a cell that holds the delimiter (a decimal comma?)."
        for i, row in enumerate(rows[1:], 2) if len(row) != width
    ])  # fmt: skip
    header = [cell.strip() for cell in rows[0]]
    _check_header(header)
    cells = {name: [row[k].strip() for row in rows[1:]] for k, name in enumerate(header)}
    return pl.DataFrame(cells, schema=dict.fromkeys(header, pl.String))


def _check_header(header: Sequence[str]) -> None:
    """Each column has a name of its own; told by its number, since a column can be a case."""
    seen: dict[str, int] = {}
    faults = []
    for number, name in enumerate(header, 1):
        if not name or name in seen:
            what = f"has the name of column {seen[name]}" if name else "has no name"
            faults.append(f"data: column {number} {what}. Name each column once.")
        seen.setdefault(name, number)
    raise_faults(faults)


# --- cells -> cases


def _of_rows(frame: DataFrame, cfg: Data, labelled: bool) -> TableCases:
    """A case a row."""
    wanted = {"case_col": cfg.case_col, "patient_col": cfg.patient_col, "split_col": cfg.split_col}
    wanted |= {f"group_cols.{name}": name for name in cfg.group_cols}
    told = {key: name for key, name in wanted.items() if name is not None and (labelled or key == "case_col")}
    raise_faults([
        f"data.{key.partition('.')[0]}={name}: the table has no such column. {near(name, frame.columns)}"
        for key, name in told.items() if name not in frame.columns
    ])  # fmt: skip
    aside = {*(name for name in wanted.values() if name), cfg.label_col}
    names = [name for name in frame.columns if name not in aside]
    if not names:
        raise DataError("data.path: holds no feature beside the columns that data names. Add some.")
    columns = [_numbers(frame[name]) for name in names]
    if not labelled:  # a text that nobody named is no feature: the model finds its own by name
        kept = [k for k, (x, wrong) in enumerate(columns) if len(wrong) < len(x)]
        names, columns = [names[k] for k in kept], [columns[k] for k in kept]
    if not names:
        raise DataError("data.path: holds no column of numbers. Check the table.")
    _tell_no_numbers(columns, [f"column `{name}`" for name in names], 2)
    cases = TableCases(names, np.stack([c for c, _ in columns], axis=1), 2, "row")
    cases.ids = _texts(frame[cfg.case_col])
    raise_faults([f"{cases.row(i)}: has no id in data.case_col. Give it one." for i, name in enumerate(cases.ids) if not name])
    return cases


def _of_columns(frame: DataFrame) -> TableCases:
    """A case a column. The first column names features, whatever it is called."""
    names = _texts(frame[frame.columns[0]])
    raise_faults([f"data: row {i} names no feature. Name it." for i, name in enumerate(names, 2) if not name])
    raise_faults([f"data: row {i + 2} has the feature of a row before it. Keep one." for i in _again(names)])
    if len(frame.columns) < 2:
        raise DataError("data.path: has one column. data.samples_in=columns has a case in each but the first.")
    columns = [_numbers(frame[name]) for name in frame.columns[1:]]
    _tell_no_numbers(columns, [f"column {k}" for k in range(2, len(columns) + 2)], 2)
    cases = TableCases(names, np.stack([c for c, _ in columns]), 2, "column")
    cases.ids = [str(name) for name in frame.columns[1:]]
    return cases


def _texts(column: Series) -> list[str]:
    import polars as pl

    if column.dtype.is_nested() or column.dtype in (pl.Object, pl.Binary):
        return [""] * len(column)
    return [str(value).strip() for value in column.cast(pl.String, strict=False).fill_null("").to_list()]


def _numbers(column: Series) -> tuple[Floats, NDArray[np.int64]]:
    """The column (n,), NaN where a cell is empty, and the places of cells that are no finite number."""
    import polars as pl

    if column.dtype == pl.String:
        text = column.str.strip_chars()
        column = pl.select(pl.when(text.is_in(EMPTY)).then(None).otherwise(text)).to_series()
    if column.dtype.is_nested() or column.dtype in (pl.Object, pl.Binary) or column.dtype.is_temporal():
        return np.full(len(column), np.nan), np.arange(len(column))
    value = column.cast(pl.Float64, strict=False)
    x = value.fill_null(math.nan).to_numpy().astype(np.float64)
    wrong = (value.is_null() & column.is_not_null()).to_numpy() | np.isinf(x)
    return x, np.flatnonzero(wrong)


def _tell_no_numbers(columns: Sequence[tuple[Floats, NDArray[np.int64]]], names: Sequence[str], first: int) -> None:
    """Raises: DataError, Faults for cells that are neither empty nor a finite number."""
    faults = []
    for (x, wrong), name in zip(columns, names, strict=True):
        if len(wrong) == len(x):
            faults.append(f"data: {name} holds no number. Leave it out, or name it in data.group_cols.")
        elif len(wrong):
            faults.append(
                f"data: row {int(wrong[0]) + first} and {len(wrong) - 1} more of {name} are no finite number. "
                "Write a number with a point, or leave the cell empty."
            )
    raise_faults(faults)


# --- what is known of a case


def _label(cases: TableCases, frame: DataFrame, cfg: Data, fingerprint: dict[str, str] | None) -> None:
    """Sets labels, patients, groups and split; leaves out the classes that data.labels has not, where that is asked for."""
    if cfg.label_path is not None:
        table = _labels_beside(cases, cfg, fingerprint)
    elif cfg.samples_in == "columns":
        raise DataError("data.label_path=null: a table of cases in columns has no classes. Name the CSV that has them.")
    else:
        _has(cfg.label_col, frame)
        table = {name: _texts(frame[name]) for name in _named(cfg)}
    number = {name: k for k, name in enumerate(cfg.labels)}
    known = [name in number for name in table[cfg.label_col]]
    if cfg.unlisted == "refuse":
        raise_faults([
            f"{cases.row(i)}: the class is none of {', '.join(cfg.labels[:10])}. Mend it, data.labels, or data.unlisted."
            for i, is_known in enumerate(known) if not is_known
        ])  # fmt: skip
    kept = [i for i, is_known in enumerate(known) if is_known]
    cases.left_out = len(known) - len(kept)
    cases.x_nF, cases.places = cases.x_nF[kept], [cases.places[i] for i in kept]
    cases.ids = [cases.ids[i] for i in kept]
    told = {name: [column[i] for i in kept] for name, column in table.items()}
    cases.labels = np.array([number[name] for name in told[cfg.label_col]], np.int64)
    cases.groups = {name: told[name] for name in cfg.group_cols}
    if cfg.patient_col is not None:
        cases.patients = told[cfg.patient_col]
        raise_faults(
            [f"{cases.row(i)}: has nothing in data.patient_col. Fill it." for i, p in enumerate(cases.patients) if not p]
        )
    if cfg.split_col is not None:
        cases.published = told[cfg.split_col]
        raise_faults([
            f"{cases.row(i)}: data.split_col has none of {', '.join(SPLITS)}. Mend it."
            for i, part in enumerate(cases.published) if part not in SPLITS
        ])  # fmt: skip


def _named(cfg: Data) -> list[str]:
    """The columns that tell of a case."""
    return list(dict.fromkeys([cfg.label_col, *cfg.group_cols, *filter(None, (cfg.patient_col, cfg.split_col))]))


def _has(name: str, frame: DataFrame) -> None:
    if name not in frame.columns:
        raise DataError(f"data.label_col={name}: the table has no such column. {near(name, frame.columns)}")


def _labels_beside(cases: TableCases, cfg: Data, fingerprint: dict[str, str] | None) -> dict[str, list[str]]:
    """The columns of data.label_path, in the order of cases.

    Raises: DataError for a case that only one of both files has.
    """
    data = read_file(Path(str(cfg.label_path)), "data.label_path", fingerprint)
    rows = read_listing(data, {"case_col": cfg.case_col, **{name: name for name in _named(cfg)}}, {*cfg.group_cols})
    of = {row["case_col"]: row for row in rows}
    if len(of) < len(rows):
        raise DataError(f"data.label_path: {len(rows) - len(of)} rows name a case again. Keep one row a case.")
    lost, more = [i for i, name in enumerate(cases.ids) if name not in of], of.keys() - set(cases.ids)
    if lost or more:
        first = f" (first: {cases.row(lost[0]).removeprefix('data: ')})" if lost else ""
        raise DataError(f"data.label_path: {len(lost)} cases of the table are not in it{first}, {len(more)} of its are not in "
                        "the table. Make both hold the same cases.")  # fmt: skip
    return {name: [of[case][name] for case in cases.ids] for name in _named(cfg)}


# --- near-duplicates


def kin(cases: TableCases, above: float) -> list[str]:
    """For each case the id of the first of those that it belongs with: of one patient, or of one class and nearly alike.

    Alike: their features correlate above `above`, each in standard deviations of the first class (of all, where that has fewer
    than REFERENCE cases), 0 where that is 0 or it was not measured, and cut to +-CUT, so that no single value makes a pair.
    """
    import warnings

    from scipy.sparse.csgraph import connected_components

    x, first = cases.x_nF, cases.labels == 0
    reference = x[first] if first.sum() >= REFERENCE else x
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore", RuntimeWarning)  # a feature that was never measured: a mean of nothing
        middle, spread = np.nanmean(reference, axis=0), np.nanstd(reference, axis=0)
    usable = np.isfinite(spread) & (spread > 1e-9 * np.abs(middle))
    z = np.clip((x[:, usable] - middle[usable]) / spread[usable], -CUT, CUT)
    z = np.nan_to_num(z)
    z -= z.mean(1, keepdims=True)
    length = np.sqrt((z**2).sum(1, keepdims=True))
    z = np.divide(z, length, out=np.zeros_like(z), where=length > 1e-9)
    same = cases.labels[:, None] == cases.labels[None]
    linked: Any = (z @ z.T > above) & same
    if cases.patients is not None:
        people = np.unique(np.array(cases.patients), return_inverse=True)[1]
        linked |= people[:, None] == people[None]
    _, group = connected_components(linked, directed=False)
    earliest = {int(g): i for i, g in reversed(list(enumerate(group)))}
    return [cases.ids[earliest[int(g)]] for g in group]

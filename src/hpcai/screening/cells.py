"""Cells of a piece -> numbers and texts that may be used, and what is wrong with the others.   frame -> Batch

Shapes: n rows, A analytes, K numeric columns. A fault names row, column and kind, never what the cell holds.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from hpcai.book.analytes import Analyte, Column, Dictionary
from hpcai.screening.batch import Batch, Bools, Floats, Ints, RowFault, Texts

if TYPE_CHECKING:
    import polars as pl

MISSING = ("", "na", "n/a", "null", "none", "-")
NUMBER = re.compile(r"(?P<less><\s*)?(?P<number>[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?)", re.ASCII | re.IGNORECASE)
COMMA = re.compile(r"[<+-]?\s*\d+,\d+", re.ASCII)
DECIMAL_COMMA, NO_NUMBER, TWICE = "decimal comma", "no number", "two rows for one sample"
YES_NO = {"1": 1.0, "0": 0.0, "yes": 1.0, "no": 0.0, "true": 1.0, "false": 0.0, "1.0": 1.0, "0.0": 0.0}
MAX_TEXT = 1000  # characters of a text cell: names of samples, plates, diseases
FORMULA = ("=", "+", "-", "@")
ODD = r"^[=+\-@]|[\p{C}\p{Z}--\x20]"  # what safe_text would change


def safe_text(text: str) -> str:
    """`text` as it may be written out: control characters become `?`, and a quote goes before what looks like a formula.

    Source: OWASP, CSV Injection: a cell that begins with = + - @ is run by spreadsheets unless a ' stands before it.
    """
    clean = "".join(c if c.isprintable() else "?" for c in text)
    return f"'{clean}" if clean.startswith(FORMULA) else clean


def to_batch(frame: pl.DataFrame, dictionary: Dictionary, first: int, twice: Ints) -> Batch:
    """The rows of `frame`, whose first has index `first` in its file; `twice` are indices in the file of repeated samples."""
    faults: list[RowFault] = []
    kinds = {kind: [c for c in dictionary.columns if c.kind == kind] for kind in ("text", "number", "yes_no")}
    text = texts(frame, [c.name for c in kinds["text"]], faults)
    for always in ("laboratory", "plate"):
        text.setdefault(always, np.full(frame.height, ""))
    width = len(dictionary.analytes)
    x_NM = numbers(frame, [a.name for a in dictionary.analytes] + [c.name for c in kinds["number"]], faults)
    x_NA = analyte_values(dictionary.analytes, x_NM[:, :width], faults)
    x_NK = column_values(kinds["number"], x_NM[:, width:], faults)
    number = {c.name: x_NK[:, k] for k, c in enumerate(kinds["number"])}
    number |= yes_no(frame, [c.name for c in kinds["yes_no"]], faults)
    sample = text.pop("sample", np.full(frame.height, ""))
    lost = {int(i) - first: TWICE for i in twice}
    if "sample" in frame.columns:
        lost |= dict.fromkeys(np.flatnonzero(sample == "").tolist(), "no sample")
    faults += [RowFault(i, "", why) for i, why in lost.items()]
    for values in (x_NA, *number.values()):
        values[list(lost)] = np.nan
    faults.sort(key=lambda f: (f.index, f.column))
    return Batch(np.arange(first + 2, first + 2 + frame.height), sample, x_NA, number, text, faults)


def numbers(frame: pl.DataFrame, names: Sequence[str], faults: list[RowFault]) -> Floats:
    """(n, len(names)) as written; NaN where empty, no number (a fault) or without such a column. `<0.1` is half of 0.1."""
    import polars as pl

    x = np.full((frame.height, len(names)), np.nan)
    there = [(j, name) for j, name in enumerate(names) if name in frame.columns]
    if not there:
        return x
    parsed = frame.select(pl.col([name for _, name in there]).cast(pl.Float64, strict=False))
    x[:, [j for j, _ in there]] = parsed.to_numpy()
    for (j, name), nans in zip(there, np.isnan(x).sum(axis=0)[[j for j, _ in there]].tolist()):
        nulls = parsed[name].null_count()
        if nulls > frame[name].null_count():
            _read_again(frame[name], x[:, j], faults)
        if nans > nulls:
            faults += _faults(parsed[name].is_nan().fill_null(False).to_numpy(), name, "NaN")
    return x


def _read_again(cells: pl.Series, x_N: Floats, faults: list[RowFault]) -> None:
    """Fills in what stands between spaces, or below a limit of detection; the rest is a fault."""
    import polars as pl

    stripped = cells.str.strip_chars()
    again = stripped.cast(pl.Float64, strict=False)
    x_N[:] = again.to_numpy()
    faults += _faults(
        (again.is_nan() & cells.cast(pl.Float64, strict=False).is_null()).fill_null(False).to_numpy(), cells.name, "NaN"
    )
    for i in np.flatnonzero((again.is_null() & cells.is_not_null()).to_numpy()).tolist():
        text = stripped[i][:MAX_TEXT]
        if text.lower() in MISSING:
            continue
        if found := NUMBER.fullmatch(text):
            x_N[i] = float(found["number"]) * (0.5 if found["less"] else 1)
        else:
            faults.append(RowFault(i, cells.name, DECIMAL_COMMA if COMMA.fullmatch(text) else NO_NUMBER))


def analyte_values(analytes: Sequence[Analyte], x_NA: Floats, faults: list[RowFault]) -> Floats:
    """Concentrations that may be used: half of the limit below detection; NaN and a fault where impossible or implausible."""
    low, high, detection = (np.array([getattr(a, key) for a in analytes]) for key in ("low", "high", "detection"))
    names = [a.name for a in analytes]
    with np.errstate(invalid="ignore"):
        below = (x_NA >= 0) & (x_NA < detection)
        x_NA = np.where(below, detection / 2, x_NA)
        return _within(names, x_NA, x_NA < 0, ~below & ((x_NA < low) | (x_NA > high)), faults)


def column_values(columns: Sequence[Column], x_NK: Floats, faults: list[RowFault]) -> Floats:
    """Numeric columns that may be used: NaN and a fault where negative (if low is not) or implausible."""
    low = np.array([-np.inf if c.low is None else c.low for c in columns])
    high = np.array([np.inf if c.high is None else c.high for c in columns])
    return _within([c.name for c in columns], x_NK, (x_NK < 0) & (low >= 0), (x_NK < low) | (x_NK > high), faults)


def _within(names: list[str], x: Floats, negative: Bools, outside: Bools, faults: list[RowFault]) -> Floats:
    infinite = np.isinf(x)
    for mask, why in (
        (infinite, "infinite"),
        (negative & ~infinite, "negative"),
        (outside & ~negative & ~infinite, "implausible"),
    ):
        for j in np.flatnonzero(mask.any(axis=0)):
            faults += _faults(mask[:, j], names[j], why)
    return np.where(infinite | negative | outside, np.nan, x)


def _faults(mask: Bools, column: str, why: str) -> list[RowFault]:
    return [RowFault(i, column, why) for i in np.flatnonzero(mask).tolist()]


def yes_no(frame: pl.DataFrame, names: Sequence[str], faults: list[RowFault]) -> dict[str, Floats]:
    """(n,) a column, 1 or 0; NaN where empty, neither (a fault), or without such a column."""
    import polars as pl

    known = YES_NO | dict.fromkeys(MISSING)
    words = pl.col([name for name in names if name in frame.columns]).cast(pl.String).str.strip_chars().str.to_lowercase()
    answers = frame.select(words.replace_strict(known, default=-1.0, return_dtype=pl.Float64))
    found = {name: np.full(frame.height, np.nan) for name in names}
    for name in answers.columns:
        x = np.array(answers[name].to_numpy(), np.float64)
        faults += _faults(x == -1, name, "neither yes nor no")
        found[name] = np.where(x == -1, np.nan, x)
    return found


def texts(frame: pl.DataFrame, names: Sequence[str], faults: list[RowFault]) -> dict[str, Texts]:
    """(n,) a column that the frame has, safe to be written; "" where empty or too long (a fault)."""
    import polars as pl

    cells = frame.select(plain(name) for name in names if name in frame.columns)
    strange = cells.select(pl.all().str.contains(ODD) | (pl.all().str.len_chars() > MAX_TEXT))
    found = {}
    for name in cells.columns:
        words = cells[name].to_list()
        if strange[name].any():
            for i in np.flatnonzero(strange[name].to_numpy()).tolist():
                words[i], why = _tamed(words[i])
                faults += [RowFault(i, name, why)] if why else []
        found[name] = np.array(words)
    return found


def _tamed(text: str) -> tuple[str, str]:
    """What is kept of a strange text, and its fault."""
    if len(text) > MAX_TEXT:
        return "", f"longer than {MAX_TEXT} characters"
    if text in MISSING:
        return "", ""
    return safe_text(text), "formula" if text.startswith(FORMULA) else "control character"


def plain(name: str) -> pl.Expr:
    """A text column without spaces about its words; "" where empty."""
    import polars as pl

    return pl.col(name).cast(pl.String).str.strip_chars().fill_null("")

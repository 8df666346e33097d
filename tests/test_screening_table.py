"""A laboratory's table is read whole or refused by row and column, and no message repeats a cell."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcai.book.analytes import Analyte, Column, Dictionary
from hpcai.errors import DataError, HpcaiError
from hpcai.screening import pieces
from hpcai.screening.batch import Batch
from hpcai.screening.cells import safe_text
from hpcai.screening.table import Table, open_table

TYPICAL = {"Phe": 60.0, "Tyr": 90.0, "Leu": 150.0, "C0": 22.0, "C2": 20.0, "C8": 0.08, "C14OH": 0.012, "C16OH": 0.02}
DICTIONARY = Dictionary(
    name="small",
    title="eight analytes",
    analytes=[
        Analyte(
            name=name,
            title=name,
            synonyms=["Leu+Ile", "Xle"] if name == "Leu" else [],
            required=name not in ("C14OH", "C16OH"),
            low=typical / 1000,
            high=typical * 1000,
            typical=typical,
            detection=typical / 20,
            source="assumed, for tests",
        )
        for name, typical in TYPICAL.items()
    ],
    ratios=[],
    columns=[
        Column(name="sample", kind="text", synonyms=["specimen id"], required=True),
        Column(name="laboratory", kind="text"),
        Column(name="plate", kind="text"),
        Column(name="month", kind="text"),
        Column(name="age_h", kind="number", low=0, high=9000, typical=60),
        Column(name="gestation_weeks", kind="number", low=20, high=45, typical=39),
        Column(name="weight_g", kind="number", low=200, high=8000, typical=3400),
        Column(name="transfused", kind="yes_no"),
    ],
)
NAMES = list(TYPICAL)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[BinaryIO]:
    """Every file that pieces.py opens."""
    files, real = list[BinaryIO](), pieces.open_plain

    def noting(path: Path, what: str) -> BinaryIO:
        files.append(real(path, what))
        return files[-1]

    monkeypatch.setattr(pieces, "open_plain", noting)
    return files


def newborns(n: int, seed: int = 0) -> pl.DataFrame:
    """A plain table: log-normal about the typical values, laboratories one and two by turns."""
    rng = np.random.default_rng(seed)
    table = {
        "sample": [f"S{i}" for i in range(n)],
        "laboratory": [("one", "two")[i % 2] for i in range(n)],
        "plate": [str(i // 90) for i in range(n)],
        **{name: rng.lognormal(np.log(typical), 0.3, n).round(5) for name, typical in TYPICAL.items()},
        "age_h": rng.lognormal(np.log(50), 0.2, n).round(1),
        "gestation_weeks": rng.normal(39, 1, n).clip(30, 43).round(1),
        "weight_g": rng.normal(3400, 300, n).round(),
        "transfused": [("no", "yes", "")[i % 3] for i in range(n)],
    }
    return pl.DataFrame(table)


def csv(tmp_path: Path, table: pl.DataFrame | str | bytes, name: str = "table.csv") -> Path:
    path = tmp_path / name
    if isinstance(table, pl.DataFrame):
        table.write_csv(path)
    else:
        path.write_bytes(table.encode() if isinstance(table, str) else table)
    return path


def rows_of(table: Table, size: int = 4096) -> Batch:
    """A table of one block."""
    ((number, batch),) = table.batches(size)
    assert number == 0
    return batch


def changed(n: int, row: int, **cells: object) -> pl.DataFrame:
    """`newborns` as text, with other cells in a row (as a person counts them)."""
    table = newborns(n).cast(pl.String)
    for column, cell in cells.items():
        words = table[column].to_list()
        words[row - 2] = cell
        table = table.with_columns(pl.Series(column, words, dtype=pl.String))
    return table


def faults(batch: Batch) -> list[tuple[int, str, str]]:
    return [(int(batch.row[f.index]), f.column, f.why) for f in batch.faults]


def says(path: Path) -> str:
    """All that is said when the table is refused."""
    with pytest.raises(HpcaiError) as caught:
        open_table(path, DICTIONARY)
    assert caught.value.code == 4
    assert all(isinstance(fault, DataError) for fault in caught.value.members)
    return "\n".join(caught.value.lines)


# --- what is read


def test_a_csv_gives_the_numbers_that_it_holds(tmp_path: Path) -> None:
    given = newborns(50)
    table = open_table(csv(tmp_path, given), DICTIONARY)
    batch = rows_of(table)
    assert (table.rows, table.blocks(), table.text_columns) == (50, 1, ["sample", "laboratory", "plate"])
    assert np.array_equal(batch.x_NA, given.select(NAMES).to_numpy())
    assert batch.row.tolist() == list(range(2, 52))
    assert batch.sample.tolist() == given["sample"].to_list()
    assert batch.text["laboratory"].tolist() == given["laboratory"].to_list()
    assert np.array_equal(batch.number["age_h"], given["age_h"].to_numpy())
    assert batch.number["transfused"][:2].tolist() == [0.0, 1.0]
    assert np.isnan(batch.number["transfused"][2])
    assert batch.faults == []


def write_parquet(table: pl.DataFrame, path: Path) -> None:
    table.write_parquet(path, row_group_size=37)


def write_gzip(table: pl.DataFrame, path: Path) -> None:
    path.write_bytes(gzip.compress(table.write_csv().encode()))


def write_tabs(table: pl.DataFrame, path: Path) -> None:
    table.write_csv(path, separator="\t", line_terminator="\r\n")


def write_semicolons(table: pl.DataFrame, path: Path) -> None:
    table.write_csv(path, separator=";", include_bom=True, quote_style="always")


@pytest.mark.parametrize("cut", [0, 200])
def test_a_packed_table_leaves_no_file_open_whole_or_damaged(opened: list[BinaryIO], tmp_path: Path, cut: int) -> None:
    path = tmp_path / "t.csv.gz"
    write_gzip(newborns(50), path)
    path.write_bytes(path.read_bytes()[: -cut or None])
    with contextlib.suppress(DataError):
        assert sum(len(batch) for _, batch in open_table(path, DICTIONARY).batches()) == 50
    assert len(opened) >= 2 and all(f.closed for f in opened)


@pytest.mark.parametrize("write", [write_parquet, write_gzip, write_tabs, write_semicolons])
def test_every_format_gives_the_same_rows(tmp_path: Path, write: Callable[[pl.DataFrame, Path], None]) -> None:
    given = newborns(300)
    write(given, tmp_path / "other")
    one = rows_of(open_table(csv(tmp_path, given), DICTIONARY))
    other = rows_of(open_table(tmp_path / "other", DICTIONARY))
    assert np.array_equal(one.x_NA, other.x_NA)
    assert one.text.keys() == other.text.keys()
    assert all(np.array_equal(one.text[k], other.text[k]) for k in one.text)
    assert all(np.array_equal(one.number[k], other.number[k], equal_nan=True) for k in one.number)
    assert np.array_equal(one.sample, other.sample)
    assert one.faults == other.faults == []


def test_columns_go_by_any_of_their_names_in_any_order(tmp_path: Path) -> None:
    given = newborns(20)
    other = given.rename({"Leu": " leu + ILE", "sample": "Specimen_ID", "age_h": "AGE H", "C8": "c8"}).select(
        pl.lit("x").alias("free text"), pl.all().reverse()
    )
    table = open_table(csv(tmp_path, other.select(reversed(other.columns))), DICTIONARY)
    assert table.columns["Leu"] == " leu + ILE"
    assert table.ignored == 1
    assert np.array_equal(rows_of(table).x_NA[::-1], given.select(NAMES).to_numpy())


@pytest.mark.parametrize("size", [1, 7, 50, 64, 4096])
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_blocks_are_the_same_however_pieces_and_blocks_are_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, kind: str
) -> None:
    monkeypatch.setattr(pieces, "PIECE_BYTES", 1000)
    monkeypatch.setattr(pieces, "PIECE_ROWS", 13)
    given = newborns(100)
    path = tmp_path / "table"
    given.write_csv(path, quote_style="non_numeric") if kind == "csv" else given.write_parquet(path)
    table = open_table(path, DICTIONARY)
    batches = list(table.batches(size))
    assert [number for number, _ in batches] == list(range(table.blocks(size)))
    assert [len(batch) for _, batch in batches] == [min(size, 100 - start) for start in range(0, 100, size)]
    assert np.array_equal(np.concatenate([b.x_NA for _, b in batches]), given.select(NAMES).to_numpy())
    assert np.concatenate([b.row for _, b in batches]).tolist() == list(range(2, 102))


def test_only_wanted_blocks_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "PIECE_BYTES", 500)
    table = open_table(csv(tmp_path, newborns(100)), DICTIONARY)
    asked: list[int] = []
    read: list[int] = []
    plain = pieces.CsvSource._frame

    def frame(self: pieces.CsvSource, data: bytes, first: int) -> pl.DataFrame:
        read.append(first)
        return plain(self, data, first)

    monkeypatch.setattr(pieces.CsvSource, "_frame", frame)
    chosen = dict(table.batches(10, lambda block: bool(asked.append(block)) or block in (3, 9)))
    assert sorted(chosen) == [3, 9]
    assert chosen[3].sample.tolist() == [f"S{i}" for i in range(30, 40)]
    assert asked == list(range(10))
    assert 30 - 10 < min(read) < 40  # nothing before the piece in which row 30 lies, and no row between
    assert not [first for first in read if 40 < first < 80]


def test_empty_lines_at_the_end_are_no_rows(tmp_path: Path) -> None:
    text = newborns(12).write_csv() + "\r\n\n\n"
    assert open_table(csv(tmp_path, text), DICTIONARY).rows == 12


# --- rows that cannot be used


@pytest.mark.parametrize(("cell", "why"), [
    ("many", "no number"), ("1,5", "decimal comma"), ("NaN", "NaN"), ("nan ", "NaN"), ("inf", "infinite"), ("-inf", "infinite"),
    ("1e999", "infinite"), ("-1", "negative"), ("-1e-9", "negative"), ("1e15", "implausible"), ("=1+1", "no number"),
    ("1_0", "no number"), ("0x10", "no number"), ("١", "no number"), ("1 2", "no number"), ("TRUE", "no number"),
])  # fmt: skip
def test_a_cell_that_cannot_be_used_is_missing_and_its_row_is_named(tmp_path: Path, cell: str, why: str) -> None:
    batch = rows_of(open_table(csv(tmp_path, changed(30, 7, Phe=cell)), DICTIONARY))
    assert faults(batch) == [(7, "Phe", why)]
    assert np.isnan(batch.x_NA).sum() == 1
    assert np.isnan(batch.x_NA[5, 0])


@pytest.mark.parametrize(("cell", "value"), [
    ("", np.nan), ("NA", np.nan), ("n/a", np.nan), ("-", np.nan), (" 61.5 ", 61.5), ("+7e1", 70.0), ("6.", 6.0),
    ("0", 1.5), ("2.9", 1.5),  # detection is 60 / 20 = 3: half of it
    ("<0.5", 1.5), ("< 8", 4.0), ("3", 3.0),
])  # fmt: skip
def test_a_missing_value_or_one_below_detection_is_no_fault(tmp_path: Path, cell: str, value: float) -> None:
    batch = rows_of(open_table(csv(tmp_path, changed(30, 7, Phe=cell)), DICTIONARY))
    assert batch.faults == []
    assert np.array_equal(batch.x_NA[5, :1], [value], equal_nan=True)


def test_parquet_tells_a_nan_from_a_null(tmp_path: Path) -> None:
    table = newborns(30).with_columns(pl.Series("Phe", [float("nan"), None, float("-inf"), *[60.0] * 27]))
    table.write_parquet(tmp_path / "t.parquet")
    batch = rows_of(open_table(tmp_path / "t.parquet", DICTIONARY))
    assert faults(batch) == [(2, "Phe", "NaN"), (4, "Phe", "infinite")]
    assert np.isnan(batch.x_NA[:3, 0]).all()


@pytest.mark.parametrize(("column", "cell", "why"), [
    ("age_h", "-2", "negative"), ("age_h", "9001", "implausible"), ("gestation_weeks", "280", "implausible"),
    ("transfused", "perhaps", "neither yes nor no"), ("transfused", "2", "neither yes nor no"),
])  # fmt: skip
def test_a_fact_of_the_specimen_that_cannot_be_is_unknown(tmp_path: Path, column: str, cell: str, why: str) -> None:
    batch = rows_of(open_table(csv(tmp_path, changed(30, 9, **{column: cell})), DICTIONARY))
    assert faults(batch) == [(9, column, why)]
    assert np.isnan(batch.number[column][7])


def test_two_rows_for_one_sample_are_both_lost_wherever_they_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "PIECE_BYTES", 500)
    table = open_table(csv(tmp_path, changed(100, 90, sample=" S3")), DICTIONARY)
    found = [fault for _, batch in table.batches(16) for fault in faults(batch)]
    assert found == [(5, "", "two rows for one sample"), (90, "", "two rows for one sample")]
    lost = [np.isnan(batch.x_NA).all(axis=1).sum() for _, batch in table.batches(16)]
    assert sum(lost) == 2


def test_a_row_without_a_sample_is_lost_and_no_twin_of_another(tmp_path: Path) -> None:
    table = changed(30, 4, sample="")
    table = table.with_columns(pl.when(pl.col("sample") == "S9").then(pl.lit("")).otherwise("sample").alias("sample"))
    batch = rows_of(open_table(csv(tmp_path, table), DICTIONARY))
    assert faults(batch) == [(4, "", "no sample"), (11, "", "no sample")]


@pytest.mark.parametrize("cell", ["=HYPERLINK(1)", "+1", "-1+1", "@SUM(A1)", "=1\n=2"])
def test_a_formula_is_never_given_on(tmp_path: Path, cell: str) -> None:
    batch = rows_of(open_table(csv(tmp_path, changed(30, 7, sample=cell, plate=cell)), DICTIONARY))
    assert faults(batch) == [(7, "plate", "formula"), (7, "sample", "formula")]
    assert batch.sample[5] == batch.text["plate"][5] == "'" + cell.replace("\n", "?")


@given(st.text())
def test_safe_text_prints_and_is_no_formula_and_stays_safe(text: str) -> None:
    safe = safe_text(text)
    assert safe.isprintable()
    assert not safe.startswith(("=", "+", "-", "@"))
    assert safe_text(safe) == safe


# --- tables that are refused


@pytest.mark.parametrize(("broken", "said"), [
    (b"", "the table is empty"),
    (b"\n\n", "names no column of dictionary small"),
    (newborns(0).write_csv().encode(), "has a header and no row"),
    (b"S1,12.5,99\nS2,13.1,98\n", "names no column of dictionary small"),
    (b"PK\x03\x04" + b"x" * 50, "a spreadsheet"),
    (b"PAR1" + b"x" * 50, "no Parquet table that can be read"),
    (b"\x1f\x8b\x08" + b"x" * 50, "damaged"),
    (gzip.compress(newborns(50).write_csv().encode())[:-200], "damaged"),
    (newborns(30).write_csv().encode("utf-16"), "row 1 is not UTF-8"),
    (newborns(30).write_csv().encode().replace(b"S7,", b"S\xff7,"), "row 9 is not UTF-8"),
    (newborns(30).write_csv().encode().replace(b"S7,", b"S\0,"), "row 9 holds a NUL byte"),
    (newborns(30).write_csv().encode().replace(b"S7,", b"S7,,"), "row 9 has 16 cells, the header 15"),
    (newborns(30).write_csv().encode().replace(b"S7,two,", b"S7,"), "row 9 has 14 cells, the header 15"),
    (newborns(30).write_csv().encode().replace(b"S7,", b"\nS7,"), "row 9 has"),
    (newborns(30).write_csv(quote_style="always").encode().replace(b'"S7","two",', b'"S7",'), "row 9 has 14 cells, the header"),
    (newborns(30).write_csv().encode().replace(b"S7,", b'"S7,'), "Check"),
    (newborns(30).write_csv().encode().replace(b"S7,", b"S7" + b"9" * 10_000_000 + b","), "row 9 is longer than 1048576 bytes"),
    (newborns(30).write_csv().encode().replace(b"sample,", b'"sam"ple,'), "row 1 is no header"),
])  # fmt: skip
def test_what_is_no_table_is_refused_with_its_row(tmp_path: Path, broken: bytes, said: str) -> None:
    assert said in says(csv(tmp_path, broken))


def test_a_cell_of_10_mb_in_a_quoted_table_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "PIECE_BYTES", 100_000)
    text = newborns(30).write_csv().replace("S7,", '"S7' + "9,\n" * 3_000_000 + '",')
    assert "longer than 1048576 bytes" in says(csv(tmp_path, text))


def test_a_missing_file_a_folder_and_a_pipe_are_refused(tmp_path: Path) -> None:
    assert "cannot be read" in says(tmp_path / "none.csv")
    assert "no plain file" in says(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    assert "no plain file" in says(tmp_path / "pipe")


def test_every_missing_column_is_told_and_the_nearest_name_proposed(tmp_path: Path) -> None:
    said = says(csv(tmp_path, newborns(20).rename({"Phe": "Pheny", "sample": "smple"}).drop("C2", "C14OH")))
    assert "column Phe is missing, which dictionary small requires. Did you mean Pheny?" in said
    assert "column sample is missing, which dictionary small requires. Did you mean smple?" in said
    assert "column C2 is missing" in said
    assert "C14OH" not in said  # it may be missing


def test_a_column_twice_is_refused_also_by_another_name(tmp_path: Path) -> None:
    assert "column Leu stands 2 times" in says(csv(tmp_path, newborns(20).with_columns(pl.col("Leu").alias("Xle"))))


def test_a_parquet_of_lists_is_refused(tmp_path: Path) -> None:
    newborns(20).with_columns(pl.concat_list("Phe").alias("Phe")).write_parquet(tmp_path / "t.parquet")
    assert "no Parquet table that can be read" in says(tmp_path / "t.parquet")


def test_decimal_commas_are_told_once_for_all_columns(tmp_path: Path) -> None:
    text = newborns(20).write_csv(separator=";").replace(".", ",")
    said = says(csv(tmp_path, text))
    assert "columns Phe, Tyr, Leu, C0, C2 and 6 more (rows 2 to 21): decimal commas." in said
    assert said.count("\n") == 0


@pytest.mark.parametrize(("columns", "factor", "said"), [
    (["Phe"], 1 / 1000, "column Phe (rows 2 to 61): the median is about 1000 times lower than usual: another unit? mmol/L?"),
    (["Phe"], 0.0165, "mg/dL?"),  # 165.2 g/mol
    (["Tyr"], 0.0181, "mg/dL?"),
    (["C8"], 1000, "column C8 (rows 2 to 61): the median is about 1000 times higher than usual: another unit? nmol/L?"),
    (NAMES, 0.2, "columns of all analytes (rows 2 to 61): the median is about 5 times lower than usual: another unit? mg/L?"),
    (["age_h"], 1 / 24, "column age_h (rows 2 to 61): the median is about 30 times lower than usual: is it in days?"),
    (["weight_g"], 1 / 1000, "is it in kg?"),
    (["weight_g"], 1 / 453.6, "is it in pounds?"),
    (["gestation_weeks"], 7, "is it in days?"),
])  # fmt: skip
def test_another_unit_is_told_by_the_median(tmp_path: Path, columns: list[str], factor: float, said: str) -> None:
    table = newborns(60).with_columns(pl.col(columns) * factor, laboratory=pl.lit("one"))
    assert said in says(csv(tmp_path, table))


def test_one_laboratory_in_another_unit_is_found_among_others_and_not_named(tmp_path: Path) -> None:
    wrong = pl.when(pl.col("laboratory") == "two").then(pl.col("Phe") / 60).otherwise("Phe").alias("Phe")
    said = says(csv(tmp_path, newborns(60).with_columns(wrong)))
    assert "column Phe (one laboratory's, among rows 2 to 61)" in said
    assert "two" not in said


def test_swapped_columns_are_told_as_a_pair(tmp_path: Path) -> None:
    table = newborns(60).with_columns(pl.col("C8").alias("Phe"), pl.col("Phe").alias("C8"), laboratory=pl.lit("one"))
    said = says(csv(tmp_path, table))
    assert said == "data: columns Phe and C8 (rows 2 to 61): each holds what is usual for the other. Are they swapped?"


def test_ids_and_days_for_laboratories_and_months_are_refused_before_a_page_names_them(tmp_path: Path) -> None:
    table = newborns(60).rename({"sample": "laboratory", "laboratory": "sample"})
    said = says(csv(tmp_path, table))
    assert said == "data: column laboratory (rows 2 to 61): most of the rows name another one. Does it hold ids?"
    dated = newborns(60).with_columns(month=pl.Series([f"2026-11-{i % 30 + 1:02}" for i in range(60)]))
    assert (
        says(csv(tmp_path, dated))
        == "data: column month (rows 2 to 61): most of the cells are no months. Write them as 2026-11."
    )
    assert open_table(csv(tmp_path, dated.with_columns(month=pl.lit("2026-11"))), DICTIONARY).rows == 60
    few = newborns(60).with_columns(laboratory=pl.Series([f"L{i // 3}" for i in range(60)]))
    assert open_table(csv(tmp_path, few), DICTIONARY).rows == 60


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.floats(-0.4, 0.4), st.integers(10, 80))
def test_a_laboratory_that_is_only_another_one_is_not_refused(
    tmp_path_factory: pytest.TempPathFactory, seed: int, shift: float, n: int
) -> None:
    own = np.random.default_rng(seed).normal(shift, 0.2, len(NAMES))
    table = newborns(n, seed).with_columns(pl.col(name) * float(np.exp(d)) for name, d in zip(NAMES, own))
    assert open_table(csv(tmp_path_factory.mktemp("t"), table), DICTIONARY).rows == n


# --- the same file as before


def test_a_table_changed_since_submission_is_refused(tmp_path: Path) -> None:
    path = csv(tmp_path, newborns(30))
    digest = {str(path): hashlib.sha256(path.read_bytes()).hexdigest()}
    assert open_table(path, DICTIONARY, digest).rows == 30
    csv(tmp_path, newborns(31))
    with pytest.raises(DataError, match="changed since submission"):
        open_table(path, DICTIONARY, digest)
    with pytest.raises(DataError, match="was not there at submission"):
        open_table(path, DICTIONARY, {})


def test_a_table_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    path = csv(tmp_path, newborns(30))
    table = open_table(path, DICTIONARY)
    csv(tmp_path, newborns(31))
    with pytest.raises(DataError, match="changed while it was read"):
        list(table.batches())


# --- anything at all


SECRET = re.compile("SECRET|[0-9]{7}")


def hostile() -> st.SearchStrategy[bytes]:
    """Bytes of every kind, most of them nearly a table: some cells, lines or bytes of a good one are spoiled."""
    cell = st.one_of(
        st.sampled_from(
            ["", "NA", "1,5", '"', '""', '"a\nb"', "=SECRET()", "-1", "nan", "inf", "<1", "\0", "9" * 7, "SECRET", ";", ","]
        ),
        st.text(max_size=5),
        st.floats().map(str),
    )
    lines = newborns(25).write_csv().split("\n")

    @st.composite
    def spoiled(draw: st.DrawFn) -> bytes:
        rows = [line.split(",") for line in lines]
        for _ in range(draw(st.integers(0, 8))):
            row = draw(st.sampled_from(rows[draw(st.integers(0, 1)) :]))
            row[draw(st.integers(0, len(row) - 1))] = draw(cell)
        separator = draw(st.sampled_from([",", ";", "\t"]))
        data = draw(st.sampled_from(["\n", "\r\n", "\r"])).join(separator.join(row) for row in rows).encode("utf-8", "replace")
        kind = draw(st.sampled_from(["cells", "cells", "bytes", "gzip"]))
        if kind == "gzip":
            data = gzip.compress(data)
        return data if kind == "cells" else altered(draw, data)

    @st.composite
    def spoiled_parquet(draw: st.DrawFn) -> bytes:
        good = io.BytesIO()
        newborns(25).write_parquet(good, row_group_size=10, compression="uncompressed")
        return altered(draw, good.getvalue())

    return st.one_of(st.binary(max_size=200), spoiled(), spoiled(), spoiled_parquet())


def altered(draw: st.DrawFn, data: bytes) -> bytes:
    """`data` with a few bytes changed, put in or left out at one place, or its end cut off."""
    at = draw(st.one_of(st.integers(0, len(data)), st.integers(0, len(data) // 2).map(lambda back: len(data) - back)))
    return data[:at] + draw(st.binary(max_size=3)) + data[at + draw(st.sampled_from([0, 1, 2, 3, len(data)])) :]


def everything(path: Path) -> Iterator[Batch]:
    for _, batch in open_table(path, DICTIONARY).batches(10):
        yield batch


@settings(max_examples=400)
@given(hostile())
def test_any_bytes_are_a_table_or_a_refusal_that_cites_no_cell(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = csv(tmp_path_factory.mktemp("any"), data)
    try:
        for batch in everything(path):
            usable = batch.x_NA[~np.isnan(batch.x_NA)]
            assert np.isfinite(usable).all() and (usable > 0).all()
            assert all(0 <= f.index < len(batch) and not SECRET.search(f.why) for f in batch.faults)
            assert all(safe_text(text) == text for text in batch.sample)
    except HpcaiError as refusal:
        assert refusal.code == 4
        for line in refusal.lines:
            assert not SECRET.search(line.replace(str(pieces.MAX_RECORD_BYTES), "")), line

"""The bytes of a table -> frames of some ten thousand rows.   CSV, CSV.gz, Parquet -> header, pieces -> polars

A piece of a CSV is cut at the end of a record, so that memory stays flat and a piece can be skipped or read again by itself.
Row numbers are a person's: the header is row 1. No message cites a cell, nor what polars says of it.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import hashlib
import io
import os
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

import numpy as np

from hpcai.data.cases import open_plain
from hpcai.errors import DataError

if TYPE_CHECKING:
    import polars as pl

PIECE_BYTES = 8 << 20  # of text: about 20,000 rows of 55 columns
PIECE_ROWS = 32_768  # of Parquet
MAX_RECORD_BYTES = 1 << 20  # a row of 500 analytes has 10 kB: more is a cell that holds something else, or a lost quote
NEWLINE = b"\n"
WHAT = "data.path"


@dataclass(frozen=True)
class Piece:
    """Where some rows lie.

    Attributes:
        at, size: bytes of the (unpacked) text; rows of a Parquet file.
        first, rows: index of its first row from 0, and how many there are.
    """

    at: int
    size: int
    first: int
    rows: int


class Source(ABC):
    """A file of rows, opened anew by whoever reads: `names` says what each column is called, None: not wanted."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._state = _state(path)
        self.header: list[str] = []
        self.names: Sequence[str | None] = []

    @abstractmethod
    def scan(self) -> Iterator[tuple[Piece, pl.DataFrame]]:
        """Every piece in order, checked as text for the first time.

        Raises:
            DataError: it is damaged, no text, or a row of another width than the header.
        """

    @abstractmethod
    def read(self, pieces: Iterable[Piece]) -> Iterator[tuple[Piece, pl.DataFrame]]:
        """The frames of some pieces, each asked for when the one before is used up.

        Raises:
            DataError: it was changed since it was opened, or is damaged.
        """

    def check_unchanged(self) -> None:
        """Raises: DataError: the file is another than when it was opened."""
        if _state(self.path) != self._state:
            raise DataError(f"{WHAT}: changed while it was read. Restore the file and start again.")


def open_source(path: Path, fingerprint: dict[str, str] | None = None) -> Source:
    """The source in `path`, told by its first bytes; the same as at submission if there is a `fingerprint`.

    Raises:
        DataError: it is no plain file, empty, changed, or of another kind.
    """
    with open_plain(path, WHAT) as f:
        start = f.read(4)
        if fingerprint is not None:
            digest, expected = hashlib.sha256(start), fingerprint.get(str(path))
            while data := f.read(1 << 20):
                digest.update(data)
            if digest.hexdigest() != expected:
                change = "changed since submission" if expected else "was not there at submission"
                raise DataError(f"{WHAT}: {change}. Restore the file, or start another run with the data as it is.")
    if not start:
        raise DataError(f"{WHAT}: the table is empty. Give a header and a row a newborn.")
    if start == b"PK\x03\x04":
        raise DataError(f"{WHAT}: is a zip file or a spreadsheet. Save the table as CSV or Parquet.")
    if start in (b"PAR1", b"PARE"):
        return ParquetSource(path)
    return CsvSource(path, packed=start[:2] == b"\x1f\x8b")


def _state(path: Path) -> tuple[int, int, int, int]:
    try:
        s = path.stat()
    except OSError as fault:
        raise DataError(f"{WHAT}: cannot be read ({fault.strerror}). Check path and rights.") from None
    return s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns


class CsvSource(Source):
    """UTF-8 with or without a byte order mark; the delimiter is the most frequent one of `,`, `;` and tab in the header."""

    def __init__(self, path: Path, packed: bool) -> None:
        super().__init__(path)
        self._packed = packed
        with self._open() as f:
            line = _header_line(f)
        self._start = len(line)
        text = _decoded(line, 1).removeprefix("\ufeff").rstrip("\r\n")
        self._delimiter = max(",;\t", key=text.count)
        try:
            (self.header,) = csv.reader([text], delimiter=self._delimiter, strict=True)
        except (csv.Error, ValueError):
            raise DataError(f"{WHAT}: row 1 is no header. Check its quotes.") from None

    def scan(self) -> Iterator[tuple[Piece, pl.DataFrame]]:
        """Every piece: encoding, numbers of cells and lengths of records are checked on the way."""
        first = 0
        with self._open() as f:
            for at, data, whole in _cut(f, self._start):
                _check_text(data, first + 2)
                if not whole:
                    raise DataError(
                        f"data: row {first + 2} or a later one is longer than {MAX_RECORD_BYTES} bytes. Check its quotes."
                    )
                frame = self._frame(data, first)
                self._check_shape(data, frame.height, first)
                yield Piece(at, len(data), first, frame.height), frame
                first += frame.height

    def read(self, pieces: Iterable[Piece]) -> Iterator[tuple[Piece, pl.DataFrame]]:
        """Frames of pieces; a packed file is unpacked from its start on."""
        self.check_unchanged()
        with self._open() as f:
            for piece in pieces:
                frame = self._frame(_read(f, piece.size, piece.at), piece.first)
                if frame.height != piece.rows:
                    raise DataError(f"{WHAT}: changed while it was read. Restore the file and start again.")
                yield piece, frame

    @contextlib.contextmanager
    def _open(self) -> Iterator[IO[bytes]]:
        with open_plain(self.path, WHAT) as f:
            if self._packed:
                with gzip.GzipFile(fileobj=f) as unpacked:  # to close it leaves `f` open
                    yield cast("IO[bytes]", unpacked)
            else:
                yield f

    def _frame(self, data: bytes, first: int) -> pl.DataFrame:
        """The wanted columns as text; nothing is guessed."""
        import polars as pl

        schema = dict.fromkeys([name or f"?{i}" for i, name in enumerate(self.names)], pl.String)
        try:
            frame = pl.read_csv(io.BytesIO(data), has_header=False, schema=schema, separator=self._delimiter)
        except (pl.exceptions.PolarsError, pl.exceptions.PanicException):
            raise DataError(self._diagnosis(data, first)) from None
        return frame.select([name for name in self.names if name])

    def _check_shape(self, data: bytes, rows: int, first: int) -> None:
        """Raises: DataError: some row has fewer cells than the header (polars would fill them)."""
        if not self._regular(data, rows) and (fault := self._ragged(data, rows, first)):
            raise DataError(fault)

    def _regular(self, data: bytes, rows: int) -> bool:
        """Whether every line has as many delimiters outside of quotes as the header."""
        data = data if data.endswith(NEWLINE) else data + NEWLINE
        width = len(self.names) - 1
        if b'"' not in (bare := data.replace(b'""', b"")):  # the sums do: polars refuses a row that is too long
            return bare.count(NEWLINE) == rows and bare.count(self._delimiter.encode()) == rows * width
        byte_B = np.frombuffer(data, np.uint8)
        outside = np.cumsum(byte_B == ord('"'), dtype=np.uint8) % 2 == 0
        delimiters = np.flatnonzero((byte_B == ord(self._delimiter)) & outside)
        until = np.searchsorted(delimiters, np.flatnonzero((byte_B == NEWLINE[0]) & outside))
        return len(until) == rows and bool((np.diff(until, prepend=0) == width).all())

    def _ragged(self, data: bytes, rows: int | None, first: int) -> str:
        """The first row that is not as wide as the header, as a message; "" if all are."""
        width, number = len(self.names), first + 1
        try:
            for row in csv.reader(io.StringIO(_decoded(data, first + 2), newline=""), delimiter=self._delimiter, strict=True):
                number += 1
                if len(row) != width:
                    return (
                        f"data: row {number} has {len(row)} cells, the header {width}. Quote a cell that holds the delimiter."
                    )
        except csv.Error:
            return f"data: row {number + 1} is malformed. Check its quotes."
        if rows is not None and number - 1 - first != rows:
            return f"data: rows {first + 2} to {number} can be read in two ways. Check their quotes."
        return ""

    def _diagnosis(self, data: bytes, first: int) -> str:
        found = self._ragged(data, None, first)
        return found or f"data: a row from {first + 2} on is malformed. Check its quotes."


def _header_line(f: IO[bytes]) -> bytes:
    """The first record, line end included."""
    line = b""
    while len(line) <= MAX_RECORD_BYTES:
        try:
            more = f.readline(MAX_RECORD_BYTES)
        except (EOFError, OSError, zlib.error):
            raise DataError(f"{WHAT}: is damaged (gzip). Get the file again.") from None
        line += more
        if not more or line.count(b'"') % 2 == 0:
            return line
    raise DataError(f"data: row 1 is longer than {MAX_RECORD_BYTES} bytes. Check its quotes; a table begins with its header.")


def _read(f: IO[bytes], size: int, at: int | None = None) -> bytes:
    """`size` bytes from where the file stands, or from `at`."""
    try:
        if at is not None:
            f.seek(at)
        return f.read(size)
    except (EOFError, OSError, zlib.error) as fault:
        why = os.strerror(fault.errno) if isinstance(fault, OSError) and fault.errno else "gzip"
        raise DataError(f"{WHAT}: is damaged ({why}). Get the file again.") from None


def _cut(f: IO[bytes], at: int) -> Iterator[tuple[int, bytes, bool]]:
    """Offset and bytes of pieces, and whether they end with a record; empty lines at the end of the file are left out."""
    rest = _read(f, 0, at)
    while more := _read(f, PIECE_BYTES):
        data = rest + more
        body = data[: _last_end(data)].rstrip(b"\r\n")
        if body:
            end = len(body) + (2 if data.startswith(b"\r\n", len(body)) else 1)
            yield at, data[:end], True
            at, data = at + end, data[end:]
        elif len(data) > PIECE_BYTES + MAX_RECORD_BYTES:
            yield at, data, False
            return
        rest = data
    if body := rest.rstrip(b"\r\n"):
        yield at, body, True


def _last_end(data: bytes) -> int:
    """Just behind the last line end that stands outside of quotes; 0 if there is none."""
    end = data.rfind(b"\n")
    quotes = data.count(b'"', 0, end + 1)
    while quotes % 2 and end >= 0:  # within quotes: go on before the quote that opens here
        quote = data.rfind(b'"', 0, end)
        before = data.rfind(b"\n", 0, quote + 1)
        quotes -= data.count(b'"', before + 1, end)
        end = before
    return end + 1


def _check_text(data: bytes, row: int) -> None:
    """Raises: DataError: the piece whose first row is `row` holds what no text table does."""
    _decoded(data, row)
    if (nul := data.find(b"\0")) >= 0:
        raise DataError(f"data: row {row + data.count(NEWLINE, 0, nul)} holds a NUL byte. Save the table as UTF-8 text.")
    ends = np.flatnonzero(np.frombuffer(data, np.uint8) == NEWLINE[0])
    lengths = np.diff(ends, prepend=-1, append=len(data))
    if lengths.max() > MAX_RECORD_BYTES:
        raise DataError(
            f"data: row {row + int(lengths.argmax())} is longer than {MAX_RECORD_BYTES} bytes. Check its cells and quotes."
        )


def _decoded(data: bytes, row: int) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as fault:
        number = row + data.count(NEWLINE, 0, fault.start)
        raise DataError(f"data: row {number} is not UTF-8. Save the table as UTF-8.") from None


class ParquetSource(Source):
    """Columns of numbers, texts, yes and no; a piece is a range of rows."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        import polars as pl

        with _polars_says_no():
            self._lazy = pl.scan_parquet(path, glob=False)
            self._schema = self._lazy.collect_schema()
            self._rows = int(self._lazy.select(pl.len()).collect().item())
        self.header = self._schema.names()

    def scan(self) -> Iterator[tuple[Piece, pl.DataFrame]]:
        """Every range of rows."""
        pieces = [Piece(at, n := min(PIECE_ROWS, self._rows - at), at, n) for at in range(0, self._rows, PIECE_ROWS)]
        return self.read(pieces)

    def read(self, pieces: Iterable[Piece]) -> Iterator[tuple[Piece, pl.DataFrame]]:
        """Frames of ranges of rows: numbers as Float64, everything else as text."""
        import polars as pl

        wanted = []
        for column, name in zip(self.header, self.names):
            if name:
                number = self._schema[column].is_numeric()
                wanted.append(pl.col(column).cast(pl.Float64 if number else pl.String).alias(name))
        for piece in pieces:
            self.check_unchanged()
            with _polars_says_no():
                frame = self._lazy.slice(piece.at, piece.rows).select(wanted).collect()
            if frame.height != piece.rows:
                raise DataError(f"{WHAT}: is damaged (Parquet: rows are missing). Get the file again.")
            yield piece, frame


class _polars_says_no(contextlib.AbstractContextManager[None]):
    """Whatever polars finds wrong with a Parquet file, in our words: its own may cite a value."""

    def __exit__(self, kind: Any, value: Any, trace: Any) -> None:
        import polars as pl

        if kind and issubclass(kind, (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, ValueError)):
            raise DataError(
                f"{WHAT}: is no Parquet table that can be read. Write it again, with numbers and texts only."
            ) from None

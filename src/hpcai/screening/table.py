"""A laboratory's table, read strictly and in pieces.   CSV, CSV.gz, Parquet -> checked once -> blocks of rows as arrays

    open_source -> header matched -> every piece scanned: text, shape, medians, samples -> Table -> blocks as asked for

Memory does not grow with rows, but for 16 bytes a sample while it is opened (to find two rows for one sample).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hpcai.book.analytes import Analyte, Column, Dictionary, squeezed
from hpcai.data.cases import raise_faults
from hpcai.errors import near
from hpcai.screening.batch import Batch, Ints
from hpcai.screening.cells import numbers, plain, texts, to_batch
from hpcai.screening.checks import SAMPLED, Population
from hpcai.screening.pieces import Piece, Source, open_source

if TYPE_CHECKING:
    import polars as pl

BLOCK = 4096
Hashes = NDArray[np.uint64]


@dataclass(frozen=True)
class Table:
    """A table whose columns and units are checked; its rows are read when asked for, in constant memory.

    Attributes:
        rows: how many newborns.
        columns: canonical name -> the header's word, of every column that the dictionary knows.
        text_columns: canonical names of the text columns that the file has.
        ignored: how many columns of the file the dictionary does not know.
    """

    rows: int
    columns: dict[str, str]
    text_columns: list[str]
    ignored: int
    _dictionary: Dictionary
    _source: Source
    _pieces: list[Piece]
    _twice: Ints

    def blocks(self, size: int = BLOCK) -> int:
        """How many blocks of `size` rows there are."""
        return -(-self.rows // size)

    def batches(self, size: int = BLOCK, wanted: Callable[[int], bool] | None = None) -> Iterator[tuple[int, Batch]]:
        """Number and rows of each wanted block, in order; `wanted` is asked once a block, pieces without one are not read.

        Raises:
            DataError: the file was changed since it was opened, or is damaged.
        """
        import polars as pl

        parts: list[pl.DataFrame] = []
        for number, stop, frame in self._parts(size, wanted):
            parts.append(frame)
            if stop == min((number + 1) * size, self.rows):
                first = number * size
                low, high = np.searchsorted(self._twice, (first, stop))
                whole = parts[0] if len(parts) == 1 else pl.concat(parts)
                parts = []
                yield number, to_batch(whole, self._dictionary, first, self._twice[low:high])

    def _parts(self, size: int, wanted: Callable[[int], bool] | None) -> Iterator[tuple[int, int, pl.DataFrame]]:
        """Block, end of its rows so far, and frame, of what each piece has of each wanted block."""
        answers: dict[int, bool] = {}
        blocks_of: dict[int, list[int]] = {}

        def is_wanted(block: int) -> bool:
            if block not in answers:
                answers.clear()  # blocks come in order: only the last one of a piece is asked for again
                answers[block] = wanted is None or wanted(block)
            return answers[block]

        def wanted_pieces() -> Iterator[Piece]:
            for piece in self._pieces:
                blocks = range(piece.first // size, (piece.first + piece.rows - 1) // size + 1)
                blocks_of[piece.first] = [b for b in blocks if is_wanted(b)]
                if blocks_of[piece.first]:
                    yield piece

        for piece, frame in self._source.read(wanted_pieces()):
            for block in blocks_of.pop(piece.first):
                start, stop = max(block * size, piece.first), min((block + 1) * size, piece.first + piece.rows)
                yield block, stop, frame.slice(start - piece.first, stop - start)


def open_table(path: Path, dictionary: Dictionary, fingerprint: dict[str, str] | None = None) -> Table:
    """The table in `path`, looked at as a whole: its columns, units, numbers of rows and samples.

    Raises:
        DataError: or Faults: no table of this dictionary. A message cites columns and row numbers, never a cell.
    """
    return _open(path, dictionary, fingerprint, Population(dictionary))


def open_plain_table(path: Path, dictionary: Dictionary, fingerprint: dict[str, str] | None = None) -> Table:
    """The same without a look at medians and samples: a table of controls, which are no newborns."""
    return _open(path, dictionary, fingerprint, None)


def _open(path: Path, dictionary: Dictionary, fingerprint: dict[str, str] | None, population: Population | None) -> Table:
    source = open_source(path, fingerprint)
    found = match(source.header, dictionary)
    source.names = [found.get(place) for place in range(len(source.header))]
    pieces: list[Piece] = []
    hashes: list[Hashes] = []
    for piece, frame in source.scan():
        pieces.append(piece)
        if population:
            _look(population, piece, frame)
            if "sample" in frame.columns:
                hashes.append(_hashes(frame))
    rows = sum(piece.rows for piece in pieces)
    raise_faults([] if rows else ["data.path: the table has a header and no row. Give a row a newborn."])
    raise_faults(population.faults() if population else [])
    columns = {name: source.header[place] for place, name in found.items()}
    text_columns = [c.name for c in dictionary.columns if c.kind == "text" and c.name in columns]
    return Table(rows, columns, text_columns, len(source.header) - len(found), dictionary, source, pieces, _repeated(hashes))


def match(header: Sequence[str], dictionary: Dictionary) -> dict[int, str]:
    """Place in the header -> canonical name, of every column that the dictionary knows.

    Raises:
        DataError: or Faults: a required column is missing, one stands twice, or nothing is known.
    """
    entries: list[Analyte | Column] = [*dictionary.analytes, *dictionary.columns]
    known = {squeezed(word): entry.name for entry in entries for word in (*entry.synonyms, entry.name)}
    found = {place: known[key] for place, word in enumerate(header) if (key := squeezed(word)) in known}
    if not found:
        example = ", ".join(entry.name for entry in entries[:3])
        raise_faults([f"data.path: row 1 names no column of dictionary {dictionary.name} ({example} ...). Give a header."])
    names = list(found.values())
    faults = [f"data: column {name} stands {names.count(name)} times, perhaps by another name. Keep one."
              for name in dict.fromkeys(names) if names.count(name) > 1]  # fmt: skip
    unknown = [word for place, word in enumerate(header) if place not in found]
    for entry in entries:
        if entry.required and entry.name not in names:
            hint = near(entry.name, unknown) if unknown else ""
            hint = hint if hint.startswith("Did") else "Add it, or state in the dictionary that it may be missing."
            faults.append(f"data: column {entry.name} is missing, which dictionary {dictionary.name} requires. {hint}")
    raise_faults(faults)
    return found


def _look(population: Population, piece: Piece, frame: pl.DataFrame) -> None:
    """Shows some rows of a piece, evenly spread, to the checks of the whole."""
    some = frame.gather_every(max(1, piece.rows // SAMPLED))
    unread: list[Any] = []
    x_NM = numbers(some, population.names, unread)
    rows = f"rows {piece.first + 2} to {piece.first + piece.rows + 1}"
    text = texts(some, ["laboratory", "month"], [])
    population.look(rows, x_NM, text.get("laboratory", np.full(some.height, "")), unread)
    if "month" in text:
        population.look_at_months(rows, text["month"])


def _hashes(frame: pl.DataFrame) -> Hashes:
    """(2, n) 128 bits a sample, 0 where there is none: of a million samples, two are alike by a chance of 10^-27."""
    sample = frame.select(plain("sample"))["sample"]
    both: Hashes = np.stack([sample.hash(seed).to_numpy() for seed in (1, 2)])
    both[:, (sample == "").to_numpy()] = 0
    return both


def _repeated(hashes: list[Hashes]) -> Ints:
    """Sorted indices of the rows whose sample stands in another row too."""
    if not hashes:
        return np.empty(0, np.int64)
    hash_2N = np.concatenate(hashes, axis=1)
    order = np.argsort(hash_2N[0], kind="stable")
    ordered = hash_2N[:, order]
    alike = np.flatnonzero((ordered[:, 1:] == ordered[:, :-1]).all(axis=0) & (ordered[0, 1:] != 0))
    return np.unique(order[np.concatenate([alike, alike + 1])])

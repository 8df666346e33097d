"""What is wrong with rows and images: told by row number, and counted by reason. No message holds a cell or a file's name."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from hpcai.data.cases import MAX_FAULTS
from hpcai.errors import DataError, Faults, HpcaiError


@dataclass
class Notes:
    """The faults found so far: {reason: [(row, what it says)]}; a row of 0 is an image that no row names."""

    found: dict[str, list[tuple[int, str]]] = field(default_factory=dict)

    def add(self, reason: str, row: int, text: str) -> None:
        """Notes a fault of a row. `reason` is one for many rows, `text` says more and what to do."""
        self.found.setdefault(reason, []).append((row, text))

    @property
    def rows(self) -> set[int]:
        """Every row at fault."""
        return {row for told in self.found.values() for row, _ in told}

    def counts(self) -> dict[str, int]:
        """{reason: rows}."""
        return dict(Counter({reason: len({row for row, _ in told}) for reason, told in self.found.items()}))

    def stop(self) -> None:
        """Raises what was found.

        Raises: DataError, or Faults with a line a row (the first of many).
        """
        lines = sorted((row, f"--labels: row {row}: {text}") for told in self.found.values() for row, text in told)
        if not lines:
            return
        shown: list[HpcaiError] = [DataError(text) for _, text in lines[:MAX_FAULTS]]
        if len(lines) > MAX_FAULTS:
            shown.append(DataError(f"--labels: {len(lines) - MAX_FAULTS:,} more rows have faults."))
        n = f"{len(self.rows):,} rows are" if len(self.rows) > 1 else "1 row is"
        shown.append(DataError(f"--labels: {n} at fault. Mend what is wrong, or leave it out with --skip-faults."))
        raise Faults(shown)

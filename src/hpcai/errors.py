"""Every way in which hpcai says no, and the exit code that a shell sees.

    HpcaiError            1  our own fault: please report it
    +- ConfigError        2  a key, a choice or a value is wrong
    +- PlanError          3  well formed, but this machine or this run folder does not allow it
    +- DataError          4  an input is missing, changed or unreadable
    +- RunError           5  the job itself failed (NaN loss, lost rank, damaged checkpoint, full disk)
    +- GateError          6  a stated gate was not met
    +- OwnedError         7  somebody else owns this run
    Stopped         128 + n  stopped by signal n, with a checkpoint

A message reads `key=value: the fact or limit. What to do.` and never holds patient data: it cites a row number or a digest.
Several faults at once are one `Faults`; its exit code is the lowest of its members'.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence


class HpcaiError(Exception):
    """The root; raised as itself only for our own faults."""

    code = 1

    @property
    def lines(self) -> list[str]:
        """One line a fault, ready for stderr: a message never spans lines, whatever value it cites."""
        return [one_line(str(self))]

    @property
    def members(self) -> list[HpcaiError]:
        """The faults in it: itself, or those of a `Faults`."""
        return [self]


class ConfigError(HpcaiError):
    """A key, a choice or a value is wrong."""

    code = 2


class PlanError(HpcaiError):
    """Well formed, but this machine or this run folder does not allow it."""

    code = 3


class DataError(HpcaiError):
    """An input is missing, changed or unreadable."""

    code = 4


class RunError(HpcaiError):
    """The job itself failed."""

    code = 5


class GateError(HpcaiError):
    """A stated gate was not met."""

    code = 6


class OwnedError(HpcaiError):
    """Somebody else owns this run."""

    code = 7


class Stopped(HpcaiError):
    """Stopped by a signal between two steps; `message` says where and that the same command goes on."""

    def __init__(self, signum: int, message: str) -> None:
        super().__init__(message)
        self.signum = signum
        self.code = 128 + signum

    @property
    def signal_name(self) -> str:
        """`SIGTERM` and the like."""
        return signal.Signals(self.signum).name


class Faults(HpcaiError):
    """Several faults found together. `faults` keeps their order; the exit code is the lowest."""

    def __init__(self, faults: Sequence[HpcaiError]) -> None:
        assert faults
        super().__init__("; ".join(str(f) for f in faults))
        self.faults = list(faults)
        self.code = min(f.code for f in faults)

    @property
    def lines(self) -> list[str]:
        """One line a fault."""
        return [line for fault in self.faults for line in fault.lines]

    @property
    def members(self) -> list[HpcaiError]:
        """The faults in it."""
        return self.faults


BY_CODE: dict[int, type[HpcaiError]] = {
    kind.code: kind for kind in (HpcaiError, ConfigError, PlanError, DataError, RunError, GateError, OwnedError)
}


def one_line(text: str, limit: int = 500) -> str:
    """`text` on one line of at most `limit` characters: control characters (newlines, escapes) become `?`."""
    clean = "".join(c if c.isprintable() else "?" for c in text)
    return clean if len(clean) <= limit else clean[: limit - 3] + "..."


def near(word: str, known: Sequence[str]) -> str:
    """`Did you mean x?`, or the list of what is known, as the end of a message."""
    import difflib

    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if close:
        return f"Did you mean {close[0]}?"
    return f"Known: {', '.join(sorted(known)) or 'none'}."

"""An append-only file of JSON lines that many processes write: what a search remembers.   append, read, locked -> search.jsonl

The lock is flock on the file itself, so a kill leaves none behind (Optuna's own locks are files: after a kill all wait, or two
go on). Under it a line is whole or absent: what a kill tore is cut before the next line, what a full disk cut short is taken
back. Each line is Optuna's own, so that its tools read the file. Knows nothing of what the lines mean.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hpcai.errors import PlanError, one_line

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # Lustre without `-o flock`, NFS without its lock daemon


class Journal:
    """The file; it is there once a line was appended. One object may be used by several threads, not across a fork."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._thread = threading.RLock()
        self._fd, self._depth = -1, 0
        self._ends = [0]  # bytes up to the end of each line that was read; a line never changes

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Nobody else reads or writes within the block; may be nested.

        Raises: PlanError if the file system has no locks, or the file was taken away.
        """
        with self._thread:
            if self._depth == 0:
                self._fd = self._open()
            self._depth += 1
            try:
                yield
            finally:
                self._depth -= 1
                if self._depth == 0:
                    os.close(self._fd)  # and with it the lock

    def _open(self) -> int:
        try:  # for writing though it may only be read: NFS locks no other
            fd = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except FileNotFoundError:
            raise PlanError("search: its folder is gone. Start the same command again.") from None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            if os.fstat(fd).st_nlink == 0 or os.fstat(fd).st_size < self._ends[-1]:
                raise PlanError("search: its journal was taken away or cut while in use. Start the same command again.")
        except OSError as e:
            os.close(fd)
            if e.errno not in NO_LOCKS:
                raise
            where = one_line(str(self.path.parent), 200)
            raise PlanError(f"search: {where} is on a file system without locks (flock). Set runs_dir to another.") from e
        except PlanError:
            os.close(fd)
            raise
        return fd

    def append(self, values: Sequence[Mapping[str, Any]]) -> None:
        """One line a value, on the disk before this returns.

        Raises: OSError for a full disk, with nothing of it left.
        """
        data = "".join(json.dumps(v, separators=(",", ":"), allow_nan=False) + "\n" for v in values).encode()
        with self.locked():
            end = self._ends[-1] + self._rest(self._ends[-1]).rfind(b"\n") + 1
            os.ftruncate(self._fd, end)  # a torn last line
            try:
                written = 0
                while written < len(data):
                    written += os.write(self._fd, data[written:])
                os.fsync(self._fd)
            except OSError:
                os.ftruncate(self._fd, end)
                raise

    def read(self, start: int = 0) -> list[dict[str, Any]]:
        """The values from line `start` (from 0) on, without a last line that a kill has torn.

        Raises: PlanError for a line that is no JSON object.
        """
        with self.locked():
            found: list[dict[str, Any]] = []
            if start >= len(self._ends):
                self.read(len(self._ends) - 1)  # notes the ends of the lines up to there
            for line in self._rest(self._ends[start]).split(b"\n")[:-1]:
                number = start + len(found) + 1
                found.append(self._value(line, number))
                if number == len(self._ends):
                    self._ends.append(self._ends[-1] + len(line) + 1)
            return found

    def _value(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise self.damaged(f"line {number} of its journal")
        return value

    def damaged(self, what: str) -> PlanError:
        """The fault to raise where `what` makes no sense."""
        where = one_line(str(self.path), 200)
        return PlanError(f"search: {what} is damaged. Restore {where}, or move it away: completed runs are found again.")

    def _rest(self, start: int) -> bytes:
        """The bytes from `start` on."""
        size, parts = os.fstat(self._fd).st_size, []
        while start < size and (part := os.pread(self._fd, size - start, start)):
            parts.append(part)
            start += len(part)
        return b"".join(parts)


def backend(journal: Journal) -> Any:
    """`journal` as Optuna's JournalStorage takes it. The class is made at use, since Optuna is imported at use."""
    from optuna.storages.journal import BaseJournalBackend

    def read_logs(_: object, log_number_from: int) -> list[dict[str, Any]]:
        logs = journal.read(log_number_from)
        for number, log in enumerate(logs, log_number_from + 1):
            if not (isinstance(log.get("op_code"), int) and isinstance(log.get("worker_id"), str)):
                raise journal.damaged(f"line {number} of its journal")
        return logs

    def append_logs(_: object, logs: list[dict[str, Any]]) -> None:
        journal.append(logs)

    return type("Backend", (BaseJournalBackend,), {"read_logs": read_logs, "append_logs": append_logs})()

"""Standard output and error that stop no run: their reader may go away (`| head`), their disk fill up, the shell close them."""

from __future__ import annotations

import io
import os
import sys
from typing import Any, TextIO


class _Steady(io.FileIO):
    def write(self, data: Any) -> int:
        """Writes, or drops what nobody takes."""
        try:
            return super().write(data)
        except OSError:
            return len(memoryview(data))


def steady() -> None:
    """Makes this process's streams so, line by line; letters that the terminal lacks are spelt `\\xe9`.."""
    sys.stdout, sys.stderr = _stream(1, sys.stdout), _stream(2, sys.stderr)


def _stream(fd: int, now: TextIO | None) -> TextIO:
    if now is None:  # closed by the shell: what is opened next would get its number, and our words
        os.dup2(os.open(os.devnull, os.O_WRONLY), fd)
    raw = io.BufferedWriter(_Steady(fd, "w", closefd=False))
    return io.TextIOWrapper(raw, now.encoding if now else "utf-8", "backslashreplace", line_buffering=True)

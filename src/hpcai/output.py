"""Standard output and error that stop no run: their reader may go away (`| head`), their disk fill up, the shell close them."""

from __future__ import annotations

import io
import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from hpcai.errors import HpcaiError, RunError


class _Steady(io.FileIO):
    def write(self, data: Any) -> int:
        """Writes, or drops what nobody takes."""
        try:
            return super().write(data)
        except OSError:
            return len(memoryview(data))


def exit_code(call: Callable[[], int], what: str, again: str) -> int:
    """The exit code of `call`, or of the fault that ended it, told in a line on stderr. `again`: the cure of a bad disk."""
    try:
        return call()
    except HpcaiError as e:
        print("\n".join(e.lines), file=sys.stderr)
        return e.code
    except OSError as e:
        print(f"{what}: {e.strerror or e}. {again}", file=sys.stderr)
        return RunError.code
    except json.JSONDecodeError:
        print(f"{what}: a file of a run's folder is damaged. --anew starts another folder.", file=sys.stderr)
        return RunError.code
    except Exception as e:
        at = traceback.extract_tb(e.__traceback__)[-1]
        where = f"{Path(at.filename).name}:{at.lineno}"
        print(f"hpcai: {type(e).__name__} in {where}, a fault of our own. Please report it.", file=sys.stderr)
        return HpcaiError.code


def steady() -> None:
    """Makes this process's streams so, line by line; letters that the terminal lacks are spelt `\\xe9`.."""
    sys.stdout, sys.stderr = _stream(1, sys.stdout), _stream(2, sys.stderr)


def _stream(fd: int, now: TextIO | None) -> TextIO:
    if now is None:  # closed by the shell: what is opened next would get its number, and our words
        os.dup2(os.open(os.devnull, os.O_WRONLY), fd)
    raw = io.BufferedWriter(_Steady(fd, "w", closefd=False))
    return io.TextIOWrapper(raw, now.encoding if now else "utf-8", "backslashreplace", line_buffering=True)

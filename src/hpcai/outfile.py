"""A file that a user names by -o: whether it may be replaced, who may read it; written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

from hpcai.errors import PlanError, one_line

HEAD = 400  # bytes of a file in which it says that we made it


def check(file: Path, *, mark: bytes | None = None, force: bool = False, option: str = "-o") -> None:
    """Whether `file` may be written: it is not there, or holds `mark` in its head (an older one of ours), or `force`.

    `option`: the word that named it; one without a dash stands by itself.

    Raises: PlanError if not; a link, a folder, a pipe and a device are never replaced.
    """
    shown, by = f"{option}={one_line(str(file), 200)}", f" by {option}" * option.startswith("-")
    try:
        if not (file.is_symlink() or file.exists()):
            return
        if file.is_symlink() or not file.is_file():
            raise PlanError(f"{shown}: is no plain file. Name another{by}.")
        if force or (mark is not None and mark in _head(file)):
            return
    except (OSError, ValueError) as e:
        raise PlanError(f"{shown}: {_why(e)}. Name a file that can be written.") from e
    raise PlanError(f"{shown}: is there already. --force replaces it; or name another file{by}.")


def _head(file: Path) -> bytes:
    with file.open("rb") as f:
        return f.read(HEAD)


def write(file: Path, data: bytes, *, private: bool = False) -> None:
    """Writes it beside, syncs, renames. `private`: mode 0600, whatever the umask and whatever was there before.

    Raises: PlanError if it cannot be written.
    """
    beside = file.with_name(f".{secrets.token_hex(8)}.tmp") if file.name else file
    try:
        made = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if private else 0o666)
        try:
            with os.fdopen(made, "wb") as f:
                if private:
                    os.fchmod(f.fileno(), 0o600)
                f.write(data)
                f.flush()
                os.fsync(f.fileno())
            beside.replace(file)
        except BaseException:
            with contextlib.suppress(OSError):
                beside.unlink()
            raise
    except (OSError, ValueError) as e:
        raise PlanError(f"-o={one_line(str(file), 200)}: {_why(e)}. Name a file that can be written.") from e


def _why(e: Exception) -> str:
    return (e.strerror if isinstance(e, OSError) else None) or "no such place"

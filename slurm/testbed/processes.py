"""Processes, read off /proc: which live, and a signal to the one that is meant.   Never a pid file."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hpcai.slurm.testbed.machine import BedError


@dataclass(frozen=True)
class Process:
    """One process, told from a later one with its pid by its start (in clock ticks after boot)."""

    pid: int
    start: int
    parent: int
    name: str

    def alive(self) -> bool:
        """Whether it runs; a zombie does not."""
        now = _process(self.pid)
        return now is not None and now.start == self.start

    def send(self, signum: int) -> None:
        """A signal to it and to nobody else, even if its pid is given away at this moment."""
        with contextlib.suppress(ProcessLookupError):
            handle = os.pidfd_open(self.pid)
            try:
                if self.alive():
                    signal.pidfd_send_signal(handle, signum)
            finally:
                os.close(handle)


def _process(pid: int) -> Process | None:
    try:
        head, _, tail = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")
    except OSError:
        return None
    state, parent, *rest = tail.split()
    return None if state in "ZX" else Process(pid, int(rest[17]), int(parent), head.partition("(")[2])


def processes() -> list[Process]:
    """All of the machine, without zombies."""
    found = (_process(int(entry.name)) for entry in Path("/proc").iterdir() if entry.name.isdigit())
    return [p for p in found if p is not None]


def environ(pid: int) -> dict[str, str]:
    """What it was started with; empty where it is gone."""
    with contextlib.suppress(OSError):
        words = Path(f"/proc/{pid}/environ").read_bytes().decode("utf-8", "replace").split("\0")
        return dict(word.partition("=")[::2] for word in words)
    return {}


def open_files(pid: int) -> list[str]:
    """Paths of its open files, as the kernel tells them (`... (deleted)`)."""
    links = []
    with contextlib.suppress(OSError):
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                links.append(str(link.readlink()))
    return links


def end(wanted: list[Process], patience_s: float = 5.0) -> None:
    """SIGTERM, patience, SIGKILL (without patience SIGKILL alone); returns when they are gone.

    Raises: BedError if one outlives SIGKILL.
    """
    for process in wanted if patience_s else []:
        process.send(signal.SIGTERM)
    if not until(lambda: not any(p.alive() for p in wanted), patience_s):
        for process in wanted:
            process.send(signal.SIGKILL)
    if not until(lambda: not any(p.alive() for p in wanted), 10.0):
        left = next((p for p in wanted if p.alive()), wanted[0])
        raise BedError(f"{left.name}: process {left.pid} outlives SIGKILL. Look at it; then make slurm-down.")


def until(condition: Callable[[], bool], timeout_s: float) -> bool:
    """Polls `condition`; whether it came true in time."""
    limit = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > limit:
            return False
        time.sleep(0.05)
    return True

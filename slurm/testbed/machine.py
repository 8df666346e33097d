"""The machine below the bed: what it lacks, which ports are free, /etc/hosts, a file written whole."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

HOSTS = Path("/etc/hosts")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
NODES = [f"{kind}0{i}" for kind in ("cpu", "gpu") for i in range(1, 5)] + ["fpga01", "mem01"]
PORTS = {"CTLD": [1], "DBD": [2], "DB": [3], "CPU": [11, 12, 13, 14], "GPU": [21, 22, 23, 24], "FPGA": [31], "MEM": [41]}
PACKAGES = {  # command -> Debian's package
    "slurmctld": "slurmctld", "slurmd": "slurmd", "slurmdbd": "slurmdbd", "sacctmgr": "slurm-client", "munged": "munge",
    "mariadbd": "mariadb-server", "mariadb": "mariadb-client", "mariadb-install-db": "mariadb-server",
}  # fmt: skip


class BedError(Exception):
    """One line: what stands in the way, and what to do."""


def missing() -> str | None:
    """Why this machine cannot hold a bed, in one line; None if it can."""
    if sys.platform != "linux":
        return "slurm testbed: needs Linux. Use a Debian machine or container."
    if os.getuid():
        return "slurm testbed: only root can start Slurm's daemons. Use sudo, or a container."
    lacking = {package for command, package in PACKAGES.items() if not _which(command)}
    if not any(Path("/usr/lib").glob("*/libpmix.so")):  # slurmd loads it by this name, which only -dev brings
        lacking.add("libpmix-dev")
    if lacking:
        return f"slurm testbed: not installed. apt-get install --no-install-recommends {' '.join(sorted(lacking))}"
    return None


def _which(command: str) -> str | None:
    return shutil.which(command, path=PATH)


def free_base(wanted: int | None, name: str, last: int | None = None) -> int:
    """A base whose ports are free: the one wanted; else the last; else the first from a place that `name` decides.

    Raises: BedError if there is none.
    """
    if wanted is not None:
        if taken := [p for p in _ports(wanted) if not _free(p)]:
            raise BedError(f"--port={wanted}: port {taken[0]} is taken. Name another base; 1 to 41 above it must be free.")
        return wanted
    first = sum(name.encode())
    tried = [20000 + (first + i) % 200 * 50 for i in range(200)]  # below 32768: from there the kernel serves clients
    for base in tried if last is None else [last, *tried]:
        if all(_free(p) for p in _ports(base)):
            return base
    raise BedError("slurm testbed: no port base between 20000 and 30000 is free. Name one: --port BASE.")


def _ports(base: int) -> list[int]:
    return [base + p for ps in PORTS.values() for p in ps]


def _free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a connection's last minute does not count
        try:
            probe.bind(("", port))
        except (OSError, OverflowError):
            return False
    return True


@contextlib.contextmanager
def usual_umask() -> Iterator[None]:
    """What we make can be read by the machine's other users, whatever the caller's umask: they may submit too."""
    before = os.umask(0o022)
    try:
        yield
    finally:
        os.umask(before)


def put(path: Path, content: str | bytes, mode: int = 0o644) -> None:
    """Writes a file whole, with its mode from the start; one that says so already is left alone."""
    data = content.encode() if isinstance(content, str) else content
    if path.exists() and path.read_bytes() == data:
        return
    beside = path.with_name(f"{path.name}.new")
    beside.unlink(missing_ok=True)
    with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(data)
    beside.replace(path)


def hosts(folder: Path, *, add: bool) -> None:
    """Our line in /etc/hosts, known by its end: gloo and MPI look the nodes up. In place: containers mount this file."""
    mark = f"# hpcai slurm testbed {folder}"
    with HOSTS.open("r+", encoding="utf-8", errors="surrogateescape") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        before = file.read()
        lines = [line for line in before.splitlines() if not line.endswith(mark)]
        text = "\n".join([*lines, f"127.0.0.1 {' '.join(NODES)} {mark}"] if add else lines) + "\n"
        if text != before and (add or mark in before):
            file.seek(0)
            file.write(text)
            file.truncate()


def default_folder() -> Path:
    """HPCAI_BED, or hpcai-slurm-testbed below the system's temp folder."""
    return Path(os.environ.get("HPCAI_BED") or Path(tempfile.gettempdir()) / "hpcai-slurm-testbed")

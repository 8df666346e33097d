"""What a rank uses, looked at beside it: /proc, NVML -> RUN/use.rank<r>.json.   start(context) ... settle()

CPU seconds and memory of the rank's whole process tree; how busy its GPU is and how much of that memory is taken. Between two
looks it waits 200 times as long as one took: half a percent of one core at most, on any machine. A fault here harms no run.

Memory is the sum of resident sets (RSS), not the cgroup's memory.peak: that one counts cached files, so a job that reads 50 GB
would seem to need 50 GB, and not every site gives a job a cgroup. What ranks share (torch's code) counts once for each of them.
"""

from __future__ import annotations

import ctypes
import math
import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from hpcai import rundir
from hpcai.context import RunContext
from hpcai.errors import OwnedError
from hpcai.rundir import RunDir

GIB = 2**30
LOOK_S = 1.0  # between two looks, at least
SHARE = 200  # times as long as a look took
WRITE_S = 30.0  # between two writes: a rank that is killed leaves the last one
JOIN_S = 5.0  # a thread that hangs in a dead file system is left behind


@dataclass(frozen=True)
class Use:
    """What one rank used, over all its lives: seconds add up, of memory (bytes) the peak. `node`: which one of the run's.

    `gpu_s`: for how long its GPU was looked at, 0 without one; `gpu_busy_s` of that it worked.
    """

    rank: int
    node: int
    lives: int = 0
    seconds: float = 0.0
    cpu_s: float = 0.0
    mem: int = 0
    gpu_s: float = 0.0
    gpu_busy_s: float = 0.0
    gpu_mem: int = 0
    gpu_mem_total: int = 0


def read_use(run: RunDir) -> list[Use]:
    """What each rank used, as far as it was written down; a damaged file is left out."""
    return [use for file in run.use_files() if (use := _read(file))]


def _read(file: Path) -> Use | None:
    try:
        value = rundir.read_json(file)
        use = Use(**{f.name: value[f.name] for f in fields(Use)})
        numbers = list(asdict(use).values())
        good = all(isinstance(n, int | float) and not isinstance(n, bool) and math.isfinite(n) and n >= 0 for n in numbers)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return use if good else None


def node_peak(uses: list[Use]) -> float:
    """GB that the ranks of the fullest node took together: the sum of their peaks, an upper bound."""
    nodes: dict[int, int] = {}
    for use in uses:
        nodes[use.node] = nodes.get(use.node, 0) + use.mem
    return max(nodes.values(), default=0) / GIB


def memory_to_ask(peak_gb: float) -> int:
    """GB to ask for: the peak and a quarter more, up to the next power of two below 16, to the next multiple of 8 above."""
    wanted = 1.25 * peak_gb
    return 1 << max(0, math.ceil(math.log2(max(wanted, 1)))) if wanted <= 16 else 8 * math.ceil(wanted / 8)


# --- processes


def tree(pid: int) -> Iterator[int]:
    """`pid` and all that descend from it, as far as the kernel lists them."""
    found = [pid]
    for parent in found:  # grows meanwhile
        yield parent
        with suppress(OSError):
            for thread in Path(f"/proc/{parent}/task").iterdir():
                with suppress(OSError):
                    found += map(int, (thread / "children").read_bytes().split())


def processes(pid: int) -> tuple[float, int]:
    """CPU seconds (own, and of children that have ended) and resident bytes of a process tree. Source: proc(5), stat."""
    ticks = pages = 0
    for each in tree(pid):
        with suppress(OSError, IndexError):
            told = Path(f"/proc/{each}/stat").read_bytes().rpartition(b")")[2].split()  # from the third field on
            ticks += sum(map(int, told[11:15]))
            pages += int(told[21])
    return ticks / os.sysconf("SC_CLK_TCK"), pages * os.sysconf("SC_PAGE_SIZE")


def own_peak() -> int:
    """Bytes that this process had resident at most, by the kernel's own count: no look can miss it. Source: proc(5), status."""
    with suppress(OSError, IndexError, ValueError):
        return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) * 1024
    return 0


# --- the GPU


class _Utilization(ctypes.Structure):
    _fields_ = (("gpu", ctypes.c_uint), ("memory", ctypes.c_uint))


class _Memory(ctypes.Structure):
    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


class Gpu:
    """The GPU of one rank, through NVIDIA's own library. Source: NVML API reference guide, device queries."""

    def __init__(self, library: Any, local_rank: int, visible: str | None) -> None:
        self.library, self.handle = library, ctypes.c_void_p()
        _ask(library.nvmlInit_v2)
        name = visible.split(",")[local_rank].strip() if visible else str(local_rank)
        if name.isdigit():
            _ask(library.nvmlDeviceGetHandleByIndex_v2, ctypes.c_uint(int(name)), ctypes.byref(self.handle))
        else:  # GPU-8f6c...: CUDA takes these too
            _ask(library.nvmlDeviceGetHandleByUUID, ctypes.c_char_p(name.encode()), ctypes.byref(self.handle))

    def busy(self) -> float:
        """The share of the last second (or less: the driver decides) in which it worked.

        Raises: OSError where it does not tell: a part of a GPU (MIG).
        """
        told = _Utilization()
        _ask(self.library.nvmlDeviceGetUtilizationRates, self.handle, ctypes.byref(told))
        return float(min(100, told.gpu) / 100)

    def memory(self) -> tuple[int, int]:
        """Bytes in use, by whomever, and in all.

        Raises: OSError.
        """
        told = _Memory()
        _ask(self.library.nvmlDeviceGetMemoryInfo, self.handle, ctypes.byref(told))
        return int(told.used), int(told.total)


def _ask(function: Any, *args: Any) -> None:
    """Raises: OSError with NVML's number for anything but success."""
    if code := function(*args):
        raise OSError(f"NVML answers {code}")


def gpu_of(local_rank: int, environ: Mapping[str, str]) -> Gpu | None:
    """The GPU that this rank takes (comm.py: the one with its number among those it may see); None without NVML."""
    try:
        return Gpu(ctypes.CDLL("libnvidia-ml.so.1"), local_rank, environ.get("CUDA_VISIBLE_DEVICES"))
    except (OSError, AttributeError, IndexError):  # no driver, an old one, fewer GPUs than ranks
        return None


# --- beside the rank


class Meter:
    """Looks at this process and keeps its rank's file up to date, in a thread, from `start` to `settle`."""

    def __init__(self, context: RunContext, *, gpu: bool) -> None:
        self.context, self.wants_gpu = context, gpu
        ranks = context.ranks
        before = _read(context.dir.use_file(ranks.rank)) or Use(ranks.rank, ranks.node)
        self.use = replace(before, node=ranks.node, lives=before.lives + 1)
        self.gpu: Gpu | None = None
        self.cpu_s = processes(os.getpid())[0]
        self.began = self.looked = self.wrote = time.monotonic()
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True, name="meter")

    def look(self) -> None:
        """One look; adds what was used since the last one."""
        cpu_s, resident = processes(os.getpid())
        now = time.monotonic()
        since, use = now - self.looked, self.use
        self.looked = now
        use = replace(
            use,
            seconds=use.seconds + since,
            cpu_s=use.cpu_s + max(0.0, cpu_s - self.cpu_s),  # a child that nobody waited for takes its seconds along
            mem=max(use.mem, resident, own_peak()),
        )
        self.cpu_s = max(cpu_s, self.cpu_s)
        if self.gpu is not None:
            with suppress(OSError):
                used, total = self.gpu.memory()
                use = replace(use, gpu_mem=max(use.gpu_mem, used), gpu_mem_total=total)
                use = replace(use, gpu_busy_s=use.gpu_busy_s + since * self.gpu.busy(), gpu_s=use.gpu_s + since)
        self.use = use

    def write(self) -> None:
        """Brings the file up to date.

        Raises: OwnedError if the run has been started anew meanwhile: its file is no longer ours. OSError.
        """
        self.context.fence()
        self.wrote = time.monotonic()
        rundir.write_json(self.context.dir.use_file(self.use.rank), asdict(self.use))

    def _run(self) -> None:
        """Writes after 1, 2, 4 ... seconds, then every 30: also a short run that is killed leaves something."""
        with suppress(OwnedError, OSError, ValueError):
            if self.wants_gpu:
                self.gpu = gpu_of(self.context.ranks.local_rank, os.environ)
            pause = LOOK_S
            while not self.ended.wait(pause):
                before = time.thread_time()
                self.look()
                if time.monotonic() - self.wrote >= min(WRITE_S, max(LOOK_S, self.wrote - self.began)):
                    with suppress(OSError):  # a full disk: it may have room the next time
                        self.write()
                pause = max(LOOK_S, SHARE * (time.thread_time() - before))

    def settle(self) -> None:
        """Ends it, with a last look."""
        self.ended.set()
        self.thread.join(JOIN_S)
        if not self.thread.is_alive():
            with suppress(OwnedError, OSError, ValueError):
                self.look()
                self.write()


_meters: list[Meter] = []  # of this process: one, from start to settle


def start(context: RunContext, *, gpu: bool) -> None:
    """Begins to look at this process, for the rank that it is."""
    with suppress(OSError, ValueError, RuntimeError):  # RuntimeError: no thread can be had
        meter = Meter(context, gpu=gpu)
        meter.thread.start()
        _meters.append(meter)


def settle() -> None:
    """Writes down what this process has used and ends the looking; without a `start` nothing.

    Rank 0 calls it before it writes the report, so that the same folder gives the same report: what it uses after that is not
    counted.
    """
    while _meters:
        _meters.pop().settle()

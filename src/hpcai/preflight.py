"""Is this node fit?   python -m hpcai.preflight RUN_DIR [--deep]: one process a node -> RUN/preflight/<node>.json, 1 if not

slurm/preflight.sh starts it before the ranks, so that a broken node ends the job before it burns hours. What may hang (a GPU's
driver, MPI, an import from a sick file system) is asked in a child with a time limit; torch is imported nowhere else. Also the
one place that knows which build of torch a driver can run: `wheel_advice`, for the plan.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hpcai.errors import ConfigError, one_line
from hpcai.output import exit_code, steady
from hpcai.rundir import RunDir, read_json, write_json

SMI_S, TORCH_S, MPI_S, DEEP_S = (
    30.0,
    240.0,
    90.0,
    240.0,
)  # what hangs longer is broken; a first import from Lustre takes its time
SKEW_S = 5.0  # a lease counts as dead after 120 s: far below it, and far above what NTP leaves
HOT_C = 85  # before any work: under load it would slow itself down. Our own choice
SPACE_GB = 1.0  # some checkpoints and the logs
VARIANTS = ((11, 8), (12, 6), (12, 8), (13, 0))  # CUDA builds of torch 2.6 and later. Source: PyTorch's install pages, 2025
DRIVERS = ((580, "13.0"), (525, "12.0"), (450, "11.0"))  # from this driver on. Source: NVIDIA, CUDA compatibility, table 1
ELSEWHERE = "Tell the site's help desk; sbatch --exclude={node} goes elsewhere."

_TORCH = """
import json, torch
cuda = torch.version.cuda
nccl = ".".join(map(str, torch.cuda.nccl.version())) if cuda and torch.distributed.is_nccl_available() else None
print(json.dumps({"torch": torch.__version__, "cuda": cuda, "hip": torch.version.hip, "nccl": nccl,
                  "gpus": torch.cuda.device_count() if torch.cuda.is_available() else 0}))
"""
_MPI = """
import json
from mpi4py import MPI
world = MPI.COMM_WORLD
names = world.allgather(MPI.Get_processor_name())
print(json.dumps({"size": world.size, "hosts": len(set(names)), "library": MPI.Get_library_version().split(",")[0]}))
"""
_DEEP = """
import sys, time, torch, torch.distributed as dist
backend, store, rank, size, mb = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
device = torch.device("cuda", rank) if backend == "nccl" else torch.device("cpu")
wait = torch.cuda.synchronize if backend == "nccl" else lambda: None
if backend == "nccl": torch.cuda.set_device(device)
dist.init_process_group(backend, store=dist.FileStore(store, size), rank=rank, world_size=size)
x = torch.ones(mb * 2**18, device=device)
def turns(n):
    wait(); dist.barrier(); before = time.perf_counter()
    for _ in range(n): dist.all_reduce(x)
    wait(); return (time.perf_counter() - before) / n
turns(3)
print(2 * (size - 1) / size * mb * 2**20 / turns(10) / 1e9)
dist.barrier(); dist.destroy_process_group()
"""


@dataclass(frozen=True)
class Check:
    """One thing looked at. `words`: the fact and the cure, empty if it is well."""

    name: str
    ok: bool
    found: str
    wanted: str = ""
    words: str = ""


@dataclass(frozen=True)
class Answer:
    """What a child said. `fault`: why it said nothing; None: it ended well."""

    text: str
    fault: str | None = None


# --- which torch a driver can run


def torch_variant(cuda: str) -> str | None:
    """The build of torch for a driver whose newest CUDA is `cuda`: cu126 for 12.6. None: none is known.

    A build of the same major version runs too, if it is a newer one: CUDA's minor version compatibility (see DRIVERS).
    """
    have = _numbers(cuda)
    below = [v for v in VARIANTS if have and v <= have]
    same = [v for v in VARIANTS if have and v[0] == have[0]]
    best = below[-1:] if below and (not same or below[-1] in same) else same[:1]
    return "cu{}{}".format(*best[0]) if best else None


def wheel_advice(driver_cuda: str | None, wheel_cuda: str | None) -> str | None:
    """What to install instead, if the driver cannot run the installed torch; None if it can, or nobody knows.

    Args:
        driver_cuda: the newest CUDA that the driver runs (a cluster file's `cuda`).
        wheel_cuda: the CUDA that torch was built for; "" for a CPU build.
    """
    have = _numbers(driver_cuda)
    if have is None or wheel_cuda is None:
        return None
    need = _numbers(wheel_cuda)
    if wheel_cuda and (need is None or need[0] <= have[0]):
        return None
    variant = torch_variant(str(driver_cuda))
    cure = (
        f"Install its {variant} build (pip's --extra-index-url; PyTorch's install page names the index)."
        if variant
        else "No build for it is known. Ask the site for a newer driver."
    )
    built = f"is built for CUDA {wheel_cuda}" if wheel_cuda else "is a build without CUDA"
    return f"torch {built}; the GPUs' driver runs CUDA up to {driver_cuda}. {cure}"


def wheel_cuda(python: str) -> str | None:
    """The CUDA for which the torch beside that Python was built, read off its files; "" for a CPU build, None if unknown."""
    found = sorted(Path(python).parent.parent.glob("lib/python3*/site-packages/torch/version.py"))
    try:
        text = found[-1].read_text("utf-8") if found else ""
    except OSError:
        return None
    told = re.search(r"^cuda\b[^=]*=\s*(?:'([\d.]+)'|None)", text, re.MULTILINE)
    return (told[1] or "") if told else None


def _numbers(version: str | None) -> tuple[int, int] | None:
    told = re.match(r"(\d+)(?:\.(\d+))?", version or "")
    return (int(told[1]), int(told[2] or 0)) if told else None


# --- children that may hang


def ask(words: list[str], seconds: float) -> Answer:
    """Runs a command, with an end to its time. One that cannot even be killed (a driver's) is left behind."""
    try:
        pipe = subprocess.PIPE
        child = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, start_new_session=True)
    except OSError as e:
        return Answer("", f"cannot be started ({e.strerror})")
    try:
        out, err = child.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(OSError):
            os.killpg(child.pid, signal.SIGKILL)
        return Answer("", f"no answer in {seconds:g} s")
    text = out.decode(errors="replace").strip()
    if child.returncode:
        said = (err.decode(errors="replace").strip() or text).splitlines()
        return Answer(text, one_line(said[-1], 200) if said else f"ended with {child.returncode}")
    return Answer(text)


def _child(code: str, seconds: float) -> tuple[dict[str, Any], str | None]:
    """The JSON on the last line that a piece of Python prints, and why there is none."""
    answer = ask([sys.executable, "-P", "-c", code], seconds)
    if answer.fault:
        return {}, answer.fault
    try:
        value = json.loads(answer.text.splitlines()[-1])
    except (ValueError, IndexError):
        return {}, "said nothing that can be read"
    return (value, None) if isinstance(value, dict) else ({}, "said nothing that can be read")


# --- the checks


def mpi(environ: Mapping[str, str]) -> Check:
    """Every process of this step, by MPI. Comes first: there all of them are still together."""
    steps = environ.get("SLURM_STEP_NUM_TASKS") or environ.get("OMPI_COMM_WORLD_SIZE") or "1"
    wanted = int(steps) if steps.isdigit() else 1
    if importlib.util.find_spec("mpi4py") is None:
        return Check("mpi", True, "mpi4py is not installed: not tried")
    told, fault = _child(_MPI, MPI_S)
    found = fault or f"{told['size']} processes on {told['hosts']} hosts, {told['library']}"
    if wanted == 1 or told.get("size") == wanted:  # one process needs no MPI: told, not judged
        return Check("mpi", True, found, f"{wanted} processes")
    cure = "Set facts.mpi of the cluster file to a type that `srun --mpi=list` shows."
    return Check("mpi", False, found, f"{wanted} processes", f"mpi: {found}; {wanted} processes are started. {cure}")


def gpus(wanted: int, torch: Mapping[str, Any]) -> Iterator[Check]:
    """Their number, errors of memory, heat; and whether torch can use them."""
    if not wanted:
        yield Check("gpus", True, "none asked for", "0")
        return
    if torch.get("hip") and not shutil.which("nvidia-smi"):  # AMD's: torch counts them
        yield _count(int(torch["gpus"]), wanted)
        return
    fields = "index,temperature.gpu,ecc.errors.uncorrected.volatile.total,driver_version,name"
    answer = ask(["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits"], SMI_S)
    if answer.fault:
        words = f"gpus: nvidia-smi: {answer.fault}. {ELSEWHERE}"
        yield Check("gpus", False, answer.fault, str(wanted), words)
        return
    rows = [[cell.strip() for cell in line.split(",", 4)] for line in answer.text.splitlines() if line.count(",") >= 4]
    yield _count(len(rows), wanted)
    yield _all_rows("gpu_errors", rows, 2, 0, "uncorrected memory errors")
    yield _all_rows("gpu_heat", rows, 1, HOT_C, "degrees C before any work")
    if rows and torch:
        yield _driver(rows[0][3], torch, wanted)


def _count(found: int, wanted: int) -> Check:
    words = "" if found >= wanted else f"gpus={found}: {wanted} are asked for. {ELSEWHERE}"
    return Check("gpus", found >= wanted, str(found), str(wanted), words)


def _all_rows(name: str, rows: list[list[str]], column: int, most: int, what: str) -> Check:
    """A figure of each GPU against its limit. `[N/A]`: this kind has none; other words (`[Unknown Error]`) are a fault."""
    bad = [f"GPU {row[0]}: {row[column]}" for row in rows if not _below(row[column], most)]
    found = "; ".join(bad) or ", ".join(row[column] for row in rows)
    words = f"{name}: {', '.join(bad)} {what}; up to {most} is taken. {ELSEWHERE}" if bad else ""
    return Check(name, not bad, found, f"<= {most}", words)


def _below(cell: str, most: int) -> bool:
    return int(cell) <= most if cell.isdigit() else cell in ("N/A", "[N/A]", "[Not Supported]")


def _driver(version: str, torch: Mapping[str, Any], wanted: int) -> Check:
    header = re.search(r"CUDA\D*Version\s*:\s*(\d+\.\d+)", ask(["nvidia-smi"], SMI_S).text)
    number = _numbers(version) or (0, 0)
    runs = header[1] if header else next((cuda for least, cuda in DRIVERS if number[0] >= least), None)
    found = f"driver {version} runs CUDA up to {runs or 'unknown'}; torch is built for {torch['cuda'] or 'none'}"
    advice = wheel_advice(runs, torch["cuda"] or "")
    if not advice and torch["gpus"] < wanted:
        advice = f"torch uses {torch['gpus']} of {wanted} GPUs. Look at CUDA_VISIBLE_DEVICES and at the job's log."
    return Check("driver", not advice, found, f"{wanted} GPUs usable", f"driver={version}: {advice}" if advice else "")


def folder(name: str, path: Path, space_gb: float) -> Check:
    """It can be written, and holds so much more."""
    beside = path / f".preflight-{_node()}-{os.getpid()}"
    wanted = f"writable, {space_gb:g} GB free"
    try:
        path.mkdir(parents=True, exist_ok=True)
        with beside.open("wb") as f:
            f.write(bytes(2**20))
            f.flush()
            os.fsync(f.fileno())
        free = shutil.disk_usage(path).free / 1e9
    except OSError as e:
        words = f"{name}={path}: cannot be written ({e.strerror}). Free space or quota, mend its rights, or choose another."
        return Check(name, False, str(e.strerror), wanted, words)
    finally:
        with contextlib.suppress(OSError):
            beside.unlink()
    found = f"{free:.3g} GB free"
    words = "" if free >= space_gb else f"{name}={path}: {found}, {space_gb:g} are needed. Free space or choose another."
    return Check(name, free >= space_gb, found, wanted, words)


def clock(path: Path) -> Check:
    """This node's clock against the time that the shared file system gives a new file. Where the client stamps, they agree."""
    beside = path / f".clock-{_node()}-{os.getpid()}"
    wanted = f"within {SKEW_S:g} s"
    try:
        beside.touch()
        before = time.time()
        os.utime(beside)
        after, stamp = time.time(), beside.stat().st_mtime
    except OSError as e:
        return Check("clock", True, f"not tried ({e.strerror})", wanted)  # the folder's own check says so
    finally:
        with contextlib.suppress(OSError):
            beside.unlink()
    skew = max(0.0, before - stamp) - max(0.0, stamp - after)  # a file system may take its time: that is no skew
    ok = abs(skew) <= SKEW_S
    words = "" if ok else f"clock={skew:+.0f} s: against the file system's; {SKEW_S:g} s are taken. {ELSEWHERE}"
    return Check("clock", ok, f"{skew:+.1f} s", wanted, words)


def versions(torch: Mapping[str, Any], fault: str | None) -> Check:
    """Python's and torch's; torch must be there."""
    python = f"Python {platform.python_version()}"
    if fault:
        words = f"torch: cannot be imported by {sys.executable} ({fault}). Build the environment that cluster.python names."
        return Check("versions", False, f"{python}, no torch: {fault}", "torch", words)
    return Check("versions", True, f"{python}, torch {torch['torch']}, CUDA {torch['cuda']}, NCCL {torch['nccl']}", "torch")


def bandwidth(gpus: int, backend: str = "nccl", mb: int = 256) -> Check:
    """GB/s of an all-reduce among the GPUs of this node: told, not judged; a fault if it does not run.

    Source: nccl-tests' bus bandwidth, 2 (n - 1) / n x bytes / seconds.
    """
    if gpus < 2:
        return Check("bandwidth", True, f"{gpus} GPU: nothing to measure")
    with tempfile.TemporaryDirectory() as store:
        words = [sys.executable, "-P", "-c", _DEEP, backend, f"{store}/store"]
        others = [subprocess.Popen([*words, str(r), str(gpus), str(mb)], stdout=-3, stderr=-3) for r in range(1, gpus)]
        answer = ask([*words, "0", str(gpus), str(mb)], DEEP_S)
        for other in others:
            other.kill()
    if answer.fault:
        return Check("bandwidth", False, answer.fault, "runs", f"bandwidth: {backend}: {answer.fault}. {ELSEWHERE}")
    return Check("bandwidth", True, f"{float(answer.text.splitlines()[-1]):.3g} GB/s ({backend}, {gpus} GPUs)", "runs")


# --- the verdict


def examine(run: RunDir, wanted: int, *, deep: bool) -> list[Check]:
    """Every check, in an order in which none waits for another node but the first."""
    found = [mpi(os.environ)]
    found += [folder("run_dir", run.path, SPACE_GB), folder("tmp", Path(tempfile.gettempdir()), 0.1), clock(run.path)]
    torch, fault = _child(_TORCH, TORCH_S)
    found += [versions(torch, fault), *gpus(wanted, torch)]
    if deep:
        found.append(bandwidth(wanted))
    return found


def main(argv: list[str]) -> int:
    """One node; returns 0 if it is fit."""
    parser = argparse.ArgumentParser(prog="python -m hpcai.preflight", allow_abbrev=False)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--gpus", type=int, metavar="N", help="GPUs wanted on this node; left out: as the run's plan says")
    parser.add_argument("--deep", action="store_true", help="also measure the bandwidth of NCCL among this node's GPUs")
    options = parser.parse_args(argv)
    return exit_code(lambda: _verdict(options), "preflight", "Free space or mend the folder, then start it again.")


def _verdict(options: argparse.Namespace) -> int:
    run, node = RunDir(options.run_dir.absolute()), _node()
    try:
        wanted = options.gpus if options.gpus is not None else int(read_json(run.plan)["resources"]["gpus_per_node"])
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise ConfigError(f"RUN_DIR={run.path.name}: holds no plan.json that can be read. Give a run, or --gpus N.") from e
    checks = [_of(node, check) for check in examine(run, wanted, deep=options.deep)]
    fit = all(check.ok for check in checks)
    for check in checks:
        if not check.ok:
            print(one_line(f"node={node}: {check.words}"), file=sys.stderr)
    verdict = {"node": node, "job": os.environ.get("SLURM_JOB_ID"), "time": round(time.time(), 3), "ok": fit}
    try:
        write_json(run.preflight / f"{node}.json", verdict | {"checks": [asdict(check) for check in checks]})
    except OSError as e:
        print(f"node={node}: its verdict could not be written ({e.strerror}).", file=sys.stderr)
        return 1
    if fit:
        print(f"node={node}: fit ({len(checks)} checks)")
    return 0 if fit else 1


def _of(node: str, check: Check) -> Check:
    return Check(check.name, check.ok, check.found, check.wanted, check.words.replace("{node}", node))


def _node() -> str:
    """Slurm's name of this node, fit for a file's name."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", os.environ.get("SLURMD_NODENAME") or platform.node()) or "node"


if __name__ == "__main__":
    steady()
    sys.exit(main(sys.argv[1:]))

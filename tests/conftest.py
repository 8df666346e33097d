"""What all tests share: tiny data, a launcher to call as a user does, and the rule that a demanded test may not be skipped.

HPCAI_REQUIRE=browser,mpi (or `all`: every marker but gpu) turns the skip of a test so marked into a failure.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

import hpcai
from hpcai import lease
from hpcai.rundir import RunDir

TIMEOUT_S = 90.0
HERE = Path(__file__).parent


def pytest_configure() -> None:
    """A gate says the same of the same code, whoever starts it.

    Property tests draw the same examples each time (HYPOTHESIS_PROFILE=explore draws new ones), and signals that nohup or a
    shell's & have ignored are as at a prompt, for our children too.
    """
    import hypothesis  # at use: pytest rewrites its asserts first

    hypothesis.settings.register_profile("gate", derandomize=True, deadline=None, database=None)
    hypothesis.settings.register_profile("explore", deadline=None, print_blob=True)
    hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "gate"))
    for signum, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(signum) == signal.SIG_IGN:
            signal.signal(signum, usual)


# --- the rule of HPCAI_REQUIRE


def _missing_extra(module: str) -> str | None:
    return None if importlib.util.find_spec(module) else f"{module} is not installed"


NEEDS: dict[str, Callable[[], str | None]] = {
    "browser": lambda: importlib.import_module("test_report_browser").missing(),  # at use: it imports much
    "imaging": lambda: _missing_extra("monai"),
    "mpi": lambda: None if shutil.which("mpiexec") else "mpiexec is not installed",
    "slurm": lambda: importlib.import_module("slurm_bed").missing(),
    "gpu": lambda: None if any(Path("/proc/driver/nvidia/gpus").glob("*")) else "no CUDA device",
}


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker, missing in NEEDS.items():
        if item.get_closest_marker(marker) and (why := missing()):
            pytest.skip(why)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report: Any = yield
    wanted = set(filter(None, os.environ.get("HPCAI_REQUIRE", "").split(",")))
    marks = {mark.name for mark in item.iter_markers()}
    demanded = marks & wanted or ("all" in wanted and "gpu" not in marks)
    if report.skipped and demanded and not hasattr(report, "wasxfail"):
        report.outcome, report.longrepr = "failed", f"HPCAI_REQUIRE={','.join(sorted(wanted))}: skipped: {report.longrepr[2]}"
    return report  # type: ignore[return-value]


@functools.cache
def _wants_slurm(file: Path) -> bool:
    try:
        return "mark.slurm" in file.read_text("utf-8")
    except OSError:
        return False


# The files of one of two lanes, each with a bed of its own: chosen so that both take as long.
WHOLE_RUNS = {"test_slurm_runs.py", "test_slurm_nodes.py", "test_pack.py", "test_nemesis.py"}


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A Slurm a lane: files with tests marked slurm go to one of two workers, any other test to whichever is free.

    xdist's own mark for this, xdist_group, does nothing here: it sets a node's `_nodeid`, which pytest 9.2 does not read.
    """
    if config.getvalue("dist") != "load":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class TwoSlurms(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = config.rootpath / nodeid.partition("::")[0]
            if not _wants_slurm(file):
                return nodeid
            return "slurm: whole runs" if file.name in WHOLE_RUNS else "slurm: the rest"

    return TwoSlurms(config, log)


def until(condition: Callable[[], Any], timeout: float = 60.0) -> Any:
    """Polls `condition` to its first true value; a busy machine may take its time."""
    before = time.monotonic()
    while not (value := condition()):
        assert time.monotonic() - before < timeout, "nothing came"
        time.sleep(0.01)
    return value


# --- tiny data


@pytest.fixture(scope="session")
def tiny_npz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 + 24 + 24 images of 8x8 pixel in two classes that a few steps can tell apart."""
    import numpy as np

    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    for split, n in (("train", 48), ("val", 24), ("test", 24)):
        y = np.arange(n) % 2
        arrays[f"{split}_images"] = (rng.integers(0, 120, (n, 8, 8)) + y[:, None, None] * 40).astype(np.uint8)
        arrays[f"{split}_labels"] = y[:, None]
    path = tmp_path_factory.mktemp("data") / "tiny.npz"
    np.savez(path, **arrays)
    return path


def tiny_words(npz: Path) -> dict[str, str]:
    """A whole small config as overrides, by key."""
    return {
        "name": "tiny", "data.path": str(npz), "data.labels": "[no,yes]", "data.name": "Tiny", "data.licence": "CC0",
        "data.identifiers": "none",
        "model.norm": "group", "model.width": "8", "trainer.epochs": "2", "trainer.batch_size": "16",
        "trainer.log_every": "1", "resources.cpus_per_task": "1",
    }  # fmt: skip


# --- the launcher as a user


@dataclass(frozen=True)
class Done:
    """What a shell sees."""

    rc: int
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        """stderr, by line."""
        return self.err.splitlines()


@dataclass
class Started:
    """A launcher that runs, in a session of its own, and where its words go."""

    process: subprocess.Popen[bytes]
    out_file: Path
    err_file: Path

    def wait(self, timeout: float = TIMEOUT_S) -> Done:
        """Its end; a negative code is told as a shell tells it."""
        rc = self.process.wait(timeout)
        return Done(rc if rc >= 0 else 128 - rc, self.out_file.read_text("utf-8"), self.err_file.read_text("utf-8"))

    def until(self, condition: Callable[[], Any], timeout: float = 30.0) -> Any:
        """Waits for `condition`, while the launcher lives."""
        before = time.monotonic()
        while not (value := condition()):
            assert self.process.poll() is None, (self.out_file.read_text("utf-8"), self.err_file.read_text("utf-8"))
            assert time.monotonic() - before < timeout, "nothing came"
            time.sleep(0.01)
        return value


@dataclass
class Launcher:
    """Calls `python -m hpcai.run` with a small config, in a folder of its own, on a copy of the package."""

    npz: Path
    home: Path
    package: Path
    sessions: list[int] = field(default_factory=list)
    job: dict[str, Any] = field(default_factory=dict)  # see light_job.py

    @property
    def runs(self) -> Path:
        """runs_dir, where nothing else is said."""
        return self.home / "runs"

    def words(self, *overrides: str, **keys: str) -> list[str]:
        """The small config's words; `overrides` replace those of the same key, `None` leaves one out."""
        words = tiny_words(self.npz) | {"runs_dir": str(self.runs)}
        return [f"{key}='{value}'" if "/" in value else f"{key}={value}" for key, value in words.items()
                if not any(o.partition("=")[0].lstrip("+~") == key for o in overrides)] + list(overrides)  # fmt: skip

    def env(self, **more: str) -> dict[str, str]:
        """The caller's, with the copy of the package first."""
        return {**os.environ, "PYTHONPATH": str(self.package), "HPCAI_TEST": json.dumps(self.job), **more}

    def start(self, *overrides: str, module: str = "hpcai.run", bare: bool = False, **env: str) -> Started:
        """Starts it; `bare`: with these words alone."""
        number = len(self.sessions)
        out, err = self.home / f"{number}.out", self.home / f"{number}.err"
        words = list(overrides) if bare else self.words(*overrides)
        with out.open("wb") as o, err.open("wb") as e:
            command = [sys.executable, "-m", module, *words]
            process = subprocess.Popen(
                command, stdout=o, stderr=e, stdin=subprocess.DEVNULL,
                env=self.env(**env), cwd=self.home, start_new_session=True,
            )  # fmt: skip
        self.sessions.append(process.pid)
        return Started(process, out, err)

    def __call__(self, *overrides: str, timeout: float = TIMEOUT_S, **more: Any) -> Done:
        """Starts it and waits for its end."""
        return self.start(*overrides, **more).wait(timeout)

    def worker(self, run: RunDir, timeout: float = TIMEOUT_S, **env: str) -> Done:
        """`python -m hpcai.worker RUN`, as a person types it."""
        return self.start(str(run.path), module="hpcai.worker", bare=True, **env).wait(timeout)

    def run_dir(self, name: str = "tiny") -> RunDir:
        """The one run of that name."""
        (folder,) = self.runs.glob(f"{name}-*")
        return RunDir(folder)

    def sweep_dir(self) -> RunDir:
        """The one sweep."""
        (folder,) = (self.runs / "sweeps").iterdir()
        return RunDir(folder)

    def members(self) -> dict[str, RunDir]:
        """The one sweep's runs by label, whether they have begun or not; nothing before it is written."""
        path = next(iter((self.runs / "sweeps").glob("*/members.json")), None)
        members = json.loads(path.read_bytes())["members"] if path else []
        return {m["label"] or m["job"]: RunDir(Path(m["run_dir"])) for m in members}

    def states(self) -> dict[str, str]:
        """Their states by label."""
        return {label: lease.read_state(run).state for label, run in self.members().items()}

    def prepared(self) -> RunDir | None:
        """The run's folder once it has a life."""
        folders = list(self.runs.glob("tiny-*"))
        return RunDir(folders[0]) if folders and lease.last_life(RunDir(folders[0])) else None

    def step(self) -> int:
        """The last step on record, 0 before."""
        run = self.prepared()
        return (lease.read_state(run).step or 0) if run else 0

    def ranks(self, run: RunDir | None = None) -> list[psutil.Process]:
        """The ranks that live, by rank."""
        run = run or self.run_dir()
        told = lease.records(run, lease.last_life(run))
        begun = [r for rank in sorted(told) for r in told[rank] if r["event"] == "begin"]
        alive = [psutil.Process(r["pid"]) for r in begun if psutil.pid_exists(r["pid"])]
        return [p for p in alive if p.status() != psutil.STATUS_ZOMBIE]

    def clean(self) -> None:
        """Ends every process of every session that was started here."""
        for session in self.sessions:
            for process in processes(session):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()


def processes(session: int) -> list[psutil.Process]:
    """Those of one session, ours alone: each launcher starts its own."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
            if process.pid and os.getsid(process.pid) == session:
                found.append(process)
    return found


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package, so that an edit of the checkout changes no run half way."""
    return _copied(tmp_path_factory.mktemp("package"))


@pytest.fixture(scope="session")
def light_package(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, with light_job.py for every job."""
    copy = tmp_path_factory.mktemp("light") / "site"
    shutil.copytree(package, copy)
    for job in (copy / "hpcai/jobs").glob("[a-z]*.py"):
        shutil.copyfile(HERE / "light_job.py", job)
    return copy


def _copied(to: Path) -> Path:
    source = Path(hpcai.__file__).parent
    shutil.copytree(source, to / "hpcai", ignore=shutil.ignore_patterns("__pycache__", "*.npz"))
    return to


def _launcher(npz: Path, home: Path, package: Path) -> Iterator[Launcher]:
    launcher = Launcher(npz, home, package)
    yield launcher
    launcher.clean()


@pytest.fixture
def launch(tiny_npz: Path, tmp_path: Path, light_package: Path) -> Iterator[Launcher]:
    """The launcher with a job that only counts: what a test of the launcher needs."""
    yield from _launcher(tiny_npz, tmp_path, light_package)


@pytest.fixture
def train(tiny_npz: Path, tmp_path: Path, package: Path) -> Iterator[Launcher]:
    """The launcher with the real training."""
    yield from _launcher(tiny_npz, tmp_path, package)


@pytest.fixture(scope="session")
def bed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A real Slurm (slurm_bed.SlurmBed) for the session, and SLURM_CONF in our environment and our children's."""
    kit = importlib.import_module("slurm_bed")
    with kit.session_bed() as bed:
        yield bed
        if request.session.testsfailed:
            kit.keep_logs(bed, tmp_path_factory.getbasetemp() / "slurm-log")


@pytest.fixture
def slurm(bed: Any) -> Any:
    """The bed with an empty queue and free nodes, whatever the test before has left."""
    bed.clear()
    return bed


@pytest.fixture(scope="session")
def manner_package(light_package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The light package with a job that reads its manner off a file beside its run: a batch job gets no variable of ours.

    It notes each step in `audit`, so that what two writers have done can be seen.
    """
    copy = tmp_path_factory.mktemp("manner") / "site"
    shutil.copytree(light_package, copy, ignore=shutil.ignore_patterns("__pycache__"))
    asked = 'json.loads(os.environ.get("HPCAI_TEST", "{}"))'
    for job in (copy / "hpcai/jobs").glob("[a-z]*.py"):
        text = job.read_text()
        assert asked in text
        text = text.replace(asked, 'rundir.read_json(run.dir.path.parent / "manner.json")')
        write = "        rundir.write_json(count, step)\n"
        assert write in text
        gpu = 'os.environ.get("CUDA_VISIBLE_DEVICES")'
        facts = (
            f'{{"life": run.life, "step": step, "time": time.time(), "gpu": {gpu}, "node": os.environ.get("SLURMD_NODENAME")}}'
        )
        note = f'        rundir.append_lines(run.dir.path / "audit", [{facts}])\n'
        job.write_text(text.replace(write, note + write))
    return copy


@pytest.fixture
def bench(tiny_npz: Path, tmp_path: Path, manner_package: Path, slurm: Any) -> Iterator[Launcher]:
    """The launcher with an empty queue behind it."""
    launcher = Launcher(tiny_npz, tmp_path, manner_package)
    importlib.import_module("slurm_kit").manner(launcher)
    yield launcher
    launcher.clean()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """small_disk("size=2m"): a file system of its own, or a skip where one may not be mounted."""
    mounted: list[Path] = []

    def mount(options: str) -> Path:
        folder = tmp_path / f"disk{len(mounted)}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("mount is not permitted here (run as root)")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)

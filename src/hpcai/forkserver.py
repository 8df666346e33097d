"""One process that imported the job once and forks the ranks of a sweep's members.   request -> fork -> controller -> ranks

    driver -- {"run": ..., "life": 3, ...} --> server -- fork --> submitit's controller -- fork --> rank: worker.main([RUN])
           <-- {"pid": 4711} --------------

The ranks do what `python -m hpcai.worker RUN` does; only the start of an interpreter and its imports are spared. A fork is safe
here because the server has one thread, touches no GPU, and imports without running anything. Whatever does not fit (GPUs,
other threads, other code) is started the ordinary way, by submit.start. A killed server ends nothing that it has started.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import select
import signal
import socket
import subprocess
import sys
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

from hpcai import worker
from hpcai.context import HELD_SIGNALS, STOP_SIGNALS
from hpcai.output import steady
from hpcai.rundir import RunDir

REAP_S = 0.2  # the server looks for ended children so often


@dataclass(frozen=True)
class Request:
    """One member to start: its folder and life, ranks, and the time that submitit's controller gives it."""

    run: str
    life: int
    ranks: int
    timeout_min: int
    signal_delay_s: int
    pythonpath: str


class Client:
    """The driver's end. `start` returns the controller's pid, or None where the server is gone or could not import the jobs."""

    def __init__(self, process: subprocess.Popen[bytes], link: socket.socket, code: Path, threads: int) -> None:
        self.process, self.link, self.code, self.threads = process, link, code, threads
        self._words = link.makefile("rb")

    def start(self, request: Request) -> int | None:
        """Asks for one member; waits for the first answer until the jobs are imported."""
        try:
            self.link.sendall(json.dumps(asdict(request)).encode() + b"\n")
            answer = self._words.readline()
            return int(json.loads(answer)["pid"]) if answer else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def close(self) -> None:
        """The server ends; what it has started goes on."""
        self._words.close()
        self.link.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(10)


def open_client(code: Path, pythonpath: str, threads: int, jobs: list[str]) -> Client:
    """Starts a server on a sweep's frozen `code`, for ranks of so many threads; the caller keeps signals and output apart."""
    ours, theirs = socket.socketpair()
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")  # read once, when torch and numpy are imported
    env = {**os.environ, **{name: str(threads) for name in names}, "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    env |= {"PYTHONPATH": pythonpath, "CUDA_VISIBLE_DEVICES": ""}
    words = [sys.executable, "-P", "-u", "-m", "hpcai.forkserver", str(theirs.fileno()), *jobs]
    process = subprocess.Popen(words, env=env, pass_fds=[theirs.fileno()])
    theirs.close()
    return Client(process, ours, code, threads)


def serve(link: socket.socket, jobs: list[str]) -> int:
    """The server: imports `jobs`, then forks a controller a request, until the driver's end is closed."""
    import submitit.local.local  # noqa: F401  (each controller needs it)

    for name in jobs:
        worker.load_job(name)
    gc.collect()
    gc.freeze()  # the collector then leaves the shared pages alone
    for line in _requests(link):
        pid = os.fork()
        if pid == 0:
            _controller(link, Request(**json.loads(line)))
        link.sendall(json.dumps({"pid": pid}).encode() + b"\n")
    return 0


def _requests(link: socket.socket) -> Any:
    """Whole lines, with a look at the ended children in between; ends with the driver."""
    held = b""
    while True:
        while b"\n" in held:
            line, _, held = held.partition(b"\n")
            yield line
        if select.select([link], [], [], REAP_S)[0]:
            data = link.recv(65536)
            if not data:
                return
            held += data
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def _controller(link: socket.socket, asked: Request) -> NoReturn:
    """The forked child: submitit's own controller, whose ranks are forked too. Never returns."""
    code = 1
    try:
        link.close()
        folder = RunDir(Path(asked.run)).submitit
        folder.mkdir(exist_ok=True)
        _speak_to(folder / "controller.log", folder / "controller.log")
        os.environ.update(
            SUBMITIT_LOCAL_NTASKS=str(asked.ranks), SUBMITIT_LOCAL_COMMAND="", SUBMITIT_LOCAL_WITH_SHELL="",
            SUBMITIT_LOCAL_TIMEOUT_S=str(60 * asked.timeout_min), SUBMITIT_LOCAL_SIGNAL_DELAY_S=str(asked.signal_delay_s),
            SUBMITIT_LOCAL_NODEID="0", SUBMITIT_LOCAL_JOB_NUM_NODES="1", SUBMITIT_STDERR_TO_STDOUT="",
            SUBMITIT_EXECUTOR="local", HPCAI_LIFE=str(asked.life), PYTHONPATH=asked.pythonpath,
        )  # fmt: skip
        _forking_controller(asked, folder).run()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        worker.leave(code)


def _forking_controller(asked: Request, folder: Path) -> Any:
    from submitit.core.utils import JobPaths
    from submitit.local.local import Controller

    class ForkingController(Controller):  # type: ignore[misc]  # submitit has no types
        """submitit's, with ranks that are forked where it would start `command`."""

        def start_tasks(self) -> None:
            for rank in range(self.ntasks):
                paths = JobPaths(self.folder, self.pid, rank)
                pid = os.fork()
                if pid == 0:
                    _rank(asked, rank, self.pid, paths.stdout, paths.stderr)
                self.tasks.append(_Child(pid))

    return ForkingController(folder)


def _rank(asked: Request, rank: int, job: str, out: Path, err: Path) -> NoReturn:
    """What `python -m hpcai.worker RUN` does, in this process. Never returns."""
    code = 1
    try:
        for signum in STOP_SIGNALS:
            signal.signal(signum, signal.SIG_DFL)  # the worker installs its own at once
        _speak_to(out, err)
        steady()
        os.environ.update(SUBMITIT_LOCAL_LOCALID=str(rank), SUBMITIT_LOCAL_GLOBALID=str(rank), SUBMITIT_LOCAL_JOB_ID=job)
        code = worker.main([asked.run])
    except BaseException:
        traceback.print_exc()
    finally:
        worker.leave(code)


def _speak_to(out: Path, err: Path) -> None:
    """Standard input is nothing, output and error are these files from here on."""
    streams: list[tuple[int, int]] = [(0, os.open(os.devnull, os.O_RDONLY))]
    streams += [(fd, os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640)) for fd, path in ((1, out), (2, err))]
    for fd, to in streams:
        os.dup2(to, fd)
        os.close(to)


class _Child:
    """What submitit's controller needs of a process that it watches."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.code: int | None = None

    def poll(self) -> int | None:
        """Its exit code, None while it runs."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
        return self.code

    def send_signal(self, signum: int) -> None:
        """Sends it, unless it has ended: its pid may be another's by now."""
        if self.poll() is None:
            os.kill(self.pid, signum)


def main(argv: list[str]) -> int:
    """`python -m hpcai.forkserver FD JOB...`; started by open_client alone."""
    signal.pthread_sigmask(signal.SIG_BLOCK, HELD_SIGNALS)  # as the controllers that it forks: see submit.apart
    with socket.socket(fileno=int(argv[0])) as link:
        return serve(link, argv[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

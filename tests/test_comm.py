"""Real ranks: processes that meet, add up, agree and part."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from training_kit import ALONE

from hpcai import comm, lease, rundir
from hpcai.comm import Group, MpiGroup, process_group, seed_everything
from hpcai.context import Ranks, RunContext, Stop
from hpcai.errors import RunError, Stopped
from hpcai.rundir import RunDir
from hpcai.worker import leave

pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")  # Python 3.12's; nothing runs in our threads
torch.set_num_threads(1)
ENDINGS = Path(__file__).parents[1] / "benchmarks" / "endings.py"


def context(run: RunDir, rank: int, size: int, stop: Stop | None = None) -> RunContext:
    return RunContext(run, Ranks(rank, rank, size), 1, stop or Stop())


def on_processes(
    size: int,
    folder: Path,
    work: Callable[[Group], Any],
    patience: float = 60,
    place: Callable[[RunDir, int, int], RunContext] = context,
    mpi: bool = False,
) -> list[str]:
    """What `work` returns on each of `size` real ranks, as text; a rank that raises fails the test."""
    run = RunDir(folder)
    lease.take(run, size)
    pids = []
    for rank in range(size):
        if not (pid := os.fork()):
            try:
                with process_group(place(run, rank, size), gpus=0, seed=0, deterministic=True, mpi=mpi) as group:
                    out = json.dumps(work(group))
                (folder / f"out{rank}").write_text(out)
            except BaseException as e:
                (folder / f"out{rank}").write_text(f"{type(e).__name__}: {e}")
                leave(1)
            leave(0)
        pids.append(pid)
    before, codes = time.monotonic(), {}
    while len(codes) < size and time.monotonic() - before < patience:
        for pid in pids:
            if pid not in codes and os.waitpid(pid, os.WNOHANG)[0]:
                codes[pid] = True
        time.sleep(0.005)
    for pid in set(pids) - codes.keys():
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert len(codes) == size, "a rank hung"
    return [(folder / f"out{rank}").read_text() for rank in range(size)]


def test_one_rank_starts_no_process_group(tmp_path: Path) -> None:
    with process_group(context(RunDir(tmp_path), 0, 1), gpus=0, seed=0, deterministic=False) as group:
        assert (group.rank, group.size, group.first) == (0, 1, True)
        assert not torch.distributed.is_initialized()
        group.barrier()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3])
def test_ranks_add_up_agree_and_stack(tmp_path: Path, size: int) -> None:
    def work(group: Group) -> Any:
        summed = group.sum_(torch.tensor([group.rank + 1.0, 0.1]))
        agreed = group.from_first(0.1 + group.rank)
        stacked = group.stack(torch.tensor([group.rank, 7], dtype=torch.uint8))
        group.barrier()
        return summed.tolist(), agreed, stacked.tolist(), group.first

    outs = [json.loads(out) for out in on_processes(size, tmp_path, work)]
    for rank, (summed, agreed, stacked, first) in enumerate(outs):
        assert summed[0] == size * (size + 1) / 2 and summed == outs[0][0]
        assert agreed == 0.1  # in float64: no rank sees a rounded score
        assert stacked == [[r, 7] for r in range(size)]
        assert first == (rank == 0)


@pytest.mark.slow
def test_ranks_find_each_other_without_a_host_name(tmp_path: Path) -> None:
    def work(group: Group) -> Any:
        return os.environ["GLOO_SOCKET_IFNAME"]

    assert on_processes(2, tmp_path, work) == ['"lo"', '"lo"']


@pytest.mark.slow
def test_a_rank_that_raises_takes_the_others_with_it(tmp_path: Path) -> None:
    def work(group: Group) -> Any:
        if group.rank == 1:
            raise ValueError("here")
        return group.sum_(torch.ones(1)).item()

    before = time.monotonic()
    first, second = on_processes(2, tmp_path, work)
    assert second == "ValueError: here" and first.startswith(("RuntimeError", "DistBackendError"))
    assert time.monotonic() - before < 30  # and not gloo's time-out


def test_a_rank_that_never_comes_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comm, "TIMEOUT_S", 0.5)
    lease.take(RunDir(tmp_path), 2)
    with pytest.raises(RunError, match=r"^run\.rank=1: did not come within 0\.5 s"):
        enter(context(RunDir(tmp_path), 0, 2))
    (tmp_path / "lives" / "0001" / "address.json").unlink()
    with pytest.raises(RunError, match=r"^run\.rank=1: rank 0 gave no address within 0\.5 s"):
        enter(context(RunDir(tmp_path), 1, 2))


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_waits_for_others_hears_a_signal(tmp_path: Path, rank: int) -> None:
    lease.take(RunDir(tmp_path), 2)
    stop = Stop()
    stop.signum = signal.SIGTERM
    with pytest.raises(Stopped) as caught:
        enter(context(RunDir(tmp_path), rank, 2, stop))
    assert caught.value.code == 143


def enter(run: RunContext) -> None:
    try:
        with process_group(run, gpus=0, seed=0, deterministic=False):
            raise AssertionError("met nobody")
    finally:
        os.environ.pop("GLOO_SOCKET_IFNAME", None)


def test_asking_for_a_gpu_where_there_is_none_is_one_sentence(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    group = process_group(context(RunDir(tmp_path), 0, 1), gpus=1, seed=0, deterministic=False)
    with pytest.raises(RunError, match=r"^resources\.gpus_per_node=1: torch .* sees 0 here\. "), group:
        pass


def test_seeds_reach_every_generator_and_differ_between_ranks() -> None:
    def draws(seed: int, rank: int) -> tuple[float, float, float]:
        seed_everything(seed, rank)
        return torch.rand(()).item(), float(np.random.random()), random.random()

    assert draws(3, 0) == draws(3, 0)
    different = [draws(3, 0), draws(3, 1), draws(4, 0), draws(2**31 - 1, 1023)]
    for each in zip(*different, strict=True):
        assert len(set(each)) == len(different)


def test_the_group_alone_is_the_identity() -> None:
    x = torch.arange(3.0)
    assert ALONE.sum_(x) is x and ALONE.from_first(0.1) == 0.1 and ALONE.stack(x).tolist() == [[0, 1, 2]]


@pytest.mark.slow
def test_no_good_run_hangs_at_its_end() -> None:
    done = subprocess.run([sys.executable, ENDINGS, "10"], capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("10 of 10 endings within 20 s")


@pytest.mark.slow
def test_an_ending_that_hangs_is_counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("endings", ENDINGS)
    assert spec and spec.loader
    endings = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(endings)
    monkeypatch.setattr(endings, "PATIENCE_S", 1.0)
    monkeypatch.setattr(endings, "rank", lambda run, life, number: time.sleep(60 * number) or os._exit(0))
    assert not endings.one_ending(RunDir(tmp_path / "a"))
    monkeypatch.setattr(endings, "rank", lambda run, life, number: os._exit(number))
    assert not endings.one_ending(RunDir(tmp_path / "b"))


# --- the way to rank 0


def two_nodes(run: RunDir, rank: int, size: int, stop: Stop | None = None, *, launcher: str = "srun") -> RunContext:
    """Each rank on a node of its own, as far as it knows."""
    return RunContext(run, Ranks(rank, 0, size, rank, size, launcher), 1, stop or Stop())


def listener() -> socket.socket:
    """Listens on loopback at a port of its own, and never answers."""
    return socket.create_server(("127.0.0.1", 0))


def say(run: RunDir, *hosts: str, port: int, token: str = "t") -> None:
    """An address.json of life 1."""
    lease.take(run, 2)
    rundir.write_json(run.lives / "0001" / "address.json", {"hosts": hosts, "port": port, "token": token})


def test_a_host_name_that_leads_nowhere_or_to_itself_hinders_no_rank_of_another_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "no.such.host.invalid")
    monkeypatch.delenv("SLURMD_NODENAME", raising=False)
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)

    def work(group: Group) -> Any:
        return os.environ["GLOO_SOCKET_IFNAME"], group.sum_(torch.ones(1)).item()

    first, second = (json.loads(out) for out in on_processes(2, tmp_path, work, place=two_nodes))
    assert first == second and first[1] == 2
    assert first[0] in [name for name, _ in comm._interfaces()]
    told = rundir.read_json(tmp_path / "lives" / "0001" / "address.json")
    assert set(told["hosts"]) <= {address for _, address in comm._interfaces()} and not any(
        "invalid" in h for h in told["hosts"]
    )


INTERFACES = [("lo", "127.0.0.1"), ("docker0", "172.17.0.1"), ("eth0", "10.0.0.5"), ("ib0", "10.1.0.5"), ("ib0", "fd00::5")]


@pytest.mark.parametrize(("env", "named", "order"), [
    ({}, "127.0.1.1", ["172.17.0.1", "10.0.0.5", "10.1.0.5", "fd00::5"]),  # Debian's /etc/hosts: no help, and no harm
    ({}, "10.0.0.5", ["10.0.0.5", "172.17.0.1", "10.1.0.5", "fd00::5"]),
    ({"NCCL_SOCKET_IFNAME": "ib"}, "10.0.0.5", ["10.1.0.5", "fd00::5", "10.0.0.5", "172.17.0.1"]),
    ({"GLOO_SOCKET_IFNAME": "ib0"}, "127.0.1.1", ["10.1.0.5", "fd00::5", "172.17.0.1", "10.0.0.5"]),
    ({"NCCL_SOCKET_IFNAME": "^docker,lo"}, "10.0.0.5", ["10.0.0.5", "172.17.0.1", "10.1.0.5", "fd00::5"]),
])  # fmt: skip
def test_addresses_are_told_likeliest_first_and_never_loopback(
    monkeypatch: pytest.MonkeyPatch, env: dict[str, str], named: str, order: list[str]
) -> None:
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "SLURMD_NODENAME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(comm, "_interfaces", lambda: INTERFACES)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: [(2, 1, 6, "", (named, 0))])
    assert comm._addresses() == order


def test_a_machine_with_loopback_alone_tells_that(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comm, "_interfaces", lambda: INTERFACES[:1])
    assert comm._addresses() == ["127.0.0.1"]


def test_each_node_takes_the_interface_that_led_to_rank_0(monkeypatch: pytest.MonkeyPatch) -> None:
    told = [
        {"node": 0},
        {"node": 0, "own": "10.0.0.5", "peer": "10.0.0.5"},  # its own node: says nothing of the network between
        {"node": 1, "own": "10.1.0.6", "peer": "10.1.0.5"},
        {"node": 2, "own": "10.1.0.7", "peer": "10.1.0.5"},
    ]

    def end(rank: int, node: int) -> str | None:
        return comm._own_end(RunContext(RunDir(Path("/none")), Ranks(rank, 0, 4, node, 3)), told)

    assert [end(0, 0), end(1, 0), end(2, 1), end(3, 2)] == ["10.1.0.5", "10.1.0.5", "10.1.0.6", "10.1.0.7"]
    monkeypatch.setattr(comm, "_interfaces", lambda: INTERFACES)
    assert comm._interface("10.1.0.5") == "ib0" and comm._interface("10.9.9.9") is None


@pytest.mark.parametrize(("host", "why"), [
    ("127.0.0.1", "Connection refused"), ("no.such.host.invalid", "Name or service not known|[Tt]emporary failure"),
])  # fmt: skip
def test_an_address_that_cannot_be_reached_is_one_sentence_with_a_cure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str, why: str
) -> None:
    monkeypatch.setattr(comm, "TIMEOUT_S", 0.5)
    with listener() as gone:
        port = gone.getsockname()[1]
    say(RunDir(tmp_path), host, port=port)
    said = (
        rf"^run\.rank=1: cannot reach rank 0 at {re.escape(host)}:{port} \(({why}).*\) within 0\.5 s\. Set GLOO_SOCKET_IFNAME"
    )
    with pytest.raises(RunError, match=said):
        enter(two_nodes(RunDir(tmp_path), 1, 2))


@pytest.fixture
def deaf() -> Iterator[int]:
    """A port that takes no connection and refuses none, as behind a firewall: its queue is full."""
    with contextlib.ExitStack() as kept:
        server = kept.enter_context(socket.socket())
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        for _ in range(4):
            waiting = kept.enter_context(socket.socket())
            waiting.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                waiting.connect(server.getsockname())
        yield server.getsockname()[1]


def test_a_port_that_drops_everything_ends_in_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deaf: int) -> None:
    monkeypatch.setattr(comm, "TIMEOUT_S", 0.5)
    monkeypatch.setattr(comm, "CONNECT_S", 0.2)
    say(RunDir(tmp_path), "127.0.0.1", port=deaf)
    with pytest.raises(RunError, match=rf"^run\.rank=1: cannot reach rank 0 at 127\.0\.0\.1:{deaf} \(timed out\) within"):
        enter(two_nodes(RunDir(tmp_path), 1, 2))


def test_a_rank_that_cannot_reach_rank_0_hears_a_signal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deaf: int) -> None:
    monkeypatch.setattr(comm, "CONNECT_S", 0.2)
    say(RunDir(tmp_path), "127.0.0.1", port=deaf)
    stop = Stop()
    tried = socket.create_connection

    def hit(*words: Any) -> socket.socket:
        stop.signum = signal.SIGTERM
        return tried(*words)

    monkeypatch.setattr(socket, "create_connection", hit)
    with pytest.raises(Stopped):
        enter(two_nodes(RunDir(tmp_path), 1, 2, stop))


def test_what_another_run_listens_at_is_not_rank_0(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stale address, or a container bridge that has one address on each node: the port may be anyone's."""
    monkeypatch.setattr(comm, "TIMEOUT_S", 0.5)
    other = RunDir(tmp_path / "other")
    lease.take(other, 2)
    store = comm._open(two_nodes(other, 0, 2), other.lives / "0001" / "address.json")
    mine = RunDir(tmp_path / "mine")
    say(mine, "127.0.0.1", port=store.port)
    with pytest.raises(RunError, match=r"\(another run listens there\)"):
        enter(two_nodes(mine, 1, 2))


def test_a_stale_address_of_the_same_life_is_left_for_the_new_one(tmp_path: Path) -> None:
    with listener() as gone:
        port = gone.getsockname()[1]
    run = RunDir(tmp_path)
    say(run, "127.0.0.1", port=port)
    at = run.lives / "0001" / "address.json"
    opened: list[Any] = []

    def late() -> None:
        opened.append(comm._open(context(run, 0, 2), at))

    timer = threading.Timer(0.3, late)
    timer.start()
    store, ends = comm._reach(context(run, 1, 2), at)
    timer.join()
    assert store.get("token").decode() == rundir.read_json(at)["token"] and ends == {"own": "127.0.0.1", "peer": "127.0.0.1"}


@pytest.mark.slow
def test_runs_that_start_at_once_on_one_node_do_not_meet_each_other(tmp_path: Path) -> None:
    """Each pair twice as large as the one before: a sum tells who took part."""

    def meet(number: int) -> list[str]:
        return on_processes(2, tmp_path / str(number), lambda group: group.sum_(torch.tensor([10.0**number])).item())

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(meet, range(3))) == [[str(2 * 10.0**n)] * 2 for n in range(3)]


# --- cores


@pytest.mark.parametrize(("threads", "cores", "warned"), [(1, 1, True), (2, 1, True), (1, 2, False)])
def test_ranks_that_are_bound_to_too_few_cores_say_so_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int, cores: int, warned: bool
) -> None:
    """Two ranks of a node on the same cores."""
    usable = sorted(os.sched_getaffinity(0))
    if len(usable) < cores:
        pytest.skip("this machine has one core")
    monkeypatch.setenv("OMP_NUM_THREADS", str(threads))

    def place(run: RunDir, rank: int, size: int) -> RunContext:
        return RunContext(run, Ranks(rank, rank, size, launcher="srun"))

    os.sched_setaffinity(0, usable[:cores])
    try:
        assert on_processes(2, tmp_path, lambda group: torch.get_num_threads(), place=place) == [str(threads)] * 2
    finally:
        os.sched_setaffinity(0, usable)
    told = [r["message"] for records in lease.records(RunDir(tmp_path), 1).values() for r in records]
    assert len(told) == warned and all(f": 2 ranks of {threads} threads each" in message for message in told)


# --- MPI


FAKE_MPI = """
import json, os
THREAD_FUNNELED = 1
class World:
    rank, size = json.loads(os.environ["FAKE_WORLD"])
COMM_WORLD = World()
def Init_thread(level):
    if os.environ.get("FAKE_ERROR"): raise RuntimeError("cannot load MPI library")
def Get_library_version(): return "Fake MPI, 1"
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "env", [{"FAKE_WORLD": "[0, 1]"}, {"FAKE_WORLD": "[0, 2]"}, {"FAKE_WORLD": "[0, 2]", "FAKE_ERROR": "1"}]
)
def test_where_mpi_gives_a_rank_another_world_all_of_them_meet_by_gloo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, env: dict[str, str]
) -> None:
    """Also where only one of them has none: with a world of two, rank 0 is content and rank 1 is not."""
    package = tmp_path / "site" / "mpi4py"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("def rc(**how): pass\n")
    (package / "MPI.py").write_text(FAKE_MPI)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(comm, "_mpi_is_fit", lambda run: True)
    for name in [name for name in sys.modules if name.startswith("mpi4py")]:
        monkeypatch.delitem(sys.modules, name)

    def work(group: Group) -> Any:
        return type(group).__name__, group.sum_(torch.ones(1)).item()

    assert on_processes(2, tmp_path, work, mpi=True) == ['["Group", 2.0]'] * 2


def mpi_check(found: str, ok: bool = True) -> dict[str, Any]:
    return {"name": "mpi", "ok": ok, "found": found}


@pytest.mark.parametrize(("launcher", "env", "checks", "fit"), [
    ("srun", {}, ["2 processes on 2 hosts, Open MPI v4.1.4"] * 2, True),
    ("srun", {"PMIX_RANK": ""}, ["2 processes on 2 hosts, Open MPI v4.1.4"] * 2, False),  # srun without --mpi=pmix
    ("mpiexec", {}, ["2 processes on 2 hosts, Open MPI v4.1.4"] * 2, False),
    ("srun", {"SLURM_JOB_ID": "8"}, ["2 processes on 2 hosts, Open MPI v4.1.4"] * 2, False),  # another job's nodes
    ("srun", {}, [], False),  # no preflight
    ("srun", {}, ["2 processes on 2 hosts, Open MPI v4.1.4"], False),  # of one node alone
    ("srun", {}, ["mpi4py is not installed: not tried"] * 2, False),
    ("srun", {}, ["no answer in 30 s"] * 2, False),
])  # fmt: skip
def test_mpi_is_used_only_where_the_preflight_of_this_job_has_seen_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, launcher: str, env: dict[str, str], checks: list[str], fit: bool
) -> None:
    """An MPI_Init that fails ends the process: it is not tried to find out."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    for name, value in ({"PMIX_RANK": "1", "SLURM_JOB_ID": "7"} | env).items():
        monkeypatch.setenv(name, value)
    run = RunDir(tmp_path)
    run.preflight.mkdir()
    for number, found in enumerate(checks):
        rundir.write_json(run.preflight / f"{number}.json", {"job": "7", "checks": [mpi_check(found)]})
    assert comm._mpi_is_fit(two_nodes(run, 1, 2, launcher=launcher)) is fit
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert not comm._mpi_is_fit(two_nodes(run, 1, 2, launcher=launcher))


class FakeWorld:
    """Iallgather of one rank that is told what each has; `Test` says yes the third time."""

    def __init__(self, others: list[bytes]) -> None:
        self.others, self.asked = others, 0
        self.COMM_WORLD = self

    def Iallgather(self, mine: Any, parts: Any) -> FakeWorld:
        for row, data in zip(parts, [mine.tobytes(), *self.others], strict=True):
            row[:] = np.frombuffer(data, np.uint8)
        return self

    def Test(self) -> bool:
        self.asked += 1
        return self.asked > 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64])
def test_mpi_adds_up_any_dtype_and_shape(tmp_path: Path, dtype: torch.dtype) -> None:
    x = torch.tensor([[1, 2], [3, 4]], dtype=dtype)
    other = (x * 2).contiguous().view(torch.uint8).numpy().tobytes()
    group = MpiGroup(context(RunDir(tmp_path), 0, 2), FakeWorld([other]), None)
    assert group.stack(x).tolist() == [[[1, 2], [3, 4]], [[2, 4], [6, 8]]] and group.stack(x).dtype == dtype
    assert group.sum_(x) is x and x.tolist() == [[3, 6], [9, 12]]
    one = torch.tensor(5, dtype=dtype)
    group = MpiGroup(context(RunDir(tmp_path), 0, 2), FakeWorld([one.reshape(1).view(torch.uint8).numpy().tobytes()]), None)
    assert group.sum_(one).item() == 10


def test_who_waits_in_mpi_hears_a_signal(tmp_path: Path) -> None:
    stop = Stop()
    stop.signum = signal.SIGTERM
    with pytest.raises(Stopped, match="waited for the other ranks"):
        MpiGroup(context(RunDir(tmp_path), 0, 1, stop), FakeWorld([]), None).barrier()

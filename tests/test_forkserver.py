"""Members forked from one process that imported the job once: the same run as by hand, whatever is killed."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import tiny_words, until

from hpcai import forkserver, lease, provenance, submit
from hpcai.config.check import load
from hpcai.context import HELD_SIGNALS
from hpcai.forkserver import Client, Request
from hpcai.plan import make_plan
from hpcai.rundir import RunDir, read_json
from hpcai.submit import Frozen

Prepare = Callable[..., tuple[RunDir, Request]]
Open = Callable[..., Client]


@pytest.fixture
def prepare(tiny_npz: Path, tmp_path: Path, light_package: Path) -> Prepare:
    """A run folder, linked to the package with the light job, a life taken, and what a driver asks for."""
    facts = {**provenance.environment(), "code_sha256": "0" * 64}

    def one(*more: str, seed: int = 0, ranks: int = 1) -> tuple[RunDir, Request]:
        words = tiny_words(tiny_npz) | {"runs_dir": str(tmp_path / "runs"), "resources.tasks_per_node": str(ranks)}
        texts = [f"{k}='{v}'" if "/" in v else f"{k}={v}" for k, v in words.items()]
        plan, config, files = make_plan(load([*texts, f"seed={seed}", *more]))
        run = RunDir(Path(plan.run_dir))
        life = lease.take(run, plan.ranks)
        submit.prepare(run, plan, config, files, Frozen(light_package, facts))
        minutes, lead = submit.time_limit(plan)
        return run, Request(str(run.path), life, ranks, minutes, lead, submit.pythonpath(run.code))

    return one


@pytest.fixture
def server(light_package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Open]:
    """Opens servers as a driver does, and ends them and what they started."""
    opened: list[Client] = []

    def one(job: dict[str, Any] | None = None, jobs: tuple[str, ...] = ("train",), package: Path = light_package) -> Client:
        monkeypatch.setenv("HPCAI_TEST", json.dumps(job or {}))
        with submit.apart(tmp_path / "server.log"):
            opened.append(forkserver.open_client(package, str(package), 1, list(jobs)))
        return opened[-1]

    yield one
    for client in opened:
        if client.process.poll() is None:
            for child in psutil.Process(client.process.pid).children(recursive=True):
                child.kill()
            client.process.kill()
        client.close()


def started(client: Client, request: Request) -> int:
    """The controller's pid, made the owner as a driver does."""
    pid = client.start(request)
    assert pid is not None
    lease.hand_over(RunDir(Path(request.run)), request.life, pid)
    return pid


def ended(run: RunDir) -> lease.RunState:
    until(lambda: lease.read_state(run).state not in ("pending", "running"))
    return lease.read_state(run)


def begins(run: RunDir) -> list[dict[str, Any]]:
    told = lease.records(run, lease.last_life(run))
    return [r for rank in sorted(told) for r in told[rank] if r["event"] == "begin"]


def test_a_forked_member_is_a_run_like_any_other(prepare: Prepare, server: Open) -> None:
    run, request = prepare()
    client = server({"step_s": 0.05})
    started(client, request)
    until(lambda: begins(run))
    (begin,) = begins(run)
    assert "hpcai.forkserver" in " ".join(psutil.Process(begin["pid"]).cmdline())  # it was not started anew on its own code/
    assert begin["threads"] == 1 and begin["launcher"] == "submitit"
    assert ended(run).state == "completed"
    assert read_json(run.report_json)["answer"] == "counted"
    (out,) = run.submitit.glob("*_0_log.out")
    assert "counting from 0" in out.read_text("utf-8")


def test_its_code_is_its_own_folder_and_one_copy_on_the_disk(prepare: Prepare, light_package: Path) -> None:
    run, _ = prepare()
    assert (run.code / "hpcai/jobs/train.py").samefile(light_package / "hpcai/jobs/train.py")
    assert not list(run.code.rglob("__pycache__"))


def test_one_server_starts_many_members_at_once(prepare: Prepare, server: Open) -> None:
    client = server()
    members = [prepare(seed=n) for n in range(4)]
    pids = [started(client, request) for _, request in members]
    assert len(set(pids)) == 4
    assert [ended(run).state for run, _ in members] == ["completed"] * 4


def test_every_rank_of_a_member_is_forked(prepare: Prepare, server: Open) -> None:
    run, request = prepare(ranks=3)
    started(server(), request)
    assert ended(run).state == "completed"
    assert sorted(b["rank"] for b in begins(run)) == [0, 1, 2]
    assert len({b["pid"] for b in begins(run)}) == 3


def test_a_member_answers_a_stop_with_a_checkpoint(prepare: Prepare, server: Open) -> None:
    run, request = prepare("trainer.max_steps=100000")
    started(server(), request)
    until(lambda: submit.ask_to_stop(run, request.life, 1))
    state = ended(run)
    assert (state.state, state.code) == ("stopped", 128 + signal.SIGTERM)
    assert "checkpoint kept" in state.message


def test_a_terminals_signals_reach_neither_server_nor_controller(prepare: Prepare, server: Open) -> None:
    run, request = prepare("trainer.max_steps=100000")
    client = server()
    pid = started(client, request)
    until(lambda: begins(run))
    for process in (client.process.pid, pid):
        status = Path(f"/proc/{process}/status").read_text()
        blocked = int(next(line for line in status.splitlines() if line.startswith("SigBlk")).split()[1], 16)
        assert all(blocked >> (signum - 1) & 1 for signum in HELD_SIGNALS)


@pytest.mark.fault
def test_a_killed_server_ends_nothing_and_says_so_at_the_next_request(prepare: Prepare, server: Open) -> None:
    run, request = prepare("trainer.max_steps=100000")
    client = server()
    controller = started(client, request)
    until(lambda: begins(run))
    client.process.kill()
    client.process.wait()
    other, asked = prepare(seed=1)
    assert client.start(asked) is None
    assert lease.read_state(other).state == "pending"  # still ours, to be started the ordinary way
    before = lease.read_state(run).step or 0
    until(lambda: (lease.read_state(run).step or 0) > before)
    os.kill(controller, signal.SIGTERM)
    assert ended(run).state == "stopped"


@pytest.mark.fault
def test_a_rank_that_dies_leaves_a_lost_run_and_a_server_that_goes_on(prepare: Prepare, server: Open) -> None:
    client = server({"fail": "kill"})
    run, request = prepare()
    started(client, request)
    assert ended(run).state == "lost"
    other, asked = prepare(seed=1)
    started(client, asked)
    assert ended(other).state == "lost"


def test_a_server_that_cannot_import_a_job_starts_nothing(prepare: Prepare, server: Open, tmp_path: Path) -> None:
    run, request = prepare()
    client = server(jobs=("no_such_job",))
    assert client.start(request) is None
    assert client.process.wait(60) != 0
    assert not begins(run)
    assert "no_such_job" in (tmp_path / "server.log").read_text("utf-8")


def test_an_ended_driver_ends_the_server_and_not_its_members(prepare: Prepare, server: Open) -> None:
    run, request = prepare("trainer.max_steps=100000")
    client = server()
    started(client, request)
    until(lambda: begins(run))
    client.close()
    assert client.process.wait(60) == 0
    assert lease.read_state(run).state == "running"
    until(lambda: submit.ask_to_stop(run, request.life, 1))
    assert ended(run).state == "stopped"

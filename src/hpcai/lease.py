"""Who owns a run, and what became of it: one folder a life, numbered from 1; the number is the fencing token.

    lives/0003/owner.json     who took it: host, pid, process start, ranks            renamed into place: the first one wins
    lives/0003/claim          which start of which Slurm job runs it                  made once: the first one wins
    lives/0003/rank0.jsonl    begin, progress, warning, end of each rank              appended by that rank alone
    lives/0003/beat           touched every 10 s by rank 0                            for readers on another host
    lives/0003/verdict.json   why it will not be tried again                          by the batch script, after its ranks
    lives/0003/cancelled      somebody asked it to stop: it does not come again       by `hpcai cancel`

On Slurm a life belongs to a job (owner.json: kind, job, restart): taken by the submitter, before there is a job, or by rank 0
of a start that follows another. A member's life belongs to its sweep's jobs (owner.json: sweep) until one of them claims it.
What its records do not say, the scheduler does (scheduler.py): nobody here asks it.

A life is taken by renaming a prepared folder to the next number. rename(2) fails on a folder that is not empty, on every file
system that clusters use, so of two launches at the same moment one wins. Nothing is ever taken over or deleted: the run's last
life is its state. Standard library only; processes are looked up in /proc.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from hpcai.errors import OwnedError
from hpcai.rundir import RunDir, append_lines, read_json, read_lines, write_json

BEAT_S = 10.0  # rank 0 touches `beat` so often
SILENT_S = 120.0  # silent on another host for so long: taken for dead. 12 beats: a busy file system delays some
ENDS_BYTES = 16 * 1024  # of a long record file: what `outline` reads at each end
NOBODY = "nobody 0"  # who made a claim and was killed before it said whose: that one is gone
CANCELLED = "cancelled: "  # how the verdict begins of a member that will not start, as what it needed did not end well
ACTIVE = ("pending", "running")  # somebody has it in hand
State = Literal["new", "pending", "running", "completed", "stopped", "failed", "lost", "unreadable"]


@dataclass(frozen=True)
class RunState:
    """What the records say. `code` and `message` are the verdict of a run that ended; `step` the last one on record.

    `told`: when the newest record was written. `unreadable` is runs.state_of's word for damaged records: read_state raises.
    `slurm_job`: the job that has, or had, the life; empty while it is being submitted. `chain`: jobs that follow each other.
    `sweep`: whose jobs run it, where that is a sweep's; `claimed`: one of them has taken it.
    """

    state: State
    life: int = 0
    code: int | None = None
    message: str = ""
    owner: str = ""
    step: int | None = None
    ended: float | None = None
    told: float | None = None
    slurm_job: str | None = None
    chain: tuple[str, ...] = ()
    sweep: str = ""
    claimed: bool = True


def last_life(run: RunDir) -> int:
    """The number of the newest life, 0 if there is none."""
    try:
        return max((int(f.name) for f in run.lives.iterdir() if f.name.isdigit()), default=0)
    except FileNotFoundError:
        return 0


def life_dir(run: RunDir, life: int) -> Path:
    """The folder of one life."""
    return run.lives / f"{life:04d}"


def take(run: RunDir, ranks: int, *, over: int = 0, after: int | None = None, **facts: object) -> int:
    """Starts the next life of a run that nobody runs, for this process; returns its number.

    `over`: a life that is over, whatever its records say: the scheduler knows. `after`: the newest life when it was decided
    that there shall be another one: whoever was faster has done what there was to do. `facts`: more for owner.json.

    Raises: OwnedError if somebody runs it, or took it at this moment, or since `after`.
    """
    state = read_state(run)
    if after is not None and state.life != after:
        raise OwnedError(f"run={run.path.name}: another launch was faster.")
    if state.state in ACTIVE and state.life != over:
        raise OwnedError(f"run={run.path.name}: {state.owner} runs it. Wait for it, or stop it by SIGTERM to that process.")
    life = state.life + 1
    run.lives.mkdir(parents=True, exist_ok=True)
    beside = run.lives / f".{socket.gethostname()}-{os.getpid()}-{time.monotonic_ns()}"
    beside.mkdir()
    try:
        write_json(beside / "owner.json", {**me(), "ranks": ranks, "time": time.time(), **facts})
        beside.rename(life_dir(run, life))
    except OSError as e:
        shutil.rmtree(beside, ignore_errors=True)
        if not life_dir(run, life).exists():
            raise
        raise OwnedError(f"run={run.path.name}: another launch was faster. Wait for it.") from e
    return life


def fence(run: RunDir, life: int) -> None:
    """Raises: OwnedError if `life` is not the run's newest."""
    newest = last_life(run)
    if newest != life:
        raise OwnedError(f"run={run.path.name}: life {newest} runs it now, this is life {life}. Nothing was written.")


def append(run: RunDir, life: int, rank: int, event: str, **facts: object) -> None:
    """One record of one rank: written to the disk before this returns."""
    record: Mapping[str, Any] = {"event": event, "time": time.time(), "rank": rank, **facts}
    append_lines(life_dir(run, life) / f"rank{rank}.jsonl", [record], sync=True)


def records(run: RunDir, life: int) -> dict[int, list[dict[str, Any]]]:
    """Every rank's records of one life."""
    files = life_dir(run, life).glob("rank*.jsonl")
    return {int(f.stem.removeprefix("rank")): list(read_lines(f)) for f in files}


def outline(run: RunDir, life: int) -> dict[int, list[dict[str, Any]]]:
    """Every rank's first records and its last ones: begin, the newest step and end. Enough for a state, however long it ran."""
    files = life_dir(run, life).glob("rank*.jsonl")
    return {int(f.stem.removeprefix("rank")): _both_ends(f) for f in files}


def _both_ends(path: Path) -> list[dict[str, Any]]:
    with path.open("rb") as f:
        data = f.read(2 * ENDS_BYTES)
        if len(data) == 2 * ENDS_BYTES:  # the middle is left out
            data = data[: data.rfind(b"\n") + 1]
            at = max(len(data), f.seek(0, os.SEEK_END) - ENDS_BYTES)
            f.seek(at)
            tail = f.read()
            data += tail if at == len(data) else tail[tail.find(b"\n") + 1 :]
    return [json.loads(line) for line in data[: data.rfind(b"\n") + 1].splitlines() if line.strip()]


def beat(run: RunDir, life: int) -> None:
    """Says `still here` to readers on other hosts."""
    (life_dir(run, life) / "beat").touch()


def read_owner(run: RunDir, life: int) -> dict[str, Any]:
    """owner.json of a life; nothing if there is no such life."""
    try:
        owner: dict[str, Any] = read_json(life_dir(run, life) / "owner.json")
    except FileNotFoundError:
        return {}
    return owner


def give_to_job(run: RunDir, life: int, job: str, chain: Sequence[str] = ()) -> None:
    """Writes down which Slurm job has the life: the submitter does, and the job itself where the submitter did not live to.

    A life that another job has claimed meanwhile (its script was sent by hand) stays that one's.

    `chain`: the jobs that follow each other, `job` among them.
    """
    owner = read_owner(run, life)
    if owner.get("job") not in (None, job):
        return
    if owner.get("job") != job or list(chain) not in ([], owner.get("chain")):
        write_json(life_dir(run, life) / "owner.json", {**owner, "job": job} | ({"chain": list(chain)} if chain else {}))


def claim(run: RunDir, life: int, who: str) -> bool:
    """Makes a life that was taken for a Slurm job the one of `who`, one start of it; False if another start has it."""
    path = life_dir(run, life) / "claim"
    try:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o640)
    except FileExistsError:
        return False
    try:
        with os.fdopen(file, "w") as f:
            f.write(who)
    except OSError:  # a full disk: nobody has it
        path.unlink(missing_ok=True)
        raise
    return True


def claimed_by(run: RunDir, life: int) -> str:
    """Which start has a life; nothing if none has claimed it, NOBODY if that was killed before it could say so."""
    try:
        who = (life_dir(run, life) / "claim").read_text("utf-8")
    except FileNotFoundError:
        return ""
    return who or (NOBODY if _claimed_long_ago(run, life) else "")


def is_untouched(run: RunDir, life: int) -> bool:
    """Nothing was said in it yet: neither by a rank, nor that it ended. Only such a life may be claimed."""
    return not (life_dir(run, life) / "verdict.json").exists() and not any(life_dir(run, life).glob("rank*.jsonl"))


def note_cancelled(run: RunDir, life: int) -> None:
    """Somebody asked it to stop: a rank that begins later must know, and its job does not come again."""
    (life_dir(run, life) / "cancelled").touch()


def is_cancelled(run: RunDir, life: int) -> bool:
    """Whether somebody asked it to stop."""
    return (life_dir(run, life) / "cancelled").exists()


def give_up(run: RunDir, life: int, message: str, code: int = 5) -> None:
    """The life is the last one that comes by itself; `message` says why, and is the run's verdict."""
    write_json(life_dir(run, life) / "verdict.json", {"code": code, "message": message, "time": time.time()})


def hand_over(run: RunDir, life: int, pid: int) -> None:
    """Makes process `pid` of this host, which starts the ranks, the owner: the run outlives the launcher."""
    path = life_dir(run, life) / "owner.json"
    write_json(path, {**read_json(path), **me(), "pid": pid, "started": process_start(pid)})


def read_state(run: RunDir) -> RunState:
    """The run's state from its own records alone; a process that vanished without an end record makes it `lost`."""
    state = _look(run)
    # It may have written its end, or handed the run over, between our look at its records and our look for it: now it is final.
    return _look(run) if state.state == "lost" else state


def _look(run: RunDir) -> RunState:
    life = last_life(run)
    if life == 0:
        return RunState("new")
    owner = read_json(life_dir(run, life) / "owner.json")
    told = outline(run, life)
    newest = max([owner["time"], *(r["time"] for rank in told.values() for r in rank)])
    sweep, claimed = owner.get("sweep"), owner.get("job") is not None
    if sweep is not None and not claimed:
        owner = _with_jobs_of(RunDir(run.path.parent / sweep), owner)
    state = _judged(run, life, owner, told)
    if sweep is not None and claimed and state.state in ("stopped", "lost"):  # it may go on in another of them
        theirs = _with_jobs_of(RunDir(run.path.parent / sweep), owner)
        owner = {**owner, "chain": theirs["chain"] or [theirs["job"]] * bool(theirs["job"])}
    state = replace(state, told=float(newest), chain=tuple(owner.get("chain", ())))
    if owner.get("kind") == "slurm":
        state = replace(state, slurm_job=owner.get("job") or "")
    return state if sweep is None else replace(state, sweep=Path(sweep).name, claimed=claimed)


def _with_jobs_of(sweep: RunDir, owner: dict[str, Any]) -> dict[str, Any]:
    """A member that none of its sweep's jobs has taken yet: any of them may."""
    theirs = read_owner(sweep, last_life(sweep))
    return {**owner, "job": theirs.get("job"), "chain": theirs.get("chain", [])}


def _judged(run: RunDir, life: int, owner: Mapping[str, Any], told: Mapping[int, list[dict[str, Any]]]) -> RunState:
    who = f"process {owner['pid']} on {owner['host']}"
    if owner.get("kind") == "slurm":
        who = f"job {owner['job']}" if owner["job"] else f"{who} (submitting)"
    ends = [r for rank in told.values() for r in rank if r["event"] == "end"]
    step = max((r["step"] for rank in told.values() for r in rank if r.get("step") is not None), default=None)
    ended = {r["rank"] for r in ends}
    missing = sorted(set(range(owner["ranks"])) - ended)
    if not missing and all(r["code"] == 0 for r in ends):  # through, whatever was asked or given up meanwhile
        return _verdict(ends, life, who, step)
    if (given_up := _given_up(run, life)) is not None:
        code = int(given_up["code"])
        how: State = "stopped" if code >= 128 else "failed"
        return RunState(how, life, code, str(given_up["message"]), who, step, float(given_up["time"]))
    if not missing:
        return _verdict(ends, life, who, step)
    begun = [r for rank in told.values() for r in rank if r["event"] == "begin"]
    if any(_alive(r, run, life) for r in begun if r["rank"] not in ended):
        return RunState("running", life, owner=who, step=step)
    if owner.get("job"):  # who submitted it has nothing more to do with it
        if not begun and not _claimed_long_ago(run, life):
            return RunState("pending", life, owner=who, step=step)
    elif _alive(owner, run, life):
        return RunState("running" if begun else "pending", life, owner=who, step=step)
    causes = [r for r in ends if 0 < r["code"] < 128 and not r.get("collateral")]
    if causes:
        return _verdict(causes, life, who, step)
    text = f"run.rank={missing[0]}: ended without a word (killed, or out of memory). The same command goes on."
    return RunState("lost", life, 5, text, who, step)


def _claimed_long_ago(run: RunDir, life: int) -> bool:
    """A start that claimed the life has had time to begin."""
    try:
        return time.time() - (life_dir(run, life) / "claim").stat().st_mtime > SILENT_S
    except FileNotFoundError:
        return False


def _given_up(run: RunDir, life: int) -> dict[str, Any] | None:
    try:
        verdict: dict[str, Any] = read_json(life_dir(run, life) / "verdict.json")
    except FileNotFoundError:
        return None
    return verdict


def _verdict(ends: list[dict[str, Any]], life: int, who: str, step: int | None) -> RunState:
    """Of many ends the verdict: a stated error before a stop, a stop before what merely followed from a lost peer."""

    def weight(end: dict[str, Any]) -> tuple[int, float]:
        if end["code"] == 0:
            return (3, end["time"])
        if end.get("collateral"):
            return (2, end["time"])
        return (1 if end["code"] >= 128 else 0, end["time"])

    end = min(ends, key=weight)
    code = int(end["code"])
    state: State = "completed" if code == 0 else "stopped" if code >= 128 else "failed"
    return RunState(state, life, code, end.get("message", ""), who, step, max(e["time"] for e in ends))


def me() -> dict[str, Any]:
    """host, pid and start of this process: pids are reused, a pid with its start is not."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "started": process_start(os.getpid())}


def process_start(pid: int) -> str | None:
    """Which boot of this machine and how many clock ticks after it process `pid` started; None if it is gone or a zombie.

    Not a time of day, as psutil has it: that moves when the clock is set. Source: proc(5), stat fields 3 and 22.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat.rpartition(")")[2].split()  # from the third on: the second, a name in brackets, may hold anything
    boot = Path("/proc/sys/kernel/random/boot_id").read_text("utf-8").strip()
    return None if fields[0] in ("Z", "X") else f"{boot} {fields[19]}"


def is_here(who: Mapping[str, Any]) -> bool:
    """Whether the process that `me` described runs on this host."""
    return bool(
        who["host"] == socket.gethostname() and who["started"] is not None and process_start(who["pid"]) == who["started"]
    )


def _alive(who: Mapping[str, Any], run: RunDir, life: int) -> bool:
    if who["host"] != socket.gethostname():
        try:
            return bool(time.time() - (life_dir(run, life) / "beat").stat().st_mtime < SILENT_S)
        except FileNotFoundError:
            return bool(time.time() - who["time"] < SILENT_S)
    return is_here(who)

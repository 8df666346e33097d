"""The question itself: squeue and sacct once for any number of jobs, and the two orders that are given.   [id] -> Answer

Free text (a job's name, a reason) may hold anything, newlines and separators too: fields are parted by a mark that is drawn
anew for each call, and a header line proves that the program understood the question.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from hpcai.errors import one_line

POLL_S = 10.0  # who waits asks no oftener: sites ask for restraint, each question locks the controller's tables
PATIENCE_S = 30.0  # one call. Seen on 22.05: with the controller away squeue gives up after 18 s, scontrol and sbatch after 9
HISTORY_S = 90 * 86400.0  # how far back sacct looks where nobody says since when: its own default for -j is 1970
SKEW_S = 3600.0  # clocks of login node and controller differ by less
RETRY_S = 2.0  # between two tries of a requeue
WORD = 100_000  # bytes of one list of ids. Linux takes 128 KiB a word (MAX_ARG_STRLEN), 10,000 ids and more
LARGEST = 1 << 26  # bytes read of an answer: 64 MiB are some 500,000 jobs
KEPT = ("SLURM_CONF", "SLURM_CLUSTERS", "SLURM_JWT")  # how Slurm is reached; all other SLURM_* are a surrounding job's
GONE = "UNKNOWN"  # our word: accounting says that it runs, and the queue does not have it
OVER = {
    "COMPLETED", "FAILED", "TIMEOUT", "PREEMPTED", "NODE_FAIL", "OUT_OF_MEMORY", "CANCELLED", "BOOT_FAIL", "DEADLINE",
    "REVOKED", "LAUNCH_FAILED", GONE,
}  # fmt: skip

ID = re.compile(r"(?P<job>\d{1,12})(?:\+\d{1,6})?(?:_(?:(?P<task>\d{1,9})|\[(?P<tasks>[^\]]*)(?P<end>\]?)))?", re.ASCII)
SQUEUE = ("%i", "%T", "%r", "%S", "%e", "%V", "%N", "%j")  # in the order of _job's arguments
SACCT = ("JobID", "State", "Start", "End", "Submit", "NodeList", "ExitCode", "DerivedExitCode", "MaxRSS", "JobName")

HISTORY = (
    "JobID", "JobName", "State", "ExitCode", "DerivedExitCode", "Submit", "Start", "End", "Elapsed", "Timelimit", "NNodes",
    "NodeList", "ReqMem", "MaxRSS", "AllocTRES",
)  # fmt: skip


@dataclass(frozen=True)
class Job:
    """One job, or one task of an array.

    `id`: as it was asked for, "48211" or "48211_7". `state`: the first word of Slurm's, or UNKNOWN. `reason`: Slurm's word for
    why it waits, or ended. Times are seconds of the epoch; `start` of a waiting job is when Slurm expects it to.
    From accounting alone: `exit`, code and signal ("0:9"); `derived`, the same of its worst step; `cancelled_by`, a user's
    number; `max_rss_gb` and `oom` of its steps, where those were asked for.
    """

    id: str
    state: str
    reason: str = ""
    start: float | None = None
    end: float | None = None
    submit: float | None = None
    nodes: str = ""
    name: str = ""
    exit: str = ""
    derived: str = ""
    cancelled_by: str = ""
    max_rss_gb: float | None = None
    oom: bool = False

    @property
    def active(self) -> bool:
        """It waits, runs, or is on its way from one to the other. A state that nobody knows yet counts."""
        return self.state not in OVER

    @property
    def waits(self) -> bool:
        """It has no nodes."""
        return self.state == "PENDING" or self.state.startswith("REQUEUE") or self.state == "SPECIAL_EXIT"


@dataclass(frozen=True)
class Answer:
    """The jobs that are known, by the id that was asked for; who answered; `why`: what did not, in words."""

    jobs: dict[str, Job]
    queue: bool
    accounting: bool
    why: str = ""


@dataclass(frozen=True)
class Said:
    """What a program said; `code` is None if it is not here, or was ended because it hung."""

    code: int | None
    out: str = ""
    err: str = ""

    @property
    def why(self) -> str:
        """Its complaint, on one line."""
        lines = [line.strip() for line in (self.err or self.out).splitlines() if line.strip()]
        return one_line(lines[-1] if lines else f"exit code {self.code}, without a word", 200)


def look(
    ids: Iterable[str],
    *,
    history: bool | Container[str] = True,
    steps: bool = False,
    mine: bool = False,
    since: float | None = None,
    patience_s: float = PATIENCE_S,
) -> Answer:
    """What Slurm knows of these jobs. Never raises, and never takes longer than twice `patience_s`.

    Args:
        ids: "48211", "48211_7" (a task of an array; an array's own number stands for its liveliest task); others are no jobs.
        history: ask sacct too, for those that the queue does not have as active; or for those of these jobs.
        steps: read memory use from the rows of their steps.
        mine: all are this user's: the controller then sends this user's jobs alone, not the whole queue.
        since: when the first of them was sent, in seconds of the epoch: an older job that had the number is another.
        patience_s: how long each program may take.
    """
    asked = sorted({id for id in map(str, ids) if (m := ID.fullmatch(id)) and m["tasks"] is None and "+" not in id})
    if not asked:
        return Answer({}, queue=False, accounting=False, why="no job was asked for")
    queue, why = _queue(asked, mine, patience_s)
    after = (time.time() - HISTORY_S if since is None else since) - SKEW_S
    known = _matched(asked, [row for row in queue or [] if row.submit is None or since is None or row.submit >= after])
    over = [id for id in asked if id not in known or not known[id].active]
    left = [id for id in over if (history if isinstance(history, bool) else id in history)]
    if not left:
        return Answer(known, queue is not None, False, why)
    past, complaint = _past(left, after, steps, patience_s)
    for id, job in _matched(left, past or []).items():
        if job.active and queue is not None:
            job = replace(job, state=GONE)  # accounting lags, or has missed the end
        if id not in known or not (job.active or job.state == GONE):
            known[id] = replace(job, reason=job.reason or (known[id].reason if id in known else ""))
    return Answer(known, queue is not None, past is not None, "; ".join(filter(None, (why, complaint))))


def named(name: str, script: str, patience_s: float = PATIENCE_S) -> str | None:
    """This user's job of that name and script that waits or runs: its id; None if there is none, or squeue did not answer."""
    said = _ask(["squeue", "--noheader", f"--user={os.getuid()}", f"--name={name}", "--format=%i %o"], patience_s)
    rows = [line.partition(" ") for line in said.out.splitlines()] if said.code == 0 else []
    found = (m["job"] for id, _, command in rows if command == script and (m := ID.fullmatch(id)))
    return next(found, None)


def submitted(patience_s: float = PATIENCE_S) -> int:
    """How many jobs this user has in the queue, array tasks counted; 0 where squeue does not answer."""
    said = _ask(["squeue", "--noheader", "--array", f"--user={os.getuid()}", "--format=%i"], patience_s)
    return len(said.out.splitlines()) if said.code == 0 else 0


def gone(answer: Answer, id: str) -> bool:
    """Whether the job is over for certain: the queue answered, and does not have it as active."""
    return answer.queue and not (id in answer.jobs and answer.jobs[id].active)


def words_of(ids: Sequence[str], name: str, since: float, patience_s: float = PATIENCE_S) -> Iterator[str]:
    """What scontrol and sacct say of these jobs, word for word, for a person to read; nothing of others that got their numbers.

    `name`: theirs; `since`: when the first of them was sent. Where one does not answer, what it says instead.
    """
    known = sorted({id.partition("_")[0] for id in ids if ID.fullmatch(id)}, key=int)
    clear = ["env", "SLURM_TIME_FORMAT=standard"]
    for id in known:
        said = _ask([*clear, "scontrol", "show", "job", id], patience_s)
        records = [part for part in re.split(r"\n\s*\n", said.out) if re.search(rf"\bJobName={re.escape(name)}(?!\S)", part)]
        yield f"scontrol show job {id}: {said.why}" if said.code else "\n\n".join(records).strip() or f"{id}: another's job now"
        if said.code is None:
            break
    begin = datetime.fromtimestamp(max(since - SKEW_S, 0.0)).strftime("%Y-%m-%dT%H:%M:%S")
    asked = [f"--jobs={','.join(known)}", f"--starttime={begin}", f"--name={name}", f"--format={','.join(HISTORY)}"]
    if known:
        said = _ask([*clear, "sacct", "--parsable2", *asked], patience_s)
        yield f"sacct: {said.why}" if said.code != 0 else said.out.strip()


# ---- questions


def _queue(asked: Sequence[str], mine: bool, patience_s: float) -> tuple[list[Job] | None, str]:
    """squeue's rows, None if it did not answer, and why. Recently ended jobs are among them (MinJobAge)."""
    rows: list[Job] = []
    for part in _parts(asked):
        mark = f"@{secrets.token_hex(6)}@"
        words = ["squeue", "--all", "--states=all", f"--format={mark}{mark.join(SQUEUE)}{mark}", f"--jobs={part}"]
        said = _ask([*words, *([f"--user={os.getuid()}"] if mine else [])], patience_s)
        if said.code and "Invalid job id specified" in said.err and "," not in part:
            continue  # a single job that it does not know is an error, one of several is none
        records = _squeue_records(said.out, mark) if said.code == 0 else []
        if not records or records[0][0] != "JOBID":
            return None, f"squeue does not answer ({_unread(said)})"
        rows += [job for record in records[1:] if (job := _job(*record))]
    return rows, ""


def _squeue_records(out: str, mark: str) -> list[list[str]]:
    """The fields of each record, the header first; nothing where the last one is torn."""
    pieces = out.split(mark)
    width = len(SQUEUE) + 1  # mark a mark b mark \n mark a mark b mark \n: what stands before, or between two records, is noise
    if len(pieces) % width != 1:
        return []
    return [pieces[at + 1 : at + width] for at in range(0, len(pieces) - 1, width)]


def _past(asked: Sequence[str], after: float, steps: bool, patience_s: float) -> tuple[list[Job] | None, str]:
    """sacct's rows, None if it did not answer, and why; of several lives of a job the last."""
    found: dict[str, Job] = {}
    extras: list[tuple[str, Job]] = []
    for part in _parts(asked):
        mark = f"@{secrets.token_hex(6)}@"
        begin = datetime.fromtimestamp(max(after, 0.0)).strftime("%Y-%m-%dT%H:%M:%S")
        words = ["sacct", "--parsable2", f"--delimiter={mark}", f"--format={','.join(SACCT)}", f"--starttime={begin}"]
        said = _ask([*words, f"--jobs={part}", *([] if steps else ["--allocations"])], patience_s)
        rows = [line.split(mark) for line in said.out.split("\n") if line.count(mark) == len(SACCT) - 1]
        if said.code != 0 or not rows or rows[0][0] != SACCT[0]:
            return None, f"accounting does not answer ({_unread(said)})"
        for id, state, start, end, submit, nodes, code, derived, rss, name in rows[1:]:
            job = _job(id.partition(".")[0], state, "", start, end, submit, nodes, name)
            if job is None or (job.submit is not None and job.submit < after):
                continue
            job = replace(job, exit=code.strip(), derived=derived.strip())
            if "." in id:
                extras.append((job.id, replace(job, max_rss_gb=_gb(rss), oom=job.state == "OUT_OF_MEMORY")))
            elif job.id not in found or (job.submit or 0) >= (found[job.id].submit or 0):
                found[job.id] = job
    for id, step in extras:
        if id in found:
            most = max((n for n in (found[id].max_rss_gb, step.max_rss_gb) if n is not None), default=None)
            found[id] = replace(found[id], max_rss_gb=most, oom=found[id].oom or step.oom)
    return list(found.values()), ""


def _parts(ids: Sequence[str]) -> Iterator[str]:
    """Lists of jobs, each of the length that one word may have: a single one but for tens of thousands.

    Arrays as a whole: accounting has tasks that never began in one row, which it does not find by a task's own id.
    """
    part: list[str] = []
    size = 0
    for id in sorted({id.partition("_")[0] for id in ids}, key=int):
        if part and size + len(id) > WORD:
            yield ",".join(part)
            part, size = [], 0
        part.append(id)
        size += len(id) + 1
    yield ",".join(part)


def _unread(said: Said) -> str:
    return f"cannot read: {one_line(said.out.strip(), 80) or 'nothing'}" if said.code == 0 else said.why


def _job(id: str, state: str, reason: str, start: str, end: str, submit: str, nodes: str, name: str) -> Job | None:
    """One row; None where it is none. A state carries a suffix: `CANCELLED by 1000`, `RUNNING+`."""
    word = re.match(r"[A-Z_]+", state.strip())
    if not ID.fullmatch(id.strip()) or not word:
        return None
    by = re.search(r"\bby (\d{1,10})$", state.strip(), re.ASCII)
    said = "" if reason.strip() in ("None", "(null)", "N/A") else one_line(reason.strip().strip("()"), 200)
    where = "" if nodes.strip() in ("None assigned", "(null)", "N/A") else one_line(nodes.strip(), 200)
    times = (_when(start), _when(end), _when(submit))
    return Job(id.strip(), word[0], said, *times, nodes=where, name=name, cancelled_by=by[1] if by else "")


def _matched(asked: Sequence[str], rows: Iterable[Job]) -> dict[str, Job]:
    """The row of each id. `48211_[4-7,9%2]` and `48211_[1-9:2]` are the tasks of an array that nothing has happened to yet."""
    exact: dict[str, Job] = {}
    own: dict[str, Job] = {}
    arrays: dict[str, list[tuple[list[range], Job]]] = {}
    for row in rows:
        m = ID.fullmatch(row.id)
        assert m
        for id in {m["job"], m["job"] + (f"_{m['task']}" if m["task"] else "")}:
            exact[id] = max(exact.get(id, row), row, key=_liveliness)
        if m["tasks"] is not None:
            arrays.setdefault(m["job"], []).append((_tasks(m["tasks"], whole=bool(m["end"])), row))
        elif m["task"] is None:
            own[m["job"]] = row
    found = {}
    for id in asked:
        job, _, task = id.partition("_")
        several = (row for tasks, row in arrays.get(job, []) if task and any(int(task) in some for some in tasks))
        match: Job | None = exact.get(id) or next(several, None)
        if match is None and job in own and not own[job].active:
            match = own[job]  # tasks of an array that was cancelled before they began are one row, the array's own
        if match is not None:
            found[id] = replace(match, id=id)
    return found


def _liveliness(job: Job) -> int:
    return 0 if not job.active else 1 if job.waits else 2


def _tasks(text: str, *, whole: bool) -> list[range]:
    """`4-7,9%2` as ranges. Of a list that was cut no task is known to be missing: it counts as holding all."""
    if not whole or "..." in text:
        return [range(10**9)]
    found = []
    for part in text.partition("%")[0].split(","):
        if m := re.fullmatch(r"(\d{1,9})(?:-(\d{1,9})(?::(\d{1,9}))?)?", part.strip(), re.ASCII):
            found.append(range(int(m[1]), int(m[2] or m[1]) + 1, max(1, int(m[3] or 1))))
    return found


def _when(text: str) -> float | None:
    """Seconds of the epoch, as we ask for times; `2026-11-26T02:01:04` of one that does not know SLURM_TIME_FORMAT."""
    text = text.strip()
    if re.fullmatch(r"\d{1,11}", text, re.ASCII):
        return float(text) or None
    with contextlib.suppress(ValueError, OverflowError, OSError):
        return datetime.fromisoformat(text).timestamp()
    return None


def _gb(text: str) -> float | None:
    """sacct's MaxRSS, `1234K`, in GB of 2**30 bytes."""
    m = re.fullmatch(r"(\d{1,15}(?:\.\d{1,9})?)([KMGTP]?)", text.strip(), re.ASCII)
    return float(m[1]) * 1024.0 ** (" KMGTP".index(m[2] or " ")) / 2**30 if m else None


# ---- orders


def cancel(ids: Iterable[str], *, signal: str | None = None, waiting: bool = False, patience_s: float = PATIENCE_S) -> str:
    """scancel; returns why it did not work, or nothing. Jobs that have ended, or never were, are no fault.

    `signal`: "TERM", "USR2": to the ranks of running jobs, not to the batch script. scancel hangs on a waiting job: look first.
    `waiting`: of an array those tasks alone that wait.
    """
    known = sorted({id for id in map(str, ids) if ID.fullmatch(id)})
    if not known:
        return ""
    options = [f"--signal={signal}"] * bool(signal) + ["--state=PENDING"] * waiting
    said = _ask(["scancel", *options, *known], patience_s)
    harmless = ("Invalid job id specified", "already completed", "Job/step already completing")
    complaints = [line for line in said.err.splitlines() if line.strip() and not any(word in line for word in harmless)]
    return "" if said.code == 0 or (said.code is not None and said.err and not complaints) else said.why


def requeue(id: str, patience_s: float = 0.0) -> str:
    """scontrol requeue; returns why it did not work, or nothing. One that waits in the queue already is no fault.

    `patience_s`: tried again for so long while the controller is away; what the site refuses is not asked for twice.
    """
    before = time.monotonic()
    while True:
        said = _ask(["scontrol", "requeue", id], PATIENCE_S) if ID.fullmatch(id) else Said(1, err=f"{id}: is no job")
        if said.code == 0 or "pending execution" in said.err:
            return ""
        final = re.search(r"Invalid job id|is no job|disabled|denied|[Pp]ermission|only valid|not here", said.err)
        if final or time.monotonic() - before + RETRY_S > patience_s:
            return said.why
        time.sleep(RETRY_S)


# ---- programs


def unavailable(environ: Mapping[str, str] | None = None) -> str:
    """Why no job can be sent from here, in words; nothing if one can, as far as that is known without the controller."""
    conf = (os.environ if environ is None else environ).get("SLURM_CONF")
    if not shutil.which("sbatch"):
        return "Slurm is not here (no sbatch on PATH). Type this on a login node of that machine, or add --dry-run."
    if conf and not Path(conf).is_file():  # sbatch would look for it for a minute
        return f"SLURM_CONF={one_line(conf, 120)}: no such file. Correct it, or unset it where Slurm is configured by the site."
    said = _ask(["sbatch", "--version"], PATIENCE_S)
    if said.code == 0:
        return ""
    return f"Slurm is not configured here ({said.why}). Set SLURM_CONF, or type this on a login node of that machine."


def submit_env(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment for sbatch: nothing that a surrounding job left, and no SBATCH_* of a profile, which beats the script."""
    left = ("SLURM_", "SBATCH_", "SRUN_", "SALLOC_")
    return {name: value for name, value in environ.items() if name in KEPT or not name.startswith(left)}


def _client_env() -> dict[str, str]:
    """For our questions: no SQUEUE_STATES or SCANCEL_INTERACTIVE of a profile, times in seconds, lists of tasks not cut."""
    ours = ("SQUEUE_", "SACCT_", "SCANCEL_", "SCONTROL_")
    clean = {name: value for name, value in submit_env(os.environ).items() if not name.startswith(ours)}
    return {**clean, "SLURM_TIME_FORMAT": "%s", "SLURM_BITSTR_LEN": "0"}


def _ask(words: Sequence[str], patience_s: float) -> Said:
    """Runs one program, in a session of its own, and ends it with its children where it takes too long.

    Its output goes to memory, not to a pipe that a grandchild might hold open, nor to a disk that may be full.
    """
    with os.fdopen(os.memfd_create("out"), "w+b") as out, os.fdopen(os.memfd_create("err"), "w+b") as err:
        try:
            process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=_client_env(), start_new_session=True
            )
        except OSError as e:
            return Said(None, err=f"{words[0]} is not here ({e.strerror})")
        try:
            code: int | None = process.wait(patience_s)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            if process.returncode is None:  # a Ctrl-C of ours as well
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(1.0)
        told = []
        for file in (out, err):
            file.seek(0)
            told.append(file.read(LARGEST).decode("utf-8", "replace"))
    return Said(code, *told) if code is not None else Said(None, told[0], f"{words[0]} gave no answer in {patience_s:g} s")

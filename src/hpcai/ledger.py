"""How often each test split was scored, and by how many configurations.   a report -> runs_dir/ledger.jsonl -> RUN/ledger.json

Whoever looks at a test split again and again, and keeps the best, has trained on it by hand. So each run that scores one says
so in one file of runs_dir: a line a run and split, appended under flock, whole or absent whatever is killed. A split is known
again by a digest of its cases and data, in whatever run. What the ledger said then stays in the run's own folder: the report
tells it, and the same folder gives the same report. A ledger that cannot be written or read costs a sentence, never the run.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import stat
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from hpcai import lease, rundir
from hpcai.errors import one_line
from hpcai.rundir import RunDir

NAME = "ledger.jsonl"
WAIT_S = 30.0  # for others that write: each holds it for milliseconds
MANY = 10  # configurations that one test split has judged: from here on its best score is chosen, not measured
FACTS = ("run_id", "begun", "identity", "digest")  # of a line: texts, but for `begun`
Json = dict[str, Any]


class _Unusable(Exception):
    """The ledger cannot be used; its text says why."""


def split_digest(cases: Iterable[str], data: Iterable[str]) -> str:
    """Which cases of which data: in any order, by any number of ranks. `data`: the digests of its files."""
    sha = hashlib.sha256()
    for part in (sorted(hashlib.sha256(case.encode("utf-8", "surrogatepass")).hexdigest() for case in cases), sorted(data)):
        sha.update(json.dumps(part).encode())
    return sha.hexdigest()


def note(run: RunDir, split: str, cases: Iterable[str]) -> Json:
    """Counts this run among those that scored `split`, once, and keeps in RUN/ledger.json what the ledger says with it.

    Returns that: `split`, its `digest`, `scored` (runs) and `configs`, null where they could not be counted, and then `why`. A
    run that goes on, and whose report is written again, was counted before.
    """
    entry = _entry(run, split, split_digest(cases, _data(run)))
    told: Json = {"split": split, "digest": entry["digest"], "scored": None, "configs": None, "why": None}
    before = _before(run)
    if before.get("scored") is not None and (before["split"], before["digest"]) == (split, entry["digest"]):
        return before
    try:
        same = [line for line in _counted(run.path.parent / NAME, entry) if line["digest"] == entry["digest"]]
        told |= {"scored": len({(line["run_id"], line["begun"]) for line in same})}
        told |= {"configs": len({line["identity"] for line in same})}
    except _Unusable as e:
        told["why"] = str(e)
    except OSError as e:
        told["why"] = e.strerror or type(e).__name__
    rundir.write_json(run.ledger, told)
    return told


def _before(run: RunDir) -> Json:
    """What RUN/ledger.json says; nothing if there is none or it is damaged."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        value = rundir.read_json(run.ledger)
        if isinstance(value, dict) and {"split", "digest", "scored", "configs", "why"} == value.keys():
            return value
    return {}


def _entry(run: RunDir, split: str, digest: str) -> Json:
    """This run's line. `begun`: when its first life was taken, so that a run that was removed and made again counts twice."""
    identity, begun = run.path.name, None
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        identity = str(rundir.read_json(run.plan)["identity"])
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        begun = float(lease.read_owner(run, 1)["time"])
    facts = {"run_id": run.path.name, "begun": begun, "identity": identity, "split": split, "digest": digest}
    return {"time": time.time(), **facts, "life": lease.last_life(run)}


def _data(run: RunDir) -> list[str]:
    try:
        return list(rundir.read_digests(run).values())
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []


def _counted(path: Path, entry: Json) -> list[Json]:
    """Every line of the ledger, `entry` among them: appended if its run and split are not there yet.

    Raises: _Unusable, OSError.
    """
    with _locked(path) as fd:
        data = _read(fd)
        whole = data[: data.rfind(b"\n") + 1]  # what follows was torn by a kill
        lines = [_line(text) for text in whole.splitlines()]
        if any(all(line[k] == entry[k] for k in FACTS) for line in lines):
            return lines
        os.ftruncate(fd, len(whole))
        added = (json.dumps(entry, allow_nan=False) + "\n").encode()
        try:
            while added:
                added = added[os.write(fd, added) :]
            os.fsync(fd)
        except OSError:
            os.ftruncate(fd, len(whole))
            raise
        return [*lines, entry]


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise _Unusable("it is no plain file")
        before = time.monotonic()
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() - before > WAIT_S:
                    raise _Unusable(f"another process held it for {WAIT_S:g} s") from None
                time.sleep(0.02)
        yield fd
    finally:
        os.close(fd)  # and with it the lock


def _read(fd: int) -> bytes:
    parts, at = [], 0
    while part := os.pread(fd, 2**20, at):
        parts.append(part)
        at += len(part)
    return b"".join(parts)


def _line(text: bytes) -> Json:
    """Raises: _Unusable for a line that is not ours."""
    try:
        line = json.loads(text)
        if all(isinstance(line[k], str) for k in FACTS if k != "begun") and isinstance(line["begun"], float | None):
            return dict(line)
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    raise _Unusable("a line of it is damaged")


# ---- in words


def sentence(told: Json) -> str:
    """What the report says of it."""
    what = "These cases" if told["split"] in ("all", "oof") else f"This {told['split']} split"
    verb = "were" if what == "These cases" else "was"
    if told["scored"] is None:
        return (
            f"How often {what[0].lower()}{what[1:]} {verb} scored could not be counted: {NAME}: {one_line(told['why'], 120)}."
        )
    times = "once" if told["scored"] == 1 else f"{told['scored']:,} times"
    configs = "1 configuration" if told["configs"] == 1 else f"{told['configs']:,} configurations"
    return f"{what} {verb} scored {times}, by {configs} (runs of this folder; a seed makes a configuration)."


def caution(told: Json) -> str | None:
    """What a reader must know before trusting the number, if so."""
    if told["scored"] is None:
        return sentence(told)
    if told["configs"] > MANY:
        return f"{sentence(told)} The best of so many is good by chance: judge it on cases that none of them has seen."
    if told["configs"] > 1:
        return f"{sentence(told)} If this one was chosen by its score here, the score is too good."
    return None

"""One digest for a whole run folder.   files -> manifest.json -> the seal: sha256 over the manifest's bytes

Made when the report is written. Each file of the folder is one of these, by its name:

    whole    everything else                                   sealed as it is: from then on no byte of it changes
    grows    logs/*  submitit/*  lives/*/rank*.jsonl           others still append: what stands there so far is sealed
    late     use.rank*.json  tracking.json  tensorboard/*      a rank writes them until its end: its end record has the digests
    free     lives/*/beat, verdict.json, cancelled             told by others, later: neither counted nor checked
             preflight/*  proposal.json  __pycache__  .hidden
             report.internal.html                              for its owner alone, written at any time
             releases.jsonl                                    who released what of it, later; its lines prove each other
             report.html, manifest.json                        shows the seal; is what is sealed (verification.py has both)

A rank's `end` record closes what comes after the seal: the rest of its log and of its own records, what it used, and itself.
The seal does not cover these records, so they show a damage, not a forgery. Standard library only.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

from hpcai import lease, rundir
from hpcai.errors import ConfigError, one_line
from hpcai.rundir import RunDir

VERSION = 1  # of manifest.json
GROWS = ("logs/*", "submitit/*", "lives/*/rank*.jsonl")
LATE = ("use.rank*.json", "tracking.json", "tensorboard/*")
FREE = (
    "lives/*/beat", "lives/*/verdict.json", "lives/*/cancelled", "preflight/*", "proposal.json", "*/__pycache__/*",
    "report.internal.html", "releases.jsonl", "report.html", "manifest.json",
)  # fmt: skip
ELSEWHERE = ("checkpoints", "rows", "tensorboard")  # folders that may be links to another disk
THREADS = 4  # that digest: hashlib drops the interpreter's lock
CHUNK = 2**20  # bytes read at once
Kind = Literal["whole", "grows", "late", "free"]
Json = dict[str, Any]


def kind_of(name: str) -> Kind:
    """How a file of a run folder is sealed. `name`: relative to the folder, with slashes."""
    if any(part.startswith(".") for part in name.split("/")) or _is(name, FREE):
        return "free"
    if _is(name, GROWS):
        return "grows"
    return "late" if _is(name, LATE) else "whole"


def _is(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def files_of(run: RunDir) -> dict[str, Path]:
    """Every file by its name in the folder, sorted. A link is what it leads to; to a folder it is a file, but for ELSEWHERE."""
    found: dict[str, Path] = {}
    tops = [run.path, *(run.path / name for name in ELSEWHERE if (run.path / name).is_symlink())]
    for folder, folders, names in (each for top in tops for each in os.walk(top)):
        links = [name for name in folders if (path := Path(folder, name)).is_symlink() and path not in tops]
        for name in (*names, *links):
            path = Path(folder, name)
            found[path.relative_to(run.path).as_posix()] = path
    return dict(sorted(found.items()))


def digest(path: Path, size: int | None = None) -> Json | None:
    """`bytes` and `sha256` of a plain file, or of its first `size` bytes; None if it is none, or shorter.

    Raises: OSError if it cannot be read.
    """
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb", buffering=0) as f:  # a pipe would keep us waiting
        if not stat.S_ISREG(os.fstat(f.fileno()).st_mode):
            return None
        sha, left, seen = hashlib.sha256(), size, 0
        while chunk := f.read(CHUNK if left is None else min(CHUNK, left)):
            sha.update(chunk)
            seen += len(chunk)
            left = None if left is None else left - len(chunk)
    return None if left else {"bytes": seen, "sha256": sha.hexdigest()}


def digests(paths: Mapping[str, Path], sizes: Mapping[str, int] | None = None) -> dict[str, Json | None]:
    """`digest` of many files, side by side; None also for one that is gone or cannot be read."""

    def one(name: str) -> Json | None:
        try:
            return digest(paths[name], (sizes or {}).get(name))
        except OSError:
            return None

    with ThreadPoolExecutor(THREADS) as pool:
        return dict(zip(paths, pool.map(one, paths), strict=True))


def write(run: RunDir) -> str:
    """Writes manifest.json of the folder as it is now; returns the seal. All that is `whole` must have been written before."""
    sealed = {name: path for name, path in files_of(run).items() if kind_of(name) in ("whole", "grows")}
    found = {name: facts for name, facts in digests(sealed).items() if facts is not None}
    data = encoded({"version": VERSION, "files": found})
    rundir.write_bytes(run.manifest, data)
    return seal_of(data)


def encoded(value: Any) -> bytes:
    """The one way to write a value: equal values are equal bytes."""
    return (json.dumps(value, sort_keys=True, indent=0, allow_nan=False) + "\n").encode()


def seal_of(data: bytes) -> str:
    """The seal of a manifest: 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def read_seal(text: str) -> str:
    """A seal as a person copies it off a page: in groups, in capitals.

    Raises: ConfigError for anything else.
    """
    seal = re.sub(r"[\s-]", "", text).lower()
    if not re.fullmatch("[0-9a-f]{64}", seal):
        raise ConfigError(f"--seal={one_line(text, 80)}: is no seal. Give the 64 digits that stand on each page of the report.")
    return seal


# ---- what comes after the seal


def last_words(run: RunDir, life: int, rank: int, end: Mapping[str, Any]) -> Json:
    """The facts of a rank's `end` record. One that ended well closes its files: `after`, rank 0's `seal`, its own `digest`.

    Called when this process writes no more into the folder.
    """
    if end.get("code") != 0:
        return dict(end)
    there = {path.relative_to(run.path).as_posix(): path for path in _past_the_seal(run, life, rank)}
    after = {name: facts for name, facts in digests(there).items() if facts is not None}
    facts = {"time": time.time(), **end, "after": after}
    if rank == 0 and run.manifest.is_file():
        facts["seal"] = seal_of(run.manifest.read_bytes())
    return {**facts, "digest": record_digest({"event": "end", "rank": rank, **facts})}


def _past_the_seal(run: RunDir, life: int, rank: int) -> list[Path]:
    """What a rank may write after the seal: its log, records, use and newest output; rank 0 what the trackers keep.

    Of this life alone, so that a record stays short after any number of them: what older ones said is sealed as a whole.
    """
    printed = sorted(run.submitit.glob(f"*_{rank}_log.*"), key=lambda file: file.stat().st_mtime_ns)[-2:]  # .out and .err
    own = [run.log(rank), lease.life_dir(run, life) / f"rank{rank}.jsonl", run.use_file(rank), *printed]
    return own + ([run.tracking, *sorted(run.tensorboard.glob("*"))] if rank == 0 else [])


def record_digest(record: Mapping[str, Any]) -> str:
    """sha256 over a record without its own `digest`."""
    return hashlib.sha256(encoded({key: value for key, value in record.items() if key != "digest"})).hexdigest()


def may_grow(name: str) -> bool:
    """Whether bytes may follow those that were digested: a log's, a tracker's that was slow to end."""
    return kind_of(name) == "grows" or name.startswith("tensorboard/")


def changes(run: RunDir, then: Mapping[str, Json], files: Mapping[str, Path]) -> Iterator[tuple[str, str]]:
    """(`changed` or `missing`, name) of each file that is not as `then` has it, by name."""
    there = {name: path for name, path in files.items() if name in then}
    now = digests(there, {name: int(then[name]["bytes"]) for name in there if may_grow(name)})
    for name, facts in then.items():
        if name not in there:
            yield "missing", name
        elif now[name] != {"bytes": facts["bytes"], "sha256": facts["sha256"]}:
            yield "changed", name

"""A Slurm of paper: squeue, sacct, scontrol, scancel and sbatch on PATH, answering from a folder and recording their calls.

    slurm = FakeSlurm.on(tmp_path, monkeypatch)
    slurm.queue(row("7", "PENDING", reason="Priority"), row("8_[1-9:2%2]", "PENDING"))
    slurm.history(past("6", "CANCELLED by 1000"))
    slurm.says("squeue", err="slurm_load_jobs error: ...", code=1)      # in place of its own answer, until told otherwise
    slurm.calls("squeue")                                               # [["--all", "--jobs=7,8", ...], ...]

The programs keep to what was seen on Slurm 22.05: header lines, times by SLURM_TIME_FORMAT, task lists cut after 64 bytes
without SLURM_BITSTR_LEN, the error for a single unknown job. This file is the kit and, run as a script, each of the programs.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

PROGRAMS = ("squeue", "sacct", "scontrol", "scancel", "sbatch")
HEADERS = {"i": "JOBID", "T": "STATE", "r": "REASON", "S": "START_TIME", "e": "END_TIME", "V": "SUBMIT_TIME", "N": "NODELIST",
           "j": "NAME", "U": "UID", "u": "USER"}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """A line of squeue or sacct, in squeue's words; times in seconds of the epoch."""

    id: str
    state: str
    reason: str = "None"
    start: float | None = None
    end: float | None = None
    submit: float | None = None
    nodes: str = ""
    name: str = "wrap"
    code: str = "0:0"
    derived: str = "0:0"
    rss: str = ""


@dataclass(frozen=True)
class FakeSlurm:
    """The kit: `folder` holds bin/, the answers and calls.jsonl."""

    folder: Path

    @classmethod
    def on(cls, folder: Path, monkeypatch: Any) -> FakeSlurm:
        """A Slurm that knows no job, first on PATH of this process and its children."""
        slurm = cls(folder / "slurm")
        (slurm.folder / "bin").mkdir(parents=True)
        for program in PROGRAMS:
            file = slurm.folder / "bin" / program
            words = shlex.join([sys.executable, "-I", "-S", __file__, str(slurm.folder), program])
            file.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
            file.chmod(0o755)
        conf = slurm.folder / "slurm.conf"
        conf.write_text("ClusterName=paper\n")
        slurm.queue()
        slurm.history()
        monkeypatch.setenv("PATH", f"{slurm.folder / 'bin'}{os.pathsep}{os.environ['PATH']}")
        monkeypatch.setenv("SLURM_CONF", str(conf))
        return slurm

    def queue(self, *rows: Row) -> None:
        """What squeue knows from now on."""
        _write(self.folder / "queue.json", [asdict(row) for row in rows])

    def history(self, *rows: Row) -> None:
        """What sacct knows from now on; an id with a dot is a step."""
        _write(self.folder / "history.json", [asdict(row) for row in rows])

    def says(self, program: str, *, out: str | bytes = "", err: str = "", code: int = 0, script: str = "") -> None:
        """A program's answer from now on; `script`: or this, in sh."""
        told = out.encode() if isinstance(out, str) else out
        script = script or f"cat {self.folder}/{program}.out; cat {self.folder}/{program}.err >&2; exit {code}"
        (self.folder / f"{program}.out").write_bytes(told)
        (self.folder / f"{program}.err").write_text(err)
        (self.folder / f"{program}.sh").write_text(script)

    def unsaid(self, program: str) -> None:
        """It answers by the rows again."""
        (self.folder / f"{program}.sh").unlink(missing_ok=True)

    def is_gone(self, program: str) -> None:
        """It stands no longer on PATH (unless the machine has one of its own)."""
        (self.folder / "bin" / program).unlink()

    def calls(self, program: str | None = None) -> list[list[str]]:
        """The words of every call so far; of all programs with their name first."""
        file = self.folder / "calls.jsonl"
        told = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
        return [c["words"] if program else [c["program"], *c["words"]] for c in told if program in (None, c["program"])]

    def seen(self, program: str) -> dict[str, str]:
        """The environment of its last call."""
        told = [json.loads(line) for line in (self.folder / "calls.jsonl").read_text().splitlines()]
        variables: dict[str, str] = [c["env"] for c in told if c["program"] == program][-1]
        return variables

    def jobs(self) -> list[dict[str, Any]]:
        """The queue's rows, those that sbatch has added among them."""
        rows: list[dict[str, Any]] = json.loads((self.folder / "queue.json").read_text())
        return rows


def row(id: str, state: str, **more: Any) -> Row:
    """A line of squeue."""
    return Row(id, state, **more)


def past(id: str, state: str, **more: Any) -> Row:
    """A line of sacct; submitted, begun and ended within the last hour where nothing else is said."""
    now = time.time()
    return Row(id, state, **{"submit": now - 3600.0, "start": now - 3000.0, "end": now - 60.0, **more})


def _write(file: Path, value: Any) -> None:
    beside = file.with_suffix(".new")
    beside.write_text(json.dumps(value))
    beside.replace(file)


# --- the programs


def _squeue(folder: Path, options: dict[str, str], names: list[str]) -> int:
    rows = json.loads((folder / "queue.json").read_text())
    wanted = options.get("jobs", "").split(",") if "jobs" in options else None
    chosen = [r for r in rows if wanted is None or _job(r["id"]) in {_job(w) for w in wanted}]
    if wanted is not None and len(wanted) == 1 and not chosen:
        print("slurm_load_jobs error: Invalid job id specified", file=sys.stderr)
        return 1
    if options.get("states") != "all":
        chosen = [r for r in chosen if r["state"] in ("PENDING", "RUNNING", "COMPLETING")]
    form = options["format"]
    if "noheader" not in options:
        print(re.sub(r"%([a-zA-Z])", lambda m: HEADERS[m[1]], form))
    for r in chosen:
        value = {
            "i": _cut(r["id"]), "T": r["state"].split()[0], "r": r["reason"], "S": _time(r["start"], "N/A"), "j": r["name"],
            "e": _time(r["end"], "N/A"), "V": _time(r["submit"], "N/A"), "N": r["nodes"], "U": "0", "u": "root",
        }  # fmt: skip
        print(re.sub(r"%([a-zA-Z])", lambda m, v=value: v[m[1]], form))
    return 0


def _sacct(folder: Path, options: dict[str, str], names: list[str]) -> int:
    rows = json.loads((folder / "history.json").read_text())
    wanted = {_job(w) for w in options["jobs"].split(",")}
    after = time.mktime(time.strptime(options["starttime"], "%Y-%m-%dT%H:%M:%S"))
    fields = options["format"].split(",")
    mark = options.get("delimiter", "|")
    print(mark.join(fields))
    for r in rows:
        if _job(r["id"]) not in wanted or ("." in r["id"] and "allocations" in options) or (r["end"] or time.time()) < after:
            continue
        value = {
            "JobID": r["id"], "State": r["state"], "ExitCode": r["code"], "DerivedExitCode": r["derived"],
            "Submit": _time(r["submit"], "Unknown"), "Start": _time(r["start"], "None"), "End": _time(r["end"], "Unknown"),
            "NodeList": r["nodes"] or "None assigned", "MaxRSS": r["rss"], "JobName": r["name"],
        }  # fmt: skip
        print(mark.join(value[f] for f in fields))
    return 0


def _scontrol(folder: Path, options: dict[str, str], names: list[str]) -> int:
    """`requeue JOB`: it waits again."""
    rows = json.loads((folder / "queue.json").read_text())
    found = [r for r in rows if r["id"] == names[1]]
    if not found:
        print(f"Invalid job id specified for job {names[1]}", file=sys.stderr)
        return 1
    if found[0]["state"] == "PENDING":
        print(f"Job is pending execution for job {names[1]}", file=sys.stderr)
        return 1
    found[0] |= {"state": "PENDING", "reason": "BeginTime", "nodes": ""}
    _write(folder / "queue.json", rows)
    return 0


def _scancel(folder: Path, options: dict[str, str], names: list[str]) -> int:
    """Without a signal they leave the queue; unknown ones are no fault."""
    if "signal" not in options:
        rows = json.loads((folder / "queue.json").read_text())
        _write(folder / "queue.json", [r for r in rows if r["id"] not in names and _job(r["id"]) not in names])
    return 0


def _sbatch(folder: Path, options: dict[str, str], names: list[str]) -> int:
    """The next number; the job waits in the queue by its script's name."""
    if "version" in options:
        print("slurm-wlm 22.05.8")
        return 0
    rows = json.loads((folder / "queue.json").read_text())
    script = Path(names[0]).read_text() if names else ""
    name = re.search(r"^#SBATCH --job-name=(\S+)", script, re.MULTILINE)
    id = str(1 + max([100, *(int(_job(r["id"])) for r in rows)]))
    job = Row(id, "PENDING", "Priority", submit=time.time(), name=options.get("job-name", name[1] if name else "wrap"))
    _write(folder / "queue.json", [*rows, asdict(job)])
    print(id if "parsable" in options else f"Submitted batch job {id}")
    return 0


def _job(id: str) -> str:
    return re.split(r"[_+.]", id)[0]


def _cut(id: str) -> str:
    """Task lists are cut after 64 bytes, in the middle of a number if it comes so."""
    job, bracket, tasks = id.partition("_[")
    return id if os.environ.get("SLURM_BITSTR_LEN") == "0" or len(tasks) < 64 else f"{job}{bracket}{tasks[:30]}"


def _time(at: float | None, none: str) -> str:
    if at is None:
        return none
    return str(int(at)) if os.environ.get("SLURM_TIME_FORMAT") == "%s" else time.strftime("%FT%T", time.localtime(at))


def main(folder: Path, program: str, words: list[str]) -> int:
    """Records the call, and answers it."""
    variables = {k: v for k, v in os.environ.items() if k.startswith(("SLURM", "SBATCH", "SQUEUE", "SACCT", "SCANCEL", "SRUN"))}
    line = json.dumps({"program": program, "words": words, "env": variables}) + "\n"
    with (folder / "calls.jsonl").open("ab", buffering=0) as f:
        f.write(line.encode())
    if (folder / f"{program}.sh").is_file():
        os.execv("/bin/sh", ["sh", str(folder / f"{program}.sh"), *words])
    options = {k.removeprefix("--"): v for k, _, v in (w.partition("=") for w in words if w.startswith("--"))}
    answers: dict[str, Callable[[Path, dict[str, str], list[str]], int]] = {
        "squeue": _squeue, "sacct": _sacct, "scontrol": _scontrol, "scancel": _scancel, "sbatch": _sbatch,
    }  # fmt: skip
    return answers[program](folder, options, [w for w in words if not w.startswith("--")])


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:]))

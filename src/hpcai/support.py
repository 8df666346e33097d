"""`hpcai support NAME`: one tar for a help desk.   run folder -> the files that are named here, cleaned -> NAME-support.tar.gz

What goes in is a list, so that what is not on it stays out: rows, weights, checkpoints, reports, split.json, data.json, code/,
failed.* never go. What goes in is cleaned (redaction.py). A run that is damaged, half written or another user's gives what can
be read of it, and README.txt inside says what could not.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import re
import stat
import tarfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hpcai
from hpcai import lease, rundir, runs, scheduler
from hpcai.arguments import Words
from hpcai.errors import ConfigError, PlanError, one_line
from hpcai.redaction import Redaction
from hpcai.rundir import RunDir
from hpcai.runs import DAMAGED
from hpcai.status import members_of

HELP = """\
Writes NAME-support.tar.gz into this folder, readable by you alone: what a help desk needs of a run, or of a sweep with its
members. Plan, config, batch script, records of each start, verdicts on nodes, the ends of logs and of metrics.jsonl, and what
scontrol and sacct say of its jobs, if they answer. Never: rows, weights, checkpoints, reports, split.json, data.json, code.

Taken out of what goes in: ids of cases and patients and names of files, as the run's own lists have them; data.path and what
lies below it; all other paths, the user's home among them, but those below the run, of Python and of the system; names of image
files; mail addresses; what is called a password, token or secret; of web addresses all but the host. Login, host and job names
stay. Nobody can know what else a library wrote into a log: look into it before you send it."""
MIB = 2**20
TAIL = MIB  # bytes of the end of a log, and of metrics.jsonl
OF_MEMBER = 64 * 1024  # the same of a sweep's member
WHOLE = 8 * MIB  # a file that is cleaned as a whole is no longer than this
ALL = 128 * MIB  # of everything, unpacked
JOBS = 10  # the newest ones are asked about
PATIENCE_S = 20.0  # for one question to Slurm
WANTED = (  # below the folder, in the order of their weight; of lives and ranks any number
    r"plan\.json", r"config\.yaml", r"job\.sbatch", r"environment\.json", r"runtime\.json", r"members\.json", r"results\.json",
    r"lives/\d{1,9}/(?:owner|verdict|address)\.json", r"lives/\d{1,9}/(?:claim|cancelled|beat)",
    r"lives/\d{1,9}/rank\d{1,9}\.jsonl", r"preflight/[\w.-]{1,200}\.json", r"submitit/\d{1,12}(?:_\d{1,9})?_batch\.log",
    r"logs/rank\d{1,9}\.log", r"submitit/\d{1,12}(?:_\d{1,9}(?:-\d{1,9})?)?_\d{1,9}_log\.(?:out|err)",
    r"submitit/\d{1,12}_\d{1,9}-\d{1,9}_srun\.log", r"submitit/controller\.log",
    r"submitit/[\w-]{1,80}_submission\.sh", r"driver\.log", r"forkserver\.log", r"metrics\.jsonl", r"search\.jsonl",
)  # fmt: skip
ALIAS = re.compile(rb"[-:,\[{?]\s*\*\w")  # of YAML, by which a few lines become millions: we write none
FOLDERS = ("", "lives/*", "preflight", "logs", "submitit")
MARKS = ("config.yaml", "environment.json", "data.json", "plan.json", "members.json", "lives", "code")  # any of them: a run
README = """\
What a help desk needs of {what} {name}: made by `hpcai support` of hpcai {version} on {when}.

Words in brackets stand for what was taken out ({count} times): <id> of a case, a patient or a file; <data.path> the data, and
what lies below it; <path> any other path; <file>.png an image; <mail>, <secret>, <address>. RUN is the run's folder, RUNS the
one that holds it, <python> and <hpcai> where these are installed. Login, host and job names are left in.
Not in here: rows, weights, checkpoints, reports, split.json, data.json, failed.*, tensorboard/, tracking.json, code/.

Before you send it: a library may have written into a log what no list names. Look into logs/ and submitit/.

state: {state}
disk: {disk}
also there: {there}

{files}
"""


@dataclass
class Bundle:
    """What goes into the tar: by name, with its time; and a line for each that was cut, or left out and why."""

    files: dict[str, tuple[bytes, float]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    size: int = 0

    def put(self, name: str, text: str, when: float) -> None:
        """Adds a file that has been cleaned."""
        data = text.encode("utf-8", "replace")
        if self.size + len(data) > ALL:
            self.notes.append(f"left out  {name}: more than {ALL // MIB} MiB in all")
            return
        self.files[name] = (data, when)
        self.size += len(data)


def main(argv: list[str]) -> int:
    """`hpcai support NAME [-o FILE]`; returns the exit code.

    Raises: ConfigError for an unknown name, PlanError if the file is there already or cannot be written.
    """
    words = Words("support", "NAME", HELP)
    words.add_argument("--output", "-o", metavar="FILE", type=Path, help="write this file (NAME-support.tar.gz)")
    options = words.read(argv, least=1, most=1)
    if options is None:
        return 0
    target = target_of(options.names[0], options.runs_dir)
    name = _safe(target.path.name)
    file = options.output if options.output is not None else Path(f"{name}-support.tar.gz")
    _refuse_existing(file)
    bundle = collected(target)
    _write(file, packed(bundle, f"{name}-support"))
    if options.json:
        facts = {"file": str(file.absolute()), "bytes": file.stat().st_size, "files": list(bundle.files), "notes": bundle.notes}
        print(json.dumps(facts, indent=1))
    else:
        print(f"{one_line(str(file), 200)}: {len(bundle.files)} files, {max(1, file.stat().st_size // 1024)} KiB.")
        print("Look into it before you send it: README.txt in it says what was taken out, and what nobody can know.")
    return 0


def target_of(name: str, runs_dir: Path) -> RunDir:
    """The run or sweep that is meant; also a folder that its launcher did not live to finish, by its whole name or path.

    Raises: ConfigError as runs.find.
    """
    try:
        return runs.find(name, runs_dir)
    except ConfigError:
        for folder in (Path(name), runs_dir / name, runs_dir / runs.SWEEPS / name):
            with contextlib.suppress(OSError, ValueError):
                if any((folder / mark).exists() for mark in MARKS):
                    return RunDir(folder.absolute())
        raise


def collected(target: RunDir) -> Bundle:
    """Everything of a run, or of a sweep and its members, cleaned."""
    bundle = Bundle()
    sweep = runs.is_sweep(target.path) or target.path.parent.name == runs.SWEEPS
    members = [member for member in members_of(target.path) if member.path.is_dir()] if sweep else []
    configs = {run.path: _config(run) for run in (target, *members)}
    known = Redaction()
    for folder, config in configs.items():
        known.learn(RunDir(folder), config)
    views = {run.path: known.seen_from(_runs_dir(run), run) for run in (target, *members)}
    for run in (target, *members):
        below = "" if run is target else f"members/{_safe(run.path.name)}/"
        _add_files(bundle, run, views[run.path], configs[run.path], below, TAIL if run is target else OF_MEMBER)
    own = views[target.path]
    if words := own.clean("\n\n".join(_slurm_words([target, *members]))):
        bundle.put("slurm.txt", f"{words}\n", time.time())
    count = sum(view.count for view in views.values())
    readme = _readme(target, bundle, own, count, "the sweep" if sweep else "the run")
    bundle.files = {"README.txt": (readme.encode("utf-8", "replace"), time.time()), **bundle.files}
    return bundle


def _safe(name: str) -> str:
    """A folder's name as a part of another file's."""
    return re.sub(r"[^\w.-]", "_", name)


def _runs_dir(run: RunDir) -> Path:
    parent = run.path.parent
    return parent.parent if parent.name == runs.SWEEPS else parent


# ---- its files


def _config(run: RunDir) -> Any:
    """What config.yaml holds; None if it is not there, or damaged."""
    import yaml

    try:
        data = _read(run.config, WHOLE)[0]
        value = None if ALIAS.search(data) else yaml.safe_load(data)
    except (*DAMAGED, yaml.YAMLError):
        return None
    return value if isinstance(value, dict) else None


def _add_files(bundle: Bundle, run: RunDir, own: Redaction, config: Any, below: str, tail: int) -> None:
    found = {path.relative_to(run.path).as_posix(): path for folder in FOLDERS for path in _inside(run.path, folder)}
    for pattern in WANTED:
        names = sorted((name for name in found if re.fullmatch(pattern, name)), key=_in_order)
        for name in names:
            try:
                data, when, cut = _read(found[name], tail if name.endswith(("log", "out", "err", ".jsonl")) else WHOLE)
            except OSError as e:
                bundle.notes.append(f"left out  {below}{name}: {e.strerror or e}")
                continue
            text = data.decode("utf-8", "replace")
            if name == "config.yaml":
                text = _yaml(own, config)
                if not text:
                    bundle.notes.append(f"left out  {below}{name}: is damaged ({len(data)} bytes), so what it holds is unknown")
                    continue
            elif name.endswith((".json", ".jsonl")):
                text = own.json_text(text, lines=name.endswith(".jsonl"))
            else:
                text = own.clean(text)
            bundle.put(below + name, text, when)
            if cut:
                bundle.notes.append(f"cut       {below}{name}: its last {len(data)} of {len(data) + cut} bytes")


def _yaml(own: Redaction, config: Any) -> str:
    """A config, cleaned; nothing of one that is damaged, or nested as none of ours is."""
    import yaml

    try:
        text: str = yaml.safe_dump(own.value(config), sort_keys=False, allow_unicode=True, width=1000) if config else ""
    except RecursionError:
        return ""
    return text


def _inside(folder: Path, pattern: str) -> Iterator[Path]:
    for parent in sorted(folder.glob(pattern)) if pattern else [folder]:
        with contextlib.suppress(OSError):
            yield from parent.iterdir()


def _in_order(name: str) -> list[Any]:
    """rank2 before rank10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def _read(path: Path, most: int) -> tuple[bytes, float, int]:
    """The end of a plain file from a line's begin on, when it was written, and how many bytes were left out before it.

    Raises: OSError for a link, a pipe or a device as well.
    """
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW), "rb") as f:
        facts = os.fstat(f.fileno())
        if not stat.S_ISREG(facts.st_mode):
            raise OSError("is no plain file")
        at = f.seek(max(0, facts.st_size - most))
        data = f.read(most)
    if at:
        data = data[data.find(b"\n") + 1 :]
    return data, facts.st_mtime, max(0, facts.st_size - len(data))


# ---- what others say


def _slurm_words(targets: list[RunDir]) -> Iterator[str]:
    """What Slurm says of the newest jobs, in its own words; nothing of runs that never had one."""
    jobs: dict[str, tuple[str, float]] = {}
    for run in targets:
        with contextlib.suppress(*DAMAGED):
            alone = str(rundir.read_json(run.plan)["run_id"])
            for life in range(1, lease.last_life(run) + 1):
                owner = lease.read_owner(run, life)
                called = (
                    Path(str(owner["sweep"])).name if owner.get("sweep") else alone
                )  # a member's job is called as its sweep
                for job in (owner.get("job"), *owner.get("chain", ())):
                    jobs.setdefault(str(job or ""), (called, float(owner["time"])))
    jobs.pop("", None)
    newest = sorted(jobs, key=lambda job: jobs[job][1])[-JOBS:]
    for name in dict.fromkeys(jobs[job][0] for job in newest):
        own = [job for job in newest if jobs[job][0] == name]
        yield from scheduler.words_of(own, name, min(jobs[job][1] for job in own), PATIENCE_S)


def _readme(target: RunDir, bundle: Bundle, own: Redaction, count: int, what: str) -> str:
    state = runs.state_of(target)
    far = f" at step {state.step}" if state.step is not None else ""
    said = f"{state.state}{far}, start {state.life}" + (f", code {state.code}" if state.code is not None else "")
    listed = [f"{len(data):>10}  {name}" for name, (data, _) in bundle.files.items()]
    return README.format(
        what=what, name=one_line(target.path.name, 120), version=hpcai.__version__, count=count,
        when=time.strftime("%Y-%m-%d %H:%M:%S %z"),
        state=one_line(own.clean(f"{said}. {state.message}").strip(), 600), disk=_disk(target.path), there=_there(target.path),
        files="\n".join(["bytes       file", *listed, *bundle.notes]),
    )  # fmt: skip


def _disk(folder: Path) -> str:
    """How full the file system is: what runs die of, and nobody says."""
    try:
        facts = os.statvfs(folder)
    except OSError as e:
        return f"cannot be asked ({e.strerror})"
    free, files = facts.f_bavail * facts.f_frsize / 2**30, f", {facts.f_favail} more files" * bool(facts.f_files)
    return f"{free:.1f} GiB free{files} (a quota may be tighter)"


def _there(folder: Path) -> str:
    """How much the run folder holds of what is not in here: numbers, no names."""
    told = []
    for kind in ("checkpoints", "rows", "code", "split.json", "data.json", "model.json", "report.json", "report.html"):
        path = folder / kind
        with contextlib.suppress(OSError):
            if path.is_dir():
                told.append(f"{kind}/ ({sum(1 for _ in path.iterdir())} files)")
            elif path.is_file():
                told.append(f"{kind} ({path.stat().st_size} bytes)")
    return ", ".join(told) or "nothing"


# ---- the tar


def packed(bundle: Bundle, folder: str) -> bytes:
    """The tar, gzipped: everything in one folder, owned by nobody."""
    raw = io.BytesIO()
    with gzip.GzipFile(fileobj=raw, mode="wb", mtime=0, filename="") as zipped, tarfile.open(fileobj=zipped, mode="w") as tar:
        for name, (data, when) in bundle.files.items():
            entry = tarfile.TarInfo(f"{folder}/{name}")
            entry.size, entry.mtime, entry.mode = len(data), int(when), 0o600
            tar.addfile(entry, io.BytesIO(data))
    return raw.getvalue()


def _refuse_existing(file: Path) -> None:
    if file.is_symlink() or file.exists():
        raise PlanError(f"-o={one_line(str(file), 200)}: is there already. Remove it, or name another file by -o.")


def _write(file: Path, data: bytes) -> None:
    """Makes the file, for its owner alone; one that is there is left as it is.

    Raises: PlanError.
    """
    try:
        made = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        _refuse_existing(file)
        raise
    except (OSError, ValueError) as e:
        why = (e.strerror if isinstance(e, OSError) else None) or "no such place"
        raise PlanError(f"-o={one_line(str(file), 200)}: {why}. Name a file that can be written.") from e
    try:
        with os.fdopen(made, "wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
    except OSError as e:
        file.unlink(missing_ok=True)
        raise PlanError(f"-o={one_line(str(file), 200)}: {e.strerror}. Name a file that can be written.") from e

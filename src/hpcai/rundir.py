"""Where each file of a run lies, its format and who owns it; nothing else builds these names.

    RUN/
      config.yaml  plan.json  environment.json  data.json      the submitter writes, ranks read
      code/hpcai/                                              the package as it was at submission
      job.sbatch  preflight/<node>.json                        what Slurm was given; whether its nodes are fit (if asked for)
      runtime.json                                             what rank 0 runs on, on Slurm
      lives/0001/{owner.json, rank0.jsonl, beat, address.json} one folder a life (see lease.py)
      logs/rank0.log   submitit/                               what ranks say; what they print past it
      split.json  metrics.jsonl  checkpoints/                  rank 0 (train)
      cases.jsonl                                              what is known of each case: split, patient, groups, size
      model.json  threshold.json                               which checkpoint is the model, and where it says yes
      rows/<split>.rank<r>.jsonl  failed.rank<r>.jsonl         one row a case
      table_model.json  fit.json                               what job=fit left, and what the cases that it judged say
      together.json                                            the runs of an ensemble, and what it gained
      use.rank<r>.json                                         what each rank used: CPU, memory, GPU
      survey.json  plates.json (and .rank<r>)                  what all newborns of a table have in common, counted (screening)
      records/<block>.jsonl  tally/<block>.json                one record a newborn; what a block came to (screening, predict)
      releases.jsonl                                           who released which decisions, and when (screening, predict)
      screening.json                                           what screening came to: the report shows it
      screening_model.json                                     its model, thresholds and references (screening, fit)
      pictures.json                                            the most wrong cases' thumbnails, of data that may be shown
      ledger.json                                              how often its test split was scored before
      report.json  report.html                                 the answer
      manifest.json                                            the digest of every file: what the seal is over
      report.internal.html                                     the same with pictures and ids, for its owner alone; never sent
      proposal.json                                            what whole runs will take (`hpcai try`)
      tracking.json  tensorboard/                              rank 0, where trackers are asked for

JSON is UTF-8 and written beside, synced, renamed; JSON lines are appended whole lines and cut to the last newline by whoever
goes on after a kill. docs/run-folder.md has each format. Standard library only.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

VERSION = 1  # of the run folder's formats; stands in plan.json
REPORT_VERSION = 2  # of report.json, whose shape report/schema.json gives


@dataclass(frozen=True)
class RunDir:
    """The names inside one run folder."""

    path: Path

    @property
    def config(self) -> Path:
        """The resolved config, YAML."""
        return self.path / "config.yaml"

    @property
    def plan(self) -> Path:
        """The plan (plan.JobPlan), JSON."""
        return self.path / "plan.json"

    @property
    def environment(self) -> Path:
        """Python, packages with versions and licences, git, machine."""
        return self.path / "environment.json"

    @property
    def runtime(self) -> Path:
        """The same of the compute nodes' Python, where a scheduler's job runs it."""
        return self.path / "runtime.json"

    @property
    def data(self) -> Path:
        """Name, source, licence of the data and path, bytes, sha256 of each input."""
        return self.path / "data.json"

    @property
    def code(self) -> Path:
        """The snapshot: this folder goes on PYTHONPATH."""
        return self.path / "code"

    @property
    def script(self) -> Path:
        """The batch script that Slurm was given."""
        return self.path / "job.sbatch"

    @property
    def preflight(self) -> Path:
        """<node>.json: the verdict on each node, where it was asked for."""
        return self.path / "preflight"

    @property
    def lives(self) -> Path:
        """One folder a life: who owned it, what its ranks did."""
        return self.path / "lives"

    @property
    def split(self) -> Path:
        """Case ids of train, val and test; written once."""
        return self.path / "split.json"

    @property
    def cases(self) -> Path:
        """JSON lines: what the data say of each case but its pixels."""
        return self.path / "cases.jsonl"

    @property
    def metrics(self) -> Path:
        """JSON lines: training (every log_every steps) and validation."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        """step-00000042.safetensors and its .json."""
        return self.path / "checkpoints"

    @property
    def rows(self) -> Path:
        """<split>.rank<r>.jsonl."""
        return self.path / "rows"

    @property
    def model(self) -> Path:
        """Which checkpoint is the model, its digest, labels and input; written when training has ended."""
        return self.path / "model.json"

    @property
    def threshold(self) -> Path:
        """The operating point, with its rule and the split it was set on."""
        return self.path / "threshold.json"

    @property
    def table_model(self) -> Path:
        """The estimator of job=fit on classes of cases, with its features and calibration; model.json has its digest."""
        return self.path / "table_model.json"

    @property
    def fit(self) -> Path:
        """What the cases that job=fit judged say, and what it chose."""
        return self.path / "fit.json"

    @property
    def together(self) -> Path:
        """The runs of an ensemble, how each does alone, and what their mean gained."""
        return self.path / "together.json"

    @property
    def report_json(self) -> Path:
        """The answer, for programs."""
        return self.path / "report.json"

    @property
    def report_html(self) -> Path:
        """The answer, for people."""
        return self.path / "report.html"

    @property
    def ledger(self) -> Path:
        """How often, and by how many configs, the split that was judged had been scored when the report was written."""
        return self.path / "ledger.json"

    @property
    def manifest(self) -> Path:
        """Bytes and sha256 of every file (see seal.py)."""
        return self.path / "manifest.json"

    @property
    def report_internal(self) -> Path:
        """The answer with pictures and ids of cases: never part of an export, a support bundle or a manifest."""
        return self.path / "report.internal.html"

    @property
    def pictures(self) -> Path:
        """Thumbnails of the most wrong cases by id, where data.shareable says that they may be shown."""
        return self.path / "pictures.json"

    @property
    def proposal(self) -> Path:
        """By identity, what each whole run that this one was a try of will take."""
        return self.path / "proposal.json"

    @property
    def submitit(self) -> Path:
        """submitit's folder: what a rank prints past its log."""
        return self.path / "submitit"

    @property
    def tracking(self) -> Path:
        """The id by which MLflow's run of this folder is found again."""
        return self.path / "tracking.json"

    @property
    def tensorboard(self) -> Path:
        """Event files, for `tensorboard --logdir`."""
        return self.path / "tensorboard"

    @property
    def records(self) -> Path:
        """<block>.jsonl: one record a newborn, in the table's order."""
        return self.path / "records"

    @property
    def tallies(self) -> Path:
        """<block>.json: what the newborns of a block came to."""
        return self.path / "tally"

    @property
    def screening(self) -> Path:
        """What screening came to, for the report."""
        return self.path / "screening.json"

    @property
    def releases(self) -> Path:
        """JSON lines: who released which decisions, and when."""
        return self.path / "releases.jsonl"

    @property
    def screening_model(self) -> Path:
        """The model of newborn screening: estimators, calibration, thresholds, references."""
        return self.path / "screening_model.json"

    def records_file(self, block: int) -> Path:
        """The records of a block; a block that has them is done."""
        return self.records / f"{block:08d}.jsonl"

    def tally_file(self, block: int) -> Path:
        """The counts of a block."""
        return self.tallies / f"{block:08d}.json"

    def counted_file(self, name: str, rank: int | None = None) -> Path:
        """`survey` or `plates`: what rank `rank` counted; None: all of them."""
        return self.path / (f"{name}.json" if rank is None else f"{name}.rank{rank}.json")

    def log(self, rank: int) -> Path:
        """What rank `rank` says."""
        return self.path / "logs" / f"rank{rank}.log"

    def failed_file(self, rank: int) -> Path:
        """JSON lines: cases that rank `rank` could not read (predict)."""
        return self.path / f"failed.rank{rank}.jsonl"

    def failed_files(self) -> list[Path]:
        """Those of every rank."""
        return sorted(self.path.glob("failed.rank*.jsonl"))

    def use_file(self, rank: int) -> Path:
        """What rank `rank` used so far."""
        return self.path / f"use.rank{rank}.json"

    def use_files(self) -> list[Path]:
        """Those of every rank."""
        return sorted(self.path.glob("use.rank*.json"))

    def rows_file(self, split: str, rank: int) -> Path:
        """The rows that rank `rank` wrote of `split`."""
        return self.rows / f"{split}.rank{rank}.jsonl"

    def row_files(self, split: str) -> list[Path]:
        """Every shard of `split`, in the order of ranks."""
        files = self.rows.glob(f"{split}.rank*.jsonl")
        return sorted(files, key=lambda f: int(f.name.rsplit("rank", 1)[1].split(".")[0]))


def guard(access: str) -> None:
    """Files that this process makes from now on are the user's alone, or readable by the group too (`runs_access`)."""
    os.umask(0o027 if access == "group" else 0o077)


def write_bytes(path: Path, data: bytes) -> None:
    """Whole or not at all, also through a crash: write beside, sync, rename, sync the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{socket.gethostname()}-{os.getpid()}.tmp")  # hosts have the same pids
    try:
        with beside.open("wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        beside.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Makes a rename in `folder` last through a crash of the machine."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_json(path: Path, value: Any) -> None:
    """`value` as indented JSON; NaN is refused (it is no JSON)."""
    write_bytes(path, _encoded(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"))


def _encoded(text: str) -> bytes:
    """UTF-8. A byte of a file's name that is none becomes `\\udcXX`: JSON's own escape, read back as the same name."""
    return text.encode(errors="backslashreplace")


def read_json(path: Path) -> Any:
    """The value in `path`."""
    return json.loads(path.read_bytes())


def append_lines(path: Path, values: Sequence[Mapping[str, Any]], *, sync: bool = False) -> None:
    """Appends one JSON line a value, in one write; `sync` waits for the disk. What a full disk cut short is taken back."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = _encoded("".join(json.dumps(v, ensure_ascii=False, allow_nan=False) + "\n" for v in values))
    with path.open("ab", buffering=0) as f:
        before = f.tell()
        try:
            for chunk in iter(lambda: data[f.tell() - before :], b""):
                f.write(chunk)
        except OSError:
            f.truncate(before)
            raise
        if sync:
            os.fsync(f.fileno())


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The values of a JSON lines file, without a last line that a kill has torn; nothing if it is absent."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return
    for line in data[: data.rfind(b"\n") + 1].splitlines():
        if line.strip():
            yield json.loads(line)


def cut_torn_line(path: Path) -> None:
    """Cuts an append-only file to its last newline, so that the next line starts a line."""
    with contextlib.suppress(FileNotFoundError), path.open("r+b") as f:
        data = f.read()
        f.truncate(data.rfind(b"\n") + 1)


def read_digests(run: RunDir) -> dict[str, str]:
    """{absolute path: sha256} of the inputs at submission, from data.json."""
    return {f["path"]: f["sha256"] for f in read_json(run.data)["files"]}

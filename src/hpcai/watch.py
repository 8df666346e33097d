"""From a started run to the launcher's exit code: stream rank 0's words, pass signals on, read the verdict.

Standard output gets what rank 0 says, one live line on a terminal, and the answer; standard error gets what is wrong.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

from hpcai import lease, runs, submit
from hpcai.config.schema import Config
from hpcai.context import STOP_SIGNALS
from hpcai.errors import one_line
from hpcai.plan import JobPlan
from hpcai.rundir import RunDir

POLL_S = 0.1


def listen() -> list[int]:
    """Notes Ctrl-C, SIGTERM and SIGUSR2 from now on in the list that it returns; called before anything is started."""
    asked: list[int] = []

    def note(signum: int, frame: FrameType | None) -> None:
        asked.append(signum)

    for signum in STOP_SIGNALS:
        signal.signal(signum, note)
    return asked


def follow(run: RunDir, plan: JobPlan, config: Config, job: Any, life: int, asked: list[int]) -> int:
    """Waits for the run's end, shows it, returns the exit code.

    What `listen` noted is passed on as one SIGTERM to submitit's controller, which forwards it; the launcher waits for the
    checkpoint and exits with 128 + its own signal. Ranks may outlive their controller: the run ends with them.
    """
    screen = Screen(run, config, Path(job.paths.folder) / f"{job.job_id}_0_log.out")
    sent = 0.0
    while job._process.poll() is None or lease.read_state(run).state == "running":
        screen.update()
        if asked and time.monotonic() - sent > submit.AGAIN_S and submit.ask_to_stop(run, life, plan.ranks):
            sent = time.monotonic()
        time.sleep(POLL_S)
    screen.close()
    return conclude(run, asked[0] if asked else None)


def conclude(run: RunDir, signum: int | None = None) -> int:
    """Shows the verdict that the records give and returns its exit code. `signum`: the launcher was asked to stop."""
    state = lease.read_state(run)
    if state.state == "completed":
        show_answer(run)
        return 0
    if signum is not None and (state.state == "stopped" or (state.state == "lost" and state.step is None)):
        message = state.message if state.state == "stopped" else "stopped before its first step. The same command starts it."
        print(message, file=sys.stderr)
        return 128 + signum
    print(state.message or f"run={run.path.name}: failed. Its log has more.", file=sys.stderr)
    print(f"log: {shown(run.log(0) if run.log(0).is_file() else run.submitit)}", file=sys.stderr)
    return state.code or 1


def show_answer(run: RunDir) -> None:
    """The answer with its interval, what to know before trusting it, and where the report lies."""
    if run.report_json.is_file():
        report = runs.read_report(run)
        print(answer(report))
        for warning in report["warnings"][:5]:
            print(f"note: {warning}")
    print(f"report: {shown(run.report_html)}")


def answer(report: dict[str, Any]) -> str:
    """`test AUC 0.980 [0.967, 0.989] n=624 . sensitivity 0.97, specificity 0.86 at 0.61 (rule: sensitivity>=0.95 on val)`."""
    estimates, threshold = report["estimates"], report["threshold"]
    if "screening" in report or not estimates or estimates[0]["value"] is None:
        return str(report["answer"])
    split = estimates[0]["split"]
    told = {e["name"]: e for e in estimates if e["split"] == split and e["value"] is not None}
    first = estimates[0]
    name = {"auc": "AUC", "macro_auc": "macro AUC"}.get(first["name"], first["name"])
    line = f"{split} {name} {first['value']:.3f}{_interval(first)} n={first['n']}"
    rates = [f"{n} {told[n]['value']:.2f}" for n in ("accuracy", "sensitivity", "specificity") if n in told]
    if rates:
        line += " . " + ", ".join(rates)
    if threshold and threshold["value"] is not None:
        line += f" at {threshold['value']:.2f} (rule: {threshold['rule']} on {threshold['split']})"
    return line


def _interval(fact: dict[str, Any]) -> str:
    """` [0.967, 0.989]`; nothing where too few cases give none."""
    return "" if fact["low"] is None or fact["high"] is None else f" [{fact['low']:.3f}, {fact['high']:.3f}]"


def shown(path: Path) -> str:
    """`path` as a person at this prompt would type it."""
    try:
        return one_line(str(path.relative_to(Path.cwd())))
    except ValueError:
        return one_line(str(path))


def ago(seconds: float) -> str:
    """`2 min ago`."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


def duration(seconds: float) -> str:
    """`1 h 10 min`, `1 min 40 s`, `7 s`."""
    s = round(seconds)
    if s >= 3600:
        return f"{s // 3600} h {s % 3600 // 60} min"
    return f"{s // 60} min {s % 60} s" if s >= 60 else f"{s} s"


class Screen:
    """What rank 0 prints, as it comes; on a terminal with one live line below it."""

    def __init__(self, run: RunDir, config: Config, out: Path, to: TextIO | None = None) -> None:
        self.to = to or sys.stdout
        self.live = self.to.isatty()
        self.epochs = config.trainer.epochs
        self.words, self.metrics = Tail(out), Tail(run.metrics, skip=run.metrics.is_file())
        self.facts: dict[str, dict[str, Any]] = {}

    def update(self) -> None:
        """Shows what has come since the last call."""
        lines = self.words.read()
        told = self.metrics.read() if self.live else []
        for line in told:
            fact = json.loads(line)
            self.facts[fact["kind"]] = fact
        if lines or told:
            self._clear()
            for line in lines:
                print(line, file=self.to)
            if self.live and "train" in self.facts:
                print(self._line(), end="", file=self.to)
            self.to.flush()

    def _line(self) -> str:
        train, val = self.facts["train"], self.facts.get("val")
        parts = [f"epoch {train['epoch']}/{self.epochs}", f"{train['samples_s']:,.0f} img/s"]
        if val and val.get("auc") is not None:
            parts.append(f"val AUC {val['auc']:.3f}{_interval(val)}")
        parts.append(f"{duration(train['left_s'])} left")
        return "  ".join(parts)

    def _clear(self) -> None:
        if self.live:
            print("\r\x1b[2K", end="", file=self.to)

    def close(self) -> None:
        """The last words; the live line goes."""
        self.update()
        self._clear()
        self.to.flush()


class Tail:
    """The whole lines that a growing file got since the last look."""

    def __init__(self, path: Path, *, skip: bool = False) -> None:
        self.path = path
        self.at = path.stat().st_size if skip else 0

    def read(self) -> list[str]:
        """New whole lines, without their ends."""
        try:
            with self.path.open("rb") as f:
                size = f.seek(0, 2)
                if size < self.at:  # cut on resume
                    self.at = size
                f.seek(self.at)
                data = f.read()
        except FileNotFoundError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self.at += len(whole)
        return whole.decode("utf-8", "replace").splitlines()

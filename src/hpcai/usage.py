"""`hpcai usage`: node-hours by account and experiment, useful against lost.   runs_dir -> lives -> [Use] -> table or JSON

Time is a life's: from the first record of a rank to the last one; where a rank ended without a word, to the life's last beat.

    useful   all of a life that completed, or runs still
             of an earlier one the part up to the last checkpoint that a later life went on from. That it did is proved by a
             step on record beyond that checkpoint, or by its end. predict keeps every case; evaluate and gather keep none
    lost     the rest: steps that were done twice, and lives that nothing came of
    kept     of what is lost the part that lies in a checkpoint: `hpcai resume` makes it useful

Nobody is asked: what Slurm bills before ranks begin and after they end stands in its accounting alone.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
import shutil
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from hpcai import lease, rundir, runs
from hpcai.arguments import Words
from hpcai.errors import ConfigError, one_line
from hpcai.rundir import RunDir
from hpcai.runs import DAMAGED
from hpcai.status import print_table

HELP = """\
Adds up what the runs below DIR have used, by account (of a run on this machine by its cluster's name) and experiment: the time
from a start's first record to its last one, times nodes. node-h: hours times nodes. core-h: hours times ranks times threads; on
this machine, which runs may share, it says more. A price is the plan's own, in the site's unit, for the time that was used.

useful: starts that completed or still run, and what earlier ones did up to the last checkpoint that a later one went on from.
lost: all else: steps that were done again, starts that nothing came of. What of it lies in a checkpoint is told below the
table: hpcai resume makes it useful.

The figures are those of the runs' own records; Slurm is not asked. Its accounting (sacct: ElapsedRaw x NNodes) has a little
more for each start, before the ranks begin and after they end; what you are billed is its word, not this one. Of runs that were
removed nothing is known here."""
KEEPS = {"train", "predict"}  # jobs whose later life goes on from what an earlier one has done
ASIDE = re.compile(r"checkpoint=step-(\d{1,12}): is damaged")  # checkpoint.py's warning when it goes back to the one before
KEPT_S = 120.0  # the clock of a file server may differ so much from a node's; what differs more is a copied folder's new time
PERIODS = {"h": 3600.0, "d": 86400.0, "w": 7 * 86400.0}


@dataclass(frozen=True)
class Life:
    """One life: when it began and ended, and until when its time was useful, or lies in a checkpoint; seconds of the epoch."""

    number: int
    began: float
    ended: float
    useful: float = 0.0
    kept: float = 0.0
    saved: Mapping[int, float] = field(default_factory=dict)  # step -> when it was saved
    aside: frozenset[int] = frozenset()  # checkpoints that it found damaged

    def until(self, when: float, since: float = 0.0) -> float:
        """Seconds of it before `when`, from `since` on."""
        return max(0.0, min(when, self.ended) - max(self.began, since))

    def saved_by(self, step: float) -> float:
        """When it saved the last step that is not beyond `step`; its begin if it saved none."""
        return max((when for at, when in self.saved.items() if at <= step), default=self.began)


@dataclass(frozen=True)
class Use:
    """What one run has used. `nodes`: of one that shared a node its part of it. `price`: in `unit`, for a second."""

    run_id: str
    account: str
    experiment: str
    job: str
    state: str
    nodes: float
    cores: int
    unit: str
    price: float
    lives: tuple[Life, ...]


@dataclass
class Sum:
    """Seconds times nodes (`core`: times cores), over runs."""

    runs: int = 0
    lives: int = 0
    node: float = 0.0
    useful: float = 0.0
    kept: float = 0.0
    running: float = 0.0
    core: float = 0.0
    price: dict[str, float] = field(default_factory=dict)

    def add(self, use: Use, since: float) -> None:
        """Counts a run's time from `since` on; a run without any is left out."""
        spans = [(life, life.until(math.inf, since)) for life in use.lives if life.ended > since]
        if not spans:
            return
        seconds = sum(span for _, span in spans)
        self.runs, self.lives = self.runs + 1, self.lives + len(spans)
        self.node += use.nodes * seconds
        self.useful += use.nodes * sum(life.until(life.useful, since) for life, _ in spans)
        self.kept += use.nodes * sum(life.until(life.kept, since) for life, _ in spans)
        self.running += use.nodes * spans[-1][1] if use.state == "running" else 0.0
        self.core += use.cores * seconds
        if use.unit:
            self.price[use.unit] = self.price.get(use.unit, 0.0) + use.price * seconds

    def to_json(self) -> dict[str, Any]:
        """In hours."""
        hours = {"node_h": self.node, "useful_node_h": self.useful, "lost_node_h": self.node - self.useful}
        hours |= {"kept_node_h": self.kept, "running_node_h": self.running, "core_h": self.core}
        price = {unit: round(amount, 6) for unit, amount in sorted(self.price.items())}
        return {"runs": self.runs, "lives": self.lives, **{k: round(v / 3600, 6) for k, v in hours.items()}, "price": price}


# --- one run


def read_use(run: RunDir, now: float) -> Use:
    """What a run's records say that it has used.

    Raises: one of DAMAGED if they, or its plan, are not what was written.
    """
    plan = rundir.read_json(run.plan)
    asked, slurm = plan["resources"], plan.get("slurm") or {}
    nodes, ranks = int(asked["nodes"]), int(asked["nodes"] * asked["tasks_per_node"])
    beside = int(slurm.get("per_node", 1))
    state = runs.state_of(run)
    if state.state == "unreadable" or not 1 <= nodes <= ranks or beside < 1:
        raise ValueError("lives/ or plan.json")
    run_id, job, price = str(plan["run_id"]), str(plan["job"]), slurm.get("price")
    where = str(plan.get("cluster", "local"))
    account = f"{slurm['account']} on {where}" if slurm.get("account") else where if slurm else f"{where} (this machine)"
    per_second = float(price["amount"]) / (60.0 * asked["timeout_min"] * beside) if price else 0.0
    if not math.isfinite(per_second):
        raise ValueError("plan.json")
    lives = judged(list(_lives(run, now)), job, state.state)
    return Use(
        run_id, account, run_id.rpartition("-")[0] or run_id, job, state.state, nodes / beside,
        ranks * int(plan.get("threads", 1)), str(price["unit"]) if price else "", per_second, tuple(lives),
    )  # fmt: skip


def _lives(run: RunDir, now: float) -> Iterable[Life]:
    """The lives in which a rank began, oldest first."""
    last = lease.last_life(run)
    for number in range(1, last + 1):
        told = lease.outline(run, number)
        records = [record for rank in told.values() for record in rank]
        times = [float(record["time"]) for record in records]
        if not all(0 < t < now + 86400 for t in times):  # NaN too
            raise ValueError("times")
        begun = [float(r["time"]) for r in records if r["event"] == "begin"]
        if not begun:  # refused, or gone before a rank began: no time of ranks
            continue
        began, ended = min(begun), max(times)
        owner = lease.read_owner(run, number)
        if {r["rank"] for r in records if r["event"] == "end"} != set(range(owner["ranks"])):
            limit = float(lease.read_owner(run, number + 1)["time"]) if number < last else now
            ended = max(ended, min(_last_beat(run, number, records), limit))
        saved: dict[int, float] = {}
        for r in records:
            if r["event"] == "progress":
                saved.setdefault(int(r["step"]), float(r["time"]))  # the last step is told once more at the end
        found = (ASIDE.match(str(r["message"])) for r in records if r["event"] == "warning")
        yield Life(number, began, ended, saved=saved, aside=frozenset(int(m[1]) for m in found if m))


def _last_beat(run: RunDir, life: int, records: Sequence[Mapping[str, Any]]) -> float:
    """When rank 0 said last that it lives; 0 where files have not kept their times, as in a folder that was copied."""
    folder = lease.life_dir(run, life)
    with contextlib.suppress(OSError):
        told = max((float(r["time"]) for r in records if r["rank"] == 0), default=0.0)
        if abs((folder / "rank0.jsonl").stat().st_mtime - told) < KEPT_S:
            return (folder / "beat").stat().st_mtime
    return 0.0


def judged(lives: Sequence[Life], job: str, state: str) -> list[Life]:
    """The lives of a run in that state, each with until when it was useful, or else is kept."""
    if not lives:
        return []
    at = _resumed_at(lives)
    *_, last = lives
    done: list[Life] = []
    went_on = math.inf  # the earliest step that a later life went on from
    for life, start in zip(reversed(lives), reversed(at)):
        saved = life.saved_by(went_on) if job == "train" else life.ended
        if life is last and state in ("completed", "running"):
            done.append(replace(life, useful=life.ended))
        elif went_on < math.inf:
            done.append(replace(life, useful=saved if job in KEEPS else 0.0))
        else:
            done.append(replace(life, kept=saved if job in KEEPS else 0.0))
        if (life is last and done[0].useful) or max(life.saved, default=0) > start:
            went_on = min(went_on, start)
    return done[::-1]


def _resumed_at(lives: Sequence[Life]) -> list[int]:
    """The step that each life went on from: the newest that was saved before, and not found damaged."""
    there: set[int] = set()
    at = []
    for life in lives:
        there -= life.aside
        at.append(max(there, default=0))
        there |= set(life.saved)
    return at


# --- all of them


def gathered(runs_dir: Path, now: float) -> tuple[list[Use], list[str]]:
    """What each run has used, and the names of those whose records cannot be read."""
    uses, skipped = [], []
    for run in runs.run_folders(runs_dir):
        try:
            uses.append(read_use(run, now))
        except (*DAMAGED, ArithmeticError):
            if runs.is_run(run.path):  # else it was removed meanwhile
                skipped.append(run.path.name)
    return uses, skipped


def sums(uses: Iterable[Use], since: float) -> dict[tuple[str, str], Sum]:
    """By account and experiment, in the order of their names; those without any time are left out."""
    found: dict[tuple[str, str], Sum] = {}
    for use in sorted(uses, key=lambda use: (use.account, use.experiment, use.run_id)):
        found.setdefault((use.account, use.experiment), Sum()).add(use, since)
    return {key: total for key, total in found.items() if total.runs}


def moment(text: str, now: float) -> float:
    """`7d`, `12h`, `2w` before now, or `2026-11-01`, in seconds of the epoch.

    Raises: ConfigError for any other text.
    """
    if m := re.fullmatch(r"(\d{1,5})([hdw])", text, re.ASCII):
        return now - int(m[1]) * PERIODS[m[2]]
    with contextlib.suppress(ValueError, OverflowError, OSError):
        return datetime.fromisoformat(text).timestamp()
    raise ConfigError(f"--since={one_line(text, 80)}: is no time. Write 12h, 7d, 4w or 2026-11-01.")


# --- the verb


def main(argv: list[str]) -> int:
    """`hpcai usage [--since WHEN]`; returns the exit code.

    Raises: ConfigError for an unknown option, a name, or a time that is none.
    """
    words = Words("usage", "[--since WHEN]", HELP)
    words.add_argument("--since", metavar="WHEN", help="count from then on: 12h, 7d, 4w or a date as 2026-11-01 (all)")
    options = words.read(argv)
    if options is None:
        return 0
    if options.names:
        raise ConfigError(
            f"hpcai usage: {one_line(options.names[0], 80)}: takes no name. --runs-dir DIR names the runs' folder."
        )
    now = time.time()
    since = moment(options.since, now) if options.since is not None else 0.0
    uses, skipped = gathered(options.runs_dir, now)
    groups = sums(uses, since)
    if options.json:
        print(json.dumps(_facts(uses, groups, skipped, since), indent=1))
        return 0
    if groups:
        _show(groups)
    else:
        print(f"no run has used time in {one_line(str(options.runs_dir), 120)}. --runs-dir DIR names another folder.")
    if skipped:
        some = ", ".join(one_line(name, 80) for name in skipped[:5]) + (f" and {len(skipped) - 5} more" * (len(skipped) > 5))
        print(f"note: {len(skipped)} not counted, their records are damaged: {some}. hpcai status says more.", file=sys.stderr)
    return 0


def _facts(uses: Sequence[Use], groups: Mapping[tuple[str, str], Sum], skipped: Sequence[str], since: float) -> dict[str, Any]:
    """All of it, for programs. Times of a life in seconds: all, useful, kept."""
    told = []
    for use in uses:
        total = Sum()
        total.add(use, since)
        lives = [
            {"life": life.number, "began": life.began, "ended": life.ended, "seconds": life.until(math.inf)}
            | {"useful_s": life.until(life.useful), "kept_s": life.until(life.kept)}
            for life in use.lives
            if life.ended > since
        ]
        names = {"run_id": use.run_id, "account": use.account, "experiment": use.experiment, "job": use.job, "state": use.state}
        told += [names | {"nodes": use.nodes, "cores": use.cores} | total.to_json() | {"lives": lives}] if lives else []
    listed = [{"account": a, "experiment": e, **total.to_json()} for (a, e), total in groups.items()]
    return {
        "since": since or None,
        "groups": listed,
        "total": _total(groups.values()).to_json(),
        "runs": told,
        "skipped": list(skipped),
    }


def _total(parts: Iterable[Sum]) -> Sum:
    total = Sum()
    for part in parts:
        for name in ("runs", "lives", "node", "useful", "kept", "running", "core"):
            setattr(total, name, getattr(total, name) + getattr(part, name))
        for unit, amount in part.price.items():
            total.price[unit] = total.price.get(unit, 0.0) + amount
    return total


def _show(groups: Mapping[tuple[str, str], Sum]) -> None:
    """The table: a line a group, a sum an account where there are several, the sum of all."""
    table: list[tuple[str, ...]] = [("ACCOUNT", "EXPERIMENT", "RUNS", "STARTS", "USED", "USEFUL", "LOST", "CORE-H", "PRICE")]
    accounts = list(dict.fromkeys(account for account, _ in groups))
    for account in accounts:
        own = {experiment: total for (a, experiment), total in groups.items() if a == account}
        table += [_row(account, experiment, total) for experiment, total in own.items()]
        if len(accounts) > 1 and len(own) > 1:
            table.append(_row(account, "(all)", _total(own.values())))
    total = _total(groups.values())
    if len(groups) > 1:
        table.append(_row("(all)", "", total))
    print_table(table, shutil.get_terminal_size().columns if sys.stdout.isatty() else None)
    if total.running:
        print(f"of what is useful {hours(total.running)} node-h are those of starts that still run.")
    if total.kept:
        print(f"of what is lost {hours(total.kept)} node-h lie in checkpoints: hpcai resume goes on from them.")


def _row(account: str, experiment: str, total: Sum) -> tuple[str, ...]:
    lost = total.node - total.useful
    share = f" ({100 * lost / total.node:.0f}%)" if total.node > 0 else ""
    price = ", ".join(f"{hours(amount * 3600)} {one_line(unit, 40)}" for unit, amount in sorted(total.price.items()))
    return (
        one_line(account, 60), one_line(experiment, 60), str(total.runs), str(total.lives), f"{hours(total.node)} node-h",
        f"{hours(total.useful)} node-h", f"{hours(lost)} node-h{share}", hours(total.core), price,
    )  # fmt: skip


def hours(seconds: float) -> str:
    """`1.25`; what is not nothing is never shown as 0.00."""
    return "<0.01" if 0 < seconds < 18 else f"{seconds / 3600:,.2f}"

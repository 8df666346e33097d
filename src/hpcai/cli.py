"""`hpcai VERB ...`: a table; the noun's module has the work."""

from __future__ import annotations

import importlib
import signal
import sys
from collections.abc import Callable

from hpcai.errors import ConfigError, near
from hpcai.output import exit_code, steady


def _main(module: str, name: str = "main") -> Callable[[list[str]], int]:
    """A verb's function, imported when it is called: each verb starts with no more than it needs."""

    def call(argv: list[str]) -> int:
        verb: Callable[[list[str]], int] = getattr(importlib.import_module(f"hpcai.{module}"), name)
        return verb(argv)

    return call


VERBS: dict[str, tuple[str, Callable[[list[str]], int]]] = {
    "run": ("+experiment=NAME [key=value ...]: plan and start a run (the same as python -m hpcai.run)", _main("run")),
    "plan": (
        "+experiment=NAME [key=value ...] [--explain]: what would be sent, byte for byte; with a reason a line",
        lambda argv: _main("run")(["--dry-run", *argv]),
    ),
    "try": (
        "+experiment=NAME [key=value ...]: 20 real steps, then the time, memory and price of all of it",
        _main("rehearsal"),
    ),
    "new": ("NAME --images DIR --labels FILE: look at own images and write an experiment of them", _main("new")),
    "simulate": ("FILE.parquet|FILE.csv --newborns N --seed S: a simulated cohort, with its truth", _main("simulate")),
    "check": ("[+experiment=NAME ...] [--all] [--config-dir DIR]: compose, check and plan without data", _main("experiments")),
    "status": ("[NAME ...]: every run and sweep: state, progress, best validation score, age", _main("status")),
    "logs": ("NAME [-f] [--rank N]: what a rank said", _main("verbs", "logs")),
    "wait": ("NAME ...: until they have ended; the exit code is theirs", _main("verbs", "wait")),
    "cancel": ("NAME ... [--no-wait]: stop them, with checkpoints", _main("cancellation")),
    "resume": ("NAME [--no-wait]: go on with a run or a sweep", _main("verbs", "resume")),
    "report": ("NAME: the answer of a finished run; --internal, --all: with pictures, over all runs", _main("verbs", "report")),
    "compare": (
        "RUN RUN ... [--margin auc:0.01] [--gate auc:0.01]: differences on the same cases, paired",
        _main("comparison"),
    ),
    "verify": ("RUN [--seal X]: every digest again; names what was changed", _main("verification")),
    "export": ("NAME [-o FILE.zip]: the supplement of a paper: report, config, environment, metrics, no rows", _main("export")),
    "usage": ("[--since 7d]: node-hours by account and experiment, useful against lost", _main("usage")),
    "support": ("NAME [-o FILE.tar.gz]: what a help desk needs of a run, without rows or weights", _main("support")),
    "cluster": ("check NAME|FILE, or probe [-o FILE]: what is known of a machine, and from where", _main("clusterfile")),
    "explain": ("RUN CASE [--dossier -o FILE.html]: one newborn's decision, rule by rule", _main("explain")),
    "release": ("RUN --by NAME [--only refer,...]: record who released which decisions", _main("release")),
    "outcomes": ("RUN FILE: what became of the flagged newborns: PPV, recalls, misses", _main("outcomes")),
    "rm": ("NAME ... [--yes] [--members]: delete their folders; asks first", _main("removal")),
}


def main(argv: list[str] | None = None) -> int:
    """The console script; returns the exit code."""
    if argv is None:
        steady()
        signal.signal(signal.SIGINT, signal.default_int_handler)  # also where a shell's & has it ignored
    words = sys.argv[1:] if argv is None else argv
    if not words or words[0] in ("--help", "-h", "help"):
        print("usage: hpcai VERB ...\n" + "\n".join(f"  {v:<9}{text}" for v, (text, _) in VERBS.items()))
        return 0
    try:
        return exit_code(
            lambda: _verb(words[0])(words[1:]), f"hpcai {words[0]}", "Mend the disk or its rights, then try again."
        )
    except KeyboardInterrupt:
        return 130


def _verb(name: str) -> Callable[[list[str]], int]:
    if name not in VERBS:
        raise ConfigError(f"hpcai {name}: unknown verb. {near(name, list(VERBS))}")
    return VERBS[name][1]


if __name__ == "__main__":
    sys.exit(main())

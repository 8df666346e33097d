"""`hpcai VERB ...`: a table; the noun's module has the work."""

from __future__ import annotations

import sys
from collections.abc import Callable

from hpcai.errors import ConfigError, HpcaiError, near
from hpcai.output import steady


def _run(argv: list[str]) -> int:
    from hpcai.run import main

    return main(argv)


def _check(argv: list[str]) -> int:
    from hpcai.experiments import main

    return main(argv)


VERBS: dict[str, tuple[str, Callable[[list[str]], int]]] = {
    "run": ("+experiment=NAME [key=value ...]: plan and start a run (the same as python -m hpcai.run)", _run),
    "check": ("[+experiment=NAME ...] [--all] [--config-dir DIR]: compose, check and plan without data", _check),
}


def main(argv: list[str] | None = None) -> int:
    """The console script; returns the exit code."""
    if argv is None:
        steady()
    words = sys.argv[1:] if argv is None else argv
    if not words or words[0] in ("--help", "-h", "help"):
        print("usage: hpcai VERB ...\n" + "\n".join(f"  {v:<8}{text}" for v, (text, _) in VERBS.items()))
        return 0
    try:
        if words[0] not in VERBS:
            raise ConfigError(f"hpcai {words[0]}: unknown verb. {near(words[0], list(VERBS))}")
        return VERBS[words[0]][1](words[1:])
    except HpcaiError as e:
        print("\n".join(e.lines), file=sys.stderr)
        return e.code


if __name__ == "__main__":
    sys.exit(main())

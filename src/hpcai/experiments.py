"""Every experiment on every cluster, composed, checked and planned: `hpcai check --all`, a pre-commit hook.

Looks at no data and at no limit of this machine: what is checked is what a repository holds.
"""

from __future__ import annotations

import sys
from pathlib import Path

from hpcai import cluster
from hpcai.config.check import load
from hpcai.config.help import choices
from hpcai.config.site import site_faults
from hpcai.errors import ConfigError, Faults, HpcaiError
from hpcai.plan import machine_faults, outline


def main(argv: list[str]) -> int:
    """`hpcai check [--all] [--config-dir DIR] [overrides]`; returns the exit code.

    Raises: ConfigError for an unknown option.
    """
    words, folder, everything = list(argv), None, False
    if "--config-dir" in words:
        at = words.index("--config-dir")
        if at + 1 == len(words):
            raise ConfigError("--config-dir: names no folder. Give one.")
        folder = Path(words[at + 1])
        del words[at : at + 2]
    if "--all" in words:
        words.remove("--all")
        everything = True
    if unknown := [w for w in words if w.startswith("-")]:
        raise ConfigError(f"{unknown[0]}: unknown option. Known: --all, --config-dir DIR.")
    if not (everything or words):
        raise ConfigError("hpcai check: checks nothing. Give --all, or +experiment=NAME.")
    return check_all(folder, words) if everything else check_one(words, folder)


def check_one(overrides: list[str], config_dir: Path | None, *, account: bool = True) -> int:
    """One config; its faults on stderr. Not `account`: whom the site would bill may be left open."""
    try:
        config = load(overrides, config_dir)
        machine = cluster.read_machine()
        here = config.cluster.executor == "local"  # what this machine has decides nothing about another
        faults = [*cluster.limits(config), *site_faults(config)] if here else list(machine_faults(config, machine))
        if faults := [fault for fault in faults if account or not str(fault).startswith("cluster.account: required")]:
            raise Faults(faults)
        outline(config, machine)
    except HpcaiError as e:
        print("\n".join(e.lines), file=sys.stderr)
        return e.code
    return 0


def check_all(config_dir: Path | None, overrides: list[str]) -> int:
    """A line for each experiment x cluster; the lowest exit code of those that fail."""
    known = choices(config_dir)
    codes = []
    for name in sorted(known["experiment"]):
        for machine in sorted(known["cluster"]):
            code = check_one([f"+experiment={name}", f"cluster={machine}", *overrides], config_dir, account=False)
            print(f"{'ok' if code == 0 else 'FAILED':<8}{name} on {machine}")
            codes.append(code)
    print(f"{codes.count(0)} passed, {len(codes) - codes.count(0)} failed")
    return min((c for c in codes if c), default=0)

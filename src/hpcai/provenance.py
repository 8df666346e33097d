"""What a run runs on: Python, packages with their licences, the commit, a digest of the code, the machine.

The submitter notes it (environment.json), which on a Slurm machine may be another Python than that of the compute nodes: rank 0
notes its own (runtime.json), and what goes on there goes on under the same versions.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import hpcai
from hpcai import cluster, rundir
from hpcai.errors import PlanError
from hpcai.rundir import RunDir

PACKAGE = Path(hpcai.__file__).parent
NOT_FROZEN = ("__pycache__", "shipped")  # shipped data is an input with a digest, not code
NEUTRAL = ("psutil", "rich")  # required, but no result depends on them


def environment() -> dict[str, Any]:
    """What the run ran on: Python, packages with licences, git, code digest, machine."""
    return {
        "python": platform.python_version(),
        "hpcai": hpcai.__version__,
        "packages": list(_packages()),
        "versions": versions(),
        "git": _git(),
        "code_sha256": code_digest(),
        "machine": asdict(cluster.read_machine()),
    }


def versions() -> dict[str, str]:
    """Versions that can change a result: Python's, and of the packages that hpcai itself requires and plug-ins."""
    names = {re.split(r"[\s<>=!~;\[]", r)[0] for r in metadata.requires("hpcai") or () if "extra ==" not in r}
    names -= set(NEUTRAL)
    names |= {e.dist.name for e in metadata.entry_points(group="hpcai.models") if e.dist} | {"monai"}
    found = {"python": platform.python_version()}
    for name in sorted(names):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def code_digest() -> str:
    """sha256 over names and contents of the package's files, as a snapshot would hold them."""
    sha = hashlib.sha256()
    for folder, folders, names in os.walk(PACKAGE, followlinks=True):
        folders[:] = sorted(d for d in folders if d not in NOT_FROZEN)
        for name in sorted(names):
            path = Path(folder, name)
            sha.update(f"{path.relative_to(PACKAGE)}\0{path.stat().st_size}\0".encode())
            sha.update(path.read_bytes())
    return sha.hexdigest()


def _packages() -> Iterator[dict[str, str]]:
    seen: dict[str, dict[str, str]] = {}
    for dist in metadata.distributions():
        facts: Any = dist.metadata
        name = facts["Name"]
        if name and name.lower() not in seen:
            licence = facts.get("License-Expression") or _classified(facts.get_all("Classifier")) or facts.get("License") or "?"
            seen[name.lower()] = {"name": name, "version": dist.version, "licence": licence.strip().splitlines()[0][:80]}
    return iter(seen[k] for k in sorted(seen))


def _classified(classifiers: list[str] | None) -> str:
    prefix = "License :: "
    return ", ".join(c.rsplit(" :: ", 1)[-1] for c in classifiers or () if c.startswith(prefix))


def _git() -> dict[str, Any] | None:
    """Commit and the digest of uncommitted edits of the checkout that hpcai runs from; None for an installed one."""

    def git(*words: str) -> bytes:
        return subprocess.run(["git", "-C", str(PACKAGE), *words], capture_output=True, check=True).stdout

    try:
        git("ls-files", "--error-unmatch", "__init__.py")
        commit = git("rev-parse", "HEAD").decode().strip()
        diff = git("diff", "HEAD", "--binary")
        return {
            "commit": commit,
            "dirty": bool(git("status", "--porcelain").strip()),
            "diff_sha256": hashlib.sha256(diff).hexdigest() if diff else None,
        }
    except (OSError, subprocess.CalledProcessError):
        return None


def changed(then: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """`torch 2.12 -> 2.13` for each version that can change a result."""
    return [f"{n} {v} -> {now.get(n, 'gone')}" for n, v in then.items() if now.get(n) != v and n not in NEUTRAL]


def keep(run: RunDir) -> None:
    """Notes what this process runs on, where nobody has.

    Raises: PlanError if it began on other versions; or if that note is damaged.
    """
    if not run.runtime.is_file():
        here = {"python": platform.python_version(), "packages": list(_packages()), "versions": versions()}
        rundir.write_json(run.runtime, here)
        return
    cure = "Restore them, or --anew starts another folder."
    try:
        then = {str(name): str(version) for name, version in rundir.read_json(run.runtime)["versions"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise PlanError(f"run={run.path.name}: its runtime.json is damaged. {cure}") from e
    if others := changed(then, versions()):
        raise PlanError(f"run={run.path.name}: versions on the compute nodes have changed: {', '.join(others[:5])}. {cure}")

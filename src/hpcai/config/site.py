"""HPCAI_SITE=/folder: cluster files that a site's staff own.   folder -> NAME.yaml -> Cluster; config -> what it exceeds

A site's file stands before hpcai's own and before a user's of that name, and what it states is the last word: a run whose facts
or executor differ, by whatever way they were set, is refused (site_faults). `local`, this machine without a scheduler, is
everywhere. A guard against mistakes, not against a user who sets HPCAI_SITE otherwise: that is Slurm's own to be.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpcai.config.userfile import NAME, UserFile, read_user_file
from hpcai.errors import ConfigError, Faults, HpcaiError, PlanError, one_line

if TYPE_CHECKING:
    from hpcai.config.schema import Cluster, Config

SITE = "HPCAI_SITE"
LOCAL = "local"
SHOWN = 5  # differing keys that are named one by one


def is_folder(path: Path) -> bool:
    """Whether it is one; not where a folder above it may not be read, for which Path.is_dir raises."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def site_folder(environ: Mapping[str, str] = os.environ) -> Path | None:
    """The site's folder, or None where HPCAI_SITE is not set, or empty.

    Raises:
        PlanError: it is no folder, or a relative path, which would mean another one in each folder where a user stands.
    """
    said = environ.get(SITE, "")
    if not said:
        return None
    shown = f"{SITE}={one_line(said, 120)}"
    if not said.startswith("/"):
        raise PlanError(f"{shown}: is relative. Write the whole path, from /.")
    try:
        folder = Path(said).resolve()
    except (OSError, RuntimeError, ValueError):  # links in a circle
        folder = Path("/dev/null")
    if not is_folder(folder):
        raise PlanError(f"{shown}: no such folder. It holds the site's NAME.yaml; ask the staff, or unset {SITE}.")
    if not os.access(folder, os.R_OK | os.X_OK):
        raise PlanError(f"{shown}: may not be read by you. Ask the staff to open it, or unset {SITE}.")
    return folder


def site_names(folder: Path | None) -> tuple[str, ...]:
    """The clusters that the site has a file for, whether or not it can be read."""
    if folder is None:
        return ()
    names = (entry.name.removesuffix(".yaml") for entry in os.scandir(folder) if entry.name.endswith(".yaml"))
    return tuple(sorted(name for name in names if NAME.fullmatch(name) and "/" not in name))


def site_file(folder: Path, name: str) -> UserFile:
    """The site's file for the cluster `name`, with every fault in it: refused as a user's is, and checked as a Cluster.

    Raises:
        ConfigError: it cannot be read, or is no plain YAML.
    """
    try:
        file = read_user_file(folder, name)
    except ConfigError as e:
        raise ConfigError(f"{SITE}: {e}") from None
    faults = [*file.faults, *(f"{file.where}: {fault}" for fault in cluster_faults(file))]
    if (said := file.values.get("name")) != name and not faults:
        faults = [f"{file.where}: name={one_line(str(said), 80)}: must be {name}, as the file is called. Rename one."]
    file.faults[:] = [f"{SITE}: {fault}" for fault in faults]
    return file


def cluster_faults(file: UserFile) -> list[str]:
    """What is wrong with a cluster file that stands alone: keys, types and limits, by key."""
    from hpcai.config.check import check_cluster

    if file.faults:
        return []  # the caller has them; what was refused is not looked at again
    alone = [f"{key}: a cluster file says all itself. Write its values out." for key in ("defaults",) if key in file.values]
    if file.package is not None:
        alone.append(f"# @package {file.package}: a cluster file has none. Delete the line.")
    alone += [f"{key}: ${{...}} is for experiments. Write the value out." for key in _references(file.values)]
    return alone or check_cluster(file.values)[1]


def _references(value: Any, path: str = "") -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _references(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        for inner in value:
            yield from _references(inner, path)
    elif isinstance(value, str) and "${" in value:
        yield one_line(path, 80)


def site_faults(config: Config, environ: Mapping[str, str] = os.environ) -> Iterator[HpcaiError]:
    """In what a run's cluster differs from the site's file: nothing where HPCAI_SITE is not set."""
    try:
        folder = site_folder(environ)
        if folder is None:
            return
        theirs = _theirs(folder, config.cluster.name)
    except HpcaiError as e:
        yield from e.members
        return
    if theirs is None:
        known = ", ".join(sorted({*site_names(folder), LOCAL}))
        yield PlanError(f"cluster.name={config.cluster.name}: this site ({SITE}) has none. Known: {known}.")
        return
    if config.cluster.executor == theirs.executor and config.cluster.facts == theirs.facts:
        return
    ours, stated = ({"executor": c.executor} | dict(leaves(c.facts.model_dump(), "facts")) for c in (config.cluster, theirs))
    differing = [key for key in {**stated, **ours} if ours.get(key) != stated.get(key)]
    for key in islice(differing, SHOWN):
        shown = f"cluster.{one_line(key, 120)}={text_of(ours.get(key))}"
        yield PlanError(f"{shown}: the site's own file says {text_of(stated.get(key))}. Leave it out.")
    if len(differing) > SHOWN:
        yield PlanError(
            f"cluster={theirs.name}: {len(differing) - SHOWN} more keys differ from the site's file. Leave them out."
        )


def leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Each value of a tree of mappings with its dotted key, empty mappings too."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from leaves(inner, f"{path}.{key}" if path else str(key))
    else:
        yield path, value


def text_of(value: Any, limit: int = 80) -> str:
    """A value on one line: text as it is, all else as YAML has it within a line."""
    import json

    return one_line(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False), limit)


def _theirs(folder: Path, name: str) -> Cluster | None:
    """The cluster as the site has it; None: it has none of that name.

    Raises:
        ConfigError: its file cannot be read; Faults: or is wrong.
    """
    from hpcai.config.folder import shipped_folder

    if name in site_names(folder):
        try:
            state = (folder / f"{name}.yaml").stat()
        except (OSError, RuntimeError):
            return _read(folder, name, ())  # which tells why
        return _read(folder, name, (state.st_mtime_ns, state.st_size, state.st_ino))
    return _read(shipped_folder() / "cluster", LOCAL, ()) if name == LOCAL else None


@functools.lru_cache(maxsize=8)
def _read(folder: Path, name: str, _state: tuple[int, ...]) -> Cluster:
    """A sweep asks for each member; `_state` tells a file that was changed meanwhile."""
    from hpcai.config.check import check_cluster

    file = site_file(folder, name)
    if file.faults:
        raise Faults([ConfigError(fault) for fault in file.faults])
    cluster, _ = check_cluster(file.values)
    assert cluster is not None
    return cluster

"""What can be chosen: group -> names, hpcai's own files and those of a user's folder.   folder -> files read, weighed, served

A user's file is read when it is chosen, with all that its defaults lead to, before Hydra asks for any of them. Where a site has
cluster files of its own (HPCAI_SITE), they stand before both.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path

from hpcai.config.site import LOCAL, is_folder, site_file, site_folder, site_names
from hpcai.config.userfile import MAX_VALUES, NAME, UserFile, read_user_file, refuse_key
from hpcai.errors import ConfigError, Faults, near, one_line

BOOKS = {"analytes", "diseases", "rules", "policy", "controls", "simulation"}  # facts that hpcai.book reads: no groups of keys
FILE_COST = 20  # a file costs Hydra as much as so many values


class Folder:
    """The files that can be chosen: hpcai's, those of a user's folder and of the site, each read once, checked and weighed.

    Raises:
        ConfigError: the folder is none, or a file of it would be hidden by hpcai's of that name.
        PlanError: HPCAI_SITE is no folder.
    """

    def __init__(self, path: Path | None) -> None:
        self.path: Path | None = None
        self.files: dict[str, UserFile] = {}
        self.faults: list[ConfigError] = []
        self._weights: dict[str, int] = {}
        self._total = 0
        self.site = site_folder()
        self._sites = frozenset(f"cluster/{name}" for name in site_names(self.site))
        if f"cluster/{LOCAL}" in self._sites and (wrong := self._read(f"cluster/{LOCAL}").faults):
            raise Faults(
                [ConfigError(fault) for fault in wrong]
            )  # every run begins with it (config.yaml), so nobody chooses it
        if path is None:
            return
        shown = f"config_dir={one_line(str(path), 80)}"
        try:
            root = Path(path).resolve()
        except (OSError, RuntimeError, ValueError):  # links in a circle, a NUL
            root = Path("/dev/null")
        if not is_folder(root):
            raise ConfigError(f"{shown}: no such folder. Name one that holds experiment/NAME.yaml.")
        if root == shipped_folder():
            return
        hidden = [f"{g}/{n}.yaml" for g, names in shipped().items() for n in names if os.path.lexists(root / g / f"{n}.yaml")]
        if hidden:
            raise ConfigError(f"{shown}: {', '.join(hidden[:5])} would be hidden by hpcai's own. Rename it.")
        self.path = root

    def is_group(self, name: str) -> bool:
        """Whether `name` is a folder of choices."""
        if name in shipped():
            return True
        if self.path is None or not NAME.fullmatch(name) or refuse_key(name):
            return False
        return is_folder(self.path / name)

    def groups(self) -> list[str]:
        """The top-level groups."""
        mine = sorted(name for name in self._list("") if self.is_group(name))
        return [*shipped(), *(g for g in mine if g not in shipped())]

    def choices(self, group: str) -> list[str]:
        """The names that `group` can be given."""
        if self.site is not None and group == "cluster":
            return sorted({LOCAL, *(name.rpartition("/")[2] for name in self._sites)})  # the plan refuses any other
        mine = (name.removesuffix(".yaml") for name in self._list(group) if name.endswith(".yaml"))
        return sorted({*shipped().get(group, ()), *(name for name in mine if NAME.fullmatch(name))})

    def _list(self, group: str) -> list[str]:
        try:
            return [] if self.path is None else [entry.name for entry in os.scandir(self.path / group)]
        except OSError:  # no such folder, or not for us to read
            return []

    def has(self, group: str, choice: str) -> bool:
        """Whether `group` has a file of that name."""
        if choice in shipped().get(group, ()) or f"{group}/{choice}" in self._sites:
            return True
        return self.path is not None and os.path.lexists(self.path / group / f"{choice}.yaml")

    def serves(self, name: str) -> bool:
        """Whether Hydra may have the file `name`: hpcai's, or a user's that was read and found harmless."""
        return name in self.files or name == "config" or name in self._sites or _is_shipped(name)

    def place(self, name: str) -> tuple[Path, str]:
        """The folder that the file `name`.yaml lies in (the site's, hpcai's, or the user's) and what it is called there."""
        if name in self._sites:
            assert self.site is not None
            return self.site, name.rpartition("/")[2]
        if _is_shipped(name) or name == "config":
            return shipped_folder(), name
        assert self.path is not None
        return self.path, name

    def file(self, name: str) -> UserFile:
        """What the file `name` says."""
        if name not in self.files:
            self.files[name] = self._read(name)
        assert not self.files[name].faults, self.files[name].faults
        return self.files[name]

    def _read(self, name: str) -> UserFile:
        root, called = self.place(name)
        return site_file(root, called) if name in self._sites else read_user_file(root, called)

    def choose(self, name: str) -> None:
        """Notes that `name` is asked for; a user's is read, with what its defaults lead to. Adds to `faults`."""
        if self._is_ours(name):
            return
        self._total += self._take(name)
        if self._total > MAX_VALUES:
            self.faults.append(ConfigError(f"{name}.yaml: with its defaults it has over {MAX_VALUES} values. Choose fewer."))

    def _take(self, name: str, trail: tuple[str, ...] = ()) -> int:
        """Reads the user's file `name` and those its defaults lead to; the number of values they add up to.

        Two defaults a file, each with two more, would have Hydra compose 2^n files: hence the sum.
        """
        if name in trail or len(trail) > 10:
            self.faults.append(ConfigError(f"{trail[0]}.yaml: its defaults lead round in a circle, or too deep. Cut one."))
            return 0
        if name not in self._weights:
            self._weights[name] = 0
            try:
                file = self.files[name] = self._read(name)
            except ConfigError as e:
                self.faults.append(e)
                return 0
            self.faults += [ConfigError(fault) for fault in file.faults]
            weight = file.size + FILE_COST
            defaults = () if name in self._sites else file.defaults  # a site's file has none: that is its fault already
            for group, choice in ((d.group, c) for d in defaults for c in d.choices):
                weight += self._entry(file.where, group, choice, (*trail, name))
            self._weights[name] = weight
        return self._weights[name]

    def _entry(self, where: str, group: str, choice: str, trail: tuple[str, ...]) -> int:
        path, name = f"{group}/{choice}".rpartition("/")[::2] if group else ("", choice)
        last = path.rpartition("/")[2]
        if path and not self.is_group(path):
            cure = f"Write /{last}." if last in self.groups() else near(last, self.groups())
            self.faults.append(ConfigError(f"{where}: defaults: {one_line(path, 80)}: no such group. {cure}"))
            return 0
        if not self.has(path, name):
            known = near(name, self.choices(path))
            self.faults.append(ConfigError(f"{where}: defaults: {group}={one_line(choice, 80)}: unknown. {known}"))
            return 0
        full = f"{path}/{name}".lstrip("/")
        return 1 if self._is_ours(full) else self._take(full, trail)

    def _is_ours(self, name: str) -> bool:
        return _is_shipped(name) and name not in self._sites


def shipped_folder() -> Path:
    """Where hpcai's own config files lie."""
    import hpcai.configs

    return Path(str(hpcai.configs.__file__)).parent.resolve()


def _is_shipped(name: str) -> bool:
    group, _, choice = name.rpartition("/")
    return choice in shipped().get(group, ())


@functools.cache
def shipped() -> dict[str, tuple[str, ...]]:
    """hpcai's own groups, each with the names of its files."""
    found = (p for p in shipped_folder().iterdir() if p.is_dir() and not p.name.startswith(("_", ".")))
    folders = sorted(p for p in found if p.name not in BOOKS)
    return {folder.name: tuple(sorted(f.stem for f in folder.glob("*.yaml"))) for folder in folders}

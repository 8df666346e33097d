"""One YAML file of a user -> plain values, or its faults by key.   bytes -> events, within a budget -> values -> walked

Hydra never opens a user's file: it is given what this module lets through (compose.py). Refused: whatever could run code, read
the environment, leave the folder, block (a FIFO) or blow up (201 bytes of aliases can make 400 MB).
"""

from __future__ import annotations

import functools
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from hpcai.errors import ConfigError, one_line

MAX_BYTES = 1_000_000
MAX_VALUES = 5_000  # of one file with all that its defaults lead to, aliases expanded
MAX_ALIASES = 100
MAX_DEPTH = 50
NAME = re.compile(r"[A-Za-z0-9_][\w.-]{0,63}(?:/[A-Za-z0-9_][\w.-]{0,63}){0,4}", re.ASCII)  # group or choice; `..` cannot match
MARK = "\ue000"  # stands for the $ of ${...} while Hydra composes: OmegaConf would copy whole groups, again and again
NODE = re.compile(r"\$\{[A-Za-z_]\w*(?:\.\w+)*\}", re.ASCII)  # ${data.name}: another key of the config, from its root
CODE_KEYS = {"_target_", "_args_", "_partial_", "_convert_", "_recursive_"}  # what Hydra's instantiate reads
TAGS = {f"tag:yaml.org,2002:{t}" for t in ("str", "int", "float", "bool", "null", "map", "seq")} | {"!", None}


@dataclass(frozen=True)
class Default:
    """One entry of a defaults list: `override /model: resnet18` is Default("model", ("resnet18",), override=True)."""

    group: str  # from the root; "" for a file of the same group
    choices: tuple[str, ...]
    override: bool = False


@dataclass(frozen=True)
class UserFile:
    """What a user's file says.

    Attributes:
        where: `experiment/mine.yaml`, as messages cite it.
        package: `_global_`, `_group_` or None, of its `# @package` line.
        values: everything, `defaults` included, as Hydra will be given it.
        defaults: the entries of its defaults list, but `_self_`.
        size: how many values it has, aliases expanded.
        faults: what is refused; the rest must not be used then.
    """

    where: str
    package: str | None
    values: dict[str, Any]
    defaults: tuple[Default, ...]
    size: int
    faults: list[str] = field(default_factory=list)


def read_user_file(folder: Path, name: str) -> UserFile:
    """The file `name`.yaml under `folder` (resolved), checked.

    Raises:
        ConfigError: it cannot be read or is no plain YAML; faults of single keys are in the result, all of them.
    """
    where = f"{name}.yaml"
    try:
        text = _read(folder, where)
        size = _scan(text)
        values = yaml.load(text, Loader=_loader())
    except _Refused as e:
        raise ConfigError(f"{where}: {e}") from None
    except yaml.YAMLError as e:
        mark, problem = getattr(e, "problem_mark", None), getattr(e, "problem", None) or type(e).__name__
        line = f"line {mark.line + 1}: " if mark else ""
        raise ConfigError(f"{where}: {line}is no YAML ({problem}). Correct it.") from None
    except (ValueError, RecursionError, OverflowError):  # an integer of 5000 digits
        raise ConfigError(f"{where}: a value cannot be read (a number too long?). Correct it.") from None
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise ConfigError(f"{where}: is a {type(values).__name__}. Write `key: value` lines.")
    faults = [f"{where}: {fault}" for key, value in values.items() if key != "defaults" for fault in refusals({key: value})]
    package = _package(text)
    if package not in (None, "_global_", "_group_"):
        faults.append(f"{where}: package={package}: only _global_ and _group_ are allowed. Correct its first line.")
    if name.startswith("experiment/") and package is None:
        faults.append(f"{where}: an experiment sets keys of every group. Begin it with the line `# @package _global_`.")
    defaults, wrong = _defaults(values.get("defaults"), name)
    return UserFile(where, package, values, defaults, size, faults + [f"{where}: {fault}" for fault in wrong])


def refusals(value: Any, path: str = "", depth: int = 0) -> Iterator[str]:
    """The faults of a tree of plain values, by key: keys and strings that Hydra or OmegaConf would act on."""
    if depth > MAX_DEPTH:
        yield f"{path}: nested deeper than {MAX_DEPTH}. Flatten it."
    elif isinstance(value, dict):
        for key, inner in value.items():
            here = f"{path}.{key}" if path else f"{key}"
            if not isinstance(key, str):
                yield f"{_short(here)}: a key must be text. Quote it."
            elif wrong := refuse_key(key):
                yield f"{_short(here)}: {wrong}"
            else:
                yield from refusals(inner, here, depth + 1)
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from refusals(inner, f"{path}.{i}", depth + 1)
    elif isinstance(value, str):
        if "${" in NODE.sub("", value) or "${hydra" in value or MARK in value:
            yield f"{_short(path)}={_short(value)}: of ${{...}} only ${{group.key}} of this config is allowed. Write the value."
    elif isinstance(value, int) and abs(value) >= 2**63:
        yield f"{_short(path)}: a number of more than 64 bits. Correct it."
    elif not isinstance(value, (float, bool, type(None), int)):
        yield f"{_short(path)}: a {type(value).__name__} is no plain value. Quote it."


def refuse_key(key: str) -> str:
    """Why this one key (or dotted path) is refused; empty if it is not."""
    parts = re.split(r"[./@:]", key)
    if "hydra" in parts:
        return "hydra's own keys can run code and cannot be set. Delete it."
    if code := CODE_KEYS.intersection(parts):
        return f"{min(code)} names code, and a config never does. Delete it."
    if "${" in key:
        return "a key is no place for ${...}. Write it out."
    return ""


class _Refused(Exception):
    """Why a file is refused as a whole."""


def _short(text: str) -> str:
    return one_line(text, 80)


def read_head(folder: Path, where: str) -> str:
    """The text of the file, for its comments; nothing is parsed.

    Raises:
        ConfigError: it is unreadable, or leads out of `folder`.
    """
    try:
        return _read(folder, where)
    except _Refused as e:
        raise ConfigError(f"{where}: {e}") from None


def _read(folder: Path, where: str) -> str:
    """The text of a regular file within `folder`; never waits for a FIFO, never reads more than MAX_BYTES."""
    path = folder / where
    try:
        if not path.resolve().is_relative_to(folder):
            raise _Refused("a link leads out of the config folder. Copy the file into it.")
        if not stat.S_ISREG(path.stat().st_mode):
            raise _Refused("is no plain file. Put a YAML file there.")
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as f:
            if not stat.S_ISREG(os.fstat(f.fileno()).st_mode):  # swapped since
                raise _Refused("is no plain file. Put a YAML file there.")
            data = f.read(MAX_BYTES + 1)
    except (OSError, RuntimeError) as e:  # RuntimeError: links in a circle
        raise _Refused(f"cannot be read ({getattr(e, 'strerror', None) or 'links in a circle'}). Mend it.") from None
    if len(data) > MAX_BYTES:
        raise _Refused(f"is larger than {MAX_BYTES // 1_000_000} MB. A config holds choices; data belongs in files.")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise _Refused(f"byte {e.start} is no UTF-8. Save it as UTF-8.") from None


@functools.cache
def _loader() -> Any:
    """libyaml's safe loader where there is one, with OmegaConf's rules (`1e-3` is a number, dates are text)."""
    from omegaconf._utils import get_yaml_loader

    fast = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return type("Loader", (fast,), {"yaml_implicit_resolvers": get_yaml_loader().yaml_implicit_resolvers})


@dataclass
class _Open:
    """A mapping or list whose end has not come yet."""

    keys: set[str] | None  # of a mapping
    anchor: str | None
    at_key: bool = True
    size: int = 1


def _scan(text: str) -> int:
    """How many values `text` has once aliases are expanded; nothing is built.

    Raises:
        _Refused: more than the budget, a tag, a key given twice, a key that is no scalar, an alias within its own anchor.
    """
    stack = [_Open(None, None)]
    sizes: dict[str, int] = {}
    aliases = documents = 0
    for event in yaml.parse(text, Loader=_loader()):
        line = f"line {event.start_mark.line + 1}: "
        documents += isinstance(event, yaml.DocumentStartEvent)
        if documents > 1:
            raise _Refused(f"{line}a second document. Keep one.")
        if isinstance(event, (yaml.MappingEndEvent, yaml.SequenceEndEvent)):
            done = stack.pop()
            size, anchor = done.size, done.anchor
        elif isinstance(event, yaml.NodeEvent):
            _take_place(stack[-1], event, line)
            if isinstance(event, yaml.CollectionStartEvent):
                stack.append(_Open(set() if isinstance(event, yaml.MappingStartEvent) else None, event.anchor))
                if len(stack) > MAX_DEPTH + 1:
                    raise _Refused(f"{line}nested deeper than {MAX_DEPTH}. Flatten it.")
                continue
            size, anchor = 1, event.anchor
            if isinstance(event, yaml.AliasEvent):
                aliases += 1
                if anchor not in sizes:
                    raise _Refused(
                        f"{line}the alias *{_short(anchor)} stands within itself or before its anchor. Write it out."
                    )
                size, anchor = sizes[anchor], None
        else:
            continue
        stack[-1].size += size
        if anchor is not None:
            sizes[anchor] = size
        if aliases > MAX_ALIASES or sum(open_.size for open_ in stack) > MAX_VALUES:
            raise _Refused(f"{line}more than {MAX_ALIASES} aliases or {MAX_VALUES} values. Write fewer.")
    return stack[0].size


def _take_place(parent: _Open, event: Any, line: str) -> None:
    """Notes `event` as the next key or value of `parent`."""
    tag = getattr(event, "tag", None)
    if tag not in TAGS:
        raise _Refused(f"{line}the tag {_short(str(tag))} makes an object of a value. Delete it.")
    if parent.keys is None:
        return
    if parent.at_key:
        if not isinstance(event, yaml.ScalarEvent):
            raise _Refused(f"{line}a key must be plain text. Correct it.")
        if event.value in parent.keys:
            raise _Refused(f"{line}{_short(event.value)}: this key stands twice. Delete one.")
        parent.keys.add(event.value)
    parent.at_key = not parent.at_key


def comments(text: str) -> list[str]:
    """The comment lines that a file begins with, `#` cut off."""
    found = []
    for line in text.splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            break
        if line.strip():
            found.append(line.strip().lstrip("#").strip())
    return found


def _package(text: str) -> str | None:
    """What the `# @package x` line says; unlike Hydra's own reading, other comments may stand before it."""
    for line in comments(text):
        if match := re.fullmatch(r"@\s*package\b\s*(.*)", line):
            return one_line(match[1], 80)
    return None


def _defaults(entries: Any, name: str) -> tuple[tuple[Default, ...], list[str]]:
    """The entries of a defaults list, and the faults of those that are refused."""
    if entries is None:
        return (), []
    if not isinstance(entries, list):
        return (), ["defaults: must be a list. Write `- group: choice` lines."]
    here, defaults, faults = name.rpartition("/")[0], [], []
    for entry in entries:
        key, value = next(iter(entry.items())) if isinstance(entry, dict) and len(entry) == 1 else ("", entry)
        words = str(key).split()
        rooted = bool(words) and words[-1].startswith("/")
        group = words[-1].removeprefix("/") if words else ""
        choices = value if isinstance(value, list) and key else [value]
        shown = f"defaults: {_short(f'{key}: {value}' if key else str(value))}"
        if key == "" and value == "_self_":
            continue
        if wrong := refuse_key(group):
            faults.append(f"{shown}: {wrong}")
        elif words[:-1] not in ([], ["override"]) or not (key == "" or NAME.fullmatch(group)):
            faults.append(f"{shown}: the group is no name. Write `override /group: choice`.")
        elif value is None and key:
            continue  # `group: null`: nothing is chosen
        elif not all(isinstance(c, str) and NAME.fullmatch(c) and not refuse_key(c) for c in choices):
            faults.append(f"{shown}: a choice is the name of a file in its group, never a path. Correct it.")
        else:
            path = group if rooted or not here else f"{here}/{group}".rstrip("/")
            defaults.append(Default(path, tuple(choices), "override" in words[:-1]))
    return tuple(defaults), faults

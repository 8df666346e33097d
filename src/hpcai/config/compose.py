"""From what a user writes to one plain dict.   argument words -> parsed -> group choices -> Hydra -> values set -> dict

Hydra's Compose API and its words (`key=value`, `+key`, `++key`, `~key`, `group=choice`), without `@hydra.main`, which runs code
that a YAML names. Hydra composes the files that the choices name; it never opens a user's file (userfile.py reads it first) and
never sees `${...}` of one. Values are set here, as if by `++`: whether a key exists is for check.py to say, of all at once.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpcai.config.folder import Folder
from hpcai.config.userfile import MARK, MAX_DEPTH, NAME, NODE, refusals, refuse_key
from hpcai.errors import ConfigError, Faults, near, one_line

if TYPE_CHECKING:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import Override

MAX_WORDS = 1000
MAX_CHARS = 100_000
MAX_COMMAS = 2000  # Hydra's parser takes 0.1 s for a list of 1000, and 3.6 s for one of 5000
MAX_TEXT = 10_000  # characters of a value once its ${...} are filled in
KEY = re.compile(r"[A-Za-z_]\w*(?:\.\w+)*", re.ASCII)
UNUSED = {f"hydra/{name}/default" for name in ("env", "help", "hydra_help", "hydra_logging", "job_logging", "output")}
# Hydra's own settings: nothing here uses them, and reading them takes a third of composing. Served empty.
RESOLVERS = ("oc.env", "oc.create", "oc.decode", "oc.deprecated", "oc.select", "oc.dict.keys", "oc.dict.values", "env", "now")


def compose(overrides: list[str], config_dir: Path | None = None) -> dict[str, Any]:
    """The config as a plain dict, every `${group.key}` filled in; not yet checked against the schema.

    Args:
        overrides: Hydra's words, such as `+experiment=pneumonia` and `trainer.lr=1e-3`.
        config_dir: a user's own folder of groups, beside hpcai's.

    Raises:
        Faults: every fault of every word and every file, together.
    """
    raw, faults, _ = attempt(overrides, config_dir)
    if faults:
        raise Faults(faults)
    return raw


class Memory:
    """What one sweep's members share: words once read, and what Hydra made of the same choices, by far the slowest step.

    Nothing that is handed out is shared: a member may change what it gets.
    """

    def __init__(self) -> None:
        self._folders: dict[Path | None, Folder] = {}
        self._words: dict[tuple[Path | None, str], Override | Faults] = {}
        self._composed: dict[tuple[Path | None, tuple[str, ...]], tuple[dict[str, Any], list[ConfigError]]] = {}

    def folder(self, config_dir: Path | None) -> Folder:
        """The folder, to be asked what is a group; it chooses nothing. Raises: ConfigError as Folder does."""
        if config_dir not in self._folders:
            self._folders[config_dir] = Folder(config_dir)
        return self._folders[config_dir]

    def word(self, text: str, folder: Folder) -> Override | Faults:
        """One word as Hydra reads it, or why it is refused."""
        key = (folder.path, text)
        if key not in self._words:
            try:
                self._words[key] = _parse_word(text, folder)
            except Faults as e:
                self._words[key] = e
        return self._words[key]

    def composed(self, choices: list[Override], config_dir: Path | None) -> tuple[dict[str, Any], list[ConfigError]]:
        """What the files that `choices` name say together, and their faults."""
        key = (config_dir, tuple(str(w.input_line) for w in choices))
        if key not in self._composed:
            self._composed[key] = _composed(choices, config_dir)
        raw, faults = self._composed[key]
        return copy.deepcopy(raw), list(faults)


def attempt(
    overrides: list[str], config_dir: Path | None = None, memory: Memory | None = None
) -> tuple[dict[str, Any], list[ConfigError], bool]:
    """What could be composed, its faults, and whether all files that were asked for are in it."""
    memory = memory or Memory()
    try:
        folder = memory.folder(config_dir)
        words, faults = parse(overrides, folder, memory)
    except ConfigError as e:
        return {}, [e], False
    raw, found = memory.composed([w for w in words if _is_choice(w, folder)], config_dir)
    whole = not found
    for word in words:
        if not (_is_choice(word, folder) or (word.is_delete() and not whole)):
            found += _set(raw, word)
    raw = _filled(raw, found)
    unique = {str(fault): fault for fault in faults + found}  # one bad file may be reached by many ways
    return raw, list(unique.values()), whole


def _short(text: str) -> str:
    return one_line(text, 80)


def parse(
    overrides: list[str], folder: Folder, memory: Memory, *, sweeps: bool = False
) -> tuple[list[Override], list[ConfigError]]:
    """The words as Hydra reads them, and the faults of those that are refused; with `sweeps` a word may name many values.

    Raises:
        ConfigError: there are more words than Hydra's parser can read in a second or two.
    """
    text = "".join(overrides)
    if len(overrides) > MAX_WORDS or len(text) > MAX_CHARS or text.count(",") > MAX_COMMAS:
        raise ConfigError(
            f"{_short(max(overrides, key=len))}: one of {len(overrides)} overrides; at most {MAX_WORDS}, with {MAX_CHARS} "
            f"characters and {MAX_COMMAS} commas, go on a command line. Put them into an experiment file."
        )
    words: list[Override] = []
    faults: list[ConfigError] = []
    for text in overrides:
        word = memory.word(text, folder)
        if isinstance(word, Faults):
            faults += [f for f in word.faults if isinstance(f, ConfigError)]
        elif word.is_sweep_override() and not sweeps:
            many = "-m --search" if word.is_interval_sweep() else "-m"
            faults.append(ConfigError(f"{_short(text)}: many values are many runs. Add {many}, or quote the value: key='a,b'."))
        else:
            words.append(word)
    return words, faults


def _parse_word(text: str, folder: Folder) -> Override:
    """One word; Faults if it is refused or unreadable. The key is looked at before anything is parsed."""
    from hydra.errors import HydraException

    key, shown = _short(text.partition("=")[0].lstrip("+~")), _short(text)
    if wrong := refuse_key(key):
        raise Faults([ConfigError(f"{key}: {wrong}")])
    if _depth(text) > MAX_DEPTH:
        raise Faults([ConfigError(f"{shown}: nested deeper than {MAX_DEPTH}. Flatten it.")])
    try:
        word = _parser().parse_override(_quoted(text))
        value = word.value()
    except (HydraException, ValueError, ArithmeticError, TypeError, RecursionError) as e:
        why = one_line(next(iter(str(e).splitlines()), type(e).__name__), 120)
        each = ", or each of several: key='a','b'" if "," in text else ": key='...'"
        raise Faults([ConfigError(f"{shown}: is no key=value ({why}). Quote the value{each}.")]) from None
    name = word.key_or_group
    if word.package is not None or not (folder.is_group(name) or KEY.fullmatch(name)):
        known = near(key, folder.groups()) if "/" in name else "Write group=choice or group.key=value."
        raise Faults([ConfigError(f"{shown}: {key} is neither a key nor a group. {known}")])
    if not word.is_sweep_override() and (wrongs := list(refusals(value, name))):  # grid.py looks at each value of a sweep
        raise Faults([ConfigError(wrong) for wrong in wrongs])
    return word


@functools.cache
def _parser() -> OverridesParser:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    return OverridesParser.create()


def _depth(text: str) -> int:
    """How deep brackets nest in `text`, at most."""
    depth = deepest = 0
    for c in text:
        depth += (c in "[{(") - (c in "]})")
        deepest = max(deepest, depth)
    return deepest


def _quoted(text: str) -> str:
    """`key=größe`, `key=x>=0.95` with quotes: Hydra reads such letters only within them. Values with its own signs stay."""
    key, _, value = text.partition("=")
    plain = re.fullmatch(r"[\w /+.%*@?|:\t-]*", value, re.ASCII) or set(value) & set("'\"\\[]{}(),$")
    return text if plain else f"{key}='{value}'"


def _is_choice(word: Override, folder: Folder) -> bool:
    """Whether Hydra takes `word` for a choice of a file, and not for a value."""
    return folder.is_group(word.key_or_group) and not isinstance(word.value(), dict)


def _choose(word: Override, folder: Folder) -> list[ConfigError]:
    """The faults of one `group=choice`: of the word, and of the user's files it leads to."""
    group, value, before = word.key_or_group, word.value(), len(folder.faults)
    for choice in value if isinstance(value, list) else [value]:
        shown = f"{group}={'null' if choice is None else _short(str(choice))}"
        if word.is_delete() and choice is None:
            continue
        if not isinstance(choice, str) or not NAME.fullmatch(choice) or refuse_key(choice):
            known = near(str(choice)[:80], folder.choices(group))
            return [ConfigError(f"{shown}: a choice is the name of a file in its group, never a path. {known}")]
        if not folder.has(group, choice):
            return [ConfigError(f"{shown}: unknown. {near(choice, folder.choices(group))}")]
        folder.choose(f"{group}/{choice}")
    if word.is_force_add():
        return [ConfigError(f"{_short(str(word.input_line))}: a group has no ++. Write one + or none.")]
    return folder.faults[before:]


def _composed(choices: list[Override], config_dir: Path | None) -> tuple[dict[str, Any], list[ConfigError]]:
    """The files that `choices` name, together; nothing and the faults if one of them is wrong."""
    try:
        folder = Folder(config_dir)
        faults = [fault for word in choices for fault in _choose(word, folder)]
        return ({}, faults) if faults else (_hydra([str(w.input_line) for w in choices], folder), [])
    except ConfigError as e:
        return {}, [e]


def _hydra(choices: list[str], folder: Folder) -> dict[str, Any]:
    """What Hydra composes of config.yaml and `choices`, ${...} left as they are.

    Raises:
        ConfigError: the choices do not go together.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_module
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import OmegaConf

    GlobalHydra.instance().clear()
    try:
        with _serving(folder), initialize_config_module("hpcai.configs", job_name="hpcai", version_base="1.3"):
            for name in RESOLVERS:  # belt and braces: no file that could name one gets this far
                OmegaConf.clear_resolver(name)
            composed = OmegaConf.to_container(hydra_compose("config", choices), resolve=False)
    except Exception as e:  # Hydra's own, OmegaConf's, ValueError, AssertionError: all mean that the choices do not fit
        raise ConfigError(_told(str(e))) from e
    finally:
        GlobalHydra.instance().clear()
    assert isinstance(composed, dict)
    return {str(key): value for key, value in composed.items()}


def _told(message: str) -> str:
    """Hydra's reason in our words where it is a common one, else its first line."""
    if match := re.search(r"Could not override '([^']+)'", message):
        return f"{match[1]}: nothing of that group is chosen yet. Write +{match[1]}=choice."
    if match := re.search(r"Multiple values for ([\w/]+)|^([\w/]+) appears more than once", message):
        group = match[1] or match[2]
        return f"{group}: chosen twice. Write {group}=choice, without +; in a file `override /{group}: choice`."
    if match := re.search(r"Could not delete '?([^'\n.]+)", message):
        return f"~{match[1]}: nothing to delete. Leave it out."
    why = " ".join(message.split()) or "they do not go together"
    return f"config: {one_line(why, 200)}. Correct the choices."


@contextlib.contextmanager
def _serving(folder: Folder) -> Iterator[None]:
    """Hydra asks `folder` for every config file of ours and the user's, before it looks itself, until the block ends."""
    source = _source()
    source.folder = folder
    try:
        yield
    finally:
        source.folder = None


@functools.cache
def _source() -> Any:
    """The class by which Hydra asks for files, registered as a plug-in; made at use, since Hydra is imported at use."""
    from hydra.core.config_search_path import ConfigSearchPath
    from hydra.core.object_type import ObjectType
    from hydra.core.plugins import Plugins
    from hydra.plugins.config_source import ConfigResult, ConfigSource
    from hydra.plugins.search_path_plugin import SearchPathPlugin
    from omegaconf import OmegaConf

    class HpcaiSource(ConfigSource):
        folder: Folder | None = None  # of the class: Hydra makes and copies the instances

        @staticmethod
        def scheme() -> str:
            return "hpcai"

        def available(self) -> bool:
            return True

        def is_group(self, config_path: str) -> bool:
            return self.folder is not None and self.folder.is_group(config_path)

        def is_config(self, config_path: str) -> bool:
            return self.folder is not None and (config_path in UNUSED or self.folder.serves(config_path.removesuffix(".yaml")))

        def load_config(self, config_path: str) -> ConfigResult:
            assert self.folder is not None
            if config_path in UNUSED:
                return ConfigResult(self.provider, "hpcai://", OmegaConf.create({}), {"package": None})
            file = self.folder.file(config_path.removesuffix(".yaml"))
            values = OmegaConf.create(_marked(file.values, "$", MARK))
            return ConfigResult(self.provider, "hpcai://", values, {"package": file.package})

        def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
            return self.folder.choices(config_path) if self.folder else []

    class HpcaiSearchPath(SearchPathPlugin):
        def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
            if HpcaiSource.folder is not None:
                search_path.prepend("hpcai", "hpcai://")

    Plugins.instance().register(HpcaiSource)
    Plugins.instance().register(HpcaiSearchPath)
    return HpcaiSource


def _marked(value: Any, old: str, new: str) -> Any:
    """`value` with `old` replaced in each of its texts."""
    if isinstance(value, dict):
        return {key: _marked(inner, old, new) for key, inner in value.items()}
    if isinstance(value, list):
        return [_marked(inner, old, new) for inner in value]
    return value.replace(old, new) if isinstance(value, str) else value


def _set(raw: dict[str, Any], word: Override) -> list[ConfigError]:
    """Sets or deletes the value that `word` names, as Hydra's `++` does: a mapping is merged, all else replaced."""
    *above, last = word.key_or_group.split(".")
    place = raw
    for part in above:
        if not isinstance(place.get(part), dict):
            if word.is_delete():
                place = {}
                break
            place[part] = {}
        place = place[part]
    if not word.is_delete():
        _merge(place, {last: word.value()})
    elif last not in place or word.value() not in (None, place[last]):
        return [ConfigError(f"~{word.key_or_group}: not set by any file, so it cannot be deleted. Leave it out.")]
    else:
        del place[last]
    return []


def _merge(into: dict[str, Any], new: dict[str, Any]) -> None:
    for key, value in new.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value


def _filled(raw: dict[str, Any], faults: list[ConfigError]) -> dict[str, Any]:
    """`raw` with each ${group.key} filled in and `???` (Hydra's word for "to be given") left out; adds to `faults`.

    Ours and not OmegaConf's: each key is filled once and a text has a limit, so nine lines of ${a}${a} cannot make a gigabyte.
    """
    done: dict[str, Any] = {}
    tree: dict[str, Any] = _marked(raw, MARK, "$")

    def look(path: str, trail: tuple[str, ...]) -> Any:
        if path in trail or len(trail) > MAX_DEPTH:
            raise ConfigError(f"{path}=${{{path}}}: leads back to itself. Write the value.")
        if path not in done:
            value: Any = tree
            for part in path.split("."):
                value = value.get(part, "???") if isinstance(value, dict) else "???"
            if isinstance(value, (dict, list)) or value == "???":
                raise ConfigError(f"{trail[0]}=${{{path}}}: names no single value of the config. Write the value.")
            done[path] = fill(value, path, trail)
        return done[path]

    def fill(value: Any, path: str, trail: tuple[str, ...] = ()) -> Any:
        if not isinstance(value, str) or "${" not in value:
            return value
        if NODE.fullmatch(value):
            return look(value[2:-1], (*trail, path))
        text = NODE.sub(lambda match: str(look(match[0][2:-1], (*trail, path))), value)
        if len(text) > MAX_TEXT or "${" in text:
            raise ConfigError(f"{path}: longer than {MAX_TEXT} characters, or holds ${{, once filled in. Write it out.")
        return text

    def walk(value: Any, path: str) -> Any:
        if isinstance(value, dict):
            return {k: walk(v, f"{path}.{k}".lstrip(".")) for k, v in value.items() if v != "???"}
        if isinstance(value, list):
            return [walk(v, f"{path}.{i}") for i, v in enumerate(value)]
        try:
            return fill(value, path)
        except ConfigError as e:
            faults.append(e)
            return None

    filled: dict[str, Any] = walk(tree, "")
    return filled

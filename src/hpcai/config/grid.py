"""What the words after `-m` mean: a list of members.   words -> parsed -> values of each -> counted -> cross product -> [Point]

Hydra's sweep grammar (`a=1,2`, `choice(...)`, `range(...)`, `shuffle(...)`, `group=glob(*)`) in the order of its BasicSweeper.
Counted before it is expanded: `range(0,1000000000)` is refused in no time and no memory. Whether a value fits its key is not
looked at here: each member is checked by itself (check.py), with what compose.Memory keeps for all.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import random
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpcai.config.compose import Memory, parse
from hpcai.config.folder import Folder
from hpcai.errors import ConfigError, Faults, near, one_line

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override, RangeSweep

MAX_MEMBERS = 1000
MAX_LABEL = 120


@dataclass(frozen=True)
class Point:
    """One member. `words`: all its overrides; `label`: what varies, `trainer.lr=0.001 seed=0`; `group`: that less the seed."""

    words: list[str]
    label: str
    group: str


@dataclass(frozen=True)
class _Axis:
    """One word: the words that it stands for, one a value, or itself."""

    key: str
    words: list[str]

    @property
    def varies(self) -> bool:
        return len(self.words) > 1


def expand(words: list[str], config_dir: Path | None = None, memory: Memory | None = None) -> list[Point]:
    """The members that `words` name, the last word varying fastest; without a sweep one point without a label.

    Of a key given twice the last counts, in the first one's place. Words that do not vary stay as they are. `shuffle` shuffles
    alike each time: the same command means the same sweep.

    Raises:
        Faults: every fault of every word; too many members; two that are equal.
    """
    memory = memory or Memory()
    folder = memory.folder(config_dir)
    parsed, faults = parse(words, folder, memory, sweeps=True)
    kept: dict[str, Override] = {}
    for word in parsed:
        key = word.get_key_element()
        added = word.is_add() and not word.is_sweep_override() and folder.is_group(word.key_or_group)
        kept[str(word.input_line) if added else key] = word  # +group=a +group=b is refused by compose, as without -m
    counts: dict[str, int] = {}
    for word in kept.values():
        try:
            counts[str(word.input_line)] = _count(word, folder) if word.is_sweep_override() else 1
        except ConfigError as e:
            faults.append(e)
    if (total := math.prod(counts.values())) > MAX_MEMBERS:
        many = f"{total:,}" if total < 10**15 else "over 10^15"
        shown = one_line(max(counts, key=lambda word: counts[word]), 80)
        faults.append(ConfigError(f"{shown}: the sweep has {many} members, at most {MAX_MEMBERS:,}. Name fewer values."))
    if faults:
        raise Faults(faults)
    axes = [_axis(word, folder, memory, faults) for word in kept.values()]
    if faults:
        raise Faults(list({str(fault): fault for fault in faults}.values()))
    return [_point(axes, list(chosen)) for chosen in itertools.product(*(axis.words for axis in axes))]


def _count(word: Override, folder: Folder) -> int:
    """How many values `word` names, none of them made.

    Raises: ConfigError if it is none, or no one can count them.
    """
    from hydra.core.override_parser.types import ChoiceSweep, Glob, RangeSweep
    from hydra.errors import HydraException

    value, shown = word.value(), one_line(str(word.input_line), 80)
    if isinstance(value, Glob):
        if not folder.is_group(word.key_or_group):
            raise ConfigError(f"{shown}: glob chooses files of a group. {near(word.key_or_group, folder.groups())}")
        known = folder.choices(word.key_or_group)
        if not value.filter(known):
            raise ConfigError(f"{shown}: matches none of {one_line(', '.join(known), 200)}. Change the pattern.")
        return len(value.filter(known))
    if isinstance(value, ChoiceSweep):
        return len(value.list)
    if not isinstance(value, RangeSweep):
        raise ConfigError(f"{shown}: an interval is for a search. Add --search, or name values: {word.key_or_group}=a,b.")
    try:
        count = sum(1 for _ in itertools.islice(value.range(), MAX_MEMBERS + 1))
        count = count if count <= MAX_MEMBERS else _length(value)
    except (HydraException, ValueError, ArithmeticError):
        raise ConfigError(f"{shown}: is no range (a step of 0, or not a number). Write range(START,STOP,STEP).") from None
    if not count:
        raise ConfigError(f"{shown}: an empty range. Its STOP is not in it: write range(START,STOP,STEP).")
    return count


def _length(value: RangeSweep) -> int:
    """How many numbers a long range has: exact for whole numbers, near it for others."""
    from fractions import Fraction

    assert value.start is not None and value.stop is not None
    if value.start in (math.inf, -math.inf) or value.stop in (math.inf, -math.inf):
        return 10**15
    return max(MAX_MEMBERS + 1, math.ceil((Fraction(value.stop) - Fraction(value.start)) / Fraction(value.step)))


def _axis(word: Override, folder: Folder, memory: Memory, faults: list[ConfigError]) -> _Axis:
    """The words that one word stands for, each read as if a user had typed it; adds to `faults`."""
    if not word.is_sweep_override():
        return _Axis(word.key_or_group, [str(word.input_line)])
    texts = [f"{word.get_key_element()}={value}" for value in _values(word, folder)]
    seen: dict[str, str] = {}
    for text in texts:
        read = memory.word(text, folder)
        if isinstance(read, Faults):
            faults += [fault for fault in read.faults if isinstance(fault, ConfigError)]
        elif seen.setdefault(repr(read.value()), text) is not text:
            shown, twice = one_line(str(word.input_line), 80), one_line(text, 80)
            faults.append(ConfigError(f"{shown}: {twice} twice: two members would be one run. Name it once."))
    return _Axis(word.key_or_group, texts)


def _values(word: Override, folder: Folder) -> Iterable[str]:
    """The values of a sweep that was counted, as they are written after the `=`."""
    from hydra.core.override_parser.types import ChoiceSweep, Glob, RangeSweep

    value = word.value()
    if isinstance(value, Glob):
        return value.filter(folder.choices(word.key_or_group))
    assert isinstance(value, (ChoiceSweep, RangeSweep))
    values = [_written(v) for v in (value.list if isinstance(value, ChoiceSweep) else value.range())]
    if value.shuffle:
        random.Random(str(word.input_line)).shuffle(values)
    return values


def _written(value: Any) -> str:
    """As Hydra writes it, but that choice("it's") keeps its quotes: Hydra itself could not read it again."""
    from hydra.core.override_parser.types import Quote, QuotedString, Transformer

    if isinstance(value, str) and set(value) & set("'\""):
        return QuotedString(value, Quote.single).with_quotes()
    return str(Transformer.str(value))


def _point(axes: list[_Axis], words: list[str]) -> Point:
    varied = [(axis.key, word.lstrip("+")) for axis, word in zip(axes, words) if axis.varies]
    return Point(words, _name([word for _, word in varied]), _name([word for key, word in varied if key != "seed"]))


def _name(words: list[str]) -> str:
    """`words` on one short line; what had to be changed or cut for that gets a digest, so that two names stay two."""
    text = " ".join(words)
    name = one_line(text, MAX_LABEL)
    return name if name == text else f"{name} #{hashlib.sha256(text.encode(errors='backslashreplace')).hexdigest()[:8]}"

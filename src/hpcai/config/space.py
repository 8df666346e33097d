"""What a search may vary, read off Hydra's sweep words.   words -> words that stay, Space -> values of one trial -> its words

    trainer.lr=interval(1e-4,1e-1)           a number between the two         tag(log, interval(1e-4,1e-1)): even on a log scale
    trainer.patience=tag(int, interval(0,9)) a whole number, both ends in     int(interval(0,9)): the same, as Hydra casts
    trainer.epochs=range(2,10)               2, 3 ... 9                       range(0.1,0.5,0.1): 0.1, 0.2, 0.3, 0.4
    trainer.batch_size=32,64                 one of them                      choice(32,64), model=a,b, model=glob(*): the same

The grammar is the one that Hydra's Optuna sweeper reads. Two words mean more here: a range ends before its stop, as in a grid
(the sweeper takes the stop in), and an interval of a key that takes whole numbers holds whole numbers.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hpcai.config.compose import Memory, parse
from hpcai.config.folder import Folder
from hpcai.config.keys import all_keys
from hpcai.errors import ConfigError, Faults, near, one_line

if TYPE_CHECKING:
    from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep

MAX_CHOICES = 100  # of one dimension: no search learns which of more is best
TAGS = ("int", "log")


@dataclass(frozen=True)
class Dimension:
    """One thing to vary: a number from `low` to `high`, both in, in steps of `step` from `low`; or one of `choices`.

    Attributes:
        log: even on a logarithmic scale; `low` is above 0 then, and there is no step.
        choices: each as the text of an override, `'a b'` with its quotes.
    """

    kind: Literal["float", "int", "category"]
    low: float = 0
    high: float = 0
    log: bool = False
    step: float | None = None
    choices: tuple[str, ...] = ()

    def text(self, value: Any) -> str:
        """`value` as an override's text; read back by Hydra it is the same number, to the last bit."""
        if self.kind == "category":
            return str(value)
        if self.kind == "int":
            return str(int(value))
        if self.step is None:
            return repr(float(value))
        low, step = Decimal(repr(self.low)), Decimal(repr(self.step))  # 0.1 + 2 steps of 0.1 are 0.3, not 0.30000000000000004
        return repr(float(low + step * round((Decimal(repr(float(value))) - low) / step)))


@dataclass(frozen=True)
class Space:
    """The dimensions by key, in the order they were typed; a key keeps its `+`."""

    dimensions: dict[str, Dimension]

    def words(self, values: Mapping[str, Any]) -> list[str]:
        """The overrides of one trial: `trainer.lr=0.0012340000000000001`."""
        return [f"{key}={d.text(values[key])}" for key, d in self.dimensions.items()]

    def label(self, values: Mapping[str, Any]) -> str:
        """The same for people, on one line: numbers cut to 6 significant digits."""
        shown = (
            f"{key.lstrip('+')}={one_line(d.text(values[key]), 80) if d.kind != 'float' else f'{float(values[key]):.6g}'}"
            for key, d in self.dimensions.items()
        )
        return " ".join(shown)

    def example(self) -> dict[str, Any]:
        """Values of a trial that there could be: to compose and check once, before a trial is spent on a wrong key."""
        return {key: d.choices[0] if d.kind == "category" else d.low for key, d in self.dimensions.items()}

    def to_json(self) -> dict[str, Any]:
        """As it stands in a search's journal."""
        return {key: {**asdict(d), "choices": list(d.choices)} for key, d in self.dimensions.items()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Space:
        """The space that `to_json` wrote."""
        return cls({key: Dimension(**{**d, "choices": tuple(d["choices"])}) for key, d in value.items()})


def split(words: list[str], config_dir: Path | None = None, memory: Memory | None = None) -> tuple[list[str], Space]:
    """The words that stay as they are, and the space that the others span.

    Whether a key exists is for check to say, of an example.

    Raises:
        Faults: every word that cannot be read or spans nothing, and keys that stand twice.
        ConfigError: nothing is left to vary.
    """
    memory = memory or Memory()
    folder = memory.folder(config_dir)
    read, faults = parse(words, folder, memory, sweeps=True)
    fixed = [word for word in read if not word.is_sweep_override()]
    named = {word.key_or_group for word in fixed}
    dimensions: dict[str, Dimension] = {}
    for word in read:
        if not word.is_sweep_override():
            continue
        if word.key_or_group in named:
            faults.append(ConfigError(f"{_short(word.key_or_group)}: stands twice, once to vary. Keep one."))
        named.add(word.key_or_group)
        try:
            dimensions[word.get_key_element()] = _dimension(word, folder, memory)
        except ConfigError as e:
            faults.append(e)
    if faults:
        raise Faults(faults)
    if not dimensions:
        raise ConfigError(
            "--search: nothing to vary. Give a key an interval, a range or a list: 'trainer.lr=interval(1e-4,1e-1)'."
        )
    return [str(word.input_line) for word in fixed], Space(dimensions)


def _short(text: str) -> str:
    return one_line(text, 80)


def _dimension(word: Override, folder: Folder, memory: Memory) -> Dimension:
    """What one word spans.

    Raises: ConfigError.
    """
    from hydra.core.override_parser.types import Glob, IntervalSweep, RangeSweep

    name, shown, value = word.key_or_group, _short(str(word.input_line)), word.value()
    if word.is_delete():
        raise ConfigError(f"{shown}: ~ takes a key away, and nothing is left to vary. Write {_short(name)}=...")
    if name == "seed":
        raise ConfigError("seed: a seed is no hyperparameter. Search with one seed, then try the best with -m seed=0,1,2.")
    if isinstance(value, Glob):
        return _category(word, value.filter(folder.choices(name)), folder, memory)
    assert not isinstance(value, (str, int, float, list, dict, type(None)))
    if unknown := sorted(value.tags - {*TAGS}):
        raise ConfigError(f"{shown}: tag {_short(unknown[0])} is unknown. {near(unknown[0], TAGS)}")
    if isinstance(value, IntervalSweep):
        return _interval(value, name, shown)
    if value.shuffle:
        raise ConfigError(f"{shown}: a search goes in no order. Leave shuffle out.")
    if isinstance(value, RangeSweep):
        return _range(value, shown)
    if value.tags:
        raise ConfigError(f"{shown}: tag {min(value.tags)} is for an interval or a range. Leave it out.")
    return _category(word, list(word.sweep_string_iterator()), folder, memory)


def _category(word: Override, texts: list[str], folder: Folder, memory: Memory) -> Dimension:
    """Each text is read as if a user had typed it alone."""
    choices, shown = tuple(dict.fromkeys(texts)), _short(str(word.input_line))
    if not choices:
        raise ConfigError(f"{shown}: matches nothing. Change the pattern.")
    if len(choices) > MAX_CHOICES:
        raise ConfigError(f"{shown}: {len(choices)} choices, at most {MAX_CHOICES}. Take a range or an interval.")
    for choice in choices:
        alone = memory.word(f"{word.get_key_element()}={choice}", folder)
        if isinstance(alone, Faults):
            raise ConfigError(str(alone.faults[0]))
    return Dimension("category", choices=choices)


def _range(value: RangeSweep, shown: str) -> Dimension:
    """The numbers that Hydra's grid goes through; a range that goes down holds the same as one that goes up."""
    first, stop, step = (_number(x, shown) for x in (value.start, value.stop, value.step))
    if step == 0:
        raise ConfigError(f"{shown}: a step of 0 leads nowhere. Give another.")
    many = math.ceil((stop - first) / step)
    if many < 2:
        raise ConfigError(f"{shown}: holds {max(many, 0)} values. A range ends before its stop; widen it, or set the value.")
    low, high = sorted((first, first + step * (many - 1)))
    whole = all(isinstance(x, int) for x in (value.start, value.stop, value.step)) or "int" in value.tags
    if whole and any(x % 1 for x in (low, high, step)):
        raise ConfigError(f"{shown}: tag int needs whole numbers. Correct them.")
    if "log" in value.tags:
        if not whole or abs(step) != 1:
            raise ConfigError(f"{shown}: tag log goes in no steps. Take tag(log, interval(low,high)).")
        return _log("int", int(low), int(high), shown)
    if whole:
        return Dimension("int", int(low), int(high), step=int(abs(step)))
    return Dimension("float", float(low), float(high), step=float(abs(step)))


def _interval(value: IntervalSweep, name: str, shown: str) -> Dimension:
    low, high = (float(_number(x, shown)) for x in (value.start, value.end))
    whole = "int" in value.tags or isinstance(value.start, int) or name in _whole_keys()
    if whole:
        low, high = math.ceil(low), math.floor(high)
    if not low < high or math.isinf(high - low):
        what = "fewer than two whole numbers" if whole else "nothing"
        raise ConfigError(f"{shown}: holds {what} to choose from. Write interval(low,high) with low below high.")
    kind: Literal["int", "float"] = "int" if whole else "float"
    if "log" in value.tags:
        return _log(kind, low, high, shown)
    return Dimension(kind, low, high, step=1 if whole else None)


def _log(kind: Literal["int", "float"], low: float, high: float, shown: str) -> Dimension:
    if low <= 0:
        raise ConfigError(f"{shown}: tag log needs numbers above 0. Raise the lower end.")
    return Dimension(kind, low, high, log=True)


def _number(value: Any, shown: str) -> Decimal:
    """As it was typed: 0.1 is a tenth."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or abs(value) >= 2**63:
        raise ConfigError(f"{shown}: {_short(str(value))} is no number to search among. Correct it.")
    return Decimal(repr(value))


@functools.cache
def _whole_keys() -> frozenset[str]:
    """The keys that take whole numbers alone."""
    return frozenset(key.name for key in all_keys() if key.type.startswith("whole number"))

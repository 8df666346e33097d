"""Which config keys tell runs apart.   config -> flat keys -> those that vary; a sweep's members by their keys

Paths, addresses, accounts and what only names the data are no keys here: they say nothing of a result, and may name people.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from hpcai.errors import one_line

Value = str | int | float | bool | None
GROUPS = ("task", "model", "trainer", "data", "predict", "resources", "cluster")
HIDDEN = {
    "data.path", "data.root", "data.sha256", "data.source", "data.licence", "data.case_col", "data.path_col", "data.label_col",
    "data.patient_col", "data.split_col", "model.init_from", "predict.merge", "trainer.log_every", "trainer.checkpoint_every",
    "trainer.checkpoint_every_min", "trainer.keep_last", "trainer.checkpoint_async",
}  # fmt: skip
OF_CLUSTER = ("cluster.name",)
LONG = 60  # characters of a value
MISSING = "–"
HEAT = 12  # values of a key up to which a sweep of two keys is a grid


def flat(config: Mapping[str, Any]) -> dict[str, Value]:
    """The keys of a config that may tell runs apart: `trainer.lr` -> 0.001. A list or mapping of values is one text."""
    found: dict[str, Value] = {}
    if type(config.get("seed")) is int:
        found["seed"] = config["seed"]
    for group in GROUPS:
        if isinstance(config.get(group), dict):
            _add(found, group, config[group])
    return {k: v for k, v in found.items() if k not in HIDDEN and (not k.startswith("cluster.") or k in OF_CLUSTER)}


def _add(found: dict[str, Value], name: str, value: Any, depth: int = 0) -> None:
    if isinstance(value, dict) and value and depth < 4:
        for key, inner in value.items():
            _add(found, f"{name}.{one_line(str(key), LONG)}", inner, depth + 1)
    elif isinstance(value, bool | int | float | None):
        found[name] = value
    else:
        text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        found[name] = "<path>" if text.startswith(("/", "~", "./", "../")) else one_line(text, LONG)


def varying(configs: Iterable[Mapping[str, Value]]) -> list[str]:
    """The keys whose value is not the same in all of them, in the order in which they first occur; one that lacks it counts."""
    listed = [config for config in configs if config]
    seen: dict[str, set[str]] = defaultdict(set)
    count: dict[str, int] = defaultdict(int)
    for config in listed:
        for key, value in config.items():
            seen[key].add(shown(value))
            count[key] += 1
    return [key for key, values in seen.items() if len(values) > 1 or count[key] < len(listed)]


def shown(value: Value) -> str:
    """A value as text, in full: `0.001`, `true`, `null`."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return str(value)


def order(value: Value) -> tuple[int, float, str]:
    """Numbers by size, then texts by letter."""
    if isinstance(value, int | float) and not isinstance(value, bool) and value == value:
        return 0, float(value), ""
    return 1, 0.0, shown(value)


@dataclass(frozen=True)
class Cell:
    """Members of a sweep that agree in the keys shown: the mean of their validation scores, None without one."""

    mean: float | None
    n: int
    of: int
    share: float = 0.0  # where the mean lies between the sweep's worst (0) and best (1)


@dataclass(frozen=True)
class Table:
    """A sweep by its keys, the seed left out. A `grid` (rows of cells by two keys), else `lines` (values, cell), best first."""

    keys: list[str]
    name: str  # of the score
    rows: list[Value]
    columns: list[Value]
    grid: list[list[Cell | None]]
    lines: list[tuple[list[Value], Cell]]


Scored = tuple[Mapping[str, Value], str, float | None]  # config, name of the score, its value


def table(members: Sequence[Scored]) -> Table:
    """A sweep's members by the keys that vary among them. A loss is better when lower; where both occur AUC alone counts."""
    keys = [key for key in varying(config for config, _, _ in members) if key not in ("seed", "data.split.fold")]
    names = {name for _, name, value in members if value is not None}
    name = min(names, default="")
    groups: dict[tuple[str, ...], list[Scored]] = defaultdict(list)
    for member in members:
        groups[tuple(shown(member[0].get(key, MISSING)) for key in keys)].append(member)
    means = {at: [v for _, n, v in some if v is not None and n == name] for at, some in groups.items()}
    worst, best = _ends([fmean(values) for values in means.values() if values], name == "loss")
    cells = {at: _cell(means[at], len(some), worst, best) for at, some in groups.items()}
    first = {at: some[0][0] for at, some in groups.items()}
    axes = [sorted({shown(c.get(k, MISSING)): c.get(k, MISSING) for c in first.values()}.values(), key=order) for k in keys]
    if len(keys) == 2 and all(2 <= len(axis) <= HEAT for axis in axes):
        grid = [[cells.get((shown(a), shown(b))) for b in axes[1]] for a in axes[0]]
        return Table(keys, name, axes[0], axes[1], grid, [])
    ranked = sorted(cells, key=lambda at: (cells[at].mean is None, -cells[at].share, at))
    return Table(keys, name, [], [], [], [([first[at].get(key, MISSING) for key in keys], cells[at]) for at in ranked])


def _ends(values: list[float], lower_is_better: bool) -> tuple[float, float]:
    low, high = min(values, default=0.0), max(values, default=0.0)
    return (high, low) if lower_is_better else (low, high)


def _cell(values: list[float], of: int, worst: float, best: float) -> Cell:
    if not values:
        return Cell(None, 0, of)
    mean = fmean(values)
    return Cell(mean, len(values), of, (mean - worst) / (best - worst) if best != worst else 1.0)

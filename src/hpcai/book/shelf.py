"""From names in a config to the facts they stand for, checked against each other.   name -> file -> model -> Books

A name is a shipped file's (`nbs_msms`), or the path of a laboratory's own (has a `/`, or ends in .yaml). Files are read within
the limits of a user's config (config/userfile.py): plain values, no tags, nothing that names code. All faults are told at once.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import typing
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from hpcai.book.analytes import Dictionary, squeezed
from hpcai.book.controls import Controls
from hpcai.book.diseases import Diseases
from hpcai.book.policy import Policy
from hpcai.book.rules import Condition, Rules, quantity
from hpcai.book.specimen import SpecimenRule, SpecimenRules
from hpcai.config.check import LIMITS, MAX_FAULTS, TYPES
from hpcai.config.folder import shipped_folder
from hpcai.config.schema import Screening
from hpcai.config.userfile import read_user_file
from hpcai.errors import ConfigError, DataError, Faults, HpcaiError, near, one_line

Model = TypeVar("Model", bound=BaseModel)
FOLDERS = {
    "analytes": "analytes", "diseases": "diseases", "rules": "rules", "specimen": "rules", "policy": "policy",
    "controls": "controls", "simulation": "simulation",
}  # fmt: skip
NEEDED = ("sample", "laboratory", "plate")  # columns that screening asks for by name
KINDS = dict.fromkeys((*NEEDED, "material", "month", "split", "diagnosis", "family", "decision"), "text") | dict.fromkeys(
    ("age_h", "gestation_weeks", "weight_g"), "number"
)  # of columns that mean something to screening
OPERATORS = re.compile(r"[/+]")  # of a rule's quantity: a name must not hold one


@dataclass(frozen=True)
class Books:
    """Everything that a laboratory states, consistent."""

    dictionary: Dictionary
    panel: Diseases
    rules: list[Rules]
    specimen: SpecimenRules
    policy: Policy

    def digests(self) -> dict[str, str]:
        """The digest of each: `analytes`, `diseases`, `rules.NAME`, `specimen`, `policy`."""
        sets = {f"rules.{r.name}": digest(r) for r in self.rules}
        both = {"analytes": digest(self.dictionary), "diseases": digest(self.panel)}
        return {**both, **sets, "specimen": digest(self.specimen), "policy": digest(self.policy)}


# --- one file


def file_of(kind: str, name: str, key: str | None = None) -> Path:
    """The file that `name` stands for: of `kind` analytes, diseases, rules, specimen, policy, controls or simulation.

    `key`: what a message calls it (screening.rules); None: its kind.

    Raises:
        ConfigError: no file of that name is shipped, or a path does not end in .yaml.
    """
    shown = f"{key or kind}={one_line(name, 80)}"
    if "/" in name or name.endswith(".yaml"):
        if not name.endswith(".yaml"):
            raise ConfigError(f"{shown}: a file of facts is called NAME.yaml. Rename it, or name a shipped one.")
        return Path(name)
    folder = shipped_folder() / FOLDERS[kind]
    known = sorted(f.stem for f in folder.glob("*.yaml") if kind not in ("rules", "specimen") or _is_of(f, kind))
    if name not in known:
        raise ConfigError(f"{shown}: no such file is shipped. {near(name[:80], known)} Your own is named with its .yaml.")
    return folder / f"{name}.yaml"


def _is_of(file: Path, kind: str) -> bool:
    """Rules of specimens lie beside those of analytes, and are called so."""
    return file.stem.startswith("specimen") == (kind == "specimen")


def read(kind: str, name: str, model: type[Model], key: str | None = None) -> Model:
    """What the file says, as `model`. `key`: as in `file_of`.

    Raises:
        ConfigError: there is no such file, or it is no YAML.
        Faults: what is wrong with its keys and values, a line for each.
    """
    path = file_of(kind, name, key)
    try:
        path = path.resolve()
    except (OSError, RuntimeError, ValueError):  # links in a circle, a NUL
        raise ConfigError(f"{key or kind}={one_line(name, 80)}: cannot be read. Mend its path.") from None
    if not os.path.lexists(path):
        raise ConfigError(f"{key or kind}={one_line(name, 80)}: does not exist. Correct the path.")
    file = read_user_file(path.parent, path.stem)
    found = list(file.faults)
    if not found:
        try:
            return model.model_validate(file.values)
        except ValidationError as e:
            found = [f"{file.where}: {_line(fault, model)}" for fault in e.errors(include_url=False)[:MAX_FAULTS]]
    raise Faults([ConfigError(fault) for fault in found])


def dictionary(name: str) -> Dictionary:
    """The dictionary of a table's columns (configs/analytes). Raises: as `read`, and Faults where it contradicts itself."""
    found = read("analytes", name, Dictionary)
    _refuse(_dictionary(found), file_of("analytes", name))
    return found


def panel(name: str) -> Diseases:
    """The diseases that are screened for (configs/diseases). Raises: as `read`."""
    return read("diseases", name, Diseases)


def rules(name: str) -> Rules:
    """A rule set (configs/rules). Raises: as `read`."""
    return read("rules", name, Rules)


def specimen(name: str) -> SpecimenRules:
    """What the state of a specimen does (configs/rules). Raises: as `read`."""
    return read("specimen", name, SpecimenRules)


def policy(name: str) -> Policy:
    """What a rule's and a model's word asks for (configs/policy). Raises: as `read`."""
    return read("policy", name, Policy)


def digest(book: BaseModel) -> str:
    """The sha256 of what a book says: of its values in canonical JSON, whatever its file's layout and comments."""
    plain = book.model_dump(mode="json", by_alias=True)
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


# --- all of them


def books(cfg: Screening) -> Books:
    """The books that a config names.

    Raises:
        Faults: what is wrong in any of them, or between them, all at once.
    """
    found: list[ConfigError] = []

    def tried(kind: str, name: str, model: type[Model]) -> Model | None:
        try:
            return read(kind, name, model, f"screening.{kind}")
        except (ConfigError, Faults) as e:
            found.extend(fault for fault in e.members if isinstance(fault, ConfigError))
            return None

    analytes = tried("analytes", cfg.analytes, Dictionary)
    diseases = tried("diseases", cfg.diseases, Diseases)
    sets = [tried("rules", name, Rules) for name in cfg.rules]
    state = tried("specimen", cfg.specimen, SpecimenRules)
    words = tried("policy", cfg.policy, Policy)
    if not (analytes and diseases and state and words) or None in sets:
        raise Faults(found)
    made = Books(analytes, diseases, [s for s in sets if s], state, words)
    names = {"analytes": cfg.analytes, "diseases": cfg.diseases, "specimen": cfg.specimen, "policy": cfg.policy}
    files = {kind: file_of(kind, name).name for kind, name in names.items()}
    lines = [f"{files['analytes']}: {line}" for line in _dictionary(analytes)]
    if not lines:  # the others are read against it
        lines += [f"{files['diseases']}: {line}" for line in _panel(made)]
        for name, book in zip(cfg.rules, made.rules):
            lines += [f"{file_of('rules', name).name}: {line}" for line in _rules(book, made)]
        lines += [f"screening.rules: {line}" for line in _twice([r.name for r in made.rules], "set")]
        lines += [f"{files['specimen']}: {line}" for line in _specimen(made)]
        lines += [f"{files['policy']}: {line}" for line in _policy(made)]
    if lines:
        raise Faults([ConfigError(line) for line in lines[:MAX_FAULTS]])
    return made


def checked(cfg: Screening) -> Screening:
    """`cfg`, whose books were all looked at and whose controls are there, before a run is planned.

    Raises:
        Faults: what is wrong in any of them, or between them, all at once.
    """
    found: list[HpcaiError] = []
    steps: list[Callable[[], object]] = [lambda: books(cfg)]
    if cfg.controls is not None:
        steps.append(lambda: read("controls", cfg.control_rules, Controls, "screening.control_rules"))
        if not os.path.isfile(cfg.controls):  # noqa: PTH113  (pathlib's raises for a name that no file system can hold)
            shown = f"screening.controls={one_line(cfg.controls, 200)}"
            found.append(DataError(f"{shown}: is no plain file. Give the table of the plates' controls, or null."))
    for step in steps:
        try:
            step()
        except HpcaiError as e:
            found += e.members
    if found:
        raise Faults(found[:MAX_FAULTS])
    return cfg


def _refuse(lines: Iterator[str], file: Path) -> None:
    if found := [ConfigError(f"{file.name}: {line}") for line in lines]:
        raise Faults(found[:MAX_FAULTS])


# --- what contradicts what: each line names its key first


def _twice(names: list[str], what: str) -> Iterator[str]:
    for name, count in Counter(names).items():
        if count > 1:
            yield f"{one_line(name, 80)}: {count} {what}s of this name. Keep one."


def _dictionary(book: Dictionary) -> Iterator[str]:
    named: dict[str, str] = {}
    parts = [(a.name, a.synonyms) for a in book.analytes] + [(c.name, c.synonyms) for c in book.columns]
    for name, synonyms in parts:
        for word in [name, *synonyms]:
            if (other := named.setdefault(squeezed(word), name)) != name:
                yield f"{one_line(name, 80)}: {one_line(word, 80)} is a name of {one_line(other, 80)} too. Keep it once."
    yield from _twice([name for name, _ in parts], "column")
    for a in book.analytes:
        if OPERATORS.search(a.name):
            yield f"{a.name}: a name holds no / and no +, which rules read as a ratio and a sum. Make it a synonym."
        if not (a.low <= a.typical <= a.high and a.detection <= a.typical):
            yield f"{a.name}: low, detection <= typical <= high does not hold. Correct it."
    known = [a.name for a in book.analytes]
    for r in book.ratios:
        for end in (r.top, r.bottom):
            if end not in known:
                yield f"ratios: {one_line(r.name, 80)}: {one_line(end, 80)} is no analyte. {near(end[:80], known)}"
        if r.top == r.bottom:
            yield f"ratios: {one_line(r.name, 80)}: is always 1. Delete it."
    yield from (f"ratios: {line}" for line in _twice([r.name for r in book.ratios], "ratio"))
    for name in NEEDED:
        if name not in [c.name for c in book.columns]:
            yield f"columns: {name}: required. Add it, as in nbs_msms."
    for c in book.columns:
        if KINDS.get(c.name, c.kind) != c.kind:
            yield f"{c.name}: kind={c.kind}: must be {KINDS[c.name]}. Correct it, or call the column otherwise."
        if c.kind != "number" and (c.low, c.high, c.typical) != (None, None, None):
            yield f"{c.name}: kind={c.kind}: low, high and typical are a number's. Leave them out."
        ordered = [v for v in (c.low, c.typical, c.high) if v is not None]
        if ordered != sorted(ordered):
            yield f"{c.name}: low <= typical <= high does not hold. Correct it."


def _panel(made: Books) -> Iterator[str]:
    analytes, channels = [a.name for a in made.dictionary.analytes], made.dictionary.channels
    yield from _twice(made.panel.names, "disease")
    for d in made.panel.diseases:
        for key, words, known in (("markers", d.markers, channels), ("needs", d.needs, analytes)):
            for word in words:
                if word not in known:
                    yield f"{d.name}: {key}: {one_line(word, 80)}: not in the dictionary. {near(word[:80], known)}"


def _rules(book: Rules, made: Books) -> Iterator[str]:
    spelt = {squeezed(name): name for name in made.panel.names}
    for rule in book.rules:
        if (name := spelt.get(squeezed(rule.disease), rule.disease)) != rule.disease:
            yield f"{one_line(rule.disease, 80)}: the panel spells it {name}. Spell it so."
        for leaf in leaves(rule.when):
            try:
                quantity(leaf.of or "", made.dictionary)
            except ValueError as e:
                yield f"{one_line(rule.disease, 80)}: {e}"
            if leaf.above is not None and leaf.below is not None and leaf.above >= leaf.below:
                yield f"{one_line(rule.disease, 80)}: {leaf.of}: no value is above {leaf.above:g} and below {leaf.below:g}."


def leaves(condition: Condition) -> Iterator[Condition]:
    """The comparisons of a tree, in order."""
    inner = condition.all or condition.any
    if inner is None:
        yield condition
    else:
        for part in inner:
            yield from leaves(part)


def _specimen(made: Books) -> Iterator[str]:
    columns = {c.name: c for c in made.dictionary.columns}
    for i, rule in enumerate(made.specimen.rules):
        for name in rule.diseases or []:
            if name not in made.panel.names:
                yield f"rules.{i}: diseases: {one_line(name, 80)}: not in the panel. {near(name[:80], made.panel.names)}"
        if rule.column not in columns:
            yield f"rules.{i}: column={one_line(rule.column, 80)}: not in the dictionary. {near(rule.column[:80], [*columns])}"
        else:
            yield from (f"rules.{i}: column={rule.column}: {why}" for why in _asks(rule, columns[rule.column].kind))


def _asks(rule: SpecimenRule, kind: str) -> Iterator[str]:
    """What a specimen rule asks of its column, where it cannot be asked."""
    limits = rule.above is not None or rule.below is not None
    if kind == "text":
        yield "is text. Name a number or a yes_no column."
    if limits + (rule.is_ is not None) + rule.unknown != 1:
        yield "give one of: above or below, is, unknown."
    if limits and kind == "yes_no":
        yield "is yes_no, and above and below are for numbers. Write is: true or is: false."
    if rule.is_ is not None and kind == "number":
        yield "is a number, and is: is for yes_no columns. Write above or below."


def _policy(made: Books) -> Iterator[str]:
    sets = [r.name for r in made.rules]
    for name in made.policy.rule_sets:
        if name not in sets:
            yield f"rule_sets: {one_line(name, 80)}: not among screening.rules. {near(name[:80], sets)}"
    for name in made.policy.model_may_soften:
        if name not in made.panel.names:
            yield f"model_may_soften: {one_line(name, 80)}: not in the panel. {near(name[:80], made.panel.names)}"


# --- a fault of pydantic's as a line


def _line(fault: Mapping[str, Any], model: type[BaseModel]) -> str:
    kind, limits, loc = fault["type"], fault.get("ctx", {}), tuple(fault["loc"])
    name = one_line(".".join(str(part) for part in loc), 80)
    if kind == "missing":
        return f"{name}: required. Write it."
    if kind == "extra_forbidden":
        return f"{name}: unknown. {near(str(loc[-1])[:80], _keys(model, loc[:-1]))}"
    if kind == "value_error":
        return f"{name}: {one_line(str(limits.get('error')), 200)}"
    if kind in LIMITS:
        key, words, cure = LIMITS[kind]
        return f"{name}: must be {words} {limits[key]:g}. {cure}"
    return f"{name}: must be {TYPES.get(kind) or one_line(fault['msg'].removeprefix('Input should be '), 200)}. Correct it."


def _keys(model: Any, loc: tuple[Any, ...]) -> list[str]:
    """The keys that the group at `loc` knows, as a file spells them."""
    for part in loc:
        if isinstance(part, str) and part in model.model_fields:
            model = _group(model.model_fields[part].annotation) or model
    return [info.alias or key for key, info in model.model_fields.items()]


def _group(annotation: Any) -> Any:
    """The group that a field holds: itself, or of its list."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in typing.get_args(annotation) if (found := _group(part))), None)

"""Every key that there is, read off the schema: what help prints and check proposes. No list is kept by hand."""

from __future__ import annotations

import functools
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from hpcai.config.facts import Facts
from hpcai.config.schema import Config

WORDS: dict[Any, str] = {
    str: "text", int: "whole number", float: "number", bool: "true|false", dict: "mapping", Facts: "group", Any: "any",
}  # fmt: skip
SEE = "; hpcai cluster check NAME shows it"


@dataclass(frozen=True)
class Key:
    """One key: its dotted name, and type, unit, default and meaning as people read them."""

    name: str
    type: str
    unit: str
    default: str
    meaning: str


@functools.cache
def all_keys() -> tuple[Key, ...]:
    """Every key of Config that takes a value, in the order of the schema; a machine's facts, which no run sets, are one."""
    return tuple(_keys(Config, ""))


@functools.cache
def names() -> tuple[str, ...]:
    """The dotted names of all keys, groups too."""
    dotted = [key.name for key in all_keys()]
    groups = {name.rpartition(".")[0] for name in dotted if "." in name}
    return (*dotted, *sorted(groups))


def below(group: str) -> tuple[str, ...]:
    """The names that may stand below a group, the keys of a machine's facts too; none if there is no such group.

    `cluster.facts.partitions.gpu` is looked up by its kind: the name of a partition is anybody's.
    """
    kind: Any = Config
    for part in group.split(".") if group else ():
        if get_origin(kind) is dict:
            kind = get_args(kind)[1]
        elif (info := getattr(kind, "model_fields", {}).get(part)) is not None:
            kind = info.annotation
        else:
            return ()
        if get_origin(kind) in (Union, types.UnionType):
            kind = next(arg for arg in get_args(kind) if arg is not type(None))
    return tuple(getattr(kind, "model_fields", ()))


def _keys(model: type[BaseModel], prefix: str) -> Iterator[Key]:
    for name, info in model.model_fields.items():
        kind = info.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel) and kind is not Facts:  # a machine's facts: one key, not 30
            yield from _keys(kind, f"{prefix}{name}.")
            continue
        extra = info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}
        default = "required" if info.default is PydanticUndefined else "{}" if kind is Facts else _shown(info.default)
        meaning = f"{info.description or ''}{SEE if kind is Facts else ''}"
        yield Key(prefix + name, type_words(kind), str(extra.get("unit") or ""), default, meaning)


def type_words(kind: Any) -> str:
    """A type in a user's words: `one of a, b`, `list of whole numbers or null`."""
    origin, args = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return type_words(args[0])
    if origin is Literal:
        return "|".join(str(arg) for arg in args)
    if origin in (Union, types.UnionType):
        return " or ".join("null" if arg is type(None) else type_words(arg) for arg in args)
    if origin is list:
        return f"list of {type_words(args[0])}"
    return WORDS.get(origin or kind, str(getattr(kind, "__name__", kind)))


def _shown(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if value not in ("",) else "''"

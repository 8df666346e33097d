"""Every key that there is, read off the schema: what help prints and check proposes. No list is kept by hand."""

from __future__ import annotations

import functools
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from hpcai.config.schema import Config

WORDS: dict[Any, str] = {str: "text", int: "whole number", float: "number", bool: "true|false", dict: "mapping", Any: "any"}


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
    """Every key of Config that takes a value, in the order of the schema."""
    return tuple(_keys(Config, ""))


@functools.cache
def names() -> tuple[str, ...]:
    """The dotted names of all keys, groups too."""
    dotted = [key.name for key in all_keys()]
    groups = {name.rpartition(".")[0] for name in dotted if "." in name}
    return (*dotted, *sorted(groups))


def _keys(model: type[BaseModel], prefix: str) -> Iterator[Key]:
    for name, info in model.model_fields.items():
        kind = info.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _keys(kind, f"{prefix}{name}.")
            continue
        extra = info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}
        default = "required" if info.default is PydanticUndefined else _shown(info.default)
        yield Key(prefix + name, type_words(kind), str(extra.get("unit") or ""), default, info.description or "")


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

"""The words of which the schema is made: a key, a group of keys, names and texts."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"  # run names become folder, job and file names


def key(default: Any, meaning: str, *, unit: str = "", changes_result: bool = True, **limits: Any) -> Any:
    """One configuration key. `changes_result=False` leaves it out of the run's identity."""
    extra: Any = {"unit": unit, "changes_result": changes_result}
    return Field(default, description=meaning, json_schema_extra=extra, **limits)


def _one_line(text: str) -> str:
    if not text.isprintable():
        raise ValueError("holds a control character (newline, escape). Write it on one line.")
    return text


Name = Annotated[str, StringConstraints(pattern=rf"^{NAME}$")]
Text = Annotated[str, StringConstraints(max_length=1000), AfterValidator(_one_line)]
PathText = Annotated[
    str, StringConstraints(min_length=1, max_length=4096, pattern=r"^[^\x00]*$")
]  # a path may hold spaces, quotes, even newlines


class Group(BaseModel):
    """The parent of every group: unknown keys are faults, values never change, no silent conversion."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

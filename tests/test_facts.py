"""From where a value of a cluster file is known, and which values no such file may hold."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from hpcai.config.facts import Facts

CITED = {
    "A": "the site's page, 2026-01",
    "B": "a user's note, 2026 (second-hand)",
    "C": "another's note, undated (second-hand)",
}


def facts(sources: dict[str, str]) -> Facts:
    return Facts.model_validate({"sources": sources, "cited": CITED})


@pytest.mark.parametrize(("sources", "standing"), [
    ({}, ("unverified", "")),
    ({"partitions": "A"}, ("sourced", "A")),
    ({"partitions.gpu.cores": "A", "partitions": "B"}, ("sourced", "A")),
    ({"partitions.gpu": "B", "partitions": "A"}, ("second-hand", "B")),
    ({"partitions.gp": "A"}, ("unverified", "")),  # no key of that name holds it
    ({"partitions.gpu.cores.x": "A"}, ("unverified", "")),
    ({"partitions": "A B"}, ("sourced", "A B")),  # one good document is enough
    ({"partitions": "B C"}, ("second-hand", "B C")),
    ({"partitions": "probed 2026-11-26"}, ("probed", "probed 2026-11-26")),
    ({"partitions.gpu": "unverified", "partitions": "A"}, ("unverified", "unverified")),
    ({"partitions": "Z"}, ("unverified", "Z")),  # nobody spells Z out
    ({"partitions": "Z A"}, ("sourced", "Z A")),
])  # fmt: skip
def test_the_nearest_source_that_holds_a_key_says_how_it_is_known(sources: dict[str, str], standing: tuple[str, str]) -> None:
    assert facts(sources).standing("partitions.gpu.cores") == standing


def test_a_name_with_dots_is_found_by_its_source() -> None:
    assert facts({"qos.a.b": "A"}).standing("qos.a.b.max_min") == ("sourced", "A")


@pytest.mark.parametrize("wrong", [
    {"partitions": {"gpu": {}}},
    {"partitions": {"gpu": {"cores": "64"}}},
    {"partitions": {"gpu": {"cores": 0}}},
    {"partitions": {"gpu": {"cores": 10**30}}},
    {"partitions": {"gpu": {"cores": True}}},
    {"partitions": {"../gpu": {"cores": 1}}},
    {"partitions": {"g\npu": {"cores": 1}}},
    {"partitions": {"gpu": {"cores": 1, "mem_gb": 1e300}}},
    {"partitions": {"gpu": {"cores": 1, "mem_gb": float("nan")}}},
    {"partitions": {"gpu": {"cores": 1, "charge": {"node": -1}}}},
    {"partitions": {"gpu": {"cores": 1, "charge": {"node": 1e300}}}},
    {"partitions": {"gpu": {"cores": 1, "charge": {"step": 0}}}},
    {"partitions": {"gpu": {"cores": 1, "srun": "--cpu-bind=cores"}}},
    {"partitions": {"gpu": {"cores": 1, "env": {"A": "x\ny"}}}},
    {"partitions": []},
    {"qos": {"q": {"max_min": -5}}},
    {"setup": "../../etc/passwd"},
    {"setup": "/apps/a\nb.sh"},
    {"setup": "a b.sh"},
    {"account_pattern": "(a+)+$"},
    {"account_pattern": "["},
    {"gpu_request": "both"},
    {"site": "two\nlines"},
    {"nonsense": 1},
])  # fmt: skip
def test_a_value_of_a_wrong_kind_or_size_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Facts.model_validate(wrong)


def test_letters_of_any_language_may_stand_in_a_text() -> None:
    assert Facts.model_validate({"site": "Größe, Ελλάδα, 日本"}).site == "Größe, Ελλάδα, 日本"

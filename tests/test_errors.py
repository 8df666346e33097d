"""Exit codes and lines: what a shell and a person at it rely on."""

from __future__ import annotations

import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcai import errors
from hpcai.errors import BY_CODE, ConfigError, DataError, Faults, HpcaiError, PlanError, Stopped, near, one_line


def test_the_codes_are_those_of_the_docs() -> None:
    assert {code: kind.__name__ for code, kind in BY_CODE.items()} == {
        1: "HpcaiError", 2: "ConfigError", 3: "PlanError", 4: "DataError", 5: "RunError", 6: "GateError", 7: "OwnedError",
    }  # fmt: skip
    assert errors.__doc__ and all(f"{kind.__name__}" in errors.__doc__ for kind in BY_CODE.values())


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR2, 140)])
def test_a_stop_has_the_code_that_a_shell_gives_the_signal(signum: int, code: int) -> None:
    stopped = Stopped(signum, "stopped after step 3.")
    assert (stopped.code, stopped.signal_name, stopped.lines) == (code, signal.Signals(signum).name, ["stopped after step 3."])


def test_many_faults_keep_their_order_and_take_the_lowest_code() -> None:
    faults = Faults([DataError("d."), PlanError("p."), Faults([ConfigError("c.")])])
    assert faults.code == 2 and faults.lines == ["d.", "p.", "c."] and len(faults.members) == 3


def test_no_fault_makes_no_faults() -> None:
    with pytest.raises(AssertionError):
        Faults([])


@given(st.text())
def test_a_message_is_one_line_whatever_it_cites(text: str) -> None:
    (line,) = HpcaiError(f"name={text}: no.").lines
    assert line.isprintable() and len(line) <= 500 and len(line.splitlines()) == 1


def test_a_long_line_is_cut_to_its_limit() -> None:
    assert one_line("a" * 500) == "a" * 500
    assert one_line("a" * 501) == "a" * 497 + "..."
    assert one_line("a\n\x1b[31mb\u2028\u202e") == "a??[31mb??"


def test_a_wrong_word_gets_the_nearest_or_the_list() -> None:
    assert near("resnet_smal", ["resnet_small", "densenet121"]) == "Did you mean resnet_small?"
    assert near("x", ["b", "a"]) == "Known: a, b."
    assert near("x", []) == "Known: none."

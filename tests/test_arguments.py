"""One parser for every verb: names in order, each wrong word a line, the nearest option named."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from hpcai.arguments import Words, whole_number
from hpcai.errors import HpcaiError


def words() -> Words:
    """A verb with an option of its own."""
    parser = Words("logs", "NAME", "What a rank said.")
    parser.add_argument("--rank", metavar="N", type=whole_number, default=0, help="whose words")
    return parser


def read(*given: str, least: int = 0, most: int | None = None) -> argparse.Namespace:
    options = words().read(list(given), least=least, most=most)
    assert options is not None
    return options


def refused(*given: str, least: int = 0, most: int | None = None) -> list[str]:
    with pytest.raises(HpcaiError) as e:
        read(*given, least=least, most=most)
    assert e.value.code == 2
    return e.value.lines


def test_names_keep_their_order_each_once_wherever_options_stand() -> None:
    options = read("b", "--json", "a", "--runs-dir", "x y", "b", "--rank=3")
    assert (options.names, options.json, options.runs_dir, options.rank) == (["b", "a"], True, Path("x y"), 3)
    assert (read().names, read().json, read().runs_dir) == ([], False, Path("runs"))


def test_what_follows_two_dashes_is_a_name() -> None:
    assert read("a", "--", "--json", "-x").names == ["a", "--json", "-x"]


def test_help_documents_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert words().read(["--nonsense", "-h"]) is None
    out = capsys.readouterr().out
    assert out.startswith("usage: hpcai logs NAME [options]\n\nWhat a rank said.\n")
    for option in ("--runs-dir DIR", "--json", "--help, -h", "--rank N"):
        (line,) = (line for line in out.splitlines() if line.strip().startswith(option))
        assert len(line.split(option)[1].split()) >= 2, line


def test_every_wrong_word_is_told_at_once_with_the_nearest() -> None:
    lines = refused("--jsn", "a", "--ranks=1", least=2)
    assert lines == ["--jsn: unknown option. Did you mean --json?", "--ranks: unknown option. Did you mean --rank?"]


@pytest.mark.parametrize(("given", "line"), [
    (["--rank"], "--rank: expected one argument. See hpcai logs --help."),
    (["--rank=-1"], "--rank: -1 is no whole number from 0. See hpcai logs --help."),
    (["--rank=one\ntwo"], "--rank: one?two is no whole number from 0. See hpcai logs --help."),
    (["--rank=٣"], "--rank: ٣ is no whole number from 0. See hpcai logs --help."),
    (["--rank=99999999999"], "--rank: 99999999999 is no whole number from 0. See hpcai logs --help."),
    (["--runs-dir"], "--runs-dir: expected one argument. See hpcai logs --help."),
    (["--js"], "--js: unknown option. Did you mean --json?"),
    (["-z"], "-z: unknown option. Known: --help, --json, --rank, --runs-dir."),
    (["-\n\x1b[2J"], "-??[2J: unknown option. Known: --help, --json, --rank, --runs-dir."),
])  # fmt: skip
def test_a_wrong_word_is_one_line(given: list[str], line: str) -> None:
    assert refused(*given) == [line]


def test_too_few_and_too_many_names_are_refused() -> None:
    assert refused(least=1) == ["hpcai logs: names no run. Name one; hpcai status lists them."]
    assert refused("a", "b", most=1) == ["hpcai logs: 2 names. Give one."]
    assert read("a", "a", most=1).names == ["a"]

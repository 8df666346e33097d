"""config/space.py: what a search may vary, and that each trial's words mean exactly its values."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcai.config.compose import Memory
from hpcai.config.space import Dimension, Space, split
from hpcai.errors import HpcaiError

MEMORY = Memory()


def spanned(word: str) -> Dimension:
    _, space = split([word], memory=MEMORY)
    (dimension,) = space.dimensions.values()
    return dimension


def read_back(word: str) -> Any:
    """What Hydra takes a word for."""
    read = MEMORY.word(word, MEMORY.folder(None))
    assert not isinstance(read, HpcaiError), read
    assert not read.is_sweep_override()
    return read.value()


def faults(*words: str) -> list[str]:
    with pytest.raises(HpcaiError) as caught:
        split(list(words), memory=MEMORY)
    assert caught.value.code == 2
    return caught.value.lines


@pytest.mark.parametrize(
    ("word", "dimension"),
    [
        ("trainer.lr=interval(1e-4,1e-1)", Dimension("float", 1e-4, 1e-1)),
        ("trainer.lr=tag(log, interval(1e-4,1e-1))", Dimension("float", 1e-4, 1e-1, log=True)),
        ("trainer.lr=interval(0,1)", Dimension("float", 0.0, 1.0)),
        ("trainer.patience=interval(0,9)", Dimension("int", 0, 9, step=1)),  # the key takes whole numbers
        ("x=int(interval(1,5))", Dimension("int", 1, 5, step=1)),
        ("x=tag(int, interval(1,5))", Dimension("int", 1, 5, step=1)),
        ("x=tag(int, interval(0.5,5.5))", Dimension("int", 1, 5, step=1)),
        ("x=tag(int, log, interval(1,512))", Dimension("int", 1, 512, log=True)),
        ("x=tag(log, int(interval(1,512)))", Dimension("int", 1, 512, log=True)),
        ("x=float(interval(1,5))", Dimension("float", 1.0, 5.0)),
        ("trainer.epochs=range(2,10)", Dimension("int", 2, 9, step=1)),  # as in a grid, the stop is not in it
        ("x=range(3)", Dimension("int", 0, 2, step=1)),
        ("x=range(1,10,4)", Dimension("int", 1, 9, step=4)),
        ("x=range(10,2,-2)", Dimension("int", 4, 10, step=2)),
        ("x=sort(range(10,2,-2))", Dimension("int", 4, 10, step=2)),
        ("x=range(0.1,0.5,0.1)", Dimension("float", 0.1, 0.4, step=0.1)),
        ("x=range(0,0.9,0.3)", Dimension("float", 0.0, 0.6, step=0.3)),  # 3 x 0.3 in binary is below 0.9, and not meant
        ("x=tag(log, range(1,100))", Dimension("int", 1, 99, log=True)),
        ("x=range(0,1000000000)", Dimension("int", 0, 999999999, step=1)),
        ("trainer.batch_size=32,64", Dimension("category", choices=("32", "64"))),
        ("x=choice(32,64,32)", Dimension("category", choices=("32", "64"))),
        ("x='a, b',null,true,1e-3", Dimension("category", choices=("'a, b'", "null", "True", "0.001"))),
        ("+experiment=a,b", Dimension("category", choices=("a", "b"))),
        ("x=choice(7)", Dimension("category", choices=("7",))),
    ],
)  # fmt: skip
def test_a_sweep_word_spans_a_dimension(word: str, dimension: Dimension) -> None:
    assert spanned(word) == dimension


def test_a_glob_is_the_choices_of_its_group(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    for name in ("one", "two"):
        (tmp_path / "experiment" / f"{name}.yaml").write_text("# @package _global_\nname: x\n", "utf-8")
    _, space = split(["+experiment=glob([one,t*])"], tmp_path)
    assert space.dimensions == {"+experiment": Dimension("category", choices=("one", "two"))}


def test_other_words_stay_as_they_were_typed() -> None:
    words = ["+experiment=pneumonia", "name='a,b'", "data.labels=[no,yes]", "~trainer.patience", "++x.y={a:1}"]
    fixed, space = split([*words, "trainer.lr=1e-3,1e-2"], memory=MEMORY)
    assert fixed == words
    assert list(space.dimensions) == ["trainer.lr"]


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("x=interval(1,1)", "below high"),
        ("x=interval(2,1)", "below high"),
        ("x=tag(int, interval(0.2,0.8))", "whole numbers"),
        ("x=tag(log, interval(0,1))", "above 0"),
        ("x=tag(log, interval(-1,1))", "above 0"),
        ("x=interval(nan,1)", "nan is no number"),
        ("x=interval(0,inf)", "inf is no number"),
        ("x=interval(-1e308,1e308)", "no number"),
        ("x=tag(logg, interval(1,2))", "Did you mean log?"),
        ("x=tag(log, choice(1,2))", "Leave it out"),
        ("x=tag(log, range(1,9,2))", "interval"),
        ("x=tag(int, range(0.5,3))", "whole numbers"),
        ("x=range(3,3)", "0 values"),
        ("x=range(3,1)", "0 values"),
        ("x=range(0,1)", "1 values"),
        ("x=range(0,5,0)", "step of 0"),
        ("x=range(true,5)", "no number"),
        ("x=shuffle(1,2)", "Leave shuffle out"),
        ("x=shuffle(range(1,5))", "Leave shuffle out"),
        ("x=glob(*)", "matches nothing"),
        ("~x=1,2", "nothing is left to vary"),
        ("seed=0,1,2", "-m seed=0,1,2"),
        ("+seed=interval(0,9)", "no hyperparameter"),
        ("x=intervall(1,2)", "Unknown function"),
        ("x=interval(1", "no key=value"),
        ("x=" + ",".join(map(str, range(101))), "at most 100"),
    ],
)
def test_what_spans_nothing_is_refused_by_key(word: str, says: str) -> None:
    (line,) = faults(word, "trainer.lr=1,2")
    assert says in line
    assert line.startswith(word.lstrip("+").partition("=")[0])


@pytest.mark.parametrize(
    "word",
    ["hydra.run.dir=/a,/b", "model._target_=os.system,b", "x=a,${oc.env:HOME}", "x@y=1,2", "a/../b=1,2",
     "x=" + "[" * 60 + "1,2", "x=1," + "9" * 5000, "x=" + "1," * 3000 + "1"],
)  # fmt: skip
def test_hostile_words_are_refused_as_without_a_search(word: str) -> None:
    (line,) = faults(word, "trainer.lr=1,2")
    assert len(line) < 600


def test_all_faults_are_told_at_once() -> None:
    assert len(faults("x=interval(1,1)", "y=range(3,1)", "hydra.x=1", "z=(", "seed=1,2")) == 5


@pytest.mark.parametrize("words", [[], ["x=1"], ["x=[1,2]", "name='a,b'"]])
def test_without_anything_to_vary_it_is_no_search(words: list[str]) -> None:
    (line,) = faults(*words)
    assert line.startswith("--search: nothing to vary")


@pytest.mark.parametrize("first", ["x=1", "+x=1", "x=1,2", "++x=interval(0,1)"])
def test_a_key_that_stands_twice_is_refused(first: str) -> None:
    (line,) = faults(first, "x=3,4")
    assert line.startswith("x: stands twice")


@settings(deadline=None)
@given(value=st.floats(-(2.0**62), 2.0**62), low=st.floats(-1e3, 1e3))
def test_a_number_comes_back_to_the_last_bit(value: float, low: float) -> None:
    space = Space({"trainer.lr": Dimension("float", low, low + 1)})
    (word,) = space.words({"trainer.lr": value})
    assert repr(read_back(word)) == repr(value)


@settings(deadline=None)
@given(value=st.floats(1e-300, 1e-3), whole=st.integers(-(2**62), 2**62))
def test_small_and_whole_numbers_come_back(value: float, whole: int) -> None:
    space = Space({"a": Dimension("float", 0, 1), "b": Dimension("int", 0, 1)})
    assert [read_back(word) for word in space.words({"a": value, "b": whole})] == [value, whole]


@settings(deadline=None)
@given(low=st.integers(-50, 50), k=st.integers(0, 40), step=st.sampled_from(["0.1", "0.25", "0.3", "1.5", "0.001"]))
def test_steps_are_those_that_were_typed(low: int, k: int, step: str) -> None:
    d = Dimension("float", float(low), float(low) + 40 * float(step), step=float(step))
    noisy = d.low + k * float(step)  # as Optuna adds them up: 0 + 3 x 0.1 is 0.30000000000000004
    assert d.text(noisy) == repr(float(low + k * Decimal(step)))


def test_three_tenths_are_written_so() -> None:
    assert Dimension("float", 0.1, 0.4, step=0.1).text(0.1 + 2 * 0.1) == "0.3"


texts = st.text(st.characters(exclude_categories=["Cs", "Cc", "Co"]), min_size=1, max_size=12).filter(lambda t: "$" not in t)


@settings(max_examples=60, deadline=None)
@given(choices=st.lists(texts, min_size=2, max_size=4, unique=True))
def test_any_text_is_a_choice_and_comes_back(choices: list[str]) -> None:
    from hydra.core.override_parser.types import Quote, QuotedString

    word = "x=" + ",".join(QuotedString(c, Quote.single).with_quotes() for c in choices)
    _, space = split([word], memory=MEMORY)
    assert [read_back(space.words({"x": text})[0]) for text in space.dimensions["x"].choices] == choices


def test_a_space_comes_back_from_json() -> None:
    _, space = split(["a=interval(0,1)", "b=tag(log, interval(1e-4,1))", "+c=x,'y z'", "d=range(0,9,2)"], memory=MEMORY)
    again = Space.from_json(json.loads(json.dumps(space.to_json())))
    assert again == space
    assert list(again.dimensions) == list(space.dimensions)


def test_the_label_is_short_and_the_words_are_exact() -> None:
    _, space = split(["trainer.lr=interval(0,1)", "+experiment=a,b", "trainer.epochs=range(2,9)"], memory=MEMORY)
    values = {"trainer.lr": 0.123456789012, "+experiment": "a", "trainer.epochs": 3}
    assert space.label(values) == "trainer.lr=0.123457 experiment=a trainer.epochs=3"
    assert space.words(values) == ["trainer.lr=0.123456789012", "+experiment=a", "trainer.epochs=3"]


def test_an_example_lies_within_the_space() -> None:
    _, space = split(["trainer.lr=tag(log, interval(1e-4,1))", "x=a,b", "trainer.epochs=range(9,2,-1)"], memory=MEMORY)
    assert space.example() == {"trainer.lr": 1e-4, "x": "a", "trainer.epochs": 3}

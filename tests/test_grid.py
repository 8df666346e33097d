"""The words after -m become members as Hydra's own sweeper makes them, or every fault at once, before anything is expanded."""
# ruff: noqa: E501  (a row of a table is one line)

from __future__ import annotations

import random
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep
from hydra.errors import HydraException
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcai.config.check import examine, load
from hpcai.config.compose import Memory
from hpcai.config.folder import shipped
from hpcai.config.grid import MAX_MEMBERS, Point, expand
from hpcai.errors import ConfigError, HpcaiError

PARSER = OverridesParser.create()
SECRET = "${oc.env:HPCAI_SECRET}"


def hydra_says(words: list[str], parser: OverridesParser = PARSER) -> list[list[str]]:
    """The members by Hydra's own sweeper."""
    (members,) = BasicSweeper.split_arguments(parser.parse_overrides(words), None)
    return members


def meant(word: str) -> tuple[Any, ...]:
    """What Hydra reads in a word: `a=1e-3` and `a=0.001` are one, `~a` and `~a=null` too."""
    read = PARSER.parse_override(word)
    return read.type, read.key_or_group, type(read.value()), repr(read.value())


def same(points: list[Point], members: list[list[str]]) -> bool:
    return [[meant(w) for w in point.words] for point in points] == [[meant(w) for w in member] for member in members]


def labels(*words: str, folder: Path | None = None) -> list[str]:
    return [point.label for point in expand(list(words), folder)]


def lines_of(*words: str, folder: Path | None = None) -> list[str]:
    with pytest.raises(HpcaiError) as caught:
        expand(list(words), folder)
    assert caught.value.code == ConfigError.code
    assert all(line.isprintable() and len(line) <= 500 for line in caught.value.lines)
    return caught.value.lines


# --- Hydra's grammar


@pytest.mark.parametrize(
    "words",
    [
        ["seed=0,1,2"],
        ["trainer.lr=1e-3,1e-4", "seed=0,1,2"],
        ["seed=0,1", "name=x", "trainer.lr=1e-3,1e-4", "++trainer.epochs=1,2"],
        ["seed=choice(1,2)", "a=choice(x,'y,z',[1,2],{a: 1})"],
        ["seed=range(5)", "a=range(10,0,-3)", "b=range(0,1,0.25)", "c=range(0.1,0.5,0.1)", "d=range(1,3,step=1)"],
        ["seed=sort(3,1,2)", "a=sort(range(1,5),reverse=True)", "b=sort(choice(b,a))"],
        ["seed=tag(x,y,choice(1,2))", "a=tag(x,range(1,3))", "b=tag(t,choice(1,2))"],
        ["a=int(1.5,2.5)", "b=str(1,2)", "c=float(range(1,3))", "d=bool(0,1)"],
        ["a='x,y'", "b=\"1,2\",'3,4'", "c=a\\,b,c"],
        ["data.labels=[a,b],[c,d]", "model.options={a: 1},{a: 2, b: {c: [1]}}", "e=[],{}"],
        ["+experiment=pneumonia,smoke", "model=resnet18,resnet50"],
        ["+a=1,2", "++b=1,2", "~c=1,2"],
        ["~trainer.lr", "seed=1,2", "~model"],
        ["a=null,1,true,1.0,x,'null'", "b=nan,inf"],
        ["a= x y , z ", "b=a/b,c.d,e-f"],
        ["seed=1,2", "a=1", "seed=3"],
        ["seed=1", "a=1,2", "seed=3,4"],
        ["seed=1,2", "+seed=1,2"],
        ["a.b=$x,y", "c=a@b,c?d,e|f,g%h,i*j"],
        ["name=x"],
        [],
    ],
)
def test_members_and_their_order_are_those_of_hydras_own_sweeper(words: list[str]) -> None:
    assert same(expand(words), hydra_says(words))


def test_a_quote_within_a_choice_is_read_where_hydra_stumbles_over_its_own_words() -> None:
    points = expand(["""data.source=choice("it's",'a"b',c)"""])
    assert [load(["+experiment=pneumonia", *p.words]).data.source for p in points] == ["it's", 'a"b', "c"]


def test_globs_choose_among_the_files_of_a_group_as_hydras_do() -> None:
    from hydra import initialize_config_module
    from hydra.core.global_hydra import GlobalHydra

    for words in (
        ["model=glob(*)", "seed=1,2"],
        ["+experiment=glob([p*,s*],exclude=*18)"],
        ["model=glob(res*,exclude=[*18,*50])"],
    ):
        with initialize_config_module("hpcai.configs", version_base="1.3"):
            theirs = hydra_says(words, OverridesParser.create(GlobalHydra.instance().config_loader()))
        assert len(theirs) and same(expand(words), theirs)


def test_a_glob_takes_the_users_files_beside_ours(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    for name in ("mine.yaml", "..yaml", "hydra.yaml.bak", "a b.yaml", "note.txt"):
        (tmp_path / "model" / name).write_text("name: resnet_small\n")
    assert labels("model=glob(*)", folder=tmp_path) == sorted(f"model={name}" for name in [*shipped()["model"], "mine"])
    assert labels("model=glob(mi*)", "seed=1,2", folder=tmp_path) == ["seed=1", "seed=2"]


def test_a_shuffle_holds_what_hydras_holds_and_is_the_same_each_time() -> None:
    words = ["a=shuffle(range(0,50))", "b=shuffle(x,y,z)", "c=shuffle(choice(1,2))"]
    random.seed(1)
    first = expand(words)
    random.seed(2)
    assert expand(words) == first
    assert sorted(map(str, ([meant(w) for w in p.words] for p in first))) == sorted(
        map(str, ([meant(w) for w in member] for member in hydra_says(words)))
    )
    assert [p.words[0] for p in first[::6]] != [f"a={i}" for i in range(50)]


def loses(word: str) -> bool:
    """Whether Hydra reads another text than it wrote: the two quotes of choice("''") come back as no text at all."""
    parser = OverridesParser.create()
    value = parser.parse_override(word).value()
    if not isinstance(value, ChoiceSweep):
        return False
    texts = [v for v in value.list if isinstance(v, str) and set(v) & set("'\"")]
    try:
        return any(parser.parse_override(f"a={text}").value() != text for text in texts)
    except HydraException:
        return True


def test_a_value_of_quotes_alone_keeps_them() -> None:
    (point,) = expand([r"a=choice('\'\'')"])
    assert OverridesParser.create().parse_override(point.words[0]).value() == "''"


KEYS = st.sampled_from(["a", "b", "seed", "trainer.lr", "+c", "++d.e", "~f"])
ELEMENT = st.one_of(
    st.integers(-99, 99).map(str), st.floats(allow_nan=False).map(str), st.sampled_from(["x", "null", "true", "a b", "'q,r'", '"s\'t"', r"u\,v", r"w\\x"]),
    st.text(st.sampled_from("ab'\\,${}[]é \n"), max_size=5).map(lambda t: "'" + t.replace("\\", "\\\\").replace("'", r"\'") + "'"),
    st.lists(st.integers(0, 9), max_size=3).map(lambda v: str(v).replace(" ", "")), st.just("{a: 1, b: [x, 'y,z']}"),
)  # fmt: skip
VALUES = st.lists(ELEMENT, min_size=1, max_size=4).map(",".join)
VALUE = st.one_of(
    VALUES, VALUES.map(lambda v: f"choice({v})"), VALUES.map(lambda v: f"tag(t,choice({v}))"), VALUES.map(lambda v: f"sort({v})"),
    st.tuples(st.integers(-5, 5), st.integers(-5, 5), st.sampled_from([1, 2, -1, 0.5])).map(lambda r: f"range({r[0]},{r[1]},{r[2]})"),
)  # fmt: skip
WORD = st.tuples(KEYS, VALUE).map(lambda kv: f"{kv[0]}={kv[1]}")


@settings(max_examples=300, deadline=None)
@given(st.lists(WORD, max_size=5))
def test_whatever_hydra_expands_expands_alike_or_is_refused_for_a_stated_reason(words: list[str]) -> None:
    try:
        theirs = hydra_says(words)
    except (HydraException, ValueError, ArithmeticError):
        assert lines_of(*words)
        return
    try:
        read = [[meant(word) for word in member] for member in theirs]
    except HydraException:  # choice("it's"): Hydra cannot read what it wrote
        return
    if any(loses(word) for word in words):
        return
    different = len({str(member) for member in read})
    try:
        ours = expand(words)
    except HpcaiError as e:
        reasons = ("twice", "members", "empty range", "is no range", "${", "is no key=value", "control character")
        assert all(any(reason in line for reason in reasons) for line in e.lines), e.lines
        assert different < len(theirs) or not theirs or len(theirs) > MAX_MEMBERS or "twice" not in str(e)
    else:
        assert [[meant(word) for word in point.words] for point in ours] == read
        assert different == len(theirs) <= MAX_MEMBERS


# --- labels and groups


def test_a_label_says_what_varies_and_a_group_the_same_without_the_seed() -> None:
    points = expand(["+experiment=pneumonia,smoke", "trainer.lr=1e-3,1e-4", "seed=0,1", "trainer.epochs=2", "model=glob(*18)"])
    assert points[1] == Point(
        ["+experiment=pneumonia", "trainer.lr=0.001", "seed=1", "trainer.epochs=2", "model=resnet18"],
        "experiment=pneumonia trainer.lr=0.001 seed=1",
        "experiment=pneumonia trainer.lr=0.001",
    )
    assert len({p.label for p in points}) == 8 and len({p.group for p in points}) == 4


def test_without_a_sweep_there_is_one_member_without_a_label_and_its_words_are_untouched() -> None:
    words = [
        "+experiment=pneumonia",
        "data.source='a, b'",
        "~trainer.lr",
        "trainer={lr: 0.5}",
        "task.threshold=specificity>=0.9",
    ]
    (point,) = expand(words)
    assert (point.label, point.group) == ("", "")
    assert examine(point.words)[0] == examine(words)[0] is not None


def test_seeds_alone_are_one_group() -> None:
    assert {p.group for p in expand(["++seed=1,2,3"])} == {""}
    assert labels("++seed=1,2") == ["seed=1", "seed=2"]


def test_a_label_is_one_short_line_and_two_stay_two() -> None:
    long = "x" * 5000
    found = labels(f"data.source='{long}a','{long}b','a\n','a\t','a\x1b[31m',größe,'größe'".replace(",größe,", ","))
    assert all(label.isprintable() and len(label) < 140 for label in found)
    assert len(set(found)) == len(found) == 6
    assert found[-1] == "data.source='größe'"


# --- faults


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("seed=range(0,1000000000)", "seed=range(0,1000000000): the sweep has 1,000,000,000 members, at most 1,000. Name fewer values."),
        ("trainer.lr=range(0,1,1e-40)", "trainer.lr=range(0,1,1e-40): the sweep has over 10^15 members, at most 1,000. Name fewer values."),
        ("trainer.lr=range(0,1e300)", "trainer.lr=range(0,1e300): the sweep has over 10^15 members, at most 1,000. Name fewer values."),
        ("trainer.lr=range(0,1,0.0001)", "trainer.lr=range(0,1,0.0001): the sweep has 10,000 members, at most 1,000. Name fewer values."),
        ("trainer.lr=range(0,inf)", "trainer.lr=range(0,inf): the sweep has over 10^15 members, at most 1,000. Name fewer values."),
        ("trainer.lr=range(0,-inf,-1)", "trainer.lr=range(0,-inf,-1): the sweep has over 10^15 members, at most 1,000. Name fewer values."),
        ("trainer.lr=range(0,nan)", "trainer.lr=range(0,nan): is no range (a step of 0, or not a number). Write range(START,STOP,STEP)."),
        ("seed=range(0,9,0)", "seed=range(0,9,0): is no range (a step of 0, or not a number). Write range(START,STOP,STEP)."),
        ("trainer.lr=range(0,1,0.0)", "trainer.lr=range(0,1,0.0): is no range (a step of 0, or not a number). Write range(START,STOP,STEP)."),
        ("seed=range(5,5)", "seed=range(5,5): an empty range. Its STOP is not in it: write range(START,STOP,STEP)."),
        ("seed=range(1,5,-1)", "seed=range(1,5,-1): an empty range. Its STOP is not in it: write range(START,STOP,STEP)."),
        ("seed=shuffle(range(0,2000))", "seed=shuffle(range(0,2000)): the sweep has 2,000 members, at most 1,000. Name fewer values."),
        ("seed=1,1", "seed=1,1: seed=1 twice: two members would be one run. Name it once."),
        ("data.source=x,'x'", "data.source=x,'x': data.source='x' twice: two members would be one run. Name it once."),
        ("data.labels=[a,b],[a, b]", "data.labels=[a,b],[a, b]: data.labels=[a,b] twice: two members would be one run. Name it once."),
        ("trainer.lr=interval(1e-4,1e-1)", "trainer.lr=interval(1e-4,1e-1): an interval is for a search. Add --search, or name values: trainer.lr=a,b."),
        ("trainer.lr=tag(log,interval(1,2))", "trainer.lr=tag(log,interval(1,2)): an interval is for a search. Add --search, or name values: trainer.lr=a,b."),
        ("model=glob(x*)", "model=glob(x*): matches none of densenet121, resnet18, resnet50, resnet_small. Change the pattern."),
        ("trainer.lr=glob(*)", "trainer.lr=glob(*): glob chooses files of a group. Did you mean trainer?"),
        ("nogroup/x=a,b", "nogroup/x=a,b: nogroup/x is neither a key nor a group. Known: cluster, data, experiment, model, trainer."),
        ("a b=1,2", "a b=1,2: is no key=value (token recognition error at: ' '). Quote the value, or each of several: key='a','b'."),
        ("seed=choice()", "seed=choice(): is no key=value (ValueError while evaluating 'choice()': empty choice is not legal). Quote the value: key='...'."),
        ("task.threshold=sensitivity>=0.9,youden", "task.threshold=sensitivity>=0.9,youden: is no key=value (token recognition error at: '>'). Quote the value, or each of several: key='a','b'."),
    ],
)  # fmt: skip
def test_a_fault_names_the_word_the_limit_and_the_cure(word: str, line: str) -> None:
    assert lines_of("+experiment=pneumonia", word) == [line]


@pytest.mark.parametrize(
    ("word", "key"),
    [
        ("hydra.run.dir=/tmp/x,/tmp/y", "hydra.run.dir"),
        ("hydra/launcher=basic,joblib", "hydra/launcher"),
        ("hydra/launcher=glob(*)", "hydra/launcher"),
        ("+hydra.callbacks.x._target_=os.system,os.popen", "hydra.callbacks"),
        ("model._target_=a,b", "model._target_"),
        ("model.options={_target_: os.system},{a: 1}", "model.options._target_"),
        ("model.options=choice({a: {_target_: x}})", "model.options.a._target_"),
        (f"data.source='{SECRET}',b", "data.source"),
        (f"data.source={SECRET},b", "data.source"),
        (f"data.labels=[a,'{SECRET}'],[a,b]", "data.labels.1"),
        ("data.source='${now:%Y}',b", "data.source"),
        ("model@hydra=resnet18,resnet50", "model@hydra"),
        ("trainer.lr=range(1,9e99)", "trainer.lr"),
        ("seed=range(0," + "9" * 4000 + ")", "seed"),
        ("seed=" + "9" * 5000 + ",1", "seed"),
        ("seed=" + "9" * 30 + ",1", "seed"),
        (f"data.labels={'[' * 60}{']' * 60},1", "data.labels"),
        (f"a={'choice(' * 60}1{')' * 60}", "a=choice"),
        ("seed=" + ",".join(map(str, range(2500))), "seed=0,1"),
        (f"data.source={'x' * 200_000},y", "data.source"),
        ("=1,2", "=1,2"),
        ("data..path=x,y", "data..path"),
    ],
)  # fmt: skip
def test_hostile_words_are_refused_before_anything_is_expanded(word: str, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HPCAI_SECRET", "s3cret")
    found = lines_of("+experiment=pneumonia", word, "name=a,b")
    assert any(key in line for line in found) and "s3cret" not in str(found)


@pytest.mark.parametrize(
    "word", ["model=../x,resnet18", "+experiment=/etc/passwd,smoke", "model=resnet19,resnet18", "name=../x,y", "seed=true,1"]
)
def test_what_a_single_member_does_wrong_is_told_by_its_own_check(word: str) -> None:
    words = ["+experiment=pneumonia", word] if not word.startswith("+") else [word]
    bad, good = (examine(point.words, None, None) for point in expand(words))
    assert bad[1] and not [f for f in good[1] if "imaging" not in str(f)]


def test_all_faults_of_all_words_are_told_at_once() -> None:
    found = lines_of(
        "seed=range(0,5000)", "hydra.x=1", "a b=1,2", "trainer.lr=interval(1,2)", "model=glob(zz)", "data.source='${oc.env:X}'"
    )
    starts = {line.split(":")[0] for line in found}
    assert starts == {
        "seed=range(0,5000)",
        "hydra.x",
        "a b=1,2",
        "trainer.lr=interval(1,2)",
        "model=glob(zz)",
        "data.source=${oc.env",
    }
    several = lines_of("seed=1,1,2,2", "data.source='${oc.env:X}','${now:1}'", "trainer.lr=1,1")
    assert len(several) == 5


def test_a_sweep_of_a_thousand_is_taken_and_one_more_is_not() -> None:
    assert len(expand(["seed=range(0,10)", "a=range(0,10)", "b=range(0,10)"])) == 1000
    assert "1,001 members" in lines_of("seed=range(0,7)", "a=range(0,11)", "b=range(0,13)")[0]


def test_a_bomb_takes_no_memory() -> None:
    words = [f"a{i}=shuffle(range(0,999))" for i in range(200)] + ["seed=range(0,1000000000)", "t=range(0,1e9,1e-9)"]
    expand(["seed=1,2"])
    tracemalloc.start()
    try:
        assert "over 10^15 members" in lines_of(*words)[0]
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()


def test_plus_group_twice_is_refused_as_without_a_sweep() -> None:
    (point,) = expand(["+experiment=pneumonia", "+experiment=smoke"])
    assert [str(fault) for fault in examine(point.words)[1]] == [
        "experiment: chosen twice. Write experiment=choice, without +; in a file `override /experiment: choice`."
    ]


def test_a_folder_that_is_none_is_told(tmp_path: Path) -> None:
    assert lines_of("seed=1,2", folder=tmp_path / "no")[0].startswith("config_dir=")


def test_what_was_read_while_expanding_is_not_read_again_for_the_members(monkeypatch: pytest.MonkeyPatch) -> None:
    from hpcai.config import compose

    memory = Memory()
    points = expand(["+experiment=smoke", "seed=range(0,5)", "trainer.lr=1e-3,1e-4"], None, memory)
    monkeypatch.setattr(compose, "_parse_word", None)
    for point in points:
        assert not examine(point.words, None, memory)[1]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.lists(
            st.sampled_from([*"ab1,=()[]{}'\"\\$~+. \n\0é\udcff", "range(", "choice(", "glob(", "seed", "model", "1,2"]),
            max_size=10,
        ).map("".join),
        max_size=3,
    )
)
def test_no_words_whatever_raise_anything_but_our_errors(words: list[str]) -> None:
    try:
        points = expand(words)
    except HpcaiError as e:
        assert e.code == ConfigError.code and all(line.isprintable() for line in e.lines)
    else:
        assert points and all(point.label.isprintable() for point in points)

"""A config cannot run code, leave its folder, read the environment, block or blow up; each harmless twin passes.

Every row is tried for real: within 2 s, 100 MB, with an audit hook that sees any file written and any process started.
"""
# ruff: noqa: E501  (a row of a table is one line)

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from hpcai.config.check import load
from hpcai.config.registry import EXTRAS
from hpcai.errors import ConfigError, HpcaiError

SECRET = "s3cret-0f-the-env1ronment"
HEAD = "# @package _global_\ndefaults:\n  - override /data: pneumoniamnist\n  - _self_\nname: mine\n"

# --- files: what a user's experiment/mine.yaml says after HEAD, its harmless twin, and the key that the refusal names

ALIASES = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi")
)
MERGES = "a: &a {x: 1, y: 2}\n" + "".join(
    f"{b}: &{b} {{l: *{a}, r: *{a}}}\n" for a, b in zip("abcdefghijklmnop", "bcdefghijklmnopq")
)
CHAIN = ["name", "source", "licence", "case_col", "path_col"]  # each holds the one before it 99 times: 760 MB at the end
DOLLARS = "data:\n  name: xxxxxxxx\n" + "".join(f"  {b}: '{f'${{data.{a}}}' * 99}'\n" for a, b in pairwise(CHAIN))

IN_FILE: list[tuple[str, str, str, str]] = [
    ("target names code", "model: {_target_: os.system}", "model: {name: resnet_small}", "model._target_"),
    ("target deep in options", "model: {options: {a: {_target_: os.system}}}", "model: {options: {}}", "model.options.a._target_"),
    ("target in a list", "data: {labels: [{_target_: x}, b]}", "data: {labels: [a, b]}", "data.labels.0._target_"),
    ("args", "model: {_args_: [1]}", "model: {width: 8}", "model._args_"),
    ("partial", "trainer: {_partial_: true}", "trainer: {compile: true}", "trainer._partial_"),
    ("convert", "trainer: {_convert_: all}", "trainer: {precision: float32}", "trainer._convert_"),
    ("recursive", "trainer: {_recursive_: false}", "trainer: {compile: false}", "trainer._recursive_"),
    ("hydra.run.dir", "hydra: {run: {dir: ../../..}}", "runs_dir: elsewhere", "hydra:"),
    ("hydra.callbacks", "hydra: {callbacks: {x: {_target_: os.system}}}", "data: {source: hydra}", "hydra:"),
    ("hydra.job_logging ()", "hydra: {job_logging: {handlers: {x: {'()': os.system}}}}", "data: {source: '()'}", "hydra:"),
    ("hydra dotted", "hydra.searchpath: ['file:///etc']", "data: {source: 'file:///etc'}", "hydra.searchpath"),
    ("hydra nested", "trainer: {hydra: 1}", "trainer: {epochs: 1}", "trainer.hydra"),
    ("environment", "data: {source: '${oc.env:HPCAI_SECRET}'}", "data: {source: '${data.name}'}", "data.source"),
    ("environment within", "data: {source: 'a ${data.${oc.env:HPCAI_SECRET}} b'}", "data: {source: 'a ${seed} b'}\nseed: 3", "data.source"),
    ("environment in a list", "data: {labels: [a, '${oc.env:HPCAI_SECRET}']}", "data: {labels: [a, '${name}']}", "data.labels.1"),
    ("environment as key", "data: {'${oc.env:HPCAI_SECRET}': 1}", "data: {licence: HPCAI_SECRET}", "data.${oc.env"),
    ("escaped environment", r"data: {source: '\${oc.env:HPCAI_SECRET}'}", "data: {source: 'costs $5 {x}'}", "data.source"),
    ("glued environment", "data: {name: '$', source: '${data.name}{oc.env:HPCAI_SECRET}'}", "data: {name: a, source: '${data.name}{b}'}", "data.source"),
    ("resolver", "data: {source: '${now:%Y}'}", "data: {source: 'now:%Y'}", "data.source"),
    ("decode", "data: {source: '${oc.decode:x}'}", "data: {source: oc.decode}", "data.source"),
    ("hydra's runtime", "data: {source: '${hydra:runtime.cwd}'}", "data: {source: 'hydra:runtime.cwd'}", "data.source"),
    ("hydra's node", "data: {source: '${hydra.runtime.cwd}'}", "data: {source: '${cluster.name}'}", "data.source"),
    ("private mark", "data: {source: \"\\uE000{oc.env:HPCAI_SECRET}\"}", "data: {source: \"\\u00e9\"}", "data.source"),
    ("interpolation circle", "data: {source: '${data.licence}', licence: '${data.source}'}", "data: {source: '${data.licence}'}", "data."),
    ("interpolation of a group", "data: {source: '${trainer}'}\ntrainer: {epochs: 1}", "data: {source: '${name}'}", "data.source"),
    ("interpolation of nothing", "data: {source: '${data.nowhere}'}", "data: {source: '${data.reader}'}", "data.source"),
    ("interpolation bomb", DOLLARS, DOLLARS.split("  licence")[0], "data.licence"),
    ("alias bomb", ALIASES, "a: &a 1\n".replace("a:", "seed:"), "mine.yaml: line"),
    ("merge bomb", MERGES, "trainer: &t {epochs: 1}", "mine.yaml: line"),
    ("alias within itself", "data: &a {source: *a}", "data: &a {source: a}", "mine.yaml: line"),
    ("101 aliases", "seed: &a 1\nx: [" + "*a," * 101 + "]", "data: {labels: [a, &b b]}", "mine.yaml: line"),
    ("merge key", "data: {<<: {_target_: x}}", "data: {<<: {licence: x}}", "data._target_"),
    ("deep flow", "model: {options: " + "[" * 5000, "model: {options: {}}", "mine.yaml: line"),
    ("deep block", "x:\n" + "\n".join(" " * i + "a:" for i in range(1, 200)), "trainer:\n  epochs: 1", "mine.yaml: line"),
    ("python object", "data: {source: !!python/object/apply:os.system [id]}", "data: {source: '!!python'}", "mine.yaml: line"),
    ("python name", "data: {source: !!python/name:os.system }", "data: {source: !!str 5}", "mine.yaml: line"),
    ("own tag", "data: {source: !exec id}", "data: {source: '!exec id'}", "mine.yaml: line"),
    ("binary tag", "data: {source: !!binary aGk=}", "data: {source: aGk=}", "mine.yaml: line"),
    ("key twice", "trainer: {epochs: 1, epochs: 2}", "trainer: {epochs: 1}", "epochs"),
    ("two documents", "---\nname: other", "# --- name", "mine.yaml: line"),
    ("a mapping as key", "? {a: b}\n: 1", "seed: 1", "mine.yaml: line"),
    ("a number as key", "trainer: {5: 1}", "trainer: {epochs: 5}", "trainer.5"),
    ("a number of 5000 digits", f"seed: {'9' * 5000}", "seed: 9", "mine.yaml"),
    ("a number of 100 digits", f"seed: {'9' * 100}", "seed: 99", "seed"),
    ("a hex number of 8000 digits", f"seed: 0x{'9' * 8000}", "seed: 0x9", "seed"),
    ("not a number", "trainer: {lr: .nan}", "trainer: {lr: 1e-3}", "trainer.lr"),
    ("infinite", "trainer: {clip_norm: .inf}", "trainer: {clip_norm: 1}", "trainer.clip_norm"),
    ("no YAML", "a: [", "seed: 1", "mine.yaml: line"),
    ("tabs", "data:\n\tname: x", "data:\n  name: x", "mine.yaml: line"),
    ("control characters", "data: {name: a\x01b}", "data: {name: a b}", "mine.yaml"),
    ("a group as a number", "data: 5", "data: {channels: 1}", "data"),
    ("a group as null", "data: null", "data: {image_size: null}", "data"),
    ("5,001 values", "data: {labels: [" + "a," * 5_001 + "]}", "data: {labels: [" + ",".join(f"c{i}" for i in range(999)) + "]}", "mine.yaml: line"),
]  # fmt: skip

# --- overrides, after +experiment=pneumonia
IN_WORD: list[tuple[str, str, str]] = [
    ("hydra.run.dir=/tmp/x", "runs_dir=/tmp/x", "hydra.run.dir"),
    ("hydra/launcher=basic", "model=resnet_small", "hydra/launcher"),
    ("hydra/job_logging=none", "trainer=short", "hydra/job_logging"),
    ("+hydra.callbacks.x._target_=os.system", "+data.source=os.system", "hydra.callbacks"),
    ("++hydra.job_logging.handlers.x={class: os.system}", "++data.source=os.system", "hydra.job_logging"),
    ("hydra.searchpath=[file:///etc]", "data.source='[file:///etc]'", "hydra.searchpath"),
    ("hydra={run: {dir: x}}", "trainer={epochs: 2}", "hydra"),
    ("~hydra", "~trainer.lr", "hydra"),
    ("model._target_=os.system", "model.name=resnet_small", "model._target_"),
    ("+model.options={a: {_target_: os.system}}", "model.options={}", "model.options.a._target_"),
    ("data.source=${oc.env:HPCAI_SECRET}", "data.source=${data.name}", "data.source"),
    ("data.source='${oc.env:HPCAI_SECRET}'", "data.source='${data.name}'", "data.source"),
    ("data.labels=[a,'${oc.env:HPCAI_SECRET}']", "data.labels=[a,'${name}']", "data.labels.1"),
    ("data.source=${now:%Y}", "data.source='now:%Y'", "data.source"),
    ("+experiment=../../x", "experiment=smoke", "experiment=../../x"),
    ("experiment=/etc/passwd", "experiment=smoke", "experiment=/etc/passwd"),
    ("experiment='file:///etc/x'", "experiment=smoke", "experiment=file"),
    ("experiment='pkg://os'", "experiment=smoke", "experiment=pkg"),
    ("model@hydra=resnet18", "model=resnet_small", "model@hydra"),
    ("model@_global_=resnet18", "model=resnet_small", "model@_global_"),
    ("name=../../etc/x", "name=etc-x", "name=../../etc/x"),
    ("name='a\n#SBATCH --wrap=id'", "name=a-SBATCH", "name=a?#SBATCH"),
    ("name='a b'", "name=a.b", "name=a b"),
    ("name=''", "name=a", "name="),
    (f"name={'a' * 65}", f"name={'a' * 64}", "name=aaa"),
    ("data.source='a\n#SBATCH -n 9'", "data.source='a #SBATCH -n 9'", "data.source=a?#SBATCH"),
    ("data.path='a\0b'", "data.path='a\nb'", "data.path"),
    ("cluster.mail='a@b\n#SBATCH -n 9'", "cluster.mail=a@b", "cluster.mail"),
    ("cluster.account='a --wrap=id'", "cluster.account=p200000", "cluster.account"),
    ("cluster.facts={setup: ../x.sh}", "cluster.facts={setup: x.sh}", "cluster.facts.setup"),
    ("cluster.facts={_target_: x}", "cluster.facts={site: x}", "cluster.facts._target_"),
    ("data.path='\udcff'", "data.path='ÿ'", "data.path"),
    ("trainer.lr=nan", "trainer.lr=1e-4", "trainer.lr"),
    ("trainer.lr=inf", "trainer.lr=1", "trainer.lr"),
    ("trainer.lr=-1", "trainer.lr=+1", "trainer.lr=-1"),
    ("trainer.epochs=99999999999999999999999999", "trainer.epochs=99999", "trainer.epochs"),
    (f"seed={'9' * 5000}", "seed=9", "seed"),
    ("seed=true", "seed=1", "seed=true"),
    ("seed=1.0", "seed=1", "seed=1.0"),
    ("trainer.lr=1e-3,1e-2", "trainer.lr=1e-3", "trainer.lr=1e-3,1e-2"),
    ("trainer.lr=range(1,1e300)", "data.source='range(1,1e300)'", "trainer.lr"),
    ("model=glob(*)", "data.source='glob(*)'", "model=glob"),
    (f"data.labels={'[' * 60}{']' * 60}", "data.labels=[a,b]", "data.labels"),
    (f"data.labels=[{'a,' * 5000}a]", "data.labels=[" + ",".join(f"c{i}" for i in range(1000)) + "]", "data.labels"),
    (f"data.source={'x' * 200_000}", f"data.source={'x' * 1000}", "data.source"),
    ("data.source", "data.source=x", "data.source"),
    ("=1", "seed=1", "=1"),
    ("", "seed=1", ""),
    ("a b=1", "seed=1", "a b"),
    ("data..path=x", "data.path=x", "data..path"),
    ("++model=resnet18", "model=resnet_small", "++model"),
    ("+model=resnet18", "model=resnet_small", "model"),
    ("model=[resnet18,'../x']", "model=[resnet_small]", "model=../x"),
    ("model=null", "model.init_from=null", "model="),
]  # fmt: skip

# --- whole folders: what lies at mine/, made by a function given the folder and one outside of it; the word; the key


def _experiment(text: str | bytes) -> Callable[[Path, Path], None]:
    def make(mine: Path, outside: Path) -> None:
        (mine / "experiment").mkdir()
        (mine / "experiment/mine.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())

    return make


def _defaults(*entries: str) -> Callable[[Path, Path], None]:
    lines = "".join(f"  - {entry}\n" for entry in entries)
    return _experiment(f"# @package _global_\ndefaults:\n{lines}  - override /data: pneumoniamnist\nname: mine\n")


def _link(target: str) -> Callable[[Path, Path], None]:
    def make(mine: Path, outside: Path) -> None:
        (mine / "experiment").mkdir()
        (mine / "experiment/mine.yaml").symlink_to(target.format(outside=outside, mine=mine))

    return make


def _linked_folder(mine: Path, outside: Path) -> None:
    (mine / "experiment").symlink_to(outside)


def _fifo(mine: Path, outside: Path) -> None:
    (mine / "experiment").mkdir()
    os.mkfifo(mine / "experiment/mine.yaml")


def _folder(mine: Path, outside: Path) -> None:
    (mine / "experiment/mine.yaml").mkdir(parents=True)


def _doubling(mine: Path, outside: Path) -> None:
    """Twenty-five levels, each of two files that both lead to both of the next: 2^25 files for Hydra to compose."""
    _defaults("a0", "b0", "_self_")(mine, outside)
    for i in range(25):
        for side in "ab":
            more = f"defaults: [a{i + 1}, b{i + 1}]\n" if i < 24 else ""
            (mine / f"experiment/{side}{i}.yaml").write_text(f"# @package _global_\n{more}")


def _few_levels(mine: Path, outside: Path) -> None:
    _defaults("a0", "_self_")(mine, outside)
    (mine / "experiment/a0.yaml").write_text("# @package _global_\nseed: 7\n")


def _circle(mine: Path, outside: Path) -> None:
    _defaults("other")(mine, outside)
    (mine / "experiment/other.yaml").write_text("# @package _global_\ndefaults: [mine]\n")


def _hides(mine: Path, outside: Path) -> None:
    _experiment(HEAD)(mine, outside)
    (mine / "model").mkdir()
    (mine / "model/resnet18.yaml").write_text("name: resnet18\n")


BOMB = b"# @package _global_\nname: mine\nx: [" + b"a," * 5_000_000 + b"]\n"
IN_FOLDER: list[tuple[str, Callable[[Path, Path], None], Callable[[Path, Path], None], str]] = [
    ("defaults climb out", _defaults("../../outside/x"), _defaults("_self_"), "defaults: ../../outside/x"),
    ("defaults from the root", _defaults("/../outside/x"), _defaults("smoke"), "defaults: /../outside/x"),
    ("defaults absolute", _defaults("/etc/passwd"), _defaults("_self_"), "etc"),
    ("choice climbs out", _defaults("/extra: ../../outside/x"), _defaults("override /model: resnet_small"), "defaults: /extra: ../../outside/x"),
    ("override climbs out", _defaults("override /model: ../../outside/x"), _defaults("override /model: resnet50"), "defaults: override /model"),
    ("choice is a URL", _defaults("/extra: 'file:///etc/x'"), _defaults("override /cluster: local"), "defaults: /extra: file"),
    ("choice is a package", _defaults("/extra: 'pkg://os'"), _defaults("override /cluster: local"), "defaults: /extra: pkg"),
    ("choice from the environment", _defaults("override /model: '${oc.env:HPCAI_SECRET}'"), _defaults("override /model: resnet18"), "defaults"),
    ("choice from a key", _defaults("override /model: ${name}"), _defaults("override /model: resnet18"), "defaults: override /model"),
    ("hydra's launcher", _defaults("override /hydra/launcher: basic"), _defaults("override /trainer: short"), "/hydra/launcher"),
    ("hydra's logging", _defaults("/hydra/job_logging: none"), _defaults("override /trainer: short"), "hydra/job_logging"),
    ("hydra's output", _defaults("hydra/output: default"), _defaults("override /trainer: short"), "hydra/output"),
    ("package in defaults", _defaults("/model@hydra: resnet18"), _defaults("override /model: resnet18"), "model@hydra"),
    ("group that is not there", _defaults("override /modle: resnet18"), _defaults("override /model: resnet18"), "modle: no such group. Did you mean model?"),
    ("choice that is not there", _defaults("override /model: resnet19"), _defaults("override /model: resnet18"), "Did you mean resnet18?"),
    ("defaults no list", _experiment("# @package _global_\ndefaults: {model: x}\n"), _experiment(HEAD), "defaults"),
    ("header to hydra", _experiment("# @package hydra\nrun: {dir: x}\n"), _experiment(HEAD), "package=hydra"),
    ("header deep", _experiment("# @package _global_.hydra.run\ndir: x\n"), _experiment(HEAD), "package=_global_.hydra.run"),
    ("header late", _experiment("# mine\n# @package hydra.run\ndir: x\n"), _experiment("# mine\n" + HEAD), "package=hydra.run"),
    ("no header", _experiment("name: mine\n"), _experiment(HEAD), "@package _global_"),
    ("10 MB", _experiment(BOMB), _experiment(HEAD + "# " + "x" * 900_000), "experiment/mine.yaml"),
    ("no UTF-8", _experiment(HEAD.encode() + b"data: {source: \xff}"), _experiment(HEAD + "data: {source: ÿ}"), "experiment/mine.yaml"),
    ("UTF-16", _experiment(HEAD.encode("utf-16")), _experiment(HEAD.encode("utf-8-sig")), "experiment/mine.yaml"),
    ("NUL bytes", _experiment(HEAD.encode() + b"seed: \0"), _experiment(HEAD + "seed: 0"), "experiment/mine.yaml"),
    ("a list", _experiment("# @package _global_\n- a\n"), _experiment(HEAD), "experiment/mine.yaml"),
    ("a FIFO", _fifo, _experiment(HEAD), "experiment/mine.yaml"),
    ("a folder", _folder, _experiment(HEAD), "experiment/mine.yaml"),
    ("a device", _link("/dev/zero"), _experiment(HEAD), "experiment/mine.yaml"),
    ("a link out", _link("{outside}/mine.yaml"), _link("{mine}/real.yaml"), "experiment/mine.yaml"),
    ("a link to itself", _link("mine.yaml"), _experiment(HEAD), "experiment/mine.yaml"),
    ("a link to nothing", _link("{mine}/nothing"), _link("{mine}/real.yaml"), "experiment/mine.yaml"),
    ("a linked folder", _linked_folder, _experiment(HEAD), "experiment/mine.yaml"),
    ("defaults in a circle", _circle, _few_levels, "experiment/mine.yaml"),
    ("defaults that double", _doubling, _few_levels, "experiment/mine.yaml"),
    ("a name of ours", _hides, _experiment(HEAD), "model/resnet18.yaml"),
]  # fmt: skip

# --- the trial --------------------------------------------------------------------------------------------------------------

_seen: list[str] | None = None
FORBIDDEN = {"os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "os.fork", "socket.connect", "os.mkdir", "os.rename",
             "os.remove", "os.rmdir", "os.symlink", "os.link", "os.truncate", "os.putenv", "shutil.move"}  # fmt: skip


def _audit(event: str, args: tuple[Any, ...]) -> None:
    if _seen is None:
        return
    if event in FORBIDDEN:
        _seen.append(f"{event} {args!r}")
    elif event == "open":
        path, mode, flags = args
        writes = any(c in str(mode) for c in "wax+") or (
            isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        )
        if writes and not str(path).endswith(".pyc") and "__pycache__" not in str(path):
            _seen.append(f"open {path} {mode}")


sys.addaudithook(_audit)


@contextmanager
def watched() -> Iterator[None]:
    """Nothing written, nothing started, within 2 s of CPU and 100 MB."""
    global _seen
    before, started, _seen = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time(), []
    try:
        yield
    finally:
        seen, _seen = _seen, None
    assert seen == []
    assert time.process_time() - started < 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024  # kB


def refuse(words: list[str], folder: Path | None, key: str) -> None:
    with watched(), pytest.raises(HpcaiError) as caught:
        load(words, folder)
    lines = caught.value.lines
    assert caught.value.code == ConfigError.code
    assert any(key in line for line in lines), lines
    assert all(line.isprintable() and len(line) <= 500 for line in lines)
    assert SECRET not in str(lines)


@pytest.fixture(scope="module", autouse=True)
def _imported() -> None:
    """What is imported once is not a config's cost."""
    load(["+experiment=pneumonia"])


@pytest.fixture(autouse=True)
def _secret(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HPCAI_SECRET", SECRET)
    monkeypatch.setitem(EXTRAS, "imaging", "json")  # counts as installed: nothing here builds a model
    monkeypatch.chdir(tmp_path)


def _ids(rows: list[Any]) -> list[str]:
    return [row[0][:40].encode("ascii", "replace").decode().replace("\n", "?").replace("\0", "?") for row in rows]


@pytest.mark.parametrize(("what", "bad", "good", "key"), IN_FILE, ids=_ids(IN_FILE))
def test_a_hostile_file_is_refused_by_key_and_its_harmless_twin_passes(
    what: str, bad: str, good: str, key: str, tmp_path: Path
) -> None:
    (tmp_path / "experiment").mkdir()
    file = tmp_path / "experiment/mine.yaml"
    file.write_text(HEAD + bad + "\n")
    refuse(["+experiment=mine"], tmp_path, key)
    file.write_text(HEAD + good + "\n")
    with watched():
        config = load(["+experiment=mine"], tmp_path)
    assert config.name == "mine"
    assert SECRET not in config.model_dump_json()


@pytest.mark.parametrize(("bad", "good", "key"), IN_WORD, ids=_ids(IN_WORD))
def test_a_hostile_word_is_refused_by_key_and_its_harmless_twin_passes(bad: str, good: str, key: str) -> None:
    refuse(["+experiment=pneumonia", bad], None, key)
    words = [good.replace("experiment=", "+experiment=")] if good.startswith("experiment") else ["+experiment=pneumonia", good]
    with watched():
        assert SECRET not in load(words).model_dump_json()


@pytest.mark.parametrize(("what", "bad", "good", "key"), IN_FOLDER, ids=_ids(IN_FOLDER))
def test_a_hostile_folder_is_refused_by_key_and_its_harmless_twin_passes(
    what: str, bad: Callable[[Path, Path], None], good: Callable[[Path, Path], None], key: str, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    for name in ("x.yaml", "mine.yaml"):
        (outside / name).write_text(HEAD)
    for number, make in enumerate((bad, good)):
        mine = tmp_path / f"mine{number}"
        mine.mkdir()
        (mine / "real.yaml").write_text(HEAD)
        make(mine, outside)
    refuse(["+experiment=mine"], tmp_path / "mine0", key)
    with watched():
        assert load(["+experiment=mine"], tmp_path / "mine1").name in ("mine", "smoke")
    assert sorted(p.name for p in outside.iterdir()) == ["mine.yaml", "x.yaml"]


def test_too_many_words_are_refused_at_once() -> None:
    refuse([f"a{i}=1" for i in range(20_000)], None, "20000 overrides")


def test_hydra_never_opens_a_file_of_the_users_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hydra._internal.core_plugins.file_config_source import FileConfigSource

    def opened(self: Any, config_path: str) -> None:
        raise AssertionError(config_path)

    monkeypatch.setattr(FileConfigSource, "load_config", opened)
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment/mine.yaml").write_text(HEAD)
    assert load(["+experiment=mine"], tmp_path).name == "mine"


def test_omegaconf_can_no_longer_read_the_environment() -> None:
    from omegaconf import OmegaConf

    load(["+experiment=pneumonia"])
    assert not OmegaConf.has_resolver("oc.env")


def test_the_watch_itself_sees_a_file_written_and_a_process_started(tmp_path: Path) -> None:
    for wrong in (lambda: (tmp_path / "x").write_text(""), lambda: os.system("true")):
        with pytest.raises(AssertionError), watched():
            wrong()

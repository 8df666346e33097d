"""journal.py: many processes, one file; what a kill, a full disk or another hand leaves of it."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcai.errors import PlanError
from hpcai.journal import Journal, backend

LIMIT_S = 60.0
WRITER = """
import sys
from pathlib import Path
from hpcai.journal import Journal
journal, who, many = Journal(Path(sys.argv[1])), sys.argv[2], int(sys.argv[3])
for i in range(many):
    journal.append([{"who": who, "i": i, "pad": "x" * (i * 37 % 3000)}])
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "search.jsonl"


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts a Python program; what still runs at the end is killed."""
    begun: list[subprocess.Popen[bytes]] = []

    def run(program: str, *words: object) -> subprocess.Popen[bytes]:
        begun.append(subprocess.Popen([sys.executable, "-c", program, *map(str, words)]))
        return begun[-1]

    yield run
    for process in begun:
        process.kill()
        process.wait()


def until(condition: Callable[[], Any]) -> None:
    before = time.monotonic()
    while not condition():
        assert time.monotonic() - before < LIMIT_S, "nothing came"
        time.sleep(0.002)


def test_what_is_appended_is_read(path: Path) -> None:
    journal = Journal(path)
    assert journal.read() == []
    journal.append([{"a": 1}, {"b": "größe\n\udc80"}])
    journal.append([{"c": None}])
    assert journal.read() == [{"a": 1}, {"b": "größe\n\udc80"}, {"c": None}]
    assert journal.read(2) == Journal(path).read(2) == [{"c": None}]
    assert journal.read(3) == Journal(path).read(3) == []


def test_each_line_is_plain_json(path: Path) -> None:
    Journal(path).append([{"a": "\u2028"}])
    assert path.read_text("ascii") == '{"a":"\\u2028"}\n'


def test_what_is_no_json_is_not_written(path: Path) -> None:
    journal = Journal(path)
    with pytest.raises(ValueError, match="JSON"):
        journal.append([{"a": 1}, {"a": float("nan")}])
    assert journal.read() == []


leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
values = st.recursive(leaves, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(), v, max_size=3), max_leaves=8)
records = st.lists(st.dictionaries(st.text(), values, max_size=3), min_size=1, max_size=4)


@settings(max_examples=40, deadline=None)
@given(first=records, then=records, cut=st.integers(0, 10_000))
def test_a_file_cut_anywhere_keeps_its_whole_lines_and_goes_on(
    tmp_path_factory: pytest.TempPathFactory, first: list[dict[str, Any]], then: list[dict[str, Any]], cut: int
) -> None:
    path = tmp_path_factory.mktemp("cut") / "search.jsonl"
    Journal(path).append(first)
    data = path.read_bytes()[: cut % (path.stat().st_size + 1)]
    path.write_bytes(data)
    whole = first[: data.count(b"\n")]
    assert Journal(path).read() == whole
    journal = Journal(path)
    journal.append(then)
    assert journal.read() == Journal(path).read() == whole + then


def test_a_torn_line_is_no_matter_to_a_reader_that_stays(path: Path) -> None:
    journal, other = Journal(path), Journal(path)
    journal.append([{"a": 1}])
    assert other.read() == [{"a": 1}]
    with path.open("ab") as f:
        f.write(b'{"b": ')
    assert other.read(1) == []
    journal.append([{"c": 3}])
    assert other.read(1) == [{"c": 3}]


@pytest.mark.parametrize("line", [b"{", b"", b"7", b"\x00\x00", b"\xff", b'{"a": 1}}', b"[" * 100_000, b"9" * 5000, b"null"])
def test_a_damaged_line_is_named_with_its_number(path: Path, line: bytes) -> None:
    path.write_bytes(b'{"a":1}\n{"a":2}\n' + line + b'\n{"a":4}\n')
    journal = Journal(path)
    for start in (0, 1, 2):
        with pytest.raises(PlanError, match=r"^search: line 3 of its journal is damaged\. ") as caught:
            journal.read(start)
        assert len(caught.value.lines) == 1


def test_a_line_that_is_not_the_search_s_is_damaged_too(path: Path) -> None:
    path.write_bytes(b'{"op_code":0,"worker_id":"w"}\n{"op_code":"0"}\n')
    with pytest.raises(PlanError, match="line 2 of its journal"):
        backend(Journal(path)).read_logs(1)


def test_a_journal_taken_away_is_told(path: Path) -> None:
    journal = Journal(path)
    journal.append([{"a": 1}])
    journal.read()
    path.unlink()
    with pytest.raises(PlanError, match="taken away"):
        journal.append([{"b": 1}])
    path.parent.rename(path.parent.with_name("gone"))
    with pytest.raises(PlanError, match="folder is gone"):
        journal.read()


def test_a_journal_taken_away_at_the_moment_it_is_locked_is_told(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = fcntl.flock

    def lock(fd: int, how: int) -> None:
        real(fd, how)
        path.unlink()

    monkeypatch.setattr(fcntl, "flock", lock)
    with pytest.raises(PlanError, match="taken away"):
        Journal(path).append([{"a": 1}])


def test_a_journal_cut_while_in_use_is_told(path: Path) -> None:
    journal = Journal(path)
    journal.append([{"a": 1}, {"b": 1}])
    journal.read()
    path.write_bytes(b'{"a":1}\n')
    with pytest.raises(PlanError, match="cut while in use"):
        journal.read(2)


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_told_with_what_to_do(path: Path, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    before = len([*Path("/proc/self/fd").iterdir()])
    with pytest.raises(PlanError, match=r"without locks \(flock\)\. Set runs_dir"):
        Journal(path).append([{"a": 1}])
    assert len([*Path("/proc/self/fd").iterdir()]) == before


def test_another_fault_of_the_lock_is_not_taken_for_that(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "I/O error")

    monkeypatch.setattr(fcntl, "flock", fail)
    with pytest.raises(OSError, match="I/O"):
        Journal(path).read()


def test_a_full_disk_takes_the_part_back(path: Path, start: Callable[..., subprocess.Popen[bytes]]) -> None:
    """A limit on the file's size cuts a write short as a full disk does."""
    program = """
import resource, sys
from pathlib import Path
from hpcai.journal import Journal
journal = Journal(Path(sys.argv[1]))
journal.append([{"a": 1}])
resource.setrlimit(resource.RLIMIT_FSIZE, (20, resource.RLIM_INFINITY))
try:
    journal.append([{"b": "x" * 100}])
except OSError:
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert Path(sys.argv[1]).read_bytes() == b'{"a":1}\\n'
    journal.append([{"c": 3}])
    sys.exit(42)
"""
    assert start(program, path).wait(LIMIT_S) == 42
    assert Journal(path).read() == [{"a": 1}, {"c": 3}]


def test_a_lock_may_be_nested_and_is_given_back(path: Path) -> None:
    journal, other = Journal(path), Journal(path)
    with pytest.raises(ZeroDivisionError), journal.locked(), journal.locked():
        journal.append([{"a": 1}])
        raise ZeroDivisionError
    assert other.read() == [{"a": 1}]
    assert [f.name for f in path.parent.iterdir()] == [path.name]


def test_many_processes_lose_nothing(path: Path, start: Callable[..., subprocess.Popen[bytes]]) -> None:
    writers = [start(WRITER, path, who, 40) for who in "abc"]
    reader, seen = Journal(path), []
    until(lambda: seen.extend(reader.read(len(seen))) or all(w.poll() is not None for w in writers))
    assert [w.returncode for w in writers] == [0, 0, 0]
    seen += reader.read(len(seen))
    assert seen == Journal(path).read()
    for who in "abc":
        assert [r["i"] for r in seen if r["who"] == who] == list(range(40))


@pytest.mark.fault
@pytest.mark.parametrize("seed", range(4))
def test_a_writer_killed_at_any_moment_leaves_a_readable_journal(
    path: Path, seed: int, start: Callable[..., subprocess.Popen[bytes]]
) -> None:
    size = random.Random(seed).randrange(1, 60_000)
    writer, other = start(WRITER, path, "killed", 1_000_000), start(WRITER, path, "other", 60)
    until(lambda: path.exists() and path.stat().st_size >= size)
    writer.send_signal(signal.SIGKILL)
    assert writer.wait() == -signal.SIGKILL
    assert other.wait(LIMIT_S) == 0  # no lock is left behind
    journal = Journal(path)
    journal.append([{"who": "after"}])
    read = journal.read()
    assert read[-1] == {"who": "after"}
    assert [r["i"] for r in read if r["who"] == "other"] == list(range(60))
    assert [r["i"] for r in read if r["who"] == "killed"] == list(range(sum(r["who"] == "killed" for r in read)))
    assert all(json.loads(line) for line in path.read_bytes().splitlines())

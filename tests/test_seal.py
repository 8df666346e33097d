"""The seal: which files it covers and how, what comes after it, and what a person may type."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcai import lease, rundir, seal
from hpcai.errors import ConfigError
from hpcai.rundir import RunDir


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """A few files of each kind."""
    run = RunDir(tmp_path / "x-1")
    for name in ("config.yaml", "rows/test.rank0.jsonl", "logs/rank0.log", "lives/0001/rank0.jsonl", "lives/0001/beat",
                 "use.rank0.json", "code/hpcai/a.py", "code/hpcai/__pycache__/a.pyc", ".report.json.h-1.tmp"):  # fmt: skip
        rundir.write_bytes(run.path / name, f"{name}\n".encode())
    return run


def changes(run: RunDir) -> list[tuple[str, str]]:
    """What is not as the manifest has it."""
    return list(seal.changes(run, rundir.read_json(run.manifest)["files"], seal.files_of(run)))


@pytest.mark.parametrize(("name", "kind"), [
    ("report.json", "whole"), ("code/hpcai/__init__.py", "whole"), ("checkpoints/step-00000001.safetensors", "whole"),
    ("lives/0001/owner.json", "whole"), ("cases.jsonl", "whole"), ("ledger.json", "whole"), ("patient.png", "whole"),
    ("logs/rank3.log", "grows"), ("submitit/7_0_log.out", "grows"), ("lives/0002/rank1.jsonl", "grows"),
    ("use.rank0.json", "late"), ("tensorboard/events.1", "late"), ("tracking.json", "late"),
    ("report.html", "free"), ("manifest.json", "free"), ("lives/0001/beat", "free"), ("preflight/n1.json", "free"),
    ("code/hpcai/__pycache__/x.pyc", "free"), ("lives/.join-1", "free"), ("rows/.x.tmp", "free"), ("proposal.json", "free"),
    ("releases.jsonl", "free"), ("records/00000000.jsonl", "whole"),
])  # fmt: skip
def test_every_file_is_of_one_kind_by_its_name(name: str, kind: str) -> None:
    assert seal.kind_of(name) == kind


def test_the_manifest_lists_what_is_whole_and_what_grows(run: RunDir) -> None:
    seal.write(run)
    listed = rundir.read_json(run.manifest)["files"]
    assert list(listed) == [
        "code/hpcai/a.py",
        "config.yaml",
        "lives/0001/rank0.jsonl",
        "logs/rank0.log",
        "rows/test.rank0.jsonl",
    ]
    assert listed["config.yaml"]["bytes"] == len("config.yaml\n") and changes(run) == []


def test_equal_folders_have_equal_seals_and_a_byte_makes_another(run: RunDir) -> None:
    first = seal.write(run)
    assert seal.write(run) == first == seal.seal_of(run.manifest.read_bytes())
    run.config.write_bytes(b"other\n")
    assert seal.write(run) != first


def test_a_log_may_grow_but_what_stood_there_may_not_change(run: RunDir) -> None:
    seal.write(run)
    log = run.log(0)
    with log.open("ab") as f:
        f.write(b"more\n")
    assert changes(run) == []
    log.write_bytes(b"L" + log.read_bytes()[1:])
    assert changes(run) == [("changed", "logs/rank0.log")]
    log.write_bytes(b"")
    assert changes(run) == [("changed", "logs/rank0.log")]


def test_what_is_whole_may_not_grow_or_go(run: RunDir) -> None:
    seal.write(run)
    with run.rows_file("test", 0).open("ab") as f:
        f.write(b"{}\n")
    run.config.unlink()
    assert sorted(changes(run)) == [("changed", "rows/test.rank0.jsonl"), ("missing", "config.yaml")]


def test_a_pipe_in_place_of_a_file_is_a_change_and_keeps_nobody_waiting(run: RunDir) -> None:
    seal.write(run)
    run.config.unlink()
    os.mkfifo(run.config)
    (run.path / "rows/other").symlink_to("/")
    assert changes(run) == [("changed", "config.yaml")]
    assert "rows/other" in seal.files_of(run) and "rows/other" not in rundir.read_json(run.manifest)["files"]
    seal.write(run)
    assert "config.yaml" not in rundir.read_json(run.manifest)["files"]


def test_a_folder_of_checkpoints_on_another_disk_is_sealed_and_no_other_link_is_followed(run: RunDir, tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    run.checkpoints.symlink_to(tmp_path / "scratch")
    (run.path / "other").symlink_to(tmp_path / "scratch")
    (run.checkpoints / "step-1.json").write_text("1")
    seal.write(run)
    assert {name for name in seal.files_of(run) if "step" in name or "other" in name} == {"checkpoints/step-1.json", "other"}
    (run.checkpoints / "step-1.json").write_text("2")
    assert changes(run) == [("changed", "checkpoints/step-1.json")]


def test_a_rank_that_ends_well_closes_its_own_files(run: RunDir) -> None:
    sealed = seal.write(run)
    end = seal.last_words(run, 1, 0, {"code": 0})
    assert sorted(end["after"]) == ["lives/0001/rank0.jsonl", "logs/rank0.log", "use.rank0.json"]
    assert end["seal"] == sealed
    record = {"event": "end", "rank": 0, **end}
    assert record["digest"] == seal.record_digest(record) != seal.record_digest(record | {"code": 1})
    other = seal.last_words(run, 1, 1, {"code": 0})
    assert other["after"] == {} and "seal" not in other


def test_after_any_number_of_lives_an_end_record_is_short_enough_for_whoever_reads_both_ends_of_a_file(run: RunDir) -> None:
    for life in range(1, 300):
        rundir.write_bytes(lease.life_dir(run, life) / "rank0.jsonl", b"{}\n")
        for kind in ("out", "err"):
            rundir.write_bytes(run.submitit / f"{life}_0_log.{kind}", b"")
    end = seal.last_words(run, 299, 0, {"code": 0})
    assert sorted(end["after"])[:1] == ["lives/0299/rank0.jsonl"] and len(end["after"]) == 5
    assert len(seal.encoded(end)) < lease.ENDS_BYTES / 4


def test_a_rank_that_fails_ends_as_before(run: RunDir) -> None:
    assert seal.last_words(run, 1, 0, {"code": 5, "message": "x"}) == {"code": 5, "message": "x"}


SEAL = seal.seal_of(b"")


@given(st.lists(st.integers(0, 64), max_size=6), st.sampled_from([" ", "-", "\n", "\t"]), st.booleans())
def test_a_seal_is_read_in_groups_and_capitals(places: list[int], mark: str, capitals: bool) -> None:
    text = SEAL
    for at in sorted(places, reverse=True):
        text = text[:at] + mark + text[at:]
    assert seal.read_seal(text.upper() if capitals else text) == SEAL


@pytest.mark.parametrize("text", ["", "x", SEAL[:-1], SEAL + "0", SEAL[:-1] + "g", "٠" * 64, "\x1b[2J" + SEAL])
def test_what_is_no_seal_is_one_line_and_exit_2(text: str) -> None:
    with pytest.raises(ConfigError, match="is no seal") as e:
        seal.read_seal(text)
    assert "\x1b" not in e.value.lines[0] and e.value.code == 2

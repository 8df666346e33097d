"""The ledger: who is counted, once, by many at a time, through kills, damage and a full or foreign file."""

from __future__ import annotations

import json
import multiprocessing
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_runs import make_run

from hpcai import ledger, rundir
from hpcai.report import write_report
from hpcai.rundir import RunDir

CASES = ["b", "a", "c"]


def prepared(folder: Path, name: str, identity: str | None = None, begun: float = 1.0) -> RunDir:
    """What the ledger reads of a run."""
    run = RunDir(folder / name)
    rundir.write_json(run.plan, {"identity": identity or name})
    rundir.write_json(run.data, {"files": [{"path": "/x", "sha256": "d" * 64}]})
    rundir.write_json(run.lives / "0001/owner.json", {"time": begun})
    return run


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / ledger.NAME).read_text().splitlines()]


def count(run: RunDir, cases: list[str] = CASES) -> tuple[int | None, int | None]:
    told = ledger.note(run, "test", cases)
    return told["scored"], told["configs"]


def test_runs_and_configurations_of_a_split_are_counted(tmp_path: Path) -> None:
    assert count(prepared(tmp_path, "a-1")) == (1, 1)
    assert count(prepared(tmp_path, "a-1.2", "a-1")) == (2, 1)  # --anew: scored again by the same configuration
    assert count(prepared(tmp_path, "b-1"), CASES[::-1]) == (3, 2)
    assert count(prepared(tmp_path, "c-1"), ["other"]) == (1, 1)
    assert [line["run_id"] for line in lines(tmp_path)] == ["a-1", "a-1.2", "b-1", "c-1"]
    assert stat.S_IMODE((tmp_path / ledger.NAME).stat().st_mode) == 0o600


def test_a_try_is_not_counted(tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs" / "try-x-1", name="try-x")
    write_report(run)
    assert not run.ledger.exists() and not (tmp_path / "runs" / ledger.NAME).exists()
    assert "ledger" not in rundir.read_json(run.report_json)


def test_a_run_that_goes_on_counts_once_and_says_the_same(tmp_path: Path) -> None:
    run = prepared(tmp_path, "a-1")
    first = ledger.note(run, "test", CASES)
    count(prepared(tmp_path, "b-1"))
    assert ledger.note(run, "test", CASES) == first == rundir.read_json(run.ledger)
    run.ledger.unlink()  # killed before it was kept
    assert count(run) == (2, 2) and len(lines(tmp_path)) == 2


def test_a_run_that_was_removed_and_made_again_counts_again(tmp_path: Path) -> None:
    count(prepared(tmp_path, "a-1"))
    (tmp_path / "a-1/ledger.json").unlink()
    assert count(prepared(tmp_path, "a-1", begun=2.0)) == (2, 1)


def test_other_data_with_the_same_ids_is_another_split(tmp_path: Path) -> None:
    assert ledger.split_digest(CASES, ["x"]) != ledger.split_digest(CASES, ["y"])


@given(st.lists(st.text(), unique=True), st.lists(st.text(), unique=True), st.randoms())
def test_the_digest_knows_a_split_in_any_order_and_no_other(cases: list[str], others: list[str], rng: Any) -> None:
    mixed = list(cases)
    rng.shuffle(mixed)
    assert ledger.split_digest(cases, ["d"]) == ledger.split_digest(mixed, ["d"])
    assert (ledger.split_digest(cases, ["d"]) == ledger.split_digest(others, ["d"])) == (set(cases) == set(others))


def test_no_case_stands_in_the_ledger(tmp_path: Path) -> None:
    count(prepared(tmp_path, "a-1"), ["SMITH-JOHN-1950"])
    assert "SMITH" not in (tmp_path / ledger.NAME).read_text() + (tmp_path / "a-1/ledger.json").read_text()


def _note(folder: str, k: int) -> None:
    ledger.note(RunDir(Path(folder) / f"m-{k}"), "test", CASES)


def test_members_of_a_sweep_that_end_together_are_all_counted(tmp_path: Path) -> None:
    for k in range(12):
        prepared(tmp_path, f"m-{k}")
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        pool.starmap(_note, [(str(tmp_path), k) for k in range(12)])
    assert {line["run_id"] for line in lines(tmp_path)} == {f"m-{k}" for k in range(12)} and len(lines(tmp_path)) == 12
    counts = sorted(rundir.read_json(tmp_path / f"m-{k}/ledger.json")["scored"] for k in range(12))
    assert counts == list(range(1, 13))


def test_a_line_that_a_kill_has_torn_is_cut(tmp_path: Path) -> None:
    count(prepared(tmp_path, "a-1"))
    with (tmp_path / ledger.NAME).open("ab") as f:
        f.write(b'{"time": 1, "run')
    assert count(prepared(tmp_path, "b-1")) == (2, 2) and len(lines(tmp_path)) == 2


@pytest.mark.parametrize("text", ["x\n", "[]\n", '{"run_id": 1}\n', "\xff\n", "[" * 100_000 + "\n", "null\n"])
def test_a_damaged_ledger_costs_a_sentence_and_is_left_as_it_is(tmp_path: Path, text: str) -> None:
    file = tmp_path / ledger.NAME
    file.write_text(text, "latin-1")
    told = ledger.note(prepared(tmp_path, "a-1"), "test", CASES)
    assert told["scored"] is None and file.read_text("latin-1") == text
    assert (
        ledger.caution(told)
        == "How often this test split was scored could not be counted: ledger.jsonl: a line of it is damaged."
    )


@pytest.mark.parametrize("kind", ["folder", "pipe", "link"])
def test_what_is_no_file_costs_a_sentence(tmp_path: Path, kind: str) -> None:
    file = tmp_path / ledger.NAME
    match kind:
        case "folder":
            file.mkdir()
        case "pipe":
            os.mkfifo(file)
        case "link":
            file.symlink_to(tmp_path / "elsewhere")
    told = ledger.note(prepared(tmp_path, "a-1"), "test", CASES)
    assert told["scored"] is None and told["why"] and not (tmp_path / "elsewhere").exists()


def test_a_ledger_that_another_process_holds_is_not_waited_for_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger, "WAIT_S", 0.05)
    run = prepared(tmp_path, "a-1")
    with ledger._locked(tmp_path / ledger.NAME):
        told = ledger.note(run, "test", CASES)
    assert told["why"] == "another process held it for 0.05 s"
    assert count(run) == (1, 1)  # the next time it counts


@pytest.mark.parametrize(("scored", "configs", "cautious", "words"), [
    (1, 1, False, "This test split was scored once, by 1 configuration "),
    (3, 1, False, "scored 3 times, by 1 configuration "),
    (2, 2, True, "If this one was chosen by its score here, the score is too good."),
    (11, 11, True, "The best of so many is good by chance"),
])  # fmt: skip
def test_the_report_warns_as_configurations_grow(scored: int, configs: int, cautious: bool, words: str) -> None:
    told = {"split": "test", "digest": "", "scored": scored, "configs": configs, "why": None}
    assert (ledger.caution(told) is not None) == cautious
    assert words in (ledger.caution(told) or ledger.sentence(told))


def test_the_report_tells_it_and_a_prediction_is_not_counted(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_report(make_run(tmp_path / name, seed=len(name)))
    write_report(make_run(tmp_path / "p", "predict"))
    report = rundir.read_json(tmp_path / "b/report.json")
    assert report["ledger"]["scored"] == 2 and report["ledger"]["sentence"] in (tmp_path / "b/report.html").read_text()
    assert len(lines(tmp_path)) == 2 and not (tmp_path / "p/ledger.json").exists()

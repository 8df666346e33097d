"""`hpcai release`: who released what, once; never a failed plate, a shadow run, or a record that was changed."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

import pytest
from screened_run import RECORDS, screened

from hpcai import rundir, seal
from hpcai.errors import ConfigError, DataError, Faults, HpcaiError, PlanError, RunError
from hpcai.release import DECISIONS, append, main, on_bad_plate, read_records, releases
from hpcai.rundir import RunDir


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    """`runs/cohort-1`."""
    monkeypatch.chdir(tmp_path)
    return screened(tmp_path / "runs" / "cohort-1")


def release(*words: str) -> int:
    return main(["cohort-1", "--by", "Dr. Ada Ng", "--yes", *words])


def test_a_release_says_who_when_what_and_under_which_seal(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    assert release() == 0
    out = capsys.readouterr().out
    assert (
        "1 refer, 1 reflex, 1 repeat, 2 clear (SIMULATED newborns)" in out and "withheld, as their plate is not valid: 1" in out
    )
    (told,) = releases(run)
    assert told["by"] == "Dr. Ada Ng" and told["decisions"] == list(DECISIONS) and told["simulated"] is True
    assert told["newborns"] == {"refer": 1, "reflex": 1, "repeat": 1, "clear": 2} and told["withheld"] == 1
    assert told["seal"] == seal.seal_of(run.manifest.read_bytes()) and told["time"] > 1.7e9 and told["login"]
    assert not any(sample in run.releases.read_text() for sample in ("s1", "s6"))


def test_a_newborn_of_a_failed_plate_is_never_released(run: RunDir) -> None:
    assert [on_bad_plate(record) for record in RECORDS] == [False] * 5 + [True]
    with pytest.raises(PlanError, match=r"no such newborn to release \(1 withheld by plate\)"):
        release("--only", "not_assessable")
    assert not run.releases.exists()


def test_what_was_released_is_released_again_only_with_a_reason(run: RunDir) -> None:
    assert release("--only", "refer,reflex") == 0
    with pytest.raises(PlanError, match=r"refer was released by Dr\. Ada Ng"):
        release("--only", "clear,refer")
    assert release("--only", "clear") == 0
    assert release("--again", "the clinic was not reached") == 0
    assert [told["again"] for told in releases(run)] == [None, None, "the clinic was not reached"]


def test_nothing_is_released_without_being_asked_for(run: RunDir) -> None:
    with pytest.raises(ConfigError, match="only with --yes"):
        main(["cohort-1", "--by", "Ada"])
    with pytest.raises(ConfigError, match="Add --by NAME"):
        main(["cohort-1", "--yes"])
    assert not run.releases.exists()


@pytest.mark.parametrize("words", [["--by", ""], ["--by", "a\nb"], ["--by", "x" * 201], ["--by", "A", "--again", "\x1b[2J"]])
def test_a_name_or_reason_that_would_not_print_is_refused(run: RunDir, words: list[str]) -> None:
    with pytest.raises(ConfigError, match="printable"):
        main(["cohort-1", "--yes", *words])


def test_all_wrong_words_are_told_at_once(run: RunDir) -> None:
    with pytest.raises(Faults) as caught:
        main(["cohort-1", "--yes", "--only", "refers,nothing"])
    assert caught.value.code == 2 and len(caught.value.lines) == 3
    assert "Did you mean refer?" in caught.value.lines[1]


def test_shadow_and_unfinished_runs_and_other_jobs_are_refused(run: RunDir) -> None:
    home = run.path.parent
    screened(home / "shadow-1", mode="shadow")
    screened(home / "half-1", "running")
    other = screened(home / "other-1")
    other.screening.unlink()
    for name, why in (
        ("shadow-1", "screening.mode=shadow: nothing of it may be released"),
        ("half-1", "it is "),
        ("other-1", "no screened cohort"),
    ):
        with pytest.raises(PlanError, match=why):
            main([name, "--by", "Ada", "--yes"])


@pytest.mark.parametrize("change", ["edit", "add", "remove"])
def test_records_that_are_not_as_they_were_sealed_are_not_released(run: RunDir, change: str) -> None:
    file = run.records_file(0)
    if change == "edit":
        file.write_bytes(file.read_bytes().replace(b'"refer"', b'"clear"'))
    elif change == "add":
        run.records_file(7).write_bytes(file.read_bytes())
    else:
        file.unlink()
    with pytest.raises(DataError, match=r"records/0000000[07]\.jsonl .* since the seal"):
        release()


def test_the_file_of_releases_does_not_break_the_seal(run: RunDir) -> None:
    before = run.manifest.read_bytes()
    release()
    assert seal.kind_of("releases.jsonl") == "free"
    seal.write(run)
    assert run.manifest.read_bytes() == before


def test_a_line_that_was_changed_or_taken_out_shows(run: RunDir) -> None:
    for word in ("refer", "reflex", "clear"):
        release("--only", word)
    lines = run.releases.read_bytes().splitlines(keepends=True)
    for broken in ([lines[0], lines[2]], [lines[0].replace(b"Ada", b"Eve"), *lines[1:]], lines[1:]):
        run.releases.write_bytes(b"".join(broken))
        with pytest.raises(RunError, match="was changed"):
            releases(run)
    run.releases.write_bytes(b"".join(lines) + b'{"by": "torn')
    assert [told["decisions"] for told in releases(run)] == [["refer"], ["reflex"], ["clear"]]
    assert release("--only", "repeat") == 0  # the torn line is cut
    assert len(releases(run)) == 4


def test_of_two_who_release_the_same_at_once_one_is_refused(run: RunDir) -> None:
    with multiprocessing.get_context("fork").Pool(4) as pool:
        codes = pool.map(_try, [str(run.path)] * 8)
    assert sorted(codes) == [0] + [3] * 7 and len(releases(run)) == 1


def _try(path: str) -> int:
    entry = {"by": "Ada", "decisions": ["refer"], "newborns": {"refer": 1}, "withheld": 0, "simulated": True, "again": None}
    try:
        append(RunDir(Path(path)), entry)
    except HpcaiError as e:
        return e.code
    return 0


def test_a_damaged_record_is_told_without_what_it_holds(run: RunDir) -> None:
    run.records_file(1).write_bytes(b'{"sample": "Baby Smith", "decision": \n')
    with pytest.raises(RunError) as caught:
        list(read_records(run))
    assert "Smith" not in str(caught.value) and "00000001.jsonl" in str(caught.value)


def test_json_prints_the_line(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    release("--json")
    assert json.loads(capsys.readouterr().out) == releases(run)[0] == next(rundir.read_lines(run.releases))

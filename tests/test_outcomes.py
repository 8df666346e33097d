"""`hpcai outcomes`: PPV, recalls and misses by hand; a row number for each fault, never what stands in the file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from screened_run import RULE, record, screened

from hpcai.errors import DataError, Faults, HpcaiError, PlanError
from hpcai.metrics.intervals import clopper_pearson
from hpcai.outcomes import main, read_outcomes
from hpcai.rundir import RunDir

HEAD = "sample,disease,outcome,date\n"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    """`runs/cohort-1`."""
    monkeypatch.chdir(tmp_path)
    return screened(tmp_path / "runs" / "cohort-1")


def counted(text: str, capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    """What --json says of a file."""
    Path("o.csv").write_text(text, "utf-8")
    assert main(["cohort-1", "o.csv", "--json"]) == 0
    value: dict[str, object] = json.loads(capsys.readouterr().out)
    return value


def refused(text: str) -> list[str]:
    """The lines of the fault of a file."""
    Path("o.csv").write_text(text, "utf-8")
    with pytest.raises(HpcaiError) as caught:
        main(["cohort-1", "o.csv"])
    assert caught.value.code == 4
    return caught.value.lines


def test_counts_and_shares_are_those_by_hand(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    """s1 was referred for PKU and has it; s2's second tier was negative; s4, called clear in October, has MCAD."""
    told = counted(HEAD + "s1,PKU,confirmed,2026-11-20\ns2,mcad,False positive,\ns4,MCAD,confirmed,\n", capsys)
    total = told["total"]
    assert isinstance(total, dict)
    assert {k: total[k] for k in ("flagged", "confirmed", "false_positive", "lost", "open", "missed")} == {
        "flagged": 2, "confirmed": 1, "false_positive": 1, "lost": 0, "open": 0, "missed": 1,
    }  # fmt: skip
    assert total["ppv"] == pytest.approx([0.5, *clopper_pearson(1, 2)])
    assert total["found"] == pytest.approx([0.5, *clopper_pearson(1, 2)])
    assert total["flagged_rate"] == pytest.approx([2 / 6, *clopper_pearson(2, 6)])
    diseases = {row["name"]: row for row in told["diseases"]}
    assert (diseases["PKU"]["ppv"][0], diseases["MCAD"]["ppv"][0], diseases["MCAD"]["found"][0]) == (1.0, 0.0, 0.0)
    months = {row["name"]: row for row in told["months"]}
    assert (months["2026-10"]["newborns"], months["2026-10"]["missed"], months["2026-10"]["ppv"]) == (1, 1, None)
    assert (months["2026-11"]["newborns"], months["2026-11"]["flagged"]) == (5, 2)


def test_who_was_flagged_and_has_no_line_is_open_and_a_specimens_repeat_is_no_flag(
    run: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    told = counted(HEAD + "s1,PKU,lost,\n", capsys)["total"]
    assert isinstance(told, dict)
    assert (told["flagged"], told["lost"], told["open"], told["ppv"], told["found"]) == (2, 1, 1, None, None)


def test_affected_of_whom_nothing_was_said_are_no_misses(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    told = counted(HEAD + "s5,PKU,confirmed,\n=s6,PKU,confirmed,\n", capsys)["total"]
    assert isinstance(told, dict)
    assert (told["missed"], told["unassessed_confirmed"], told["found"]) == (0, 2, None)


@pytest.mark.parametrize("text", [
    "Sample;Disease;Outcome\r\ns1;PKU;confirmed\r\n", "\ufeffsample\tdisease\toutcome\ns1\tPKU\tconfirmed\n",
    'outcome,x,disease,sample\nconfirmed,"a, ""b""\nc",PKU,s1\n\n,,,\n',
])  # fmt: skip
def test_the_usual_csvs_are_read(run: RunDir, capsys: pytest.CaptureFixture[str], text: str) -> None:
    told = counted(text, capsys)["total"]
    assert isinstance(told, dict) and told["confirmed"] == 1


def test_the_table_says_that_newborns_are_simulated(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    Path("o.csv").write_text(HEAD + "s1,PKU,confirmed,\n")
    assert main(["cohort-1", "o.csv"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("Simulated newborns: this proves the method, not the medicine.")
    assert "6 newborns, 2 flagged. Of 2 flags: 1 confirmed, 0 false, 0 lost, 1 open; 0 missed." in out
    assert "1.000 [0.025 to 1.000]" in out


def test_rows_that_cannot_be_used_are_told_by_number_all_at_once(run: RunDir) -> None:
    secret = "Baby Smith"
    lines = refused(HEAD + f"s1,PKU,{secret},\n,PKU,lost,\ns1,PKU,lost,yesterday\ns2,MCAD,lost,\ns2,MCAD,confirmed,\n")
    assert [line.partition(":")[0] for line in lines] == ["row=2", "row=3", "row=4", "row=6"]
    assert "row 5" in lines[3] and secret not in "".join(lines)


def test_newborns_and_diseases_that_the_run_does_not_have_are_told_by_number(run: RunDir) -> None:
    lines = refused(HEAD + "Smith,PKU,confirmed,\ns1,Smith disease,confirmed,\ns3,PKU,false_positive,\n")
    assert "row=2: its sample is not in this run" in lines[0]
    assert "row=3: its disease is not of this run's panel" in lines[1] and "MCAD, PKU" in lines[1]
    assert "row=4: is false_positive of a newborn who was not flagged" in lines[2]
    assert "Smith" not in "".join(lines)


@pytest.mark.parametrize(("text", "why"), [
    ("", "column=sample: is missing"), (HEAD, "has no outcome"), ("sample,disease,disease,outcome\n", "stands twice"),
    (HEAD + 's1,"PKU,confirmed,\n', "is no CSV"), (HEAD + f"s1,PKU,{'x' * 10**6},\n", "is no CSV"),
])  # fmt: skip
def test_what_is_no_table_of_outcomes_is_refused(run: RunDir, text: str, why: str) -> None:
    assert why in refused(text)[0]


def test_files_that_are_none_are_refused(run: RunDir, tmp_path: Path) -> None:
    Path("latin").write_bytes(b"sample,disease,outcome\nM\xfcller,PKU,lost\n")
    for name, why in (("latin", "not UTF-8"), ("gone", "no plain file"), (str(tmp_path), "no plain file")):
        with pytest.raises(DataError, match=why):
            main(["cohort-1", name])


def test_a_run_without_records_is_refused(run: RunDir) -> None:
    screened(run.path.parent / "empty-1", records=[])
    Path("o.csv").write_text(HEAD + "s1,PKU,lost,\n")
    with pytest.raises(PlanError, match="holds no records"):
        main(["empty-1", "o.csv"])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=300) | st.text(max_size=300).map(lambda t: (HEAD + t).encode("utf-8", "replace")))
def test_any_bytes_are_outcomes_or_a_fault_that_names_no_value(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "any.csv"
    path.write_bytes(data)
    try:
        assert all(outcome in ("confirmed", "false_positive", "lost") for outcome, _ in read_outcomes(path).values())
    except (DataError, Faults) as e:
        assert e.code == 4 and all(line.isascii() for line in e.lines)


def test_a_newborn_flagged_for_two_diseases_is_one_newborn(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    both = [record("s1", 2, "refer", PKU=("refer", RULE), MCAD=("refer", RULE))]
    screened(run.path.parent / "cohort-2", records=both)
    Path("o.csv").write_text(HEAD + "s1,PKU,confirmed,\ns1,MCAD,false_positive,\n")
    assert main(["cohort-2", "o.csv", "--json"]) == 0
    total = json.loads(capsys.readouterr().out)["total"]
    assert (total["flagged"], total["flagged_newborns"], total["flagged_rate"][0], total["ppv"][0]) == (2, 1, 1.0, 0.5)

"""What became of a sweep's members, by their folders alone: ranked by validation, told to people, to CI and to the shell."""
# ruff: noqa: E501  (a row of a table is one line)

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import xml.etree.ElementTree as ET
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hpcai import lease, rundir, standings
from hpcai.errors import PlanError
from hpcai.rundir import RunDir
from hpcai.runs import Member, Score, Sweep
from hpcai.standings import Group, Outcome, exit_code, fault_lines, junit, outcomes, ranking, table, write_junit, write_results


def member(
    label: str = "", group: str | None = None, job: str = "train", folder: Path = Path("/runs"), name: str = ""
) -> Member:
    run_id = name or f"tiny-{zlib.crc32(repr((label, job)).encode()):08x}"
    return Member(run_id, str(folder / run_id), label, label.partition(" seed=")[0] if group is None else group, job)


def outcome(label: str = "", auc: float | None = None, state: str = "completed", code: int | None = 0, message: str = "",
            name: str = "auc", job: str = "train", **score: Any) -> Outcome:  # fmt: skip
    told = None if auc is None else Score(name, auc, **{"low": None, "high": None, "n": None, "epoch": 1, **score})
    return Outcome(member(label, job=job), state, code, message, told, 1.5)


def names_in(folder: Path) -> list[str]:
    return sorted(f.name for f in folder.iterdir())


def bad(label: str, state: str, code: int | None, message: str = "") -> Outcome:
    return outcome(label, None, state, code, message)


# --- read from folders


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path / "tiny-12345678")


def live(run: RunDir, code: int | None, message: str = "", at: tuple[float, float] = (100.0, 107.5)) -> None:
    """A life that began and ended; `code` None: it vanished."""
    life = lease.take(run, 1)
    gone = subprocess.Popen(["true"])
    gone.wait()
    who = {**lease.me(), "pid": gone.pid}
    owner = lease.life_dir(run, life) / "owner.json"
    rundir.write_json(owner, {**rundir.read_json(owner), **who})
    records = [
        {"event": "begin", "time": at[0], "rank": 0, **who},
        {"event": "progress", "time": at[1] - 1, "rank": 0, "step": 3},
    ]
    if code is not None:
        records.append({"event": "end", "time": at[1], "rank": 0, "code": code, "message": message})
    rundir.append_lines(lease.life_dir(run, life) / "rank0.jsonl", records)


def validated(run: RunDir, *facts: dict[str, Any]) -> None:
    rundir.append_lines(
        run.metrics, [{"kind": "val", "loss": 0.5, "low": 0.8, "high": 0.95, "n": 24, "best": True, **f} for f in facts]
    )


def of(run: RunDir, why: str | None = None) -> Outcome:
    found = Member(run.path.name, str(run.path), "seed=0", "", "train")
    return outcomes([found], {run.path.name: why} if why else {})[0]


def test_an_outcome_is_read_from_the_runs_own_records(run: RunDir) -> None:
    live(run, 0)
    validated(run, {"auc": 0.7, "epoch": 1}, {"auc": 0.9, "epoch": 2}, {"auc": 0.8, "epoch": 3, "best": False})
    found = of(run)
    assert (found.state, found.code, found.seconds) == ("completed", 0, 7.5)
    assert found.score == Score("auc", 0.9, 0.8, 0.95, 24, 2)


@pytest.mark.parametrize(
    ("code", "state", "told"),
    [(0, "completed", 0), (5, "failed", 5), (143, "stopped", 143), (None, "lost", 5)],
)
def test_each_end_gives_its_state_code_and_message(run: RunDir, code: int | None, state: str, told: int) -> None:
    live(run, code, "the loss is nan.")
    found = of(run)
    assert (found.state, found.code) == (state, told)
    assert ("the loss is nan." if code is not None else "ended without a word") in found.message


def test_seconds_are_those_of_every_life_without_the_pauses(run: RunDir) -> None:
    live(run, 143, at=(100.0, 110.0))
    live(run, None, at=(500.0, 504.0))
    live(run, 0, at=(9000.0, 9001.5))
    assert of(run).seconds == 10.0 + 3.0 + 1.5


def test_a_member_that_never_began_is_new_or_cancelled_with_the_reason(run: RunDir) -> None:
    assert of(run) == Outcome(of(run).member, "new", None, "", None, None)
    found = of(run, why="cancelled: needs tiny-0, which failed.")
    assert (found.state, found.code, found.message, found.seconds) == (
        "cancelled",
        None,
        "cancelled: needs tiny-0, which failed.",
        None,
    )


def test_a_member_that_began_keeps_its_own_end_whatever_it_waits_for(run: RunDir) -> None:
    live(run, 5, "bad data")
    assert of(run, why="cancelled: needs tiny-0").state == "failed"


def test_damaged_records_and_scores_are_told_and_never_raise(run: RunDir) -> None:
    live(run, 0)
    run.metrics.write_text('{"kind": "val", "best": true, "auc": 0.9, "low": "x", "high": NaN, "n": 2.5, "epoch": [1]}\n')
    assert of(run).score == Score("auc", 0.9, None, None, None, None)
    run.metrics.write_text('{"kind": "val", "best": true, "auc": 0.9, "low": 1' + "0" * 400 + "}\n")
    assert of(run).score == Score("auc", 0.9, None, None, None, None)
    (lease.life_dir(run, 1) / "rank0.jsonl").write_text('{"event": "end"\n[]\n')
    found = of(run)
    assert (found.state, found.seconds) == ("unreadable", None) and exit_code([found]) != 0
    assert fault_lines([found])[0].startswith("unreadable") and table([found]) == []


# --- ranking


def test_members_of_one_group_are_ranked_together_by_their_mean() -> None:
    found = [
        outcome("lr=1 seed=0", 0.9),
        outcome("lr=2 seed=0", 0.95),
        outcome("lr=1 seed=1", 0.8),
        outcome("lr=2 seed=1", 0.7),
    ]
    first, second = ranking(found)
    assert first == Group("lr=1", 2, pytest.approx(0.85), pytest.approx(math.sqrt(0.005)), 0.8, 0.9, "auc", 2, 2)
    assert (second.label, second.mean) == ("lr=2", pytest.approx(0.825))


def test_one_seed_has_no_spread() -> None:
    assert ranking([outcome("lr=1", 0.9)]) == [Group("lr=1", 1, 0.9, None, 0.9, 0.9, "auc", 1, 1)]


def test_a_lower_loss_is_better_and_ties_go_by_label() -> None:
    found = [outcome("c", 0.5, name="loss"), outcome("b", 0.1, name="loss"), outcome("a", 0.5, name="loss")]
    assert [g.label for g in ranking(found)] == ["b", "a", "c"]
    assert [g.label for g in ranking([outcome("b", 0.5), outcome("a", 0.5), outcome("c", 0.6)])] == ["c", "a", "b"]


def test_only_completed_trainings_count_and_a_failed_seed_is_told() -> None:
    found = [
        outcome("lr=1 seed=0", 0.9),
        outcome("lr=1 seed=1", 0.1, state="failed", code=5),
        outcome("lr=1 seed=2", 0.1, state="pruned"),
        outcome("lr=1 seed=3", 0.1, state="running", code=None),
        outcome("lr=2 seed=0", 0.99, state="stopped", code=143),
        outcome("lr=3", 1.0, job="evaluate"),
        outcome("lr=1 seed=4"),  # completed, without a validation
    ]
    assert ranking(found) == [Group("lr=1", 1, 0.9, None, 0.9, 0.9, "auc", 2, 5)]
    assert "1 of 5 seeds" in table(found)[0]


def test_an_auc_is_never_averaged_or_compared_with_a_loss() -> None:
    found = [outcome("a seed=0", 0.6), outcome("a seed=1", 9.0, name="loss"), outcome("b", 0.01, name="loss")]
    assert [(g.label, g.name, g.seeds, g.mean, g.completed) for g in ranking(found)] == [
        ("a", "auc", 1, 0.6, 2),
        ("b", "loss", 1, 0.01, 1),
    ]


def test_no_score_of_the_test_split_can_change_the_ranking(tmp_path: Path) -> None:
    members, test_auc = [], [0.99, 0.01]
    for seed, auc in enumerate((0.6, 0.9)):
        run = RunDir(tmp_path / f"tiny-{seed}")
        live(run, 0)
        validated(run, {"auc": auc})
        with run.metrics.open("a") as f:
            f.write(json.dumps({"kind": "test", "auc": test_auc[seed], "best": True}) + "\n")
        rundir.write_json(run.report_json, {"estimates": [{"split": "test", "name": "auc", "value": test_auc[seed]}]})
        members.append(Member(run.path.name, str(run.path), f"model={seed}", f"model={seed}", "train"))
    first = table(outcomes(members))
    assert [g.label for g in ranking(outcomes(members))] == ["model=1", "model=0"]
    for m in members:
        m.dir.report_json.unlink()
    assert table(outcomes(members)) == first


# --- for people


def test_the_table_ranks_says_by_what_and_names_what_went_wrong() -> None:
    found = [
        outcome("trainer.lr=0.001 seed=0", 0.9531),
        outcome("trainer.lr=0.001 seed=1", 0.9491),
        outcome("trainer.lr=0.0001 seed=0", 0.97),
        replace(
            bad("trainer.lr=0.0001 seed=1", "failed", 5, "trainer.step=1: the loss is nan. Lower trainer.lr."), seconds=None
        ),
        bad("trainer.lr=1 seed=0", "cancelled", None, "cancelled: needs tiny-0, which failed."),
        bad("trainer.lr=1 seed=1", "stopped", 143, "stopped after step 7."),
        bad("trainer.lr=2", "new", None),
    ]
    ids = [o.member.run_id for o in found]
    assert table(found) == [
        "ranked by validation AUC; the test split chose nothing",
        "  1. trainer.lr=0.0001  AUC 0.970, 1 of 2 seeds",
        "  2. trainer.lr=0.001   AUC 0.951 sd 0.003 (0.949 to 0.953), 2 seeds",
        "1 of 7 not finished. The same command goes on.",
    ]
    assert fault_lines(found) == [
        f"failed, code 5: {ids[3]} (trainer.lr=0.0001 seed=1): trainer.step=1: the loss is nan. Lower trainer.lr.",
        f"cancelled: {ids[4]} (trainer.lr=1 seed=0): needs tiny-0, which failed.",
        f"stopped, code 143: {ids[5]} (trainer.lr=1 seed=1): stopped after step 7.",
    ]


def test_members_without_seeds_show_their_own_interval_and_run() -> None:
    found = [outcome("a=1", 0.9, low=0.85, high=0.94, n=24), outcome("a=2", 0.8, low=0.7, high=None, n=24)]
    ids = [o.member.run_id for o in found]
    assert table(found)[1:] == [f"  1. a=1  AUC 0.900 [0.850, 0.940] n=24  {ids[0]}", f"  2. a=2  AUC 0.800 n=24  {ids[1]}"]


def test_seeds_alone_are_told_with_their_spread_and_not_ranked() -> None:
    assert table([outcome(f" seed={i}", auc) for i, auc in enumerate((0.9, 0.8))]) == [
        "all seeds  AUC 0.850 sd 0.071 (0.800 to 0.900), 2 seeds"
    ]


def test_where_there_is_nothing_to_rank_each_member_is_a_line() -> None:
    chain = [
        outcome("", 0.91, low=0.8, high=0.97, n=24),
        outcome("", None, job="evaluate"),
        bad("", "failed", 4, "data: gone."),
    ]
    chain[2] = replace(chain[2], member=replace(chain[2].member, job="predict"))
    ids = [o.member.run_id for o in chain]
    assert table(chain) == [
        f"{ids[0]}  train  completed  validation AUC 0.910 [0.800, 0.970] n=24",
        f"{ids[1]}  evaluate  completed",
    ]
    assert fault_lines(chain) == [f"failed, code 4: {ids[2]}: data: gone."]


def test_a_long_ranking_is_cut_and_says_so_and_no_fault_is() -> None:
    found = [outcome(f"a={i:03}", i / 1000) for i in range(300)] + [bad(f"b={i}", "failed", 5, "no") for i in range(50)]
    lines = table(found)
    assert len(lines) == 1 + 20 + 1 and len(fault_lines(found)) == 50 and lines[21] == "     and 280 more in results.json"
    assert lines[1].startswith("  1. a=299")


def test_pruned_trials_are_counted_not_listed() -> None:
    found = [outcome("a=1", 0.9), outcome("a=2", 0.8), *(outcome(f"a={i}", 0.5, state="pruned") for i in range(3, 9))]
    assert table(found)[-1] == "6 pruned: validation fell behind." and len(table(found)) == 4


def test_hostile_labels_and_messages_stay_on_one_line() -> None:
    found = [bad("a=\x1b[31m\nx", "failed", 5, "b\n\x07" + "y" * 5000), bad("", "lost", None), outcome("c=\u202e", None)]
    assert all(line.isprintable() and len(line) <= 500 for line in [*table(found), *fault_lines(found)])
    assert "no reason is on record" in fault_lines(found)[1]


def test_of_no_members_there_is_nothing_to_say() -> None:
    assert table([]) == [] and ranking([]) == [] and exit_code([]) == 0


# --- the exit code


@pytest.mark.parametrize(
    ("states", "code"),
    [
        ([("completed", 0), ("pruned", 0)], 0),
        ([("completed", 0), ("failed", 5), ("failed", 3), ("stopped", 130)], 3),
        ([("stopped", 130), ("lost", 5)], 5),
        ([("stopped", 130), ("stopped", 143), ("new", None)], 143),
        ([("cancelled", None), ("stopped", 143)], 143),
        ([("unreadable", None), ("stopped", 143)], 1),
        ([("failed", None)], 1),
        ([("cancelled", None), ("completed", 0)], 3),
        ([("running", None), ("completed", 0)], 1),
        ([("failed", 0)], 1),
    ],
)
def test_the_exit_code_is_that_of_the_worst(states: list[tuple[str, int | None]], code: int) -> None:
    assert exit_code([bad(f"a={i}", state, told) for i, (state, told) in enumerate(states)]) == code


# --- for programs


def test_results_hold_every_member_and_the_ranking_as_strict_json(tmp_path: Path) -> None:
    found = [outcome("a=1 seed=0", 0.9, low=0.8, high=0.95, n=24), bad("a=1 seed=1", "failed", 5, "größe \udcff \x00")]
    sweep = Sweep("tiny-1", "tiny", tmp_path / "sweeps/tiny-1", [], None, "sweep", [o.member for o in found])
    write_results(sweep, found)

    def refuse(word: str) -> None:
        raise AssertionError(word)

    value = json.loads((sweep.path / "results.json").read_text("utf-8"), parse_constant=refuse)
    assert (value["version"], value["id"]) == (rundir.VERSION, "tiny-1")
    assert value["members"][0] == {
        "run_id": found[0].member.run_id, "run_dir": found[0].member.run_dir, "label": "a=1 seed=0", "group": "a=1", "job": "train",
        "state": "completed", "code": 0, "message": "", "seconds": 1.5,
        "score": {"name": "auc", "value": 0.9, "low": 0.8, "high": 0.95, "n": 24, "epoch": 1},
    }  # fmt: skip
    assert (value["members"][1]["score"], value["members"][1]["message"]) == (None, "größe \udcff \x00")
    assert value["ranking"] == [
        {"label": "a=1", "seeds": 1, "mean": 0.9, "sd": None, "low": 0.9, "high": 0.9, "name": "auc", "completed": 1, "of": 2}
    ]


FOUND = [
    outcome("a=1 seed=0", 0.9, low=0.8, high=0.95, n=24),
    bad("a=1 seed=1", "failed", 5, "trainer.step=1: the loss is nan. Lower trainer.lr."),
    bad("a=1 seed=2", "lost", 5, "ended without a word."),
    bad("a=1 seed=3", "stopped", 143, "stopped after step 7."),
    bad("a=1 seed=4", "cancelled", None, "cancelled: needs tiny-0."),
    bad("a=1 seed=5", "new", None),
    outcome("a=1 seed=6", 0.4, state="pruned"),
]


def test_junit_has_a_test_case_a_member_and_counts_what_went_wrong() -> None:
    root = ET.fromstring(junit("tiny-1", FOUND))
    (suite,) = root
    assert (root.tag, suite.tag) == ("testsuites", "testsuite")
    for element in (root, suite):
        assert element.attrib == {
            "name": "tiny-1",
            "tests": "7",
            "failures": "1",
            "errors": "2",
            "skipped": "2",
            "time": "10.500",
        }
    cases = list(suite)
    assert [c.attrib for c in cases] == [{"classname": "tiny-1", "name": o.name, "time": "1.500"} for o in FOUND]
    assert [[child.tag for child in case] for case in cases] == [
        ["system-out"], ["failure"], ["error"], ["error"], ["skipped"], ["skipped"], ["system-out"],
    ]  # fmt: skip
    failure = cases[1][0]
    assert failure.attrib == {"message": "trainer.step=1: the loss is nan. Lower trainer.lr.", "type": "failed"}
    assert failure.text is not None and FOUND[1].member.run_dir in failure.text and "code 5" in failure.text
    assert cases[0][0].text == "validation AUC 0.900 [0.800, 0.950] n=24"
    assert cases[4][0].attrib == {"message": "needs tiny-0."}


def test_junit_names_are_two_where_two_members_have_one_label() -> None:
    two = [outcome("a=1", 0.9), outcome("a=1", None, job="evaluate"), outcome("", None, job="predict")]
    names = [case.attrib["name"] for case in ET.fromstring(junit("x", two)).iter("testcase")]
    assert names == [f"a=1 ({two[0].member.run_id})", f"a=1 ({two[1].member.run_id})", two[2].member.run_id]


def test_junit_stays_xml_whatever_a_message_holds() -> None:
    hostile = "".join(map(chr, range(0x20))) + "]]><&\"'\x7f\x85\u2028\ud800\udcff\ufffe\uffff\U0001f600 größe <!ENTITY x 'y'>"
    found = [bad(f"a='{hostile}'", "failed", 5, hostile), bad("b", "new", None)]
    (case, _) = ET.fromstring(junit(hostile, found)).iter("testcase")
    assert "]]><&\"'" in case[0].attrib["message"] and "größe" in (case[0].text or "")


def test_junit_is_written_whole_and_over_an_old_one(tmp_path: Path) -> None:
    for name in ("junit.xml", "new/folder/größe junit.xml"):
        for found in (FOUND, FOUND[:1]):
            write_junit(tmp_path / name, "tiny-1", found)
            assert ET.parse(tmp_path / name).getroot().attrib["tests"] == str(len(found))
    assert names_in(tmp_path) == ["junit.xml", "new"] and names_in(tmp_path / "new/folder") == ["größe junit.xml"]


def test_junit_follows_a_link_and_leaves_it_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link.xml").symlink_to("real/junit.xml")
    write_junit(tmp_path / "link.xml", "tiny-1", FOUND)
    assert (tmp_path / "link.xml").is_symlink() and (tmp_path / "real/junit.xml").is_file()


@pytest.mark.parametrize("name", ["folder", "file/x.xml", "a\0b", "x" * 300, "pipe", "circle", "device"])
def test_a_junit_file_that_cannot_be_written_is_told_and_nothing_is_harmed(name: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("mine")
    (tmp_path / "circle").symlink_to("circle")
    (tmp_path / "device").symlink_to("pipe")
    os.mkfifo(tmp_path / "pipe")
    before = names_in(tmp_path)
    with pytest.raises(PlanError) as caught:
        write_junit(tmp_path / name, "tiny-1", FOUND)
    (line,) = caught.value.lines
    assert line.startswith("--junit=") and "Name" in line and line.isprintable()
    assert names_in(tmp_path) == before and (tmp_path / "file").read_text() == "mine"
    assert (tmp_path / "pipe").is_fifo() and (tmp_path / "device").is_symlink()


def test_standings_start_without_the_heavy_world() -> None:
    program = "import sys; from hpcai import standings, board; print([m for m in ('numpy', 'torch', 'hydra', 'pydantic', 'rich') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    assert standings.FINE == ("completed", "pruned")


def test_folds_of_one_cross_validation_are_no_rivals() -> None:
    labels = [f"data.split.fold={i}" for i in range(2)]
    found = [replace(outcome(label, auc), member=member(label, "")) for label, auc in zip(labels, (0.9, 0.8))]
    assert table(found) == ["all runs  AUC 0.850 sd 0.071 (0.800 to 0.900), 2 runs"]

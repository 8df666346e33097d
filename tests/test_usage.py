"""`hpcai usage`: whose hours were used, which of them led to something, by nothing but what the records prove."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import Launcher
from run_folders import GONE, make_run, make_sweep

from hpcai import lease, rundir, usage
from hpcai.cli import main
from hpcai.errors import ConfigError
from hpcai.rundir import RunDir

HOUR = 3600.0
T0 = 1_760_000_000.0  # long ago, to the second


def made(folder: Path, *, job: str = "train", nodes: int = 1, **plan: Any) -> RunDir:
    """A run that nobody has started, with more in its plan."""
    run = make_run(folder, "new", job=job)
    value = rundir.read_json(run.plan)
    value["resources"] |= {"nodes": nodes, "timeout_min": 120}
    rundir.write_json(run.plan, value | plan)
    return run


def lived(
    run: RunDir,
    begin: float,
    *saved: tuple[float, int],
    end: float | None = None,
    code: int = 0,
    warning: str = "",
    ranks: int = 1,
) -> int:
    """One more life, times in hours after T0: `saved` are (when, step); without `end` it ended without a word. Its number."""
    life = lease.last_life(run) + 1
    rundir.write_json(
        lease.life_dir(run, life) / "owner.json", {**GONE, "host": "n1", "ranks": ranks, "time": T0 + begin * HOUR}
    )
    records: list[dict[str, Any]] = [{"event": "begin", "time": T0 + begin * HOUR, **GONE, "host": "n1"}]
    records += [{"event": "warning", "time": T0 + begin * HOUR, "message": warning}] * bool(warning)
    records += [{"event": "progress", "time": T0 + when * HOUR, "step": step} for when, step in saved]
    if end is not None:
        records += [{"event": "end", "time": T0 + end * HOUR, "code": code, "message": ""}]
    for rank in range(ranks):
        file = lease.life_dir(run, life) / f"rank{rank}.jsonl"
        rundir.append_lines(file, [{**record, "rank": rank} for record in records])
        os.utime(file, (records[-1]["time"],) * 2)
    (lease.life_dir(run, life) / "beat").touch()
    os.utime(lease.life_dir(run, life) / "beat", (records[-1]["time"],) * 2)
    return life


def beat_at(run: RunDir, life: int, when: float) -> None:
    """Its last beat."""
    os.utime(lease.life_dir(run, life) / "beat", (T0 + when * HOUR,) * 2)


def of(run: RunDir) -> tuple[float, float, float]:
    """Hours that a run used, those that were useful, those that are kept."""
    use = usage.read_use(run, time.time())
    total = usage.Sum()
    total.add(use, 0.0)
    return tuple(round(x / HOUR, 4) for x in (total.node, total.useful, total.kept))  # type: ignore[return-value]


# --- useful and lost


def test_a_run_that_completed_in_one_start_was_all_useful(tmp_path: Path) -> None:
    run = made(tmp_path / "a-1")
    lived(run, 0, (0.5, 10), (0.9, 20), end=1)
    assert of(run) == (1, 1, 0)


def test_what_a_killed_start_did_after_its_last_checkpoint_is_lost(tmp_path: Path) -> None:
    run = made(tmp_path / "a-1")
    beat_at(run, lived(run, 0, (0.25, 10), (0.5, 20)), 0.75)
    lived(run, 2, (3, 40), end=3)
    assert of(run) == (1.75, 1.5, 0)


def test_what_was_done_before_the_first_checkpoint_is_lost_though_the_run_completed(tmp_path: Path) -> None:
    run = made(tmp_path / "a-1")
    beat_at(run, lived(run, 0), 0.75)
    lived(run, 2, (3, 40), end=3)
    assert of(run) == (1.75, 1, 0)


@pytest.mark.parametrize("code", [143, 5, None])
def test_a_start_without_a_successor_is_lost_and_its_checkpoint_is_kept(tmp_path: Path, code: int | None) -> None:
    run = made(tmp_path / "a-1")
    lived(run, 0, (0.5, 20), end=None if code is None else 1, code=code or 0)
    assert of(run) == (0.5 if code is None else 1, 0, 0.5)


def test_a_start_that_brought_no_new_step_proves_nothing_for_the_one_before(tmp_path: Path) -> None:
    run = made(tmp_path / "a-1")
    lived(run, 0, (0.5, 20), end=1, code=5)
    lived(run, 2, end=2.5, code=5)
    assert of(run) == (1.5, 0, 0.5)
    lived(run, 3, (3.5, 30), end=4, code=5)  # a step beyond 20: it went on
    assert of(run) == (2.5, 0.5, 0.5)


def test_steps_that_a_damaged_checkpoint_held_are_done_twice(tmp_path: Path) -> None:
    run = made(tmp_path / "a-1")
    lived(run, 0, (0.25, 10), (0.5, 20), end=0.5, code=143)
    lived(run, 2, (3, 40), end=3, warning="checkpoint=step-00000020: is damaged and set aside; the one before it is used.")
    assert of(run) == (1.5, 1.25, 0)


@pytest.mark.parametrize(("job", "useful"), [("predict", 1.75), ("evaluate", 1), ("gather", 1)])
def test_predict_keeps_every_case_and_other_jobs_nothing(tmp_path: Path, job: str, useful: float) -> None:
    run = made(tmp_path / "a-1", job=job)
    beat_at(run, lived(run, 0), 0.75)
    assert of(run) == (0.75, 0, 0.75 if job == "predict" else 0)
    lived(run, 2, (3, 600), end=3)
    assert of(run) == (1.75, useful, 0)


def test_a_start_that_runs_still_is_useful_so_far_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "a-1", "running")
    lease.append(run, 1, 0, "progress", step=10)
    use = usage.read_use(run, time.time())
    assert use.state == "running" and use.lives[0].useful == use.lives[0].ended
    assert main(["usage", "--runs-dir", str(tmp_path)]) == 0
    assert "of what is useful <0.01 node-h are those of starts that still run." in capsys.readouterr().out


def test_what_was_refused_or_waits_has_used_no_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path / "new-1", "new")
    make_run(tmp_path / "pending-1", "pending")
    refused = make_run(tmp_path / "refused-1", "pending")
    lease.append(refused, 1, 0, "end", code=3, message="refused")
    assert main(["usage", "--runs-dir", str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith("no run has used time in ")


# --- the clock


def test_a_life_without_a_last_word_ends_with_its_last_beat(tmp_path: Path) -> None:
    run = made(tmp_path / "a-1")
    beat_at(run, lived(run, 0, (0.5, 20)), 2)
    assert of(run) == (2, 0, 0.5)


def test_a_beat_counts_no_longer_than_to_the_next_life(tmp_path: Path) -> None:
    run = made(tmp_path / "a-1")
    beat_at(run, lived(run, 0, (0.5, 20)), 30)
    lived(run, 1, (2, 40), end=2)
    assert of(run) == (2, 1.5, 0)


def test_of_a_copied_folder_whose_files_have_new_times_records_alone_count(tmp_path: Path) -> None:
    run = made(tmp_path / "a-1")
    life = lived(run, 0, (0.5, 20))
    for name in ("beat", "rank0.jsonl"):
        os.utime(lease.life_dir(run, life) / name, (time.time() - HOUR,) * 2)  # later it would seem to live
    assert of(run) == (0.5, 0, 0.5)


def test_times_are_counted_from_since_on(tmp_path: Path) -> None:
    run = made(tmp_path / "a-1")
    lived(run, 0, (0.5, 20), end=1, code=143)
    lived(run, 2, (3, 40), end=3)
    uses, _ = usage.gathered(tmp_path, time.time())
    for since, used, useful, lives in ((0.25, 1.75, 1.25, 2), (0.75, 1.25, 1, 2), (1.5, 1, 1, 1), (2.5, 0.5, 0.5, 1)):
        (total,) = usage.sums(uses, T0 + since * HOUR).values()
        assert (total.node / HOUR, total.useful / HOUR, total.lives) == (used, useful, lives)
    assert usage.sums(uses, T0 + 3 * HOUR) == {}


@pytest.mark.parametrize(("text", "before"), [("12h", 12 * HOUR), ("7d", 7 * 24 * HOUR), ("2w", 14 * 24 * HOUR)])
def test_since_is_so_long_ago(text: str, before: float) -> None:
    assert usage.moment(text, T0) == T0 - before


def test_since_is_a_day_or_a_moment_of_this_clock() -> None:
    assert usage.moment("2026-11-01", T0) == time.mktime((2026, 11, 1, 0, 0, 0, 0, 0, -1))
    assert usage.moment("2026-11-01T12:00:00+00:00", T0) == 1793534400.0


@pytest.mark.parametrize(
    "text", ["", "yesterday", "7", "-7d", "7days", "٧d", "2026-13-01", "99999999999999d", "nan", "\x1b[31m"]
)
def test_what_is_no_time_is_one_line_and_exit_2(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError):
        usage.moment(text, T0)
    assert main(["usage", f"--since={text}"]) == 2
    err = capsys.readouterr().err
    assert err.endswith("is no time. Write 12h, 7d, 4w or 2026-11-01.\n") and err.count("\n") == 1 and "\x1b" not in err


# --- who, and what it costs


def test_hours_are_summed_by_account_and_experiment(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    slurm = {"account": "p1", "price": {"amount": 4.0, "unit": "node-hours", "words": ""}}
    for name, more in (
        ("x-11111111", {"nodes": 2, "threads": 8, "cluster": "meluxina", "slurm": slurm}),
        ("x-11111111.2", {"nodes": 2, "threads": 8, "cluster": "meluxina", "slurm": slurm}),
        ("a-b-22222222", {"cluster": "meluxina", "slurm": slurm | {"price": None}}),
        ("x-33333333", {"cluster": "lumi", "slurm": {"account": None}}),
        ("x-44444444", {"cluster": "local", "slurm": None}),
    ):
        lived(made(tmp_path / name, **more), 0, end=1.25)  # type: ignore[arg-type]
    lived(made(tmp_path / "x-55555555", cluster="local"), 0, end=0.25, code=5)
    assert main(["usage", "--runs-dir", str(tmp_path)]) == 0
    lines = [line.split("  ") for line in capsys.readouterr().out.splitlines()]
    told = {tuple(cell.strip() for cell in line if cell.strip()) for line in lines[1:]}
    assert told == {
        ("lumi", "x", "1", "1", "1.25 node-h", "1.25 node-h", "0.00 node-h (0%)", "1.25"),
        ("p1 on meluxina", "a-b", "1", "1", "1.25 node-h", "1.25 node-h", "0.00 node-h (0%)", "1.25"),
        ("p1 on meluxina", "x", "2", "2", "5.00 node-h", "5.00 node-h", "0.00 node-h (0%)", "40.00", "5.00 node-hours"),
        ("p1 on meluxina", "(all)", "3", "3", "6.25 node-h", "6.25 node-h", "0.00 node-h (0%)", "41.25", "5.00 node-hours"),
        ("local (this machine)", "x", "2", "2", "1.50 node-h", "1.25 node-h", "0.25 node-h (17%)", "1.50"),
        ("(all)", "6", "6", "9.00 node-h", "8.75 node-h", "0.25 node-h (3%)", "44.00", "5.00 node-hours"),
    }


def test_a_member_that_shared_a_node_has_used_its_part_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    slurm = {"account": "p1", "per_node": 4, "price": {"amount": 4.0, "unit": "node-hours", "words": ""}}
    for i in range(4):
        lived(made(tmp_path / f"x-{i}", cluster="meluxina", slurm=slurm), 0, end=1.0)
    assert main(["usage", "--runs-dir", str(tmp_path)]) == 0
    assert "1.00 node-h  1.00 node-h" in (out := capsys.readouterr().out) and "2.00 node-hours" in out


def test_json_has_every_run_and_every_life_and_sums_that_agree(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = made(tmp_path / "a-1", nodes=2, threads=3)
    beat_at(run, lived(run, 0, (0.25, 10), (0.5, 20), ranks=2), 0.75)
    lived(run, 2, (3, 40), end=3, ranks=2)
    make_sweep(tmp_path, [run])
    assert main(["usage", "--runs-dir", str(tmp_path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    (of_run,) = told["runs"]
    assert [(x["life"], x["seconds"], x["useful_s"]) for x in of_run["lives"]] == [(1, 2700, 1800), (2, 3600, 3600)]
    assert (of_run["run_id"], of_run["nodes"], of_run["cores"], of_run["state"]) == ("a-1", 2, 6, "completed")
    for sums in (of_run, told["total"], *told["groups"]):
        assert (sums["node_h"], sums["useful_node_h"], sums["lost_node_h"], sums["core_h"]) == (3.5, 3.0, 0.5, 10.5)


def test_what_lies_in_checkpoints_is_told_with_the_way_to_use_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lived(made(tmp_path / "a-1"), 0, (0.5, 20), end=1, code=143)
    assert main(["usage", "--runs-dir", str(tmp_path)]) == 0
    assert "of what is lost 0.50 node-h lie in checkpoints: hpcai resume goes on from them." in capsys.readouterr().out


# --- what is damaged


@pytest.mark.parametrize("line", [
    '{"event": "begin", "time": NaN, "rank": 0}', '{"event": "begin", "time": "now", "rank": 0}', '{"event": "begin"}', "[]",
    '{"event": "begin", "time": -5, "rank": 0}', '{"event": "begin", "time": 1e300, "rank": 0}', "\x00", "{" * 5000, "7",
    '{"event": "progress", "time": 1760000000, "rank": 0, "step": {}}',
])  # fmt: skip
def test_a_run_whose_records_are_damaged_is_left_out_and_counted(
    tmp_path: Path, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    lived(made(tmp_path / "good-1"), 0, end=1)
    bad = made(tmp_path / "bad-1")
    lived(bad, 0, end=1)
    with (lease.life_dir(bad, 1) / "rank0.jsonl").open("a") as f:
        f.write(f"{line}\n")
    assert main(["usage", "--runs-dir", str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 2 and " good " in out
    assert err == "note: 1 not counted, their records are damaged: bad-1. hpcai status says more.\n"


@pytest.mark.parametrize("change", [
    {"resources": {"nodes": 0, "tasks_per_node": 1}}, {"resources": None}, {"resources": {"nodes": "x", "tasks_per_node": 1}},
    {"resources": {"nodes": 1, "tasks_per_node": 1, "timeout_min": 0}, "slurm": {"price": {"amount": 1, "unit": "h"}}},
    {"resources": {"nodes": 1, "tasks_per_node": 1, "timeout_min": 1}, "slurm": {"price": {"amount": math.inf, "unit": "h"}}},
    {"slurm": [1]}, {"threads": "many"},
])  # fmt: skip
def test_a_plan_that_cannot_be_is_left_out_too(
    tmp_path: Path, change: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    run = made(tmp_path / "bad-1")
    lived(run, 0, end=1)
    run.plan.write_text(json.dumps(rundir.read_json(run.plan) | change))
    assert main(["usage", "--runs-dir", str(tmp_path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["runs"], told["skipped"]) == ([], ["bad-1"])


def test_names_are_refused_and_no_folder_is_no_fault(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["usage", "smoke"]) == 2
    assert capsys.readouterr().err == "hpcai usage: smoke: takes no name. --runs-dir DIR names the runs' folder.\n"
    assert main(["usage", "--runs-dir", str(tmp_path / "none"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["groups"] == []


# --- a real one


@pytest.mark.fault
def test_a_run_that_was_killed_and_went_on_has_lost_what_it_did_after_its_last_step(launch: Launcher) -> None:
    def told() -> Sequence[usage.Use]:
        uses, skipped = usage.gathered(launch.runs, time.time())
        assert skipped == []
        return uses

    launch.job = {"fail": "kill", "at": 4}
    assert launch("trainer.max_steps=6").rc == 5
    (use,) = told()
    assert (use.state, use.lives[0].useful) == ("lost", 0.0) and use.lives[0].began < use.lives[0].kept
    launch.job = {}
    assert launch("trainer.max_steps=6").rc == 0
    (use,) = told()
    first, second = use.lives
    assert first.began < first.useful == first.saved[3] <= first.ended < second.began
    assert use.state == "completed" and second.useful == second.ended and min(second.saved) == 4

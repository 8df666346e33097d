"""From the records of a try to what the whole run will take, and to the line that a later plan quotes."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from hpcai import cluster, lease, proposal, rundir
from hpcai.config.check import load
from hpcai.config.schema import Config
from hpcai.errors import RunError
from hpcai.meter import GIB, Use
from hpcai.plan import JobPlan, outline
from hpcai.proposal import Pace, Proposal, find, keep, limit_of, pace_of, propose, quote, tell
from hpcai.rundir import RunDir

BEGIN = 1_767_000_000.0
PACE = Pace(start=30.0, step=2.0, validation=5.0, checkpoint=1.0, end=20.0)
CASES = 640


def whole(*words: str) -> Config:
    """A run of ten epochs of ten steps."""
    return load(["+experiment=smoke", "trainer.max_steps=null", "trainer.epochs=10", "trainer.batch_size=64", *words])


def tried(folder: Path, pace: Pace = PACE, steps: int = 20, epoch: int = 10, cases: int = CASES) -> RunDir:
    """A finished try: its records, as a training leaves them that goes at this pace."""
    run = RunDir(folder)
    rundir.write_json(run.split, {"counts": {"train": cases, "val": 100, "test": 100}})
    now, lines, told = BEGIN + pace.start - pace.step, [], [{"event": "begin", "time": BEGIN, "rank": 0}]
    for step in range(1, steps + 1):
        now += pace.step
        lines.append({"kind": "train", "step": step, "time": now})
        if step % epoch == 0 or step == steps:
            now += pace.validation
            lines.append({"kind": "val", "step": step, "time": now})
            now += pace.checkpoint
            told.append({"event": "progress", "step": step, "time": now, "rank": 0})
    told += [{"event": "progress", "step": steps, "time": now + pace.end / 2, "rank": 0}]
    told += [{"event": "end", "code": 0, "time": now + pace.end, "rank": 0}]
    rundir.append_lines(run.metrics, lines)
    rundir.write_json(run.lives / "0001" / "owner.json", {**lease.me(), "ranks": 1, "time": BEGIN})
    rundir.append_lines(run.lives / "0001" / "rank0.jsonl", told)
    for rank in range(2):
        rundir.write_json(run.use_file(rank), asdict(Use(rank, 0, seconds=90.0, cpu_s=90.0, mem=3 * GIB)))
    return run


@pytest.mark.parametrize("epoch", [10, 7, 20, 30])
def test_the_pace_is_read_off_the_records_wherever_epochs_end(tmp_path: Path, epoch: int) -> None:
    assert asdict(pace_of(tried(tmp_path, epoch=epoch))) == pytest.approx(asdict(PACE))


def test_a_run_of_one_step_has_a_pace(tmp_path: Path) -> None:
    assert pace_of(tried(tmp_path, steps=1)).step == 0


def test_time_is_start_steps_validations_checkpoints_and_the_end(tmp_path: Path) -> None:
    found = propose(whole("trainer.checkpoint_every=25", "trainer.checkpoint_every_min=2"), tried(tmp_path))
    without_saves = 30 + 100 * 2 + 10 * 5 + 20
    saves = 10 + 100 // 25 + without_saves // 120
    assert (found.steps, found.validations, found.tried_steps) == (100, 10, 20)
    assert found.seconds == pytest.approx(without_saves + saves * 1, abs=0.11)
    assert (found.timeout_min, found.time) == (10, pytest.approx(BEGIN + 30 - 2 + 40 + 10 + 2 + 20))


@pytest.mark.parametrize(("words", "steps", "validations"), [
    (["trainer.max_steps=35"], 35, 4),
    (["trainer.validate_every=3"], 100, 4),
    (["trainer.batch_size=60"], 110, 10),
    (["trainer.epochs=1", "trainer.batch_size=1000"], 1, 1),
])  # fmt: skip
def test_steps_and_validations_are_those_that_the_loop_will_do(
    tmp_path: Path, words: list[str], steps: int, validations: int
) -> None:
    found = propose(whole(*words), tried(tmp_path))
    assert (found.steps, found.validations) == (steps, validations)


def test_memory_is_what_the_ranks_of_a_node_took_and_a_quarter_more(tmp_path: Path) -> None:
    run = tried(tmp_path)
    found = propose(whole(), run)
    assert (found.mem_gb, found.ask_gb, found.words) == (6.0, 8, "resources.timeout_min=10 resources.mem_gb=8")
    for file in run.use_files():
        file.unlink()
    assert propose(whole(), run).words == "resources.timeout_min=10"


@pytest.mark.parametrize(("minutes", "limit"), [
    (0, 10), (6, 10), (7, 20), (34, 60), (40, 60), (41, 90), (900, 1350), (960, 1440), (961, 1500), (10_000, 15_000),
])  # fmt: skip
def test_the_limit_is_half_as_much_again_rounded_up(minutes: int, limit: int) -> None:
    assert limit_of(60 * minutes) == limit >= 1.5 * minutes


def test_the_price_is_the_site_s_for_the_expected_time_and_for_the_limit(tmp_path: Path) -> None:
    config = whole("cluster=meluxina", "cluster.account=p200000", "resources.nodes=2", "resources.gpus_per_node=4",
                   "resources.tasks_per_node=4")  # fmt: skip
    found = propose(config, tried(tmp_path, replace(PACE, step=60.0)))
    assert found.price and found.timeout_min == 180 and found.price["at_most"] == 6.0
    assert found.price["expected"] == pytest.approx(2 * found.seconds / 3600, abs=0.01)
    assert list(tell(RunDir(tmp_path), found))[-1] == "price    about 3.5 node-h, at most 6.0 node-h (2 gpu nodes x 3 h)"
    assert propose(whole(), tried(tmp_path / "local")).price is None


@pytest.mark.parametrize("lines", [[], [1], [20]])
def test_a_try_that_was_interrupted_before_two_steps_in_a_row_says_so(tmp_path: Path, lines: list[int]) -> None:
    run = tried(tmp_path)
    rundir.append_lines(run.lives / "0002" / "rank0.jsonl", [{"event": "begin", "time": BEGIN + 1000, "rank": 0}])
    rundir.append_lines(run.metrics, [{"kind": "train", "step": s, "time": BEGIN + 1000 + s} for s in lines])
    with pytest.raises(RunError, match=r"hpcai try --anew measures again"):
        pace_of(run)


# --- what a later plan quotes


def planned(folder: Path, *words: str) -> tuple[JobPlan, Config]:
    config = whole(f"runs_dir={folder}", "name=wrist", *words)
    return outline(config, cluster.read_machine()), config


def kept(folder: Path, config: Config, identity: str, name: str = "try-wrist-1a2b3c4d", **changed: Any) -> Proposal:
    run = tried(folder / name)
    found = replace(propose(config, run), **changed)
    keep(run, identity, found)
    return found


def test_a_plan_of_the_same_run_quotes_the_newest_try(tmp_path: Path) -> None:
    plan, config = planned(tmp_path)
    assert find(plan) is None
    kept(tmp_path, config, plan.identity, time=BEGIN - 1, timeout_min=30)
    newest = kept(tmp_path, config, plan.identity, "try-wrist-1a2b3c4d.2", seconds=34 * 60.0, timeout_min=60)
    found = find(plan)
    assert found == newest and isinstance(found.pace, Pace)
    assert quote(found) == "tried 2025-12-29: 34 min, 6.0 GB: resources.timeout_min=60 resources.mem_gb=8 would do"


def test_time_and_memory_that_are_asked_for_do_not_make_another_run(tmp_path: Path) -> None:
    plan, config = planned(tmp_path)
    found = kept(tmp_path, config, plan.identity)
    assert find(planned(tmp_path, "resources.timeout_min=7", "resources.mem_gb=3")[0]) == found


@pytest.mark.parametrize("word", [
    "trainer.lr=0.5", "trainer.epochs=11", "resources.tasks_per_node=2", "resources.cpus_per_task=1", "cluster=testbed",
    "name=wrists",
])  # fmt: skip
def test_another_run_machine_or_number_of_ranks_is_not_quoted(tmp_path: Path, word: str) -> None:
    plan, config = planned(tmp_path)
    kept(tmp_path, config, plan.identity)
    assert find(planned(tmp_path, word)[0]) is None


def test_a_try_serves_each_run_that_begins_so(tmp_path: Path) -> None:
    for epochs in (10, 20):
        plan, config = planned(tmp_path, f"trainer.epochs={epochs}")
        run = RunDir(tmp_path / "try-wrist-1a2b3c4d")
        keep(run if run.path.exists() else tried(run.path), plan.identity, propose(config, run))
    for epochs in (10, 20):
        found = find(planned(tmp_path, f"trainer.epochs={epochs}")[0])
        assert found and found.steps == 10 * epochs


@pytest.mark.parametrize("text", ["", "[]", "{}", "[" * 100_000, '{"ID": null}', '{"ID": []}', '{"ID": {"time": 1}}', "ALMOST"])
def test_a_damaged_proposal_is_not_quoted_and_stops_no_plan(tmp_path: Path, text: str) -> None:
    plan, config = planned(tmp_path)
    kept(tmp_path, config, plan.identity, time="x" if text == "ALMOST" else 1.0)
    if text != "ALMOST":
        (tmp_path / "try-wrist-1a2b3c4d" / "proposal.json").write_text(text.replace("ID", plan.identity))
    assert find(plan) is None


def test_the_try_of_a_long_name_is_a_name(tmp_path: Path) -> None:
    assert len(proposal.name_of_try("x" * 64)) == 64 and proposal.name_of_try("wrist") == "try-wrist"

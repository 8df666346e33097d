"""Many runs of one command on a real Slurm, with a job that only counts: they share nodes, and none is lost or done twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import Done, Launcher, until
from slurm_kit import LONG, TERM, empty, manner, once, queue, step, verb

from hpcai import lease
from hpcai.rundir import RunDir, read_json, read_lines

pytestmark = [pytest.mark.slurm, pytest.mark.slow]
GPU = ("resources.gpus_per_node=1",)
CORE = ("resources.cpus_per_task=1",)


def send(bench: Launcher, *words: str, many: bool = True) -> RunDir:
    """A sweep, submitted; its folder."""
    done = command(bench, *words, many=many)
    assert done.rc == 0 and "submitted: job " in done.out, done
    return bench.sweep_dir()


def command(bench: Launcher, *words: str, many: bool = True) -> Done:
    """The command itself."""
    asked = bench.words("cluster=testbed", "resources.timeout_min=5", *words)
    return bench(*["-m"] * many, *asked, bare=True)


def ended(bench: Launcher, sweep: RunDir, code: int = 0, timeout: float = 180.0) -> dict[str, Any]:
    """Waits for it with `hpcai wait`; its results by label."""
    done = verb(bench, "wait", str(sweep.path), timeout=timeout)
    assert done.rc == code, (done, told(sweep))
    return {m["label"] or m["job"]: m for m in read_json(sweep.path / "results.json")["members"]}


def told(sweep: RunDir) -> str:
    """What its jobs said, for whoever looks into a failure."""
    return "\n".join(f.read_text() for f in sorted(sweep.submitit.glob("*_batch.log")))


def audit(run: RunDir) -> list[dict[str, Any]]:
    """Each step that was done, by whom and when."""
    return list(read_lines(run.path / "audit"))


def spans(bench: Launcher) -> dict[str, tuple[float, float, str, str]]:
    """Of each member: its first and last moment, GPU and node."""
    notes = {label: audit(run) for label, run in bench.members().items()}
    return {label: (n[0]["time"], n[-1]["time"], n[0]["gpu"], n[0]["node"]) for label, n in notes.items()}


def jobs(sweep: RunDir) -> list[str]:
    """Those that have begun."""
    return sorted(f.name for f in lease.life_dir(sweep, lease.last_life(sweep)).glob("jobs/*"))


def all_at(bench: Launcher, least: int, count: int) -> None:
    """Returns when so many members have come so far."""
    until(lambda: sum(step(run) >= least for run in bench.members().values()) >= count, timeout=120)


def packs(sweep: RunDir) -> list[psutil.Process]:
    """The processes that start its members."""
    lines = [(p, p.info["cmdline"] or []) for p in psutil.process_iter(["cmdline"])]
    return [p for p, line in lines if "hpcai.pack" in line and str(sweep.path) in line]


# --- sharing nodes


def test_members_share_a_node_each_with_a_gpu_a_log_and_an_end_of_its_own(bench: Launcher) -> None:
    manner(bench, step_s=1.0)
    sweep = send(bench, *GPU, "trainer.max_steps=6", "seed=0,1,2,3,4,5")
    found = ended(bench, sweep)
    assert {m["state"] for m in found.values()} == {"completed"} and len(jobs(sweep)) <= 2
    together = 0
    for a, b in combinations(spans(bench).values(), 2):
        if a[3] == b[3] and max(a[0], b[0]) < min(a[1], b[1]):
            together += 1
            assert a[2] != b[2], "two at once on one GPU"
    assert together >= 3, spans(bench)
    for run in bench.members().values():
        once(run, 6)
        assert lease.read_owner(run, 1)["job"] in jobs(sweep) and run.report_html.is_file()
        (out,) = run.submitit.glob("*_0_log.out")
        assert out.read_text().startswith("counting from 0")
    again = command(bench, *GPU, "trainer.max_steps=6", "seed=0,1,2,3,4,5")
    assert again.rc == 0 and "submitted" not in again.out


def test_a_member_that_ends_makes_room_for_the_next_and_one_job_does_them_all(bench: Launcher) -> None:
    sweep = send(bench, *CORE, "sweep.per_node=2", "sweep.array_parallelism=1", "seed=0,1,2,3,4")
    ended(bench, sweep)
    assert len(jobs(sweep)) == 1
    for run in bench.members().values():
        once(run)


def test_beyond_the_submit_limit_members_are_done_by_the_jobs_that_there_are(bench: Launcher) -> None:
    words = (*CORE, "sweep.per_node=1", "cluster.facts.max_submit=2", "cluster.facts.max_array=1", "seed=0,1,2,3,4")
    done = command(bench, *words)
    assert "5 runs in 2 jobs; the limit of submitted jobs holds back 3 more" in done.out and done.rc == 0
    sweep = bench.sweep_dir()
    assert len(read_json(lease.life_dir(sweep, 1) / "owner.json")["chain"]) == 2  # two arrays of one
    ended(bench, sweep)
    for run in bench.members().values():
        once(run)


# --- what ends badly


def test_one_that_fails_stops_no_other_and_is_the_code_of_the_sweep(bench: Launcher) -> None:
    manner(bench, fail="run", seed=1)
    sweep = send(bench, *CORE, "seed=0,1,2")
    found = ended(bench, sweep, code=5)
    assert {label: m["state"] for label, m in found.items()} == {
        "seed=0": "completed",
        "seed=1": "failed",
        "seed=2": "completed",
    }
    named = verb(bench, "wait", *[str(run.path) for run in bench.members().values()])
    assert named.rc == 5
    manner(bench)
    send(bench, *CORE, "seed=0,1,2")  # the same command does what is missing, no more
    ended(bench, sweep)
    assert {label: lease.last_life(run) for label, run in bench.members().items()} == {"seed=0": 1, "seed=1": 2, "seed=2": 1}


def test_a_rank_that_is_killed_comes_back_beside_the_others(bench: Launcher) -> None:
    sweep = send(bench, *CORE, "trainer.max_steps=200", "seed=0,1")
    all_at(bench, 3, 2)
    (rank,) = bench.ranks(bench.members()["seed=0"])
    rank.kill()
    ended(bench, sweep)
    for run in bench.members().values():
        once(run, 200)
    assert lease.last_life(bench.members()["seed=0"]) == 2 and lease.last_life(bench.members()["seed=1"]) == 1


def test_one_that_dies_at_the_same_step_is_given_up_with_its_reason(bench: Launcher) -> None:
    manner(bench, fail="kill", seed=1)
    sweep = send(bench, *CORE, "seed=0,1")
    found = ended(bench, sweep, code=5)
    assert found["seed=1"]["state"] == "failed" and "3 starts without a new step" in found["seed=1"]["message"]
    assert found["seed=0"]["state"] == "completed"


def test_members_whose_time_ends_go_on_in_the_next_start_of_their_job(bench: Launcher, slurm: Any) -> None:
    sweep = send(bench, *CORE, "trainer.max_steps=300", "seed=0,1")
    all_at(bench, 3, 2)
    (job,) = jobs(sweep)
    assert slurm("scancel", "--signal=USR2", job).returncode == 0
    ended(bench, sweep)
    assert slurm.job(job)["Restarts"] == "1"
    for run in bench.members().values():
        once(run, 300)
        assert lease.last_life(run) == 2


@pytest.mark.parametrize("alive", [False, True])
def test_a_node_that_dies_takes_no_member_with_it(bench: Launcher, slurm: Any, alive: bool) -> None:
    manner(bench, step_s=0.1)
    sweep = send(bench, *CORE, LONG, "seed=0,1")
    all_at(bench, 3, 2)
    node = audit(bench.members()["seed=0"])[0]["node"]
    slurm.node_dies(node, processes_live=alive)
    try:
        until(lambda: all(lease.last_life(run) == 2 for run in bench.members().values()), timeout=150)
        before = max(step(run) for run in bench.members().values())
        all_at(bench, before + 5, 2)
    finally:
        slurm.node_returns(node)
    assert verb(bench, "cancel", str(sweep.path)).rc == 0
    for run in bench.members().values():
        lives = [line["life"] for line in audit(run)]
        assert lives == sorted(lives), "two wrote at once"


def test_jobs_whose_starter_was_killed_leave_members_that_resume_goes_on_with(bench: Launcher, slurm: Any) -> None:
    sweep = send(bench, *CORE, "trainer.max_steps=150", "seed=0,1")
    all_at(bench, 3, 2)
    for pack in packs(sweep):
        pack.kill()
    empty(slurm)
    assert verb(bench, "wait", str(sweep.path)).rc == 5
    assert verb(bench, "resume", str(sweep.path)).rc == 0
    ended(bench, sweep)
    for run in bench.members().values():
        once(run, 150)


def test_a_script_that_is_sent_by_hand_goes_on_or_does_nothing(bench: Launcher, slurm: Any) -> None:
    sweep = send(bench, *CORE, "trainer.max_steps=150", "seed=0,1")
    all_at(bench, 3, 2)
    beside = slurm("sbatch", "--parsable", str(sweep.script)).stdout.strip()
    slurm.until(beside, "FAILED", "COMPLETED")
    assert "has it" in told(sweep) or "runs it" in told(sweep)
    for pack in packs(sweep):
        pack.kill()
    empty(slurm)
    assert slurm("sbatch", str(sweep.script)).returncode == 0
    until(lambda: lease.last_life(sweep) == 2, timeout=60)
    ended(bench, sweep)
    for run in bench.members().values():
        once(run, 150)


# --- asked to stop


def test_a_cancelled_sweep_stops_with_checkpoints_and_resume_goes_on(bench: Launcher, slurm: Any) -> None:
    words = (*CORE, "sweep.per_node=1", "sweep.array_parallelism=1", LONG, "seed=0,1,2")
    sweep = send(bench, *words)
    all_at(bench, 3, 1)
    assert command(bench, *words).rc == 7  # somebody has it
    done = verb(bench, "cancel", str(sweep.path))
    assert done.rc == 0, (done, told(sweep))
    empty(slurm)
    assert sorted(lease.read_state(run).state for run in bench.members().values()) == ["stopped"] * 3
    assert lease.read_state(sweep).code == TERM
    before = max(step(run) for run in bench.members().values())
    assert verb(bench, "resume", str(sweep.path)).rc == 0
    all_at(bench, before + 1, 1)
    assert verb(bench, "cancel", str(sweep.path)).rc == 0


def test_one_member_is_cancelled_and_the_others_go_on(bench: Launcher) -> None:
    sweep = send(bench, *CORE, "sweep.per_node=2", "sweep.array_parallelism=1", LONG, "seed=0,1,2")
    all_at(bench, 3, 2)
    members = bench.members()
    for label in ("seed=2", "seed=0"):  # one waits, one runs
        done = verb(bench, "cancel", str(members[label].path))
        assert done.rc == 0 and "stopped" in done.out, done
    assert [lease.read_state(members[f"seed={i}"]).state for i in range(3)] == ["stopped", "running", "stopped"]
    assert lease.read_state(members["seed=2"]).step is None and lease.read_state(members["seed=0"]).step
    before = step(members["seed=1"])
    until(lambda: step(members["seed=1"]) > before + 3)
    assert verb(bench, "cancel", str(sweep.path)).rc == 0
    assert {lease.read_state(run).state for run in (sweep, *members.values())} == {"stopped"}


def test_a_sweep_that_has_not_begun_is_cancelled(bench: Launcher, slurm: Any) -> None:
    for _ in range(4):
        slurm.submit("--partition=cpu", "--account=p200000", "--nodes=1", "--exclusive", "--qos=default")
    sweep = send(bench, *CORE, "seed=0,1")
    rows = json.loads(verb(bench, "status", "--json").out)
    assert {row["state"] for row in rows} == {"pending"}, rows
    assert verb(bench, "cancel", str(sweep.path)).rc == 0
    assert {lease.read_state(run).state for run in (sweep, *bench.members().values())} == {"stopped"}
    assert not [line for line in queue(slurm) if "PENDING" in line]


# --- what needs what


def test_a_pipeline_runs_in_its_order_and_what_can_no_longer_run_is_cancelled(bench: Launcher) -> None:
    manner(bench, fail="run", seed=1)
    sweep = send(bench, *CORE, "pipeline=[train,evaluate]", "seed=0,1")
    found = ended(bench, sweep, code=5)
    states = {label: m["state"] for label, m in found.items()}
    assert states == {
        "train seed=0": "completed", "evaluate seed=0": "completed", "train seed=1": "failed", "evaluate seed=1": "cancelled",
    }  # fmt: skip
    assert "which failed" in found["evaluate seed=1"]["message"]
    notes = {label: audit(run) for label, run in bench.members().items() if "seed=0" in label}
    assert notes["train seed=0"][-1]["time"] < notes["evaluate seed=0"][0]["time"]


def test_what_depends_on_a_run_waits_for_it_in_the_queue(bench: Launcher, slurm: Any) -> None:
    done = bench("cluster=testbed", "resources.timeout_min=5", *CORE, "trainer.max_steps=100", "name=first")
    assert done.rc == 0
    first = bench.run_dir("first")
    sweep = send(bench, *CORE, f"depends_on={first.path.name}", many=False)
    job = lease.read_owner(sweep, 1)["job"]
    assert "afterok" in slurm("squeue", "--noheader", "--format=%E", f"--jobs={job}").stdout
    ended(bench, sweep)
    (run,) = bench.members().values()
    assert audit(first)[-1]["time"] < audit(run)[0]["time"]


def test_what_depends_on_a_run_that_fails_is_taken_out_of_the_queue(bench: Launcher, slurm: Any) -> None:
    manner(bench, fail="run", at=60)
    assert bench("cluster=testbed", "resources.timeout_min=5", *CORE, "trainer.max_steps=100", "name=first").rc == 0
    sweep = send(bench, *CORE, f"depends_on={bench.run_dir('first').path.name}", many=False)
    done = verb(bench, "wait", str(sweep.path))
    assert done.rc == 5 and "needed" in done.out, done
    empty(slurm)
    refused = command(bench, *CORE, f"depends_on={bench.run_dir('first').path.name}", many=False)
    assert refused.rc == 3 and "is failed" in refused.err, refused


# --- when it is sent


def test_arrays_that_are_refused_in_the_middle_are_told_and_those_that_were_sent_do_it_all(bench: Launcher, slurm: Any) -> None:
    fake = bench.home / "bin"
    fake.mkdir()
    real = next(str(p) for p in (Path(d) / "sbatch" for d in os.environ["PATH"].split(":")) if p.is_file())
    refusal = 'echo "sbatch: error: QOSMaxSubmitJobPerUserLimit" >&2; exit 1'
    second = f'if [[ "$*" == *--array* ]]; then if [ -e "{fake}/once" ]; then {refusal}; fi; touch "{fake}/once"; fi'
    (fake / "sbatch").write_text(f'#!/bin/bash\n{second}\nexec {real} "$@"\n')
    (fake / "sbatch").chmod(0o755)
    words = bench.words(
        "cluster=testbed", "resources.timeout_min=5", *CORE, "sweep.per_node=1", "cluster.facts.max_array=1", "seed=0,1"
    )
    done = bench("-m", *words, bare=True, PATH=f"{fake}:{os.environ['PATH']}")
    assert done.rc == 0 and "1 of 2 jobs were submitted" in done.err, done
    ended(bench, bench.sweep_dir())
    for run in bench.members().values():
        once(run)


def test_a_sweep_that_is_refused_leaves_nothing_behind_and_goes_on_later(bench: Launcher, slurm: Any) -> None:
    refused = command(bench, *CORE, "cluster.account=p999999", "seed=0,1")
    assert refused.rc == 3 and not queue(slurm), refused
    assert {lease.read_state(run).state for run in bench.members().values()} == {"failed"}
    sweep = send(bench, *CORE, "seed=0,1")
    ended(bench, sweep)


def test_a_submitter_that_is_killed_after_sbatch_loses_nothing(bench: Launcher) -> None:
    words = bench.words("cluster=testbed", "resources.timeout_min=5", *CORE, "seed=0,1")
    code = (
        "import os, signal, sys; from hpcai import lease, run; "
        "lease.give_to_job = lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL); sys.exit(run.main(sys.argv[1:]))"
    )
    done = subprocess.run([sys.executable, "-c", code, "-m", *words], capture_output=True, env=bench.env(), cwd=bench.home)
    assert done.returncode == -signal.SIGKILL, done
    ended(bench, bench.sweep_dir())
    for run in bench.members().values():
        once(run)


# --- searches


def search(bench: Launcher, *words: str, trials: int = 6) -> Done:
    """The command of one."""
    space = ("trainer.lr=tag(log,interval(0.001,0.1))", "cluster=testbed", "resources.timeout_min=5", *CORE)
    return bench("-m", "--search", f"trials={trials},seed=1,pruner=none", *bench.words(*space, *words), bare=True)


def test_the_jobs_of_a_search_share_its_trials_and_none_is_tried_twice(bench: Launcher, slurm: Any) -> None:
    manner(bench, curve=True, step_s=0.1)
    done = search(bench, "sweep.per_node=2", "trainer.max_steps=4")
    assert done.rc == 0 and "submitted: job " in done.out and "6 runs in 3 jobs, up to 2 side by side in each" in done.out, done
    sweep = bench.sweep_dir()
    found = ended(bench, sweep)
    assert len(found) == 6 and {m["state"] for m in found.values()} == {"completed"}
    for run in bench.members().values():
        once(run, 4)
    again = search(bench, "sweep.per_node=2", "trainer.max_steps=4")
    assert again.rc == 0 and "best: trainer.lr=" in again.out and "submitted" not in again.out, again


def test_a_search_goes_on_after_its_time_ends_and_after_a_killed_rank(bench: Launcher, slurm: Any) -> None:
    manner(bench, curve=True, step_s=0.1)
    assert search(bench, "sweep.per_node=2", "sweep.array_parallelism=1", "trainer.max_steps=150", trials=3).rc == 0
    sweep = bench.sweep_dir()
    until(lambda: len(bench.members()) >= 2 and sum(step(run) > 2 for run in bench.members().values()) >= 2, timeout=90)
    first = next(iter(bench.members().values()))
    bench.ranks(first)[0].kill()
    until(lambda: lease.last_life(first) == 2 and step(first) > 3, timeout=60)
    assert slurm("scancel", "--signal=USR2", jobs(sweep)[0]).returncode == 0
    found = ended(bench, sweep)
    assert len(found) == 3 and {m["state"] for m in found.values()} == {"completed"}
    for run in bench.members().values():
        once(run, 150)
    assert lease.last_life(first) == 3


def test_the_last_trial_of_a_search_goes_on_in_the_same_start_when_its_rank_is_killed(bench: Launcher, slurm: Any) -> None:
    manner(bench, curve=True, step_s=0.1)
    assert search(bench, "trainer.max_steps=40", trials=1).rc == 0
    sweep = bench.sweep_dir()
    all_at(bench, 3, 1)
    (run,) = bench.members().values()
    bench.ranks(run)[0].kill()
    ended(bench, sweep)
    once(run, 40)
    assert lease.last_life(run) == 2 and slurm.job(jobs(sweep)[0])["Restarts"] == "0"


def test_a_search_of_few_values_ends_though_two_jobs_hold_trials_of_one_run(bench: Launcher) -> None:
    manner(bench, curve=True, step_s=0.2)
    words = ("trainer.lr=choice(0.01,0.02,0.03)", "cluster=testbed", "resources.timeout_min=5", *CORE, "sweep.per_node=1")
    done = bench("-m", "--search", "trials=8,seed=1,pruner=none", *bench.words(*words, "trainer.max_steps=5"), bare=True)
    assert done.rc == 0, done
    found = ended(bench, bench.sweep_dir())
    assert {m["state"] for m in found.values()} == {"completed"} and len(found) <= 3
    for run in bench.members().values():
        once(run, 5)

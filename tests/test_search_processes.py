"""A search as its user starts it: real processes, killed at any moment; every trial is done once and told once."""

from __future__ import annotations

import random
import signal
from typing import Any

import pytest
from conftest import Launcher

from hpcai import lease
from hpcai.rundir import read_json, read_lines

RATE = "trainer.lr=tag(log, interval(1e-4,1e-1))"


def words(trials: int, *more: str) -> list[str]:
    return ["-m", f"--search=trials={trials}", "trainer.max_steps=5", RATE, *more]


def results(launch: Launcher) -> dict[str, Any]:
    value: dict[str, Any] = read_json(launch.sweep_dir().path / "results.json")
    return value


def told(launch: Launcher) -> list[tuple[str, Any, Any]]:
    """What each trial tried and found, in the order of their numbers."""
    return [(m["label"], m["state"], m["score"] and m["score"]["value"]) for m in results(launch)["members"]]


def test_every_trial_is_a_run_and_the_best_is_named(launch: Launcher) -> None:
    launch.job = {"curve": True}
    done = launch(*words(6))
    assert (done.rc, done.err) == (0, "")
    found = results(launch)
    assert len(found["members"]) == 6 == len(list(launch.runs.glob("tiny-*")))
    best = max(found["members"], key=lambda m: m["score"]["value"] if m["state"] == "completed" else -1)
    line = done.out.splitlines()[-1]
    assert line.startswith("best: trainer.lr=")
    assert f"trainer.lr={float(line.split()[1].partition('=')[2]):.6g}" == best["label"]
    assert read_json(launch.sweep_dir().path / "members.json")["kind"] == "search"


def test_the_same_command_again_starts_nothing_and_more_trials_only_those(launch: Launcher) -> None:
    launch.job = {"curve": True}
    launch(*words(4))
    before = told(launch)
    assert launch(*words(4)).rc == 0
    assert told(launch) == before and {lease.last_life(run) for run in launch.members().values()} == {1}
    assert launch(*words(6)).rc == 0
    assert told(launch)[:4] == before and len(told(launch)) == 6


def test_a_trial_that_falls_behind_is_stopped_and_is_no_fault(launch: Launcher) -> None:
    launch.job = {"curve": True, "step_s": 0.1}
    one_at_a_time = [w for w in words(7, "resources.cpus_per_task=64") if "max_steps" not in w]
    done = launch(*one_at_a_time, "trainer.max_steps=20", timeout=200)
    assert done.rc == 0, done.err
    states = [state for _, state, _ in told(launch)]
    assert states == ["completed"] * 6 + ["pruned"]  # of the seed 0; the pruner judges from the sixth trial on
    assert int(read_json(list(launch.members().values())[6].path / "count.rank0.json")) < 20
    again = launch(*one_at_a_time, "trainer.max_steps=20")
    assert again.rc == 0 and lease.last_life(list(launch.members().values())[6]) == 1  # it is not taken up again


def test_trials_that_fail_are_named_and_give_the_exit_code(launch: Launcher) -> None:
    launch.job = {"fail": "run"}
    done = launch(*words(3))
    assert done.rc == 5
    assert len(done.errors) == 3 and all("trainer.lr=" in line and "Lower trainer.lr." in line for line in done.errors)


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("pipeline=[train,evaluate]", "pipeline"),
        ("job=predict", "job=predict"),
        ("data.split.fold=range(0,5)", "data.split.fold"),
        ("seed=0,1,2", "seed"),
        ("task.select=loss", "task.select"),
        ("trainer.lr=interval(1,1)", "trainer.lr"),
        ("trainer.lrr=interval(1,2)", "trainer.lrr"),
    ],
)
def test_what_a_search_cannot_do_is_refused_before_anything_begins(launch: Launcher, word: str, said: str) -> None:
    given = [w for w in words(3) if w.partition("=")[0] != word.partition("=")[0]]
    done = launch(*given, word)
    assert done.rc == 2 and any(line.startswith(said) for line in done.errors), done.err
    assert not launch.runs.exists()


@pytest.mark.parametrize("spec", ["", "trials=0", "trials=x", "trails=3", "trials=3,sampler=grid"])
def test_options_that_make_no_sense_are_named(launch: Launcher, spec: str) -> None:
    done = launch("-m", f"--search={spec}", RATE)
    assert done.rc == 2 and done.errors[0].startswith("--search") and not launch.runs.exists()


def test_a_dry_run_writes_nothing(launch: Launcher) -> None:
    done = launch(*words(3), "--dry-run")
    assert done.rc == 0 and "such as: trainer.lr=" in done.out and not launch.runs.exists()


@pytest.mark.fault
def test_a_stopped_search_goes_on_where_it_was(launch: Launcher) -> None:
    launch.job = {"curve": True, "step_s": 0.05}
    driver = launch.start(*words(4))
    driver.until(lambda: any(lease.read_state(run).step for run in launch.members().values()), 60)
    driver.process.send_signal(signal.SIGINT)
    assert driver.wait().rc == 130
    begun = list(launch.members())
    assert launch(*words(4)).rc == 0
    assert [label for label, _, _ in told(launch)][: len(begun)] == begun
    assert len(told(launch)) == 4 and {state for _, state, _ in told(launch)} == {"completed"}


@pytest.mark.slow
@pytest.mark.fault
def test_killed_drivers_and_members_lose_no_trial_and_run_none_twice(launch: Launcher) -> None:
    """The same search as undisturbed, one trial at a time, while driver or member is killed at seeded moments."""
    launch.job = {"curve": True, "step_s": 0.05}
    calm = words(5, "resources.cpus_per_task=64", "name=calm")
    assert launch(*calm, timeout=200).rc == 0
    expected = [(label, value) for label, _, value in told(launch)]
    (folder,) = (launch.runs / "sweeps").iterdir()
    folder.rename(launch.home / "calm")
    rng = random.Random(5)
    rough = words(5, "resources.cpus_per_task=64", "name=rough")
    for kill in range(4):
        driver = launch.start(*rough)
        target = kill + rng.randrange(2)

        def reached(n: int = target) -> bool:
            return len(launch.members()) > min(n, 4) and (lease.read_state(list(launch.members().values())[-1]).step or 0) > 1

        try:
            driver.until(reached, 60)
        except AssertionError:  # it ended before
            continue
        if kill % 2:
            for rank in launch.ranks(list(launch.members().values())[-1]):
                rank.kill()
        driver.process.kill()
        driver.process.wait()
    assert launch(*rough, timeout=200).rc == 0
    assert [(label, value) for label, _, value in told(launch)] == expected
    journal = list(read_lines(launch.sweep_dir().path / "search.jsonl"))
    assert journal and all(read_json(run.path / "count.rank0.json") == 5 for run in launch.members().values())


def test_a_damaged_list_of_members_is_made_anew_from_the_journal(launch: Launcher) -> None:
    launch.job = {"curve": True}
    launch(*words(4))
    before = told(launch)
    (launch.sweep_dir().path / "members.json").write_text("{torn")
    done = launch(*words(5))
    assert done.rc == 0, done.err
    assert told(launch)[:4] == before and len(launch.members()) == 5


def test_a_search_has_no_anew(launch: Launcher) -> None:
    done = launch(*words(3), "--anew")
    assert done.rc == 2 and done.errors[0].startswith("--anew: ") and not launch.runs.exists()

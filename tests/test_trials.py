"""trials.py: a search as a source of runs, over real run folders written by hand and a real journal."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from hpcai import lease, rundir, runs
from hpcai.config.space import Dimension, Space
from hpcai.errors import ConfigError, HpcaiError
from hpcai.rundir import RunDir
from hpcai.runs import Member
from hpcai.search import JOURNAL, Options, Search
from hpcai.trials import REFUSED, Trials

SPACE = Space({"trainer.lr": Dimension("float", 1e-4, 1e-1, log=True)})
PAIR = Space({"trainer.batch_size": Dimension("category", choices=("32", "64"))})


@dataclass(frozen=True)
class FakeEntry:
    member: Member


@dataclass
class Driver:
    """One life of a driver: its source, what it was told, and the entries it made."""

    folder: Path
    trials: int = 9
    space: Space = SPACE
    maximize: bool = True
    refuse: set[int] = field(default_factory=set)  # which calls of make to refuse, from 1
    known: list[Member] = field(default_factory=list)
    made: list[tuple[list[str], str]] = field(default_factory=list)
    told: list[list[Member]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.folder.mkdir(exist_ok=True)
        self.search = Search.open(self.folder, self.space, Options(self.trials), self.maximize)
        make: Any = self.make
        self.source = Trials(self.search, make, self.told.append, self.known)

    def make(self, words: list[str], label: str) -> FakeEntry:
        self.made.append((words, label))
        if len(self.made) in self.refuse:
            raise ConfigError("trainer.batch_size=32: too few. Give more.")
        run_id = "run-" + words[0].partition("=")[2]
        return FakeEntry(Member(run_id, str(self.folder / run_id), label, label, "train"))

    def next(self) -> FakeEntry:
        entry: Any = self.source.next()
        assert entry is not None
        return entry

    def end(self, entry: FakeEntry) -> None:
        self.source.ended(entry, runs.state_of(entry.member.dir))

    def prune(self, *entries: FakeEntry) -> list[FakeEntry]:
        return list(self.source.prune(entries))

    @property
    def states(self) -> list[tuple[str, float | None]]:
        return [(trial.state, trial.value) for trial in self.search.trials()]


@pytest.fixture
def driver(tmp_path: Path) -> Driver:
    return Driver(tmp_path / "search")


def begin(entry: FakeEntry, *scores: float | None, first: int = 1) -> RunDir:
    """A run that lives, with a validation curve."""
    run = entry.member.dir
    life = lease.take(run, 1)
    lease.append(run, life, 0, "begin", **lease.me())
    validate(run, *scores, first=first)
    return run


def validate(run: RunDir, *scores: float | None, first: int = 1) -> None:
    best = -1.0
    for epoch, auc in enumerate(scores, first):
        facts = {"step": epoch, "epoch": epoch, "loss": 0.4}
        judged = {"auc": auc, "low": None, "high": None, "n": 9, "best": auc is None or auc > best}
        best = max(best, auc or 0)
        rundir.append_lines(run.metrics, [{"kind": "train", **facts}, {"kind": "val", **facts, **judged}])


def close(entry: FakeEntry, code: int = 0) -> None:
    run = entry.member.dir
    lease.append(run, lease.last_life(run), 0, "end", code=code, message="")


def finish(driver: Driver, entry: FakeEntry, *scores: float | None, code: int = 0) -> None:
    begin(entry, *scores)
    close(entry, code)
    driver.end(entry)


def vanish(entry: FakeEntry) -> None:
    """Its process is gone without a word."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    run = entry.member.dir
    life = lease.take(run, 1)
    lease.hand_over(run, life, gone.pid)
    assert runs.state_of(run).state == "lost"


# --- starting


def test_each_trial_is_a_member_told_before_it_starts(driver: Driver) -> None:
    first, second = driver.next(), driver.next()
    assert driver.told == [[first.member], [first.member, second.member]]
    assert driver.source.members == [first.member, second.member]
    assert [t.run_id for t in driver.search.trials()] == [first.member.run_id, second.member.run_id]
    assert not driver.source.waiting()


def test_words_are_exact_and_labels_short(driver: Driver) -> None:
    driver.next()
    ((words, label),) = driver.made
    (trial,) = driver.search.trials()
    assert words == [f"trainer.lr={trial.values['trainer.lr']!r}"]
    assert label == f"trainer.lr={trial.values['trainer.lr']:.6g}"


def test_there_are_as_many_members_as_trials(tmp_path: Path) -> None:
    driver = Driver(tmp_path / "s", trials=2)
    driver.next(), driver.next()
    assert driver.source.next() is None


# --- ending


def test_a_completed_run_tells_its_best_validation_and_its_whole_curve(driver: Driver) -> None:
    finish(driver, driver.next(), 0.7, 0.9, 0.8)
    assert driver.states == [("complete", 0.9)]
    assert '"intermediate_value":0.8' in (driver.folder / JOURNAL).read_text("utf-8")
    finish(driver, driver.next(), 0.6, code=5)
    assert driver.states[1] == ("failed", None)
    assert driver.source.faults == []


def test_where_loss_is_searched_loss_is_told(tmp_path: Path) -> None:
    driver = Driver(tmp_path / "s", maximize=False)
    finish(driver, driver.next(), None)  # of one class alone there is no AUC
    assert driver.states == [("complete", 0.4)]


@pytest.mark.parametrize("scores", [(), (None,)])
def test_a_run_without_the_score_that_is_searched_has_failed_and_is_named(driver: Driver, scores: tuple[None, ...]) -> None:
    entry = driver.next()
    finish(driver, entry, *scores)
    assert driver.states == [("failed", None)]
    (line,) = driver.source.faults
    assert line.startswith(f"run={entry.member.run_id}: completed without a validation AUC.")


@pytest.mark.parametrize("code", [143, None])
def test_a_stopped_or_lost_run_stays_open_and_goes_on_next_time(driver: Driver, code: int | None) -> None:
    entry = driver.next()
    if code is None:
        vanish(entry)
        driver.end(entry)
    else:
        finish(driver, entry, 0.7, code=code)
    assert driver.states == [("open", None)]
    assert driver.next() != entry  # not again in this driver's life
    again = Driver(driver.folder, known=driver.source.members)
    assert again.source.members == driver.source.members
    assert again.next() == entry
    assert again.told == []  # members.json has it
    finish(again, entry, 0.8)
    assert again.states[0] == ("complete", 0.8)


def test_a_run_that_could_not_start_stays_open_and_is_named(driver: Driver) -> None:
    entry = driver.next()
    driver.source.ended(entry, lease.RunState("failed", 0, 5, "run=x: No space left on device. Free space."))
    assert driver.states == [("open", None)]
    assert driver.source.faults == ["run=x: No space left on device. Free space."]
    assert Driver(driver.folder).next() == entry


# --- going on after a kill


def test_what_ended_while_no_driver_was_there_is_told_and_not_run_again(driver: Driver) -> None:
    done, failed, alive, stopped = (driver.next() for _ in range(4))
    for entry, code in ((done, 0), (failed, 5), (stopped, 143)):
        begin(entry, 0.9)
        close(entry, code)
    begin(alive, 0.5)
    again = Driver(driver.folder)
    assert [again.next(), again.next()] == [alive, stopped]
    assert [state for state, _ in again.states] == ["complete", "failed", "open", "open"]
    assert again.next().member.run_id not in {e.member.run_id for e in (done, failed, alive, stopped)}


def test_a_run_that_another_sweep_completed_is_not_run_again(driver: Driver) -> None:
    entry = driver.next()
    begin(entry, 0.9)
    close(entry)
    (driver.folder / JOURNAL).unlink()  # the same space searched anew: the same first trial, the same run
    again = Driver(driver.folder)
    assert again.next() != entry
    assert again.states[0] == ("complete", 0.9)
    assert again.source.members[0] == entry.member


def test_a_run_that_failed_in_another_sweep_is_tried_again(driver: Driver) -> None:
    entry = driver.next()
    begin(entry)
    close(entry, 5)
    (driver.folder / JOURNAL).unlink()
    assert Driver(driver.folder).next() == entry


def test_members_come_in_the_order_of_trials_whoever_drives(driver: Driver) -> None:
    first, second = driver.next(), driver.next()
    again = Driver(driver.folder, known=[first.member])
    assert [again.next(), again.next()] == [first, second]
    assert again.source.members == [first.member, second.member]
    assert again.told == [[first.member, second.member]]


# --- trials that are one run


def test_equal_trials_are_one_run_that_answers_all(tmp_path: Path) -> None:
    driver = Driver(tmp_path / "s", trials=8, space=PAIR)
    one, two = driver.next(), driver.next()
    assert {one.member.run_id, two.member.run_id} == {"run-32", "run-64"}
    finish(driver, one, 0.9)
    assert driver.source.next() is None  # the rest are twins of these
    assert len(driver.states) == 8
    assert {value for state, value in driver.states if state == "complete"} == {0.9}
    finish(driver, two, 0.6, code=5)
    assert {t.run_id: (t.state, t.value) for t in driver.search.trials()} == {
        one.member.run_id: ("complete", 0.9),
        two.member.run_id: ("failed", None),
    }
    assert driver.source.members == [one.member, two.member]


def test_a_run_that_failed_is_not_started_for_its_twin(tmp_path: Path) -> None:
    driver = Driver(tmp_path / "s", trials=12, space=PAIR)
    one = driver.next()
    finish(driver, one, code=5)
    two = driver.next()
    assert two != one
    finish(driver, two, 0.9)
    assert driver.source.next() is None
    assert {t.run_id: t.state for t in driver.search.trials()} == {one.member.run_id: "failed", two.member.run_id: "complete"}


def test_a_twin_of_a_run_that_a_killed_driver_left_is_answered_by_it(tmp_path: Path) -> None:
    driver = Driver(tmp_path / "s", trials=8, space=PAIR)
    one, two = driver.next(), driver.next()
    assert driver.source.next() is None
    again = Driver(tmp_path / "s", trials=8, space=PAIR)
    assert [again.next(), again.next(), again.source.next()] == [one, two, None]
    finish(again, one, 0.9)
    finish(again, two, 0.8)
    assert {t.run_id: t.value for t in again.search.trials()} == {one.member.run_id: 0.9, two.member.run_id: 0.8}
    assert {state for state, _ in again.states} == {"complete"}


def test_a_twin_that_another_driver_holds_is_answered_by_whoever_settles_last(tmp_path: Path) -> None:
    """Neither told it: the one because it did not run it, the other because it did not hold it."""
    driver = Driver(tmp_path / "s", trials=8, space=PAIR)
    one, two = driver.next(), driver.next()
    for entry in (one, two):
        begin(entry, 0.9)
    other = Driver(tmp_path / "s", trials=8, space=PAIR)
    while other.source.next() is not None:  # those that run elsewhere: not started here
        pass
    for entry in (one, two):
        close(entry)
        driver.end(entry)
    assert "open" in {state for state, _ in driver.states}
    Driver(tmp_path / "s", trials=8, space=PAIR).source.settle()
    assert driver.states == [("complete", 0.9)] * 8


# --- trials that cannot be planned


def test_values_that_do_not_go_together_are_a_failed_trial_and_the_next_is_tried(tmp_path: Path) -> None:
    driver = Driver(tmp_path / "s", refuse={1, 2})
    entry = driver.next()
    assert [state for state, _ in driver.states] == ["failed", "failed", "open"]
    assert driver.source.faults == [f"trial {n}: trainer.batch_size=32: too few. Give more." for n in (0, 1)]
    assert driver.source.members == [entry.member]


def test_where_none_can_be_planned_the_last_fault_is_raised(tmp_path: Path) -> None:
    driver = Driver(tmp_path / "s", refuse={1, *range(3, 3 + REFUSED)})
    driver.next()
    with pytest.raises(HpcaiError, match="too few"):
        driver.source.next()
    assert len(driver.states) == 2 + REFUSED


def test_a_fault_that_has_come_since_takes_no_trial_away(driver: Driver) -> None:
    entry = driver.next()
    again = Driver(driver.folder, refuse={1})  # the data is not mounted, say
    with pytest.raises(HpcaiError, match="too few"):
        again.source.next()
    assert again.states == [("open", None)]
    assert Driver(driver.folder).next() == entry


# --- pruning


def worse(driver: Driver) -> FakeEntry:
    """A run that is worse than five that have completed."""
    for auc in (0.7, 0.75, 0.8, 0.85, 0.9):
        finish(driver, driver.next(), auc, auc)
    entry = driver.next()
    begin(entry)
    return entry


def test_a_run_worse_than_half_is_stopped_once_and_told_pruned_when_it_has_ended(driver: Driver) -> None:
    entry = worse(driver)
    assert driver.prune(entry) == []
    validate(entry.member.dir, 0.6)
    assert driver.prune(entry) == [entry]
    assert driver.prune(entry) == []
    assert driver.states[-1] == ("open", None)
    close(entry, 143)
    driver.end(entry)
    assert driver.states[-1] == ("pruned", 0.6)


def test_a_run_that_completed_though_it_was_to_be_stopped_is_complete(driver: Driver) -> None:
    entry = worse(driver)
    validate(entry.member.dir, 0.6)
    assert driver.prune(entry) == [entry]
    validate(entry.member.dir, 0.65, first=2)
    close(entry)
    driver.end(entry)
    assert driver.states[-1] == ("complete", 0.65)


def test_a_good_run_goes_on(driver: Driver) -> None:
    entry = worse(driver)
    validate(entry.member.dir, 0.86)
    assert driver.prune(entry) == []


def test_a_driver_killed_after_it_pruned_does_not_start_that_run_again(driver: Driver) -> None:
    entry = worse(driver)
    validate(entry.member.dir, 0.6)
    assert driver.prune(entry) == [entry]
    close(entry, 143)
    again = Driver(driver.folder)
    assert again.next() != entry
    assert again.states[5] == ("pruned", 0.6)


def test_a_driver_killed_before_it_stopped_a_pruned_run_stops_it(driver: Driver) -> None:
    entry = worse(driver)
    validate(entry.member.dir, 0.6)
    assert driver.prune(entry) == [entry]
    again = Driver(driver.folder)
    assert again.next() == entry  # it runs: to be waited for
    assert again.prune(entry) == [entry]
    assert again.prune(entry) == []
    close(entry, 143)
    again.end(entry)
    assert again.states[5] == ("pruned", 0.6)


@pytest.mark.parametrize("note", ["", "x" * 5000])
def test_a_curve_that_was_cut_and_written_on_is_read_anew(driver: Driver, note: str) -> None:
    """A resumed training cuts its metrics to the checkpoint: what lies there then is shorter than before, or longer."""
    entry = worse(driver)
    run = entry.member.dir
    validate(run, 0.9, 0.9, 0.9)
    assert driver.prune(entry) == []
    run.metrics.unlink()
    rundir.append_lines(run.metrics, [{"kind": "val", "epoch": 4, "note": note, "auc": 0.91, "best": True}])
    assert driver.prune(entry) == []
    assert '"intermediate_value":0.91' in (driver.folder / JOURNAL).read_text("utf-8")


def test_a_torn_or_hostile_line_of_a_curve_is_passed_over(driver: Driver) -> None:
    entry = worse(driver)
    run = entry.member.dir
    with run.metrics.open("ab") as f:
        f.write(
            b'{"kind":"val","epoch":1}\n"val"\n["val"]\n{"val":\n\xff"val"\n{"kind":"val","epoch":"1","auc":0.1,"best":true}\n'
        )
        f.write(b'{"kind":"val","epoch":1,"auc":NaN}\n{"kind":"val","epoch":-1,"auc":0.1}\n{"kind":"val","epoch":1,"auc":0.')
    assert driver.prune(entry) == []
    with run.metrics.open("ab") as f:
        f.write(b"1}\n")
    assert driver.prune(entry) == [entry]

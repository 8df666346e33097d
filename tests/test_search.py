"""search.py: trials are handed out once, told once, and survive whoever asked for them. Optuna over a real journal."""

from __future__ import annotations

import itertools
import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hpcai import lease
from hpcai.config.space import Dimension, Space
from hpcai.errors import HpcaiError, PlanError
from hpcai.search import JOURNAL, Options, Search, Trial, missing, parse_options

LIMIT_S = 60.0
SPACE = Space({
    "trainer.lr": Dimension("float", 1e-4, 1e-1, log=True),
    "trainer.batch_size": Dimension("category", choices=("32", "64")),
    "trainer.epochs": Dimension("int", 2, 9, step=1),
    "x": Dimension("float", 0.1, 0.4, step=0.1),
})  # fmt: skip
# What a driver does, deterministic: opens, asks, notes, reports, tells until there is no more. `pause` before each ask.
DRIVER = """
import json, math, sys, time
from pathlib import Path
from hpcai.config.space import Space
from hpcai.search import Options, Search
folder, space, trials, who = Path(sys.argv[1]), Space.from_json(json.loads(sys.argv[2])), int(sys.argv[3]), sys.argv[4]
search = Search.open(folder, space, Options(trials), True)
left = [trial for trial, run in search.open_trials() if run] if who == "restarted" else []
while trial := left.pop(0) if left else search.ask():
    search.note(trial.number, f"run-{trial.number}")
    value = -abs(math.log10(trial.values["trainer.lr"]) + 2)
    for epoch in (1, 2):
        search.report(trial.number, epoch, value - 1 / epoch)
    search.tell(trial.number, value, "complete")
    print(trial.number, flush=True)
"""


def opened(folder: Path, trials: int = 30, *, space: Space = SPACE, maximize: bool = True, **options: Any) -> Search:
    return Search.open(folder, space, Options(trials, **options), maximize)


def asked(search: Search) -> Trial:
    trial = search.ask()
    assert trial is not None
    return trial


def score(trial: Trial) -> float:
    return float(trial.values["trainer.lr"]) + float(trial.values["trainer.epochs"])


def completed(search: Search, many: int) -> list[Trial]:
    done = []
    for _ in range(many):
        done.append(asked(search))
        search.tell(done[-1].number, score(done[-1]), "complete")
    return done


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts a Python program; what still runs at the end is killed."""
    begun: list[subprocess.Popen[bytes]] = []

    def run(program: str, *words: object) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-W", "error", "-c", program, *map(str, words)]
        begun.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE))
        return begun[-1]

    yield run
    for process in begun:
        process.kill()
        process.communicate()


# --- options


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("trials=30", Options(30)),
        ("trials=30,seed=1,sampler=random,pruner=none", Options(30, 1, "random", "none")),
        (" trials = 3 , ", Options(3)),
    ],
)
def test_options_are_read(text: str, options: Options) -> None:
    assert parse_options(text) == options


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", ["trials=N"]),
        ("seed=1", ["trials=N"]),
        ("trials", ["--search trials="]),
        ("trials=0", ["from 1 to"]),
        ("trials=-1", ["from 1 to"]),
        ("trials=1e3", ["from 1 to"]),
        ("trials=" + "9" * 5000, ["from 1 to"]),
        ("trials=٣", ["from 1 to"]),
        ("trials=3,trials=4", ["stands twice"]),
        ("trials=3,seed=4294967296", ["--search seed=4294967296: is no whole number from 0"]),
        ("trials=3,sampler=tpee", ["--search sampler=tpee: unknown. Did you mean tpe?"]),
        ("trials=3,pruner=hyperband", ["Known: median, none."]),
        ("trails=3", ["Did you mean trials?", "trials=N"]),
        ("trials=x,seed=y,sampler=z,\n=1", ["trials=x", "seed=y", "sampler=z", "=1"]),
    ],
)
def test_wrong_options_are_told_by_name_all_at_once(text: str, says: list[str]) -> None:
    with pytest.raises(HpcaiError) as caught:
        parse_options(text)
    assert caught.value.code == 2
    assert len(caught.value.lines) == len(says)
    for line, said in zip(caught.value.lines, says, strict=True):
        assert line.startswith("--search ")
        assert said in line


def test_where_optuna_is_missing_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert missing() is None
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert missing() == "--search: needs optuna. pip install 'hpcai[hpo]'."


# --- asking


def test_each_trial_lies_within_the_space_and_its_words_say_it(tmp_path: Path) -> None:
    search = opened(tmp_path)
    for number, trial in enumerate([*completed(search, 12), asked(search)]):
        lr, batch, epochs, x = (trial.values[key] for key in SPACE.dimensions)
        assert trial.number == number
        assert 1e-4 <= lr <= 1e-1
        assert batch in ("32", "64")
        assert epochs in range(2, 10)
        assert trial.words == [f"trainer.lr={lr!r}", f"trainer.batch_size={batch}", f"trainer.epochs={epochs}", f"x={x:.1g}"]


def test_as_many_trials_are_handed_out_as_were_asked_for(tmp_path: Path) -> None:
    search = opened(tmp_path, 3)
    search.tell(asked(search).number, None, "failed")
    search.tell(asked(search).number, 1.0, "complete")
    asked(search)
    assert search.ask() is None
    more = opened(tmp_path, 5)
    assert [asked(more).number, asked(more).number] == [3, 4]
    assert more.ask() is None
    assert opened(tmp_path, 2).ask() is None


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_the_same_history_gives_the_same_suggestion(tmp_path: Path, sampler: Any) -> None:
    """Whether one process asked for all, or a new one for each; 14 trials: past the random start."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    one = opened(tmp_path / "a", sampler=sampler, seed=3)
    for trial in completed(one, 14):
        other = opened(tmp_path / "b", sampler=sampler, seed=3)
        again = asked(other)
        other.tell(again.number, score(again), "complete")
        assert again.words == trial.words


def test_another_seed_suggests_otherwise(tmp_path: Path) -> None:
    firsts = set()
    for seed in range(3):
        (tmp_path / str(seed)).mkdir()
        firsts.add(tuple(asked(opened(tmp_path / str(seed), seed=seed)).words))
    assert len(firsts) == 3


def test_after_its_random_start_tpe_learns_from_what_was_told(tmp_path: Path) -> None:
    """The same asks with other answers: the same first ten, others then."""
    words: list[list[list[str]]] = []
    for sign in (1, -1):
        folder = tmp_path / str(sign)
        folder.mkdir()
        search, said = opened(folder), []
        for _ in range(15):
            trial = asked(search)
            said.append(trial.words)
            search.tell(trial.number, sign * score(trial), "complete")
        words.append(said)
    assert words[0][:10] == words[1][:10]
    assert words[0][10:] != words[1][10:]


def test_what_others_try_at_this_moment_is_known(tmp_path: Path) -> None:
    search = opened(tmp_path)
    completed(search, 10)
    assert len({tuple(asked(search).words) for _ in range(8)}) > 1


def test_a_trial_of_this_process_is_handed_out_once(tmp_path: Path) -> None:
    search = opened(tmp_path)
    assert [asked(search).number for _ in range(3)] == [0, 1, 2]
    assert asked(opened(tmp_path)).number == 3  # the process that asked lives


def test_a_trial_whose_asker_vanished_before_it_noted_a_run_is_handed_out_again(
    tmp_path: Path, start: Callable[..., subprocess.Popen[bytes]]
) -> None:
    program = DRIVER.replace("while trial", "search.ask(); search.note(0, 'r'); search.ask()\nsys.exit()\nwhile trial")
    process = start(program, tmp_path, json.dumps(SPACE.to_json()), 9, "new")
    assert process.communicate(timeout=LIMIT_S)[1] == b""
    search = opened(tmp_path)
    before = search.trials()
    assert [(t.number, run) for t, run in search.open_trials()] == [(0, "r"), (1, None)]
    assert asked(search) == before[1]
    assert asked(search).number == 2


def test_an_asker_on_another_host_has_its_time_to_note_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "me", lambda: {"host": "elsewhere", "pid": 1, "started": "x"})
    search = opened(tmp_path)
    assert [asked(search).number, asked(search).number] == [0, 1]
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 2 * lease.SILENT_S)
    assert [asked(search).number, asked(search).number, asked(search).number] == [0, 1, 2]


# --- telling


def test_what_was_told_stays_told(tmp_path: Path) -> None:
    search = opened(tmp_path)
    trial = asked(search)
    search.note(trial.number, "run-a")
    search.tell(0, 0.9, "complete")
    search.tell(0, 0.1, "complete")
    search.tell(0, None, "failed")
    search.note(0, "run-b")
    assert not search.report(0, 1, 0.5)
    (told,) = opened(tmp_path).trials()
    assert (told.state, told.value, told.run_id, told.words) == ("complete", 0.9, "run-a", trial.words)
    assert search.open_trials() == []


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None])
def test_a_score_that_is_no_number_is_a_failure(tmp_path: Path, value: float | None) -> None:
    search = opened(tmp_path)
    asked(search)
    assert not search.report(0, 1, value or float("nan"))
    search.tell(0, value, "complete")
    assert [(t.state, t.value) for t in search.trials()] == [("failed", None)]
    assert search.best() is None


@pytest.mark.parametrize(("maximize", "best"), [(True, 1), (False, 2)])
def test_the_best_is_the_first_of_the_best_complete_ones(tmp_path: Path, maximize: bool, best: int) -> None:
    search = opened(tmp_path, maximize=maximize)
    for value in (0.5, 0.9, 0.1, 0.9, 0.1):
        search.tell(asked(search).number, value, "complete")
    search.report(asked(search).number, 1, 2.0 if maximize else -2.0)
    search.tell(5, None, "pruned")
    found = search.best()
    assert found is not None
    assert found.number == best


def test_the_pruner_stops_what_is_worse_than_half_and_says_so_until_told(tmp_path: Path) -> None:
    search = opened(tmp_path)
    for value in (0.5, 0.6, 0.7, 0.8):
        trial = asked(search)
        assert not search.report(trial.number, 1, value)
        search.tell(trial.number, value, "complete")
    bad, good, fifth = asked(search), asked(search), asked(search)
    assert not search.report(bad.number, 1, 0.1)  # four are not enough to judge by
    search.report(fifth.number, 1, 0.9)
    search.report(fifth.number, 2, 0.9)
    search.tell(fifth.number, 0.9, "complete")
    assert not search.report(good.number, 1, 0.75)
    assert not search.report(bad.number, 1, 0.1)  # told before: no new judgement
    late = asked(search)
    assert search.report(late.number, 1, 0.65)
    assert opened(tmp_path).report(late.number, 2, 0.99)
    (stopped,) = [t for t in opened(tmp_path).trials() if t.stop]
    assert stopped.number == late.number
    search.tell(late.number, None, "pruned")
    assert (search.trials()[late.number].state, search.trials()[late.number].value) == ("pruned", 0.99)
    assert not search.report(late.number, 3, 0.1)


def test_without_a_pruner_nothing_is_stopped(tmp_path: Path) -> None:
    search = opened(tmp_path, pruner="none")
    for value in (0.5, 0.6, 0.7, 0.8, 0.9, 0.1):
        trial = asked(search)
        assert not search.report(trial.number, 1, value)
        if value > 0.4:
            search.tell(trial.number, value, "complete")


# --- going on


def test_another_space_or_direction_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    asked(opened(tmp_path, 3))
    before = (tmp_path / JOURNAL).read_bytes()
    other = Space({**SPACE.dimensions, "x": Dimension("float", 0.1, 0.5, step=0.1)})
    with pytest.raises(PlanError, match="another space"):
        opened(tmp_path, 3, space=other)
    with pytest.raises(PlanError, match="another direction"):
        opened(tmp_path, 3, maximize=False)
    assert (tmp_path / JOURNAL).read_bytes() == before
    opened(tmp_path, 3)
    assert (tmp_path / JOURNAL).read_bytes() == before


@pytest.mark.parametrize(
    "line",
    [b"{", b'{"op_code":4,"worker_id":"w"}', b'{"op_code":99,"worker_id":"w"}', b'{"op_code":0,"worker_id":"w","directions":7}',
     b'{"op_code":5,"worker_id":"w","trial_id":0,"param_name":"x","param_value_internal":1,"distribution":"{"}'],
)  # fmt: skip
def test_a_damaged_journal_is_one_line(tmp_path: Path, line: bytes) -> None:
    asked(opened(tmp_path))
    with (tmp_path / JOURNAL).open("ab") as f:
        f.write(line + b"\n")
    with pytest.raises(PlanError, match=r"^search: .*its journal is damaged\. Restore ") as caught:
        opened(tmp_path)
    assert len(caught.value.lines) == 1


def test_a_journal_of_another_program_is_damaged_to_us(tmp_path: Path) -> None:
    (tmp_path / JOURNAL).write_bytes(b'{"op_code":0,"worker_id":"w","study_name":"theirs","directions":[2]}\n')
    with pytest.raises(PlanError, match="its journal is damaged"):
        opened(tmp_path)


def test_a_journal_without_its_last_line_goes_on(tmp_path: Path) -> None:
    """Cut anywhere: what is left is a search, and asks on."""
    search = opened(tmp_path, 4)
    for trial in iter(search.ask, None):
        search.note(trial.number, f"run-{trial.number}")
        search.tell(trial.number, score(trial), "complete")
    data, whole = (tmp_path / JOURNAL).read_bytes(), search.trials()
    for cut in random.Random(0).sample(range(len(data)), 12):
        (tmp_path / JOURNAL).write_bytes(data[:cut])
        again = opened(tmp_path, 4)
        for trial in itertools.chain((t for t, _ in again.open_trials()), iter(again.ask, None)):  # who asked for them lives
            again.note(trial.number, f"run-{trial.number}")
            again.tell(trial.number, score(trial), "complete")
        assert again.trials() == whole


def test_optuna_is_silent_and_left_as_it_was(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.INFO)
    search = opened(tmp_path)
    completed(search, 11)
    assert optuna.logging.get_verbosity() == optuna.logging.INFO
    assert capfd.readouterr() == ("", "")


def test_optuna_s_own_file_storage_reads_the_journal(tmp_path: Path) -> None:
    from optuna import load_study
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    completed(opened(tmp_path), 3)
    study = load_study(study_name="search", storage=JournalStorage(JournalFileBackend(str(tmp_path / JOURNAL))))
    assert [t.number for t in study.trials] == [0, 1, 2]


# --- many processes, and their ends


def test_many_processes_hand_out_each_number_once_and_lose_nothing(
    tmp_path: Path, start: Callable[..., subprocess.Popen[bytes]]
) -> None:
    drivers = [start(DRIVER, tmp_path, json.dumps(SPACE.to_json()), 24, "new") for _ in range(3)]
    told = [driver.communicate(timeout=LIMIT_S) for driver in drivers]
    assert [err for _, err in told] == [b""] * 3
    assert sorted(int(n) for out, _ in told for n in out.split()) == list(range(24))
    trials = opened(tmp_path, 24).trials()
    assert [(t.number, t.state, t.run_id) for t in trials] == [(n, "complete", f"run-{n}") for n in range(24)]


@pytest.mark.fault
def test_a_driver_killed_at_seeded_moments_searches_as_if_it_had_not_been(
    tmp_path: Path, start: Callable[..., subprocess.Popen[bytes]]
) -> None:
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    calm.mkdir(), killed.mkdir()
    space = json.dumps(SPACE.to_json())
    assert start(DRIVER, calm, space, 16, "new").communicate(timeout=LIMIT_S)[1] == b""
    size, journal = (calm / JOURNAL).stat().st_size, killed / JOURNAL
    for moment in sorted(random.Random(7).sample(range(size // 20, size), 4)):
        driver = start(DRIVER, killed, space, 16, "restarted")
        before = time.monotonic()
        while driver.poll() is None and not (journal.exists() and journal.stat().st_size >= moment):
            assert time.monotonic() - before < LIMIT_S
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    assert start(DRIVER, killed, space, 16, "restarted").communicate(timeout=LIMIT_S)[1] == b""
    assert opened(killed, 16).trials() == opened(calm, 16).trials()
    assert opened(killed, 16).best() == opened(calm, 16).best()

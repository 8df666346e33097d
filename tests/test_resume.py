"""A run that is killed or stopped, at any moment and any number of times, ends with the same bits as one left in peace."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from training_kit import (
    HARD,
    ask_to_stop,
    assert_same,
    curve,
    end_of,
    finish,
    interrupt,
    kill_tree,
    litter,
    ranks_alive,
    run_in,
    start,
    steps_on_record,
    wait_until,
    words,
    write_npz,
)

from hpcai import rundir
from hpcai.rundir import RunDir

pytestmark = [pytest.mark.slow, pytest.mark.fault]
STEPS = 40  # 4 epochs of 150 cases in batches of 16
Start = Callable[..., list[str]]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_npz(tmp_path_factory.mktemp("data") / "d.npz")


@pytest.fixture(scope="module")
def undisturbed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], RunDir]:
    """A finished run on so many ranks, made once."""
    made: dict[int, RunDir] = {}

    def run(ranks: int) -> RunDir:
        if ranks not in made:
            runs = tmp_path_factory.mktemp("peace")
            finish(command(data, runs, ranks))
            made[ranks] = run_in(runs)
        return made[ranks]

    return run


def command(data: Path, runs: Path, ranks: int, *more: str) -> list[str]:
    return words(data, runs, *HARD, "trainer.epochs=4", f"resources.tasks_per_node={ranks}", *more)


@pytest.mark.parametrize(("ranks", "kills", "more"), [
    (1, 4, ()),
    (2, 3, ("trainer.checkpoint_async=true", "trainer.checkpoint_every=2")),
    (4, 2, ()),
])  # fmt: skip
def test_a_run_killed_at_any_moment_ends_with_the_same_bits(
    data: Path, tmp_path: Path, undisturbed: Callable[[int], RunDir], ranks: int, kills: int, more: tuple[str, ...]
) -> None:
    again, rng = command(data, tmp_path, ranks, *more), random.Random(ranks)
    for at in sorted(rng.randrange(1, STEPS) for _ in range(kills)):
        assert interrupt(again, tmp_path, at, rng)
    finish(again)
    assert_same(undisturbed(ranks), run_in(tmp_path))
    assert litter(run_in(tmp_path).checkpoints) == []


def test_a_run_asked_to_stop_again_and_again_ends_with_the_same_bits(
    data: Path, tmp_path: Path, undisturbed: Callable[[int], RunDir]
) -> None:
    again = command(data, tmp_path, 2, "trainer.checkpoint_every=null")  # what a stop saves is all there is
    for at, signum in ((3, signal.SIGTERM), (11, signal.SIGUSR2), (19, signal.SIGTERM)):
        assert ask_to_stop(again, tmp_path, at, signum) == 128 + signum
        assert end_of(run_in(tmp_path)).state == "stopped"
    finish(again)
    assert_same(undisturbed(2), run_in(tmp_path))


def test_a_run_that_lost_one_rank_ends_soon_and_goes_on_with_the_same_bits(
    data: Path, tmp_path: Path, undisturbed: Callable[[int], RunDir]
) -> None:
    again = command(data, tmp_path, 2)
    with start(again) as process:
        assert wait_until(lambda: steps_on_record(tmp_path) >= 8, process)
        rank = next(p for p in ranks_alive(run_in(tmp_path)) if p.environ()["SUBMITIT_LOCAL_GLOBALID"] == "1")
        rank.kill()
        out, err = process.communicate(timeout=60)
        assert process.returncode == 5, (out, err)
        assert "rank=1" in err and "killed" in err
    assert list(ranks_alive(run_in(tmp_path))) == []
    finish(again)
    assert_same(undisturbed(2), run_in(tmp_path))


def test_a_run_killed_after_early_stopping_or_while_it_scores_ends_with_the_same_bits(data: Path, tmp_path: Path) -> None:
    each = (*HARD, "trainer.epochs=50", "trainer.patience=2", "trainer.lr=0.05")
    finish(words(data, tmp_path / "a", *each))
    a, again = run_in(tmp_path / "a"), words(data, tmp_path / "b", *each)
    at = curve(a)[-1]["step"]
    assert at < 500 and not curve(a)[-1]["best"]
    assert interrupt(again, tmp_path / "b", at // 2, random.Random(3))
    b = run_in(tmp_path / "b")
    moments = [
        (b.checkpoints / f"step-{at:08d}.json").exists,  # early stopping is on record
        (b.rows / "val.rank0.jsonl").exists,
        b.model.exists,  # nothing but the report is left
    ]
    for moment in moments:
        with start(again) as process:
            assert wait_until(moment, process)
            kill_tree(process.pid, random.Random(at))
    finish(again)
    assert_same(a, b)
    assert rundir.read_json(b.report_json)["answer"] == rundir.read_json(a.report_json)["answer"]

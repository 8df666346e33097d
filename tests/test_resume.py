"""A run that is killed, at any moment and any number of times, ends with the same bits as one that was left in peace."""

from __future__ import annotations

import random
import signal
from pathlib import Path

import pytest
from training_kit import (
    HARD,
    ask_to_stop,
    assert_same,
    curve,
    finish,
    interrupt,
    litter,
    rundir,
    run_in,
    wait_until,
    words,
    write_npz,
)

pytestmark = [pytest.mark.slow, pytest.mark.fault]
EPOCHS, STEPS = 4, 40


@pytest.mark.parametrize(("ranks", "kills", "more"), [
    (1, 4, ()),
    (2, 4, ("trainer.checkpoint_async=true",)),
    (4, 3, ()),
])  # fmt: skip
def test_a_run_killed_at_any_moment_ends_with_the_same_bits(
    tmp_path: Path, ranks: int, kills: int, more: tuple[str, ...]
) -> None:
    data = write_npz(tmp_path / "d.npz")
    each = (*HARD, f"trainer.epochs={EPOCHS}", f"resources.tasks_per_node={ranks}", *more)
    finish(words(data, tmp_path / "a", *each))
    rng = random.Random(ranks)
    for at in sorted(rng.randrange(STEPS) for _ in range(kills)):
        assert interrupt(words(data, tmp_path / "b", *each), tmp_path / "b", at, rng)
    finish(words(data, tmp_path / "b", *each))
    a, b = run_in(tmp_path / "a"), run_in(tmp_path / "b")
    assert_same(a, b)
    assert litter(b.path) == []

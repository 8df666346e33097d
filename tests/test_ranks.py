"""Ranks share the work and change nothing else: through the real launcher and gloo."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from training_kit import SIZES, curve, finish, rows_of, run_in, words, write_npz

from hpcai import rundir
from hpcai.rundir import RunDir

pytestmark = pytest.mark.slow
EXACT = (
    "trainer.accumulate=3", "trainer.class_weights=balanced", "trainer.label_smoothing=0.1", "trainer.clip_norm=1",
    "trainer.augment=[affine,intensity,flip,noise]", "trainer.ema_decay=0.9", "trainer.epochs=1",
)  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], RunDir]:
    """One epoch of 10 steps, in a precision, on so many ranks. Its last batch has 2 samples: on 4 ranks, two have none."""
    data = write_npz(tmp_path_factory.mktemp("data") / "d.npz", {**SIZES, "train": 146})
    made: dict[tuple[str, int], RunDir] = {}

    def run(precision: str, ranks: int) -> RunDir:
        if (precision, ranks) not in made:
            runs = tmp_path_factory.mktemp("runs")
            finish(words(data, runs, *EXACT, f"trainer.precision={precision}", f"resources.tasks_per_node={ranks}"))
            made[precision, ranks] = run_in(runs)
        return made[precision, ranks]

    return run


def losses(run: RunDir) -> list[float]:
    return [line["loss"] for line in curve(run)]


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-5), ("float64", 1e-9)])
@pytest.mark.parametrize("ranks", [2, 4])
def test_the_loss_of_an_epoch_is_the_same_on_any_rank_count(
    trained: Callable[[str, int], RunDir], precision: str, tolerance: float, ranks: int
) -> None:
    one, many = losses(trained(precision, 1)), losses(trained(precision, ranks))
    assert len(one) == 11  # ten steps and the validation
    assert many == pytest.approx(one, abs=tolerance, rel=0)


@pytest.mark.parametrize("ranks", [2, 4])
def test_every_case_is_scored_once_whatever_the_rank_count(trained: Callable[[str, int], RunDir], ranks: int) -> None:
    one, many = trained("float64", 1), trained("float64", ranks)
    for split in ("val", "test"):
        for a, b in zip(rundir.read_lines(one.rows_file(split, 0)), rundir.read_lines(many.rows_file(split, 0)), strict=True):
            assert (a["case"], a["label"]) == (b["case"], b["label"])
            assert b["scores"] == pytest.approx(a["scores"], abs=1e-9)
    assert rows_of(one).keys() == rows_of(many).keys()

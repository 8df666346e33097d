"""Tasks: a loss that is exact over any parting of a batch, and rows that hold what they say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from sklearn.utils.class_weight import compute_class_weight

from hpcai.tasks import Task, Trainable
from hpcai.tasks.classification import Classification, balanced_weights
from hpcai.testing import check_task

torch.set_num_threads(1)


def batch(n: int, classes: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(n)
    return torch.randn(n, classes, generator=generator, dtype=torch.float64), torch.arange(n) % classes


@pytest.mark.parametrize("weights", [None, [0.2, 1.0, 3.0]])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_mean_loss_is_torchs_cross_entropy(weights: Any, smoothing: float) -> None:
    weights_K = None if weights is None else torch.tensor(weights, dtype=torch.float64)
    logits, y = batch(17)
    total, weight = Classification(["a", "b", "c"], weights_K, smoothing).loss(logits, y)
    assert float(total / weight) == pytest.approx(
        float(F.cross_entropy(logits, y, weight=weights_K, label_smoothing=smoothing)), rel=1e-13
    )


@given(cut=st.integers(1, 16), weighted=st.booleans(), smoothing=st.sampled_from([0.0, 0.1]))
def test_sums_and_weights_of_parts_add_up(cut: int, weighted: bool, smoothing: float) -> None:
    weights = torch.tensor([0.2, 1.0, 3.0], dtype=torch.float64) if weighted else None
    task, (logits, y) = Classification(["a", "b", "c"], weights, smoothing), batch(17)
    parts = [task.loss(logits[s], y[s]) for s in (slice(cut), slice(cut, None))]
    whole = task.loss(logits, y)
    assert [float(sum(p[i] for p in parts)) for i in (0, 1)] == pytest.approx([float(v) for v in whole], rel=1e-13)


def test_the_classification_keeps_the_contract() -> None:
    task: Trainable = Classification(["no", "yes"])
    same: Task = task
    check_task(same)


def test_rows_hold_case_patient_label_and_scores_that_sum_to_one() -> None:
    logits = torch.tensor([[0.0, 0.0], [100.0, -100.0], [-2.0, 1.0]])
    rows = Classification(["no", "yes"]).rows(["x", "y", "z"], ["p", "p", "q"], [0, 1, -1], logits)
    assert [(r["case"], r["patient"], r["label"]) for r in rows] == [("x", "p", 0), ("y", "p", 1), ("z", "q", None)]
    assert rows[0]["scores"] == [0.5, 0.5]
    assert rows[2]["scores"][1] == pytest.approx(1 / (1 + np.exp(-3)), rel=1e-12)  # in float64
    assert [sum(r["scores"]) for r in rows] == pytest.approx([1, 1, 1], abs=1e-15)
    assert Classification(["no", "yes"]).rows(["x"], None, [0], logits[:1])[0]["patient"] is None


def test_balanced_weights_are_scikit_learns() -> None:
    y = np.array([0] * 7 + [1] * 2 + [2])
    theirs = compute_class_weight("balanced", classes=np.arange(3), y=y)
    assert balanced_weights(y, 3).tolist() == pytest.approx(theirs.tolist())
    assert balanced_weights(y, 3)[y].mean() == pytest.approx(1)


def test_a_class_without_cases_has_a_finite_weight() -> None:
    assert np.isfinite(balanced_weights(np.array([0, 0]), 3)).all()

"""The nouns: what is learnt. Small Protocols join them to the verbs; a job asks for the ones it needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor


class Task(Protocol):
    """All that evaluate and predict need."""

    labels: list[str]

    def rows(
        self, ids: Sequence[str], patients: Sequence[str] | None, labels: Sequence[int], logits_NK: Tensor
    ) -> list[dict[str, Any]]:
        """One row a case: case, patient, label, scores."""
        ...


class Trainable(Task, Protocol):
    """What train needs besides."""

    def loss(self, logits_BK: Tensor, target_B: Tensor) -> tuple[Tensor, Tensor | float]:
        """(sum, weight): sums and weights of parts add up to the whole's; the mean is sum / weight."""
        ...

"""One of K classes a case. Shapes: B samples, N cases, K classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor


class Classification:
    """Cross-entropy with class weights and label smoothing, exact over any parting of a batch."""

    def __init__(self, labels: list[str], class_weights_K: Tensor | None = None, label_smoothing: float = 0.0) -> None:
        self.labels, self.class_weights, self.label_smoothing = labels, class_weights_K, label_smoothing

    def loss(self, logits_BK: Tensor, target_B: Tensor) -> tuple[Tensor, Tensor | float]:
        """Sum of the samples' losses and of their weights (a sample's weight is its class's, 1 without weights).

        Source: Szegedy et al. 2016 (label smoothing); the quotient equals torch's cross_entropy(reduction="mean").
        """
        total = F.cross_entropy(
            logits_BK, target_B, weight=self.class_weights, reduction="sum", label_smoothing=self.label_smoothing
        )
        weight = float(len(target_B)) if self.class_weights is None else self.class_weights[target_B].sum()
        return total, weight

    def rows(
        self, ids: Sequence[str], patients: Sequence[str] | None, labels: Sequence[int], logits_NK: Tensor
    ) -> list[dict[str, Any]]:
        """One row a case; scores are the softmax, in float64."""
        scores = torch.softmax(logits_NK.double(), dim=1).tolist()
        return [
            {"case": case, "patient": patients[i] if patients else None, "label": y if y >= 0 else None, "scores": s}
            for i, (case, y, s) in enumerate(zip(ids, labels, scores, strict=True))
        ]


def balanced_weights(labels_N: NDArray[np.int64], classes: int) -> NDArray[np.float64]:
    """(K,) inverse class frequencies, so that a sample's mean weight is 1. Source: King and Zeng 2001, as in scikit-learn."""
    counts = np.bincount(labels_N, minlength=classes)
    return len(labels_N) / (classes * np.maximum(counts, 1))

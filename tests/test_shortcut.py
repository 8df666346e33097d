"""What site and age alone can tell: found where they do, nothing where they do not, and never from the judged cases."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from hpcai.metrics.rows import Rows
from hpcai.metrics.shortcut import shortcut
from hpcai.metrics.table import CaseTable


def world(leak: float = 0.0, n: int = 900, text: bool = True) -> tuple[Rows, CaseTable]:
    """`leak`: how often the site tells the class. Two thirds train; the network's scores are good."""
    rng = np.random.default_rng(1)
    label = rng.integers(0, 2, n)
    told = rng.random(n) < leak
    site = np.where(told, label, rng.integers(0, 2, n))
    names: list[str | None] = [f"site {s}" for s in site] if text else [f"{s + 3 * rng.random():.4f}" for s in site]
    names[5] = None
    case = [f"{i:04d}" for i in range(n)]
    split = ["train" if i % 3 else "test" for i in range(n)]
    table = CaseTable(case, split, label.astype(np.int64), groups={"site": names})
    test = np.array([s == "test" for s in split])
    s = 1 / (1 + np.exp(-rng.normal(size=n) - 2 * (label - 0.5)))
    rows = Rows([case[i] for i in np.flatnonzero(test)], None, label[test].astype(np.int64), np.stack([1 - s, s], 1)[test])
    return rows, table


@pytest.mark.parametrize("text", [True, False])
def test_a_site_that_tells_the_class_is_found_and_rivals_the_network(text: bool) -> None:
    found = shortcut(*world(0.9, text=text), "test")
    assert found is not None and found.columns == ["site"] and found.n_train == 600
    assert (found.estimate.value or 0) > 0.75
    value, low, high = found.difference.value, found.difference.low, found.difference.high
    assert value == pytest.approx((found.network.value or 0) - (found.estimate.value or 0)) and low < value < high


def test_a_site_that_tells_nothing_is_chance_and_the_network_is_shown_to_be_better() -> None:
    found = shortcut(*world(0.0), "test")
    assert found is not None and abs((found.estimate.value or 0) - 0.5) < 0.1
    assert found.difference.low is not None and found.difference.low > 0.1


def test_the_labels_of_the_judged_cases_do_not_matter_to_the_fit() -> None:
    rows, table = world(0.9)
    other = table.label.copy()
    other[[s == "test" for s in table.split]] ^= 1
    one, two = shortcut(rows, table, "test"), shortcut(rows, replace(table, label=other), "test")
    assert one is not None and one == two


def test_image_size_is_a_column_like_any_other() -> None:
    rows, table = world(0.0)
    size: list[tuple[int, ...] | None] = [(64, 64) if k else (32, 48) for k in table.label.tolist()]
    found = shortcut(rows, replace(table, size=size), "test")
    assert found is not None and "image size" in found.columns and found.estimate.value == 1.0


@pytest.mark.parametrize("change", ["no columns", "no training", "one class trained", "one class judged", "constant", "rare"])
def test_where_nothing_can_be_compared_there_is_nothing(change: str) -> None:
    rows, table = world(0.9)
    match change:
        case "no columns":
            table = replace(table, groups={})
        case "no training":
            table = replace(table, split=["test"] * len(table.case))
        case "one class trained":
            train = np.array([s == "train" for s in table.split])
            table = replace(table, label=np.where(train, 1, table.label))
        case "one class judged":
            rows = rows.where(rows.label == 1)
        case "constant":
            table = replace(table, groups={"site": ["A"] * len(table.case)})
        case "rare":
            table = replace(table, groups={"site": [f"free text {i}" for i in range(len(table.case))]})
    assert shortcut(rows, table, "test") is None

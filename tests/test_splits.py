"""Splits: whole patients, no leak, the same for any order of the table."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcai.config.schema import Data, Split
from hpcai.data.cases import SPLITS, Cases
from hpcai.data.open import open_cases
from hpcai.data.splits import Splits, duplicates, eval_indices, from_json, make_splits, to_json
from hpcai.errors import DataError, Faults
from hpcai.inputs import SHIPPED


class Table(Cases):
    """Cases without files; the pixels of case i are `content[i]`."""

    def __init__(self, labels: Any, patients: Any = None, published: Any = None, content: Any = None) -> None:
        self.ids = [f"c{i}" for i in range(len(labels))]
        self.labels = np.array(labels, dtype=np.int64)
        self.patients, self.published = patients, published
        self.content = content or list(range(len(labels)))

    def read(self, index: int) -> Any:
        return np.full((1, 2, 2), self.content[index], np.float32)

    def permuted(self, order: Any) -> Table:
        def take(values: Any) -> Any:
            return None if values is None else [values[i] for i in order]

        table = Table(take(self.labels.tolist()), take(self.patients), take(self.published), take(self.content))
        table.ids = take(self.ids)
        return table


def named(splits: Splits, cases: Cases) -> dict[str, set[str]]:
    return {name: {cases.ids[i] for i in part} for name, part in splits.parts().items()}


@st.composite
def tables(draw: st.DrawFn) -> Table:
    """Patients with one to three cases each, two to four classes of 12 patients or more; some tables know no patients."""
    classes = draw(st.integers(2, 4))
    each = draw(st.lists(st.integers(1, 3), min_size=12 * classes, max_size=60))
    labels = [p % classes for p, n in enumerate(each) for _ in range(n)]
    patients = [f"p{p}" for p, n in enumerate(each) for _ in range(n)]
    return Table(labels, patients if draw(st.booleans()) else None)


configs = st.one_of(
    st.builds(
        Split,
        by=st.just("random"),
        val_fraction=st.floats(0.05, 0.4),
        test_fraction=st.floats(0.05, 0.4),
        seed=st.integers(0, 99),
    ),
    st.builds(
        Split,
        by=st.just("kfold"),
        folds=st.just(5),
        fold=st.integers(0, 4),
        val_fraction=st.floats(0.05, 0.5),
        seed=st.integers(0, 99),
    ),
)


@settings(deadline=None)
@given(tables(), configs, st.randoms(use_true_random=False))
def test_splits_are_disjoint_complete_whole_and_the_same_for_a_permuted_table(table: Table, cfg: Split, random: Any) -> None:
    splits = make_splits(table, cfg)
    assert sorted(i for part in splits.parts().values() for i in part.tolist()) == list(range(len(table)))
    for part in splits.parts().values():
        assert np.all(np.diff(part) > 0) and part.dtype == np.int64
        assert set(table.labels[part]) == set(table.labels)  # every class, as there are patients enough
    if table.patients is not None:
        of = [{table.patients[i] for i in part} for part in splits.parts().values()]
        assert sum(map(len, of)) == len(set(table.patients))
    order = list(range(len(table)))
    random.shuffle(order)
    shuffled = table.permuted(order)
    assert named(make_splits(shuffled, cfg), shuffled) == named(splits, table)


@settings(deadline=None)
@given(tables(), st.integers(2, 6), st.integers(0, 99))
def test_every_patient_is_tested_in_exactly_one_fold(table: Table, folds: int, seed: int) -> None:
    parts = [make_splits(table, Split(by="kfold", folds=folds, fold=f, seed=seed)).test for f in range(folds)]
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(table)))
    if table.patients is None:
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 2)), min_size=1, max_size=40), configs)
def test_any_table_is_split_whole_or_refused(rows: list[tuple[int, int]], cfg: Split) -> None:
    table = Table([label for _, label in rows], [f"p{p}" for p, _ in rows])  # patients of several classes, too few of them
    try:
        splits = make_splits(table, cfg)
    except (DataError, Faults):
        return
    of = [{rows[i][0] for i in part} for part in splits.parts().values()]
    assert sum(map(len, of)) == len({p for p, _ in rows}) and sum(map(len, splits.parts().values())) == len(rows)


def test_shares_are_met_within_each_class() -> None:
    table = Table([0] * 300 + [1] * 100)
    splits = make_splits(table, Split(by="random", val_fraction=0.1, test_fraction=0.2))
    found = {name: Counter(table.labels[part].tolist()) for name, part in splits.parts().items()}
    assert found == {"train": {0: 210, 1: 70}, "val": {0: 30, 1: 10}, "test": {0: 60, 1: 20}}


def test_seed_decides_and_only_the_seed() -> None:
    table = Table([0, 1] * 50)
    one, same, other = (make_splits(table, Split(by="random", seed=s)) for s in (1, 1, 2))
    assert np.array_equal(one.test, same.test) and not np.array_equal(one.test, other.test)
    assert np.array_equal(one.val, same.val) and not np.array_equal(one.val, other.val)


def test_the_split_of_a_known_table_is_on_record() -> None:
    splits = make_splits(Table([0, 1] * 10), Split(by="random", val_fraction=0.2, test_fraction=0.2))
    assert {k: v.tolist() for k, v in splits.parts().items()} == {
        "train": [0, 1, 2, 3, 4, 6, 7, 9, 12, 13, 14, 15],
        "val": [10, 11, 17, 18],
        "test": [5, 8, 16, 19],
    }


# ---- published


def test_a_published_split_is_taken_as_it_is() -> None:
    table = Table([0, 1] * 6, published=["test"] * 4 + ["train"] * 4 + ["val"] * 4)
    splits = make_splits(table, Split())
    assert [p.tolist() for p in splits.parts().values()] == [[4, 5, 6, 7], [8, 9, 10, 11], [0, 1, 2, 3]]
    assert splits.note == {"by": "published", "seed": 0}


def test_validation_that_the_data_does_not_publish_is_cut_from_train_by_patient() -> None:
    patients = [f"p{i // 2}" for i in range(80)] + [f"t{i}" for i in range(4)]
    table = Table([i // 2 % 2 for i in range(84)], patients, ["train"] * 80 + ["test"] * 4)
    splits = make_splits(table, Split(val_fraction=0.25))
    assert len(splits.val) == 20 and splits.test.tolist() == [80, 81, 82, 83]
    assert not {patients[i] for i in splits.val} & {patients[i] for i in splits.train}
    assert splits.note["val"] == "0.25 of the published train"


def test_patients_on_both_sides_of_a_published_split_are_refused_with_counts() -> None:
    table = Table([0, 1] * 4, list("abcdabcx"), ["train"] * 4 + ["val"] * 2 + ["test"] * 2)
    with pytest.raises(DataError, match=r"2 in train/val, 1 in train/test, 0 in val/test"):
        make_splits(table, Split())


def test_data_without_a_split_says_so() -> None:
    with pytest.raises(DataError, match="states no split"):
        make_splits(Table([0, 1] * 6), Split())


@pytest.mark.parametrize(
    ("labels", "published", "says"),
    [
        ([0, 1] * 4, ["train"] * 4 + ["val"] * 4, "test has no case"),
        ([0, 1] * 4, ["val"] * 4 + ["test"] * 4, "train has no case"),
        ([0, 1, 0, 1, 0, 1, 1, 1], ["train"] * 4 + ["val"] * 2 + ["test"] * 2, "test has 2 cases of one class only"),
        ([1] * 8, ["train"] * 4 + ["val"] * 2 + ["test"] * 2, "train has 4 cases of one class only"),
    ],
)
def test_an_empty_or_one_class_part_is_refused(labels: Any, published: Any, says: str) -> None:
    with pytest.raises((DataError, Faults), match=says):
        make_splits(Table(labels, published=published), Split())


def test_too_few_patients_are_refused() -> None:
    with pytest.raises((DataError, Faults), match=r"val has (no case|1 cases)"):
        make_splits(Table([0, 1] * 3, ["a", "b"] * 3), Split(by="random"))
    with pytest.raises((DataError, Faults), match="test has"):
        make_splits(Table([0, 1] * 3), Split(by="kfold", folds=50, fold=49))


def test_evaluate_needs_only_the_part_that_it_scores() -> None:
    table = Table([0, 1] * 4, published=["test"] * 8)
    cfg = Data(path="x", labels=["a", "b"])
    assert eval_indices(table, cfg).tolist() == list(range(8))
    assert eval_indices(table, cfg.model_copy(update={"eval_split": "all"})).tolist() == list(range(8))
    with pytest.raises(DataError, match="eval_split=val: the data publishes no such part"):
        eval_indices(table, cfg.model_copy(update={"eval_split": "val"}))


# ---- duplicates and split.json


def test_equal_contents_on_both_sides_are_counted_once_each() -> None:
    published = ["train"] * 4 + ["val"] * 3 + ["test"] * 3
    table = Table([0, 1] * 5, published=published, content=[1, 1, 2, 3, 1, 2, 9, 3, 8, 8])
    assert duplicates(table, make_splits(table, Split())) == {"train/val": 2, "train/test": 1, "val/test": 0}


def test_pneumoniamnist_has_8_duplicates_between_train_and_validation() -> None:
    cases = open_cases(Data(path=str(SHIPPED / "pneumoniamnist" / "pneumoniamnist.npz"), labels=["normal", "pneumonia"]))
    splits = make_splits(cases, Split())
    assert duplicates(cases, splits) == {"train/val": 8, "train/test": 0, "val/test": 0}
    assert {k: len(v) for k, v in splits.parts().items()} == {"train": 4708, "val": 524, "test": 624}


def test_split_json_comes_back_the_same_for_any_order_of_the_cases() -> None:
    table = Table([0, 1] * 20, [f"p{i // 2}" for i in range(40)])
    table.labels = np.array([i // 2 % 2 for i in range(40)])
    splits = make_splits(table, Split(by="kfold", folds=4, fold=2))
    value = to_json(splits, table)
    assert value["by"] == "kfold" and value["fold"] == 2 and value["counts"]["test"] == len(splits.test) == len(value["test"])
    assert sum(value["classes"]["test"].values()) == len(splits.test) == 10 and set(value["classes"]["test"]) == {"0", "1"}
    assert sum(value["patients"].values()) == 20 and value["duplicates"] == {"train/val": 0, "train/test": 0, "val/test": 0}
    back = from_json(value, table)
    assert (
        all(np.array_equal(a, b) for a, b in zip(back.parts().values(), splits.parts().values())) and back.note == splits.note
    )
    turned = table.permuted(range(39, -1, -1))
    assert named(from_json(value, turned), turned) == named(splits, table)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda v: v["test"].append("gone"), "1 of its cases are gone"),
        (lambda v: v["test"].pop(), "0 of its cases are gone from the data, 1 are new"),
        (lambda v: v["test"].append(v["train"][0]), "holds a case twice"),
        (lambda v: v.pop("val"), "is damaged"),
        (lambda v: v.update(val=None), "is damaged"),
    ],
)
def test_a_split_json_that_does_not_fit_the_data_is_refused(change: Any, says: str) -> None:
    table = Table([0, 1] * 20)
    value = to_json(make_splits(table, Split(by="random")), table)
    assert set(SPLITS) < set(value)
    change(value)
    with pytest.raises(DataError, match=says):
        from_json(value, table)

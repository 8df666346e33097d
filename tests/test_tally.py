"""What a cohort came to: counts by hand, any order and sharding, and nothing that names a newborn."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from screening_cohort import cohort, panel

from hpcai.screening import tally as module
from hpcai.screening.batch import Batch, RowFault
from hpcai.screening.decisions import Decisions
from hpcai.screening.tally import TRUTHS, UNAFFECTED, UNKNOWN, WORDS, Tally


def batch(n: int, **text: Any) -> Batch:
    """n rows of laboratory A, 2026-11, plate p1."""
    told = {name: np.full(n, word) for name, word in {"laboratory": "A", "month": "2026-11", "plate": "p1"}.items()}
    told |= {name: np.array(words) for name, words in text.items()}
    return Batch(np.arange(2, n + 2), np.array([f"secret-{i}" for i in range(n)]), np.ones((n, 1)), text=told)


def decided(codes: list[list[int]], reasons: list[list[int]] | None = None) -> Decisions:
    """Decisions with the reasons 0 (nothing), 1 (rule), 6 (specimen), 8 (missing) as the code has them."""
    code_ND = np.array(codes, np.int8)
    reason_ND = np.array([0, 8, 6, 3, 1], np.int8)[code_ND] if reasons is None else np.array(reasons, np.int8)
    return Decisions(code_ND, reason_ND, np.zeros(code_ND.shape, bool), np.ones(code_ND.shape, bool))


def parts(n: int, size: int) -> list[tuple[Any, ...]]:
    """A cohort of n, in batches."""
    whole, made, truth, rules, called = cohort(n)
    found = []
    for at in range(0, n, size):
        rows = slice(at, at + size)
        faults = [RowFault(f.index - at, f.column, f.why) for f in whole.faults if at <= f.index < at + size]
        text = {name: words[rows] for name, words in whole.text.items()}
        part = Batch(whole.row[rows], whole.sample[rows], whole.x_NA[rows], text=text, faults=faults)
        words = Decisions(made.code_ND[rows], made.reason_ND[rows], made.softened_ND[rows], made.heard_ND[rows])
        found.append((part, words, truth[rows], {name: said[rows] for name, said in rules.items()}, called[rows]))
    return found


def test_counts_are_those_by_hand() -> None:
    """Four newborns, three diseases (PKU, MCAD, HCY): refer and true; refer and false; clear and ill; nothing known."""
    tally = Tally(panel(), simulated=True)
    rules = {"old": np.array([[1, 0, -2], [0, 1, -2], [0, 0, -2], [-1, 0, -2]], np.int8)}
    codes = [[4, 0, 0], [0, 4, 0], [0, 0, 0], [1, 0, 2]]
    tally.add(batch(4), decided(codes), np.array([0, UNAFFECTED, 2, UNKNOWN]), rules)
    assert tally.ways == ["decision", "rules: old"]
    assert tally.covered == {"decision": [True] * 3, "rules: old": [True, True, False]}
    counts = tally.over()
    at = {word: k for k, word in enumerate(WORDS)}
    of = {truth: k for k, truth in enumerate(TRUTHS)}
    assert counts[0, 0, at["refer"], of["affected"]] == 1  # PKU, called and ill
    assert counts[0, 1, at["refer"], of["unaffected"]] == 1  # MCAD, called and well
    assert counts[0, 2, at["clear"], of["affected"]] == 1  # HCY, missed
    assert counts[0, 2, at["new_sample"], of["other"]] == 1  # a specimen's repeat suspects nobody
    assert counts[0, 0, at["not_assessable"], of["other"]] == 1
    assert counts[1, 2, at["no_rule"]].sum() == 4
    assert counts[0, -2].sum() == counts[1, -2].sum() == 4  # each newborn once, by the most urgent word
    assert counts[0, -2, at["refer"]].tolist() == [1, 1, 0]
    # over PKU and MCAD, which both ways judge: the newborn with HCY is neither well nor ill there
    assert counts[1, -1, at["clear"], of["other"]] == 1
    assert tally.shared.tolist() == [True, True, False]
    assert (tally.n, tally.flagged) == (4, 2)


def test_the_line_of_a_newborn_tells_who_drops_out_and_why() -> None:
    tally = Tally(panel(), simulated=False)
    codes, reasons = [[1, 1, 1], [1, 0, 0], [0, 0, 0], [3, 2, 1]], [[12] * 3, [8, 0, 0], [0, 0, 0], [3, 6, 8]]
    tally.add(batch(4), decided(codes, reasons), np.full(4, UNKNOWN), {})
    assert dict(tally.out) == {"plate failed its controls": 1}
    assert dict(tally.lines) == {"partly": 1, "clear": 1, "reflex": 1}


def test_the_laboratorys_own_words_stand_beside_ours_and_no_other_text_of_the_table_does() -> None:
    tally = Tally(panel(), simulated=False)
    tally.add(batch(3, decision=["refer", "", "Baby Smith"]), decided([[0, 0, 0]] * 3), np.full(3, UNKNOWN), {})
    assert dict(tally.own) == {("refer", "clear"): 1, ("not told", "clear"): 1, ("another word", "clear"): 1}
    assert "Smith" not in json.dumps(tally.to_json()) and "secret" not in json.dumps(tally.to_json())


def test_a_formula_in_a_laboratorys_name_is_never_written_out_raw() -> None:
    tally = Tally(panel(), simulated=False)
    text = {"laboratory": ["=cmd()", "@x"], "plate": ["+1", "p"], "month": ["-2", "2026-11"]}
    tally.add(batch(2, **text), decided([[4, 0, 0]] * 2), np.full(2, UNKNOWN), {})
    told = tally.to_json()
    assert [cell[:2] for cell in told["cells"]] == [["'=cmd()", "'-2"], ["'@x", "2026-11"]]
    assert sorted(entry[5:] for entry in told["review"]) == [["'=cmd()", "'+1"], ["'@x", "p"]]


@pytest.mark.parametrize("size", [1, 7, 64, 400])
def test_any_sharding_gives_the_same_bytes(size: int) -> None:
    whole = Tally(panel(), simulated=True)
    whole.add(*cohort(400))
    shards = []
    for part in parts(400, size):
        shards.append(Tally(panel(), simulated=True))
        shards[-1].add(*part)
    total = Tally(panel(), simulated=True)
    for k in np.random.default_rng(size).permutation(len(shards)).tolist():
        total.merge(Tally.from_json(json.loads(json.dumps(shards[k].to_json())), panel()))
    assert json.dumps(total.to_json()) == json.dumps(whole.to_json())


@given(st.lists(st.integers(0, 399), min_size=1, max_size=60))
def test_the_review_list_keeps_the_most_urgent_whatever_comes_first(cuts: list[int]) -> None:
    """Against sorting all of them at once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "REVIEWED", 9)
        whole, made = cohort(400)[:2]
        tally = Tally(panel(), simulated=True)
        for part in parts(400, 1 + cuts[0] % 50):
            tally.add(*part)
    days = [7, 5, 7]
    everybody = sorted(
        (days[d], -int(made.code_ND[i, d]), int(whole.row[i]), d)
        for i, d in np.argwhere((made.code_ND >= 2) & (made.reason_ND != 6)).tolist()
    )
    assert [entry[:4] for entry in tally.review] == everybody[:9]
    assert tally.flagged == len(everybody)


def test_no_batch_no_counts() -> None:
    tally = Tally(panel(), simulated=True)
    tally.add(batch(0), None, np.zeros(0, np.int64), {})
    other = Tally(panel(), simulated=True)
    other.merge(tally)
    assert other.n == 0 and other.to_json() == tally.to_json()

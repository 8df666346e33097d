"""A small screened cohort, by hand: what tally, numbers, page and verbs are tried on. Its numbers are no laboratory's."""

from __future__ import annotations

from typing import Any

import numpy as np

from hpcai.book.diseases import Disease, Diseases
from hpcai.screening.batch import Batch, RowFault
from hpcai.screening.decisions import Decisions
from hpcai.screening.numbers import screening
from hpcai.screening.tally import UNAFFECTED, UNKNOWN, Tally

Json = dict[str, Any]
NAMES = ("PKU", "MCAD", "HCY")
BOOKS = {name: f"{k}" * 64 for k, name in enumerate(("dictionary", "panel", "policy", "rules: heidelberg2003", "specimen"))}


def panel(names: tuple[str, ...] = NAMES) -> Diseases:
    """Diseases of one incidence; the second is time-critical and has a second tier."""
    found = [
        Disease(
            name=name,
            title=f"{name} in full",
            markers=["Phe"],
            needs=["Phe"],
            second_tier="gene panel" if k == 1 else None,
            second_tier_source="assumed, for a test",
            time_critical=k == 1,
            time_source="assumed, for a test",
            incidence=1e-4,
            incidence_source="assumed, for a test",
        )
        for k, name in enumerate(names)
    ]
    return Diseases(name="small", title="A small panel", diseases=found, day_source="assumed, for a test")


def cohort(
    n: int, seed: int = 0, laboratories: tuple[str, ...] = ("A", "B")
) -> tuple[Batch, Decisions, np.ndarray, Json, np.ndarray]:
    """(batch, decisions, truth, rules, called) drawn at random: any word beside any truth."""
    rng = np.random.default_rng(seed)
    text = {
        "laboratory": rng.choice(laboratories, n),
        "month": rng.choice(["2026-10", "2026-11"], n),
        "plate": rng.choice(["p1", "p2"], n),
        "decision": rng.choice(["refer", "clear", "", "hold"], n),
    }
    faults = [RowFault(i, "Phe", "negative") for i in range(0, n, 7)]
    batch = Batch(np.arange(2, n + 2), np.array([f"s{i}" for i in range(n)]), np.ones((n, 1)), text=text, faults=faults)
    truth_N = rng.choice([0, 1, 2, UNAFFECTED, UNKNOWN], n, p=[0.02, 0.02, 0.01, 0.93, 0.02])
    sick_ND = truth_N[:, None] == np.arange(3)
    ill, well = (rng.choice(5, (n, 3), p=p) for p in ([0.1, 0.1, 0, 0.2, 0.6], [0.96, 0.01, 0.01, 0.01, 0.01]))
    code_ND = np.where(sick_ND, ill, well).astype(np.int8)
    reason_ND = np.array([0, 7, 6, 3, 1], np.int8)[code_ND]  # as each code may have it; repeat: the specimen's
    code_ND[::41], reason_ND[::41] = 1, 12  # a failed plate: nothing can be said
    alarms_ND = np.where(sick_ND, rng.random((n, 3)) < 0.8, rng.random((n, 3)) < 0.03)
    rules = {"heidelberg2003": np.where(rng.random((n, 3)) < 0.02, -1, alarms_ND).astype(np.int8)}
    rules["heidelberg2003"][:, 2] = -2
    called_ND = np.where(sick_ND, rng.random((n, 3)) < 0.9, rng.random((n, 3)) < 0.01).astype(np.int8)
    return batch, Decisions(code_ND, reason_ND, np.zeros((n, 3), bool), np.ones((n, 3), bool)), truth_N, rules, called_ND


def tallied(n: int = 400, *, simulated: bool = True, names: tuple[str, str] = ("A", "B"), **change: Any) -> Json:
    """screening.json of such a cohort, with every part that others measure. `names`: of two laboratories."""
    tally = Tally(panel(), simulated)
    tally.add(*cohort(n, laboratories=names))
    told = screening(
        tally,
        kind="cohort",
        split="predict",
        books=BOOKS,
        fitness=[fitness(laboratory, month, k) for k, laboratory in enumerate(names) for month in ("", "2026-10", "2026-11")],
        plates=plates(),
        distributions=[distribution(channel, names) for channel in ("Phe", "C8", "Phe/Tyr")],
        thresholds=[
            {"disease": name, "value": 0.25, "rule": "sensitivity>=0.98", "sensitivity": share("sensitivity", 40 - k, 40)}
            for k, name in enumerate(NAMES)
        ],
        conformal=[
            {"disease": name, "group": group, "wanted": 0.95, "coverage": share("coverage", 90 + k, 95)}
            | {"undecided": share("undecided", k, 95)}
            for k, name in enumerate(NAMES)
            for group in ("affected", "unaffected")
        ],
    )
    return told | change


def distribution(channel: str, names: tuple[str, str]) -> Json:
    """Two laboratories, the second higher."""
    at, edges = np.arange(20), np.geomspace(1, 1000, 21)
    humps = [1 + 300 * np.exp(-(((at - 9 - k) / 3) ** 2)) for k in range(2)]
    series = [{"name": name, "counts": hump.astype(int).tolist()} for name, hump in zip(names, humps, strict=True)]
    return {"channel": channel, "unit": "umol/L", "edges": edges.tolist(), "series": series}


def share(name: str, k: int, n: int) -> Json:
    """An estimate."""
    return {
        "name": name,
        "split": "predict",
        "value": k / n,
        "low": max(0.0, k / n - 0.05),
        "high": 1.0,
        "n": n,
        "method": "made up",
    }


def fitness(laboratory: str, month: str, k: int) -> Json:
    """One laboratory and month."""
    verdict, sentence = (
        ("fits", "Medians and spreads are those of training."),
        ("not_valid", "Spreads and correlations differ from training: not valid here, recalibrate."),
    )[k]
    z = np.linspace(-4, 4, 41)
    hump = np.exp(-(z**2) / 2) / 12
    plot = [
        {
            "channel": name,
            "z": z.tolist(),
            "training": hump.tolist(),
            "before": np.roll(hump, 6 * k).tolist(),
            "after": hump.tolist(),
        }
        for name in ("Phe", "C8")
    ]
    test = {"channel": "Phe", "question": "before", "effect": 0.4 * k, "allowed": 0.05, "p": 0.5, "differs": bool(k)}
    told = {"verdict": verdict, "sentence": sentence, "tests": [test], "rejected": ["Phe"] * k, "plot": plot}
    return {"laboratory": laboratory, "month": month, "n": 100 + k, **told}


def plates() -> Json:
    """Twelve plates, the last of which failed."""
    names = [f"p{i}" for i in range(12)]
    z = [0.3, -0.8, 1.1, -0.2, 0.5, -1.6, 0.9, 0.1, -0.4, 2.2, 0.7, 3.4]
    found = [{"laboratory": "A", "plate": name, "ok": name != "p11", "n": 2, "why": "", "broken": []} for name in names]
    found[-1]["broken"] = [{"analyte": "Phe", "material": "high", "rule": "1_3s"}]
    series = [
        {"laboratory": "A", "analyte": "Phe", "material": material, "plates": names, "z": z[::way], "ok": [True] * 11 + [False]}
        for material, way in (("low", 1), ("high", -1))
    ]
    return {"rules": ["1_2s", "1_3s", "2_2s"], "plates": found, "series": series}

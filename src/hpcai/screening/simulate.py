"""A simulated cohort, block by block.   book, dictionary, panel, seed -> frames of the dictionary's columns, with the truth

A row depends on the seed and its block (number and size) alone, so a cohort streams at any size. A laboratory's shifts depend
on its name alone. What it makes says so: each laboratory is called `simulated ...`. Simulation proves a method, not a medicine.
L laboratories, F hidden factors, P plates of a block.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from hpcai.book.analytes import Dictionary
from hpcai.book.diseases import Diseases
from hpcai.book.simulation import Laboratory, Law, SimulationBook, State
from hpcai.errors import ConfigError, near
from hpcai.screening.batch import Bools, Floats, Ints, Texts

if TYPE_CHECKING:
    import polars as pl

BLOCK = 4096
MARK = "simulated"  # how a laboratory's name begins
DIGITS = 4  # significant ones of a concentration
VAL = 0.2  # of the families of a laboratory whose split is train
NOISE = 0.15  # of `mixing`: how far loadings move that the book does not have
FULL = 0.95  # the most of an analyte's variance that a laboratory's factors explain
CLASSICAL = 0.3  # severity from which a case is no late-onset one
NORMAL_QUARTILE = 0.6744897501960817  # the upper one, of mean 0 and sd 1
MEASURED = ("gestation_weeks", "weight_g", "age_h")  # the other numbers of a newborn are whole
# What random numbers are for: the first word of a stream's seed, so that no two uses share one.
ROWS, PLATE, LABORATORY, MONTH, SLOT, KIN = range(6)


@dataclass
class Simulation:
    """Draws newborns.

    Attributes:
        seed: of newborns and plates; laboratories stay the same.
        laboratories: names, or laboratories of one's own; None: all of the book.
        tail: law of all laboratories; None: each its own.
        enrich: cases of each disease a newborn, one every 1 / (enrich * D) rows; 0: drawn at the panel's incidences.
        months: None: the book's.
        plates_a_month: None: the book's; after the last month the first comes again.
        failed: numbers of plates that fail, beside those that fail by chance.
        split: whether there is a column `split`: train and val by family, test by laboratory.

    Raises:
        ConfigError: an unknown laboratory or law, a disease without a profile, an analyte without a distribution, or more
            cases than rows.
    """

    book: SimulationBook
    dictionary: Dictionary
    panel: Diseases
    seed: int
    laboratories: Sequence[str | Laboratory] | None = None
    tail: Law | None = None
    enrich: float = 0.0
    months: Sequence[str] | None = None
    plates_a_month: int | None = None
    failed: Sequence[int] = ()
    split: bool = False

    def __post_init__(self) -> None:
        known = {lab.name: lab for lab in self.book.laboratories}
        asked = list(known) if self.laboratories is None else self.laboratories
        if unknown := [lab for lab in asked if isinstance(lab, str) and lab not in known]:
            raise ConfigError(f"laboratories={unknown[0]}: the book {self.book.name} has none. {near(unknown[0], list(known))}")
        self._labs = [known[lab] if isinstance(lab, str) else lab for lab in asked]
        if not self._labs or len({lab.name for lab in self._labs}) < len(self._labs):
            raise ConfigError("laboratories: none, or one twice. Name each once.")
        if self.tail not in (None, "lognormal", "student", "mixture"):
            raise ConfigError(f"tail={self.tail}: is no law. {near(str(self.tail), ['lognormal', 'student', 'mixture'])}")
        healthy = {h.name: h for h in self.book.healthy}
        if missing := [a.name for a in self.dictionary.analytes if a.required and a.name not in healthy]:
            raise ConfigError(f"{missing[0]}: the book {self.book.name} has no distribution of it. Add one under healthy.")
        self._analytes = [a for a in self.dictionary.analytes if a.name in healthy]
        self._index = {a.name: k for k, a in enumerate(self._analytes)}
        self._healthy = [healthy[a.name] for a in self._analytes]
        profiles = {p.disease: p for p in self.book.profiles}
        if missing := [d for d in self.panel.names if d not in profiles]:
            raise ConfigError(f"{missing[0]}: the book {self.book.name} has no profile of it. Add one under profiles.")
        self._profiles = [profiles[d] for d in self.panel.names]
        if not 0 <= self.enrich * len(self._profiles) <= 1:
            raise ConfigError(f"enrich={self.enrich:g}: more cases than newborns. Ask for fewer cases, or for more newborns.")

    # --- what is asked for

    def block(self, number: int, size: int = BLOCK) -> pl.DataFrame:
        """Rows number * size up to (number + 1) * size; concentrations of DIGITS significant digits, empty where missing."""
        import polars as pl

        rng = self._rng(ROWS, number, size)
        row = np.arange(number * size, (number + 1) * size)
        plate = row // self.book.plates.size
        lab, month = self._laboratory_of(plate), self._month_of(plate)
        twin = (rng.random(size) < self.book.newborns.twin) & (row % self.book.plates.size > 0) & (np.arange(size) > 0)
        twin[1:] &= ~twin[:-1]
        facts = self._newborns(rng, twin)
        preterm = np.nan_to_num(facts["gestation_weeks"], nan=40.0) < 37
        disease = self._disease(rng, row)
        ln = np.log([h.median for h in self._healthy]) + self._spread(rng, lab, month, twin) + self._slopes(facts)
        ln += self._places(rng, lab, month, plate)
        hides = self._states(rng, preterm, facts, ln)
        self._cases(rng, disease, hides, ln)
        x = self._reported(rng, lab, ln)
        self._forget(rng, facts)
        columns = {a.name: pl.Series(x[:, k]).cast(pl.Float32) for k, a in enumerate(self._analytes)}
        texts = self._texts(row, plate, lab, month, twin, disease, x)
        numbers = {name: pl.Series(v).cast(pl.Float32 if name in MEASURED else pl.Int8) for name, v in facts.items()}
        frame = pl.DataFrame({**texts, **numbers, **columns})
        return frame.select(self._named(frame.columns)).with_columns(pl.selectors.float().fill_nan(None))

    def controls(self, number: int, size: int = BLOCK) -> pl.DataFrame:
        """The control wells of the plates that begin in the block: laboratory, plate, month, material, analytes (umol/L).

        A laboratory's controls are assigned by itself, so its shift against others is not in them; its plates' shifts are.
        """
        import polars as pl

        book = self.book.plates
        plate = np.arange(-(-number * size // book.size), -(-(number + 1) * size // book.size))
        lab, month = self._laboratory_of(plate), self._month_of(plate)
        wells = [m for m in book.materials for _ in range(book.controls)]
        median = np.log([h.median for h in self._healthy])
        ln = np.concatenate([self._plate(p) for p in plate.tolist()] or [np.empty((0, len(median)))])
        noise = np.stack([self._rng(PLATE, p, 1).standard_normal((len(wells), len(median))) for p in plate.tolist()] or
                         [np.empty((0, len(wells), len(median)))])  # fmt: skip
        assigned = np.log([m.multiple for m in wells])[:, None] + median
        x = rounded(np.exp(assigned + ln[:, None, :] + book.control_sd_ln * noise)).reshape(-1, len(median))
        at = np.repeat(np.arange(len(plate)), len(wells))
        frame = pl.DataFrame({
            "laboratory": self._lab_names[lab[at]],
            "plate": self._plate_names(plate, lab)[at],
            "month": self._months[month[at]],
            "material": np.tile([m.name for m in wells], len(plate)),
        } | {a.name: pl.Series(x[:, k]).cast(pl.Float32) for k, a in enumerate(self._analytes)})  # fmt: skip
        return frame

    # --- where and when

    def _rng(self, *words: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, *words])

    @cached_property
    def _months(self) -> Texts:
        return np.array(list(self.book.months if self.months is None else self.months))

    @cached_property
    def _lab_names(self) -> Texts:
        return np.array([f"{MARK} {lab.name}" for lab in self._labs])

    def _laboratory_of(self, plate: Ints) -> Ints:
        edges = np.cumsum([lab.share for lab in self._labs])
        at = np.searchsorted(edges / edges[-1], hashed(self.seed, PLATE, plate), side="right")
        return np.minimum(at, len(self._labs) - 1)

    def _month_of(self, plate: Ints) -> Ints:
        return plate // (self.plates_a_month or self.book.plates.a_month) % len(self._months)

    def _plate_names(self, plate: Ints, lab: Ints) -> Texts:
        return np.array([f"{self._labs[a].name}-{p:07d}" for p, a in zip(plate.tolist(), lab.tolist(), strict=True)], dtype=str)

    def _plate(self, plate: int) -> Floats:
        """(1, A) shift of the logarithm."""
        book, rng = self.book.plates, self._rng(PLATE, plate, 0)
        shift = book.sd_ln * rng.standard_normal(len(self._analytes))
        by_chance = rng.random() < book.failed and not self.split  # no laboratory teaches with plates that failed
        if by_chance or plate in self.failed:
            shift[rng.permutation(len(shift))[: max(1, len(shift) // 3)]] += book.failed_ln
        return shift[None]

    def _places(self, rng: np.random.Generator, lab: Ints, month: Ints, plate: Ints) -> Floats:
        """(n, A) shift of the logarithm by laboratory, its month and plate."""
        first = int(plate[0])
        shifts = np.concatenate([self._plate(p) for p in range(first, int(plate[-1]) + 1)])[plate - first]
        for a, m in sorted({*zip(lab.tolist(), month.tolist(), strict=True)}):
            here = np.flatnonzero((lab == a) & (month == m))
            book, name = self._labs[a], str(self._months[m])
            shifts[here] += book.common_ln + book.shift_ln * self._own(a, LABORATORY, 0)
            shifts[here] += book.drift_ln * self._own(a, MONTH, zlib.crc32(name.encode()))
            for d in (d for d in book.disturbed if d.month == name):
                touched = here[rng.random(len(here)) < d.share]
                shifts[touched] += d.shift_ln * self._own(a, MONTH, 1)
        return shifts

    def _own(self, lab: int, *words: int) -> Floats:
        """(A,) standard normal numbers that belong to a laboratory's name and the analytes' names."""
        return _owned(self._labs[lab].name, tuple(self._index), words)

    # --- the healthy

    @cached_property
    def _loadings(self) -> list[tuple[Floats, Floats]]:
        """A laboratory's loadings (A, F), and the share of each analyte's own part (A,): variances sum to 1."""
        base = np.array([[f.loadings.get(a.name, f.everywhere) for f in self.book.factors] for a in self._analytes])
        base = base.reshape(len(self._analytes), len(self.book.factors))
        both = []
        for at, lab in enumerate(self._labs):
            own = [np.stack([self._own(at, LABORATORY, k, f) for f in range(base.shape[1])], 1) for k in (1, 2)] \
                if base.shape[1] else [base, base]  # fmt: skip
            moved = base * np.exp(lab.mixing * own[0]) + NOISE * lab.mixing * own[1]
            total = (moved**2).sum(1, keepdims=True)
            moved *= np.sqrt(np.minimum(1.0, FULL / np.maximum(total, 1e-12)))
            both.append((moved, np.sqrt(1 - (moved**2).sum(1))))
        return both

    def _spread(self, rng: np.random.Generator, lab: Ints, month: Ints, twin: Bools) -> Floats:
        """(n, A) deviation of the logarithm from the laboratory's median."""
        n, sd = len(lab), np.array([h.sd_ln for h in self._healthy])
        f, z = rng.standard_normal((n, len(self.book.factors))), rng.standard_normal((n, len(sd)))
        for a in np.unique(lab).tolist():
            here, (loadings, rest) = lab == a, self._loadings[a]
            z[here] = f[here] @ loadings.T + z[here] * rest
        second = np.flatnonzero(twin)
        r = self.book.newborns.twin_correlation
        z[second] = r * z[second - 1] + np.sqrt(1 - r * r) * z[second]
        z *= self._tails(rng, lab)
        for a, m in sorted({*zip(lab.tolist(), month.tolist(), strict=True)}):
            book = self._labs[a]
            wider = np.prod([d.spread for d in book.disturbed if d.month == self._months[m]])
            z[(lab == a) & (month == m)] *= wider * np.exp(book.spread_ln * self._own(a, LABORATORY, 3))
        return np.asarray(z * sd, dtype=np.float64)

    def _tails(self, rng: np.random.Generator, lab: Ints) -> Floats:
        """(n, A) by which normal numbers are multiplied under their laboratory's law. Student's law keeps the quartiles."""
        book, by = self.book.tails, np.ones((len(lab), len(self._analytes)))
        law = np.array([self.tail or one.tail for one in self._labs])[lab]
        if (student := law == "student").any():
            chi = rng.chisquare(book.student_df, (int(student.sum()), by.shape[1])) / book.student_df
            by[student] = NORMAL_QUARTILE / book.student_quartile / np.sqrt(chi)
        by[(law == "mixture") & (rng.random(len(lab)) < book.mixture_share)] = book.mixture_scale
        return by

    def _newborns(self, rng: np.random.Generator, twin: Bools) -> dict[str, Floats]:
        """Columns that are numbers: of a second twin gestation and weight are near the first one's."""
        book, n = self.book.newborns, len(twin)
        preterm = rng.random(n) < book.preterm
        # assumed shapes: term 37 to 42 weeks about 39.6, preterm 1 to 14 weeks early with most of them late preterm
        term = np.clip(39.6 + 1.2 * rng.standard_normal(n), 37.0, 42.3)
        weeks = np.where(preterm, np.clip(37 - rng.gamma(1.1, 2.4, n), 23.0, 36.9), term)
        weeks[twin] = weeks[np.flatnonzero(twin) - 1]
        # assumed: 3500 g at 40 weeks, 5.5 % less a week before, 13 % scatter
        weight = np.clip(3500 * np.exp(0.055 * (weeks - 40) + 0.13 * rng.standard_normal(n)), 400, 6000)
        u = rng.random(n)
        usual = 36 + 36 * rng.beta(1.5, 2.5, n)
        age = np.where(u < book.early, 12 + 24 * rng.random(n), usual)
        age = np.where(u > 1 - book.late, 72 + 96 * rng.random(n) ** 2, age)
        second = rng.random(n) < book.second
        return {
            "gestation_weeks": np.floor(weeks * 10) / 10,
            "weight_g": np.round(weight / 5) * 5,
            "age_h": np.round(np.where(second, age + 240 * rng.random(n) + 48, age)),
            "sample_number": 1.0 + second,
            "punch_quality": (rng.random(n) >= book.poor).astype(float),
        }  # fmt: skip

    def _slopes(self, facts: dict[str, Floats]) -> Floats:
        """(n, A) effect of gestation, weight and age on the logarithm."""
        total = np.zeros((len(facts["age_h"]), len(self._analytes)))
        for slope in self.book.slopes:
            step = np.clip((facts[slope.column] - slope.centre) / slope.per, slope.low, slope.high)
            total += step[:, None] * np.array([slope.of.get(a.name, 0.0) for a in self._analytes])
        return total

    # --- states and diseases

    def _states(self, rng: np.random.Generator, preterm: Bools, facts: dict[str, Floats], ln: Floats) -> Floats:
        """Moves `ln` (n, A) by each state; fills its columns; (n,) part of an affected profile that is hidden."""
        n = len(preterm)
        hides = np.zeros(n)
        for state in self.book.states:
            held = rng.random(n) < np.where(preterm, state.preterm, state.share)
            self._move(rng, state, np.flatnonzero(held), ln)
            hides[held] = np.maximum(hides[held], state.hides)
            if state.column:
                facts[state.column] = np.maximum(facts.get(state.column, np.zeros(n)), held)
        return hides

    def _move(self, rng: np.random.Generator, state: State, held: Ints, ln: Floats) -> None:
        u = rng.random(len(held))  # one strength a newborn, so that analytes of a state rise together
        for name, (least, most) in state.multiples.items():
            if name in self._index:
                own = np.clip(u + 0.15 * rng.standard_normal(len(held)), 0, 1)
                ln[held, self._index[name]] += np.log(least) + own * np.log(most / least)

    def _disease(self, rng: np.random.Generator, row: Ints) -> Ints:
        """(n,) place in the panel, -1 unaffected."""
        edges = np.cumsum([d.incidence for d in self.panel.diseases])
        at = np.searchsorted(edges, rng.random(len(row)), side="right")
        if not self.enrich:
            return np.where(at < len(edges), at, -1)
        width = 1 / (self.enrich * len(edges))  # rows a case: one of them, at random, is affected
        slot = np.arange(max(0, int(row[0] / width) - 1), int((row[-1] + 1) / width) + 2)
        where = np.maximum(np.floor((slot + hashed(self.seed, SLOT, slot)) * width), np.ceil(slot * width)).astype(int)
        here = (where >= row[0]) & (where <= row[-1])
        disease = np.full(len(row), -1)
        disease[where[here] - row[0]] = slot[here] % len(edges)
        return disease

    def _cases(self, rng: np.random.Generator, disease: Ints, hides: Floats, ln: Floats) -> None:
        """Moves `ln` (n, A) of affected newborns by their severity: late-onset below CLASSICAL, the others above."""
        u, late = rng.random(len(disease)), rng.random(len(disease))
        for d, profile in enumerate(self._profiles):
            held = np.flatnonzero(disease == d)
            mild = late[held] < profile.mild
            severity = np.where(mild, CLASSICAL * u[held], CLASSICAL + (1 - CLASSICAL) * u[held])
            for name, (least, most) in profile.markers.items():
                if name in self._index:
                    moved = np.log(least) + severity * np.log(most / least)
                    moved += self.book.profile_sd_ln * rng.standard_normal(len(held))
                    ln[held, self._index[name]] += moved * (1 - hides[held])

    # --- what the laboratory reports

    def _reported(self, rng: np.random.Generator, lab: Ints, ln: Floats) -> Floats:
        """(n, A) umol/L: plausible, 0 below detection, NaN where missing, DIGITS significant digits."""
        x = rounded(np.clip(np.exp(ln), [a.low for a in self._analytes], [a.high for a in self._analytes]))
        x[x < [a.detection for a in self._analytes]] = 0.0
        x[rng.random(x.shape) < self.book.newborns.missing] = np.nan
        for a, one in enumerate(self._labs):
            gone = [self._index[name] for name in one.unmeasured if name in self._index]
            x[np.ix_(lab == a, gone)] = np.nan
        return x

    def _forget(self, rng: np.random.Generator, facts: dict[str, Floats]) -> None:
        for name in ("gestation_weeks", "weight_g"):
            facts[name][rng.random(len(facts[name])) < self.book.newborns.unknown] = np.nan

    def _texts(self, row: Ints, plate: Ints, lab: Ints, month: Ints, twin: Bools, disease: Ints, x: Floats) -> dict[str, Texts]:
        family = row - twin
        test = np.array([lab.split == "test" for lab in self._labs])[lab]
        val = hashed(self.seed, KIN, family) < VAL
        split = {"split": np.where(test, "test", np.where(val, "val", "train"))} if self.split else {}
        return split | {
            "sample": np.array([f"sim{self.seed}-{i:09d}" for i in row.tolist()]),
            "laboratory": self._lab_names[lab],
            "plate": self._plate_names(plate, lab),
            "month": self._months[month],
            "diagnosis": np.array([*self.panel.names, ""])[disease],
            "family": np.array([f"sim{self.seed}-f{i:09d}" for i in family.tolist()]),
            "decision": np.where(self._recalled(x), "refer", "clear"),
        }

    def _recalled(self, x: Floats) -> Bools:
        """(n,) what the laboratory itself decided: fixed cut-offs on each profile's first marker, where CLASSICAL begins."""
        recalled = np.zeros(len(x), dtype=bool)
        for profile in self._profiles:
            name, (least, most) = next(iter(profile.markers.items()))
            if name in self._index:
                at = self._index[name]
                limit = least * (most / least) ** CLASSICAL * self._healthy[at].median
                recalled |= x[:, at] > limit if most > 1 else x[:, at] < limit
        return recalled

    def _named(self, there: list[str]) -> list[str]:
        """Columns that the dictionary knows, in its order, and the truth."""
        known = [*(c.name for c in self.dictionary.columns), *(a.name for a in self.dictionary.analytes)]
        order = [name for name in known if name in there]
        return order if "diagnosis" in order else ["diagnosis", *order]


@functools.cache
def _owned(laboratory: str, analytes: tuple[str, ...], words: tuple[int, ...]) -> Floats:
    seeds = [[zlib.crc32(laboratory.encode()), zlib.crc32(name.encode()), *words] for name in analytes]
    return np.array([np.random.default_rng(seed).standard_normal() for seed in seeds])


def is_simulated(laboratories: Collection[str]) -> bool:
    """Whether no newborn of these laboratories is real; of none it cannot be said, so it is not."""
    return bool(laboratories) and all(name.startswith(MARK) for name in laboratories)


def hashed(seed: int, use: int, number: Ints) -> Floats:
    """(n,) evenly spread in [0, 1), of each number alone. Source: Steele, Lea, Flood 2014, SplitMix64's finaliser."""
    x = number.astype(np.uint64) + np.uint64(np.random.SeedSequence([seed, use]).generate_state(1, np.uint64)[0])
    x = x * np.uint64(0x9E3779B97F4A7C15)  # wraps, as intended
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray((x ^ (x >> np.uint64(31))) >> np.uint64(11), dtype=np.float64) / 2**53


def rounded(x: Floats, digits: int = DIGITS) -> Floats:
    """Positive numbers to so many significant digits."""
    scale = 10.0 ** (digits - 1 - np.floor(np.log10(np.maximum(x, 1e-300))))
    return np.asarray(np.round(x * scale) / scale)

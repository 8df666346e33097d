"""How fast a cohort is screened, and how fast scikit-learn called batch by batch does the same.

    python benchmarks/cohort.py [--rows 1000000] [--model RUN/screening_model.json] [--json FILE]

Newborns are simulated: `DISTINCT` blocks, written again and again under new sample ids until there are enough rows (a decision
takes as long the second time). One Parquet file, one process; a real run shares its blocks among ranks. Told apart:

open      columns, units, samples twice: the whole table is read once
count     medians of laboratories and months, shifts of plates: read twice more
judge     features, rules, specimen, scores, calibration, decision of arrays that are there: what the figure is about
read      the same blocks out of the file
tally     the counts
records   JSON of some blocks, and what all of them would take

The peer does on the same rows what a laboratory's script would: a pandas frame a plate (hpcai itself needs no pandas), its
features vectorised over the frame, the same detectors as scikit-learn's LogisticRegression, Platt's calibration, rules and
policy as columns. Its logits and decisions must be ours; else this program fails. Both have one thread and are told in CPU
time, which others' work on the machine hardly changes; at a plate, as a laboratory reads them, and at our block.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from hpcai.book import shelf
from hpcai.book.rules import Condition, quantity
from hpcai.book.simulation import SimulationBook
from hpcai.config.schema import Estimator, Screening
from hpcai.screening.batch import Batch, Floats
from hpcai.screening.cohort import BLOCK, add
from hpcai.screening.estimators import Logistic
from hpcai.screening.features import CLIP, Adjustment
from hpcai.screening.fit import taught
from hpcai.screening.fitness import fitness
from hpcai.screening.judge import Judge
from hpcai.screening.model import ScreeningModel, read_model
from hpcai.screening.plates import PlateShift
from hpcai.screening.records import Recorder
from hpcai.screening.simulate import Simulation
from hpcai.screening.survey import Survey
from hpcai.screening.table import Table, open_table
from hpcai.screening.tally import Tally
from hpcai.screening.teaching import Newborns, joined, rows_of

DISTINCT = 24  # blocks that are simulated
PLATE = 92  # newborns of a plate: its 96 wells less four controls
PEER = 6 * BLOCK  # rows that both are shown in turn; time is told a row
ROUNDS = 5  # of which the best of each counts: others work on the machine too


def shipped() -> Path:
    """The teaching table that hpcai ships."""
    return Path(shelf.__file__).parent.parent / "shipped" / "nbs_simulated" / "teaching.parquet"


def model_of(known: shelf.Books) -> ScreeningModel:
    """Taught by the shipped table; one strength of the penalty, as the figure is of time."""
    newborns = Newborns(joined(b for _, b in open_table(shipped(), known.dictionary).batches()), known.panel)
    places = {name: np.flatnonzero(np.array(newborns.published) == name) for name in ("train", "val")}
    few = Estimator(penalty=[0.1], folds=2)
    return taught(known, newborns, places["train"], places["val"], few, "sensitivity>=0.95", 0)


def write_table(file: Path, known: shelf.Books, rows: int) -> None:
    """Simulated newborns, `DISTINCT` blocks of them over and over, every sample its own; streamed: memory stays flat."""
    from polars.io.plugins import register_io_source

    book = shelf.read("simulation", "nbs", SimulationBook)
    draws = Simulation(book, known.dictionary, known.panel, seed=11, laboratories=["A", "B", "C", "D"])
    frames = [draws.block(k, BLOCK) for k in range(min(DISTINCT, -(-rows // BLOCK)))]

    def source(with_columns: Any, predicate: Any, n_rows: Any, batch_size: Any) -> Iterator[pl.DataFrame]:
        for number, first in enumerate(range(0, rows, BLOCK)):
            frame = frames[number % len(frames)].head(rows - first)
            yield frame.with_columns(pl.format("sim11-{}", pl.int_range(first, first + len(frame))).alias("sample"))

    register_io_source(source, schema=frames[0].schema).sink_parquet(file, compression="zstd", statistics=False)


class Clock:
    """Seconds by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def __call__(self, name: str, work: Callable[[], Any]) -> Any:
        """Does the work and adds its time."""
        before = time.perf_counter()
        done = work()
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - before
        return done


# ---- ours


def counted(table: Table, known: shelf.Books, model: ScreeningModel) -> Judge:
    """Both passes over the table, as job=predict makes them."""
    survey = Survey(known.dictionary)
    for _, batch in table.batches(BLOCK):
        survey.add(batch)
    references = survey.references()
    shifts = PlateShift(survey, references)
    for _, batch in table.batches(BLOCK):
        shifts.add(batch)
    training = Survey.from_json(known.dictionary, model.survey, months=False)
    fits = fitness(training, survey, model.reads)
    return Judge(known, model, references, {(fit.laboratory, fit.month): fit for fit in fits}, shifts)


def screened(table: Table, judge: Judge, clock: Clock, recorded: int) -> tuple[list[Batch], int, int, list[int]]:
    """Every block read, judged, counted, some written: the first ones, rows and bytes recorded, memory by quarter."""
    known, tally = judge.books, Tally(judge.books.panel, simulated=True)
    recorder = Recorder(known, {"model": "0" * 16}, True)
    kept: list[Batch] = []
    batches, rows, size, memory = table.batches(BLOCK), 0, 0, []
    quarters = {k * table.blocks(BLOCK) // 4 for k in (1, 2, 3)} | {table.blocks(BLOCK) - 1}
    while found := clock("read", lambda: next(batches, None)):
        number, batch = found
        judged = clock("judge", partial(judge, batch))
        clock("tally", partial(add, tally, known.panel, judged))
        if number < recorded:
            size += len(clock("records", partial(recorder.lines, judged)))
            rows += len(batch)
            kept.append(batch)
        if number in quarters:
            memory.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
    assert tally.n == table.rows
    return kept, rows, size, memory


# ---- the peer


class Peer:
    """The same decisions by data frames and scikit-learn, a batch at a time."""

    def __init__(self, judge: Judge, frames: Any) -> None:
        assert judge.model is not None
        self.judge, self.model, self.frames = judge, judge.model, frames
        self.adjustment = Adjustment.from_json(judge.model.adjustment)
        self.detectors = [_fitted(d.estimator) for d in judge.model.detectors]
        known = judge.books
        self.analytes, self.ratios = [a.name for a in known.dictionary.analytes], known.dictionary.ratios
        self.tiers = {d.name: d.second_tier is not None for d in known.panel.diseases}

    def __call__(self, table: Any) -> tuple[Floats, NDArray[np.int64]]:
        """Logits and decisions (n, D) of a frame."""
        (z, missing), logits, codes = self.features(table), [], []
        fits = self.judge.fits_N(_batch(table)) & table["laboratory"].isin(list(self.judge.references)).to_numpy()
        held = [self.held(rule, table) for rule in self.judge.books.specimen.rules]
        for d, (detector, told) in enumerate(zip(self.detectors, self.model.detectors, strict=True)):
            c = told.calibration
            logit = c.intercept + c.shift + c.slope * detector.decision_function(z)
            logits.append(logit)
            rise = missing @ (CLIP * c.slope * np.abs(detector.coef_[0]))  # of what is missing, were it as far out as it goes
            codes.append(self.decision(table, d, logit, rise, fits, held))
        return np.column_stack(logits), np.column_stack(codes)

    def features(self, table: Any) -> tuple[Any, Any]:
        """Standardised log multiples of the median, (n, C), and which are missing."""
        pd = self.frames
        raw = table[self.analytes]
        logs = np.log(raw.where(raw > 0))
        ratios = {r.name: logs[r.top] - logs[r.bottom] for r in self.ratios}
        logs = pd.concat([logs, pd.DataFrame(ratios)], axis=1)
        references, shifts = self.judge.references, self.judge.shifts
        assert shifts is not None
        scale = _by_group(table, ["laboratory", "month"], lambda lab, month: references[lab].at(month).scale_C)
        median = _by_group(table, ["laboratory", "month"], lambda lab, month: references[lab].at(month).median_C)
        logs = logs - median - self.adjustment.intercept_C
        design = np.column_stack([spline.of(table[spline.name].to_numpy()) for spline in self.adjustment.splines])
        logs = logs - design @ self.adjustment.slope_KC
        shift = _by_group(table, ["laboratory", "plate"], shifts.shift)
        z = ((logs - shift * scale) / scale).clip(-CLIP, CLIP)
        return z.fillna(0.0).to_numpy(), z.isna().to_numpy()

    def decision(self, table: Any, d: int, logit: Floats, rise: Floats, fits: Any, held: list[Any]) -> NDArray[np.int64]:
        """(n,) the policy's code: clear 0, not assessable 1, repeat 2, reflex 3, refer 4."""
        known, told = self.judge.books, self.model.detectors[d]
        name, policy = told.disease, self.judge.books.policy
        yes = {each.name: [self.holds(r.when, table) for r in each.rules if r.disease == name] for each in known.rules}
        said = [answer for each in policy.rule_sets for answer in yes[each]]
        positive = np.any([a == 2 for a in said], axis=0) if said else np.zeros(len(table), bool)
        unsaid = np.any([a == 1 for a in said], axis=0) & ~positive if said else positive
        missing = table[next(x for x in known.panel.diseases if x.name == name).needs].isna().any(axis=1).to_numpy()
        heard = fits & ~missing
        low = -np.inf if told.conformal.affected is None else told.conformal.affected
        high = np.inf if told.conformal.unaffected is None else told.conformal.unaffected
        called = heard & (logit >= told.threshold.value)
        unsure = heard & (logit >= low) & (logit <= high) & ~called
        silent = min(told.threshold.value, low if low <= high else np.inf)
        unsettled = heard & ~called & ~unsure & (rise > 0) & (logit + rise >= silent)
        heard = heard & ~unsettled
        words = {"refer": 4, "reflex": 3 if self.tiers[name] else 2, "repeat": 2, "clear": 0}
        code = np.where(missing | unsaid | unsettled | (~heard if not said else False), 1, 0)
        code = np.maximum(code, self.specimen(held, name, len(table)))
        code = np.maximum(code, np.where(unsure, words[policy.abstention], 0))
        code = np.maximum(code, np.where(called, words[policy.model_positive], 0))
        return np.maximum(code, np.where(positive, words[policy.rule_positive], 0))

    def holds(self, condition: Condition, table: Any) -> NDArray[np.int64]:
        """2 yes, 1 cannot be said, 0 no: so that all is the least and any is the greatest."""
        if condition.of is None:
            parts = [self.holds(part, table) for part in condition.all or condition.any or []]
            return (np.minimum if condition.all else np.maximum).reduce(parts)
        top, bottom = ([self.analytes[a] for a in side] for side in quantity(condition.of, self.judge.books.dictionary))
        value = table[top].sum(axis=1, skipna=False)
        if bottom:
            value = value / table[bottom].sum(axis=1, skipna=False)
        yes = value.notna()
        if condition.above is not None:
            yes &= value > condition.above
        if condition.below is not None:
            yes &= value < condition.below
        return np.where(np.isfinite(value), 2 * yes, 1)

    def held(self, rule: Any, table: Any) -> Any:
        """(n,) whether a rule of the specimen holds."""
        value = table[rule.column]
        held = value.isna() if rule.unknown else value == float(rule.is_) if rule.is_ is not None else value.notna()
        held &= value > rule.above if rule.above is not None else True
        held &= value < rule.below if rule.below is not None else True
        return held.to_numpy()

    def specimen(self, held: list[Any], name: str, n: int) -> NDArray[np.int64]:
        """(n,) not assessable 1, repeat 2; the worst effect of all rules that hold: not assessable."""
        worst = np.zeros(n, np.int64)
        for rule, holds in zip(self.judge.books.specimen.rules, held, strict=True):
            if rule.diseases is None or name in rule.diseases:
                worst = np.maximum(worst, np.where(holds, ("valid", "repeat", "not_assessable").index(rule.effect), 0))
        return np.array([0, 2, 1])[worst]


def _by_group(table: Any, by: list[str], of: Callable[[str, str], Floats]) -> Floats:
    """(n, C) what each row's group has."""
    grouped = table.groupby(by)
    return np.array([of(*key) for key in grouped.groups])[grouped.ngroup().to_numpy()]


def _fitted(estimator: Any) -> LogisticRegression:
    """scikit-learn's own with our coefficients."""
    assert isinstance(estimator, Logistic)
    made = LogisticRegression()
    made.classes_, made.intercept_ = np.array([0, 1]), np.array([estimator.intercept])
    made.coef_, made.n_features_in_ = np.array([estimator.coef]), len(estimator.coef)
    return made


def _frame(batch: Batch, known: shelf.Books, frames: Any) -> Any:
    values = {a.name: batch.x_NA[:, k] for k, a in enumerate(known.dictionary.analytes)}
    return frames.DataFrame({**batch.text, **batch.number, **values})


def _batch(table: Any) -> Batch:
    text = {name: table[name].to_numpy().astype(str) for name in ("laboratory", "month", "plate")}
    return Batch(np.arange(len(table)), text["plate"], np.zeros((len(table), 0)), {}, text)


def compared(judge: Judge, kept: list[Batch], size: int) -> dict[str, float]:
    """Rows a second of CPU of both at a batch of `size` rows, and how far logits differ at most.

    Raises: AssertionError if a decision differs, or a logit by over 1e-9.
    """
    import pandas

    peer, whole = Peer(judge, pandas), joined(kept)
    whole = rows_of(whole, np.arange(min(len(whole), PEER)))
    parts = [rows_of(whole, np.arange(a, min(a + size, len(whole)))) for a in range(0, len(whole), size)]
    tables = [_frame(part, judge.books, pandas) for part in parts]
    peer(tables[0]), judge(parts[0])  # imports, caches
    seconds = {"peer": np.inf, "ours": np.inf}
    for _ in range(ROUNDS if size == BLOCK else 1):
        before = time.process_time()
        theirs = [peer(table) for table in tables]
        between = time.process_time()
        ours = [judge(part) for part in parts]
        seconds["peer"] = min(seconds["peer"], between - before)
        seconds["ours"] = min(seconds["ours"], time.process_time() - between)
    worst = 0.0
    for (logits, codes), judged in zip(theirs, ours, strict=True):
        assert judged.scores is not None
        worst = max(worst, float(np.abs(logits - judged.scores.logit_ND).max()))
        assert np.array_equal(codes, judged.decisions.code_ND), "decisions differ"
    assert worst < 1e-9, worst
    return {"batch": size, "rows": len(whole), "worst": worst, **{k: len(whole) / s for k, s in seconds.items()}}


def main() -> None:
    """Prints what was seen."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--rows", type=int, default=1_000_000)
    words.add_argument("--model", type=Path)
    words.add_argument("--recorded", type=int, default=6, help="blocks whose records are made")
    words.add_argument("--json", type=Path)
    options = words.parse_args()
    known = shelf.books(Screening())
    model = read_model(options.model) if options.model else model_of(known)
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "simulated.parquet"
        write_table(file, known, options.rows)
        print(f"{options.rows:,} simulated newborns, {file.stat().st_size / 1e6:.0f} MB of Parquet", flush=True)
        table = clock("open", lambda: open_table(file, known.dictionary))
        judge = clock("count", lambda: counted(table, known, model))
        kept, rows, size, memory = screened(table, judge, clock, options.recorded)
    whole = clock.seconds["records"] * options.rows / rows
    for name in ("open", "count", "read", "judge", "tally"):
        print(f"{name:8}{clock.seconds[name]:8.1f} s")
    print(f"records {whole:8.0f} s, by {rows:,} of them; {size / rows:,.0f} bytes each")
    print("memory at each quarter of the blocks, MB: " + ", ".join(map(str, memory)))
    told = [compared(judge, kept, n) for n in (PLATE, BLOCK)]
    ours = told[-1]["ours"]
    for each in told:
        print(
            f"peer, {each['batch']:,} rows a batch: {each['peer']:,.0f} rows/s of CPU; ours {each['ours']:,.0f} at the same, "
            f"{ours:,.0f} at our block: {each['ours'] / each['peer']:.1f}x and {ours / each['peer']:.1f}x; "
            f"decisions equal, logits to {each['worst']:.0e}"
        )
    if options.json:
        value = {"rows": options.rows, "seconds": clock.seconds | {"records": whole}, "memory": memory, "peer": told}
        options.json.write_text(json.dumps(value, indent=1))


if __name__ == "__main__":
    main()

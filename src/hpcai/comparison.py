"""`hpcai compare RUN RUN ...`: what differs in their making and on the same cases.   run folders -> sides -> words

Runs that differ in their seed alone are one side. The last side is the baseline, from which each other is told apart. A verdict
is given only against a margin that was stated with the command; --gate makes it the exit code.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from hpcai import rundir, runs
from hpcai.arguments import Words
from hpcai.config.schema import Config
from hpcai.errors import ConfigError, DataError, Faults, GateError, HpcaiError, PlanError, RunError, near, one_line
from hpcai.metrics.classification import Threshold
from hpcai.metrics.paired import Difference, Judged, differences, names, verdict
from hpcai.metrics.rows import rows_then
from hpcai.metrics.seeds import Spread, spreads
from hpcai.plan import decisive, flat, read_config
from hpcai.provenance import changed
from hpcai.report.words import named as measure_named
from hpcai.report.words import number, place, signed
from hpcai.rundir import RunDir
from hpcai.runs import DAMAGED
from hpcai.status import found
from hpcai.verbs import refuse_sweep, shown

HELP = """\
Says what differs between runs, in config, data, split, code and versions, and how their scores differ on the same cases, with a
paired 95 % interval. The last run is the baseline; runs that differ in their seed alone count as one. With --margin
auc:0.01 it says whether a run is shown to be worse by no more than 0.01; without a margin it gives no verdict. --gate auc:0.01
also exits with 6 where that is not shown. Both may be given several times."""
SAID = {
    "non-inferior": "non-inferior by {m:g}",
    "not shown": "not shown non-inferior by {m:g}: too few cases",
    "inferior": "inferior by more than {m:g}",
}
NO_VERDICT = "no verdict: state what loss would not matter, beforehand, as --margin {name}:0.01"
UNLIKE = ("name", "runs_dir", "from_run", "depends_on", "predict", "pipeline")  # keys that say where a run lies, or after what
Json = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """A finished run with what it was made of and what it said of the cases that judge it."""

    dir: RunDir
    config: Config
    split: str
    judged: Judged
    estimates: list[Json]
    data: list[str]
    parts: str
    code: str
    versions: dict[str, str]

    @property
    def name(self) -> str:
        """Its run_id."""
        return one_line(self.dir.path.name, 120)


@dataclass(frozen=True)
class Side:
    """Runs that differ in their seed alone; mostly one."""

    letter: str
    runs: list[Run]
    spreads: list[Spread]

    @property
    def judged(self) -> list[Judged]:
        """Their rows."""
        return [run.judged for run in self.runs]


def main(argv: list[str]) -> int:
    """`hpcai compare RUN RUN ... [--margin NAME:X] [--gate NAME:X]`; returns the exit code.

    Raises: ConfigError for a name or margin that makes no sense, PlanError for a run without scores, DataError for runs that
        were judged on different cases, GateError where a gate is not met; Faults for many.
    """
    words = Words("compare", "RUN RUN ...", HELP)
    for option, text in (
        ("--margin", "how much worse would not matter: auc:0.01"),
        ("--gate", "the same, and exit 6 if not shown"),
    ):
        words.add_argument(option, metavar="NAME:X", action="append", default=[], help=text)
    options = words.read(argv, least=1)
    if options is None:
        return 0
    gates = dict(_margin("--gate", word) for word in options.gate)
    margins = dict(_margin("--margin", word) for word in options.margin)
    if twice := next((n for n in margins if n in gates), None):
        raise ConfigError(f"--margin={twice}: has a --gate as well. State one of them.")
    targets = found(options.names, options.runs_dir)
    if len(targets) < 2:
        raise ConfigError("hpcai compare: one run alone. Name two or more; the last one is the baseline.")
    for target in targets:
        refuse_sweep(target)
    told = compare([read(target) for target in targets], margins | gates)
    unmet = list(_unmet(told, gates))
    if options.json:
        gate = {"met": not unmet, "margins": gates} if gates else None
        print(json.dumps(told.to_json() | {"gate": gate}, indent=1, ensure_ascii=False))
    else:
        print("\n".join(_text(told)))
    if unmet:
        raise unmet[0] if len(unmet) == 1 else Faults(unmet)
    return 0


def _margin(option: str, word: str) -> tuple[str, float]:
    """Raises: ConfigError for what is no measure with a number in (0, 1)."""
    name, _, text = word.partition(":")
    try:
        margin = float(text)
    except ValueError:
        margin = 0.0
    if not (name and 0 < margin < 1):
        raise ConfigError(f"{option}={one_line(word, 80)}: is no margin. Give a measure and a number between 0 and 1: auc:0.01")
    return name, margin


# ---- a run


def read(run: RunDir) -> Run:
    """What is compared of a run.

    Raises: PlanError if it has not finished or judged nothing; DataError for a report of another version; RunError.
    """
    name = one_line(run.path.name, 120)
    if not run.report_json.is_file():
        raise PlanError(f"{shown(run)}: has no report, it is {runs.state_of(run).state}. hpcai resume {name} goes on with it.")
    report = runs.read_report(run)
    config = read_config(run)
    if config.job == "predict":
        raise PlanError(
            f"{shown(run)}: is a prediction, without labels to judge it by. Name runs of train, fit, evaluate or gather."
        )
    splits = {"train": "test", "gather": "oof", "fit": "oof" if config.data.split.by == "nested" else "test"}
    split = splits.get(config.job, config.data.eval_split)
    rows = rows_then(run, split)
    if rows is None or (rows.label < 0).all():
        raise PlanError(f"{shown(run)}: has no scores of labelled cases. Score it by job=evaluate from_run={name}.")
    environment, now = _file(run, run.environment), _file(run, run.runtime)
    return Run(
        dir=run,
        config=config,
        split=split,
        judged=Judged(rows.labelled(), _threshold(run)),
        estimates=[e for e in report.get("estimates", []) if e["split"] == split],
        data=sorted(str(f["sha256"]) for f in _file(run, run.data).get("files", [])),
        parts=_parts(run),
        code=str(environment.get("code_sha256")),
        versions=(environment | now).get("versions", {}),
    )


def _file(run: RunDir, path: Path) -> Json:
    """A JSON file of a run; nothing if it has none.

    Raises: RunError if it is damaged.
    """
    if not path.is_file():
        return {}
    try:
        return dict(rundir.read_json(path))
    except DAMAGED as e:
        raise RunError(f"{shown(run)}: its {path.name} is damaged. Restore it, or make the run anew.") from e


def _threshold(run: RunDir) -> Threshold | None:
    value, known = _file(run, run.threshold), [field.name for field in fields(Threshold)]
    try:
        return Threshold(**{key: value[key] for key in known}) if value else None
    except KeyError as e:
        raise RunError(f"{shown(run)}: its threshold.json is damaged. Restore it, or make the run anew.") from e


def _parts(run: RunDir) -> str:
    """A digest of which case stands in which part of the split."""
    split = _file(run, run.split)
    parts = {name: sorted(map(str, split[name])) for name in ("train", "val", "test") if isinstance(split.get(name), list)}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


# ---- together


@dataclass(frozen=True)
class Comparison:
    """Sides, the baseline last; of each other its differences from that; and what the runs differ in."""

    sides: list[Side]
    found: list[tuple[Side, list[Difference]]]
    margins: dict[str, float]
    config: dict[str, list[Any]]  # what differs, by dotted key: a value a run
    decides: list[str]  # those of them that change a result
    others: list[str]  # of data, split, code, versions
    labels: list[str]

    @property
    def runs(self) -> list[Run]:
        """All runs, by side."""
        return [run for side in self.sides for run in side.runs]

    def to_json(self) -> Json:
        """Every fact, for programs."""
        first = self.runs[0]
        return {
            "version": 1,
            "split": first.split,
            "cases": len(first.judged.rows.case),
            "labels": self.labels,
            "baseline": self.sides[-1].letter,
            "sides": [
                {"side": side.letter, "runs": [run.name for run in side.runs], "seeds": [run.config.seed for run in side.runs],
                 "scores": [asdict(spread) for spread in side.spreads]}
                for side in self.sides
            ],
            "differs": {"config": self.config, "decisive": self.decides, "others": self.others},
            "differences": [{"side": side.letter, **asdict(d), **self._judged(d)} for side, told in self.found for d in told],
        }  # fmt: skip

    def _judged(self, difference: Difference) -> Json:
        margin = self.margins.get(difference.name)
        return {"margin": margin, "verdict": None if margin is None else verdict(difference, margin)}


def compare(given: Sequence[Run], margins: Mapping[str, float]) -> Comparison:
    """The comparison of runs that were judged on the same cases, the baseline last.

    Raises: DataError if they were not; ConfigError for a margin of an unknown measure.
    """
    _check_alike(given)
    wanted = names(given[0].judged.rows.classes)
    for name in margins:
        if name not in wanted:
            raise ConfigError(f"--margin={one_line(name, 80)}: no such measure here. {near(name[:80], wanted)}")
    sides = [Side(_letter(i), group, _spreads(group)) for i, group in enumerate(_grouped(given, apart=bool(margins)))]
    baseline, ordered = sides[-1], [run for side in sides for run in side.runs]
    config = _config_differences(ordered)
    decides = {key for run in ordered for key, _ in flat(decisive(run.config))} | {"from_run"}
    return Comparison(
        sides,
        [(side, differences(side.judged, baseline.judged)) for side in sides[:-1]],
        dict(margins),
        config,
        [key for key in config if key in decides],
        list(_other_differences(ordered)),
        list(given[0].config.data.labels),
    )


def _letter(i: int) -> str:
    return chr(ord("A") + i) if i < 26 else f"{chr(ord('A') + i // 26 - 1)}{chr(ord('A') + i % 26)}"


def _check_alike(given: Sequence[Run]) -> None:
    """Raises: DataError, for the first run that was judged otherwise than the last."""
    last = given[-1]
    for run in given[:-1]:
        pair = f"run={run.name},{last.name}"
        if run.config.data.labels != last.config.data.labels or run.judged.rows.classes != last.judged.rows.classes:
            raise DataError(f"{pair}: tell other classes apart (data.labels). Compare runs with the same labels.")
        if run.data != last.data:
            raise DataError(f"{pair}: read different data, so no case of one is known to be one of the other. "
                            "Score both on the same data by job=evaluate, and compare those runs.")  # fmt: skip
        mine, theirs = run.judged.rows, last.judged.rows
        if mine.case != theirs.case:
            common, all_ = len(set(mine.case) & set(theirs.case)), len(set(mine.case) | set(theirs.case))
            raise DataError(f"{pair}: were judged on different cases, {run.split} and {last.split}: {common:,} of {all_:,} are "
                            "common. Compare runs of one split, or score both by job=evaluate.")  # fmt: skip
        if other := int((mine.label != theirs.label).sum()):
            raise DataError(f"{pair}: have other labels for {other:,} of {len(mine.case):,} cases. Score both anew.")
        if mine.patient != theirs.patient:
            raise DataError(f"{pair}: know other patients for the same cases. Score both anew.")


def _grouped(given: Sequence[Run], *, apart: bool) -> list[list[Run]]:
    """The runs by all but their seed, in the order given, the last one's last. `apart`: the last run, if all are one group."""
    groups: dict[str, list[Run]] = {}
    for run in given:
        same = {key: value for key, value in flat(decisive(run.config)) if key != "seed"}
        key = json.dumps([same, _source(run), run.parts, run.code, run.versions], sort_keys=True, default=str)
        groups.setdefault(key, []).append(run)
    last = next(key for key, group in groups.items() if given[-1] in group)
    found = [*(group for key, group in groups.items() if key != last), groups[last]]
    return [found[0][:-1], found[0][-1:]] if apart and len(found) == 1 else found


def _source(run: Run) -> list[str]:
    named = run.config.from_run or []
    return sorted(Path(name).name for name in ([named] if isinstance(named, str) else named))


def _spreads(group: Sequence[Run]) -> list[Spread]:
    """Of one run alone with the intervals that its report has: one number, one interval."""
    found = spreads([run.judged for run in group])
    if len(group) > 1:
        return found
    told = {e["name"]: e for e in group[0].estimates}
    return [
        Spread(**{**vars(s), **{key: told[s.name][key] for key in ("low", "high", "method")}}) if s.name in told else s
        for s in found
    ]


def _config_differences(given: Sequence[Run]) -> dict[str, list[Any]]:
    """{dotted key: its value in each run}, of the keys that differ; from_run by the names of runs."""
    plain = [dict(flat({k: v for k, v in run.config.to_plain().items() if k not in UNLIKE})) for run in given]
    for run, values in zip(given, plain, strict=True):
        values["from_run"] = _source(run) or None
    keys = dict.fromkeys(key for values in plain for key in values)
    rows = {key: [values.get(key) for values in plain] for key in keys}
    return {key: values for key, values in rows.items() if any(value != values[0] for value in values)}


def _other_differences(given: Sequence[Run]) -> Iterator[str]:
    first = given[0]
    if any(run.parts != first.parts for run in given):
        yield "split"
    if any(run.code != first.code for run in given):
        yield "code"
    versions = dict.fromkeys(text for run in given for text in changed(first.versions, run.versions))
    if versions:
        yield f"versions ({', '.join(list(versions)[:5])})"


# ---- in words


def _text(told: Comparison) -> Iterator[str]:
    rows = told.runs[0].judged.rows
    people = "no patient ids" if rows.patient is None else f"{len(set(rows.patient)):,} patients"
    yield f"{place(told.runs[0].split)}: the same {len(rows.case):,} cases, {people}"
    for side in told.sides:
        more = f", {len(side.runs)} seeds" if len(side.runs) > 1 else ""
        baseline = ", the baseline" if side is told.sides[-1] and told.found else ""
        yield f"{side.letter}  {', '.join(run.name for run in side.runs)}{more}{baseline}"
    for key in told.decides:
        yield f"differs  {key}: {' | '.join(one_line(str(value), 60) for value in told.config[key])}"
    rest = len(told.config) - len(told.decides)
    yield f"differs  {', '.join(told.others)}" if told.others else "alike    data, split, code, versions"
    if rest:
        yield f"differs  {rest} keys that change no result"
    for side in told.sides:
        for spread in side.spreads:
            yield f"{side.letter}  {_of_side(spread, told.labels)}"
    for side, found_here in told.found:
        for difference in found_here:
            yield f"{side.letter} - {told.sides[-1].letter}  {_of_difference(difference, told)}"
    if told.found and not told.margins:
        yield NO_VERDICT.format(name=told.found[0][1][0].name)


def _of_side(spread: Spread, labels: list[str]) -> str:
    name = measure_named({"name": spread.name}, labels)
    if spread.mean is None:
        return f"{name} not defined"
    seeds = (
        ""
        if spread.seeds == 1
        else f" over {spread.seeds} seeds" + (f" (sd {number(spread.sd)})" if spread.sd is not None else "")
    )
    cases = "" if spread.low is None else f"  [{number(spread.low)}, {number(spread.high)}] over cases"
    return f"{name} {number(spread.mean)}{seeds}{cases}"


def _of_difference(difference: Difference, told: Comparison) -> str:
    name = measure_named({"name": difference.name}, told.labels)
    if difference.value is None:
        return f"{name} {difference.method}"
    said = f"{name} {signed(difference.value)}  [{signed(difference.low)}, {signed(difference.high)}]  {difference.method}"
    margin = told.margins.get(difference.name)
    return said if margin is None else f"{said}: {SAID[verdict(difference, margin)].format(m=margin)}"


def _unmet(told: Comparison, gates: Mapping[str, float]) -> Iterator[HpcaiError]:
    """A fault for each gate that a side does not pass."""
    for side, found_here in told.found:
        for difference in found_here:
            margin = gates.get(difference.name)
            if margin is None or (word := verdict(difference, margin)) == "non-inferior":
                continue
            where = f"--gate={difference.name}:{margin:g}: {side.runs[0].name} against {told.sides[-1].runs[0].name}"
            if difference.low is None or difference.high is None:
                yield GateError(f"{where}: {difference.method}. Judge both on cases of every class.")
                continue
            ends = f"{signed(difference.value)}, 95 % interval {signed(difference.low)} to {signed(difference.high)}"
            cure = "Take the baseline." if word == "inferior" else f"{difference.n:,} cases count: judge both on more."
            yield GateError(f"{where} is {SAID[word].format(m=margin)} ({ends}). {cure}")

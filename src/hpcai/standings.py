"""How a sweep stands, from its members' folders.   [Member] -> [Outcome] -> ranking -> table, results.json, JUnit, exit code

Ranked by validation alone; no score of the test split is read here. Standard library only; writes nothing but results.json and
the file of --junit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from hpcai import lease, rundir, runs
from hpcai.config.jobs import teaches
from hpcai.errors import HpcaiError, PlanError, one_line
from hpcai.rundir import RunDir

FINE = ("completed", "pruned")  # a pruned trial has told what it was asked for
BAD = ("failed", "lost", "unreadable", "stopped", "cancelled")
MAX_RANKS = 20  # lines of the ranking on a terminal; results.json has all
NAMES = {"auc": "AUC"}
SHARD = "predict.shard="  # in the label of a run that is a part of a prediction: no rival, and no answer by itself


@dataclass(frozen=True)
class Outcome:
    """What became of one member. `seconds`: from begin to the last record, pauses between lives left out."""

    member: runs.Member
    state: str
    code: int | None
    message: str
    score: runs.Score | None
    seconds: float | None

    @property
    def name(self) -> str:
        """What varies, or the run's own name where nothing does."""
        return self.member.label or self.member.run_id

    @property
    def is_shard(self) -> bool:
        """A part of a prediction, which another member merges."""
        return SHARD in self.member.label


@dataclass(frozen=True)
class Group:
    """Completed members that differ in the seed only, or are folds of one cross-validation.

    `seeds`: how many `mean` is over; `sd`: of a sample, None for one; `low` and `high`: the lowest and highest of them, no
    interval. `completed` of all `of` members gave an end.
    """

    label: str
    seeds: int
    mean: float
    sd: float | None
    low: float
    high: float
    name: str
    completed: int
    of: int


def outcomes(members: Sequence[runs.Member], waiting: Mapping[str, str] | None = None) -> list[Outcome]:
    """What the members' records say, in their order. `waiting`: run_id -> why a member that never began will not."""
    return [_outcome(member, (waiting or {}).get(member.run_id)) for member in members]


def _outcome(member: runs.Member, why: str | None) -> Outcome:
    state = runs.state_of(member.dir)
    told = state.state == "failed" and state.message.startswith(lease.CANCELLED)  # by a job of the sweep, in its records
    if (why := state.message if told else why if state.state == "new" else None) is not None:
        return Outcome(member, "cancelled", None, why, None, None)
    score = runs.best_validation(member.dir)
    if score is not None:  # the file is a user's to edit: what goes on from here are numbers
        score = replace(score, low=_number(score.low), high=_number(score.high), n=_whole(score.n), epoch=_whole(score.epoch))
    return Outcome(member, state.state, state.code, state.message, score, _seconds(member.dir))


def _number(value: object) -> float | None:
    try:
        return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None
    except OverflowError:
        return None


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) else None


def _seconds(run: RunDir) -> float | None:
    spans = []
    try:
        for life in range(1, lease.last_life(run) + 1):
            times = [float(r["time"]) for told in lease.outline(run, life).values() for r in told]
            spans += [max(times) - min(times)] if times else []
    except (OSError, ValueError, TypeError, KeyError):
        return None
    total = sum(spans)
    return total if spans and math.isfinite(total) else None


# --- ranking


def ranking(found: Sequence[Outcome]) -> list[Group]:
    """The groups with a score, best mean first, by validation alone; ties by label. A loss is better when lower.

    Where validation gave an AUC for one group and only a loss for another, the two cannot be compared: AUC comes first.
    """
    together: dict[str, list[Outcome]] = {}
    for outcome in found:
        if teaches(outcome.member.job):
            together.setdefault(outcome.member.group, []).append(outcome)
    groups = [group for label, members in together.items() if (group := _group(label, members))]
    return sorted(groups, key=lambda g: (g.name, g.mean if g.name == "loss" else -g.mean, g.label))


def _group(label: str, members: list[Outcome]) -> Group | None:
    import statistics

    completed = [o for o in members if o.state == "completed"]
    scores = [o.score for o in completed if o.score is not None]
    if not scores:
        return None
    name = min(score.name for score in scores)
    values = [score.value for score in scores if score.name == name]
    sd = statistics.stdev(values) if len(values) > 1 else None
    mean = math.fsum(values) / len(values)
    return Group(label, len(values), mean, sd, min(values), max(values), name, len(completed), len(members))


def exit_code(found: Sequence[Outcome]) -> int:
    """0 if all are completed or pruned; else the lowest code of those that failed, 1 without one; else the highest of the
    stops; 3 where members were cancelled and nothing else went wrong: what they needed did not end well."""
    bad = {o.state for o in found if o.state not in FINE}
    codes = [o.code for o in found if o.state not in FINE and o.code]
    if failed := [code for code in codes if code < 128]:
        return min(failed)
    if any(o.state in ("failed", "lost", "unreadable") and not o.code for o in found):
        return HpcaiError.code
    if codes:
        return max(codes)
    return 0 if not bad else PlanError.code if bad == {"cancelled"} else HpcaiError.code


def table(found: Sequence[Outcome]) -> list[str]:
    """Lines for the end: the ranking, or each member where there is none to make. What went wrong is `fault_lines`' to say."""
    groups = ranking(found)
    if not groups or (len(groups) == 1 and groups[0].of == 1):
        lines = [_member_line(o) for o in found if o.state in FINE and not o.is_shard]
        if shards := [o.state in FINE for o in found if o.is_shard]:
            lines.insert(0, f"{sum(shards)} of {len(shards)} shards completed")
    else:
        lines = _ranking_lines(groups, found)
    pruned = sum(o.state == "pruned" for o in found)
    open_ = sum(o.state not in FINE + BAD for o in found)
    if pruned and groups:
        lines.append(f"{pruned} pruned: validation fell behind.")
    if open_:
        lines.append(f"{open_} of {len(found)} not finished. The same command goes on.")
    return lines


def _ranking_lines(groups: list[Group], found: Sequence[Outcome]) -> list[str]:
    lines = []
    if len(groups) > 1:
        names = " and ".join(dict.fromkeys(_shown_name(g.name) for g in groups))
        lines.append(f"ranked by validation {names}; the test split chose nothing")
    names_shown = [g.label or f"all {_noun(g, found)}s" for g in groups[:MAX_RANKS]]
    width = max(map(len, names_shown))
    for place, group in enumerate(groups[:MAX_RANKS], 1):
        number = f"{place:>3}. " if len(groups) > 1 else ""
        lines.append(f"{number}{names_shown[place - 1]:<{width}}  {_group_words(group, found)}")
    if len(groups) > MAX_RANKS:
        lines.append(f"     and {len(groups) - MAX_RANKS} more in results.json")
    return lines


def _group_words(group: Group, found: Sequence[Outcome]) -> str:
    """`AUC 0.953 sd 0.004 (0.948 to 0.958), 3 seeds`; of one member the score with its interval over cases, and its run."""
    if group.of == 1:
        (only,) = (o for o in found if teaches(o.member.job) and o.member.group == group.label)
        assert only.score is not None
        return f"{score_words(only.score)}  {only.member.run_id}"
    digits = _digits(group.name)
    noun = _noun(group, found)
    seeds = f"{group.seeds} {noun}{'s' * (group.seeds > 1)}"
    if group.seeds != group.of:
        seeds = f"{group.seeds} of {group.of} {noun}s"
    words = f"{_shown_name(group.name)} {group.mean:{digits}}"
    if group.sd is not None:
        words += f" sd {group.sd:{digits}} ({group.low:{digits}} to {group.high:{digits}})"
    return f"{words}, {seeds}"


def _noun(group: Group, found: Sequence[Outcome]) -> str:
    """What the members of a group are: seeds, or runs where folds are among them."""
    mine = (o.member.label for o in found if teaches(o.member.job) and o.member.group == group.label)
    return "run" if "data.split.fold=" not in group.label and any("data.split.fold=" in label for label in mine) else "seed"


def score_words(score: runs.Score) -> str:
    """`AUC 0.953 [0.940, 0.965] n=624`: a number never travels alone."""
    digits = _digits(score.name)
    words = f"{_shown_name(score.name)} {score.value:{digits}}"
    if score.low is not None and score.high is not None:
        words += f" [{score.low:{digits}}, {score.high:{digits}}]"
    return words if score.n is None else f"{words} n={score.n}"


def _digits(name: str) -> str:
    return ".3f" if name == "auc" else ".4g"


def _shown_name(name: str) -> str:
    return NAMES.get(name, one_line(name, 40))


def _member_line(outcome: Outcome) -> str:
    score = f"  validation {score_words(outcome.score)}" if outcome.score and teaches(outcome.member.job) else ""
    job = outcome.member.job
    name = outcome.name if outcome.name != job else outcome.member.run_id  # of a pipeline the label is the job
    return f"{one_line(name, 200)}  {job}  {outcome.state}{score}"


def fault_lines(found: Sequence[Outcome]) -> list[str]:
    """A line for each member that went wrong, with its code and why."""
    return [_fault_line(o) for o in found if o.state in BAD]


def _fault_line(outcome: Outcome) -> str:
    """`failed, code 5: tiny-1a2b3c4d (trainer.lr=0.1): the loss is nan. Lower trainer.lr.`"""
    code = "" if outcome.code is None else f", code {outcome.code}"
    label = f" ({outcome.member.label})" if outcome.member.label else ""
    return one_line(f"{outcome.state}{code}: {outcome.member.run_id}{label}: {_why(outcome)}")


def _why(outcome: Outcome) -> str:
    return outcome.message.removeprefix(f"{outcome.state}: ") or "no reason is on record. Its log may have one."


# --- for programs


def write_results(sweep: runs.Sweep, found: Sequence[Outcome]) -> None:
    """Writes the sweep's results.json, whole or not at all."""
    members: list[dict[str, Any]] = []
    for o in found:
        member = {key: value for key, value in asdict(o.member).items() if key != "needs"}
        score = asdict(o.score) if o.score else None
        members.append({**member, "state": o.state, "code": o.code, "message": o.message, "score": score, "seconds": o.seconds})
    value = {"version": rundir.VERSION, "id": sweep.id, "members": members, "ranking": [asdict(g) for g in ranking(found)]}
    rundir.write_json(sweep.path / "results.json", value)


def junit(sweep_id: str, found: Sequence[Outcome]) -> str:
    """The members as test cases, in the XML that GitLab and Jenkins read: what failed is a failure, what was lost or stopped an
    error, what did not begin or end is skipped.

    Source: https://github.com/testmoapp/junitxml
    """
    import xml.etree.ElementTree as ET

    kinds = [_kind(o) for o in found]
    facts = {"name": one_line(sweep_id), "tests": str(len(found))}
    facts |= {f"{k}s" if k != "skipped" else k: str(kinds.count(k)) for k in ("failure", "error", "skipped")}
    facts["time"] = f"{sum(o.seconds or 0 for o in found):.3f}"
    root = ET.Element("testsuites", facts)
    suite = ET.SubElement(root, "testsuite", facts)
    labels = [o.name for o in found]
    for outcome, kind in zip(found, kinds):
        once = labels.count(outcome.name) == 1  # readers take two cases of one name for one
        name = one_line(outcome.name if once else f"{outcome.name} ({outcome.member.run_id})")
        time = f"{outcome.seconds or 0:.3f}"
        case = ET.SubElement(suite, "testcase", {"classname": one_line(sweep_id), "name": name, "time": time})
        if kind:
            message = one_line(_why(outcome) if outcome.state in BAD else f"{outcome.state}: the same command goes on.")
            said = ET.SubElement(case, kind, {"message": message} | ({"type": outcome.state} if kind != "skipped" else {}))
            code = "" if outcome.code is None else f", code {outcome.code}"
            said.text = one_line(f"{outcome.state}{code}: {message} Its folder: {outcome.member.run_dir}", 2000)
        elif outcome.score:
            ET.SubElement(case, "system-out").text = f"validation {score_words(outcome.score)}"
    ET.indent(root)
    return f'<?xml version="1.0" encoding="utf-8"?>\n{ET.tostring(root, encoding="unicode")}\n'


def _kind(outcome: Outcome) -> str:
    """Which element says how a test case went; none if it went well."""
    if outcome.state in FINE:
        return ""
    return {"failed": "failure", "lost": "error", "unreadable": "error", "stopped": "error"}.get(outcome.state, "skipped")


def write_junit(path: Path, sweep_id: str, found: Sequence[Outcome]) -> None:
    """Writes that file, whole or not at all; a link is followed, a device never replaced.

    Raises: PlanError if it cannot be written.
    """
    try:
        target = path.resolve()
        if target.exists() and not target.is_file():
            raise PlanError(f"--junit={one_line(str(path), 200)}: is no file. Name one that can be written.")
        rundir.write_bytes(target, junit(sweep_id, found).encode())
    except (OSError, ValueError, RuntimeError) as e:  # a null in it; links in a circle
        why = (e.strerror if isinstance(e, OSError) else None) or "no such place"
        raise PlanError(f"--junit={one_line(str(path), 200)}: {why}. Name a file that can be written.") from e

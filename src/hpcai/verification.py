"""`hpcai verify RUN [--seal X]`: is this run what it was when its report was written?   every digest again -> what differs

    data.json's inputs, where they can be reached     runs that a model came from     manifest.json -> every file below RUN
    the seal: of the manifest, in rank 0's end record, on report.html, given by --seal
    each rank's end record -> what came after the seal     report.json -> report.html, rendered again

Reads, and runs nothing of the folder. Names a changed file of the run; an input by its number in data.json, as the name of an
image may name a patient.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpcai import lease, provenance, report, rundir, runs, seal
from hpcai.arguments import Words
from hpcai.errors import DataError, Faults, HpcaiError, PlanError, one_line
from hpcai.rundir import RunDir
from hpcai.runs import DAMAGED
from hpcai.status import found
from hpcai.verbs import refuse_sweep, shown

HELP = """\
Digests everything of a finished run again: its inputs where they lie, config, code, weights, rows, records and report, and
compares it with manifest.json, whose digest is the seal; renders report.html again and compares it. Names what was changed, is
missing or was added (exit 4). With --seal, as it stands on the report's pages, it also tells a manifest that was made anew."""
OURS = re.compile(  # what an added file may be called to be named: nobody's image
    r"code/[\w./+-]+|(?:rows|lives|logs|checkpoints|submitit|preflight|tensorboard)/[\w./-]+\.(?:jsonl?|log|out|err|safetensors)"
    r"|[a-z_]+(?:\.rank\d+)?\.(?:jsonl?|yaml|html|sbatch)"
)
OTHER_CODE = (
    "report.html was made by another hpcai or other packages, so it cannot be rendered again here; all else is as it was. "
    "Where those are installed: PYTHONPATH=RUN/code python -P -m hpcai.cli verify RUN."
)
BESIDE = ("code/", "checkpoints/", "logs/", "submitit/")  # no page is made from these
Json = dict[str, Any]


@dataclass
class Findings:
    """What was found. `faults`: (what, name) of the run's files; `others`: sentences about all else that does not fit.

    Inputs: how many fit, were changed (their numbers in data.json, from 1), and cannot be reached. `unsure`: what could not
    be compared here, and how it can.
    """

    seal: str = ""
    files: int = 0
    faults: list[tuple[str, str]] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    good_inputs: int = 0
    changed_inputs: list[int] = field(default_factory=list)
    unreachable_inputs: int = 0
    unsure: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Nothing was found."""
        return not (self.faults or self.others or self.changed_inputs)


def main(argv: list[str]) -> int:
    """`hpcai verify RUN [--seal X]`; returns the exit code.

    Raises: ConfigError for what is no seal or no run; PlanError if the run has none, or has not ended, or all is well but what
        only other code can compare; DataError or Faults for everything that was changed.
    """
    words = Words("verify", "RUN", HELP)
    words.add_argument("--seal", metavar="X", help="64 digits, as on each page of the report")
    options = words.read(argv, least=1, most=1)
    if options is None:
        return 0
    given = None if options.seal is None else seal.read_seal(options.seal)
    (run,) = found(options.names, options.runs_dir)
    refuse_sweep(run)
    check_ended(run)
    told = verify(run, given)
    if options.json:
        print(json.dumps(_facts(run, told), indent=1))
    faults: list[HpcaiError] = [DataError(line) for line in _lines(run, told)]
    if not faults:
        faults = [PlanError(f"{shown(run)}: {text}") for text in told.unsure]
    if not options.json:
        _show(run, told, whole=not faults)
    if faults:
        raise faults[0] if len(faults) == 1 else Faults(faults)
    return 0


def check_ended(run: RunDir) -> None:
    """Raises: PlanError for a run that has no manifest, or goes on just now."""
    name, state = one_line(run.path.name, 120), runs.state_of(run).state
    if state in lease.ACTIVE:
        raise PlanError(f"{shown(run)}: has not ended. hpcai wait {name}, then verify it.")
    if run.manifest.is_file():
        return
    if state == "completed":
        raise PlanError(
            f"{shown(run)}: has no manifest.json: an older hpcai wrote it, or it was removed. --anew makes it again."
        )
    raise PlanError(
        f"{shown(run)}: has no seal, it is {state}. Its report is sealed when it has finished: hpcai resume {name}."
    )


def verify(run: RunDir, given: str | None = None) -> Findings:
    """Everything about a run that has a manifest. `given`: the seal that a person has."""
    told = Findings()
    files = seal.files_of(run)
    data = _bytes(run.manifest)
    told.seal = seal.seal_of(data)
    ends = list(_ends(run))
    witness = next((end["seal"] for end in ends if end.get("rank") == 0 and isinstance(end.get("seal"), str)), None)
    told.faults += _unsealed(run, files)
    manifest = _manifest(data)
    if manifest is None or (witness is not None and witness != told.seal):
        told.faults.append(("changed", "manifest.json"))
    if given is not None and given != told.seal:
        told.others.append(
            f"--seal={given[:12]}...: is not the seal of this run, {told.seal[:12]}... One of both was made anew."
        )
    if manifest is not None:
        told.files = len(manifest)
        told.faults += seal.changes(run, manifest, files)
        told.faults += [("added", name) for name in files if name not in manifest and seal.kind_of(name) == "whole"]
    for end in ends:
        after = {name: facts for name, facts in end.get("after", {}).items() if _is_facts(facts)}
        told.faults += seal.changes(run, after, files)
    told.faults = list(dict.fromkeys(told.faults))
    _inputs(run, told)
    _page(run, told, witness or told.seal)
    return told


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _manifest(data: bytes) -> dict[str, Json] | None:
    """The files of a manifest; None if it is not, byte for byte, as it was written."""
    try:
        value = json.loads(data)
        files = value["files"]
        if seal.encoded(value) == data and value["version"] == seal.VERSION and all(map(_is_facts, files.values())):
            return dict(files)
    except DAMAGED:
        pass
    return None


def _is_facts(facts: Any) -> bool:
    return isinstance(facts, dict) and type(facts.get("bytes")) is int and isinstance(facts.get("sha256"), str)


# ---- what came after the seal


def _last_records(run: RunDir) -> Iterator[tuple[str, Json]]:
    """(name, last record) of each rank in the run's last life; of a damaged one an empty record."""
    life = lease.last_life(run)
    folder = lease.life_dir(run, life)
    for path in sorted(folder.glob("rank*.jsonl")) if life else []:
        try:
            value = json.loads(_bytes(path).splitlines()[-1])
        except DAMAGED:
            value = {}
        yield path.relative_to(run.path).as_posix(), value if isinstance(value, dict) else {}


def _ends(run: RunDir) -> Iterator[Json]:
    """The end records that are as their ranks wrote them."""
    return (record for _, record in _last_records(run) if _is_whole(record))


def _is_whole(record: Json) -> bool:
    try:
        return record.get("event") == "end" and record.get("digest") == seal.record_digest(record)
    except (ValueError, RecursionError):
        return False


def _unsealed(run: RunDir, files: Mapping[str, Path]) -> Iterator[tuple[str, str]]:
    """Records that end otherwise than a rank's own end, and files that such an end must have told of and has not."""
    told = dict(_last_records(run))
    yield from (("changed", name) for name, record in told.items() if not _is_whole(record))
    known = {name for record in told.values() if _is_whole(record) for name in record.get("after", {})}
    if told and all(map(_is_whole, told.values())):
        yield from (("added", name) for name in files if seal.kind_of(name) == "late" and name not in known)


# ---- inputs


def _inputs(run: RunDir, told: Findings) -> None:
    """Digests what data.json lists, and the weights of the runs that a model came from, where they are."""
    try:
        listed = [(Path(f["path"]), {"bytes": f["bytes"], "sha256": f["sha256"]}) for f in rundir.read_json(run.data)["files"]]
    except DAMAGED:
        return  # data.json itself is named already
    there = {str(i): path for i, (path, _) in enumerate(listed, 1) if runs.is_file(path)}
    now = seal.digests(there)
    told.unreachable_inputs = len(listed) - len(there)
    told.changed_inputs = [i for i, (_, then) in enumerate(listed, 1) if str(i) in there and now[str(i)] != then]
    told.good_inputs = len(there) - len(told.changed_inputs)
    for source, sha256 in _sources(run):
        name = one_line(source.path.name, 120)
        try:
            stem = str(rundir.read_json(source.model)["checkpoint"])
            fitted = source.path / stem  # an estimator lies in the run's own folder
            weights = seal.digest(fitted if stem.endswith(".json") else source.checkpoints / f"{stem}.safetensors")
        except DAMAGED:
            if source.path.is_dir():
                told.others.append(f"from_run={name}: its model is damaged or gone. Restore it.")
            continue
        if weights is None or weights["sha256"] != sha256:
            told.others.append(f"from_run={name}: its weights are not those that this run read. Restore them.")


def _sources(run: RunDir) -> list[tuple[RunDir, str]]:
    """The runs whose models this one read, with their weights' digest then."""
    import yaml

    try:
        named = yaml.safe_load(run.config.read_bytes()).get("from_run") or []
        then = rundir.read_json(run.plan)["from_run"] or []
        paths = [Path(str(name)) for name in ([named] if isinstance(named, str) else named)]
        if rundir.read_json(run.plan)["job"] == "gather" or len(paths) != len(then):
            return []
        return [(RunDir(path), str(source["sha256"])) for path, source in zip(paths, then, strict=True)]
    except (*DAMAGED, yaml.YAMLError):
        return []


# ---- the page


def _page(run: RunDir, told: Findings, sealed: str) -> None:
    """Compares report.html with what the folder says now, if the files that it is made of are what they were."""
    if not run.report_html.is_file():
        told.faults.append(("missing", "report.html"))
        return
    if not all(name == "manifest.json" or name.startswith(BESIDE) for _, name in told.faults):
        return  # another page would follow from these
    try:
        same = _bytes(run.report_html) == report.rendered(run, sealed)
    except Exception:  # made by other code, its facts may be of any form
        same = False
    if not same and _same_code(run):
        told.faults.append(("changed", "report.html"))
    elif not same and told.ok:
        told.unsure.append(OTHER_CODE)


def _same_code(run: RunDir) -> bool:
    """Whether this process would render the same page from the same files."""
    try:
        facts = rundir.read_json(run.environment)
        return bool(facts["code_sha256"] == provenance.code_digest()) and not provenance.changed(
            facts["versions"], provenance.versions()
        )
    except DAMAGED:
        return False


# ---- in words


def _lines(run: RunDir, told: Findings) -> list[str]:
    """A line for everything that does not fit."""
    said = {"changed": "was changed", "missing": "is missing", "added": "was not there when the run ended"}
    found = [
        f"{shown(run)}: {named(name)} {said[what]}. Restore the folder, or make the run anew." for what, name in told.faults
    ]
    if told.changed_inputs:
        numbers, total = told.changed_inputs, told.good_inputs + told.unreachable_inputs + len(told.changed_inputs)
        some = ", ".join(map(str, numbers[:10])) + (f" and {len(numbers) - 10:,} more" if len(numbers) > 10 else "")
        found.append(f"{shown(run)}: of the {total:,} inputs that data.json lists number {some} was changed. Restore the data.")
    return [*found, *(f"{shown(run)}: {text}" for text in told.others)]


def named(name: str) -> str:
    """A file of the run as it may be called: one that hpcai does not write may be named after a patient."""
    if OURS.fullmatch(name):
        return name
    folder = name.split("/")[0] if "/" in name else ""
    return f"a file in {one_line(folder, 40)}/" if OURS.match(f"{folder}/x.json") else "a file"


def _show(run: RunDir, told: Findings, *, whole: bool) -> None:
    print(f"seal  {told.seal}")
    if whole:
        data = f"{told.good_inputs:,} of {told.good_inputs + told.unreachable_inputs:,} inputs"
        rest = " (the others cannot be reached from here)" if told.unreachable_inputs else ""
        print(f"{one_line(run.path.name, 120)} is as it was: {told.files:,} files, {data}{rest}, report.html rendered again")


def _facts(run: RunDir, told: Findings) -> Json:
    by_kind: dict[str, Sequence[str]] = {
        kind: [named(name) for what, name in told.faults if what == kind] for kind in ("changed", "missing", "added")
    }
    inputs = {"good": told.good_inputs, "changed": told.changed_inputs, "unreachable": told.unreachable_inputs}
    facts: Json = {"run": run.path.name, "path": str(run.path), "ok": told.ok and not told.unsure, "seal": told.seal}
    return facts | {"files": told.files, **by_kind, "inputs": inputs, "others": told.others, "unsure": told.unsure}

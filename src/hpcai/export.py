"""`hpcai export NAME`: the supplement of a paper, one zip.   run folder -> the files that are named here, cleaned -> FILE.zip

What goes in is a list, so that what is not on it stays out: rows, cases, splits, weights, logs, lives, data.json, code and
report.internal.html never go. All text is cleaned (redaction.py), the report is rendered anew from what was cleaned. Pictures
and ids of cases go only where data.shareable says that anybody may see them. The same run gives the same bytes.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import pwd
import socket
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import hpcai
from hpcai import lease, outfile, rundir, runs
from hpcai.arguments import Words
from hpcai.errors import ConfigError, PlanError, one_line
from hpcai.redaction import PART, Redaction
from hpcai.rundir import RunDir
from hpcai.runs import DAMAGED

HELP = """\
Writes NAME-supplement.zip into this folder: what a paper may give to its readers of a run that has finished. The report, its
numbers, the config, the plan, the environment with versions and licences, the curves, the threshold, the batch script.

Never: rows, ids of cases and patients, the newborns of a review list, images, splits, weights, logs, code. Taken out of what
goes in: paths, names of files, hosts, logins, accounts, mail addresses, secrets, and every id that the run's own lists hold.
README.txt inside says the same.
Where data.shareable=true the report keeps the pictures and ids of the most wrong cases."""
JSON = ("plan.json", "environment.json", "runtime.json", "threshold.json")  # cleaned value by value
ORDER = ("README.txt", "report.html", "report.json", "config.yaml", *JSON, "metrics.jsonl", "job.sbatch")
WHEN = (1980, 1, 1, 0, 0, 0)  # of each file in the zip, the earliest that the format knows: no clock goes in
COMMON = PART | {"root", "user", "users", "admin", "home", "localhost", "local", "none", "hpcai", "slurm"}
PRIVATE = ("account", "reservation", "mail")  # keys whose value says who pays, or whom to write to
README = """\
The supplement of {name}: made by `hpcai export` of hpcai {version}.

report.html is the report for people, report.json for programs; config.yaml is the whole configuration, plan.json what was run,
environment.json (runtime.json: of the compute nodes) versions and licences of the packages; metrics.jsonl the curves;
threshold.json from which score on a case is called positive; job.sbatch the batch script. What the run lacks is not here.

Left out: the scores of single cases, ids of cases and patients, images, the split, weights, logs, code, the data.
{shared}
Words in brackets stand for what was taken out ({count} times): <id>, <path>, <data.path>, <file>.png, <mail>, <secret>,
<address>, <private>. So digests of report.json and the seal are not those of the run's own folder.

Research use. Not a medical device.

{files}
"""
SHOWN = "\nThe report shows pictures and ids of the most wrong cases: the data are stated as shareable (data.shareable=true).\n"
Json = dict[str, Any]


def main(argv: list[str]) -> int:
    """`hpcai export NAME [-o FILE.zip] [--force]`; returns the exit code.

    Raises: ConfigError for an unknown name or a sweep, PlanError if it has no report or the file cannot be written, RunError if
        a file of the run is damaged.
    """
    words = Words("export", "NAME", HELP)
    words.add_argument("--output", "-o", metavar="FILE", type=Path, help="write this file (NAME-supplement.zip)")
    words.add_argument("--force", action="store_true", help="replace FILE, whatever it is")
    options = words.read(argv, least=1, most=1)
    if options is None:
        return 0
    run = runs.find(options.names[0], options.runs_dir)
    if runs.is_sweep(run.path):
        raise ConfigError(f"sweep={one_line(run.path.name, 120)}: is a sweep. Name one of its runs.")
    file = options.output if options.output is not None else Path(f"{one_line(run.path.name, 120)}-supplement.zip")
    outfile.check(file, force=options.force)
    files, count = collected(run)
    outfile.write(file, zipped(files), private=True)
    if options.json:
        print(json.dumps({"file": str(file.absolute()), "files": list(files), "taken_out": count}, indent=1))
    else:
        print(f"{one_line(str(file), 200)}: {len(files)} files, no rows, pixels or paths. README.txt in it says more.")
    return 0


def collected(run: RunDir) -> tuple[dict[str, bytes], int]:
    """Each file by its name, cleaned, and how much was taken out.

    Raises: PlanError if there is no report, RunError if a file that the report is made of is damaged.
    """
    from hpcai.report.folder import may_show, read_folder

    shown = f"run={one_line(run.path.name, 120)}"
    if not run.report_json.is_file():
        raise PlanError(f"{shown}: has no report.json, so there is nothing to export. Let it finish: hpcai resume.")
    folder = read_folder(run)
    own = known(run, folder.config)
    config = without_private(own.value(folder.config))
    texts = {"config.yaml": _yaml(config)}
    try:
        report = rundir.read_json(run.report_json)
        mistakes = report.get("mistakes")
        report = own.value(_without_newborns(report))
        if mistakes and may_show(folder.config, folder.screening):
            report["mistakes"] = mistakes
        texts["report.json"] = json.dumps(report, ensure_ascii=False, indent=1) + "\n"
        texts["report.html"] = _page(replace(folder, config=config, config_text=texts["config.yaml"]), report)
    except DAMAGED as e:
        raise PlanError(f"{shown}: its report.json is damaged. Run it anew with --anew.") from e
    for name in JSON:
        if (run.path / name).is_file():
            value = without_private(own.value(rundir.read_json(run.path / name)))
            texts[name] = json.dumps(value, ensure_ascii=False, indent=1) + "\n"
    for name, lines in (("metrics.jsonl", True), ("job.sbatch", False)):
        if (run.path / name).is_file():
            text = (run.path / name).read_text("utf-8", "replace")
            texts[name] = own.json_text(text, lines=True) if lines else own.clean(text)
    files = {name: text.encode("utf-8", "backslashreplace") for name, text in texts.items()}
    told = _readme(own.clean(run.path.name), files, own.count, may_show(folder.config, folder.screening))
    return {name: ({"README.txt": told} | files)[name] for name in ORDER if name == "README.txt" or name in files}, own.count


def _without_newborns(report: Json) -> Json:
    """Without the list of newborns to look at: a row and a plate find one again in the laboratory."""
    if "screening" not in report:
        return report
    block = report["screening"]
    return report | {"screening": block | {"review": {"n": block["review"]["n"], "rows": []}}}


def _page(folder: Any, report: Json) -> str:
    from hpcai.report.page import render

    return render(folder, report)


def _yaml(config: Json) -> str:
    import yaml

    text: str = yaml.safe_dump(config, sort_keys=False, allow_unicode=True, width=1000)
    return text


def known(run: RunDir, config: Json) -> Redaction:
    """What must not leave: the run's own ids and paths, its hosts, its owner's login, whom Slurm bills."""
    found = Redaction()
    found.learn(run, config)
    found.add(name for name in _people(run, config) if name.lower() not in COMMON)
    return found.seen_from(run.path.parent, run)


def _people(run: RunDir, config: Json) -> Iterator[str]:
    """Names of machines, of their users and of projects, as far as the run and this process know them."""
    hosts = [socket.gethostname()]
    for life in range(1, lease.last_life(run) + 1):
        try:
            hosts.append(str(lease.read_owner(run, life).get("host") or ""))
        except DAMAGED:
            continue
    for host in hosts:
        yield from (host, host.partition(".")[0])
    for uid in {os.getuid(), run.path.stat().st_uid}:
        try:
            yield pwd.getpwuid(uid).pw_name
        except KeyError:
            continue
    cluster = config.get("cluster")
    for key in PRIVATE:
        if isinstance(cluster, dict) and isinstance(cluster.get(key), str):
            yield cluster[key]


def without_private(value: Any) -> Any:
    """A config or plan without who pays and whom to write to."""
    if isinstance(value, dict):
        return {k: "<private>" if k in PRIVATE and isinstance(v, str) else without_private(v) for k, v in value.items()}
    return [without_private(v) for v in value] if isinstance(value, list) else value


def _readme(name: str, files: dict[str, bytes], count: int, shared: bool) -> bytes:
    listed = [f"{len(files[n]):>10}  {hashlib.sha256(files[n]).hexdigest()}  {n}" for n in ORDER if n in files]
    text = README.format(
        name=one_line(name, 120), version=hpcai.__version__, count=count, shared=SHOWN if shared else "",
        files="\n".join(["     bytes  sha256" + " " * 60 + "file", *listed]),
    )  # fmt: skip
    return text.encode("utf-8", "backslashreplace")


def zipped(files: dict[str, bytes]) -> bytes:
    """The zip; the same files give the same bytes."""
    to = io.BytesIO()
    with zipfile.ZipFile(to, "w", zipfile.ZIP_DEFLATED) as z:
        for name, data in files.items():
            entry = zipfile.ZipInfo(name, WHEN)
            entry.create_system, entry.external_attr, entry.compress_type = 3, 0o644 << 16, zipfile.ZIP_DEFLATED
            z.writestr(entry, data)
    return to.getvalue()

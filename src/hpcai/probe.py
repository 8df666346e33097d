"""`hpcai cluster probe`: a cluster file for an unknown machine.   Slurm's own answers -> facts -> YAML

    scontrol show config, partition   sinfo -N   sacctmgr show qos, assoc     read only, each with a time limit
    Answers (texts) -> probed() -> Probe(name, facts, unknown) -> written()

Everything between the calls and the file is a pure function of texts. A value that Slurm does not tell is left out and named at
the file's end: unknown is not allowed. Nothing is guessed from a machine's name.
"""

from __future__ import annotations

import datetime
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpcai.arguments import Words
from hpcai.config.words import NAME
from hpcai.errors import ConfigError, HpcaiError, PlanError, one_line

PATIENCE_S = 30.0  # a controller that is down answers after 9 to 18 s; an accounting service may never
HELP = """Write a cluster file for the machine whose login node this is, from scontrol, sinfo and sacctmgr, which are only read.

What Slurm does not tell is left out and named at the end: look it up at the site, and write it down with its source. Put the
file into DIR/cluster and run with --config-dir DIR; hpcai cluster check FILE says key by key what is known from where."""
ASK_THE_SITE = (  # facts that no Slurm command tells
    "site", "partitions.*.charge", "unit", "account_pattern", "account_example", "setup", "home", "project", "scratch",
    "shared", "internet", "login_modules", "driver", "cuda",
)  # fmt: skip
CONFIG = ("scontrol", "show", "config")
PARTITIONS = ("scontrol", "--oneliner", "show", "partition")
NODES = ("sinfo", "--noheader", "--Node", "--format=%R|%X|%Y|%Z|%m|%G")
LIST = ("sacctmgr", "--noheader", "--parsable2", "show")
QOS = (*LIST, "qos", "format=Name,MaxWall,MaxTRES,MaxJobsPU,MaxSubmitPU,Priority,Preempt")
Ask = Callable[[tuple[str, ...]], str]


@dataclass(frozen=True)
class Answers:
    """What Slurm said. `qos`, `memberships` and `accounts` are None where there is no accounting, or it did not answer."""

    config: str
    partitions: str
    nodes: str
    qos: str | None = None
    memberships: str | None = None
    accounts: str | None = None


@dataclass
class Probe:
    """A machine's name, its facts as a cluster file has them, and why others are unknown, by key."""

    name: str
    facts: dict[str, Any]
    unknown: dict[str, str] = field(default_factory=dict)

    def put(self, into: dict[str, Any], key: str, where: str, text: str | None, parse: Callable[[str], Any]) -> None:
        """Sets into[key] to what `text` says, nothing where it says "no limit"; what cannot be read is unknown at `where`."""
        try:
            value = None if text is None else parse(text)
        except ValueError as why:
            self.unknown[where] = str(why)
            return
        if text is None:
            self.unknown[where] = "Slurm did not say"
        if value is not None:
            into[key] = value


def main(argv: list[str]) -> int:
    """`hpcai cluster probe [-o FILE]`; returns the exit code.

    Raises: ConfigError for a wrong option or a file that is there already; PlanError where no Slurm answers.
    """
    words = Words("cluster probe", "[-o FILE]", HELP)
    words.add_argument("-o", "--output", metavar="FILE", type=Path, help="write here (a new file) instead of to stdout")
    options = words.read(argv)
    if options is None:
        return 0
    if options.names:
        raise ConfigError(f"{one_line(options.names[0], 80)}: hpcai cluster probe takes no name. It looks at this machine.")
    complaints: list[str] = []
    probe = probed(answers(ask, complaints))
    print(*complaints, sep="\n", end="\n" if complaints else "", file=sys.stderr)
    today = datetime.date.today().isoformat()
    text = json.dumps(plain(probe, today), indent=1) + "\n" if options.json else written(probe, today)
    if options.output is None:
        print(text, end="")
    else:
        _create(options.output, text)
        print(f"{options.output}: {len(probe.unknown)} keys are unknown; they are named at its end.", file=sys.stderr)
    return 0


def _create(path: Path, text: str) -> None:
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise ConfigError(f"--output={path}: is there already. Name another file.") from None
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(f"--output={path}: its folder does not exist. Make it, or name another.") from None


# --- the calls


def ask(command: tuple[str, ...]) -> str:
    """What a command says, in plain words whatever the caller's settings.

    Raises: PlanError if it is not installed, fails, or does not answer in time.
    """
    settings = ("SLURM_CLUSTERS", "SLURM_TIME_FORMAT", "SINFO_", "SLURM_BITSTR_LEN")
    env = {k: v for k, v in os.environ.items() if not k.startswith(settings)} | {"LC_ALL": "C"}
    by_hand = f"Try by hand: {' '.join(command)}"
    try:
        done = subprocess.run(command, capture_output=True, timeout=PATIENCE_S, env=env, stdin=subprocess.DEVNULL)
    except FileNotFoundError:
        raise PlanError(f"{command[0]}: not installed: no Slurm here. Run hpcai cluster probe on a login node.") from None
    except OSError as e:
        raise PlanError(f"{command[0]}: cannot be started ({e.strerror}). {by_hand}") from None
    except subprocess.TimeoutExpired:
        raise PlanError(f"{command[0]}: no answer in {PATIENCE_S:g} s. {by_hand}") from None
    if done.returncode:
        said = " ".join(done.stderr.decode("utf-8", "replace").split())
        raise PlanError(f"{command[0]}: exit {done.returncode}: {one_line(said, 300) or 'no word'}. {by_hand}")
    return done.stdout.decode("utf-8", "replace")


def answers(ask: Ask, complaints: list[str]) -> Answers:
    """Every call; those to the accounting service may fail, which is a line in `complaints`.

    Raises: PlanError if scontrol or sinfo do not answer.
    """
    config, partitions, nodes = ask(CONFIG), ask(PARTITIONS), ask(NODES)
    settings = pairs(config)
    if settings.get("AccountingStorageType", "").endswith("/none"):
        complaints.append("accounting: this Slurm has none, so it has no QOS and no accounts.")
        return Answers(config, partitions, nodes)
    where = (f"cluster={settings.get('ClusterName', '')}", f"user={_user()}")
    try:
        qos = ask(QOS)
        memberships = ask((*LIST, "assoc", "where", *where, "format=Account,QOS,DefaultQOS,MaxSubmit"))
        names = ",".join(sorted({row[0] for row in rows(memberships, 4)}))
        ours = (where[0], "user=", f"account={names}")  # user= : the accounts' own rows, no other user's
        accounts = ask((*LIST, "assoc", "where", *ours, "format=Account,GrpSubmit,MaxSubmit")) if names else ""
    except PlanError as e:
        complaints += e.lines
        return Answers(config, partitions, nodes)
    return Answers(config, partitions, nodes, qos, memberships, accounts)


def _user() -> str:
    import pwd

    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


# --- words of Slurm


def pairs(text: str) -> dict[str, str]:
    """`Key = value` lines, as of `scontrol show config`."""
    lines = (line.partition("=") for line in text.splitlines() if "=" in line)
    return {key.strip(): value.strip() for key, _, value in lines}


def records(text: str) -> list[dict[str, str]]:
    """A record a line of `Key=value` words, as of `scontrol --oneliner show partition`."""
    found = [dict(word.split("=", 1) for word in line.split() if "=" in word) for line in text.splitlines()]
    return [record for record in found if record]


def rows(text: str, columns: int) -> Iterator[list[str]]:
    """Lines of so many cells between `|`; others are no rows."""
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) == columns:
            yield cells


def minutes(text: str) -> int | None:
    """Slurm's times (`30:00`, `06:00:00`, `2-00:00:00`) in whole minutes, rounded down; None: no limit.

    Raises: ValueError for anything else, and for less than a minute.
    """
    if text.upper() in ("", "UNLIMITED", "INFINITE", "NONE", "N/A", "(NULL)"):
        return None
    match = re.fullmatch(r"(?:(\d{1,6})-)?(\d{1,9})(?::(\d{1,9}))?(?::(\d{1,9}))?", text, re.ASCII)
    if not match:
        raise ValueError(f"{one_line(text, 40)!r} is no time")
    days, *parts = match.groups()
    given = [int(part) for part in parts if part is not None]
    if days is not None or len(given) == 3:  # D-HH[:MM[:SS]], HH:MM:SS
        hours, mins, seconds = (*given, 0, 0)[:3]
    else:  # MM[:SS]
        hours, (mins, seconds) = 0, (*given, 0)[:2]
    total = (((int(days or 0) * 24 + hours) * 60 + mins) * 60 + seconds) // 60
    if total < 1:
        raise ValueError(f"{one_line(text, 40)!r} is less than a minute")
    return total


def count(text: str) -> int | None:
    """A limit; None: no limit. Raises: ValueError for anything else, and for 0: nothing may be asked for."""
    if text.upper() in ("", "UNLIMITED", "INFINITE", "NONE", "N/A", "(NULL)"):
        return None
    if not re.fullmatch(r"[0-9]{1,12}", text) or int(text) < 1:
        raise ValueError(f"{one_line(text, 40)!r} is no limit from 1")
    return int(text)


def tres(text: str) -> dict[str, str]:
    """`node=2,gres/gpu=8` as a dict."""
    return dict(word.split("=", 1) for word in text.split(",") if "=" in word)


def gpus(text: str) -> tuple[int, str]:
    """GPUs of a node and their type, "" if there are several: `gpu:a100:4(S:0-1),nvme:1` is (4, "a100")."""
    words = re.sub(r"\([^)]*\)", "", text).split(",")
    found = [m.groups() for word in words if (m := re.fullmatch(r"gpu(?::([A-Za-z0-9._-]+))?:([0-9]{1,4})", word.strip()))]
    kinds = {kind or "" for kind, _ in found}
    return sum(int(number) for _, number in found), kinds.pop() if len(kinds) == 1 else ""


# --- the facts


def probed(said: Answers) -> Probe:
    """What Slurm's answers tell. Raises: PlanError if they name no partition that can be read."""
    settings = pairs(said.config)
    name = settings.get("ClusterName", "")
    probe = Probe(name if re.fullmatch(NAME, name) else "unnamed", {}, dict.fromkeys(ASK_THE_SITE, "Slurm does not tell"))
    if probe.name != name:
        probe.unknown["name"] = f"ClusterName={one_line(name, 40)!r} is no name here"
    told = records(said.partitions)
    found = list(rows(said.qos or "", 7))
    _general(probe, settings)
    probe.facts["partitions"] = _partitions(probe, told, said, settings, {row[0]: row for row in found})
    if not probe.facts["partitions"]:
        raise PlanError("scontrol show partition: no partition that can be read. Ask the site which ones there are.")
    _favourites(probe, told)
    if said.qos is None:
        probe.unknown |= dict.fromkeys(("qos", "default_qos", "max_submit"), "no accounting, or no answer from it")
    else:
        _members(probe, said)
        _qos(probe, found, told, said)
    return probe


def _general(probe: Probe, settings: Mapping[str, str]) -> None:
    facts, said = probe.facts, settings.get
    version = said("SLURM_VERSION", "")
    probe.put(facts, "slurm", "slurm", version if re.fullmatch(r"[0-9A-Za-z.+~-]{1,40}", version) else None, str)
    probe.put(facts, "max_array", "max_array", said("MaxArraySize"), count)
    probe.put(facts, "kill_wait_s", "kill_wait_s", said("KillWait"), lambda text: count(text.removesuffix(" sec")))
    if said("JobRequeue") == "1":
        facts["requeue"] = True
    else:
        probe.unknown["requeue"] = "JobRequeue=0 is only a default. Ask whether --requeue is allowed"
    probe.put(facts, "account_required", "account_required", said("AccountingStorageEnforce"), lambda t: "associations" in t)
    if said("MpiDefault", "none") == "none":
        probe.unknown["mpi"] = "MpiDefault=none. See srun --mpi=list, and try one in a job"


def _partitions(
    probe: Probe, told: list[dict[str, str]], said: Answers, settings: Mapping[str, str], qos: Mapping[str, list[str]]
) -> dict[str, Any]:
    shapes: dict[str, set[tuple[str, ...]]] = {}
    for partition, *shape in rows(said.nodes, 6):
        shapes.setdefault(partition, set()).add(tuple(shape))
    found: dict[str, Any] = {}
    for record in told:
        name = record.get("PartitionName", "")
        where = f"partitions.{one_line(name, 80)}"
        try:
            if not re.fullmatch(NAME, name):
                raise ValueError("no name that can be written here")
            found[name] = _nodes(shapes.get(name, set()))
        except ValueError as why:
            probe.unknown[where] = str(why)
            continue
        if len(shapes[name]) > 1:
            probe.unknown[where] = f"{len(shapes[name])} shapes of node: the least of each figure is written"
        _rules(probe, found[name], record, settings, qos.get(record.get("QoS", "N/A")))
    return found


def _nodes(shapes: set[tuple[str, ...]]) -> dict[str, Any]:
    """Cores, threads, memory and GPUs that every node has. Raises: ValueError if none is told."""
    if not shapes:
        raise ValueError("sinfo shows no node of it")
    numbers = [[count(cell) or 0 for cell in shape[:4]] for shape in shapes]
    kinds = [gpus(shape[4]) for shape in sorted(shapes)]
    cores, threads = min(s * c for s, c, _, _ in numbers), min(t for _, _, t, _ in numbers)
    if not (cores and 1 <= threads <= 8):
        raise ValueError("sinfo tells no cores of its nodes")
    facts: dict[str, Any] = {"cores": cores, "threads_per_core": threads}
    if memory := min(m for _, _, _, m in numbers):
        facts["mem_gb"] = round(memory / 1024, 3)  # Slurm counts in MiB
    if number := min(number for number, _ in kinds):
        facts["gpus"] = min(number, 64)
        if len({kind for _, kind in kinds}) == 1 and kinds[0][1]:
            facts["gpu"] = kinds[0][1]
    return facts


def _rules(
    probe: Probe, facts: dict[str, Any], record: Mapping[str, str], settings: Mapping[str, str], qos: list[str] | None
) -> None:
    """Its limits: its own, and those of the QOS that stands behind it, whichever is less."""
    where = f"partitions.{record['PartitionName']}"
    probe.put(facts, "nodes", f"{where}.nodes", record.get("TotalNodes"), count)
    probe.put(facts, "max_min", f"{where}.max_min", record.get("MaxTime"), minutes)
    probe.put(facts, "max_nodes", f"{where}.max_nodes", record.get("MaxNodes"), count)
    if record.get("OverSubscribe") == "EXCLUSIVE" or settings.get("SelectType") == "select/linear":
        facts["whole_nodes"] = True
    elif settings.get("JobSubmitPlugins", "") in ("", "(null)"):
        facts["whole_nodes"] = False
    else:
        probe.unknown[f"{where}.whole_nodes"] = "a job_submit plug-in of the site may decide it"
    if qos:
        behind: dict[str, Any] = {}
        probe.put(behind, "max_min", f"{where}.max_min", qos[1], minutes)
        probe.put(behind, "max_nodes", f"{where}.max_nodes", tres(qos[2]).get("node", ""), count)
        probe.put(behind, "max_submit", f"{where}.max_submit", qos[4], count)
        for key, value in behind.items():
            facts[key] = min(value, facts.get(key, value))


def _favourites(probe: Probe, told: list[dict[str, str]]) -> None:
    """The partition for runs without, and with, GPUs, where there is no choice; and what holds for all of them."""
    facts, partitions = probe.facts, probe.facts["partitions"]
    default = next(
        (r["PartitionName"] for r in told if r.get("Default") == "YES" and r.get("PartitionName") in partitions), None
    )
    for key, wanted in (("cpu_partition", False), ("gpu_partition", True)):
        fitting = [name for name, shape in partitions.items() if bool(shape.get("gpus")) == wanted]
        if default in fitting or len(fitting) == 1:
            facts[key] = default if default in fitting else fitting[0]
        elif fitting:
            probe.unknown[key] = f"one of {', '.join(fitting)}"
    if all(shape.get("whole_nodes") for shape in partitions.values()):
        facts["mem"] = "all"


def _members(probe: Probe, said: Answers) -> None:
    """What the caller's accounts allow: the least of their submit limits, and the QOS that all of them begin with."""
    memberships = list(rows(said.memberships or "", 4))
    found = [cell for _, *cells in rows(said.accounts or "", 3) for cell in cells] + [row[3] for row in memberships]
    least: list[dict[str, Any]] = [{} for _ in found]
    for into, cell in zip(least, found, strict=True):
        probe.put(into, "max_submit", "max_submit", cell, count)
    if values := [into["max_submit"] for into in least if into]:
        probe.facts["max_submit"] = min(values)
    defaults = {row[2] for row in memberships if row[2]}
    if len(defaults) == 1 and re.fullmatch(NAME, next(iter(defaults))):
        probe.facts["default_qos"] = defaults.pop()
    else:
        probe.unknown["default_qos"] = f"your accounts have {len(defaults)}"


def _qos(probe: Probe, found: list[list[str]], told: list[dict[str, str]], said: Answers) -> None:
    """The QOS that the caller's accounts may use; all of them where none are named."""
    mine = {name for row in rows(said.memberships or "", 4) for name in row[1].split(",") if name}
    victims = {name for row in found for name in row[6].split(",") if name}
    wanted: dict[str, Any] = {}
    for name, wall, per_job, running, submitted, priority, _ in found:
        where = f"qos.{one_line(name, 80)}"
        if mine and name not in mine:
            continue
        if not re.fullmatch(NAME, name):
            probe.unknown[where] = "no name that can be written here"
            continue
        facts: dict[str, Any] = {}
        probe.put(facts, "max_min", f"{where}.max_min", wall, minutes)
        probe.put(facts, "max_nodes", f"{where}.max_nodes", tres(per_job).get("node", ""), count)
        probe.put(facts, "max_running", f"{where}.max_running", running, count)
        probe.put(facts, "max_submit", f"{where}.max_submit", submitted, count)
        if nodes := _nodes_by_gpus(probe.facts["partitions"], tres(per_job).get("gres/gpu", "")):
            facts["nodes"] = nodes
        if usable := _usable(name, told, probe.facts["partitions"]):
            facts["partitions"] = usable
        if re.fullmatch(r"[0-9]{1,12}", priority) and int(priority):
            facts["priority"] = priority
        wanted[name] = facts | ({"preemptible": True} if name in victims else {})
    probe.facts["qos"] = wanted


def _nodes_by_gpus(partitions: Mapping[str, Any], most: str) -> dict[str, int]:
    """A limit on GPUs as one on nodes, partition by partition."""
    if not re.fullmatch(r"[0-9]{1,9}", most):
        return {}
    return {name: n for name, shape in partitions.items() if shape.get("gpus") and (n := int(most) // shape["gpus"])}


def _usable(qos: str, told: list[dict[str, str]], partitions: Mapping[str, Any]) -> list[str] | None:
    """Where a QOS may be used; None: in all partitions, or Slurm names none."""

    def may(record: Mapping[str, str]) -> bool:
        allowed, denied = record.get("AllowQos", "ALL"), record.get("DenyQos", "")
        return (allowed == "ALL" or qos in allowed.split(",")) and qos not in denied.split(",")

    known = [record for record in told if record.get("PartitionName") in partitions]
    usable = [record["PartitionName"] for record in known if may(record)]
    return usable if len(usable) < len(known) else None


# --- the file


def plain(probe: Probe, date: str) -> dict[str, Any]:
    """The cluster file as a dict. Raises: HpcaiError if it does not fit the schema, which would be a fault of ours."""
    from pydantic import ValidationError

    from hpcai.config.schema import Cluster

    facts = {**probe.facts, "sources": dict.fromkeys(probe.facts, f"probed {date}")}
    found = {"name": probe.name, "executor": "slurm", "facts": facts}
    try:
        Cluster.model_validate(found)
    except ValidationError as e:
        raise HpcaiError(f"cluster probe: made no valid file: {one_line(str(e), 300)}. Please report it.") from None
    return found


def written(probe: Probe, date: str) -> str:
    """The file: YAML, and as comments what is unknown, by reason."""
    import yaml

    body: str = yaml.safe_dump(plain(probe, date), sort_keys=False, default_flow_style=None, width=120, allow_unicode=True)
    whys: dict[str, list[str]] = {}
    for key, why in probe.unknown.items():
        whys.setdefault(why, []).append(key)
    head = f"# {probe.name}, as its own Slurm told it on {date} (hpcai cluster probe).\n"
    foot = "".join(f"#   {', '.join(keys)}: {one_line(why, 200)}.\n" for why, keys in whys.items())
    return (
        f"{head}{body}# Unknown, which is not the same as allowed; ask the site, and write each down with its source:\n{foot}"
    )

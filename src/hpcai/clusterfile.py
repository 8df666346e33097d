"""`hpcai cluster`: which machines are known here, and what of each is known from where.   file -> Cluster -> values, faults

    hpcai cluster                      a line for each: the site's (HPCAI_SITE), hpcai's own, those of --config-dir
    hpcai cluster check NAME|FILE      one of them, key by key
    hpcai cluster probe [-o FILE]      drafts a file for the machine whose login node this is (probe.py)

A file is read as a run would read it, with the same refusals. Faults are wrong keys and values, sources that lead nowhere, and
facts that contradict each other; a value without a source is none, but stands as unverified.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcai import probe
from hpcai.arguments import Words
from hpcai.config.check import check_cluster
from hpcai.config.facts import Facts
from hpcai.config.folder import Folder
from hpcai.config.schema import Cluster
from hpcai.config.site import cluster_faults, leaves, site_file, text_of
from hpcai.config.userfile import NAME, UserFile, read_user_file
from hpcai.errors import ConfigError, Faults, HpcaiError, near, one_line

HELP = """Without a name: the clusters known here, a line each.
check: what a cluster file states, key by key, each with its source, second-hand, probed or unverified; exit 2 if it is wrong.
probe: drafts a file for the machine whose login node this is; see hpcai cluster probe --help."""
STANDINGS = ("sourced", "second-hand", "probed", "unverified", "unknown")
PROBED = re.compile(r"probed [0-9]{4}-[0-9]{2}-[0-9]{2}")


@dataclass(frozen=True)
class Known:
    """One value of a cluster file: its dotted key below `facts`, how it is known, and from where in words."""

    key: str
    value: Any
    standing: str
    origin: str


@dataclass(frozen=True)
class Found:
    """A cluster file: whose it is, the Cluster if it can be read, and every fault, with the file's name."""

    name: str
    owner: str
    cluster: Cluster | None
    faults: tuple[str, ...]

    @property
    def known(self) -> list[Known]:
        """Each value that it states."""
        return list(values(self.cluster.facts)) if self.cluster else []


def main(argv: list[str]) -> int:
    """`hpcai cluster [check NAME|FILE]`, `hpcai cluster probe`; returns the exit code.

    Raises: ConfigError or Faults for wrong words and wrong files; PlanError if HPCAI_SITE is no folder, or no Slurm answers.
    """
    if argv[:1] == ["probe"]:
        return probe.main(argv[1:])
    words = Words("cluster", "[check NAME|FILE] | probe", HELP)
    words.add_argument("--config-dir", metavar="DIR", type=Path, help="cluster files of your own, DIR/cluster/NAME.yaml")
    options = words.read(argv)
    if options is None:
        return 0
    verb, *names = options.names or [""]
    if verb not in ("", "check"):
        raise ConfigError(f"hpcai cluster {one_line(verb, 80)}: unknown. {near(verb[:80], ['check', 'probe'])}")
    if verb and len(names) != 1:
        raise ConfigError(f"hpcai cluster check: {len(names)} names. Give one: a cluster's, or a file's.")
    if not verb:
        folder = Folder(options.config_dir)
        return show_all([of_name(folder, name) for name in folder.choices("cluster")], as_json=options.json)
    return show_one(find(names[0], options.config_dir), as_json=options.json)


# --- reading


def find(word: str, config_dir: Path | None = None) -> Found:
    """The cluster that is called so, or the file at that path.

    Raises: ConfigError if there is none.
    """
    if "/" in word or word.endswith(".yaml"):
        return of_path(word)
    folder = Folder(config_dir)
    if not (NAME.fullmatch(word) and folder.has("cluster", word)):
        known = near(word[:80], folder.choices("cluster"))
        raise ConfigError(f"{one_line(word, 80)}: no such cluster. {known} A file is named with its .yaml.")
    return of_name(folder, word)


def of_name(folder: Folder, name: str) -> Found:
    """The file that `cluster=NAME` takes."""
    root, called = folder.place(f"cluster/{name}")
    owner = "the site's" if root == folder.site else "yours" if root == folder.path else "hpcai's own"
    try:
        file = site_file(root, called) if root == folder.site else read_user_file(root, called)
    except ConfigError as e:
        return Found(name, owner, None, (str(e),))
    return _found(name, owner, file)


def of_path(word: str) -> Found:
    """The file at a path, which its name need not fit."""
    try:
        path = Path(word).resolve()
    except (OSError, RuntimeError, ValueError):  # links in a circle, a NUL
        path = Path(word)
    if path.suffix != ".yaml":
        raise ConfigError(f"{one_line(word, 80)}: a cluster file is called NAME.yaml. Rename it.")
    return _found(path.stem, one_line(word, 200), read_user_file(path.parent, path.stem))


def _found(name: str, owner: str, file: UserFile) -> Found:
    wrong = list(file.faults) or [f"{file.where}: {fault}" for fault in cluster_faults(file)]
    if wrong:
        return Found(name, owner, None, tuple(wrong))
    cluster, _ = check_cluster(file.values)
    assert cluster is not None
    return Found(cluster.name, owner, cluster, tuple(f"{file.where}: {fault}" for fault in faults(cluster)))


# --- what is stated, and from where


def values(facts: Facts) -> Iterator[Known]:
    """Each stated value; one that is null is unknown, whatever its source."""
    stated = facts.model_dump(exclude_unset=True, exclude={"sources", "cited"})
    for key, value in leaves(stated, "") if stated else ():
        standing, said = facts.standing(key)
        yield Known(key, value, "unknown" if value is None else standing, spelt(facts, said))


def spelt(facts: Facts, said: str) -> str:
    """`M3 M6` with each name spelt out: `M3: document, date; M6: ...`."""
    return "; ".join(f"{word}: {facts.cited[word]}" for word in said.split() if word in facts.cited) or said


def not_stated(facts: Facts) -> list[str]:
    """The keys of a machine that the file leaves open, where open means unknown."""
    return [name for name, info in Facts.model_fields.items() if info.default is None and name not in facts.model_fields_set]


# --- faults beyond the schema


def faults(cluster: Cluster) -> Iterator[str]:
    """Sources that lead nowhere, and facts that contradict each other; each begins with its key in the file."""
    yield from (f"facts.{fault}" for fault in (*_sources(cluster.facts), *_partitions(cluster.facts), *_setup(cluster.facts)))


def _sources(facts: Facts) -> Iterator[str]:
    used: set[str] = set()
    stated = {f"{key}." for key, _ in leaves(facts.model_dump(exclude_unset=True, exclude={"sources", "cited"}), "")}
    for key, said in facts.sources.items():
        shown = f"sources.{one_line(key, 80)}"
        if not any(name.startswith(f"{key}.") for name in stated):
            yield f"{shown}: this file states no such key. {near(key[:80], sorted(_groups(stated)))}"
        if said == "unverified" or PROBED.fullmatch(said):
            continue
        if said.split()[:1] in ([], ["probed"]):
            yield f"{shown}={one_line(said, 80)}: names no source. Write names of cited, or probed YYYY-MM-DD."
            continue
        used.update(said.split())
        for word in said.split():
            if word not in facts.cited:
                yield f"{shown}={one_line(word, 80)}: is not cited. {near(word[:80], list(facts.cited))}"
    for word in facts.cited:
        if word not in used:
            yield f"cited.{one_line(word, 80)}: no source names it. Name it in sources, or delete it."


def _groups(stated: set[str]) -> set[str]:
    """Each key with the groups that hold it."""
    parts = [name.removesuffix(".").split(".") for name in stated]
    return {".".join(words[:n]) for words in parts for n in range(1, len(words) + 1)}


def _partitions(facts: Facts) -> Iterator[str]:
    known = list(facts.partitions)
    for key, name in (("cpu_partition", facts.cpu_partition), ("gpu_partition", facts.gpu_partition)):
        if name is not None and name not in facts.partitions:
            yield f"{key}={name}: no such partition. {near(name, known)}"
    if (node := facts.partitions.get(facts.gpu_partition or "")) is not None and not node.gpus:
        yield f"gpu_partition={facts.gpu_partition}: its nodes have no GPUs (gpus: 0). Name another."
    if facts.default_qos is not None and facts.default_qos not in facts.qos:
        yield f"default_qos={facts.default_qos}: no such QOS. {near(facts.default_qos, list(facts.qos))}"
    for qos, rules in facts.qos.items():
        for key, names in (("partitions", rules.partitions or []), ("nodes", [*rules.nodes])):
            for name in names:
                if name not in facts.partitions:
                    yield f"qos.{qos}.{key}: {one_line(name, 80)}: no such partition. {near(name[:80], known)}"


def _setup(facts: Facts) -> Iterator[str]:
    import hpcai.slurm

    known = sorted(file.name for file in (Path(str(hpcai.slurm.__file__)).parent / "setup").glob("*.sh"))
    if facts.setup is not None and facts.setup not in known and not facts.setup.startswith("/"):
        yield f"setup={facts.setup}: no such script in slurm/setup. {near(facts.setup, known)}"


# --- showing


def show_all(clusters: list[Found], *, as_json: bool) -> int:
    """A line for each cluster: name, executor, how many values are unverified, its full name, whose file it is."""
    if as_json:
        print(json.dumps([_summary(found) for found in clusters], indent=1))
        return 0
    rows = []
    for found in clusters:
        site = found.cluster.facts.site if found.cluster else ""
        count = Counter(known.standing for known in found.known)
        state = f"{count['unverified']} of {len(found.known)} values unverified" if found.known else "no facts"
        if found.faults:
            state = f"{len(found.faults)} fault{'s' * (len(found.faults) > 1)}: hpcai cluster check {found.name}"
        rows.append((found.name, found.cluster.executor if found.cluster else "-", state, found.owner, site))
    for line in table(rows):
        print(line)
    return 0


def show_one(found: Found, *, as_json: bool) -> int:
    """Key by key what a file states, and the totals.

    Raises: ConfigError or Faults with what is wrong with it, after what could be shown.
    """
    if found.cluster is not None and as_json:
        listed = [vars(known) for known in found.known]
        unknown = not_stated(found.cluster.facts)
        print(json.dumps({**_summary(found), "values": listed, "not_stated": unknown}, indent=1))
    elif found.cluster is not None:
        facts = found.cluster.facts
        print(f"{found.name}: {facts.site or 'no site stated'} (executor {found.cluster.executor}; file: {found.owner})")
        rows = [(known.key, text_of(known.value, 60), known.standing, known.origin) for known in found.known]
        for line in table(rows):
            print(f"  {line}")
        count = Counter(known.standing for known in found.known)
        print(
            f"{len(found.known)} values: {', '.join(f'{count[word]} {word}' for word in STANDINGS if count[word]) or 'none'}."
        )
        if found.cluster.executor == "slurm":
            print(f"Not stated, so unknown: {', '.join(not_stated(facts)) or 'nothing'}.")
    wrong: list[HpcaiError] = [ConfigError(fault) for fault in found.faults]
    if wrong:
        raise wrong[0] if len(wrong) == 1 else Faults(wrong)
    return 0


def _summary(found: Found) -> dict[str, Any]:
    count = Counter(known.standing for known in found.known)
    return {
        "name": found.name,
        "executor": found.cluster.executor if found.cluster else None,
        "site": found.cluster.facts.site if found.cluster else None,
        "file": found.owner,
        "totals": {word: count[word] for word in STANDINGS},
        "faults": list(found.faults),
    }


def table(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    """Rows as lines, every column but the last padded."""
    clean = [[one_line(cell, 1000) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in clean) for i in range(len(clean[0]) - 1)] if clean else []
    for row in clean:
        yield "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]).rstrip()

"""The house's rules, read off the source: who imports whom, what stays light, what is banned; and that each rule bites."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from hpcai.config.jobs import JOBS

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "hpcai"

# A module may import the lines above its own; none beside it, none below. Light: no torch, no numpy before a job starts.
LIGHT = [
    "errors",
    "config rundir output arguments outfile",
    "lease inputs journal scheduler preflight book",
    "redaction ledger seal",
    "context cluster limits runs search",
    "plan queued meter provenance",
    "worker experiments script requeue proposal",
    "forkserver submit",
    "watch queue standings",
    "board trials",
    "driver",
    "arrays",
    "hunt",
    "pool",
    "pack sweep",
    "run",
    "status",
    "index",
    "verbs usage support new simulate release",
    "cancellation removal probe rehearsal outcomes",
    "clusterfile",
    "cli",
]
HEAVY = [
    "comm data models metrics",
    "tasks",
    "training cases tracking",
    "trained",
    "infer",
    "screening tabular",
    "report notebook",
    "jobs testing comparison verification export intake explain",
]
HEAVY_PACKAGES = {
    "torch", "numpy", "monai", "mpi4py", "PIL", "matplotlib", "safetensors", "sklearn", "scipy", "pydicom", "nibabel", "jinja2",
    "optuna", "mlflow", "tensorboard", "polars",
}  # fmt: skip
AT_USE = {
    ("journal", "optuna"),
    ("search", "optuna"),
    ("index", "jinja2"),
}  # inside functions alone: ruff bans it at module level
DATA = ("configs", "slurm")  # packages without code
LEVEL = {name: i for i, line in enumerate(LIGHT + HEAVY) for name in line.split()}
LIGHT_NAMES = {name for line in LIGHT for name in line.split()}


@dataclass(frozen=True)
class Import:
    """One import: of `module`, in `file` at `line`, wherever it stands; `typing`: under TYPE_CHECKING."""

    file: Path
    line: int
    module: str
    typing: bool


def imports_of(file: Path, package: Path) -> Iterator[Import]:
    """Every import of a file, the names of `from hpcai import x` as modules."""
    tree = ast.parse(file.read_text("utf-8"))
    guards = [n for n in ast.walk(tree) if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"]
    hints = {id(n) for guard in guards for n in ast.walk(guard)}
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: write absolute imports"
            names = [f"{node.module}.{a.name}" for a in node.names] if node.module == "hpcai" else [node.module or ""]
        for name in names:
            yield Import(file.relative_to(package), node.lineno, name, id(node) in hints)


def sources(package: Path) -> list[Path]:
    """Every module, those behind the links too."""
    linked = (f for link in sorted(package.iterdir()) if link.is_symlink() for f in link.glob("*.py"))
    return sorted({*package.rglob("*.py"), *linked})


def unit(file: Path) -> str:
    """`data` for data/npz.py, `errors` for errors.py."""
    return file.parts[0].removesuffix(".py")


def faults(package: Path) -> list[str]:
    """Every breach of the table in a package."""
    found = []
    for file in sources(package):
        name = unit(file.relative_to(package))
        if name in ("__init__", *DATA):
            continue
        if name not in LEVEL:
            found.append(f"{name}: stands in no line of the table")
            continue
        found += [f"{i.file}:{i.line}: {fault}" for i in imports_of(file, package) for fault in _breaches(name, i)]
    return found


def _breaches(name: str, i: Import) -> Iterator[str]:
    first, _, rest = i.module.partition(".")
    other = rest.partition(".")[0]
    if first == "hpcai" and other and other not in ("__file__", "__version__", name, *DATA):
        if other not in LEVEL:
            yield f"imports hpcai.{other}, which stands in no line"
        elif LEVEL[other] >= LEVEL[name]:
            yield f"{name} imports {other}, which stands beside or below it"
        elif name in LIGHT_NAMES and other not in LIGHT_NAMES:
            yield f"{name} is light and imports {other}"
    if name in LIGHT_NAMES and first in HEAVY_PACKAGES and not i.typing and (name, first) not in AT_USE:
        yield f"{name} is light and imports {first}"
    if name == "metrics" and first == "torch":
        yield "metrics imports torch"


# --- the table


def test_everyone_imports_only_what_stands_above() -> None:
    assert faults(SOURCE) == []


def test_the_table_lists_nothing_that_is_gone() -> None:
    there = {unit(f.relative_to(SOURCE)) for f in sources(SOURCE)}
    assert set(LEVEL) - there == set()


def test_only_the_worker_names_the_jobs_and_only_as_a_text() -> None:
    named = {unit(f.relative_to(SOURCE)) for f in SOURCE.glob("*.py") if "hpcai.jobs" in f.read_text("utf-8")}
    assert named == {"worker"}


def test_jobs_are_the_files_in_jobs() -> None:
    assert set(JOBS) == {f.stem for f in (ROOT / "jobs").glob("*.py")} - {"__init__"}


@pytest.mark.parametrize(("file", "line", "said"), [
    ("errors.py", "from hpcai import rundir", "errors imports rundir, which stands beside or below it"),
    ("context.py", "from hpcai.cluster import Machine", "context imports cluster, which stands beside"),
    ("plan.py", "def f():\n    import hpcai.submit", "plan imports submit, which stands beside or below it"),
    ("run.py", "def f():\n    from hpcai.report import write_report", "run imports report, which stands beside or below"),
    ("watch.py", "def f():\n    import numpy as np", "watch is light and imports numpy"),
    ("config/schema.py", "import torch.nn", "config is light and imports torch"),
    ("metrics/rows.py", "import torch", "metrics imports torch"),
    ("models/small.py", "from hpcai.data.cases import Cases", "models imports data, which stands beside or below it"),
    ("tasks/x.py", "from hpcai.jobs import train", "tasks imports jobs, which stands beside or below it"),
    ("utils.py", "", "utils: stands in no line of the table"),
    ("plan.py", "from hpcai import utils", "imports hpcai.utils, which stands in no line"),
])  # fmt: skip
def test_a_breach_of_the_table_is_found(tmp_path: Path, file: str, line: str, said: str) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(line)
    (fault,) = faults(tmp_path)
    assert said in fault


def test_a_type_hint_may_name_what_is_heavy(tmp_path: Path) -> None:
    (tmp_path / "watch.py").write_text("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import numpy")
    assert faults(tmp_path) == []


# --- ruff's part


def ruff(file: Path, text: str) -> set[str]:
    """The rules that ruff finds broken, were `text` in `file`."""
    words = [sys.executable, "-m", "ruff", "check", "--output-format", "concise", "--stdin-filename", str(file), "-"]
    done = subprocess.run(words, input=text, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode in (0, 1), done.stderr
    return set(re.findall(r":\d+: ([A-Z]+\d+) ", done.stdout))


@pytest.mark.parametrize(("file", "text", "rule"), [
    *[("src/hpcai/x.py", f"import {name}\n", "TID253") for name in sorted(HEAVY_PACKAGES | {"submitit", "psutil", "rich"})],
    ("src/hpcai/config/x.py", "from numpy import array\n", "TID253"),
    ("src/hpcai/x.py", "from hydra.utils import instantiate\n", "TID251"),
    ("src/hpcai/x.py", "import hydra\n\n\n@hydra.main()\ndef f() -> None: ...\n", "TID251"),
    ("src/hpcai/data/x.py", "import pickle\n\npickle.load(None)\n", "TID251"),
    ("jobs/x.py", "import pickle\n\npickle.loads(b'')\n", "TID251"),
    ("src/hpcai/training/x.py", "import torch\n\ntorch.load('x')\n", "TID251"),
    ("src/hpcai/x.py", "import os\n\nos.path.exists('x')\n", "PTH110"),
])  # fmt: skip
def test_ruff_finds_what_is_banned(file: str, text: str, rule: str) -> None:
    assert rule in ruff(ROOT / file, text)


@pytest.mark.parametrize("file", ["src/hpcai/data/x.py", "src/hpcai/comm.py", "jobs/x.py", "tests/x.py"])
def test_ruff_lets_heavy_code_import_heavily(file: str) -> None:
    assert "TID253" not in ruff(ROOT / file, "import numpy\n")


def test_torch_load_stands_in_one_file_and_unpickles_nothing() -> None:
    calls = {}
    for file in sources(SOURCE):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "np.load", "numpy.load", "pickle.load"):
                kept = {k.arg: ast.unparse(k.value) for k in node.keywords}
                calls[f"{file.relative_to(SOURCE)}: {ast.unparse(node.func)}"] = kept
    assert {c for c in calls if "torch.load" in c} == {"models/weights.py: torch.load"}
    assert all(k.get("weights_only") == "True" or k.get("allow_pickle") == "False" for k in calls.values()), calls


# --- files and links


@pytest.mark.parametrize("name", ["jobs", "configs", "slurm"])
def test_the_three_folders_are_packages_by_relative_links(name: str) -> None:
    link = SOURCE / name
    assert link.is_symlink() and not link.readlink().is_absolute()
    assert link.resolve() == ROOT / name and (link / "__init__.py").is_file()
    tracked = subprocess.run(["git", "ls-files", "-s", str(link)], capture_output=True, text=True, cwd=ROOT)
    assert tracked.returncode != 0 or tracked.stdout.startswith("120000 ")


def test_no_module_has_a_name_that_says_nothing() -> None:
    empty = {"utils", "helpers", "common", "base", "core", "manager", "misc"}
    assert {f.stem for f in sources(SOURCE)} & empty == set()


def test_files_stay_short_enough_to_read() -> None:
    long = {f.name: n for f in sources(SOURCE) if (n := len(f.read_text("utf-8").splitlines())) > 450}
    assert long == {}


def test_every_relative_link_of_the_docs_leads_somewhere() -> None:
    pages = [p for p in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))) if p.is_file()]
    assert pages and [broken for page in pages for broken in broken_links(page)] == []


def broken_links(page: Path) -> list[str]:
    """Relative links of a page, to files and to headings, that lead nowhere."""
    text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text("utf-8"), flags=re.DOTALL)
    found = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
            found.append(f"{page.name}: {link}")
    return found


def anchors(page: Path) -> set[str]:
    """GitHub's names of a page's headings."""
    heads = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    page = tmp_path / "a.md"
    page.write_text("# One two\n[x](b.md) [y](a.md#one-two) [z](#three) [w](https://x.y/z) `[v](c.md)`")
    assert broken_links(page) == ["a.md: b.md", "a.md: #three"]

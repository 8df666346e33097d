"""`hpcai cluster`: every value of a cluster file with where it is known from, and every fault of such a file by its key."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_probe import BED, DAY

from hpcai import clusterfile
from hpcai.cli import main
from hpcai.config.folder import shipped
from hpcai.errors import HpcaiError
from hpcai.probe import probed, written

GOOD: dict[str, Any] = {
    "name": "newton", "executor": "slurm",
    "facts": {
        "site": "Newton", "requeue": None, "unit": "node-h", "setup": "meluxina.sh", "gpu_partition": "gpu",
        "partitions": {"cpu": {"cores": 4, "mem_gb": 8}, "gpu": {"cores": 2, "gpus": 1, "env": {"A_B": "1"}}},
        "qos": {"short": {"max_min": 60, "nodes": {"cpu": 2}, "partitions": ["cpu"]}, "free": {}}, "default_qos": "short",
        "sources": {"partitions": "N1", "partitions.gpu": "N2", "partitions.cpu.mem_gb": "N1 N2", "qos": f"probed {DAY}",
        "unit": "unverified", "requeue": "N1"},
        "cited": {"N1": "newton.example page, 2026-01", "N2": "second-hand, a note, undated"},
    },
}  # fmt: skip


def changed(**facts: Any) -> dict[str, Any]:
    """GOOD with other facts; a key with __ is one below: qos__free."""
    plain: dict[str, Any] = json.loads(json.dumps(GOOD))
    for key, value in facts.items():
        place, (*above, last) = plain["facts"], key.split("__")
        for part in above:
            place = place[part]
        place[last] = value
    return plain


def file_of(folder: Path, values: dict[str, Any] | str, name: str = "newton") -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(values if isinstance(values, str) else yaml.safe_dump(values), "utf-8")
    return path


def check(path: Path | str, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, list[str]]:
    code = main(["cluster", "check", str(path), *words])
    out, err = capsys.readouterr()
    return code, out, err.splitlines()


# --- what is known, and from where


@pytest.mark.parametrize("name", shipped()["cluster"])
def test_each_shipped_file_passes(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = check(name, capsys)
    assert (code, err) == (0, []) and out.startswith(f"{name}: ")


def test_every_value_is_listed_with_its_origin_spelt_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = check(file_of(tmp_path, GOOD), capsys)
    rows = {line.split()[0]: " ".join(line.split()[1:]) for line in out.splitlines() if line.startswith("  ")}
    assert (code, err) == (0, [])
    n1, n2 = "N1: newton.example page, 2026-01", "N2: second-hand, a note, undated"
    assert rows == {
        "site": "Newton unverified",
        "requeue": f"null unknown {n1}",
        "unit": "node-h unverified unverified",
        "setup": "meluxina.sh unverified",
        "gpu_partition": "gpu unverified",
        "partitions.cpu.cores": f"4 sourced {n1}",
        "partitions.cpu.mem_gb": f"8.0 sourced {n1}; {n2}",
        "partitions.gpu.cores": f"2 second-hand {n2}",
        "partitions.gpu.gpus": f"1 second-hand {n2}",
        "partitions.gpu.env.A_B": f"1 second-hand {n2}",
        "qos.short.max_min": f"60 probed probed {DAY}",
        "qos.short.nodes.cpu": f"2 probed probed {DAY}",
        "qos.short.partitions": f'["cpu"] probed probed {DAY}',
        "qos.free": f"{{}} probed probed {DAY}",
        "default_qos": "short unverified",
    }
    assert "15 values: 2 sourced, 3 second-hand, 4 probed, 5 unverified, 1 unknown." in out
    assert "Not stated, so unknown: slurm, cpu_partition, account_required" in out and "requeue" not in out.splitlines()[-1]


def test_json_has_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = check(file_of(tmp_path, changed(default_qos="none")), capsys, "--json")
    said = json.loads(out)
    assert code == 2 and said["faults"] == err and len(err) == 1
    assert said["totals"] == {"sourced": 2, "second-hand": 3, "probed": 4, "unverified": 5, "unknown": 1}
    assert {"key": "partitions.cpu.cores", "value": 4, "standing": "sourced",
    "origin": "N1: newton.example page, 2026-01"} in said["values"]  # fmt: skip


def test_what_probe_writes_passes_and_counts_as_probed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = check(file_of(tmp_path, written(probed(BED), DAY), "drafted"), capsys)
    assert (code, err) == (0, []) and " probed." in out and "unverified" not in out


def test_alone_it_lists_every_cluster_and_whose_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "cluster").mkdir()
    file_of(tmp_path / "cluster", GOOD)
    file_of(tmp_path / "cluster", changed(max_submit="x"), "broken")
    assert main(["cluster", "--config-dir", str(tmp_path)]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert list(lines) == sorted([*shipped()["cluster"], "newton", "broken"])
    assert lines["newton"].split() == ["newton", "slurm", "5", "of", "15", "values", "unverified", "yours", "Newton"]
    assert "1 fault: hpcai cluster check broken" in lines["broken"] and "hpcai's own" in lines["meluxina"]
    assert main(["cluster", "--json"]) == 0
    assert [c["name"] for c in json.loads(capsys.readouterr().out)] == [*shipped()["cluster"]]


# --- faults


@pytest.mark.parametrize(("facts", "line"), [
    ({"max_submit": "x"}, "facts.max_submit=x: must be a whole number. Correct it."),
    ({"max_submits": 1}, "facts.max_submits: unknown. Did you mean facts.max_submit?"),
    ({"partitions__gpu__coers": 1}, "facts.partitions.gpu.coers: unknown. Did you mean facts.partitions.gpu.cores?"),
    ({"partitions__cpu": {"mem_gb": 1}}, "facts.partitions.cpu.cores: required. Write it into the cluster file."),
    ({"sources__site": "N1 N9"}, "facts.sources.site=N9: is not cited. Known: N1, N2."),
    ({"sources__site": ""}, "facts.sources.site=: names no source. Write names of cited, or probed YYYY-MM-DD."),
    ({"sources__site": "probed today"},
     "facts.sources.site=probed today: names no source. Write names of cited, or probed YYYY-MM-DD."),
    ({"sources__driver": "N1"}, "facts.sources.driver: this file states no such key. Known:"),
    ({"sources__partitions.gpuu": "N1"},
     "facts.sources.partitions.gpuu: this file states no such key. Did you mean partitions.gpu?"),
    ({"sources__partitions.g": "N1"}, "facts.sources.partitions.g: this file states no such key. Did you mean partitions.gpu?"),
    ({"sources__part": "N1"}, "facts.sources.part: this file states no such key. Known: default_qos"),
    ({"cited__N3": "x"}, "facts.cited.N3: no source names it. Name it in sources, or delete it."),
    ({"default_qos": "shrt"}, "facts.default_qos=shrt: no such QOS. Did you mean short?"),
    ({"cpu_partition": "cpus"}, "facts.cpu_partition=cpus: no such partition. Did you mean cpu?"),
    ({"gpu_partition": "g"}, "facts.gpu_partition=g: no such partition. Known: cpu, gpu."),
    ({"gpu_partition": "cpu"}, "facts.gpu_partition=cpu: its nodes have no GPUs (gpus: 0). Name another."),
    ({"qos__short__partitions": ["cpu", "cqu"]}, "facts.qos.short.partitions: cqu: no such partition. Did you mean cpu?"),
    ({"qos__short__nodes": {"cqu": 1}}, "facts.qos.short.nodes: cqu: no such partition. Did you mean cpu?"),
    ({"setup": "meluxna.sh"}, "facts.setup=meluxna.sh: no such script in slurm/setup. Did you mean meluxina.sh?"),
    ({"partitions__gpu__env": {"A;B": "1"}}, "facts.partitions.gpu.env.A;B: is no name of a variable"),
])  # fmt: skip
def test_a_fault_is_one_line_with_its_key_and_exit_2(
    facts: dict[str, Any], line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = check(file_of(tmp_path, changed(**facts)), capsys)
    assert code == 2 and len(err) == 1 and err[0].startswith("newton.yaml: " + line), err


def test_all_faults_are_told_at_once_after_what_could_be_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = check(file_of(tmp_path, changed(default_qos="x", cpu_partition="y", setup="z", cited__N7="n")), capsys)
    assert code == 2 and len(err) == 4 and "partitions.cpu.cores" in out


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(("text", "said"), [
    (BOMB, "more than 100 aliases or 5000 values"),
    ("name: newton\nfacts: {_target_: os.system}\n", "facts._target_: _target_ names code"),
    ("name: newton\nfacts: {site: '${oc.env:HOME}'}\n", "facts.site="),
    ("name: newton\nfacts: {site: '${name}'}\n", "facts.site: ${...} is for experiments."),
    ("name: newton\ndefaults: [lucia]\n", "defaults: a cluster file says all itself."),
    ("# @package _global_\nname: newton\n", "# @package _global_: a cluster file has none."),
    ("name: !!python/name:os.system\n", "line 1: the tag"),
    ("name: newton\nhydra: {run: {dir: x}}\n", "hydra: hydra's own keys"),
    ("- a\n", "is a list."),
    ("", "name: required (name of the machine). Write it down."),
    ("name: 5\n", "name=5: must be text"),
    ("name: newton\nfacts: 5\n", "facts=5: must be a group of keys."),
    ("name: newton\nfacts: {partitions: {'a b': {cores: 1}}}\n", "facts.partitions.a b: must begin with a letter or digit"),
    ("name: newton\nfacts: {partitions: {a: {cores: 99999999999999999999}}}\n", "64 bits"),
    ("name: [\n", "is no YAML"),
    ("name: newton\nfacts: {site: \"a\\eb\"}\n", "facts.site=a?b: holds a control character"),
])  # fmt: skip
def test_a_hostile_file_is_refused_in_one_printable_line(
    text: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = check(file_of(tmp_path, text), capsys)
    assert code == 2 and out == "" and len(err) == 1 and said in err[0] and err[0].isprintable(), err
    assert err[0].startswith("newton.yaml: ")


def test_a_file_that_is_none_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "circle.yaml").symlink_to("circle.yaml")
    (tmp_path / "zero.yaml").symlink_to("/dev/zero")
    for name in ("pipe.yaml", "folder.yaml", "circle.yaml", "zero.yaml", "none.yaml", "newton.yml", "a\0.yaml"):
        code, out, err = check(f"{tmp_path}/{name}", capsys)
        assert code == 2 and out == "" and len(err) == 1, (name, err)


def test_a_link_to_a_file_shows_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "elsewhere").mkdir()
    file_of(tmp_path / "elsewhere", GOOD)
    (tmp_path / "link.yaml").symlink_to("elsewhere/newton.yaml")
    assert check(tmp_path / "link.yaml", capsys)[0] == 0


@pytest.mark.parametrize(("words", "line"), [
    (["check"], "hpcai cluster check: 0 names. Give one: a cluster's, or a file's."),
    (["check", "a", "b"], "hpcai cluster check: 2 names. Give one: a cluster's, or a file's."),
    (["chekc", "a"], "hpcai cluster chekc: unknown. Did you mean check?"),
    (["prob"], "hpcai cluster prob: unknown. Did you mean probe?"),
    (["check", "lucai"], "lucai: no such cluster. Did you mean lucia? A file is named with its .yaml."),
    (["check", "..\n"], "..?: no such cluster."),
    (["check", "lucia", "--config-dir", "/nowhere"], "config_dir=/nowhere: no such folder."),
    (["check", "../../etc/passwd"], "../../etc/passwd: a cluster file is called NAME.yaml. Rename it."),
])  # fmt: skip
def test_wrong_words_are_one_line_and_exit_2(words: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cluster", *words]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(line) and err.count("\n") == 1


def test_probe_has_its_own_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cluster", "probe", "--help"]) == 0
    assert capsys.readouterr().out.startswith("usage: hpcai cluster probe ")


def test_a_found_file_that_vanishes_raises_nothing_but_our_errors(tmp_path: Path) -> None:
    with pytest.raises(HpcaiError):
        clusterfile.find(str(tmp_path / "newton.yaml"))


def test_the_verb_starts_light() -> None:
    program = "import sys; from hpcai.cli import main; main(['cluster']); "
    program += "print([m for m in ('numpy', 'torch', 'hydra', 'submitit') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"

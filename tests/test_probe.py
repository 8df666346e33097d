"""`hpcai cluster probe`: Slurm's answers become a cluster file, and what they do not tell is named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from slurm_bed import SlurmBed

from hpcai import probe
from hpcai.config.schema import Cluster
from hpcai.errors import ConfigError, PlanError
from hpcai.probe import Answers, count, gpus, minutes, pairs, plain, probed, records, tres, written

ROOT = Path(__file__).parent.parent
GOLDEN = ROOT / "tests/golden/slurm"
BED = Answers(**{
    name: (GOLDEN / f"{name}.txt").read_text("utf-8")
    for name in ("config", "partitions", "nodes", "qos", "memberships", "accounts")
})  # fmt: skip
DAY = "2026-11-26"
OURS = (
    "site",
    "account_pattern",
    "account_example",
    "unit",
    "mpi",
    "shared",
    "login_modules",
    "gpu_request",
    "cited",
    "sources",
)


def facts_of(text: str) -> dict[str, Any]:
    """A cluster file's facts as the schema reads them, those that are stated."""
    return Cluster.model_validate(yaml.safe_load(text)).facts.model_dump(exclude_defaults=True)


def same_as_the_beds_file(found: dict[str, Any]) -> None:
    """Equal to testbed.yaml where Slurm can tell; `normal` is the QOS of the account `root`, which Slurm makes by itself."""
    wanted = facts_of((ROOT / "configs/cluster/testbed.yaml").read_text("utf-8"))
    for partition in wanted["partitions"].values():
        partition.pop("charge")
        partition.pop("gpu", None)
        partition.pop("env", None)  # ours
    assert found.pop("slurm").startswith(wanted.pop("slurm"))
    assert found["qos"].pop("normal") == {}
    assert {k: v for k, v in found.items() if k not in OURS} == {k: v for k, v in wanted.items() if k not in OURS}


# --- recorded answers


def test_the_beds_recorded_answers_give_its_own_file() -> None:
    same_as_the_beds_file(facts_of(written(probed(BED), DAY)))


def test_each_fact_has_its_source_and_what_is_unknown_is_named() -> None:
    text = written(probed(BED), DAY)
    facts = yaml.safe_load(text)["facts"]
    assert set(facts["sources"]) == set(facts) - {"sources"} and set(facts["sources"].values()) == {f"probed {DAY}"}
    end = [line for line in text.splitlines() if line.startswith("#")][1:]
    assert "unit" in end[1] and "partitions.*.charge" in end[1] and end[1].endswith("Slurm does not tell.")
    assert end[2] == "#   mpi: MpiDefault=none. See srun --mpi=list, and try one in a job."


def test_without_accounting_there_are_partitions_but_no_qos() -> None:
    found = probed(replace(BED, qos=None, memberships=None, accounts=None))
    assert set(found.facts["partitions"]) == {"cpu", "gpu", "fpga", "largemem"} and "qos" not in found.facts
    assert found.unknown["qos"] == found.unknown["max_submit"] == "no accounting, or no answer from it"


PARTITION = "PartitionName=a Default=YES QoS=N/A MaxNodes=4 MaxTime=1-00:00:00 OverSubscribe=NO TotalNodes=9\n"
CONFIG = "ClusterName = x\nJobRequeue = 1\nKillWait = 30 sec\nJobSubmitPlugins = (null)\n"


def site(partitions: str = PARTITION, nodes: str = "a|2|64|1|1000|(null)\n", config: str = CONFIG, **more: str) -> probe.Probe:
    return probed(Answers(config, partitions, nodes, **more))


def test_shared_nodes_are_told_from_whole_ones_and_a_sites_plug_in_leaves_it_open() -> None:
    whole = site(PARTITION.replace("OverSubscribe=NO", "OverSubscribe=EXCLUSIVE"))
    assert whole.facts["partitions"]["a"]["whole_nodes"] is True and whole.facts["mem"] == "all"
    assert site().facts["partitions"]["a"]["whole_nodes"] is False and "mem" not in site().facts
    open_ = site(config=CONFIG.replace("(null)", "lua"))
    assert "whole_nodes" not in open_.facts["partitions"]["a"] and "partitions.a.whole_nodes" in open_.unknown


def test_a_default_of_no_requeue_is_unknown_not_forbidden() -> None:
    found = site(config=CONFIG.replace("JobRequeue = 1", "JobRequeue = 0"))
    assert "requeue" not in found.facts and "default" in found.unknown["requeue"]


def test_of_several_shapes_of_node_the_least_is_written_and_said() -> None:
    found = site(nodes="a|2|64|1|1000|gpu:a100:4\na|2|32|2|2048|gpu:a100:8(S:0-1)\n")
    assert found.facts["partitions"]["a"] == {
        "cores": 64, "threads_per_core": 1, "mem_gb": round(1000 / 1024, 3), "gpus": 4, "gpu": "a100", "nodes": 9,
        "max_min": 1440, "max_nodes": 4, "whole_nodes": False,
    }  # fmt: skip
    assert found.unknown["partitions.a"].startswith("2 shapes of node")


def test_limits_of_the_qos_behind_a_partition_count() -> None:
    qos = "behind|02:00:00|node=8|2|5|0|\nmine||gres/gpu=16|||7|\n"
    found = site(
        PARTITION.replace("QoS=N/A", "QoS=behind AllowQos=none") + PARTITION.replace("Name=a", "Name=b"),
        nodes="a|2|64|1|1000|gpu:4\nb|1|8|1|1000|(null)\n", qos=qos, memberships="p1|mine|mine|30\n", accounts="p1|50|\n",
    )  # fmt: skip
    a = found.facts["partitions"]["a"]
    assert (a["max_min"], a["max_nodes"], a["max_submit"]) == (120, 4, 5)
    assert found.facts["qos"] == {"mine": {"nodes": {"a": 4}, "partitions": ["b"], "priority": "7"}}
    assert (found.facts["max_submit"], found.facts["default_qos"]) == (30, "mine")


def test_between_several_gpu_partitions_it_does_not_choose() -> None:
    both = PARTITION + PARTITION.replace("Name=a", "Name=b").replace("YES", "NO")
    found = site(both, nodes="a|2|64|1|1000|gpu:4\nb|1|8|1|1000|gpu:2\n")
    assert found.facts["gpu_partition"] == "a", "Slurm's own default"
    found = site(both.replace("YES", "NO"), nodes="a|2|64|1|1000|gpu:4\nb|1|8|1|1000|gpu:2\n")
    assert "gpu_partition" not in found.facts and found.unknown["gpu_partition"] == "one of a, b"


@pytest.mark.parametrize(("partitions", "nodes"), [
    ("", ""), (PARTITION, ""), (PARTITION, "a|?|64|1|1|x"), (PARTITION.replace("Name=a", "Name=../x"), "../x|2|64|1|1|x"),
])  # fmt: skip
def test_a_machine_without_a_readable_partition_is_an_error(partitions: str, nodes: str) -> None:
    with pytest.raises(PlanError, match="no partition that can be read"):
        site(partitions, nodes)


# --- the parsers


@pytest.mark.parametrize(("text", "value"), [
    ("30", 30), ("30:00", 30), ("1:59", 1), ("06:00:00", 360), ("2-00:00:00", 2880), ("6-12", 9360), ("1-01:30", 1530),
    ("UNLIMITED", None), ("", None), ("NONE", None),
])  # fmt: skip
def test_times_of_slurm_in_minutes(text: str, value: int | None) -> None:
    assert minutes(text) == value


@pytest.mark.parametrize("text", ["foo", "1:2:3:4", "-5", "0", "00:30", "٣", "1-", "1 0"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no time|less than a minute"):
        minutes(text)


@pytest.mark.parametrize(("text", "value"), [
    ("gpu:4", (4, "")), ("gpu:a100:4", (4, "a100")), ("gpu:a100:4(S:0-1)", (4, "a100")), ("(null)", (0, "")), ("", (0, "")),
    ("nvme:1,gpu:h100:2(S:0),gpu:h100:2(S:1)", (4, "h100")), ("gpu:a:1,gpu:b:2", (3, "")), ("shard:8", (0, "")),
])  # fmt: skip
def test_gpus_of_a_node_and_their_type(text: str, value: tuple[int, str]) -> None:
    assert gpus(text) == value


@given(st.integers(0, 400), st.integers(0, 23), st.integers(0, 59), st.integers(0, 59))
def test_every_time_that_slurm_prints_is_read(days: int, hours: int, mins: int, seconds: int) -> None:
    total = days * 1440 + hours * 60 + mins
    for text in {f"{days}-{hours:02}:{mins:02}:{seconds:02}", f"{hours:02}:{mins:02}:{seconds:02}" if not days else ""}:
        if text and total:
            assert minutes(text) == total


@given(st.text())
def test_no_text_breaks_a_parser(text: str) -> None:
    for parse in (minutes, count):
        try:
            assert (parse(text) or 1) >= 1
        except ValueError as why:
            assert str(why).isprintable()
    assert gpus(text)[0] >= 0
    pairs(text), records(text), tres(text)


WORD = st.sampled_from([
    "a", "b-1", "gpu", "../x", "${oc.env:HOME}", "nö", "1", "null", "0", "-1", "99999999999999", "UNLIMITED", "2-00:00:00",
    "30:00", "node=2", "node=x", "gres/gpu=3,node=0", "gpu:a100:4", "gpu:99999", "(null)", "YES", "EXCLUSIVE", "a,b", "",
    "x\x1by", "N/A",
])  # fmt: skip


def lines(cells: int) -> st.SearchStrategy[str]:
    return st.lists(st.lists(WORD, min_size=cells, max_size=cells).map("|".join), max_size=4).map("\n".join)


KEYS = ("Default", "QoS", "MaxNodes", "MaxTime", "OverSubscribe", "TotalNodes", "AllowQos", "DenyQos")
RECORD = st.tuples(WORD, st.dictionaries(st.sampled_from(KEYS), WORD)).map(
    lambda r: f"PartitionName={r[0]} " + " ".join(f"{k}={v}" for k, v in r[1].items())
)
SETTING = st.sampled_from(["ClusterName", "SLURM_VERSION", "MaxArraySize", "KillWait", "JobRequeue", "MpiDefault"])


@given(
    st.dictionaries(SETTING, WORD).map(lambda d: "\n".join(f"{k} = {v}" for k, v in d.items())),
    st.lists(RECORD, max_size=3).map("\n".join), lines(6), lines(7), lines(4), lines(3),
)  # fmt: skip
def test_whatever_slurm_says_the_file_is_valid_or_the_error_says_why(
    config: str, partitions: str, nodes: str, qos: str, memberships: str, accounts: str
) -> None:
    good = "a|2|64|1|1000|gpu:4\n"
    try:
        found = probed(Answers(config, f"{PARTITION}{partitions}", good + nodes, qos, memberships, accounts))
    except PlanError:
        return
    text = written(found, DAY)
    assert yaml.safe_load(text) == plain(found, DAY)
    assert all(line.isprintable() for line in text.splitlines())


# --- the verb


def fake(folder: Path, monkeypatch: pytest.MonkeyPatch, **scripts: str) -> None:
    """Commands of these names, and no others, on the PATH."""
    for name, script in scripts.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


def as_recorded(**more: str) -> dict[str, str]:
    def say(name: str) -> str:
        return f"while IFS= read -r line; do printf '%s\\n' \"$line\"; done < '{GOLDEN}/{name}.txt'"

    theirs = f"*qos*Name*) {say('qos')} ;; *user=\\ *) {say('accounts')} ;; *) {say('memberships')} ;;"
    return {
        "scontrol": f'case "$*" in "show config") {say("config")} ;; *) {say("partitions")} ;; esac',
        "sinfo": say("nodes"),
        "sacctmgr": f'case "$*" in {theirs} esac',
        **more,
    }


def test_it_writes_a_new_file_and_never_over_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake(tmp_path, monkeypatch, **as_recorded())
    file = tmp_path / "here.yaml"
    assert probe.main(["-o", str(file)]) == 0
    same_as_the_beds_file(facts_of(before := file.read_text("utf-8")))
    assert capsys.readouterr().out == ""
    with pytest.raises(ConfigError, match="is there already"):
        probe.main(["-o", str(file)])
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(ConfigError, match="is there already"):
        probe.main(["-o", str(tmp_path / "link")])
    with pytest.raises(ConfigError, match="its folder does not exist"):
        probe.main(["-o", str(tmp_path / "no/x.yaml")])
    assert file.read_text("utf-8") == before
    assert probe.main(["--json"]) == 0
    assert json.loads(capsys.readouterr().out) == yaml.safe_load(before)


def test_no_slurm_a_dead_controller_and_a_silent_one_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(tmp_path, monkeypatch)
    with pytest.raises(PlanError, match=r"^scontrol: not installed: no Slurm here\. Run") as e:
        probe.main([])
    assert e.value.code == 3
    fake(tmp_path, monkeypatch, scontrol="echo 'Unable to contact\nslurm controller' >&2; exit 1")
    with pytest.raises(PlanError, match=r"exit 1: Unable to contact slurm controller\. Try by hand: scontrol show config$"):
        probe.main([])
    monkeypatch.setattr(probe, "PATIENCE_S", 0.2)
    fake(tmp_path, monkeypatch, scontrol="exec /bin/sleep 60")
    with pytest.raises(PlanError, match=r"^scontrol: no answer in 0\.2 s"):
        probe.main([])


def test_without_an_answer_from_accounting_the_rest_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake(tmp_path, monkeypatch, **as_recorded(sacctmgr="echo down >&2; exit 1"))
    assert probe.main([]) == 0
    said = capsys.readouterr()
    assert said.err.startswith("sacctmgr: exit 1: down. Try by hand: sacctmgr") and said.err.count("\n") == 1
    facts = facts_of(said.out)
    assert "qos" not in facts and facts["gpu_partition"] == "gpu"
    assert "#   qos, default_qos, max_submit: no accounting, or no answer from it." in said.out


def test_a_word_too_many_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="takes no name"):
        probe.main(["meluxina"])
    assert probe.main(["--help"]) == 0
    assert "hpcai cluster probe [-o FILE]" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.slurm
def test_probing_the_bed_gives_its_own_file(bed: SlurmBed, capsys: pytest.CaptureFixture[str]) -> None:
    assert probe.main([]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    same_as_the_beds_file(facts_of(said.out))

"""HPCAI_SITE: cluster files that staff own stand before all others, and no word of a user exceeds them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_clusterfile import BOMB, GOOD

from hpcai.config.check import load
from hpcai.config.compose import Memory, attempt
from hpcai.config.folder import Folder
from hpcai.config.help import help_text
from hpcai.config.site import site_faults, site_folder
from hpcai.errors import ConfigError, HpcaiError, PlanError

NEWTON: dict[str, Any] = {
    "name": "newton", "executor": "slurm",
    "facts": {"site": "Newton's own", "cpu_partition": "cpu", "max_submit": 10,
              "partitions": {"cpu": {"cores": 4, "max_min": 60, "max_nodes": 2}}},
}  # fmt: skip
BASE = ["+experiment=smoke", "resources.timeout_min=30"]


@pytest.fixture
def site(tmp_path: Path) -> Path:
    folder = tmp_path / "site"
    folder.mkdir()
    put(folder, "newton", NEWTON)
    put(folder, "meluxina", NEWTON | {"name": "meluxina"})
    return folder


def put(folder: Path, name: str, values: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.yaml").write_text(values if isinstance(values, str) else yaml.safe_dump(values), "utf-8")


def hpcai(tmp_path: Path, site: Path | str | None, *words: str, verb: str = "run") -> tuple[int, str, list[str]]:
    """A real command in a folder of its own: exit code, stdout, lines of stderr."""
    home = tmp_path / "home"
    home.mkdir(exist_ok=True)
    env = {k: v for k, v in os.environ.items() if k not in ("HPCAI_SITE", "SLURM_CONF")} | (
        {"HPCAI_SITE": str(site)} if site is not None else {}
    )
    done = subprocess.run(
        [sys.executable, "-m", "hpcai.cli", verb, *words],
        cwd=home,
        env=env,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    return done.returncode, done.stdout, [line for line in done.stderr.splitlines() if not line.startswith("warning: ")]


def facts_of(shown: str) -> Any:
    return yaml.safe_load(shown)["cluster"]["facts"]


# --- which file is taken


def test_the_sites_file_stands_before_ours_of_that_name(tmp_path: Path, site: Path) -> None:
    words = (*BASE, "cluster=meluxina", "--cfg", "job")
    code, out, err = hpcai(tmp_path, site, *words)
    assert (code, err) == (0, []) and facts_of(out)["site"] == "Newton's own"
    for none in (None, ""):
        code, out, err = hpcai(tmp_path, none, *words)
        assert (code, err) == (0, []) and facts_of(out)["site"].startswith("MeluXina")


def test_the_sites_file_stands_before_a_users_of_that_name(tmp_path: Path, site: Path) -> None:
    put(tmp_path / "mine/cluster", "newton", NEWTON | {"facts": {"site": "forged", "max_submit": 9999}})
    words = (*BASE, "cluster=newton", "--cfg", "job", "--config-dir", str(tmp_path / "mine"))
    code, out, err = hpcai(tmp_path, site, *words)
    assert (code, err) == (0, []) and facts_of(out) == facts_of(yaml.safe_dump({"cluster": NEWTON})) | {
        "partitions": {"cpu": {"cores": 4, "max_min": 60, "max_nodes": 2}}
    }
    assert facts_of(hpcai(tmp_path, None, *words)[1])["site"] == "forged"


def test_an_experiment_that_chooses_the_cluster_gets_the_sites(tmp_path: Path, site: Path) -> None:
    put(
        tmp_path / "mine/experiment",
        "x",
        "# @package _global_\ndefaults: [smoke, override /cluster: meluxina, _self_]\nname: x\n",
    )
    code, out, err = hpcai(tmp_path, site, "+experiment=x", "--cfg", "job", "--config-dir", str(tmp_path / "mine"))
    assert (code, err) == (0, []) and facts_of(out)["site"] == "Newton's own"


def test_a_linked_site_folder_is_that_folder_but_a_file_that_leads_out_of_it_is_refused(tmp_path: Path, site: Path) -> None:
    (tmp_path / "link").symlink_to(site)
    assert hpcai(tmp_path, tmp_path / "link", *BASE, "cluster=newton", "--cfg", "job")[0] == 0
    put(tmp_path / "outside", "kepler", NEWTON | {"name": "kepler"})
    (site / "kepler.yaml").symlink_to(tmp_path / "outside/kepler.yaml")
    (site / "inside.yaml").symlink_to("newton.yaml")
    code, _, err = hpcai(tmp_path, site, *BASE, "cluster=kepler", "--cfg", "job")
    assert code == 2 and err == ["HPCAI_SITE: kepler.yaml: a link leads out of the config folder. Copy the file into it."]
    code, _, err = hpcai(tmp_path, site, *BASE, "cluster=inside", "--cfg", "job")
    assert code == 2 and err == ["HPCAI_SITE: inside.yaml: name=newton: must be inside, as the file is called. Rename one."]


def test_a_cluster_that_the_site_does_not_have_is_refused_but_local(tmp_path: Path, site: Path) -> None:
    assert hpcai(tmp_path, site, *BASE, "--dry-run")[0] == 0
    code, out, err = hpcai(tmp_path, site, *BASE, "cluster=lucia", "--dry-run")
    assert (
        code == 3
        and err[0] == "cluster.name=lucia: this site (HPCAI_SITE) has none. Known: local, meluxina, newton."
        and out == ""
    )
    code, _, err = hpcai(tmp_path, site, *BASE, "cluster=nowhere", "--dry-run")
    assert code == 2 and err == ["cluster=nowhere: unknown. Known: local, meluxina, newton."]
    put(tmp_path / "mine/cluster", "mine", {"name": "mine", "executor": "slurm"})
    code, _, err = hpcai(tmp_path, site, *BASE, "cluster=mine", "--config-dir", str(tmp_path / "mine"), "--dry-run")
    assert code == 3 and err[0].startswith("cluster.name=mine: this site (HPCAI_SITE) has none.")


def test_a_site_may_say_what_local_is(tmp_path: Path, site: Path) -> None:
    put(site, "local", {"name": "local", "executor": "local", "facts": {"site": "a login node"}})
    code, out, _ = hpcai(tmp_path, site, *BASE, "--cfg", "job")
    assert code == 0 and facts_of(out) == {"site": "a login node"}
    put(site, "local", {"name": "local", "facts": {"site": 5, "sites": 1}})
    code, _, err = hpcai(tmp_path, site, *BASE, "--cfg", "job")
    assert code == 2 and [line.split(":")[2].strip() for line in err] == ["facts.site=5", "facts.sites"]


# --- a site that is none, files that are wrong


@pytest.mark.parametrize(("said", "why"), [
    ("site", "is relative. Write the whole path, from /."),
    ("./site", "is relative."),
    ("~/site", "is relative."),
    ("/nowhere\n/x", "no such folder."),
    ("{site}/newton.yaml", "no such folder."),
    ("{site}/circle", "no such folder."),
])  # fmt: skip
def test_a_site_that_is_no_folder_is_one_line_and_exit_3(said: str, why: str, tmp_path: Path, site: Path) -> None:
    (site / "circle").symlink_to("circle")
    for words in ((*BASE, "--dry-run"), (*BASE, "--cfg", "job"), ("-m", *BASE, "seed=1,2", "--dry-run")):
        code, out, err = hpcai(tmp_path, said.format(site=site), *words)
        assert code == 3 and out == "" and len(err) == 1 and err[0].startswith("HPCAI_SITE=") and why in err[0], err


@pytest.mark.parametrize(("values", "said"), [
    (NEWTON | {"facts": {"max_submit": "x"}}, "facts.max_submit=x: must be a whole number."),
    (NEWTON | {"facts": {"max_submits": 1}}, "facts.max_submits: unknown. Did you mean facts.max_submit?"),
    (NEWTON | {"executor": "pbs"}, "executor=pbs: unknown."),
    (NEWTON | {"name": "other"}, "name=other: must be kepler, as the file is called."),
    (BOMB, "more than 100 aliases or 5000 values."),
    ("name: kepler\nfacts: {_target_: os.system}\n", "facts._target_: _target_ names code"),
    ("name: kepler\nfacts: {site: '${oc.env:HOME}'}\n", "facts.site="),
    ("name: kepler\nfacts: {site: '${seed}'}\n", "facts.site: ${...} is for experiments."),
    ("name: kepler\ndefaults: [newton]\n", "defaults: a cluster file says all itself."),
    ("# @package _global_\nname: kepler\n", "# @package _global_: a cluster file has none."),
    ("name: !exec id\n", "the tag !exec"),
])  # fmt: skip
def test_a_wrong_file_of_the_site_is_exit_2_and_named(values: Any, said: str, tmp_path: Path, site: Path) -> None:
    put(site, "kepler", {**values, "name": "kepler"} if isinstance(values, dict) and values["name"] == "newton" else values)
    for sweep in ([], ["-m", "seed=1,2"]):
        code, out, err = hpcai(tmp_path, site, *BASE, "cluster=kepler", *sweep, "--dry-run")
        assert (
            code == 2 and out == "" and len(err) == 1 and err[0].startswith("HPCAI_SITE: kepler.yaml: ") and said in err[0]
        ), err


@pytest.mark.parametrize("name", ["../x", "/etc/x", "..", "a/../../x", "x.yaml/..", "'file:///etc/x'"])
def test_a_name_never_leaves_the_sites_folder(name: str, tmp_path: Path, site: Path) -> None:
    put(tmp_path, "x", NEWTON)
    code, out, err = hpcai(tmp_path, site, *BASE, f"cluster={name}", "--dry-run")
    assert code == 2 and out == "" and len(err) == 1 and err[0].startswith("cluster=")


# --- what exceeds the site


def test_what_the_site_says_runs(tmp_path: Path, site: Path) -> None:
    for word in ("cluster.account=a", "cluster.chain=2", "cluster.facts.max_submit=10", "cluster.mail=a@b"):
        code, _, err = hpcai(tmp_path, site, *BASE, "cluster=newton", word, "--dry-run")
        assert (code, err) == (0, []), word


EXCEEDS: list[tuple[list[str], str]] = [
    (["cluster.facts.max_submit=5000"], "cluster.facts.max_submit=5000: the site's own file says 10. Leave it out."),
    (["++cluster.facts.max_submit=5000"], "cluster.facts.max_submit=5000: "),
    (["cluster.facts={max_submit: 5000}"], "cluster.facts.max_submit=5000: "),
    (["cluster={facts: {max_submit: 5000}}"], "cluster.facts.max_submit=5000: "),
    (["~cluster.facts.max_submit"], "cluster.facts.max_submit=null: the site's own file says 10."),
    (["cluster.facts.partitions.cpu.max_min=9999"], "cluster.facts.partitions.cpu.max_min=9999: the site's own file says 60."),
    (["cluster.facts.partitions.mine={cores: 4}"], "cluster.facts.partitions.mine.cores=4: the site's own file says null."),
    (["cluster.facts.mem=never"], "cluster.facts.mem=never: the site's own file says asked."),
    (["cluster.executor=local"], "cluster.executor=local: the site's own file says slurm."),
    (["cluster.name=local"], "cluster.executor=slurm: the site's own file says local."),
    (["cluster.name=kepler"], "cluster.name=kepler: this site (HPCAI_SITE) has none."),
]  # fmt: skip


@pytest.mark.parametrize(("words", "line"), EXCEEDS, ids=[words[0] for words, _ in EXCEEDS])
def test_a_word_that_exceeds_the_site_is_refused_with_the_sites_value(
    words: list[str], line: str, tmp_path: Path, site: Path
) -> None:
    code, out, err = hpcai(tmp_path, site, *BASE, "cluster=newton", *words, "--dry-run")
    assert code == 3 and out == "" and any(said.startswith(line) for said in err), err
    assert not (tmp_path / "home/runs").exists()


def test_a_sweep_that_exceeds_the_site_starts_nothing(tmp_path: Path, site: Path) -> None:
    for word in ("cluster.facts.max_submit=10,5000", "cluster=newton,lucia"):
        code, _, err = hpcai(tmp_path, site, "-m", *BASE, "cluster=newton", word, "--no-wait")
        assert code == 3 and any("5000: the site's own file says 10" in said or "cluster.name=lucia" in said for said in err), (
            err
        )
        assert not list((tmp_path / "home").glob("runs/*/plan.json"))


@pytest.mark.parametrize("text", [
    "cluster: {facts: {max_submit: 5000}}\n",
    "cluster: {name: newton, executor: slurm, facts: {partitions: {cpu: {max_min: 9999}}}}\n",
])  # fmt: skip
def test_an_experiment_that_exceeds_the_site_is_refused(text: str, tmp_path: Path, site: Path) -> None:
    head = "# @package _global_\ndefaults: [smoke, override /cluster: newton, _self_]\nname: x\n"
    put(tmp_path / "mine/experiment", "x", head + text)
    code, _, err = hpcai(
        tmp_path, site, "+experiment=x", "resources.timeout_min=30", "--dry-run", "--config-dir", str(tmp_path / "mine")
    )
    assert code == 3 and any("the site's own file says" in said for said in err), err


def test_a_users_file_that_takes_the_sites_name_gains_nothing(tmp_path: Path, site: Path) -> None:
    put(tmp_path / "mine/cluster", "big", NEWTON | {"facts": NEWTON["facts"] | {"max_submit": 9999}})
    code, _, err = hpcai(tmp_path, site, *BASE, "cluster=big", "--dry-run", "--config-dir", str(tmp_path / "mine"))
    assert code == 3 and err[0] == "cluster.facts.max_submit=9999: the site's own file says 10. Leave it out."


# --- within one process


@pytest.fixture
def at_site(site: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HPCAI_SITE", str(site))
    return site


def test_many_differences_are_five_lines_and_their_number(at_site: Path) -> None:
    config = load([*BASE, "cluster=newton", *(f"cluster.facts.partitions.p{i}={{cores: 1, gpus: 1}}" for i in range(9))])
    lines = [str(fault) for fault in site_faults(config)]
    assert len(lines) == 6 and lines[-1].endswith("more keys differ from the site's file. Leave them out.")
    assert all(isinstance(fault, PlanError) for fault in site_faults(config))


def test_without_a_site_nothing_exceeds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HPCAI_SITE", raising=False)
    assert list(site_faults(load([*BASE, "cluster=meluxina", "cluster.facts.max_submit=9999"]))) == []


def test_the_site_is_asked_anew_when_its_file_changes(at_site: Path) -> None:
    config = load([*BASE, "cluster=newton"])
    assert list(site_faults(config)) == []
    put(at_site, "newton", NEWTON | {"facts": NEWTON["facts"] | {"max_submit": 1234}})
    assert [str(fault) for fault in site_faults(config)] == [
        "cluster.facts.max_submit=10: the site's own file says 1234. Leave it out."
    ]
    put(at_site, "newton", "name: [\n")
    assert [type(fault) for fault in site_faults(config)] == [ConfigError]
    (at_site / "newton.yaml").unlink()
    assert [str(fault) for fault in site_faults(config)] == [
        "cluster.name=newton: this site (HPCAI_SITE) has none. Known: local, meluxina."
    ]


def test_members_that_share_a_memory_get_the_sites_file(at_site: Path) -> None:
    memory = Memory()
    for seed in range(3):
        raw, found, whole = attempt([*BASE, "cluster=newton", f"seed={seed}"], None, memory)
        assert (found, whole, raw["cluster"]["facts"]["max_submit"]) == ([], True, 10)
    put(at_site, "kepler", "name: 5\n")
    assert [str(f) for f in attempt([*BASE, "cluster=kepler"], None, Memory())[1]] == [
        "HPCAI_SITE: kepler.yaml: name=5: must be text (quote a number: key=\"'5'\"). Correct it."
    ]


def test_help_and_choices_name_the_sites_clusters_alone(at_site: Path) -> None:
    assert Folder(None).choices("cluster") == ["local", "meluxina", "newton"]
    text = help_text()
    assert re.search(r"^  newton +Newton's own$", text, re.MULTILINE) and "lucia" not in text


def test_hpcai_cluster_says_which_are_the_sites(tmp_path: Path, site: Path) -> None:
    put(site, "broken", GOOD | {"name": "broken", "facts": {"max_submit": "x"}})
    code, out, err = hpcai(tmp_path, site, verb="cluster")
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert (code, err) == (0, []) and list(lines) == ["broken", "local", "meluxina", "newton"]
    assert "the site's" in lines["newton"] and "hpcai's own" in lines["local"] and "1 fault" in lines["broken"]
    code, out, err = hpcai(tmp_path, site, "check", "meluxina", verb="cluster")
    assert (code, err) == (0, []) and "file: the site's" in out
    code, out, err = hpcai(tmp_path, site, "check", "broken", verb="cluster")
    assert code == 2 and err == ["HPCAI_SITE: broken.yaml: facts.max_submit=x: must be a whole number. Correct it."]


def test_a_folder_that_may_not_be_read_is_told(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may read everything
    with pytest.raises(PlanError, match="may not be read by you"):
        site_folder({"HPCAI_SITE": str(site)})


def test_a_config_that_a_site_forbids_is_refused_before_its_folder_is_looked_at(at_site: Path) -> None:
    faults: list[HpcaiError] = list(site_faults(load([*BASE, "cluster=lucia"])))
    assert [fault.code for fault in faults] == [3]

"""The batch script: what HPC staff read, and what bash and sbatch make of it."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcai import script
from hpcai.cluster import read_machine
from hpcai.config.check import load
from hpcai.config.schema import Config
from hpcai.errors import HpcaiError
from hpcai.plan import JobPlan, outline
from hpcai.run import main

EXAMPLES = Path(__file__).parent.parent / "slurm" / "examples"
ON_MELUXINA = ("+experiment=pneumonia", "cluster=meluxina", "cluster.account=p200000", "runs_dir=/project/home/p200000/runs")


def planned(*words: str) -> tuple[JobPlan, Config]:
    config = load(list(words))
    return outline(config, read_machine()), config


def text(*words: str) -> str:
    return script.text(*planned(*ON_MELUXINA, *words))


def options(said: str) -> dict[str, str]:
    """The #SBATCH options, as sbatch takes them: within double quotes as a shell does, but for $ and `."""
    found = [line.removeprefix("#SBATCH --").partition("=") for line in said.splitlines() if line.startswith("#SBATCH --")]
    return {name: "".join(shlex.split(value)) for name, _, value in found}


def check_with_shellcheck(said: str) -> None:
    if shutil.which("shellcheck") is None:
        assert os.environ.get("HPCAI_REQUIRE") != "all", "shellcheck is not installed"
        pytest.skip("shellcheck is not installed")
    done = subprocess.run(["shellcheck", "-s", "bash", "-"], input=said, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_header_says_what_runs_for_whom_for_how_long_and_what_it_costs() -> None:
    said = text("resources.gpus_per_node=4", "resources.tasks_per_node=4", "resources.timeout_min=90").splitlines()
    assert said[0] == "#!/bin/bash -l"
    assert re.fullmatch(r"# hpcai [\d.]+: train of pneumonia-[0-9a-f]{8} for account p200000\.", said[1])
    assert (
        said[2]
        == "# At most 1 h 30 min on 1 node of gpu, 4 GPUs a node: at most 1.5 node-h (1 gpu node x 1 h 30 min) for each start."
    )
    assert "/project/home/p200000/runs/pneumonia-" in said[3]


def test_options_are_written_out_each_once_and_before_any_command() -> None:
    said = text("resources.gpus_per_node=2", "resources.tasks_per_node=2", "resources.nodes=2", "resources.timeout_min=90")
    asked = options(said)
    assert {k: asked[k] for k in ("account", "partition", "qos", "time", "nodes", "ntasks-per-node", "hint", "signal")} == {
        "account": "p200000", "partition": "gpu", "qos": "default", "time": "01:30:00", "nodes": "2", "ntasks-per-node": "2",
        "hint": "nomultithread", "signal": "USR2@120",
    }  # fmt: skip
    assert {"requeue", "exclusive"} <= set(asked) and asked["export"] == "NONE" and asked["open-mode"] == "append"
    assert re.fullmatch(r"hpcai:[\d.]+:pneumonia-[0-9a-f]{8}", asked["comment"])
    names = [line.split("=")[0] for line in said.splitlines() if line.startswith("#SBATCH")]
    assert len(names) == len(set(names))
    first_command = next(i for i, line in enumerate(said.splitlines()) if line and not line.startswith("#"))
    assert not any(line.startswith("#SBATCH") for line in said.splitlines()[first_command:])


def test_last_line_is_the_step_that_a_person_may_type() -> None:
    said = text("resources.cpus_per_task=8", "cluster.python=/project/home/p200000/hpcai/bin/python")
    words = shlex.split(said.splitlines()[-1])
    assert words[0] == "srun" and {"--kill-on-bad-exit=1", "--cpus-per-task=8", "--open-mode=append"} <= set(words)
    assert words[-5:] == ["$PYTHON", "-u", "-m", "hpcai.worker", "$RUN"]
    named = dict(line.split("=", 1) for line in said.splitlines() if line.startswith(("RUN=", "PYTHON=")))
    assert named["PYTHON"] == "/project/home/p200000/hpcai/bin/python"
    assert named["RUN"].startswith("/project/home/p200000/runs/pneumonia-")


@pytest.mark.parametrize(("word", "mask"), [("runs_access=user", "umask 077"), ("runs_access=group", "umask 027")])
def test_new_files_are_the_users_or_the_groups(word: str, mask: str) -> None:
    assert mask in text(word).splitlines()


def test_a_site_brings_its_own_script_by_its_path_and_variables_have_names() -> None:
    assert ". '/apps/hp cai/modules.sh' || exit 3" in text("cluster.facts.setup='/apps/hp cai/modules.sh'").splitlines()
    for word in ("cluster.facts.setup=../x.sh", "cluster.facts.partitions.cpu.env={a.b: c}", "cluster.facts.setup='x;id'"):
        with pytest.raises(HpcaiError, match=r"cluster\.facts"):
            text(word)


def test_a_container_sees_the_run_its_inputs_read_only_and_the_gpus() -> None:
    box = (
        "container.image=/project/home/p200000/a b.sif",
        "container.binds=[/data]",
        "data.path='/project/x/d.npz'",
    )
    said = text(*box, "resources.gpus_per_node=1", "cluster.python=/opt/python").splitlines()
    words = shlex.split(said[-1])
    step = words[words.index("apptainer") :]
    assert step == [
        "apptainer", "exec", "--nv", "--bind", "$RUN:$RUN", "--bind", "/project/x/d.npz:/project/x/d.npz:ro", "--bind", "/data",
        "--pwd", "$RUN", "/project/home/p200000/a b.sif", "python3", "-u", "-m", "hpcai.worker", "$RUN",
    ]  # fmt: skip
    assert any("hpcai.requeue" in line and '"$PYTHON"' in line for line in said)  # outside: it speaks to Slurm
    assert "--nv" not in text(*box)
    check_with_shellcheck(text(*box))


def test_an_amd_node_gives_its_gpus_by_their_own_flag() -> None:
    words = ("+experiment=pneumonia", "cluster=lumi", "cluster.account=project_465000000", "resources.gpus_per_node=1")
    said = script.text(*planned(*words, "container.image=/appl/x.sif"))
    assert "singularity exec --rocm --bind" in said


@pytest.mark.parametrize(("words", "said"), [
    (["container.image=docker://x"], "is an address; a job fetches nothing"),
    (["container.image=x.sif", "cluster=local"], "on Slurm alone"),
    (["container.image=x.sif", "data.path=/a:b"], "which parts a bind"),
    (["container.image=x.sif", "container.binds=[x]"], "container.binds.0=x"),
])  # fmt: skip
def test_a_container_that_cannot_be_run_is_refused(words: list[str], said: str) -> None:
    with pytest.raises(HpcaiError, match=re.escape(said)):
        text(*words)


def test_mail_and_reservation_are_there_when_asked_for_alone() -> None:
    assert "mail" not in text() and "reservation" not in text()
    asked = options(text("cluster.mail=a@b.lu", "cluster.reservation=gpudev"))
    assert asked["mail-user"] == "a@b.lu" and asked["reservation"] == "gpudev"


def test_a_site_without_requeue_gets_none() -> None:
    asked = options(text("++cluster.facts.requeue=false"))
    assert "no-requeue" in asked and "requeue" not in asked


def test_the_same_plan_gives_the_same_bytes_and_explain_every_line_of_it() -> None:
    plan, config = planned(*ON_MELUXINA)
    assert script.text(plan, config) == script.text(plan, config)
    told = script.explain(plan, config)
    assert "".join(f"{line}\n" for line in told.splitlines() if not line.startswith("    ^ ")) == script.text(plan, config)
    for option in ("export", "signal", "requeue", "comment"):
        assert f"#SBATCH --{option}" in told
    assert told.count("    ^ ") > 15


@pytest.mark.parametrize("cluster", ["meluxina", "lucia", "lumi", "testbed"])
@pytest.mark.parametrize("gpus", [0, 1])
def test_scripts_are_shellcheck_clean(cluster: str, gpus: int) -> None:
    account = {"lumi": "project_465000000"}.get(cluster, "p200000")
    words = ("+experiment=pneumonia", f"cluster={cluster}", f"cluster.account={account}", f"resources.gpus_per_node={gpus}")
    check_with_shellcheck(script.text(*planned(*words, SPACED, "cluster.preflight=true")))


SPACED = "runs_dir='/scratch/a b;&|(c)#'"  # quotes and $ in a quoted word are what shellcheck itself mistakes
HOSTILE = ["a b", "it's", 'say "x"', "$HOME", "`id`", "a;b&c|d", "#x", "back\\slash", "*?[x]", "ünï", "-n", "$(touch x)", "!x"]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_reach_the_step_as_they_are(name: str, tmp_path: Path) -> None:
    """The script is run by a real bash, with an srun that prints what it was given."""
    (tmp_path / "bin").mkdir()
    for tool, body in (("srun", 'printf "%s\\n" "$@"'), ("python", "exit 0")):
        (tmp_path / "bin" / tool).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / "bin" / tool).chmod(0o755)
    runs = tmp_path / name / "runs"
    python = f"cluster.python={shown(tmp_path / 'bin/python')}"
    said = script.text(*planned(*ON_MELUXINA[:3], f"runs_dir={shown(runs)}", python))
    run = shlex.split(next(line for line in said.splitlines() if line.startswith("RUN=")))[0].removeprefix("RUN=")
    path = Path(run, "code", "hpcai", "slurm", "setup", "meluxina.sh")
    path.parent.mkdir(parents=True)
    path.write_text("true\n")
    done = subprocess.run(
        ["bash", "-c", said], capture_output=True, text=True, env={"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith(f"{runs}/pneumonia-")
    assert any(line.startswith(f"--output={runs}/pneumonia-") for line in done.stdout.splitlines())
    assert not (tmp_path / "x").exists()
    assert options(said)["output"].startswith(f"{runs}/pneumonia-")


def shown(path: Path) -> str:
    """A value as Hydra's words quote it."""
    return "'" + str(path).replace("'", "\\'") + "'"


@given(st.text(st.characters(codec="utf-8", exclude_categories=["C"]), min_size=1, max_size=30))
@settings(max_examples=200)
def test_what_is_quoted_for_sbatch_is_read_back(value: str) -> None:
    assert shlex.split(script.quoted(value)) == [value]


@pytest.mark.parametrize(("minutes", "lead"), [(1, 20), (2, 40), (5, 100), (6, 120), (2880, 120)])
def test_the_ranks_are_told_in_time_but_not_at_once(minutes: int, lead: int) -> None:
    plan, _ = planned(*ON_MELUXINA, f"resources.timeout_min={minutes}")
    assert script.limits_of(plan) == (minutes, lead)


@pytest.mark.parametrize(("minutes", "said"), [(1, "00:01:00"), (90, "01:30:00"), (1440, "1-00:00:00"), (1500, "1-01:00:00")])
def test_times_are_slurms(minutes: int, said: str) -> None:
    assert script.clock(minutes) == said


def commands() -> dict[str, list[str]]:
    """File name -> the words that make it, as slurm/examples/commands.txt lists them."""
    rows = [line.partition(": ") for line in (EXAMPLES / "commands.txt").read_text().splitlines() if line and line[0] != "#"]
    return {name: shlex.split(words) for name, _, words in rows}


@pytest.mark.parametrize("name", sorted(commands()))
def test_examples_are_what_would_be_submitted(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`make examples` writes them anew."""
    assert main(["--dry-run", *commands()[name]]) == 0
    said = capsys.readouterr().out
    assert said[said.index("#!/bin/bash") :] == (EXAMPLES / name).read_text()
    check_with_shellcheck((EXAMPLES / name).read_text())


def test_every_example_is_listed() -> None:
    assert sorted(commands()) == sorted(file.name for file in EXAMPLES.glob("*.sbatch"))

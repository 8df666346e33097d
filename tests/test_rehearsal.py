"""`hpcai try`: a few real steps where the run will be, then what all of it will take; nothing of the real run is touched."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import Launcher
from training_kit import words, write_npz

from hpcai import lease, rundir
from hpcai.cli import main
from hpcai.config.check import load
from hpcai.plan import read_config
from hpcai.rehearsal import shortened
from hpcai.rundir import RunDir

MELUXINA = ["+experiment=pneumonia", "cluster=meluxina", "cluster.account=p200000", "data.path=/project/home/p200000/x.npz"]


def test_a_try_has_the_first_steps_of_the_run_and_nothing_that_reaches_others() -> None:
    whole = load(["+experiment=smoke", "trainer.max_steps=500", "trainer.patience=3", "trainer.checkpoint_every=2",
                  "tracking.tensorboard=true", "pipeline=[train,evaluate]", "resources.timeout_min=77"])  # fmt: skip
    short = shortened(whole)
    assert (short.name, short.pipeline, short.tracking.tensorboard) == ("try-smoke", [], False)
    assert (short.trainer.max_steps, short.trainer.log_every, short.trainer.checkpoint_every) == (20, 1, None)
    same = {"max_steps", "log_every", "checkpoint_every", "patience"}
    assert short.trainer.model_dump(exclude=same) == whole.trainer.model_dump(exclude=same)
    assert (short.data, short.model, short.seed, short.resources) == (whole.data, whole.model, whole.seed, whole.resources)
    assert shortened(load(["+experiment=smoke", "trainer.max_steps=3"])).trainer.max_steps == 3


@pytest.mark.parametrize(("more", "qos", "minutes"), [
    ([], "test", 30),
    (["cluster.qos=long", "resources.timeout_min=8000"], "test", 30),
    (["resources.timeout_min=12"], "test", 12),
    (["resources.nodes=29"], "default", 30),  # more nodes than test and short have
    (["resources.gpus_per_node=4", "resources.nodes=11"], "default", 30),
    (["cluster.facts.qos.short.max_min=20"], "short", 20),  # the shortest of all
    (["cluster.facts.qos.test.preemptible=true"], "short", 30),  # one whose jobs give way comes last
])  # fmt: skip
def test_on_slurm_it_goes_to_the_shortest_qos_that_allows_it(more: list[str], qos: str, minutes: int) -> None:
    short = shortened(load([*MELUXINA, "cluster.mail=me@here", *more]))
    assert (short.cluster.qos, short.resources.timeout_min) == (qos, minutes)
    assert (short.cluster.mail, short.cluster.chain) == (None, 1)


@pytest.mark.parametrize(("argv", "code", "said"), [
    ([], 2, "hpcai try: names nothing to try. Write +experiment=NAME; hpcai run --help lists them."),
    (["+experiment=smok"], 2, "experiment=smok: unknown. Did you mean smoke?"),
    (["+experiment=smoke", "job=predict", "from_run=x"], 2,
     "job=predict: hpcai try measures the steps of a training. Name an experiment with job=train."),
    (["+experiment=smoke", "resources.nodes=2"], 3, "resources.nodes=2: cluster local has 1. Ask for fewer."),
    (["+experiment=smoke", "trainer.lr=0", "trainer.epochs=0"], 2, "trainer."),
    (["+experiment=smoke", "data.path=/nowhere.npz"], 4, "data.path=/nowhere.npz: "),
])  # fmt: skip
def test_what_cannot_be_tried_is_told_in_a_line_and_leaves_nothing(
    argv: list[str], code: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["try", *argv]) == code
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(said) and list(tmp_path.iterdir()) == []


def folders(launcher: Launcher) -> list[str]:
    return sorted(f.name.rpartition("-")[0] for f in launcher.runs.iterdir())


@pytest.mark.slow
def test_a_try_of_the_shipped_smoke_test_tells_what_it_takes_and_a_later_plan_quotes_it(train: Launcher) -> None:
    data = Path(__file__).parent.parent / "src/hpcai/shipped/pneumoniamnist/pneumoniamnist.npz"
    asked = [
        "+experiment=smoke",
        f"data.path={data}",
        "trainer.epochs=2",
        "trainer.max_steps=null",
        "resources.cpus_per_task=1",
    ]

    def typed(*argv: str, module: str = "hpcai.cli") -> Any:
        done = train(*argv, f"runs_dir='{train.runs}'", module=module, bare=True)
        assert done.rc == 0, done
        return done

    out = typed("try", *asked).out.splitlines()
    assert [line.split()[0] for line in out[-3:]] == ["tried", "whole", "propose"]
    assert out[-3].startswith("tried    20 steps (try-smoke-") and out[-2].startswith(
        "whole    148 steps, 2 validations: about "
    )
    run = train.run_dir("try-smoke")
    assert folders(train) == ["try-smoke"] and read_config(run).trainer.max_steps == 20
    assert lease.read_state(run).state == "completed" and out[-1].startswith("propose  resources.timeout_min=")

    keys = out[-1].removeprefix("propose  ")
    plan = typed("plan", *asked, *keys.split()).out
    assert f"{keys} would do" in plan and "tried 20" in plan
    assert "would do" not in typed("plan", *asked, "trainer.lr=0.5").out

    again = json.loads(typed("try", *asked, "--json").out)
    assert (again["run_id"], lease.last_life(run)) == (run.path.name, 1), "what was tried is told, not tried again"
    assert again["steps"] == 148 and 0 < again["pace"]["step"] < again["seconds"] and again["mem_gb"] > 0.1
    assert again["of"] in rundir.read_json(run.proposal) and f"timeout_min={again['timeout_min']} " in keys


@pytest.mark.slow
def test_another_number_of_ranks_is_tried_anew_and_a_try_that_fails_proposes_nothing(launch: Launcher) -> None:
    launch.job = {"fail": "data"}
    argv = [*launch.words()]
    for ranks, folder in ((1, "try-tiny"), (2, "try-tiny")):
        done = launch("try", *argv, f"resources.tasks_per_node={ranks}", module="hpcai.cli", bare=True)
        assert done.rc == 4 and "propose" not in done.out and folders(launch)[0].startswith(folder), done
    found = sorted(launch.runs.iterdir())
    assert len(found) == 2 and found[1].name == f"{found[0].name}.2"
    assert not any(RunDir(folder).proposal.exists() for folder in found)


@pytest.mark.slow
@pytest.mark.slurm
def test_on_slurm_it_is_sent_to_the_shortest_qos_waited_for_and_priced(tmp_path: Path, slurm: Any) -> None:
    asked = [*words(write_npz(tmp_path / "d.npz"), tmp_path / "runs", "cluster=testbed"), "resources.mem_gb=4"]

    def typed(verb: str, *argv: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "hpcai.cli", verb, *argv]
        done = subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=tmp_path, env=dict(os.environ))
        assert done.returncode == 0, (done.stdout, done.stderr)
        return done

    out = typed("try", *asked).stdout.splitlines()
    (folder,) = (tmp_path / "runs").iterdir()
    script = RunDir(folder).script.read_text()
    assert folder.name.startswith("try-t-") and "#SBATCH --qos=test\n" in script and "#SBATCH --time=00:30:00\n" in script
    assert any(line.startswith("submitted: job ") for line in out) and f"{folder.name}: completed" in out
    assert out[-3].startswith("whole    20 steps, 2 validations: about ")
    assert out[-2].startswith("propose  resources.timeout_min=10 resources.mem_gb=")
    assert out[-1].startswith("price    about 0.0") and out[-1].endswith("at most 0.17 node-h (1 cpu node x 10 min)")
    plan = typed("plan", *asked).stdout
    assert "node-h: resources.timeout_min=10 resources.mem_gb=" in plan and "#SBATCH --qos=test" not in plan

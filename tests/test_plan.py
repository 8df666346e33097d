"""What a run is called, what is wrong with a command, where its folder lies; and that planning writes nothing."""

# ruff: noqa: E501  (a row of a table is one line)

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import tiny_words

from hpcai import rundir
from hpcai.config.check import load
from hpcai.config.keys import all_keys
from hpcai.config.schema import Config, Estimator, Features, Screening, Study
from hpcai.errors import ConfigError, DataError, Faults, HpcaiError, PlanError
from hpcai.plan import JobPlan, digest, find_runs, make_plan, numbered, read_config, read_model, read_plan, with_trained
from hpcai.rundir import RunDir

# Another value for each key that decides a result, and for each that does not: every key stands in one of the two.
DECIDES = {
    "job": "evaluate from_run=x", "seed": "1", "task.select": "loss", "task.threshold": "youden", "data.name": "other",
    "data.reader": "images", "data.path": "/x", "data.sha256": "0" * 64, "data.labels": "[a,b,c]", "data.channels": "3",
    "data.image_size": "[9,9]", "data.case_col": "c", "data.path_col": "c", "data.label_col": "c", "data.patient_col": "c",
    "data.split_col": "c", "data.group_cols": "[g]", "data.split.by": "random", "data.split.val_fraction": "0.3", "data.split.test_fraction": "0.3",
    "data.split.folds": "7", "data.split.fold": "1", "data.split.seed": "1", "data.eval_split": "all", "data.source": "s",
    "data.licence": "l", "data.samples_in": "columns", "data.label_path": "/x", "data.near_duplicates": "0.6", "data.unlisted": "leave_out", "data.root": "/x", "data.window": "[40,400]", "model.name": "densenet121", "model.spatial_dims": "3", "model.norm": "batch", "model.width": "16",
    "model.dropout": "0.5", "model.init_from": "/x", "model.options": "{a:1}", "trainer.epochs": "3", "trainer.max_steps": "9",
    "trainer.batch_size": "8", "trainer.accumulate": "2", "trainer.optimizer": "sgd", "trainer.lr": "0.5",
    "trainer.weight_decay": "0.5", "trainer.lr_schedule": "constant", "trainer.warmup": "0.5", "trainer.clip_norm": "1",
    "trainer.precision": "bf16", "trainer.compile": "true", "trainer.label_smoothing": "0.5", "trainer.class_weights": "balanced",
    "trainer.ema_decay": "0.5", "trainer.augment": "[flip]", "trainer.patience": "2", "trainer.validate_every": "2",
    "trainer.deterministic": "false", "task.name": None,
}  # fmt: skip
DOES_NOT = {
    "data.identifiers": "x", "data.shareable": "x", "data.excluded": "x",
    "name": "x", "from_run": "x", "runs_dir": "/elsewhere", "trainer.log_every": "7", "trainer.checkpoint_every": "7",
    "trainer.checkpoint_every_min": "7", "trainer.keep_last": "7", "trainer.checkpoint_async": "true", "resources.nodes": "2",
    "resources.tasks_per_node": "2", "resources.gpus_per_node": "2", "resources.cpus_per_task": "2", "resources.mem_gb": "2",
    "resources.timeout_min": "2", "cluster.name": "x", "cluster.executor": None, "cluster.account": "x",
    "cluster.partition": "x", "cluster.qos": "x", "cluster.reservation": "x", "cluster.mail": "a@b", "cluster.python": "/x",
    "cluster.preflight": "true", "cluster.chain": "2", "sweep.per_node": "2", "sweep.array_parallelism": "2", "cluster.facts": "x", "runs_access": "group", "container.image": "x.sif",
    "container.python": "x", "container.binds": "x",
    "tracking.tensorboard": "true", "tracking.mlflow": "/x", "tracking.experiment": "x", "tracking.wait_s": "7", "pipeline": "x",
    "depends_on": "x", "report.prevalence": "0.1", **{f"study.{name}": "x" for name in Study.model_fields},
    "predict.shards": "8", "predict.shard": "1", "predict.merge": "x",
    **{f"features.{name}": "x" for name in Features.model_fields}, **{f"estimator.{name}": "x" for name in Estimator.model_fields},
    **{f"screening.{name}": "x" for name in Screening.model_fields},
}  # fmt: skip
MODEL = {"sha256": "00", "labels": ["no", "yes"], "input": {"channels": 1, "size": [8, 8]}}
Planner = Callable[..., tuple[JobPlan, Config, Any]]


@pytest.fixture
def plan_of(tiny_npz: Path, tmp_path: Path) -> Planner:
    """plan_of("seed=1"): the tiny config, planned in a folder of this test."""

    def plan(*overrides: str, anew: bool = False) -> tuple[JobPlan, Config, Any]:
        return make_plan(config(tiny_npz, tmp_path, *overrides), anew=anew)

    return plan


def config(npz: Path, home: Path, *overrides: str) -> Config:
    words = tiny_words(npz) | {"runs_dir": str(home / "runs")} | dict(o.split("=", 1) for o in overrides)
    return load([f"{k}='{v}'" if "/" in v else f"{k}={v}" for k, v in words.items()])


def changed(value: Config, key: str, text: str) -> Config:
    """`value` with another value under `key`, unchecked: rules across groups are not the point here."""
    first, _, rest = key.partition(".")
    inner = getattr(value, first)
    return value.model_copy(update={first: changed(inner, rest, text) if rest else f"{inner}{text}"})


# --- identity


def test_every_key_either_decides_a_result_or_does_not() -> None:
    assert {key.name for key in all_keys()} == DECIDES.keys() | DOES_NOT.keys()


@pytest.mark.parametrize("key", DECIDES)
def test_a_key_that_decides_a_result_changes_the_identity(tiny_npz: Path, tmp_path: Path, key: str) -> None:
    base = config(tiny_npz, tmp_path)
    if key == "job":
        assert digest(base) != digest(base.model_copy(update={"job": "predict"}))
    else:
        assert digest(base) != digest(changed(base, key, DECIDES[key] or "x"))


@pytest.mark.parametrize("key", DOES_NOT)
def test_a_key_that_decides_no_result_does_not(tiny_npz: Path, tmp_path: Path, key: str) -> None:
    base = config(tiny_npz, tmp_path)
    assert digest(base) == digest(changed(base, key, DOES_NOT[key] or "x"))


FIT = {
    "features.clip": "10", "features.limit": "1000", "features.absent": "minimum", "features.flags": "false",
    "features.scale": "first", "features.quiet": "[1.0]", "features.sides": "true", "estimator.class_weights": "none",
    "estimator.combine": "mean",
    "estimator.name": "boosting", "estimator.penalty": "[2.0]", "estimator.l1_ratio": "[0.1]", "estimator.trees": "[7]",
    "estimator.depth": "2", "estimator.learning_rate": "0.2", "estimator.folds": "3", "estimator.miscoverage": "0.2",
}  # fmt: skip


@pytest.mark.parametrize("word", FIT)
def test_a_key_of_a_table_decides_the_result_of_a_fit(tiny_npz: Path, tmp_path: Path, word: str) -> None:
    base = config(tiny_npz, tmp_path, "job=fit", "data.reader=table")
    assert digest(base) != digest(config(tiny_npz, tmp_path, "job=fit", "data.reader=table", f"{word}={FIT[word]}"))


@pytest.mark.parametrize(("job", "more"), [("fit", []), ("evaluate", ["from_run=x"]), ("predict", ["from_run=x"])])
def test_what_a_laboratory_states_decides_screening_and_nothing_else(
    tiny_npz: Path, tmp_path: Path, job: str, more: list[str]
) -> None:
    words = [f"job={job}", "data.reader=table", *more]
    plain = [digest(config(tiny_npz, tmp_path, *words, *rules)) for rules in ([], ["screening.rules=[california]"])]
    screened = [digest(config(tiny_npz, tmp_path, *words, "task.name=screening", *rules))
                for rules in ([], ["screening.rules=[california]"], ["screening.mode=shadow"])]  # fmt: skip
    assert plain[0] == plain[1] and len({plain[0], *screened}) == 4


def test_what_a_laboratory_states_is_looked_at_before_it_waits_in_a_queue(tiny_npz: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("a: [1\n")
    words = ["job=fit", "data.reader=table", "task.name=screening", "screening.rules=[heidelberg]"]
    words += [f"screening.policy={own}", f"screening.specimen={tmp_path}/none.yaml"]
    words += [f"screening.controls={tmp_path}/none.csv", "screening.control_rules=westward"]
    with pytest.raises(Faults) as error:
        make_plan(config(tiny_npz, tmp_path, *words))
    told = sorted((str(fault), fault.code) for fault in error.value.members)
    assert [(line[: len(words)], code) for (line, code), (words, _) in zip(told, LOOKED_AT)] == LOOKED_AT
    assert len(told) == len(LOOKED_AT)


LOOKED_AT = [
    ("own.yaml: line 2: is no YAML", 2),
    ("screening.control_rules=westward: no such file is shipped. Did you mean westgard?", 2),
    ("screening.controls=", 4),
    ("screening.rules=heidelberg: no such file is shipped. Did you mean heidelberg2003?", 2),
    ("screening.specimen=", 2),
]


def test_the_same_config_has_the_same_run_id_in_another_process_and_order(tiny_npz: Path, tmp_path: Path) -> None:
    words = [f"{k}='{v}'" if "/" in v else f"{k}={v}" for k, v in tiny_words(tiny_npz).items()]
    code = "import sys, json; from hpcai.config.check import load; from hpcai.plan import digest; "
    code += "print(digest(load(json.loads(sys.argv[1]))))"
    found = {digest(config(tiny_npz, tmp_path))}
    for seed, order in (("1", words), ("2", words[::-1])):
        done = subprocess.run([sys.executable, "-c", code, json.dumps(order)], capture_output=True, text=True, check=True,
                              env={"PYTHONHASHSEED": seed, "PATH": ""})  # fmt: skip
        found.add(done.stdout.strip())
    assert len(found) == 1


def test_evaluate_is_another_run_for_another_trained_run_or_other_data_alone(tiny_npz: Path, tmp_path: Path) -> None:
    base = config(tiny_npz, tmp_path, "job=evaluate", "from_run=x")
    assert digest(base, ["a-1"]) != digest(base, ["a-2"])
    assert digest(base, ["a-1"]) != digest(changed(base, "data.path", "x"), ["a-1"])
    assert digest(base, ["a-1"]) == digest(changed(changed(base, "trainer.lr", "1"), "model.width", "1"), ["a-1"])


def test_the_run_id_is_the_name_and_eight_digits_and_the_paths_are_absolute(
    plan_of: Planner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    plan, resolved, files = plan_of("runs_dir=here")
    assert plan.run_id == f"tiny-{plan.identity[:8]}" and plan.run_dir == str(tmp_path / "here" / plan.run_id)
    assert resolved.runs_dir == str(tmp_path / "here") and Path(resolved.data.path).is_absolute()
    assert [f.path for f in files] == [resolved.data.path]


# --- folders


def test_the_newest_folder_of_an_identity_goes_on_and_anew_starts_the_next(plan_of: Planner, tmp_path: Path) -> None:
    first = Path(plan_of()[0].run_dir)
    assert Path(plan_of(anew=True)[0].run_dir) == first
    first.mkdir(parents=True)
    assert (Path(plan_of()[0].run_dir), Path(plan_of(anew=True)[0].run_dir)) == (first, Path(f"{first}.2"))
    Path(f"{first}.2").mkdir()
    assert (Path(plan_of()[0].run_dir), Path(plan_of(anew=True)[0].run_dir)) == (Path(f"{first}.2"), Path(f"{first}.3"))


def test_planning_writes_nothing(plan_of: Planner, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    plan_of()
    with pytest.raises(Faults):
        plan_of("data.path=/nowhere")
    assert sorted(tmp_path.rglob("*")) == before


# --- faults


def test_everything_that_is_wrong_is_told_at_once(plan_of: Planner, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    words = ["resources.nodes=9", "resources.gpus_per_node=64", "data.path=/nowhere", "model.init_from=/no"]
    words += [f"runs_dir={tmp_path}/file/x"]
    with pytest.raises(Faults) as caught:
        plan_of(*words)
    assert [type(f) for f in caught.value.members] == [PlanError, PlanError, PlanError, DataError, ConfigError]
    assert [line.split("=")[0] for line in caught.value.lines] == [
        "resources.nodes", "resources.gpus_per_node", "runs_dir", "data.path", "model.init_from"]  # fmt: skip


FOLDERS = [("a%b", "holds %"), ("a:b", "holds :"), ("a" * 256, "cannot be reached"), ("f/x", "f is no folder")]


@pytest.mark.parametrize(("name", "why"), FOLDERS)
def test_a_folder_that_cannot_hold_runs_is_a_plan_error(plan_of: Planner, tmp_path: Path, name: str, why: str) -> None:
    (tmp_path / "f").touch()
    with pytest.raises(Faults, match=why) as caught:
        plan_of(f"runs_dir={tmp_path}/{name}")
    assert [type(f) for f in caught.value.members] == [PlanError]


# --- the plan on disk


def test_a_plan_is_read_as_it_was_written(plan_of: Planner, tmp_path: Path) -> None:
    plan, run = plan_of("resources.tasks_per_node=3")[0], RunDir(tmp_path)
    rundir.write_json(run.plan, plan.to_json())
    assert read_plan(run) == plan and plan.ranks == 3


def test_a_plan_or_config_that_is_not_what_was_written_is_a_plan_error(plan_of: Planner, tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    rundir.write_json(run.plan, replace(plan_of()[0], version=99).to_json())
    with pytest.raises(PlanError, match="its format is 99, this hpcai reads 1"):
        read_plan(run)
    run.plan.write_text('{"version":')
    with pytest.raises(PlanError, match=r"its plan.json is damaged"):
        read_plan(run)
    for text in ("{", "name: [", "name: 5", "!!python/object/apply:os.system ['true']", "\x00"):
        run.config.write_text(text)
        with pytest.raises(PlanError, match=r"its config.yaml is damaged"):
            read_config(run)


# --- from_run


@pytest.fixture
def trained(plan_of: Planner, tmp_path: Path) -> Callable[..., RunDir]:
    """trained("a-1"): a folder as a training leaves it."""

    def make(name: str, job: str = "train", finished: bool = True) -> RunDir:
        plan, resolved, _ = plan_of()
        run = RunDir(tmp_path / "runs" / name)
        rundir.write_json(run.plan, replace(plan, job=job, run_id=name).to_json())
        rundir.write_bytes(run.config, json.dumps(resolved.model_dump()).encode())
        rundir.write_json(run.model, MODEL)
        if finished:
            rundir.write_json(run.threshold, {})
        return run

    return make


def found(tiny_npz: Path, tmp_path: Path, name: str) -> Path:
    (run,) = find_runs(config(tiny_npz, tmp_path, "job=evaluate", f"from_run={name}"))
    return run.path


def test_a_run_is_found_by_its_name_a_beginning_of_it_or_its_folder(
    trained: Callable[..., RunDir], tiny_npz: Path, tmp_path: Path
) -> None:
    run, other = trained("abc-1"), trained("xyz-1")
    assert found(tiny_npz, tmp_path, "abc-1") == found(tiny_npz, tmp_path, "a") == run.path
    assert found(tiny_npz, tmp_path, str(other.path)) == other.path


def test_a_run_s_own_name_means_it_also_where_another_begins_so(
    trained: Callable[..., RunDir], tiny_npz: Path, tmp_path: Path
) -> None:
    first, second = trained("abc-1"), trained("abc-1.2")
    assert found(tiny_npz, tmp_path, "abc-1") == first.path
    assert found(tiny_npz, tmp_path, "abc-1.2") == second.path
    with pytest.raises(ConfigError, match=r"^from_run=abc: abc-1, abc-1\.2 begin so\. Write more of it\.$"):
        found(tiny_npz, tmp_path, "abc")


@pytest.mark.parametrize("name", ["abd-1", "/nowhere", "~nobody-here/x", "*", "../..", "a" * 300])
def test_an_unknown_run_is_a_config_error_with_the_nearest(
    trained: Callable[..., RunDir], tiny_npz: Path, tmp_path: Path, name: str
) -> None:
    trained("abc-1")
    with pytest.raises(ConfigError, match=r": no such run in .*(Did you mean abc-1\?|Known: abc-1\.)$"):
        found(tiny_npz, tmp_path, name)


def test_a_run_that_is_unfinished_or_trains_nothing_is_a_plan_error(
    trained: Callable[..., RunDir], tiny_npz: Path, tmp_path: Path
) -> None:
    trained("a-1", finished=False)
    trained("b-1", job="predict")
    with pytest.raises(PlanError, match="has not finished its training"):
        found(tiny_npz, tmp_path, "a-1")
    with pytest.raises(PlanError, match=r"is a run of job=predict\. Name a run of job=train"):
        found(tiny_npz, tmp_path, "b-1")


def test_labels_are_the_trained_run_s_and_others_are_refused(
    trained: Callable[..., RunDir], tiny_npz: Path, tmp_path: Path
) -> None:
    run = trained("a-1")
    base = config(tiny_npz, tmp_path, "job=evaluate", "from_run=a-1", "model.width=64", "trainer.precision=float64")
    taken = with_trained(base, [run])
    assert (taken.data.labels, taken.data.image_size) == (["no", "yes"], [8, 8])
    assert (taken.model.width, taken.trainer.precision) == (8, "float32")
    with pytest.raises(ConfigError, match=r"^data.labels=yes,no: run a-1 was trained for no,yes. Leave data.labels out.$"):
        with_trained(base.model_copy(update={"data": base.data.model_copy(update={"labels": ["yes", "no"]})}), [run])


def test_the_plan_of_an_evaluation_records_the_model_s_digest(trained: Callable[..., RunDir], plan_of: Planner) -> None:
    run = trained("a-1")
    plan, resolved, _ = plan_of("job=evaluate", "from_run=a")
    assert plan.from_run == [{"run_id": "a-1", "sha256": "00"}] and resolved.from_run == str(run.path)


def test_faults_of_the_trained_run_come_with_all_others(plan_of: Planner) -> None:
    with pytest.raises(HpcaiError) as caught:
        plan_of("job=evaluate", "from_run=a", "data.path=/nowhere", "resources.nodes=2")
    assert [line.split("=")[0] for line in caught.value.lines] == ["resources.nodes", "from_run", "data.path"]


# --- several runs


def several(npz: Path, home: Path, names: str, job: str = "evaluate") -> Config:
    return config(npz, home, f"job={job}", "from_run=x").model_copy(update={"from_run": names.split(",")})


def test_several_runs_are_found_each_by_its_name_a_beginning_or_a_folder_in_the_order_of_their_ids(
    trained: Callable[..., RunDir], tiny_npz: Path, tmp_path: Path
) -> None:
    a, b, c = trained("a-1"), trained("b-1"), trained("c-1")
    found = find_runs(several(tiny_npz, tmp_path, f"c,a-1,{b.path}"))
    assert [run.path for run in found] == [a.path, b.path, c.path]


def test_the_order_of_several_runs_is_no_other_command_and_another_set_is(
    trained: Callable[..., RunDir], plan_of: Planner
) -> None:
    for name in "abc":
        trained(f"{name}-1")
    plan, resolved, _ = plan_of("job=predict", "from_run=[b,a]")
    assert plan.from_run == [{"run_id": "a-1", "sha256": "00"}, {"run_id": "b-1", "sha256": "00"}]
    assert [Path(p).name for p in resolved.from_run or []] == ["a-1", "b-1"]
    again = plan_of("job=predict", "from_run=[a,b]")
    assert (again[0], again[1]) == (plan, resolved)
    others = [plan_of("job=predict", f"from_run={names}")[0].run_id for names in ("a", "[a,c]", "[a,b,c]")]
    assert len({plan.run_id, *others}) == 4


def test_a_list_of_one_is_that_run(trained: Callable[..., RunDir], plan_of: Planner) -> None:
    run = trained("a-1")
    one, several_of_one = plan_of("job=evaluate", "from_run=a"), plan_of("job=evaluate", "from_run=[a]")
    assert one[0] == several_of_one[0] and one[1].from_run == several_of_one[1].from_run == str(run.path)


@pytest.mark.parametrize("words", ["abc-1,abc", "abc-1,{folder}", "a,ab"])
def test_one_run_named_twice_is_a_config_error(
    trained: Callable[..., RunDir], tiny_npz: Path, tmp_path: Path, words: str
) -> None:
    run = trained("abc-1")
    with pytest.raises(ConfigError, match=r"^from_run=abc-1: is named twice\. Name each run once\.$"):
        find_runs(several(tiny_npz, tmp_path, words.format(folder=run.path)))


def test_the_faults_of_several_runs_are_told_at_once(trained: Callable[..., RunDir], tiny_npz: Path, tmp_path: Path) -> None:
    trained("a-1"), trained("b-1", finished=False), trained("c-1", job="predict")
    with pytest.raises(Faults) as caught:
        find_runs(several(tiny_npz, tmp_path, "a,b,c,zzz"))
    assert [type(f) for f in caught.value.members] == [PlanError, PlanError, ConfigError]
    assert [line.split(":")[0] for line in caught.value.lines] == ["from_run=b", "from_run=c", "from_run=zzz"]


def test_a_hundred_runs_are_one_ensemble_and_more_are_refused(
    trained: Callable[..., RunDir], tiny_npz: Path, tmp_path: Path
) -> None:
    first, names = trained("m000").path, [f"m{i:03d}" for i in range(101)]
    for name in names[1:]:
        shutil.copytree(first, first.with_name(name))
    plan = make_plan(several(tiny_npz, tmp_path, ",".join(names[:100])))[0]
    assert [source["run_id"] for source in plan.from_run] == names[:100]
    with pytest.raises(HpcaiError, match="must be text or a list of 1 to 100 texts"):
        config(tiny_npz, tmp_path, "job=evaluate", f"from_run=[{','.join(names)}]")


DIFFER = [
    ({"labels": ["yes", "no"]}, "labels (no,yes and yes,no)"),
    ({"labels": ["no", "yes", "maybe"]}, "labels (no,yes and no,yes,maybe)"),
    ({"input": {"channels": 3, "size": [8, 8]}}, "data.channels (1 and 3)"),
    ({"input": {"channels": 1, "size": [8, 9]}}, "data.image_size (8x8 and 8x9)"),
    ({"input": {"channels": 1, "size": [8, 8, 8]}}, "data.image_size (8x8 and 8x8x8)"),
]


@pytest.mark.parametrize(("other", "what"), DIFFER)
def test_runs_that_answer_other_questions_are_refused_with_both_names(
    trained: Callable[..., RunDir], plan_of: Planner, other: dict[str, Any], what: str
) -> None:
    trained("a-1")
    rundir.write_json(trained("b-1").model, MODEL | other)
    with pytest.raises(HpcaiError) as caught:
        plan_of("job=predict", "from_run=[b,a]")
    assert caught.value.lines == [f"from_run=a-1,b-1: differ in {what}. Name runs that answer one question."]


def test_runs_of_other_scaling_answer_together(trained: Callable[..., RunDir], plan_of: Planner) -> None:
    trained("a-1")
    rundir.write_json(trained("b-1").model, MODEL | {"input": {"channels": 1, "size": [8, 8], "mean": [9.0]}})
    assert len(plan_of("job=predict", "from_run=[b,a]")[0].from_run) == 2


DAMAGED = ["{", "[]", "null", '{"sha256": 5}', '{"sha256": "00", "labels": ["a"]}', '{"sha256": "0", "labels": 1, "input": 1}']


@pytest.mark.parametrize("text", DAMAGED)
def test_a_damaged_model_json_is_a_plan_error_that_names_its_run(
    trained: Callable[..., RunDir], plan_of: Planner, text: str
) -> None:
    trained("a-1"), trained("b-1").model.write_text(text)
    with pytest.raises(Faults) as caught:
        plan_of("job=predict", "from_run=[b,a]", "resources.nodes=2")
    assert [type(f) for f in caught.value.members] == [PlanError, PlanError]
    assert caught.value.lines[1].startswith("run=b-1: its model.json is damaged.")


def test_a_model_that_was_removed_is_called_gone(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"^run=a-1: its model\.json is gone\. Restore the file"):
        read_model(RunDir(tmp_path / "a-1"))


# --- runs that have not been trained yet


def test_a_member_of_a_chain_is_planned_before_its_first_has_run(plan_of: Planner, tiny_npz: Path, tmp_path: Path) -> None:
    later = tmp_path / "runs" / "a-1"
    chain = config(tiny_npz, tmp_path, "job=evaluate", f"from_run={later}")
    plan, resolved, files = make_plan(chain, pending=True)
    assert plan.from_run == [{"run_id": "a-1", "sha256": None}] and resolved.from_run == str(later) and files
    assert resolved.data.image_size is None
    with pytest.raises(HpcaiError, match="no such run"):
        make_plan(chain)
    with pytest.raises(HpcaiError, match="no such run"):  # a name alone says not where
        make_plan(config(tiny_npz, tmp_path, "job=evaluate", "from_run=a-1"), pending=True)


def test_planned_before_and_after_the_training_it_is_the_same_run(
    trained: Callable[..., RunDir], plan_of: Planner, tiny_npz: Path, tmp_path: Path
) -> None:
    half, whole = trained("a-1", finished=False), trained("b-1")
    chain = several(tiny_npz, tmp_path, f"{half.path},{whole.path}", "predict")
    before = make_plan(chain, pending=True)[0]
    assert [source["sha256"] for source in before.from_run] == [None, "00"]
    rundir.write_json(half.threshold, {})
    after = make_plan(chain)[0]
    assert [source["sha256"] for source in after.from_run] == ["00", "00"]
    assert (before.run_id, before.identity) == (after.run_id, after.identity)


def test_a_pending_run_s_faults_are_told_all_the_same(trained: Callable[..., RunDir], tiny_npz: Path, tmp_path: Path) -> None:
    trained("a-1", job="predict")
    wrong = config(tiny_npz, tmp_path, "job=evaluate", "from_run=a-1", "data.path=/nowhere")
    with pytest.raises(Faults) as caught:
        make_plan(wrong, pending=True)
    assert [type(f) for f in caught.value.members] == [PlanError, DataError]


def test_a_gather_takes_the_seed_of_its_folds(trained: Callable[..., RunDir], tiny_npz: Path, tmp_path: Path) -> None:
    run = trained("a-1")
    then = read_config(run).model_copy(update={"seed": 7})
    rundir.write_bytes(run.config, json.dumps(then.model_dump()).encode())
    for job, seed in (("gather", 7), ("evaluate", 0)):
        assert make_plan(config(tiny_npz, tmp_path, f"job={job}", "from_run=a"))[1].seed == seed


@pytest.mark.parametrize(("then", "now"), [(None, []), ({"run_id": "a", "sha256": "0"}, [{"run_id": "a", "sha256": "0"}])])
def test_a_plan_from_before_there_were_several_is_read(plan_of: Planner, tmp_path: Path, then: Any, now: Any) -> None:
    plan, run = plan_of()[0], RunDir(tmp_path)
    rundir.write_json(run.plan, plan.to_json() | {"from_run": then})
    assert read_plan(run) == replace(plan, from_run=now)


# --- one identity, many folders


def test_folders_of_one_identity_are_told_from_all_others_also_with_gaps(tmp_path: Path) -> None:
    for name in (
        "a-1",
        "a-1.2",
        "a-1.10",
        "a-1.9",
        "a-1.x",
        "a-1.02",
        "a-1.1",
        "a-1.0",
        "a-12",
        "a-1-2",
        "a-1.2.2",
        "a-1.٣",
        "b-1",
    ):
        (tmp_path / name).mkdir()
    assert [f.name for f in numbered(tmp_path / "a-1")] == ["a-1", "a-1.2", "a-1.9", "a-1.10"]
    assert numbered(tmp_path / "c-1") == numbered(tmp_path / "nowhere" / "a-1") == []


def test_after_folders_were_removed_the_newest_goes_on_and_anew_comes_after_it(plan_of: Planner) -> None:
    first = Path(plan_of()[0].run_dir)
    Path(f"{first}.3").mkdir(parents=True)
    assert Path(plan_of()[0].run_dir) == Path(f"{first}.3")
    assert Path(plan_of(anew=True)[0].run_dir) == Path(f"{first}.4")

"""predict.shards=N: N runs share the cases and one merges them: every case once, the bytes of one run, whatever is killed."""

from __future__ import annotations

import contextlib
import random
import shutil
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import Launcher, processes
from hypothesis import given
from hypothesis import strategies as st
from test_jobs_predict import SECRET, failed, predict, rows, write_images, write_listing
from training_kit import a_trained_run, again, finish, prepared, run_here, start, wait_until, write_npz

from hpcai import lease, rundir
from hpcai.cases import BLOCK, blocks_of, indices_of
from hpcai.config.check import load
from hpcai.context import Ranks, RunContext
from hpcai.errors import ConfigError, DataError, Faults, HpcaiError, PlanError, RunError
from hpcai.plan import make_plan
from hpcai.rundir import RunDir, read_json

IMAGES = "data.reader=images"


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return a_trained_run(tmp_path_factory)[1]


def complete(context: RunContext) -> RunDir:
    lease.append(context.dir, 1, 0, "end", code=0)
    return context.dir


def shard(words: list[str], number: int, of: int) -> RunDir:
    """One shard, done by hand in this process, with the end record that its worker would write."""
    config, context = prepared([*words, f"predict.shards={of}", f"predict.shard={number}"])
    again(config, context)
    return complete(context)


def merge_words(words: list[str], shards: list[RunDir]) -> list[str]:
    named = ",".join(f"'{run.path}'" for run in shards)
    return [*words, f"predict.shards={len(shards)}", f"predict.merge=[{named}]"]


def whole(words: list[str], shards: list[RunDir]) -> RunDir:
    return run_here(merge_words(words, shards))


def in_shards(words: list[str], of: int) -> tuple[RunDir, list[RunDir]]:
    shards = [shard(words, number, of) for number in range(1, of + 1)]
    return whole(words, shards), shards


def answer_of(run: RunDir) -> dict[str, Any]:
    """report.json without what is of the run and not of its cases."""
    return {k: v for k, v in read_json(run.report_json).items() if k not in ("run_id", "cost", "used", "provenance")}


def assert_alike(one: RunDir, other: RunDir) -> None:
    files = [[f.name for f in (*run.row_files("predict"), *run.failed_files())] for run in (one, other)]
    assert files[0] == files[1]
    for file in (*one.row_files("predict"), *one.failed_files(), one.threshold):
        assert file.read_bytes() == (other.path / file.relative_to(one.path)).read_bytes(), file.name
    assert one.together.exists() == other.together.exists()
    assert answer_of(one) == answer_of(other)


# --- whose a case is


@given(n=st.integers(0, 100 * BLOCK), shards=st.integers(1, 200))
def test_every_case_is_in_one_shard_and_no_shard_has_a_block_more_than_another(n: int, shards: int) -> None:
    parts = [blocks_of(n, number, shards) for number in range(1, shards + 1)]
    cases = [i for part in parts for block in part for i in indices_of(block, n)]
    assert sorted(cases) == list(range(n))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert blocks_of(n) == range(-(-n // BLOCK))


# --- the same bytes


@pytest.mark.parametrize("of", [2, 6])
def test_shards_merged_are_the_bytes_and_the_report_of_one_run(trained: RunDir, tmp_path: Path, of: int) -> None:
    folder = write_images(tmp_path / "images", 3 * BLOCK + 10, broken=(3, 70, 71, 190))
    words = predict(trained, folder, tmp_path / "runs", IMAGES)
    run, shards = in_shards(words, of)  # 6: more shards than blocks
    assert_alike(run_here(words), run)
    assert Counter(len(rows(s)) + len(failed(s)) for s in shards)[0] == max(0, of - 4)
    assert all(s.report_html.is_file() and SECRET not in s.report_html.read_text("utf-8") for s in (*shards, run))


def test_a_listing_with_patients_and_an_npz_shard_alike(trained: RunDir, tmp_path: Path) -> None:
    listing = write_listing(write_images(tmp_path / "images", BLOCK + 9))
    for words in (
        predict(trained, listing, tmp_path / "csv", "data.reader=csv", "data.patient_col=patient"),
        predict(trained, write_npz(tmp_path / "d.npz", {"train": 50, "val": 40, "test": 30}), tmp_path / "npz"),
    ):
        assert_alike(run_here(words), in_shards(words, 2)[0])


def test_an_ensemble_shards_alike_and_tells_its_gain_once(trained: RunDir, tmp_path: Path) -> None:
    twin = RunDir(Path(shutil.copytree(trained.path, tmp_path / "twin-00000000")))
    folder = write_images(tmp_path / "images", BLOCK + 9)
    words = predict(trained, folder, tmp_path / "runs", IMAGES)
    words[2] = f"from_run=['{trained.path}','{twin.path}']"
    run, shards = in_shards(words, 2)
    assert_alike(run_here(words), run)
    assert run.together.is_file() and not any(s.together.exists() for s in shards)
    assert len(rows(run)[0]["members"]) == 2


def test_ranks_beside_the_first_have_nothing_to_merge(trained: RunDir, tmp_path: Path) -> None:
    words = predict(trained, write_images(tmp_path / "images", 3), tmp_path / "runs", IMAGES)
    shards = [shard(words, number, 2) for number in (1, 2)]
    config, context = prepared(merge_words(words, shards))
    again(config, RunContext(context.dir, Ranks(rank=1, world_size=2)))
    assert not context.dir.rows.exists() and not context.dir.report_json.exists()


# --- what cannot be read


def test_a_shard_that_could_read_nothing_fails_nothing_but_all_of_them_do(trained: RunDir, tmp_path: Path) -> None:
    half = write_images(tmp_path / "half", 2 * BLOCK, broken=tuple(range(0, 2 * BLOCK, 2)))  # folder a, which comes first
    words = predict(trained, half, tmp_path / "runs", IMAGES)
    run, shards = in_shards(words, 2)
    assert [len(rows(s)) for s in shards] == [0, BLOCK] and len(failed(run)) == BLOCK
    assert read_json(shards[0].report_json)["answer"] == f"0 cases scored, {BLOCK} could not be read."
    assert_alike(run_here(words), run)
    none = write_images(tmp_path / "none", 5, broken=tuple(range(5)))
    with pytest.raises(DataError, match=r"not one of 5 images could be read\. failed\.rank0\.jsonl says why"):
        in_shards(predict(trained, none, tmp_path / "none-runs", IMAGES), 2)


# --- what does not belong together


@pytest.fixture(scope="module")
def parts(trained: RunDir, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], list[RunDir]]:
    """(words, two finished shards); leave them as they are."""
    folder = tmp_path_factory.mktemp("parts")
    words = predict(trained, write_images(folder / "images", BLOCK + 6, broken=(2,)), folder / "runs", IMAGES)
    return words, [shard(words, number, 2) for number in (1, 2)]


@pytest.fixture
def copies(parts: tuple[list[str], list[RunDir]], tmp_path: Path) -> list[RunDir]:
    """The shards, free to be damaged."""
    return [RunDir(Path(shutil.copytree(run.path, tmp_path / "copies" / run.path.name))) for run in parts[1]]


def refused(words: list[str], shards: list[RunDir], to: Path) -> HpcaiError:
    words = [*(w for w in words if not w.startswith("runs_dir=")), f"runs_dir={to}"]
    with pytest.raises(HpcaiError) as caught:
        whole(words, shards)
    assert SECRET not in str(caught.value) and len(caught.value.lines) == 1
    assert not list(to.rglob("report.json"))
    return caught.value


def lines_of(file: Path) -> list[dict[str, Any]]:
    return list(rundir.read_lines(file))


def test_what_is_no_finished_shard_of_this_prediction_is_named(
    parts: tuple[list[str], list[RunDir]], copies: list[RunDir], tmp_path: Path
) -> None:
    words, (one, two) = parts
    fault = refused(words, [two, one], tmp_path / "a")
    assert isinstance(fault, PlanError) and f"predict.shard=1/2: run {two.path.name}: is another one" in str(fault)
    assert "is not there" in str(refused(words, [one, RunDir(tmp_path / "gone")], tmp_path / "b"))
    lease.append(copies[1], 1, 0, "end", code=143)
    fault = refused(words, [one, copies[1]], tmp_path / "c")
    assert isinstance(fault, PlanError) and "has not finished (stopped)" in str(fault)


def test_shards_of_other_models_data_or_code_are_refused(
    parts: tuple[list[str], list[RunDir]], copies: list[RunDir], tmp_path: Path
) -> None:
    words, (one, _) = parts
    two = copies[1]
    kept = {file: file.read_bytes() for file in (two.plan, two.data, two.environment)}
    plan, data, environment = (read_json(file) for file in kept)
    for file, value, kind, said in (
        (two.plan, plan | {"from_run": [plan["from_run"][0] | {"sha256": "0" * 64}]}, PlanError, "made by other models"),
        (two.data, data | {"files": data["files"][1:]}, DataError, "the data has changed"),
        (two.environment, environment | {"code_sha256": "0"}, PlanError, "code has changed"),
        (two.environment, environment | {"versions": {"torch": "0"}}, PlanError, "versions have changed"),
    ):
        rundir.write_json(file, value)
        fault = refused(words, [one, two], tmp_path / said)
        assert isinstance(fault, kind) and said in str(fault) and two.path.name in str(fault)
        file.write_bytes(kept[file])


def test_a_case_twice_missing_or_of_another_shard_is_refused(
    parts: tuple[list[str], list[RunDir]], copies: list[RunDir], tmp_path: Path
) -> None:
    words, (_, two) = parts
    one = copies[0]
    kept = lines_of(one.rows_file("predict", 0))
    for n, (changed, said) in enumerate((
        ([*kept, kept[0]], "holds a case twice"),
        (kept[1:], "1 of its 64 cases have no row"),
        ([*kept[1:], lines_of(two.rows_file("predict", 0))[0]], "holds a case of another"),
        ([*kept[1:], kept[0] | {"case": SECRET}], "holds a case of another"),
        ([*kept, {"case": failed(one)[0]["case"], "label": None, "scores": [0.5, 0.5]}], "holds a case twice"),
    )):  # fmt: skip
        one.rows_file("predict", 0).unlink()
        rundir.append_lines(one.rows_file("predict", 0), changed)
        fault = refused(words, [one, two], tmp_path / f"to{n}")
        assert isinstance(fault, DataError) and said in str(fault) and f"predict.shard=1/2: run {one.path.name}" in str(fault)


@pytest.mark.parametrize("file", ["rows/predict.rank0.jsonl", "failed.rank0.jsonl"])
@pytest.mark.parametrize("text", ["{\n", "[]\n", f'{{"case": ["{SECRET}"]}}\n'])
def test_a_damaged_file_of_a_shard_is_named_with_its_run(
    parts: tuple[list[str], list[RunDir]], copies: list[RunDir], tmp_path: Path, file: str, text: str
) -> None:
    words, (_, two) = parts
    (copies[0].path / file).write_text(text)
    fault = refused(words, [copies[0], two], tmp_path / "to")
    assert isinstance(fault, RunError) and copies[0].path.name in str(fault)


# --- names


def test_one_run_alone_keeps_its_name_and_each_shard_has_its_own(trained: RunDir, tmp_path: Path) -> None:
    words = predict(trained, write_images(tmp_path / "images", 2), tmp_path / "runs", IMAGES)

    def name(*more: str) -> str:
        return make_plan(load([*words, *more]))[0].run_id

    assert name() == name("predict.shards=1") == name("predict.shards=1", "predict.shard=1")
    names = [name(f"predict.shards={n}", f"predict.shard={k}") for n in (2, 3) for k in range(1, n + 1)]
    assert len({name(), name("predict.shards=2"), name("predict.shards=3"), *names}) == 8
    assert name("predict.shards=2") == name("predict.shards=2", "predict.merge=[a,b]")


@pytest.mark.parametrize(("words", "said"), [
    (["predict.shards=2", "predict.shard=3"], "predict.shard=3: predict.shards=2. Ask for one of them, from 1."),
    (["predict.shard=0"], "predict.shard=0: must be at least 1."),
    (["predict.shards=0"], "predict.shards=0: must be at least 1."),
    (["predict.shards=2000"], "predict.shards=2000: must be at most 1000."),
    (["predict.shards=2", "predict.merge=[a]"], "predict.merge: 1 runs."),
    (["predict.shards=2", "predict.shard=1", "predict.merge=[a,b]"], "predict.merge: 2 runs."),
])  # fmt: skip
def test_shards_that_make_no_sense_are_refused(words: list[str], said: str) -> None:
    with pytest.raises((ConfigError, Faults)) as caught:
        load(["name=x", "job=predict", "from_run=x", "data.path=x", "data.identifiers=none", *words])
    assert said in str(caught.value)


# --- the launcher


def asked(trained: RunDir) -> list[str]:
    return ["name=june", "job=predict", f"from_run='{trained.path}'", "predict.shards=3"]


def lives(launch: Launcher) -> dict[str, int]:
    return {label: lease.last_life(run) for label, run in launch.members().items()}


LABELS = ["predict.shard=1/3", "predict.shard=2/3", "predict.shard=3/3", "predict"]


def test_one_command_is_the_shards_then_the_merge_and_the_same_command_again_starts_nothing(
    trained: RunDir, launch: Launcher
) -> None:
    words = asked(trained)
    dry = launch(*words, "--dry-run")
    assert [line.split()[-1] for line in dry.out.splitlines()[1:]] == LABELS and not (launch.runs / "sweeps").exists()
    done = launch(*words)
    assert (done.rc, done.err) == (0, ""), done.err
    members = launch.members()
    assert list(members) == LABELS and set(lives(launch).values()) == {1}
    ends = {label: lease.records(run, 1)[0][-1]["time"] for label, run in members.items()}
    assert lease.records(members["predict"], 1)[0][0]["time"] >= max(ends[label] for label in LABELS[:3])
    merged = members["predict"].path.name
    assert "3 of 3 shards completed" in done.out and f"{merged}  predict  completed" in done.out
    assert done.out.count("counted") == 1 and read_json(launch.sweep_dir().path / "results.json")["ranking"] == []
    again = launch(*words)
    assert again.rc == 0 and "4 finished" in again.out and set(lives(launch).values()) == {1}
    shown = launch("status", module="hpcai.cli", bare=True).out
    assert all(f"shard {n}/3, 3 cases" in shown for n in (1, 2, 3))
    alone = launch(*words, "predict.shard=3")
    assert alone.out.startswith("finished ")  # the words of one shard are that run


def test_a_shard_that_fails_cancels_the_merge_and_the_same_command_goes_on(trained: RunDir, launch: Launcher) -> None:
    words = asked(trained)
    assert launch(*words, "predict.shard=2").rc == 0  # by hand, before
    launch.job = {"fail": "data"}
    done = launch(*words)
    assert done.rc == 4 and [line.split(":")[0] for line in done.errors] == ["failed, code 4", "failed, code 4", "cancelled"]
    launch.job = {}
    done = launch("resume", launch.sweep_dir().path.name, module="hpcai.cli", bare=True)
    assert done.rc == 0, done.err
    assert list(lives(launch).values()) == [2, 1, 2, 1]


def test_anew_is_new_folders_from_the_first_shard_to_the_merge(trained: RunDir, launch: Launcher) -> None:
    words = asked(trained)
    assert launch(*words).rc == 0
    first = {run.path.name for run in launch.members().values()}
    assert launch(*words, "--anew").rc == 0
    assert {p.name for p in launch.runs.glob("june-*.2")} == {f"{name}.2" for name in first}
    plans = {p.name: p for p in launch.runs.glob("june-*.2")}
    (merge,) = [p for p in plans.values() if "merge: []" not in (p / "config.yaml").read_text("utf-8")]
    assert sum(f"/{name}\n" in (merge / "config.yaml").read_text("utf-8") for name in plans) == 3


def test_finished_shards_of_changed_code_are_refused_before_the_others_start(trained: RunDir, launch: Launcher) -> None:
    words = asked(trained)
    assert launch(*words, "predict.shard=1").rc == 0
    (one,) = launch.runs.glob("june-*")
    environment = read_json(one / "environment.json")
    rundir.write_json(one / "environment.json", environment | {"code_sha256": "0"})
    done = launch(*words)
    assert done.rc == 3 and f"run={one.name}: hpcai's code has changed" in done.err
    assert [p.name for p in launch.runs.glob("june-*")] == [one.name]


def test_a_pipeline_shards_its_prediction(launch: Launcher) -> None:
    done = launch("pipeline=[train,predict,evaluate]", "predict.shards=2")
    assert done.rc == 0, done.err
    members = launch.members()
    assert list(members) == ["train", "predict predict.shard=1/2", "predict predict.shard=2/2", "predict", "evaluate"]
    trained = members["train"].path.name
    assert all(read_json(run.plan)["from_run"][0]["run_id"] == trained for label, run in members.items() if label != "train")
    assert launch("job=predict", f"from_run={trained}", "predict.shards=2").out.count("finished") == 1


# --- killed


def kill(driver: subprocess.Popen[str], who: str, runs: Path, rng: random.Random) -> None:
    """SIGKILL to the driver, to all that it started too, or to the ranks of its members alone, in random order."""
    told = [r for folder in runs.glob("p-*") for rank in lease.outline(RunDir(folder), 1).values() for r in rank]
    ranks = {r["pid"] for r in told if r["event"] == "begin"}
    doomed = [p for p in processes(driver.pid) if who == "all" or (p.pid == driver.pid if who == "driver" else p.pid in ranks)]
    rng.shuffle(doomed)
    for process in doomed:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


@pytest.mark.slow
@pytest.mark.fault
@pytest.mark.parametrize("ranks", [1, 2])
def test_shards_killed_at_any_moment_end_with_every_case_once(trained: RunDir, tmp_path: Path, ranks: int) -> None:
    folder = write_images(tmp_path / "images", 8 * BLOCK + 5, 32, broken=(5, 77, 301))
    words = predict(trained, folder, tmp_path / "runs", IMAGES)
    peace, rng = run_here(words), random.Random(ranks)
    sharded = [*words, "predict.shards=3", f"resources.tasks_per_node={ranks}"]

    def written() -> int:
        parts = [f for f in (tmp_path / "runs").glob("p-*/rows/predict.rank*") if f.parent.parent != peace.path]
        return sum(f.read_bytes().count(b"\n") for f in parts)

    for who in ("members", "driver", "all"):
        at = written() + rng.randrange(1, 2 * BLOCK)
        with start(sharded) as driver:
            wait_until(lambda at=at: written() >= at, driver)
            kill(driver, who, tmp_path / "runs", rng)
    finish(sharded, timeout=300)
    folders = [RunDir(p) for p in (tmp_path / "runs").glob("p-*") if p != peace.path]
    (run,) = [r for r in folders if "merge: []" not in r.config.read_text("utf-8")]
    assert len(folders) == 4
    assert_alike(peace, run)
    done = [r["case"] for shard in folders if shard != run for r in (*rows(shard), *failed(shard))]
    assert len(done) == len(set(done)) == 8 * BLOCK + 5

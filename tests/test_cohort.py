"""cohort.py: one record a newborn, the same bytes whoever makes them; what is killed goes on."""

from __future__ import annotations

import json
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cohort_kit as kit
import jsonschema
import polars as pl
import pytest
from report_schema import SCHEMA

from hpcai import rundir
from hpcai.book import shelf
from hpcai.errors import DataError, PlanError, Stopped
from hpcai.report.internal import write_internal
from hpcai.rundir import RunDir
from hpcai.screening import cohort

ROWS = 1500  # 24 blocks of 64


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cohort, "BLOCK", kit.SMALL)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return kit.trained(tmp_path_factory.mktemp("fit") / "fit")


@pytest.fixture(scope="module")
def frame() -> pl.DataFrame:
    return kit.simulation(5, 0.002, laboratories=["A", "B"]).block(0).head(ROWS)


@pytest.fixture(scope="module")
def table(frame: pl.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("table") / "simulated.csv"
    frame.write_csv(file)
    return file


@pytest.fixture(scope="module")
def whole(source: RunDir, table: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """The cohort, screened in peace by one rank."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cohort, "BLOCK", kit.SMALL)
        cfg, run = kit.prepared(tmp_path_factory.mktemp("runs") / "whole", source, table)
        cohort.screen(cfg, run)
    return run.dir


def told(run: RunDir) -> dict[str, bytes]:
    """What must be equal: records, tallies, the whole's counts, screening.json."""
    kept = [
        *sorted(run.records.iterdir()),
        *sorted(run.tallies.iterdir()),
        *map(run.counted_file, cohort.COUNTED),
        run.screening,
    ]
    return {str(file.relative_to(run.path)): file.read_bytes() for file in kept}


def port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@contextmanager
def killed(processes: list[subprocess.Popen[str]], rng: random.Random) -> Iterator[list[subprocess.Popen[str]]]:
    """In any order at the end, also where the test's time is up: one that outlived it would write into the next."""
    try:
        yield processes
    finally:
        for process in rng.sample(processes, len(processes)):
            process.kill()
            process.communicate()


# ---- one record a newborn


def test_every_newborn_has_one_record_in_the_order_of_the_table(whole: RunDir, frame: pl.DataFrame) -> None:
    found = kit.records(whole)
    assert [r["sample"] for r in found] == frame["sample"].to_list()
    assert [r["row"] for r in found] == list(range(2, ROWS + 2))
    assert [f.name for f in cohort.block_files(whole)] == [f"{k:08d}.jsonl" for k in range(24)]


def test_a_record_shows_decisions_rules_probabilities_multiples_and_digests(whole: RunDir) -> None:
    record = kit.records(whole)[0]
    assert list(record) == [
        "sample", "row", "laboratory", "plate", "month", "line", "decision", "by_day", "status", "diseases", "multiples",
        "flags", "digests", "simulated",
    ]  # fmt: skip
    assert len(record["diseases"]) == 18 and record["status"] == "proposed" and record["simulated"] is True
    assert {"model", "threshold", "policy", "specimen", "rules.heidelberg2003"} <= set(record["digests"])
    assert set(record["diseases"]["MCAD"]["rules"]) == {"heidelberg2003", "california"}


def test_the_tally_counts_what_the_records_say(whole: RunDir) -> None:
    found, value = kit.records(whole), rundir.read_json(whole.screening)
    assert value["n"] == ROWS and value["simulated"] is True and value["kind"] == "cohort"
    referred = sum(r["decision"] == "refer" for r in found)
    assert {line["word"]: line["n"] for line in value["funnel"]["lines"]}["refer"] == referred > 0


@pytest.fixture(scope="module")
def shipped(source: RunDir, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """The shipped cohort with its controls, screened."""
    data = Path(cohort.__file__).parent.parent / "shipped" / "nbs_simulated"
    controls = f"screening.controls={json.dumps(str(data / 'controls.csv'))}"
    cfg, run = kit.prepared(tmp_path_factory.mktemp("shipped") / "run", source, data / "cohort.parquet", controls)
    cohort.screen(cfg, run)
    return run.dir


def test_screening_json_of_a_cohort_is_as_the_reports_schema_says(whole: RunDir, shipped: RunDir) -> None:
    part = {**SCHEMA["$defs"]["screening"], "$defs": SCHEMA["$defs"]}
    for run in (whole, shipped):
        errors = jsonschema.Draft202012Validator(part).iter_errors(rundir.read_json(run.screening))
        assert [f"{e.json_path}: {e.message}"[:200] for e in errors] == []


def test_nothing_of_a_plate_that_failed_its_controls_is_assessable(shipped: RunDir) -> None:
    plates = {(p["laboratory"], p["plate"]): p for p in rundir.read_json(shipped.screening)["plates"]["plates"]}
    failed = {place for place, plate in plates.items() if not plate["ok"]}
    assert 2 <= len(failed) < len(plates) / 4
    for record in kit.records(shipped):
        if (record["laboratory"], record["plate"]) in failed:
            assert {d["decision"] for d in record["diseases"].values()} == {"not_assessable"}
            assert any(flag.startswith("plate: controls of") for flag in record["flags"])


def test_a_laboratory_of_another_population_is_told_that_the_model_is_not_valid_there(shipped: RunDir) -> None:
    fits = {(f["laboratory"], f["month"]): f["verdict"] for f in rundir.read_json(shipped.screening)["fitness"]}
    assert "not_valid" in {verdict for (name, _), verdict in fits.items() if name == "simulated G"}
    silent = {place for place, verdict in fits.items() if verdict == "not_valid" and place[1]}
    assert silent
    for record in kit.records(shipped):
        if (record["laboratory"], record["month"]) in silent:
            assert all(d["probability"] is None for d in record["diseases"].values())


# ---- the same bytes, whoever makes them


@pytest.mark.parametrize("shards", [2, 5])
def test_shards_merged_are_byte_for_byte_the_run_in_one_piece(
    whole: RunDir, source: RunDir, table: Path, tmp_path: Path, shards: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cohort, "check_shard", lambda *_: None)  # made by hand here: its own tests are test_shards.py
    parts = []
    for number in range(shards, 0, -1):
        cfg, run = kit.prepared(tmp_path / f"s{number}", source, table, f"predict.shards={shards}", f"predict.shard={number}")
        cohort.screen(cfg, run)
        parts.insert(0, str(run.dir.path))
    cfg, run = kit.prepared(
        tmp_path / "merged", source, table, f"predict.shards={shards}", f"predict.merge={json.dumps(parts)}"
    )
    cohort.merge(cfg, run)
    assert told(run.dir) == told(whole)
    cohort.merge(cfg, run)  # again, after a kill
    assert told(run.dir) == told(whole) and not list(run.dir.path.rglob("*.tmp"))


def test_a_merge_refuses_a_shard_that_lacks_a_block_and_one_that_counted_another_cohort(
    source: RunDir, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cohort, "check_shard", lambda *_: None)
    parts = []
    for number in (1, 2):
        cfg, run = kit.prepared(tmp_path / f"s{number}", source, table, "predict.shards=2", f"predict.shard={number}")
        cohort.screen(cfg, run)
        parts.append(run.dir)
    names = json.dumps([str(p.path) for p in parts])
    cfg, run = kit.prepared(tmp_path / "merged", source, table, "predict.shards=2", f"predict.merge={names}")
    kept = parts[1].records_file(1).read_bytes()
    parts[1].records_file(1).unlink()
    with pytest.raises(DataError, match="1 of its 12 blocks have no records, 0 are another's"):
        cohort.merge(cfg, run)
    parts[1].records_file(1).write_bytes(kept)
    counted = parts[1].counted_file("survey")
    counted.write_bytes(counted.read_bytes().replace(b"1", b"2", 1))
    with pytest.raises(DataError, match=r"its survey\.json is another than shard 1's"):
        cohort.merge(cfg, run)
    assert not run.dir.records.exists()


@pytest.mark.slow
def test_two_ranks_make_the_bytes_of_one(whole: RunDir, source: RunDir, table: Path, tmp_path: Path) -> None:
    kit.prepared(tmp_path / "two", source, table, ranks=2)
    with killed(kit.ranks_of(tmp_path / "two", 2, port()), random.Random(0)) as processes:
        assert [p.wait() for p in processes] == [0, 0]
    assert told(RunDir(tmp_path / "two")) == told(whole)


@pytest.mark.slow
@pytest.mark.mpi
def test_ranks_that_mpiexec_starts_make_the_bytes_of_one(whole: RunDir, source: RunDir, table: Path, tmp_path: Path) -> None:
    kit.prepared(tmp_path / "mpi", source, table, ranks=2)
    start = [
        "mpiexec",
        "--allow-run-as-root",
        "--oversubscribe",
        "-n",
        "2",
        sys.executable,
        kit.__file__,
        str(tmp_path / "mpi"),
    ]
    done = subprocess.run(start, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stderr
    assert told(RunDir(tmp_path / "mpi")) == told(whole)


# ---- stopped, killed


def test_a_cohort_asked_to_stop_keeps_its_blocks_and_goes_on(
    whole: RunDir, source: RunDir, table: Path, tmp_path: Path
) -> None:
    cfg, run = kit.prepared(tmp_path / "run", source, table)
    run.stop.signum = signal.SIGTERM
    with pytest.raises(Stopped, match="stopped while it counted"):
        cohort.screen(cfg, run)
    run.stop.signum = None
    cohort.counted(cohort.Ground.open(cfg, run), cohort_group())
    run.stop.signum = signal.SIGTERM
    for done in (1, 2):
        with pytest.raises(Stopped):
            cohort.screen(cfg, run)
        assert len(cohort.block_files(run.dir)) == done
    run.stop.signum = None
    cohort.screen(cfg, run)
    assert told(run.dir) == told(whole)


def cohort_group() -> Any:
    import torch

    from hpcai.comm import Group

    return Group(0, 1, torch.device("cpu"))


def test_a_block_that_is_there_is_not_made_again(whole: RunDir, source: RunDir, table: Path, tmp_path: Path) -> None:
    cfg, run = kit.prepared(tmp_path / "run", source, table)
    cohort.screen(cfg, run)
    kept = {f: f.stat().st_mtime_ns for f in cohort.block_files(run.dir)}
    gone = run.dir.records_file(7)
    gone.unlink()
    cohort.screen(cfg, run)
    assert {f: f.stat().st_mtime_ns for f in kept if f != gone} == {f: t for f, t in kept.items() if f != gone}
    assert told(run.dir) == told(whole)


@pytest.mark.slow
@pytest.mark.fault
@pytest.mark.parametrize("ranks", [1, 2])
def test_killed_ranks_go_on_and_end_with_the_same_bytes(
    whole: RunDir, source: RunDir, table: Path, tmp_path: Path, ranks: int
) -> None:
    run, rng, hits = RunDir(tmp_path / "run"), random.Random(ranks), 0
    kit.prepared(run.path, source, table, ranks=ranks)

    def written() -> int:
        """Files that tell how far it is: what ranks counted, then a block each."""
        return (
            len(list(run.path.glob("survey*.json"))) + len(list(run.path.glob("plates*.json"))) + len(cohort.block_files(run))
        )

    for at in [1, *sorted(rng.sample(range(3, 22), 2))]:
        with killed(kit.ranks_of(run.path, ranks, port()), rng) as processes:
            while written() < at and all(p.poll() is None for p in processes):
                time.sleep(0.001)
            time.sleep(rng.random() * 0.05)
            hits += sum(p.poll() is None for p in processes)
    assert hits
    with killed(kit.ranks_of(run.path, ranks, port()), rng) as last:
        assert [p.wait() for p in last] == [0] * ranks
    assert told(run) == told(whole) and not list(run.path.rglob("*.tmp"))


# ---- bad input


def test_hostile_rows_are_not_assessable_and_the_rest_is_finished(source: RunDir, frame: pl.DataFrame, tmp_path: Path) -> None:
    rows = frame.head(200).cast({"C8": pl.String, "Phe": pl.String, "age_h": pl.String}).to_dicts()
    rows[3]["C8"], rows[4]["C8"], rows[5]["C8"] = "nan", "inf", "-3"
    rows[6]["age_h"], rows[7]["sample"], rows[8]["plate"] = "-5", rows[9]["sample"], "=1+1"
    file = tmp_path / "t.csv"
    pl.DataFrame(rows, infer_schema_length=None).write_csv(file)
    cfg, run = kit.prepared(tmp_path / "run", source, file)
    cohort.screen(cfg, run)
    found = kit.records(run.dir)
    assert len(found) == 200
    for i in (3, 4, 5):
        assert found[i]["diseases"]["MCAD"]["decision"] != "clear" and any(f.startswith("C8: ") for f in found[i]["flags"])
    for i in (7, 9):
        assert found[i]["line"] == "clear for 0 of 18; not assessable: all (row cannot be used)"
    assert found[8]["plate"].startswith("'=") and any(f.startswith("age_h: ") for f in found[6]["flags"])


def test_a_cohort_without_diagnoses_tells_no_truth(source: RunDir, frame: pl.DataFrame, tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    frame.head(200).drop("diagnosis").write_csv(file)
    cfg, run = kit.prepared(tmp_path / "run", source, file)
    cohort.screen(cfg, run)
    value = rundir.read_json(run.dir.screening)
    assert value["affected"] == 0 and all(t["missed"] == t["found"] == t["false"] == 0 for t in value["total"])


def test_a_laboratory_too_small_to_be_known_is_judged_by_rules_alone(
    source: RunDir, frame: pl.DataFrame, tmp_path: Path
) -> None:
    file = tmp_path / "t.csv"
    frame.head(300).with_columns(
        pl.when(pl.int_range(pl.len()) < 20).then(pl.lit("simulated new")).otherwise("laboratory").alias("laboratory")
    ).write_csv(file)  # fmt: skip
    cfg, run = kit.prepared(tmp_path / "run", source, file)
    cohort.screen(cfg, run)
    found = kit.records(run.dir)[:20]
    assert all(d["probability"] is None and d["called"] is None for r in found for d in r["diseases"].values())
    assert all("laboratory does not fit the model" in r["flags"] for r in found)


def test_shadow_shows_the_laboratorys_own_decision_and_needs_it(source: RunDir, frame: pl.DataFrame, tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    frame.head(100).with_columns(pl.lit("refer").alias("decision")).write_csv(file)
    cfg, run = kit.prepared(tmp_path / "run", source, file, "screening.mode=shadow")
    cohort.screen(cfg, run)
    assert {(r["own"], r["status"]) for r in kit.records(run.dir)} == {("refer", "shadow")}
    bare = tmp_path / "bare.csv"
    frame.head(100).drop("decision").write_csv(bare)
    with pytest.raises(DataError, match="the table has no column decision"):
        cohort.screen(*kit.prepared(tmp_path / "run2", source, bare, "screening.mode=shadow"))


def test_a_model_of_another_dictionary_is_refused(table: Path, tmp_path: Path) -> None:
    source = kit.trained(tmp_path / "fit")
    text = source.screening_model.read_text().replace(kit.model().dictionary_digest, "0" * 64)
    source.screening_model.write_text(text)
    with pytest.raises(DataError, match="another dictionary"):
        cohort.screen(*kit.prepared(tmp_path / "run", source, table))


def test_a_policy_that_was_changed_meanwhile_does_not_decide_the_rest(
    source: RunDir, frame: pl.DataFrame, tmp_path: Path
) -> None:
    own, file = tmp_path / "own.yaml", tmp_path / "t.csv"
    own.write_bytes(shelf.file_of("policy", "default").read_bytes())
    frame.head(200).write_csv(file)
    cfg, run = kit.prepared(tmp_path / "run", source, file, f"screening.policy={json.dumps(str(own))}")
    cohort.screen(cfg, run)
    assert len(kit.records(run.dir)) == 200
    run.dir.records_file(2).unlink()
    own.write_text(own.read_text().replace("rule_positive: refer", "rule_positive: repeat"))
    with pytest.raises(DataError, match=r"own\.yaml was changed since the run was planned"):
        cohort.screen(cfg, run)
    own.unlink()
    with pytest.raises(DataError, match=r"^screening: own\.yaml is gone or cannot be read"):
        cohort.screen(cfg, run)
    assert not run.dir.records_file(2).exists()


def test_newborns_have_no_page_of_pictures(source: RunDir, table: Path, tmp_path: Path) -> None:
    _, run = kit.prepared(tmp_path / "run", source, table)
    with pytest.raises(PlanError, match=r"is of newborns, who have no pictures\. hpcai explain RUN CASE"):
        write_internal(run.dir, None)
    assert not run.dir.report_internal.exists()


def test_progress_is_told_in_newborns(whole: RunDir, frame: pl.DataFrame) -> None:
    notes = [json.loads(line) for line in next(whole.lives.glob("*/rank0.jsonl")).read_text().splitlines()]
    steps = [note["step"] for note in notes if note.get("step") is not None]
    assert steps[0] == kit.SMALL and steps[-1] == len(frame) and steps == sorted(steps)


# ---- parts


def test_truth_is_read_off_the_diagnosis_and_unknown_where_there_is_none(frame: pl.DataFrame) -> None:
    panel = kit.simulation(0, 0).panel
    some = frame.head(4).with_columns(pl.Series("diagnosis", ["", "MCAD", "something else", "unaffected"]))
    assert cohort.truth_of(panel, kit.batch_of(some)).tolist() == [-1, panel.names.index("MCAD"), -2, -1]
    assert cohort.truth_of(panel, kit.batch_of(some.drop("diagnosis"))).tolist() == [-2] * 4


@pytest.mark.parametrize(("blocks", "shards"), [(10, 3), (2, 5), (0, 2), (7, 1)])
def test_shards_have_each_block_once(blocks: int, shards: int) -> None:
    parts = [list(cohort.striped(range(blocks), s, shards)) for s in range(1, shards + 1)]
    assert sorted(block for part in parts for block in part) == list(range(blocks))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_what_a_kill_left_half_written_is_swept(source: RunDir, table: Path, tmp_path: Path) -> None:
    cfg, run = kit.prepared(tmp_path / "run", source, table)
    run.dir.records.mkdir()
    for name in ("records/.00000003.jsonl", ".survey.rank1.json", ".plates.json", ".screening.json"):
        (run.dir.path / f"{name}.host-1.tmp").write_bytes(b'{"sam')
    cohort.screen(cfg, run)
    assert not list(run.dir.path.rglob("*.tmp"))

"""`hpcai verify`: real runs, then a byte here and there."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import Launcher, until
from run_folders import make_run, make_sweep
from test_jobs_predict import SECRET, write_images
from training_kit import a_trained_run

from hpcai import lease, rundir, seal, verification
from hpcai.cli import main
from hpcai.report import write_report
from hpcai.rundir import RunDir
from hpcai.verification import verify

Said = Callable[..., tuple[list[str], list[str]]]


@pytest.fixture(scope="module")
def launcher(tiny_npz: Path, package: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    launcher = Launcher(tiny_npz, tmp_path_factory.mktemp("home"), package)
    yield launcher
    launcher.clean()


@pytest.fixture(scope="module")
def trained(launcher: Launcher) -> RunDir:
    """A finished training on two ranks."""
    done = launcher("name=two", "resources.tasks_per_node=2")
    assert done.rc == 0, done.err
    return launcher.run_dir("two")


@pytest.fixture
def run(trained: RunDir, tmp_path: Path) -> RunDir:
    """A copy of it, elsewhere."""
    return RunDir(Path(shutil.copytree(trained.path, tmp_path / "runs" / trained.path.name)))


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Said:
    def call(code: int, *words: str) -> tuple[list[str], list[str]]:
        assert main(["verify", *words]) == code
        out, err = capsys.readouterr()
        assert "Traceback" not in err and "a fault of our own" not in err
        return out.splitlines(), err.splitlines()

    return call


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_a_run_that_is_as_it_was_is_told_so_with_its_seal(trained: RunDir, said: Said) -> None:
    out, err = said(0, str(trained.path))
    assert err == [] and out[0] == f"seal  {seal.seal_of(trained.manifest.read_bytes())}"
    assert "is as it was" in out[1] and "1 of 1 inputs" in out[1]
    page = trained.report_html.read_text()
    assert f'@top-center {{ content: "seal\\20 {out[0].removeprefix("seal  ")}"' in page  # in print, on each page
    assert out[0].removeprefix("seal  ") not in trained.report_json.read_text()


def test_a_moved_run_verifies_with_the_seal_off_its_page(run: RunDir, said: Said) -> None:
    sealed = verify(run).seal
    groups = " ".join(sealed[i : i + 8].upper() for i in range(0, 64, 8))
    assert said(0, str(run.path), "--seal", groups)[1] == []
    _, err = said(4, str(run.path), "--seal", sealed[::-1])
    assert len(err) == 1 and "is not the seal of this run" in err[0]
    assert "is no seal" in said(2, str(run.path), "--seal", "abc")[1][0]


def test_json_has_every_fact(run: RunDir, said: Said) -> None:
    flip(run.config, 3)
    (run.rows / "more.jsonl").write_text("")
    run.model.unlink()
    out, err = said(4, str(run.path), "--json")
    told = json.loads("\n".join(out))
    assert told["ok"] is False and len(err) == 3
    assert (told["changed"], told["missing"], told["added"]) == (["config.yaml"], ["model.json"], ["rows/more.jsonl"])
    assert told["inputs"] == {"good": 1, "changed": [], "unreachable": 0}


def test_any_byte_of_any_file_is_found_and_its_file_named(run: RunDir) -> None:
    """Of each file a byte drawn by chance; what nothing may say of, by rule, is empty here."""
    rng = random.Random(1)
    files = {name: path for name, path in seal.files_of(run).items() if path.stat().st_size and not name.startswith("code/")}
    files |= {"code/hpcai/seal.py": run.code / "hpcai/seal.py"}
    assert {"use.rank1.json", "lives/0001/rank1.jsonl", "lives/0001/owner.json", "manifest.json", "report.html"} <= files.keys()
    for name, path in files.items():
        at = rng.randrange(path.stat().st_size)
        flip(path, at)
        assert ("changed", name) in verify(run).faults, f"{name} at {at}"
        flip(path, at)
    assert verify(run).ok


@pytest.mark.parametrize("name", ["report.html", "rows/test.rank0.jsonl", "lives/0001/rank1.jsonl", "logs/rank1.log"])
def test_what_is_missing_is_named(run: RunDir, said: Said, name: str) -> None:
    (run.path / name).unlink()
    _, err = said(4, str(run.path))
    assert any(f"{name} is missing" in line for line in err)


def test_lines_after_a_ranks_end_are_seen_and_a_log_may_grow(run: RunDir) -> None:
    with run.log(0).open("a") as f:
        f.write("more\n")
    assert verify(run).ok
    lease.append(run, 1, 0, "progress", step=1)
    assert verify(run).faults == [("changed", "lives/0001/rank0.jsonl")]


def test_an_end_record_made_anew_does_not_hide_a_changed_manifest(run: RunDir) -> None:
    flip(run.config, 3)
    sealed = verify(run).seal
    anew = seal.write(run)
    told = verify(run, sealed)
    assert told.seal == anew and ("changed", "manifest.json") in told.faults and told.others


def test_a_page_made_for_other_numbers_is_found(run: RunDir) -> None:
    text = run.report_html.read_text()
    assert "0 restarts" not in text
    run.report_html.write_text(text.replace("</main>", "<p>Approved.</p></main>"))
    assert verify(run).faults == [("changed", "report.html")]


def test_a_page_of_other_code_is_not_judged_and_exits_3(run: RunDir, said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification.provenance, "code_digest", lambda: "other")
    monkeypatch.setattr(verification.report, "rendered", lambda run, sealed: b"another page")
    _, err = said(3, str(run.path))
    assert len(err) == 1 and "PYTHONPATH=RUN/code" in err[0]


def test_names_that_are_not_ours_are_not_said(run: RunDir, said: Said) -> None:
    for name in (f"{SECRET}.png", f"rows/{SECRET}.dcm", f"{SECRET}/x.json", "MUELLER.json"):
        (run.path / name).parent.mkdir(exist_ok=True)
        (run.path / name).write_text("x")
    _, err = said(4, str(run.path))
    assert len(err) == 4 and SECRET not in "".join(err) and "MUELLER" not in "".join(err)
    assert sum("a file in rows/ was not there" in line for line in err) == 1


def test_changed_inputs_are_told_by_number(trained: RunDir, tmp_path: Path, said: Said) -> None:
    run = RunDir(Path(shutil.copytree(trained.path, tmp_path / "x-1")))
    data = rundir.read_json(run.data)
    copies = [write_images(tmp_path / "images", 3)]
    files = sorted(copies[0].rglob("*.*g"))
    data["files"] = [{"path": str(f), "bytes": f.stat().st_size, "sha256": seal.digest(f)["sha256"]} for f in files]  # type: ignore[index]
    rundir.write_json(run.data, data)
    write_report(run)
    flip(files[1], 20)
    files[2].unlink()
    told = verify(run)
    assert (told.good_inputs, told.changed_inputs, told.unreachable_inputs) == (1, [2], 1)
    _, err = said(4, str(run.path))
    assert any("of the 3 inputs that data.json lists number 2 was changed" in line for line in err) and SECRET not in "".join(
        err
    )


# --- what cannot be verified


def test_an_older_run_and_one_that_has_not_finished_exit_3_with_what_to_do(tmp_path: Path, said: Said) -> None:
    make_run(tmp_path / "old-1")
    assert "has no manifest.json" in said(3, str(tmp_path / "old-1"))[1][0]
    make_run(tmp_path / "stopped-1", "stopped")
    assert "hpcai resume stopped-1" in said(3, str(tmp_path / "stopped-1"))[1][0]
    make_run(tmp_path / "running-1", "running")
    assert "hpcai wait running-1" in said(3, str(tmp_path / "running-1"))[1][0]


def test_a_sweep_is_refused_with_its_members(tmp_path: Path, said: Said) -> None:
    members = [make_run(tmp_path / "m-1"), make_run(tmp_path / "m-2")]
    sweep = make_sweep(tmp_path, members)
    assert "m-1, m-2" in said(2, sweep.id, "--runs-dir", str(tmp_path))[1][0]


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"version": 1, "files": {"config.yaml": 3}}', "{" * 10**5, "\x00"])
def test_a_manifest_of_any_form_is_named(run: RunDir, text: str) -> None:
    run.manifest.write_text(text)
    assert ("changed", "manifest.json") in verify(run).faults


# --- other jobs, kills and ranks


def test_runs_of_a_sweep_verify_though_they_share_their_code(launcher: Launcher) -> None:
    done = launcher("name=grid", "seed=0,1", "trainer.epochs=1", "-m")
    assert done.rc == 0, done.err
    for run in launcher.members().values():
        assert verify(run).ok
    ledger = [json.loads(line) for line in (launcher.runs / "ledger.jsonl").read_text().splitlines()]
    assert {run.path.name for run in launcher.members().values()} <= {line["run_id"] for line in ledger}
    flip(next(iter(launcher.members().values())).code / "hpcai/__init__.py", 4)
    for run in launcher.members().values():  # one file, by hard links
        assert verify(run).faults == [("changed", "code/hpcai/__init__.py")]


def test_a_prediction_on_two_ranks_and_an_evaluation_verify(
    launcher: Launcher, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    data, model = a_trained_run(tmp_path_factory)
    images = write_images(tmp_path / "images", 150, broken=(3, 70))
    words = [
        f"from_run='{model.path}'",
        "resources.cpus_per_task=1",
        "resources.tasks_per_node=2",
        f"runs_dir='{launcher.runs}'",
    ]
    done = launcher(
        "name=pred", "job=predict", "data.identifiers=none", "data.reader=images", f"data.path='{images}'", *words, bare=True
    )
    assert done.rc == 0, done.err
    done = launcher("name=eval", "job=evaluate", "data.identifiers=none", f"data.path='{data}'", *words, bare=True)
    assert done.rc == 0, done.err
    for name in ("pred", "eval"):
        told = verify(launcher.run_dir(name))
        assert told.ok and not told.unsure and not told.unreachable_inputs
    for weights in model.checkpoints.glob("*.safetensors"):
        flip(weights, 500)
    told = verify(launcher.run_dir("pred"))
    assert told.faults == [] and len(told.others) == 1 and "its weights are not those" in told.others[0]
    for weights in model.checkpoints.glob("*.safetensors"):
        flip(weights, 500)


@pytest.mark.fault
def test_a_run_that_was_killed_and_went_on_verifies(launcher: Launcher) -> None:
    words = ("name=killed", "trainer.max_steps=60", "trainer.epochs=100", "trainer.checkpoint_every=3")
    started = launcher.start(*words)
    until(lambda: any(launcher.runs.glob("killed-*/checkpoints/step-*.json")))
    for process in launcher.ranks(launcher.run_dir("killed")):
        process.kill()
    assert started.wait().rc != 0
    assert launcher(*words).rc == 0
    run = launcher.run_dir("killed")
    assert lease.last_life(run) == 2 and verify(run).ok
    assert launcher(*words).rc == 0 and verify(run).ok  # shown again, nothing written


def test_help_is_printed_and_two_runs_are_refused(said: Said) -> None:
    assert said(0, "--help")[0][0].startswith("usage: hpcai verify RUN")
    assert "2 names" in said(2, "a", "b")[1][0]
    assert "--seal" in said(2, "a", "--seal")[1][0]

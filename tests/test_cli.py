"""`hpcai VERB`: every verb of the table answers, and what is wrong is one line."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from hpcai.cli import VERBS, main
from hpcai.config.folder import shipped

HPCAI = Path(sys.executable).parent / "hpcai"


def test_help_lists_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["--help"], ["-h"], ["help"]):
        assert main(words) == 0
        out = capsys.readouterr().out
        assert [line.split()[0] for line in out.splitlines()[1:]] == list(VERBS)
        assert len({line.index(text) for line, (text, _) in zip(out.splitlines()[1:], VERBS.values())}) == 1


def test_an_unknown_verb_is_exit_2_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chek"]) == 2
    assert capsys.readouterr().err == "hpcai chek: unknown verb. Did you mean check?\n"


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_refuses_an_unknown_option_with_one_line(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--nonsense"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("--nonsense: unknown option.") and err.count("\n") == 1


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb not in ("run", "plan", "check")])
def test_every_verb_on_runs_has_help_with_its_options(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    for word in ("--help", "-h"):
        assert main([verb, word]) == 0
        out, err = capsys.readouterr()
        assert err == "" and out.startswith(f"usage: hpcai {verb} ") and "--runs-dir DIR" in out and "--json" in out
        assert all(len(line) <= 128 for line in out.splitlines())


@pytest.mark.parametrize(("fault", "code", "said"), [
    (KeyboardInterrupt(), 130, ""),
    (OSError(28, "No space left"), 5, "hpcai status: No space left. Mend the disk or its rights, then try again.\n"),
    (ZeroDivisionError("secret-patient-4711"), 1, "a fault of our own. Please report it.\n"),
])  # fmt: skip
def test_whatever_goes_wrong_is_one_line_and_no_traceback(
    fault: BaseException, code: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(argv: list[str]) -> int:
        raise fault

    monkeypatch.setitem(VERBS, "status", ("", fail))
    assert main(["status"]) == code
    out, err = capsys.readouterr()
    assert out == "" and err.endswith(said) and err.count("\n") <= 1 and "secret" not in err


@pytest.mark.slow
def test_check_all_plans_every_experiment_on_every_cluster(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--all"]) == 0
    lines = capsys.readouterr().out.splitlines()
    found = shipped()
    pairs = {f"{e} on {c}" for e in found["experiment"] for c in found["cluster"]}
    assert {re.sub(r"^ok +", "", line) for line in lines if line.startswith("ok")} >= pairs


@pytest.mark.parametrize(("words", "code", "start"), [
    (["check"], 2, "hpcai check: checks nothing."),
    (["check", "--config-dir"], 2, "--config-dir: names no folder."),
    (["check", "--config-dir", "/nowhere", "--all"], 2, "config_dir=/nowhere: no such folder."),
    (["check", "+experiment=smok"], 2, "experiment=smok: unknown. Did you mean smoke?"),
    (["check", "+experiment=smoke", "trainer.lr=-1"], 2, "trainer.lr=-1: must be greater than 0."),
    (["check", "+experiment=smoke", "resources.nodes=9"], 3, "resources.nodes=9: "),
])  # fmt: skip
def test_what_check_finds_is_one_line_and_the_code(
    words: list[str], code: int, start: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == code
    err = capsys.readouterr().err
    assert err.startswith(start) and err.count("\n") == 1


@pytest.mark.skipif(not HPCAI.exists(), reason="hpcai is not installed as a script")
def test_the_installed_script_gives_the_exit_code_and_survives_a_broken_pipe() -> None:
    assert subprocess.run([HPCAI, "chek"], capture_output=True).returncode == 2
    done = subprocess.run(["bash", "-c", f"set -o pipefail; '{HPCAI}' run --help | head -1"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith("hpcai: ")

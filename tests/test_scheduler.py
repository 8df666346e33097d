"""Slurm is asked once and patiently: what it says is read whatever stands round it, and its silence never ends a job."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from fake_slurm import FakeSlurm, past, row
from hypothesis import given
from hypothesis import strategies as st

from hpcai import scheduler
from hpcai.scheduler import Answer, Job, ask, words

DOWN = "slurm_load_jobs error: Unable to contact slurm controller (connect failure)"  # after 18 s
NO_DBD = "sacct: error: Problem talking to the database: Connection refused"
NOISE = st.text(max_size=200)


@pytest.fixture
def paper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    return FakeSlurm.on(tmp_path, monkeypatch)


def until(condition: Callable[[], Any], timeout: float = 20.0) -> None:
    limit = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < limit, "nothing came"
        time.sleep(0.01)


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


# --- one question


def test_any_number_of_jobs_is_one_squeue_and_one_sacct(paper: FakeSlurm) -> None:
    paper.queue(*(row(str(i), "RUNNING") for i in range(1, 251)))
    paper.history(*(past(str(i), "COMPLETED") for i in range(251, 501)))
    answer = scheduler.look(str(i) for i in range(1, 501))
    assert answer.queue and answer.accounting and answer.why == ""
    assert {id for id, job in answer.jobs.items() if job.active} == {str(i) for i in range(1, 251)}
    assert {job.state for job in answer.jobs.values()} == {"RUNNING", "COMPLETED"}
    assert [call[0] for call in paper.calls()] == ["squeue", "sacct"]


def test_accounting_is_not_asked_about_jobs_that_run_nor_where_nobody_wants_it(paper: FakeSlurm) -> None:
    paper.queue(row("7", "RUNNING"))
    assert scheduler.look(["7"]) == Answer({"7": Job("7", "RUNNING", name="wrap")}, queue=True, accounting=False)
    assert scheduler.look(["7", "8"], history=False).jobs.keys() == {"7"}
    assert paper.calls("sacct") == []
    paper.history(past("8", "TIMEOUT"), past("9", "TIMEOUT"))
    assert scheduler.look(["7", "8", "9"], history={"7", "9"}).jobs.keys() == {"7", "9"}
    assert "--jobs=9" in paper.calls("sacct")[0]


def test_ten_thousand_jobs_are_asked_for_in_one_call_and_a_hundred_thousand_in_several(paper: FakeSlurm) -> None:
    paper.says("squeue", code=1)
    scheduler.look((str(48_000_000 + i) for i in range(10_000)), history=False)
    assert len(paper.calls("squeue")) == 1
    parts = list(ask._parts([str(48_000_000 + i) for i in range(100_000)]))
    assert 1 < len(parts) < 12
    assert max(map(len, parts)) < 128 * 1024
    assert [id for part in parts for id in part.split(",")] == [str(48_000_000 + i) for i in range(100_000)]


def test_an_array_is_asked_for_once_by_its_own_number(paper: FakeSlurm) -> None:
    scheduler.look([f"12_{i}" for i in range(100)] + ["12"])
    assert "--jobs=12" in paper.calls("squeue")[0]
    assert "--jobs=12" in paper.calls("sacct")[0]


@pytest.mark.parametrize("id", ["", "x", "-1", "7;rm", "--me", "7 8", "7_[1-3]", "7.0", "7+1", "None", "٧", "7\n", "9" * 40])
def test_what_is_no_job_is_never_asked_for_and_never_gone(paper: FakeSlurm, id: str) -> None:
    answer = scheduler.look([id])
    assert paper.calls() == []
    assert answer.jobs == {} and not scheduler.gone(answer, id)


def test_jobs_of_hidden_partitions_and_recently_ended_ones_are_seen(paper: FakeSlurm) -> None:
    paper.queue(row("7", "TIMEOUT", reason="TimeLimit"))
    assert scheduler.look(["7"], history=False).jobs["7"].state == "TIMEOUT"
    assert {"--all", "--states=all"} <= set(paper.calls("squeue")[0])


def test_only_own_jobs_are_asked_for_where_all_are_ones_own(paper: FakeSlurm) -> None:
    scheduler.look(["7"], mine=True)
    assert f"--user={os.getuid()}" in paper.calls("squeue")[0]


def test_nothing_in_a_profile_or_a_surrounding_job_changes_the_question(
    paper: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SQUEUE_STATES", "SQUEUE_FORMAT", "SACCT_FORMAT", "SLURM_TIME_FORMAT", "SLURM_JOB_ID", "SCANCEL_INTERACTIVE"):
        monkeypatch.setenv(name, "relative")
    monkeypatch.setenv("SLURM_CLUSTERS", "here")
    scheduler.look(["7"])
    scheduler.cancel(["7"])
    for program in ("squeue", "sacct", "scancel"):
        told = {"SLURM_CONF": os.environ["SLURM_CONF"], "SLURM_CLUSTERS": "here"}
        assert paper.seen(program) == {**told, "SLURM_TIME_FORMAT": "%s", "SLURM_BITSTR_LEN": "0"}


# --- its answer


def test_a_waiting_job_has_its_reason_and_when_slurm_expects_it_to_start(paper: FakeSlurm) -> None:
    paper.queue(
        row("7", "PENDING", reason="Priority", start=1_800_000_000, end=1_800_003_600, submit=1_790_000_000, name="a b")
    )
    job = scheduler.look(["7"]).jobs["7"]
    assert job == Job("7", "PENDING", "Priority", 1_800_000_000, 1_800_003_600, 1_790_000_000, name="a b")
    assert job.active and job.waits


@pytest.mark.parametrize("text", ["na|me\n8|RUNNING|x", "8 RUNNING", "é\x00\x1f", "@8@RUNNING@", "%i", "", "\n\n", "a" * 4000])
def test_names_and_reasons_may_hold_anything(paper: FakeSlurm, text: str) -> None:
    paper.queue(row("7", "RUNNING", name=text, reason=text), row("9", "PENDING"))
    answer = scheduler.look(["7", "8", "9"], history=False)
    assert answer.queue
    assert answer.jobs.keys() == {"7", "9"}
    assert answer.jobs["7"].name == text and answer.jobs["7"].state == "RUNNING"


def test_a_name_with_a_newline_does_not_hide_a_job_from_accounting(paper: FakeSlurm) -> None:
    paper.history(past("7", "FAILED", name="a\n8@x@COMPLETED"), past("8", "TIMEOUT"))
    assert {id: job.state for id, job in scheduler.look(["7", "8"]).jobs.items()} == {"7": "FAILED", "8": "TIMEOUT"}


@pytest.mark.parametrize(("id", "tasks", "there", "not_there"), [
    ("2_[5-51:2%2]", "seen", [5, 7, 51], [4, 6, 52]),
    ("2_[4-7,9%2]", "seen", [4, 7, 9], [3, 8, 10]),
    ("2_[3]", "seen", [3], [2, 4]),
    ("2_[0-99999]", "a long one", [0, 99999], [100000]),
    ("2_[2,4,8-9,15-16,18,23-24,30,32-33,39,41-42,48,50,52-53,57,59-60,66,68,70,72-73,77,79-80%1]", "over 64 bytes", [80],
     [81]),
    ("2_[2,4,8-9,15", "cut", [2, 3, 400], []),
    ("2_[2,4,...%1]", "cut", [2, 3, 400], []),
    ("2_[]", "none", [], [0, 1]),
    ("2_[x,-3,5-,7]", "garbage", [7], [3, 5]),
    ("2_[9-4]", "turned", [], [4, 9]),
    ("2_[4-8:0]", "no step", [4, 5], [9]),
])  # fmt: skip
def test_tasks_that_wait_are_read_off_their_arrays_list(
    paper: FakeSlurm, id: str, tasks: str, there: list[int], not_there: list[int]
) -> None:
    paper.queue(row(id, "PENDING", reason="JobArrayTaskLimit"), row("2_1000000", "RUNNING"))
    answer = scheduler.look([f"2_{n}" for n in there + not_there], history=False)
    assert answer.jobs.keys() == {f"2_{n}" for n in there}
    assert all(job.waits for job in answer.jobs.values())


def test_a_task_that_runs_is_its_own_row_and_an_array_is_as_lively_as_its_liveliest_task(paper: FakeSlurm) -> None:
    paper.queue(row("2_[5-9]", "PENDING"), row("2_3", "RUNNING", nodes="cpu01"), row("2_1", "FAILED"))
    jobs = scheduler.look(["2", "2_1", "2_3", "2_5"]).jobs
    assert {id: job.state for id, job in jobs.items()} == {"2": "RUNNING", "2_1": "FAILED", "2_3": "RUNNING", "2_5": "PENDING"}
    assert all(id == job.id for id, job in jobs.items())


def test_tasks_of_an_array_that_was_cancelled_before_they_began_are_cancelled(paper: FakeSlurm) -> None:
    paper.queue(row("2_1", "CANCELLED"), row("2", "CANCELLED"))  # squeue says it so on 22.05, sacct as a list
    paper.history(past("5_[1-9%1]", "CANCELLED by 0"))
    jobs = scheduler.look(["2_1", "2_7", "5_4"]).jobs
    assert {id: job.state for id, job in jobs.items()} == {"2_1": "CANCELLED", "2_7": "CANCELLED", "5_4": "CANCELLED"}
    paper.queue(row("2_1", "RUNNING"), row("2", "PENDING"))
    assert scheduler.look(["2_7"], history=False).jobs == {}


def test_the_parts_of_a_heterogeneous_job_are_one_job(paper: FakeSlurm) -> None:
    paper.queue(row("35+0", "COMPLETED"), row("35+1", "RUNNING"))
    assert scheduler.look(["35"]).jobs["35"].state == "RUNNING"


@pytest.mark.parametrize(("said", "state", "by"), [
    ("CANCELLED by 1000", "CANCELLED", "1000"), ("CANCELLED+", "CANCELLED", ""), ("OUT_OF_MEMORY+", "OUT_OF_MEMORY", ""),
    ("NODE_FAIL", "NODE_FAIL", ""), ("CANCELLED by x", "CANCELLED", ""),
])  # fmt: skip
def test_a_state_carries_a_suffix(paper: FakeSlurm, said: str, state: str, by: str) -> None:
    paper.history(past("7", said))
    job = scheduler.look(["7"]).jobs["7"]
    assert (job.state, job.cancelled_by) == (state, by)


def test_accounting_tells_more_of_a_job_that_has_just_ended(paper: FakeSlurm) -> None:
    paper.queue(row("7", "FAILED", reason="NonZeroExitCode"))
    paper.history(past("7", "FAILED", code="9:0", derived="0:9"))
    job = scheduler.look(["7"]).jobs["7"]
    assert (job.state, job.reason, job.exit, job.derived) == ("FAILED", "NonZeroExitCode", "9:0", "0:9")


def test_of_several_lives_of_a_job_the_last_counts(paper: FakeSlurm) -> None:
    now = time.time()
    lives = [
        past("7", "PREEMPTED", submit=now - 900),
        past("7", "COMPLETED", submit=now - 300),
        past("7", "FAILED", submit=now - 600),
    ]
    paper.history(*lives)
    assert scheduler.look(["7"]).jobs["7"].state == "COMPLETED"


def test_an_older_job_that_had_the_number_is_another(paper: FakeSlurm) -> None:
    sent = time.time()
    paper.history(past("7", "FAILED", submit=sent - 7200, end=sent - 60))
    paper.queue(row("8", "COMPLETED", submit=sent - 7200))
    assert scheduler.look(["7", "8"], since=sent).jobs == {}
    assert scheduler.look(["7", "8"], since=sent - 7200).jobs.keys() == {"7", "8"}


def test_accounting_is_asked_for_a_window_of_time(paper: FakeSlurm) -> None:
    scheduler.look(["7"], since=1_790_000_000)
    (begin,) = [w.partition("=")[2] for w in paper.calls("sacct")[0] if w.startswith("--starttime=")]
    assert time.mktime(time.strptime(begin, "%Y-%m-%dT%H:%M:%S")) == 1_790_000_000 - ask.SKEW_S


def test_memory_is_read_off_the_steps_where_it_is_asked_for(paper: FakeSlurm) -> None:
    steps = [past("7.batch", "FAILED", rss="10612K"), past("7.0", "OUT_OF_MEMORY", rss="1.5G"), past("7.extern", "COMPLETED")]
    paper.history(past("7", "FAILED"), *steps, past("8", "COMPLETED"), past("8.0", "COMPLETED", rss="garbage"))
    jobs = scheduler.look(["7", "8"], steps=True).jobs
    assert (jobs["7"].max_rss_gb, jobs["7"].oom, jobs["8"].max_rss_gb) == (1.5, True, None)
    assert scheduler.look(["7"]).jobs["7"].max_rss_gb is None


@pytest.mark.parametrize(("text", "gb"), [
    ("0", 0.0), ("1048576K", 1.0), ("2048M", 2.0), ("3G", 3.0), ("1T", 1024.0), ("1073741824", 1.0), ("", None), ("1.5.2G",
     None),
    ("-1K", None), ("1e9", None), ("٣K", None),
])  # fmt: skip
def test_memory_has_a_unit(text: str, gb: float | None) -> None:
    assert ask._gb(text) == gb


@pytest.mark.parametrize("text", ["Unknown", "N/A", "None", "", "0", "now", "9" * 300, "2026-13-40T99:99:99", "-5", "٣"])
def test_a_time_that_is_none_is_not_known(text: str) -> None:
    assert ask._when(text) is None


def test_times_are_read_of_a_program_that_knows_no_other_form() -> None:
    assert ask._when("2026-11-26T02:01:04") == time.mktime((2026, 11, 26, 2, 1, 4, 0, 0, -1))


# --- its silence


def test_a_controller_that_is_down_is_no_answer_and_ends_no_job(paper: FakeSlurm) -> None:
    paper.says("squeue", err=DOWN, code=1)
    answer = scheduler.look(["7"])
    assert (answer.queue, answer.accounting, answer.jobs) == (False, True, {})
    assert "Unable to contact slurm controller" in answer.why
    assert not scheduler.gone(answer, "7")


def test_accounting_still_tells_of_an_end_while_the_controller_is_down(paper: FakeSlurm) -> None:
    paper.says("squeue", err=DOWN, code=1)
    paper.history(past("7", "TIMEOUT"), past("8", "RUNNING"))
    answer = scheduler.look(["7", "8"])
    assert {id: job.state for id, job in answer.jobs.items()} == {"7": "TIMEOUT", "8": "RUNNING"}
    assert not scheduler.gone(answer, "7") and not scheduler.gone(answer, "8")


@pytest.mark.parametrize("said", [{"err": "Slurm accounting storage is disabled", "code": 1}, {"err": NO_DBD, "code": 1}, {}])
def test_without_accounting_the_queue_alone_decides(paper: FakeSlurm, said: dict[str, Any]) -> None:
    paper.queue(row("7", "RUNNING"), row("8", "TIMEOUT"))
    paper.says("sacct", **said)
    answer = scheduler.look(["7", "8", "9"])
    assert (answer.queue, answer.accounting) == (True, False)
    assert answer.why.startswith("accounting does not answer (")
    assert [scheduler.gone(answer, id) for id in ("7", "8", "9")] == [False, True, True]
    assert answer.jobs["8"].state == "TIMEOUT"


def test_a_single_job_that_slurm_does_not_know_is_gone_though_squeue_calls_that_an_error(paper: FakeSlurm) -> None:
    answer = scheduler.look(["99999"])
    assert answer.queue and scheduler.gone(answer, "99999")


def test_accounting_that_lags_does_not_bring_a_job_back(paper: FakeSlurm) -> None:
    paper.queue(row("8", "COMPLETED"))
    paper.history(past("7", "RUNNING", end=None), past("8", "RUNNING", end=None))
    answer = scheduler.look(["7", "8"])
    assert scheduler.gone(answer, "7") and scheduler.gone(answer, "8")
    assert {id: job.state for id, job in answer.jobs.items()} == {"7": scheduler.GONE, "8": "COMPLETED"}


@pytest.mark.parametrize(
    "state", ["COMPLETING", "SUSPENDED", "CONFIGURING", "REQUEUED", "STOPPED", "SPECIAL_EXIT", "A_NEW_ONE"]
)
def test_a_job_on_its_way_is_not_gone_nor_is_one_in_a_state_that_nobody_knows(paper: FakeSlurm, state: str) -> None:
    paper.queue(row("7", state))
    assert not scheduler.gone(scheduler.look(["7"]), "7")


@pytest.mark.parametrize(("out", "code"), [
    (b"", 0), (b"\n", 0), (b"\xff\xfe\x00garbage", 0), (b"squeue is closed for maintenance\n", 0),
     (b"JOBID STATE\n7 RUNNING\n", 0),
    (b"", 139), (b"\x1b[31mred", 0), (b"@@@@@@@@@@@@", 0),
])  # fmt: skip
def test_garbage_is_no_answer(paper: FakeSlurm, out: bytes, code: int) -> None:
    paper.says("squeue", out=out, code=code)
    paper.says("sacct", out=out, code=code)
    answer = scheduler.look(["7"])
    assert (answer.jobs, answer.queue, answer.accounting) == ({}, False, False)
    assert "\n" not in answer.why and "\x1b" not in answer.why
    assert not scheduler.gone(answer, "7")


def test_what_a_site_prints_first_is_passed_over(paper: FakeSlurm) -> None:
    paper.queue(row("7", "RUNNING"))
    paper.history(past("8", "COMPLETED"))
    for program in ("squeue", "sacct"):
        real = paper.folder / "bin" / program
        real.rename(real.with_suffix(".real"))
        real.write_text(f'#!/bin/sh\necho "*** 7 PENDING: maintenance on Friday ***"\necho warning >&2\n{real}.real "$@"\n')
        real.chmod(0o755)
    answer = scheduler.look(["7", "8"])
    assert {id: job.state for id, job in answer.jobs.items()} == {"7": "RUNNING", "8": "COMPLETED"}
    assert answer.queue and answer.accounting


def test_half_a_line_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def torn(words: list[str], patience_s: float) -> ask.Said:
        mark = next(w for w in words if w.startswith("--format=")).removeprefix("--format=")[:14]
        lines = [
            mark + mark.join(fields) + mark for fields in (["JOBID"] + ["x"] * 7, ["7", "RUNNING", "", "", "", "", "", ""])
        ]
        return ask.Said(0, "\n".join(lines)[:-20])

    monkeypatch.setattr(ask, "_ask", torn)
    assert not scheduler.look(["7", "8"], history=False).queue


def test_programs_that_are_not_here_are_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    answer = scheduler.look(["7"])
    assert (answer.queue, answer.accounting) == (False, False)
    assert answer.why.startswith("squeue does not answer (squeue is not here (No such file or directory))")
    assert "not here" in scheduler.requeue("7", patience_s=60.0)
    assert "not here" in scheduler.cancel(["7"])


def test_a_program_that_hangs_is_ended_with_its_children(paper: FakeSlurm, tmp_path: Path) -> None:
    told = tmp_path / "pid"
    hangs = f"#!/bin/sh\ntrap '' TERM\nsleep 300 &\necho $! > {told}.new\nmv {told}.new {told}\nwait\n"
    (paper.folder / "bin" / "squeue").write_text(hangs)
    before = time.monotonic()
    answer = scheduler.look(["7"], history=False, patience_s=3.0)
    assert time.monotonic() - before < 15.0
    assert not answer.queue and answer.why == "squeue does not answer (squeue gave no answer in 3 s)"
    until(lambda: not lives(int(told.read_text())))


def test_a_child_that_stays_behind_with_our_output_keeps_nobody_waiting(paper: FakeSlurm, tmp_path: Path) -> None:
    paper.queue(row("7", "RUNNING"))
    real = paper.folder / "bin" / "squeue"
    real.rename(real.with_suffix(".real"))
    real.write_text(f'#!/bin/sh\n{real}.real "$@"\nsleep 60 & echo $! > {tmp_path}/pid\n')
    real.chmod(0o755)
    before = time.monotonic()
    assert scheduler.look(["7"], history=False).queue
    assert time.monotonic() - before < 30.0
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)


def test_ctrl_c_ends_the_question_and_its_program(paper: FakeSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = tmp_path / "pid"
    paper.says("squeue", script=f"echo $$ > {told}.new; mv {told}.new {told}; sleep 300")

    def ctrl_c(signum: int, frame: FrameType | None) -> None:
        if told.exists():
            signal.setitimer(signal.ITIMER_REAL, 0.0)
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, ctrl_c)
    signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
    try:
        with pytest.raises(KeyboardInterrupt):
            scheduler.look(["7"], patience_s=60.0)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)
    until(lambda: not lives(int(told.read_text())))


# --- any text


def squeue_text(mark: str, rows: list[list[str]]) -> str:
    return "".join(f"{mark}{mark.join(fields)}{mark}\n" for fields in [["JOBID", *["x"] * 7], *rows])


@given(st.lists(st.lists(NOISE, min_size=8, max_size=8), max_size=5), NOISE, NOISE)
def test_fields_come_back_as_they_were_whatever_they_hold(rows: list[list[str]], before: str, after: str) -> None:
    mark = "@0123456789ab@"
    assert ask._squeue_records(before + squeue_text(mark, rows) + after, mark)[1:] == rows


@given(st.integers(0, 400), st.integers(0, 6))
def test_of_an_answer_that_was_cut_no_field_is_misread(cut: int, n: int) -> None:
    mark = "@0123456789ab@"
    rows = [[str(i), "RUNNING", "", "", "", "", "cpu01", "a\nb"] for i in range(n)]
    records = ask._squeue_records(squeue_text(mark, rows)[:-cut] if cut else squeue_text(mark, rows), mark)
    assert records[1:] == rows[: max(0, len(records) - 1)]


@given(st.lists(st.tuples(st.integers(0, 500), st.integers(0, 60), st.integers(1, 9)), min_size=1, max_size=8), st.booleans())
def test_a_list_of_tasks_means_what_slurm_means(parts: list[tuple[int, int, int]], throttled: bool) -> None:
    text = ",".join(f"{a}-{a + n}:{s}" if s > 1 else f"{a}-{a + n}" if n else f"{a}" for a, n, s in parts)
    meant = {t for a, n, s in parts for t in range(a, a + n + 1, s)}
    found = ask._tasks(text + "%3" * throttled, whole=True)
    assert {t for t in range(600) if any(t in some for some in found)} == meant


@given(st.lists(NOISE, min_size=8, max_size=8))
def test_no_row_is_refused_with_a_traceback(fields: list[str]) -> None:
    id, state, reason, start, end, submit, nodes, name = fields
    for number in (id, "7", "7_3", f"7_[{id}"):
        if job := ask._job(number, state, reason, start, end, submit, nodes, name):
            assert ask._matched(["7", "7_3"], [job]) is not None
            assert "\n" not in words.reason_words(job) + words.cause_words(job, reason)
    ask._gb(start)


@given(NOISE, NOISE)
def test_no_answer_is_refused_with_a_traceback(out: str, err: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ask, "_ask", lambda words, patience_s: ask.Said(0, out, err))
        answer = scheduler.look(["7", "7_3"])
        assert not (answer.queue or answer.accounting)
    assert "\n" not in scheduler.rejection(out) and "\n" not in answer.why


def test_ten_thousand_jobs_are_read_in_well_under_a_second() -> None:
    mark = "@0123456789ab@"
    rows = [[str(i), "PENDING", "Priority", "1800000000", "N/A", "1790000000", "", "a name"] for i in range(5000)]
    rows += [[f"9000_{i}", "RUNNING", "None", "1800000000", "N/A", "1790000000", "cpu01", "x"] for i in range(4999)]
    text = squeue_text(mark, [*rows, ["9000_[5000-9999:2,20000-30000%5]", "PENDING", "", "N/A", "N/A", "N/A", "", "x"]])
    asked = [str(i) for i in range(5000)] + [f"9000_{i}" for i in range(5000)]
    before = time.process_time()
    jobs = ask._matched(asked, [job for record in ask._squeue_records(text, mark)[1:] if (job := ask._job(*record))])
    assert time.process_time() - before < 1.0
    assert len(jobs) == 9999


# --- orders


def test_cancel_and_requeue_are_orders_to_slurm(paper: FakeSlurm) -> None:
    paper.queue(row("7", "RUNNING"), row("8_3", "RUNNING"), row("9", "RUNNING"))
    assert scheduler.cancel(["7"], signal="TERM") == ""
    assert scheduler.cancel(["8_3", "7", "7", "garbage;"]) == ""
    assert scheduler.requeue("9") == ""
    assert paper.calls() == [["scancel", "--signal=TERM", "7"], ["scancel", "7", "8_3"], ["scontrol", "requeue", "9"]]
    assert scheduler.cancel([]) == ""
    assert len(paper.calls()) == 3


def test_a_job_that_has_ended_or_waits_already_is_no_fault(paper: FakeSlurm) -> None:
    paper.queue(row("7", "PENDING"))
    paper.says("scancel", err="scancel: error: Kill job error on job id 99: Invalid job id specified\n", code=1)
    assert scheduler.requeue("7") == ""
    assert scheduler.cancel(["99"]) == ""


def test_an_order_that_did_not_get_through_says_why(paper: FakeSlurm) -> None:
    paper.says("scancel", err="scancel: error: Kill job error on job id 7: Access/permission denied\n", code=1)
    assert scheduler.cancel(["7"]) == "scancel: error: Kill job error on job id 7: Access/permission denied"
    paper.says("scancel", script="exit 3")
    assert scheduler.cancel(["7"]) == "exit code 3, without a word"
    paper.says("scancel", script="sleep 300")  # as it does with a signal for a job that waits
    assert scheduler.cancel(["7"], signal="USR2", patience_s=0.5) == "scancel gave no answer in 0.5 s"


@pytest.mark.parametrize("why", [
    "Requested operation is presently disabled for job 7", "Invalid job id specified for job 7",
    "Access/permission denied for job 7",
])  # fmt: skip
def test_what_the_site_refuses_is_not_asked_for_twice(paper: FakeSlurm, why: str) -> None:
    paper.says("scontrol", err=why, code=1)
    assert scheduler.requeue("7", patience_s=60.0) == why
    assert len(paper.calls("scontrol")) == 1


def test_a_requeue_is_patient_with_a_controller_that_restarts(
    paper: FakeSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ask, "RETRY_S", 0.05)
    away = f"test -f {tmp_path}/up && exit 0; touch {tmp_path}/up; echo 'Unexpected message received for job 7' >&2; exit 1"
    paper.says("scontrol", script=away)
    assert scheduler.requeue("7", patience_s=60.0) == ""
    assert len(paper.calls("scontrol")) == 2
    paper.says("scontrol", err="Unexpected message received for job 7", code=1)
    assert scheduler.requeue("7") == "Unexpected message received for job 7"


@pytest.mark.parametrize("id", ["", "x", "7;rm", "--help"])
def test_an_order_about_no_job_is_not_given(paper: FakeSlurm, id: str) -> None:
    assert scheduler.requeue(id, patience_s=60.0).endswith("is no job")
    assert scheduler.cancel([id]) == ""
    assert paper.calls() == []


# --- round sbatch


def test_slurm_is_here_where_sbatch_finds_its_configuration(paper: FakeSlurm) -> None:
    assert scheduler.unavailable() == ""
    paper.says("sbatch", err="sbatch: error: x\nsbatch: fatal: Could not establish a configuration source\n", code=1)
    assert "not configured here (sbatch: fatal: Could not establish" in scheduler.unavailable()


def test_a_configuration_that_is_gone_is_told_before_slurm_looks_for_it_for_a_minute(
    paper: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_CONF", "/nowhere/slurm.conf")
    assert scheduler.unavailable().startswith("SLURM_CONF=/nowhere/slurm.conf: no such file.")
    assert paper.calls() == []


def test_without_sbatch_the_place_to_go_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "login node" in scheduler.unavailable() and "--dry-run" in scheduler.unavailable()


def test_sbatch_gets_nothing_that_a_surrounding_job_left() -> None:
    ours = {"PATH": "/bin", "SLURM_CONF": "/x", "SLURM_CLUSTERS": "a", "HOME": "/h", "SLURMISH": "1"}
    theirs = {
        "SLURM_JOB_ID": "7",
        "SBATCH_PARTITION": "gpu",
        "SLURM_CPU_BIND": "x",
        "SRUN_CPUS_PER_TASK": "4",
        "SLURM_UMASK": "0",
    }
    assert scheduler.submit_env({**ours, **theirs}) == ours


# --- a real Slurm


@pytest.mark.slurm
def test_a_real_queue_is_read_as_it_is(slurm: Any) -> None:
    runs = slurm.submit("--job-name=na|me\nx\u00e9", "--partition=fpga")
    array = slurm.submit("--array=1-41:2%1", "--partition=largemem")
    held, later = slurm.submit("--hold"), slurm.submit("--begin=now+1hour")
    failed = slurm.submit(wrap="exit 3")
    until(lambda: scheduler.look([str(runs)], history=False).jobs[str(runs)].state == "RUNNING", 60.0)
    slurm.until(failed, "FAILED")
    asked = [str(runs), f"{array}_41", f"{array}_40", str(held), str(later), str(failed), "99999"]
    answer = scheduler.look(asked)
    assert answer.queue and answer.why == ""
    job = answer.jobs[str(runs)]
    assert (job.state, job.nodes, job.name) == ("RUNNING", "fpga01", "na|me\nx\u00e9")
    assert job.submit is not None and abs(job.submit - time.time()) < 300
    assert answer.jobs.keys() == set(asked) - {f"{array}_40", "99999"}
    assert answer.jobs[f"{array}_41"].waits
    assert scheduler.reason_words(answer.jobs[str(held)]).startswith("held by its user")
    assert "starts about" in scheduler.reason_words(answer.jobs[str(later)])
    assert scheduler.gone(answer, str(failed)) and scheduler.gone(answer, "99999") and not scheduler.gone(answer, str(runs))
    assert scheduler.gone(scheduler.look(["99999"], mine=True), "99999")
    assert scheduler.look([str(runs)], mine=True).jobs[str(runs)] == job


@pytest.mark.slurm
def test_real_orders_are_carried_out(slurm: Any) -> None:
    job = str(slurm.submit("--requeue"))
    slurm.until(job, "RUNNING")
    assert scheduler.requeue(job) == ""
    assert scheduler.look([job]).jobs[job].active
    assert "Invalid job id" in scheduler.requeue("99999", patience_s=60.0)
    slurm.until(job, "RUNNING")
    assert scheduler.cancel([job, "99999"]) == ""
    slurm.until(job, "CANCELLED")
    until(lambda: scheduler.look([job]).jobs[job].cancelled_by == str(os.getuid()), 60.0)
    assert scheduler.cause(scheduler.look([job]).jobs[job]).words == "cancelled by you"


@pytest.mark.slurm
def test_real_memory_is_told_from_the_steps_and_the_log(slurm: Any, tmp_path: Path) -> None:
    log = tmp_path / "log"
    code = "x = bytearray(500_000_000); import time; time.sleep(60)"
    job = str(slurm.submit("--mem=100M", f"--output={log}", wrap=f"srun python3 -c '{code}'"))
    slurm.until(job, "FAILED")
    assert scheduler.cause(None, log.read_text()).kind == "out_of_memory"
    until(lambda: (scheduler.look([job], steps=True).jobs[job].max_rss_gb or 0) > 0.2, 60.0)


@pytest.mark.slurm
def test_a_real_refusal_is_told_by_its_keys(slurm: Any) -> None:
    for words_, told in (
        (["--qos=dev", "--nodes=2"], "more nodes than the QOS gives a job"),
        (["--account=nosuch"], "no such account"),
        (["--partition=gpu", "--gpus-per-node=8"], "no node of the partition is like that"),
        (["--array=0-500"], "MaxArraySize"),
    ):
        done = slurm("sbatch", *words_, "--wrap=true", "--output=/dev/null")
        assert done.returncode and told in scheduler.rejection(done.stderr)


@pytest.mark.slurm
def test_a_real_controller_that_is_away_ends_no_job(slurm: Any) -> None:
    job = str(slurm.submit())
    slurm.until(job, "RUNNING")
    with slurm.no_controller():
        answer = scheduler.look([job], history=False)
        assert not answer.queue and not scheduler.gone(answer, job)
        assert "Unable to contact slurm controller" in answer.why
    assert scheduler.look([job]).jobs[job].active

"""Trackers get what metrics.jsonl and report.json say, each number once; one that fails costs a warning and nothing else."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Launcher

from hpcai import lease, rundir, tracking
from hpcai.config.check import load
from hpcai.config.schema import Config
from hpcai.config.trackers import mlflow_store
from hpcai.context import Ranks, RunContext
from hpcai.errors import Faults, OwnedError, RunError, Stopped
from hpcai.plan import digest
from hpcai.rundir import RunDir
from hpcai.tracking import follow

NONE = ("data.identifiers=none",)
WAIT = "tracking.wait_s=120"  # a busy machine takes its time


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What the module sets for a job's process is gone after the test; pauses are short."""
    before = dict(os.environ)
    monkeypatch.setattr(tracking, "POLL_S", 0.02)
    monkeypatch.setattr(tracking, "RETRY_S", (0.02, 0.1))
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def said() -> Iterator[list[logging.LogRecord]]:
    """What the log of a job gets."""
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append
    logger = logging.getLogger("hpcai")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield records
    logger.removeHandler(handler)
    logger.setLevel(level)


def config(*words: str) -> Config:
    return load(
        ["name=lung", "data.path=/data/Maier_1950/a.npz", "data.labels=[no,yes]", "data.identifiers=none", WAIT, *words]
    )


def context(folder: Path, life: int = 1) -> RunContext:
    """A run in `folder` whose life `life` begins; those before have ended."""
    folder.mkdir(parents=True, exist_ok=True)
    run = RunContext(RunDir(folder), life=life)
    assert lease.take(run.dir, 1) == life
    return run


def ended(run: RunContext, code: int = 130) -> None:
    run.note("begin", **lease.me())
    run.note("end", code=code)


def write(run: RunContext, *steps: int) -> None:
    """Lines of metrics.jsonl: a training line a step, a validation line for each even one."""
    for step in steps:
        lines = [{"kind": "train", "step": step, "epoch": 1, "loss": 1 / step, "lr": 0.1, "left_s": 9.0, "time": 1e9 + step}]
        if step % 2 == 0:
            lines.append({"kind": "val", "step": step, "auc": 0.5 + step / 100, "low": None, "best": True, "time": 1e9 + step})
        rundir.append_lines(run.dir.metrics, lines)


def report(run: RunContext) -> None:
    each = [
        ("auc", "test", 0.9, 0.8, 0.95),
        ("sensitivity[1]", "val", 0.5, 0.25, 0.75),
        ("macro_auc", "test", None, None, None),
    ]
    names = ("name", "split", "value", "low", "high")
    estimates = [dict(zip(names, e, strict=True)) | {"n": 9} for e in each]
    told = {"version": 2, "answer": "", "warnings": [], "threshold": None}
    rundir.write_json(run.dir.report_json, told | {"estimates": estimates})


FINAL = {"test/auc": 0.9, "test/auc_low": 0.8, "test/auc_high": 0.95,
         "val/sensitivity_1": 0.5, "val/sensitivity_1_low": 0.25, "val/sensitivity_1_high": 0.75}  # fmt: skip


def until(condition: Callable[[], Any]) -> Any:
    before = time.monotonic()
    while not (value := condition()):
        assert time.monotonic() - before < 60, "nothing came"
        time.sleep(0.01)
    return value


def warned(run: RunContext) -> list[str]:
    told = lease.records(run.dir, run.life)
    return [r["message"] for rank in told.values() for r in rank if r["event"] == "warning"]


# --- TensorBoard


def events(run: RunContext) -> dict[str, list[tuple[int, float]]]:
    """{tag: [(step, value)]} as TensorBoard reads the folder."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    if not run.dir.tensorboard.is_dir():
        return {}
    reader = EventAccumulator(str(run.dir.tensorboard), {"scalars": 0}).Reload()
    return {tag: [(e.step, e.value) for e in reader.Scalars(tag)] for tag in reader.Tags()["scalars"]}


def test_tensorboard_shows_every_line_at_its_step_and_the_final_estimates(tmp_path: Path) -> None:
    run = context(tmp_path)
    with follow(config("tracking.tensorboard=true"), run):
        write(run, 1, 2, 3)
        report(run)
    found = events(run)
    assert set(found) == {"train/loss", "train/lr", "train/epoch", "val/auc", *FINAL}
    assert found["train/loss"] == [(s, pytest.approx(1 / s)) for s in (1, 2, 3)]
    assert found["val/auc"] == [(2, pytest.approx(0.52))]
    assert {tag: found[tag] for tag in FINAL} == {tag: [(3, pytest.approx(v))] for tag, v in FINAL.items()}
    assert warned(run) == []


def test_tensorboard_sees_a_line_while_the_job_runs(tmp_path: Path) -> None:
    run = context(tmp_path)
    with follow(config("tracking.tensorboard=true"), run):
        write(run, 1)
        until(lambda: events(run).get("train/loss"))
        write(run, 2)
        until(lambda: len(events(run)["train/loss"]) == 2)


def test_a_run_that_goes_on_has_every_step_once_in_tensorboard(tmp_path: Path) -> None:
    run, asked = context(tmp_path), config("tracking.tensorboard=true")
    with follow(asked, run):
        write(run, 1, 2, 3, 4)
    ended(run)
    again = context(tmp_path, life=2)
    with follow(asked, again):
        until(lambda: len(events(again).get("train/loss", [])) == 4)  # the follower was faster than the training
        kept = [line for line in rundir.read_lines(run.dir.metrics) if line["step"] <= 2]
        rundir.write_bytes(run.dir.metrics, "".join(json.dumps(line) + "\n" for line in kept).encode())
        write(again, 3, 4, 5)
    assert [s for s, _ in events(again)["train/loss"]] == [1, 2, 3, 4, 5]
    assert [s for s, _ in events(again)["val/auc"]] == [2, 4]
    assert len(list(run.dir.tensorboard.iterdir())) == 1


def test_what_a_tracker_did_not_take_comes_when_it_takes_it(tmp_path: Path, said: list[logging.LogRecord]) -> None:
    run = context(tmp_path)
    run.dir.tensorboard.write_text("in the way")
    with follow(config("tracking.tensorboard=true"), run):
        write(run, 1, 2)
        (message,) = until(lambda: warned(run))
        run.dir.tensorboard.unlink()
        until(lambda: len(events(run).get("train/loss", [])) == 2)
        write(run, 3)
    assert [s for s, _ in events(run)["train/loss"]] == [1, 2, 3]
    assert message == "tracking.tensorboard: fails (FileExistsError). The run goes on; metrics.jsonl has all. Mend it."
    assert warned(run) == [message] and [r.getMessage() for r in said] == [f"warning: {message}"]


# --- MLflow


def client(store: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=tracking._address(mlflow_store(store)))


def runs_in(store: str, experiment: str = "lung") -> list[Any]:
    told = client(store)
    return list(told.search_runs([told.get_experiment_by_name(experiment).experiment_id]))


def status_in(store: str) -> str:
    """That of the one run, while somebody writes it: MLflow's own files are not whole at each moment."""
    with contextlib.suppress(Exception):
        return str(runs_in(store)[0].info.status)
    return ""


def history(store: str, run_id: str, key: str) -> list[tuple[int, float, int]]:
    return [(m.step, m.value, m.timestamp) for m in client(store).get_metric_history(run_id, key)]


@pytest.fixture(params=["files", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A new store, in a folder whose name means something in an address."""
    folder = tmp_path / "a b;c@d"
    return f"{folder}/#ml%20?runs" if request.param == "files" else f"sqlite:///{folder}/ml.db"


def test_mlflow_has_one_run_through_all_lives_and_every_number_once(tmp_path: Path, store: str) -> None:
    folder = tmp_path / "lung-1a2b3c4d"
    run, asked = context(folder), config(f"tracking.mlflow='{store}'", "trainer.log_every=1")
    rundir.write_json(run.dir.environment, {"git": {"commit": "c0ffee"}})
    with pytest.raises(Stopped), follow(asked, run):
        write(run, 1, 2, 3, 4)
        until(lambda: run.dir.tracking.is_file())
        raise Stopped(15, "stopped.")
    (first,) = runs_in(store)
    assert (first.info.status, first.info.run_name) == ("KILLED", "lung-1a2b3c4d")
    ended(run)

    again = context(folder, life=2)
    with follow(config(f"tracking.mlflow='{store}'", "trainer.log_every=2"), again):
        until(lambda: status_in(store) == "RUNNING")
        kept = [line for line in rundir.read_lines(run.dir.metrics) if line["step"] <= 2]
        rundir.write_bytes(run.dir.metrics, "".join(json.dumps(line) + "\n" for line in kept).encode())
        write(again, 3, 4, 5)
        report(again)
    (second,) = runs_in(store)
    assert second.info.run_id == first.info.run_id and second.info.status == "FINISHED"
    assert history(store, second.info.run_id, "train/loss") == [(s, 1 / s, (10**9 + s) * 1000) for s in (1, 2, 3, 4, 5)]
    assert [s for s, _, _ in history(store, second.info.run_id, "val/auc")] == [2, 4]
    assert {key: second.data.metrics[key] for key in FINAL} == FINAL
    tags = second.data.tags
    assert (tags["run_id"], tags["job"], tags["git_commit"]) == ("lung-1a2b3c4d", "train", "c0ffee")
    assert second.data.params["trainer.log_every"] == "1" and second.data.params["model.name"] == "resnet_small"
    assert "Maier" not in json.dumps(second.data.params) and str(tmp_path) not in json.dumps(second.data.params)
    assert warned(run) == warned(again) == []
    stored = {f.name for f in tmp_path.rglob("*") if f.is_file()}
    assert not stored & {"train.jsonl", "report.html"}


def test_mlflow_says_how_a_job_ended_and_keeps_experiments_apart(tmp_path: Path) -> None:
    store = str(tmp_path / "ml")
    run, asked = context(tmp_path / "lung-1"), config(f"tracking.mlflow={store}", "tracking.experiment='the ward, 2025'")
    with pytest.raises(RunError), follow(asked, run):
        raise RunError("trainer.step=3: the loss is nan.")
    (told,) = runs_in(store, "the ward, 2025")
    assert told.info.status == "FAILED" and told.data.tags["hpcai_id"] == rundir.read_json(run.dir.tracking)["hpcai_id"]
    other = context(tmp_path / "elsewhere" / "lung-1")  # the same command in another runs_dir: another run
    with follow(asked, other):
        pass
    assert {r.info.status for r in runs_in(store, "the ward, 2025")} == {"FAILED", "FINISHED"}


def test_a_life_that_was_followed_by_another_tells_nothing_any_more(tmp_path: Path) -> None:
    run, store = context(tmp_path / "lung-1"), str(tmp_path / "ml")
    with pytest.raises(OwnedError), follow(config(f"tracking.mlflow={store}", "tracking.tensorboard=true"), run):
        until(lambda: run.dir.tensorboard.is_dir() and run.dir.tracking.is_file() and events(run) == {})
        until(lambda: (tmp_path / "ml").is_dir() and runs_in(store))
        ended(run)
        context(tmp_path / "lung-1", life=2)
        write(run, 1, 2)
        until(lambda: not [t for t in threading.enumerate() if t.name.startswith("tracking.")])
        run.fence()
    assert events(run) == {} and runs_in(store)[0].info.status == "RUNNING"
    assert warned(run) == []


SEVERAL = """
import os, socket, sys
from pathlib import Path
def refused(*a, **k): raise AssertionError("the network was used")
socket.socket.connect = socket.getaddrinfo = refused
from hpcai import lease, tracking
from hpcai.config.check import load
from hpcai.context import RunContext
from hpcai.rundir import RunDir
folder, stores = Path(sys.argv[1]), sys.argv[2:]
for i, store in enumerate(stores):
    run = RunContext(RunDir(folder / f"{i}"))
    lease.take(run.dir, 1)
    words = ["name=many", "data.path=x", "data.labels=[a,b]", "data.identifiers=none", "tracking.wait_s=240"]
    words += [f"tracking.mlflow='{store}'"]
    with tracking.follow(load(words), run):
        pass
    assert not [r for rank in lease.records(run.dir, 1).values() for r in rank], "warned"
"""


@pytest.mark.slow
def test_members_that_start_together_make_one_new_store_and_experiment_without_the_network(tmp_path: Path) -> None:
    stores = [f"sqlite:///{tmp_path}/ml.db", f"{tmp_path}/ml"]
    command = [sys.executable, "-c", SEVERAL]
    members = [
        subprocess.Popen([*command, str(tmp_path / f"m{i}"), *stores], stderr=subprocess.PIPE, text=True) for i in range(3)
    ]
    said = [member.communicate(timeout=250)[1] for member in members]
    assert [member.returncode for member in members] == [0, 0, 0], said
    os.environ.update(tracking.FORCED)
    for store in stores:
        assert [r.info.status for r in runs_in(store, "many")] == ["FINISHED"] * 3
        assert len(client(store).search_experiments(filter_string="name = 'many'")) == 1
    assert said == ["", "", ""]


# --- trackers that fail


class Hostile:
    """A server on this machine that answers as it likes."""

    def __init__(self, answer: bytes | None, *, hang: bool = False) -> None:
        self.answer, self.hang, self.open = answer, hang, True
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.port = self.listening.getsockname()[1]
        self.asked = threading.Event()
        self.held: list[socket.socket] = []
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()

    def serve(self) -> None:
        while self.open:
            with contextlib.suppress(OSError):
                connection = self.listening.accept()[0]
                self.held.append(connection)
                self.asked.set()
                if self.hang:
                    continue
                connection.recv(1)
                if self.answer is None:  # closed with unread bytes: a reset
                    connection.close()
                    continue
                connection.settimeout(0.2)
                with contextlib.suppress(TimeoutError):
                    while connection.recv(65536):
                        pass
                connection.settimeout(None)
                connection.sendall(self.answer)
                connection.close()

    def close(self) -> None:
        self.open = False
        with contextlib.suppress(OSError):
            self.listening.shutdown(socket.SHUT_RDWR)
        for each in (self.listening, *self.held):
            each.close()
        self.thread.join(10)


def answer(status: str, body: str) -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()


HOSTILE: dict[str, dict[str, Any]] = {
    "reset": {"answer": None},
    "500": {"answer": answer("500 Sorry", "token=s3cret")},
    "401": {"answer": answer("401 No", "{}")},
    "no JSON": {"answer": answer("200 OK", "<html>s3cret")},
    "other JSON": {"answer": answer("200 OK", '{"experiment": [1, {"s3cret": 2}]}')},
    "no HTTP": {"answer": b"\0s3cret\r\n\r\n"},
    "elsewhere": {"answer": b"HTTP/1.1 302 x\r\nLocation: http://127.0.0.1:1/s3cret\r\nContent-Length: 0\r\n\r\n"},
    "hang": {"answer": None, "hang": True},
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_server_costs_one_warning(
    tmp_path: Path, kind: str, said: list[logging.LogRecord], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "s3cret")
    run, server = context(tmp_path), Hostile(**HOSTILE[kind])
    address = f"http://127.0.0.1:{server.port}"
    with contextlib.closing(server):
        with follow(config(f"tracking.mlflow={address}", "tracking.wait_s=0.1"), run):
            write(run, 1, 2)
            (message,) = until(lambda: warned(run))
            write(run, 3)
        assert server.asked.is_set()
    assert message.startswith("tracking.mlflow: fails (") and warned(run) == [message]
    words = [r.getMessage() for r in said if r.levelno >= logging.WARNING]
    assert words == [f"warning: {message}"]
    heard = "".join(capfd.readouterr()) + "".join(map(logging.LogRecord.getMessage, said))
    assert not [secret for secret in ("s3cret", address, "127.0.0.1", "Traceback") if secret in heard + message]


def test_a_server_that_hangs_holds_up_neither_the_job_nor_the_other_tracker(
    tmp_path: Path, said: list[logging.LogRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "600")
    run, server = context(tmp_path), Hostile(None, hang=True)
    words = (f"tracking.mlflow=http://127.0.0.1:{server.port}", "tracking.tensorboard=true", "tracking.wait_s=0.1")
    with contextlib.closing(server):
        with follow(config(*words), run):
            until(server.asked.is_set)
            write(run, 1, 2)
            until(lambda: len(events(run).get("train/loss", [])) == 2)
        assert [r.getMessage() for r in said] == [
            "tracking.mlflow: has not taken all by the run's end (tracking.wait_s). metrics.jsonl has all."
        ]
    assert warned(run) == []


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_server_that_is_not_there_or_speaks_no_tls_is_told_by_its_kind(tmp_path: Path, scheme: str) -> None:
    run, server = context(tmp_path), Hostile(answer("200 OK", "{}"))
    if scheme == "http":
        server.close()
    asked = config(f"tracking.mlflow={scheme}://127.0.0.1:{server.port}", "tracking.wait_s=0.1")
    with contextlib.closing(server), follow(asked, run):
        (message,) = until(lambda: warned(run))
    assert ("ConnectionRefusedError" if scheme == "http" else "SSLError") in message


class Fake:
    """A tracker that fails at its nth call, and keeps what it was told since it was opened."""

    name = "fake"

    def __init__(self, fails: set[int]) -> None:
        self.fails, self.calls = fails, 0
        self.steps: list[int] = []
        self.status = ""

    def _call(self) -> None:
        self.calls += 1
        if self.calls in self.fails:
            raise OSError(28, "No space left on device")

    def open(self) -> None:
        self._call()
        self.steps = []

    def send(self, lines: Any) -> None:
        self._call()
        self.steps += [line["step"] for line in lines]

    def close(self, status: str, final: Any, step: int) -> None:
        self._call()
        self.status = f"{status} {step}"


@pytest.mark.parametrize("fails", [set(), {1}, {2}, {3}, {1, 2, 3, 4, 5}])
def test_after_a_failure_all_is_told_anew(tmp_path: Path, fails: set[int], monkeypatch: pytest.MonkeyPatch) -> None:
    run, fake = context(tmp_path), Fake(fails)
    monkeypatch.setattr(tracking, "TensorBoard", lambda cfg, run: fake)
    monkeypatch.setattr(tracking, "LINES", 3)
    with follow(config("tracking.tensorboard=true"), run):
        write(run, *range(1, 8))
        until(lambda: fake.steps[-1:] == [7] and fake.calls > len(fails) + 1)
    assert list(dict.fromkeys(fake.steps)) == [1, 2, 3, 4, 5, 6, 7] and len(fake.steps) == 10  # three steps have two lines
    assert fake.status == "FINISHED 7"
    assert warned(run) == (
        ["tracking.fake: fails (OSError). The run goes on; metrics.jsonl has all. Mend it."] if fails else []
    )


def test_a_failure_after_the_job_leaves_no_word_in_the_run_folder(
    tmp_path: Path, said: list[logging.LogRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The report was made before; the same files must give it again."""
    run, fake = context(tmp_path), Fake(set())
    monkeypatch.setattr(tracking, "TensorBoard", lambda cfg, run: fake)
    with follow(config("tracking.tensorboard=true"), run):
        write(run, 1)
        until(lambda: fake.steps)
        fake.fails = set(range(100))
    assert warned(run) == []
    assert [r.getMessage().split(" (")[0] for r in said if r.levelno >= logging.WARNING] == ["warning: tracking.fake: fails"]


def test_a_torn_line_is_told_once_it_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, fake = context(tmp_path), Fake(set())
    monkeypatch.setattr(tracking, "TensorBoard", lambda cfg, run: fake)
    with follow(config("tracking.tensorboard=true"), run):
        write(run, 1)
        with run.dir.metrics.open("ab", buffering=0) as f:
            f.write(b'{"kind": "train", "st')
            until(lambda: fake.steps == [1])
            f.write(b'ep": 3}\n')
        until(lambda: fake.steps == [1, 3])


def test_a_tracker_that_cannot_be_imported_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = context(tmp_path)
    monkeypatch.setitem(sys.modules, "tensorboard.compat.proto", None)
    with follow(config("tracking.tensorboard=true"), run):
        write(run, 1)
    (message,) = warned(run)
    assert message.startswith("tracking.tensorboard: cannot be used here (ModuleNotFoundError).")


def test_a_process_that_may_start_no_thread_runs_its_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = context(tmp_path)

    def start(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(tracking.Follower, "start", start)
    with follow(config("tracking.tensorboard=true"), run):
        pass
    assert len(warned(run)) == 1


def test_other_ranks_tell_nothing(tmp_path: Path) -> None:
    context(tmp_path)
    run = RunContext(RunDir(tmp_path), Ranks(rank=1, world_size=2))
    with follow(config("tracking.tensorboard=true", f"tracking.mlflow={tmp_path}/ml"), run):
        write(run, 1)
    assert not run.dir.tensorboard.exists() and not (tmp_path / "ml").exists()


# --- what is told


def test_numbers_of_a_line_are_those_that_can_be_drawn() -> None:
    line = {
        "kind": "val",
        "step": 3,
        "time": 1.0,
        "left_s": 2.0,
        "auc": 1,
        "loss": math.nan,
        "low": None,
        "best": True,
        "x": "y",
    }
    assert tracking.numbers(line) == {"val/auc": 1.0}


def test_no_folder_of_the_config_is_told(tmp_path: Path) -> None:
    words = [
        "model.init_from=/w/Meier.pt",
        "runs_dir=Meier",
        "job=predict",
        "from_run=Meier",
        "tracking.mlflow=/Meier",
        "depends_on=[Meier]",
    ]
    told = tracking.params(config(*words, 'model.options={a: /Meier, b: ["~/Meier"], c: {d: 1.5}}', "data.path=Meier"))
    assert "Meier" not in json.dumps(told)
    assert (told["model.options.c.d"], told["data.labels"], told["trainer.compile"]) == ("1.5", '["no", "yes"]', "false")


def test_a_run_without_a_report_has_no_estimates(tmp_path: Path) -> None:
    assert tracking.final_estimates(RunDir(tmp_path)) == {}


# --- the config


@pytest.mark.parametrize(("text", "read"), [
    ("/a/b", "/a/b"), ("file:///a/b", "/a/b"), ("file:/a%20b", "/a b"), ("file://localhost/a", "/a"), ("/a#b?c", "/a#b?c"),
    ("sqlite:////a/m.db", "sqlite:////a/m.db"), ("https://ml.example.org:5000/x", "https://ml.example.org:5000/x"),
    ("http://[::1]:5000", "http://[::1]:5000"), ("./a:b", f"{Path.cwd()}/a:b"), ("a", f"{Path.cwd()}/a"),
    ("databricks", f"{Path.cwd()}/databricks"), ("sqlite:///m.db", f"sqlite:///{Path.cwd()}/m.db"),
])  # fmt: skip
def test_a_store_is_the_same_wherever_the_run_goes_on(text: str, read: str) -> None:
    assert mlflow_store(text) == read and mlflow_store(read) == read


@pytest.mark.parametrize("text", [
    "http://me:s3cret@host", "https://s3cret@host/x", "http://me:s3/cret@host", "http://host/?token=s3cret", "http://host#s3cret",
    "http://", "https:///x", "http:host", "http://h:99999", "http://[::1", "http://a b", "postgresql://me:s3cret@h/db", "uc:x",
    "mysql+pymysql://s3cret", "file://host/a", "file:", "sqlite://", "sqlite:///", "sqlite:///:memory:", "sqlite:///a?s3cret",
    "sqlite:///a%20b", "sqlite:m.db", "HTTP://me:s3cret@host", "", "a\nb",
])  # fmt: skip
def test_a_wrong_store_is_refused_without_being_shown(text: str) -> None:
    raw = {
        "name": "x",
        "data": {"path": "x", "labels": ["a", "b"], "identifiers": "none"},
        "cluster": {"name": "x"},
        "tracking": {"mlflow": text},
    }
    from hpcai.config.check import check

    with pytest.raises(Faults) as e:
        check(raw)
    (line,) = e.value.lines
    assert line.startswith("tracking.mlflow: ") and "cret" not in line and "\n" not in line


def test_trackers_make_no_other_run() -> None:
    words = ("tracking.tensorboard=true", "tracking.mlflow=ml", "tracking.experiment=x", "tracking.wait_s=1")
    assert digest(config(*words)) == digest(config())


def test_a_missing_extra_is_told_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(Faults) as e:
        config("tracking.tensorboard=true", "tracking.mlflow=http://host")
    assert e.value.lines == [
        "tracking.tensorboard: needs the extra tensorboard. Install hpcai[tensorboard].",
        "tracking.mlflow: needs the extra mlflow. Install hpcai[mlflow].",
    ]
    assert config("tracking.mlflow=null").tracking.mlflow is None


def test_nothing_of_a_tracker_is_imported_before_the_job() -> None:
    words = [
        "name=x",
        "data.path=x",
        "data.labels=[a,b]",
        "data.identifiers=none",
        "tracking.mlflow=sqlite:///x",
        "tracking.tensorboard=true",
    ]
    program = f"import sys; from hpcai.config.check import load; load({words}); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert not {"mlflow", "tensorboard", "sqlalchemy", "torch", "numpy"} & set(loaded)


# --- the whole


@pytest.mark.slow
def test_a_training_with_trackers_has_the_bits_of_one_without(train: Launcher, tmp_path: Path) -> None:
    from training_kit import assert_same

    assert train("trainer.checkpoint_every=2").rc == 0
    plain = train.run_dir()
    trackers = ("tracking.tensorboard=true", f"tracking.mlflow={tmp_path}/ml", WAIT)
    done = train(f"runs_dir={tmp_path}/b", "trainer.checkpoint_every=2", *trackers)
    assert (done.rc, done.err) == (0, "")
    run = RunContext(RunDir(tmp_path / "b" / plain.path.name))
    assert_same(plain, run.dir)
    a, b = (rundir.read_json(each.report_json) for each in (plain, run.dir))
    assert warned(run) == [] and a["warnings"] == b["warnings"]

    os.environ.update(tracking.FORCED)
    (told,) = runs_in(str(tmp_path / "ml"), "tiny")
    assert told.info.status == "FINISHED" and told.data.tags["run_id"] == plain.path.name
    lines = [line for line in rundir.read_lines(run.dir.metrics) if line["kind"] == "train"]
    steps = [line["step"] for line in lines]
    assert [s for s, _, _ in history(str(tmp_path / "ml"), told.info.run_id, "train/loss")] == steps
    assert events(run)["train/loss"] == [(line["step"], pytest.approx(line["loss"])) for line in lines]
    estimates = {f"{e['split']}/{e['name']}": e["value"] for e in b["estimates"]}
    assert told.data.metrics["test/auc"] == estimates["test/auc"]
    assert str(train.npz) not in json.dumps(told.data.params)

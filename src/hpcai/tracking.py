"""A run's metrics where its user looks already.   metrics.jsonl -> a thread a tracker -> TensorBoard's files, MLflow's run

Rank 0 of a job follows its own metrics.jsonl (`follow`, one line in a job). The file is the queue: nothing piles up in memory,
the training hands nothing over and waits for nothing, and what a tracker did not take is still there when it answers again, or
when the run goes on. So one that fails or hangs costs one warning, and at the job's end at most `tracking.wait_s`.

Sent: the numbers of metrics.jsonl as `train/loss`, `val/auc`.. at their step; at the end report.json's estimates with their
intervals as `test/auc`, `test/auc_low`, `test/auc_high`; to MLflow also the config without folders and paths (they can name
patients), run_id, job, hpcai's version and the git commit. Never sent: weights, rows, reports, ids of cases or patients. Nobody
but the user's own MLflow server hears of a run: MLflow's telemetry is off.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import math
import os
import re
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import hpcai
from hpcai import rundir, runs
from hpcai.config.schema import Config
from hpcai.context import RunContext
from hpcai.errors import OwnedError, Stopped
from hpcai.rundir import RunDir

log = logging.getLogger("hpcai")
Json = dict[str, Any]
Status = Literal["FINISHED", "FAILED", "KILLED"]  # MLflow's words
POLL_S = 2.0  # how often metrics.jsonl is looked at
RETRY_S = (2.0, 60.0)  # the first pause after a failure, and the longest; each is twice the one before
LINES = 100  # of metrics.jsonl, sent at once
BATCH = {"metrics": 1000, "params": 100}  # MLflow's limits for one request
NO_METRICS = ("step", "time", "left_s")
NOT_SENT = (
    "runs_dir",
    "from_run",
    "depends_on",
    "predict.merge",
    "data.path",
    "data.root",
    "model.init_from",
    "tracking",
)  # folders can be named after patients
FORCED = {  # in the job's process. Newer MLflow takes a folder as a store only if it is told so
    "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "MLFLOW_ALLOW_FILE_STORE": "true",
    "MLFLOW_CONFIGURE_LOGGING": "false", "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING": "false",
}  # fmt: skip
LIMITS = {  # unless the user sets them: one try, since `Follower` tries again itself; MLflow's own are 120 s and seven tries
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_ALLOW_HTTP_REDIRECTS": "false",
}  # fmt: skip
QUIET = ("mlflow", "alembic", "urllib3")  # loggers whose words may cite an address


class Tracker(Protocol):
    """Where metrics go. Any method may raise anything; `open` then comes again, and everything after it."""

    name: str

    def open(self) -> None:
        """Connects, and starts the run's metrics over: all lines of metrics.jsonl follow, from the first."""

    def send(self, lines: Sequence[Json]) -> None:
        """Takes lines of metrics.jsonl."""

    def close(self, status: Status, final: Mapping[str, float], step: int) -> None:
        """Takes the final estimates; the run has ended so."""


@contextlib.contextmanager
def follow(cfg: Config, run: RunContext) -> Iterator[None]:
    """Shows this run's metrics in the trackers that the config names, while the job within it runs."""
    followers = list(_followers(cfg, run)) if run.ranks.first else []
    status: Status | None = "FAILED"
    try:
        yield
        status = "FINISHED"
    except Stopped:
        status = "KILLED"
        raise
    except OwnedError:
        status = None  # another life runs it now, and tells its end
        raise
    finally:
        deadline = time.monotonic() + cfg.tracking.wait_s
        for follower in followers:
            follower.ending(status)
        for follower in followers:
            follower.leave(deadline)


def _followers(cfg: Config, run: RunContext) -> Iterator[Follower]:
    """One, started, for each tracker that is asked for and can be used here.

    Trackers are imported in this thread, once, for a second or two: their imports warn, and warnings are silenced a process.
    """
    wanted: list[Callable[[Config, RunDir], Tracker]] = [TensorBoard] if cfg.tracking.tensorboard else []
    wanted += [MLflow] if cfg.tracking.mlflow else []
    for kind in wanted:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                follower = Follower(kind(cfg, run.dir), run)
            follower.start()
        except Exception as e:
            name = "tensorboard" if kind is TensorBoard else "mlflow"
            _told(run, f"tracking.{name}: cannot be used here ({_kind(e)}). The run goes on; metrics.jsonl has all.")
        else:
            yield follower


class Follower(threading.Thread):
    """Reads metrics.jsonl as it grows and hands it to one tracker; of its own, so that one that hangs holds up no other."""

    def __init__(self, tracker: Tracker, context: RunContext) -> None:
        super().__init__(name=f"tracking.{tracker.name}", daemon=True)
        self.tracker, self.context = tracker, context
        self.ended, self.speaking = threading.Event(), threading.Lock()
        self.status: Status | None = None
        self.failed = self.complete = False
        self.file: int | None = None  # the inode that was read so far; None: start over
        self.offset, self.step = 0, 0

    def run(self) -> None:
        """The thread: one pass after another, until the job has ended."""
        pause = retry = 0.0
        while True:
            last = self.ended.wait(pause)
            try:
                self.context.fence()  # the newest life alone: others would tell the same run twice
                if not last or self.status:
                    self._pass(self.status if last else None)
                pause = POLL_S
                retry = 0.0
                self.complete |= last
            except OwnedError:
                self.complete = True
                return
            except Exception as e:
                self._fail(e)
                self.file = None
                pause = retry = min(retry * 2, RETRY_S[1]) or RETRY_S[0]
            if last:
                return

    def ending(self, status: Status | None) -> None:
        """The job has ended: one last pass. From now on nothing is written into the run folder."""
        with self.speaking:
            self.status = status
            self.ended.set()

    def leave(self, deadline: float) -> None:
        """Waits for the last pass, not beyond `deadline` (of time.monotonic)."""
        self.join(max(0.0, deadline - time.monotonic()))
        if not self.complete:
            text = f"tracking.{self.tracker.name}: has not taken all by the run's end (tracking.wait_s). metrics.jsonl has all."
            log.log(logging.INFO if self.failed else logging.WARNING, "%s", text)

    def _pass(self, status: Status | None) -> None:
        metrics = self.context.dir.metrics
        now = metrics.stat().st_ino if metrics.exists() else 0
        if now != self.file:  # the first time, after a failure, and when a training that goes on has cut the file
            self.tracker.open()
            self.file, self.offset = now, 0
        while lines := self._new(metrics):
            self.tracker.send(lines)
            self.step = lines[-1]["step"]
        if status is not None:
            self.tracker.close(status, final_estimates(self.context.dir) if status == "FINISHED" else {}, self.step)

    def _new(self, metrics: Path) -> list[Json]:
        """The next whole lines, at most LINES; those that were returned before have been taken."""
        if self.file == 0:
            return []
        with metrics.open("rb") as f:
            f.seek(self.offset)
            lines = [line for line in (f.readline() for _ in range(LINES)) if line.endswith(b"\n")]
            self.offset += sum(map(len, lines))
        return [json.loads(line) for line in lines]

    def _fail(self, e: Exception) -> None:
        """Told once. Not in the run folder once the job has ended: its report is made and its end is due."""
        with self.speaking:
            if not self.failed:
                text = f"tracking.{self.tracker.name}: fails ({_kind(e)}). The run goes on; metrics.jsonl has all. Mend it."
                _told(self.context, text, record=not self.ended.is_set())
            self.failed = True


def _told(run: RunContext, message: str, *, record: bool = True) -> None:
    log.warning("warning: %s", message)
    with contextlib.suppress(OSError):
        if record:
            run.note("warning", message=message)


def _kind(e: BaseException) -> str:
    """The names of an error's type and of its first cause's. Never its text: it may cite an address or a credential."""
    cause = e
    while (before := cause.__cause__ or cause.__context__) is not None:
        cause = before
    return " from ".join(dict.fromkeys((type(e).__name__, type(cause).__name__)))


# --- what is told


def numbers(line: Json) -> dict[str, float]:
    """The metrics of one line of metrics.jsonl, by name: `train/loss`.. Without what is undefined there."""
    found = {f"{line['kind']}/{key}": value for key, value in line.items() if key not in NO_METRICS}
    return {key: float(v) for key, v in found.items() if type(v) in (int, float) and math.isfinite(v)}


def final_estimates(run: RunDir) -> dict[str, float]:
    """The estimates of report.json: `test/auc`, `test/auc_low`, `test/auc_high`; `sensitivity[1]` becomes `sensitivity_1`."""
    if not run.report_json.is_file():
        return {}
    found: dict[str, float] = {}
    for estimate in runs.read_report(run)["estimates"]:
        name = re.sub(r"\W+", "_", estimate["name"], flags=re.ASCII).strip("_")
        ends = {"": estimate["value"], "_low": estimate["low"], "_high": estimate["high"]}
        found |= {f"{estimate['split']}/{name}{end}": v for end, v in ends.items() if v is not None}
    return found


def params(cfg: Config) -> dict[str, str]:
    """The config by dotted key, as a user writes it; without NOT_SENT, absolute paths, and what is null or empty."""

    def flat(value: Any, key: str) -> Iterator[tuple[str, str]]:
        if key in NOT_SENT or value in (None, "", [], {}):
            return
        if isinstance(value, dict):
            for name, inner in value.items():
                yield from flat(inner, f"{key}.{name}".lstrip("."))
        elif not any(str(v).startswith(("/", "~")) for v in (value if isinstance(value, list) else [value])):
            yield key, (value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))[:500]

    return dict(flat(cfg.model_dump(), ""))


# --- TensorBoard


class TensorBoard:
    """One event file in RUN/tensorboard, made anew from metrics.jsonl each time the run goes on: no step stands in it twice.

    Its records are written by tensorboard's writer of records, not by EventFileWriter or torch's SummaryWriter: those import
    TensorFlow where it is installed (seconds, and a hand on the GPU) and start a thread that prints a traceback on a full disk.
    """

    name = "tensorboard"

    def __init__(self, cfg: Config, run: RunDir) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        self.event, self.summary, self.records = event_pb2, summary_pb2, RecordWriter
        self.folder = run.tensorboard
        self.writer: Any = None

    def open(self) -> None:
        """A new file in place of the old ones; a TensorBoard that has read those forgets them (a start at step 0)."""
        self._shut()
        self.folder.mkdir(parents=True, exist_ok=True)
        for old in self.folder.glob("events.out.tfevents.*"):
            old.unlink()
        file = self.folder / f"events.out.tfevents.{time.time_ns() // 1000:016d}.{os.getpid()}.hpcai"
        self.writer = self.records(file.open("wb"))
        self._write(file_version="brain.Event:2", wall_time=time.time())
        self._write(session_log=self.event.SessionLog(status=self.event.SessionLog.START), step=0, wall_time=time.time())
        self.writer.flush()

    def send(self, lines: Sequence[Json]) -> None:
        """Written and flushed: a TensorBoard that runs sees it at its next look."""
        for line in lines:
            self._scalars(numbers(line), line["step"], line.get("time", 0.0))
        self.writer.flush()

    def close(self, status: Status, final: Mapping[str, float], step: int) -> None:
        """The final estimates at the last step."""
        self._scalars(final, step, time.time())
        self.writer.close()

    def _scalars(self, values: Mapping[str, float], step: int, wall_time: float) -> None:
        if values:
            each = [self.summary.Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
            self._write(summary=self.summary.Summary(value=each), step=step, wall_time=wall_time)

    def _write(self, **facts: Any) -> None:
        self.writer.write(self.event.Event(**facts).SerializeToString())

    def _shut(self) -> None:
        with contextlib.suppress(OSError):
            if self.writer is not None:
                self.writer.close()


# --- MLflow


class MLflow:
    """One MLflow run for one run folder, through all its lives: found by its tag `hpcai_id`, which RUN/tracking.json keeps."""

    name = "mlflow"

    def __init__(self, cfg: Config, run: RunDir) -> None:
        os.environ.update(FORCED)
        for key, value in LIMITS.items():
            os.environ.setdefault(key, value)
        for logger in map(logging.getLogger, QUIET):
            logger.propagate = False
            logger.addHandler(logging.NullHandler())
        from mlflow import MlflowClient, entities

        assert cfg.tracking.mlflow is not None
        self.client_of, self.entities, self.store = MlflowClient, entities, cfg.tracking.mlflow
        if self.store.startswith("sqlite:"):
            from mlflow.store.tracking import sqlalchemy_store  # here, where its warnings go nowhere

            assert sqlalchemy_store
        self.cfg, self.run_dir = cfg, run
        self.client: Any = None
        self.id = ""
        self.there: dict[str, set[int]] = {}  # the steps of each metric that the store has

    def open(self) -> None:
        """Finds the run or makes it, and asks what it has: what was sent before an answer got lost is not sent again."""
        with self._alone():
            self.client = self.client_of(tracking_uri=_address(self.store))
            experiment = self._experiment()
        run = self._found(experiment) or self.client.create_run(experiment, run_name=self.run_dir.path.name, tags=self._tags())
        self.id = run.info.run_id
        if run.info.status != "RUNNING":
            self.client.update_run(self.id, status="RUNNING")
        self.there = {key: {m.step for m in self.client.get_metric_history(self.id, key)} for key in run.data.metrics}
        known = run.data.params  # a value that was told cannot be changed: the first life's stands
        new = [self.entities.Param(key, value) for key, value in params(self.cfg).items() if key not in known]
        self._log(params=new)

    def send(self, lines: Sequence[Json]) -> None:
        """Those of their numbers that the store has not."""
        metric = self.entities.Metric
        self._log(metrics=[
            metric(key, value, int(line.get("time", 0) * 1000), line["step"])
            for line in lines for key, value in numbers(line).items() if line["step"] not in self.there.get(key, ())
        ])  # fmt: skip

    def close(self, status: Status, final: Mapping[str, float], step: int) -> None:
        """The final estimates at the last step, and the run's status."""
        now, metric = int(time.time() * 1000), self.entities.Metric
        self._log(metrics=[metric(key, v, now, step) for key, v in final.items() if step not in self.there.get(key, ())])
        self.client.set_terminated(self.id, status)

    def _log(self, **kind: list[Any]) -> None:
        for name, values in kind.items():
            for i in range(0, len(values), BATCH[name]):
                self.client.log_batch(self.id, **{name: values[i : i + BATCH[name]]}, synchronous=True)

    def _experiment(self) -> str:
        """The id of the experiment, made if there is none; another run may make it at this moment."""
        name = self.cfg.tracking.experiment or self.cfg.name
        found = self.client.get_experiment_by_name(name)
        if found is None:
            try:
                return str(self.client.create_experiment(name))
            except Exception:
                found = self.client.get_experiment_by_name(name)
                if found is None:
                    raise
        return str(found.experiment_id)

    def _found(self, experiment: str) -> Any:
        found = self.client.search_runs([experiment], filter_string=f"tags.hpcai_id = '{self._own_id()}'", max_results=1)
        return found[0] if found else None

    def _own_id(self) -> str:
        """This folder's own: another folder on the same server may have its run_id (another user's, another runs_dir)."""
        if not self.run_dir.tracking.is_file():
            rundir.write_json(self.run_dir.tracking, {"version": rundir.VERSION, "hpcai_id": uuid.uuid4().hex})
        return str(rundir.read_json(self.run_dir.tracking)["hpcai_id"])

    def _tags(self) -> dict[str, str]:
        there = self.run_dir.environment.is_file()
        git = (rundir.read_json(self.run_dir.environment).get("git") if there else None) or {}
        facts = {"hpcai_id": self._own_id(), "run_id": self.run_dir.path.name, "job": self.cfg.job,
                 "hpcai_version": hpcai.__version__, "git_commit": git.get("commit")}  # fmt: skip
        return {key: value for key, value in facts.items() if value}

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """A store of files is made, and given its experiment, by one process at a time: MLflow itself does not see to it."""
        if self.store.startswith("http"):
            yield
            return
        path = Path(self.store.removeprefix("sqlite:///"))
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.with_name(f"{path.name}.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _address(store: str) -> str:
    """`store` as MLflow reads it: a folder as a file: address, so that no sign in its name means anything."""
    return Path(store).as_uri() if store.startswith("/") else store

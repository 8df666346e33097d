"""From a plan to a running job.   JobPlan -> lease -> run folder -> submitit -> `python -m hpcai.worker RUN_DIR` on each rank

submitit is given one command and nothing to pickle: results are files of the run folder, and a person can type the same line.
Never imports torch.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import shlex
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hpcai import lease, rundir
from hpcai.config.schema import Config
from hpcai.context import HELD_SIGNALS
from hpcai.errors import DataError, Faults, HpcaiError, PlanError
from hpcai.inputs import Input
from hpcai.plan import JobPlan, read_plan
from hpcai.provenance import NOT_FROZEN, PACKAGE, changed, code_digest, environment, versions
from hpcai.rundir import RunDir
from hpcai.runs import DAMAGED

CHAIN = 4  # jobs in a row where a site allows no requeue
AGAIN_S = 2.0  # a stop is asked for again so often: a rank may not have been ready for the first


def check_identity(run: RunDir, plan: JobPlan) -> None:
    """Raises: PlanError if the folder holds another run: a copied one, or one whose eight digits are the same by chance."""
    if run.plan.is_file() and (then := read_plan(run).identity) != plan.identity:
        raise PlanError(
            f"run={plan.run_id}: its folder holds another run ({then[:12]}..., not {plan.identity[:12]}...). "
            "Move it away, or --anew starts another folder."
        )


def differences(run: RunDir, plan: JobPlan, files: list[Input], frozen: Frozen | None = None) -> Iterator[HpcaiError]:
    """What differs between a prepared run folder and the same command today, as faults; nothing if nothing does."""
    cure = "--anew starts another folder."
    try:
        then, data = rundir.read_json(run.environment), [f["sha256"] for f in rundir.read_json(run.data)["files"]]
        versions_then, code_then = dict(then["versions"]), str(then["code_sha256"])
        asked = rundir.read_json(run.plan)["resources"]
        before = int(asked["nodes"] * asked["tasks_per_node"])
    except DAMAGED:
        yield PlanError(f"run={plan.run_id}: its environment.json, data.json or plan.json is damaged. {cure}")
        return
    if code_then != (frozen.environment["code_sha256"] if frozen else code_digest()):
        yield PlanError(f"run={plan.run_id}: hpcai's code has changed since it was submitted. {cure}")
    now = frozen.environment["versions"] if frozen else versions()
    if others := changed(versions_then, now):
        yield PlanError(f"run={plan.run_id}: versions have changed: {', '.join(others[:5])}. {cure}")
    if data != [f.sha256 for f in files]:
        yield DataError(f"run={plan.run_id}: the data has changed since it was submitted. {cure}")
    if before != plan.ranks:
        yield PlanError(f"run={plan.run_id}: it began on {before} ranks, not {plan.ranks}. Ask for {before}, or {cure}")


@dataclass(frozen=True)
class Frozen:
    """The package and its surroundings as they were at a sweep's start: what its members have in common."""

    code: Path
    environment: dict[str, Any]


def freeze(folder: RunDir) -> Frozen:
    """Copies the package below `folder` and notes what it runs on; keeps a copy that is there and the same."""
    facts = environment()
    try:
        same = rundir.read_json(folder.environment)["code_sha256"] == facts["code_sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        same = False
    if not same:  # environment.json comes last: it says that the copy is whole
        _copy(PACKAGE, folder.code, shutil.copy2)
    rundir.write_json(folder.environment, facts)
    return Frozen(folder.code, facts)


def _copy(package: Path, to: Path, copy: Callable[[str, str], object]) -> None:
    shutil.rmtree(to, ignore_errors=True)
    try:
        shutil.copytree(package, to / "hpcai", ignore=shutil.ignore_patterns(*NOT_FROZEN), copy_function=copy)
    except shutil.Error as e:  # it collects texts; the number of the first is the reason
        number = re.search(r"\[Errno (\d+)\]", str(e))
        code = int(number[1]) if number else errno.EIO
        raise OSError(code, os.strerror(code)) from e


def _link(source: str, to: str) -> None:
    """A hard link: the same file, so that a process which imported it need not import it again. A copy where there are none."""
    try:
        os.link(source, to)
    except OSError:
        shutil.copy2(source, to)


def prepare(run: RunDir, plan: JobPlan, config: Config, files: list[Input], frozen: Frozen | None = None) -> None:
    """Writes the run folder, or what may change in one that goes on; plan.json last: it says that the rest is whole.

    Raises: Faults if an unfinished run would go on with other code, versions, data or ranks; PlanError if it is another run's.
    """
    check_identity(run, plan)
    if run.plan.is_file():
        if faults := list(differences(run, plan, files, frozen)):
            raise Faults(faults)
    else:
        if frozen:
            _copy(frozen.code / "hpcai", run.code, _link)
        else:
            _copy(PACKAGE, run.code, shutil.copy2)
        rundir.write_json(run.environment, frozen.environment if frozen else environment())
        data = {"name": config.data.name, "source": config.data.source, "licence": config.data.licence}
        rundir.write_json(run.data, {**data, "files": [asdict(f) for f in files]})
    write_config(run, config)
    if plan.executor == "slurm":
        from hpcai import script

        rundir.write_bytes(run.script, script.text(plan, config).encode())
    rundir.write_json(run.plan, plan.to_json())


def start(run: RunDir, plan: JobPlan, life: int, gpus: Sequence[int] = ()) -> Any:
    """Starts the ranks by submitit; returns its job, whose `_process` is the controller that holds them.

    `gpus`: numbers of the GPUs that it may see; none: the first ones.
    """
    executor = _executor(run, plan, life, gpus)
    with apart(run.submitit / "controller.log"):
        job = executor._submit_command(executor._submitit_command_str)
    lease.hand_over(run, life, job._process.pid)
    return job


def chain(config: Config) -> int:
    """How many jobs in a row."""
    return config.cluster.chain or (CHAIN if config.cluster.facts.requeue is False else 1)


def send(run: RunDir, plan: JobPlan, life: int, waves: Sequence[Sequence[str]], needs: Sequence[str] = ()) -> list[str]:
    """Gives the script of a run, or of a sweep, to Slurm, by submitit; returns the ids of its jobs.

    Args:
        run: the folder with the script; its life gets the jobs.
        plan: of one job.
        life: taken before.
        waves: what sbatch is told of each job (an array's tasks); each wave begins when those before it have ended.
        needs: dependencies of the first wave, in sbatch's words.

    Raises: PlanError with the site's reason if it is refused: the life has then ended.
    """
    from hpcai import scheduler

    jobs: list[str] = []
    try:
        with _own_environment(), contextlib.redirect_stderr(io.StringIO()):  # submitit repeats what sbatch says
            after = list(needs)
            for wave in waves:
                for words in wave:
                    wait = [f"--dependency={','.join(after)}", "--kill-on-invalid-dep=yes"] if after else []
                    executor = _slurm_executor(run, plan, [*words.split(), *wait])
                    jobs.append(str(executor._submit_command(executor._submitit_command_str).job_id))
                    lease.give_to_job(run, life, jobs[0], jobs)
                after = [f"afterany:{':'.join(jobs[-len(wave) :])}"]
    except Exception as e:  # submitit's own; what sbatch said stands in its text
        why = scheduler.rejection(str(e), _asked_for(plan))
        job = None if jobs else scheduler.named(plan.run_id, str(run.script))
        if job is not None:  # sbatch was slow to say so, or we failed after it
            lease.give_to_job(run, life, job, [job])
            print(f"warning: job {job} is in the queue, and then: {why}", file=sys.stderr)
            return [job]
        if not jobs:
            lease.append(run, life, 0, "end", code=PlanError.code, message=why)
            raise PlanError(why) from e
        asked = sum(len(wave) for wave in waves)
        print(f"warning: {len(jobs)} of {asked} jobs were submitted, {', '.join(jobs)} ({why})", file=sys.stderr)
    return jobs


def _asked_for(plan: JobPlan) -> dict[str, object]:
    """The keys that a refusal may be about."""
    slurm, names = plan.slurm or {}, ("partition", "qos", "account", "reservation")
    return {f"resources.{k}": v for k, v in plan.resources.items()} | {f"cluster.{name}": slurm.get(name) for name in names}


@contextlib.contextmanager
def _own_environment() -> Iterator[None]:
    """sbatch sees none of what a surrounding job left in ours, and the job none of our variables."""
    from hpcai import scheduler

    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(scheduler.submit_env(before))
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _slurm_executor(run: RunDir, plan: JobPlan, options: Sequence[str]) -> Any:
    from submitit.slurm.slurm import SlurmExecutor

    class ScriptExecutor(SlurmExecutor):  # type: ignore[misc]
        """submitit's Slurm executor, sending the run's own script."""

        @property
        def _submitit_command_str(self) -> str:
            return ""

        def _make_submission_file_text(self, command: str, uid: str) -> str:
            return run.script.read_text("utf-8")

        def _make_submission_command(self, submission_file_path: Path) -> list[str]:
            return ["sbatch", *options, str(run.script)]

        def _num_tasks(self) -> int:
            return plan.ranks

    run.submitit.mkdir(exist_ok=True)
    return ScriptExecutor(run.submitit)


@contextlib.contextmanager
def apart(log: Path) -> Iterator[None]:
    """What is started in here holds neither our terminal's signals nor our output.

    SIGINT and SIGHUP stay blocked in the controller: Ctrl-C at a terminal reaches the launcher and the ranks, which unblock it
    and stop between two steps; submitit's own answer would kill them a second later. And whoever reads our output through a
    pipe would wait for the whole run, also with --no-wait.
    """
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, HELD_SIGNALS)
    ours = [os.dup(fd) for fd in (0, 1, 2)]
    theirs = [os.open(os.devnull, os.O_RDONLY), os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)]
    try:
        for fd, target in ((0, theirs[0]), (1, theirs[1]), (2, theirs[1])):
            os.dup2(target, fd)
        yield
    finally:
        for fd, copy in enumerate(ours):
            os.dup2(copy, fd)
        for fd in (*ours, *theirs):
            os.close(fd)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def ask_to_stop(run: RunDir, life: int, ranks: int) -> bool:
    """Sends one SIGTERM to the process that holds the ranks of a life, which forwards it; says whether it was sent.

    Not before every rank has begun: from its begin record on it answers with a checkpoint, before it SIGTERM would just end it.
    A pid that another process has got since is left alone. srun forwards no SIGTERM, it kills its ranks: those of this host are
    told themselves, and agree with the others.
    """
    try:
        owner = rundir.read_json(lease.life_dir(run, life) / "owner.json")
        begun = [next(r for r in told if r["event"] == "begin") for told in lease.outline(run, life).values() if told]
        targets = [who for who in (begun if owner.get("kind") == "slurm" else [owner]) if lease.is_here(who)]
        if len(begun) < ranks or not targets:
            return False
        for who in targets:
            os.kill(int(who["pid"]), signal.SIGTERM)
    except (OSError, ValueError, KeyError, TypeError, StopIteration):  # gone meanwhile, or damaged
        return False
    return True


def pythonpath(code: Path) -> str:
    """The snapshot first, then what the caller has."""
    return os.pathsep.join(p for p in (str(code), os.environ.get("PYTHONPATH", "")) if p)


def command(run: RunDir, life: int) -> list[str]:
    """The one line that starts a rank."""
    return [
        "env", f"PYTHONPATH={pythonpath(run.code)}", f"HPCAI_LIFE={life}",
        sys.executable, "-P", "-u", "-m", "hpcai.worker", str(run.path),
    ]  # fmt: skip


def _executor(run: RunDir, plan: JobPlan, life: int, gpus: Sequence[int]) -> Any:
    from submitit.local.local import LocalExecutor

    class CommandExecutor(LocalExecutor):  # type: ignore[misc]
        """submitit's local executor, running our command in place of its pickle runner."""

        @property
        def _submitit_command_str(self) -> str:
            return shlex.join(command(run, life))

    run.submitit.mkdir(exist_ok=True)
    executor = CommandExecutor(run.submitit)
    minutes, lead = time_limit(plan)
    executor.update_parameters(
        tasks_per_node=plan.resources["tasks_per_node"],
        gpus_per_node=plan.resources["gpus_per_node"],
        visible_gpus=tuple(gpus),
        timeout_min=minutes,
        signal_delay_s=lead,
    )
    return executor


def time_limit(plan: JobPlan) -> tuple[int, int]:
    """Minutes that the ranks have, and how many seconds before the end they are told."""
    minutes = int(plan.resources["timeout_min"])
    return minutes, min(60, minutes * 30)


def write_config(run: RunDir, config: Config) -> None:
    """Writes config.yaml, whole or not at all."""
    import yaml

    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)  # libyaml's, where it was built in: a sweep writes hundreds
    text: str = yaml.dump(config.to_plain(), Dumper=dumper, sort_keys=False, allow_unicode=True)
    rundir.write_bytes(run.config, text.encode())

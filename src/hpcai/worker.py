"""What every rank runs: `python -m hpcai.worker RUN_DIR`.   place among the ranks -> stop flag -> the job by name -> end record

submitit starts this line, and so may a person, srun, mpiexec or torchrun. It runs the code that was frozen at submission
(RUN/code); its exit code is the run's. Nothing heavy is imported before the job itself.
"""

from __future__ import annotations

import importlib
import logging
import os
import re
import signal
import sys
import threading
import time
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import hpcai
from hpcai import cluster, lease, meter, provenance, rundir, scheduler, seal
from hpcai.context import Ranks, RunContext, Stop, current_job, read_ranks, this_start
from hpcai.errors import HpcaiError, OwnedError, PlanError, RunError, one_line
from hpcai.output import steady
from hpcai.plan import JobPlan, read_config, read_plan
from hpcai.rundir import RunDir, cut_torn_line

log = logging.getLogger("hpcai")
JOIN_S = 180.0  # how long a rank waits for rank 0 to take the run's next life: longer than rank 0 may wait for a silent job


def main(argv: list[str]) -> int:
    """Runs one rank; returns its exit code. Errors are one line on stderr, their traceback in the rank's log."""
    stop = Stop().install()
    rundir.guard("user")
    if len(argv) != 1:
        print("usage: python -m hpcai.worker RUN_DIR", file=sys.stderr)
        return 2
    run = RunDir(Path(argv[0]).absolute())
    try:
        if not run.plan.is_file():
            raise PlanError(f"RUN_DIR={run.path.name}: holds no plan.json. Give the folder of a run.")
        _run_frozen_code(run, argv)
        plan, ranks = read_plan(run), read_ranks(os.environ)
        rundir.guard(plan.access)
        if ranks.world_size != plan.ranks:
            raise PlanError(
                f"world_size={ranks.world_size}: run {plan.run_id} was planned for {plan.ranks} ranks. Start so many."
            )
        if lease.read_state(run).state == "completed":
            print(f"finished already: {one_line(str(run.report_html))}")
            return 0
        _set_up_process(plan, run, ranks)
        context = RunContext(run, ranks, _join(run, ranks), stop)
        where = {"machine": asdict(cluster.read_machine())} if plan.executor != "local" and ranks.first else {}
        context.note("begin", **lease.me(), threads=plan.threads, launcher=ranks.launcher, **where)
        if lease.is_cancelled(run, context.life):  # asked before it could answer
            stop.signum = stop.signum or signal.SIGTERM
    except HpcaiError as e:
        print("\n".join(e.lines), file=sys.stderr)
        return e.code
    except OSError as e:
        print(f"RUN_DIR={run.path.name}: {e.strerror}. Free space or mend the folder, then start it again.", file=sys.stderr)
        return RunError.code
    return _run_job(plan, context)


def _run_job(plan: JobPlan, context: RunContext) -> int:
    if context.ranks.first:
        threading.Thread(target=_beat, args=(context,), daemon=True).start()
    meter.start(context, gpu=plan.resources["gpus_per_node"] > 0)
    end: dict[str, object] = {"code": 0}
    try:
        if plan.executor == "slurm" and context.ranks.first:
            provenance.keep(context.dir)
        config = read_config(context.dir)
        load_job(plan.job).main(config, context)
    except HpcaiError as e:
        end = {"code": e.code, "kind": type(e).__name__, "message": e.lines[0]}
        (log.info if e.code >= 128 else log.error)("%s", e.lines[0])
        log.debug("%s", traceback.format_exc())
    except OSError as e:  # a full or read-only disk, a lost file system: the run's fault, not ours
        end = _failure(context, f"{type(e).__name__}: {e.strerror}. Free space or mend the disk; the same command goes on.")
    except MemoryError:
        end = _failure(context, "out of memory. Ask for more resources.mem_gb, or a smaller trainer.batch_size.")
    except Exception as e:
        # On several ranks a lost peer shows as an error of the collective: what follows from it must not hide its cause.
        if type(e).__name__ == "OutOfMemoryError":  # torch's: its module is not ours to import here
            end = _failure(context, "out of GPU memory. Take a smaller trainer.batch_size, or trainer.accumulate.")
        else:
            log_name = context.dir.log(context.ranks.rank).name
            end = _failure(context, f"{type(e).__name__}. Its traceback stands in {log_name}.", 1)
            end["collateral"] = context.ranks.world_size > 1 and isinstance(e, RuntimeError)
    meter.settle()
    try:
        context.note("end", **seal.last_words(context.dir, context.life, context.ranks.rank, end))
    except OSError as e:
        print(f"run={plan.run_id}: its end could not be recorded ({e.strerror}).", file=sys.stderr)
        return int(str(end["code"])) or RunError.code
    return int(str(end["code"]))


def load_job(name: str) -> Any:
    """The module of jobs/ with that name: the one place where the heavy world is entered."""
    return importlib.import_module(f"hpcai.jobs.{name}")


def _failure(context: RunContext, what: str, code: int = RunError.code) -> dict[str, object]:
    message = f"run.rank={context.ranks.rank}: {what}"
    log.error("%s", message)
    log.debug("%s", traceback.format_exc())
    return {"code": code, "message": message}


def _run_frozen_code(run: RunDir, argv: list[str]) -> None:
    """Starts this process anew on the run's own snapshot, if it runs any other code.

    Raises: PlanError if it came from there and still does.
    """
    if (run.code / "hpcai").is_dir() and not _runs_its_code(run):
        if os.environ.get("HPCAI_CODE") == str(run.code):
            raise PlanError(f"RUN_DIR={run.path.name}: its code/ cannot be imported (damaged, or a : in its path). Mend it.")
        path = os.pathsep.join(p for p in (str(run.code), os.environ.get("PYTHONPATH", "")) if p)
        env = {**os.environ, "PYTHONPATH": path, "HPCAI_CODE": str(run.code)}
        os.execve(sys.executable, [sys.executable, "-P", "-m", "hpcai.worker", *argv], env)


def _runs_its_code(run: RunDir) -> bool:
    """This process imported the snapshot, or the very files by another name: a sweep's members are linked to one copy."""
    ours = Path(hpcai.__file__)
    if ours.resolve().is_relative_to(run.code.resolve()):
        return True
    try:
        return ours.samefile(run.code / "hpcai" / "__init__.py")
    except OSError:
        return False


def _set_up_process(plan: JobPlan, run: RunDir, ranks: Ranks) -> None:
    """Log, threads and determinism: the environment that torch and BLAS read when they are imported."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(plan.threads)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic cuBLAS, PyTorch's reproducibility notes
    file = run.log(ranks.rank)
    file.parent.mkdir(exist_ok=True)
    cut_torn_line(file)
    to_file, to_screen = logging.FileHandler(file, encoding="utf-8"), logging.StreamHandler(sys.stdout)
    to_file.setLevel(logging.DEBUG)
    to_screen.setLevel(logging.INFO if ranks.first else logging.ERROR)
    to_file.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    to_screen.setFormatter(logging.Formatter("%(message)s"))
    log.setLevel(logging.DEBUG)
    log.propagate = False
    logging.raiseExceptions = False  # a log that cannot be written stops no run and prints no traceback
    log.handlers = [to_file, to_screen]
    logging.captureWarnings(True)
    logging.getLogger("py.warnings").addHandler(to_file)


def _join(run: RunDir, ranks: Ranks) -> int:
    """The life that this process belongs to: the submitter's, or one that rank 0 takes when started by hand.

    Raises: OwnedError if another launch runs it.
    """
    given = os.environ.get("HPCAI_LIFE")
    if given is not None:
        lease.fence(run, int(given))
        return int(given)
    if ranks.world_size == 1:
        return _take(run, ranks)
    # Ranks of one launch share `group` (a job's or step's id) and the parent that started them on rank 0's node.
    launch = f"{ranks.launcher}-{ranks.group or os.getppid()}"
    again = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    token = run.lives / f".join-{re.sub('[^0-9A-Za-z]', '_', launch)}-{again}"
    if ranks.first:
        life = _take(run, ranks)
        beside = token.with_name(token.name + ".new")
        beside.write_text(str(life))
        beside.replace(token)
        return life
    before = time.monotonic()
    while time.monotonic() - before < JOIN_S:
        life = int(token.read_text()) if token.is_file() else 0
        if life == lease.last_life(run) > 0 and not (lease.life_dir(run, life) / f"rank{ranks.rank}.jsonl").exists():
            return life
        time.sleep(0.05)
    raise OwnedError(f"run={run.path.name}: rank 0 did not take it within {JOIN_S:g} s. See its log.")


def _take(run: RunDir, ranks: Ranks) -> int:
    """The run's next life; in a Slurm job the one that was taken for the job, on its first start.

    A start that follows another of its own job takes the next life whatever the records of the last one say: Slurm started it
    because the other is gone, and if that one's processes live on (a node that was cut off), the fence keeps them from writing.

    Raises: OwnedError if another launch runs it.
    """
    job = current_job(os.environ) if ranks.launcher == "srun" else None
    if job is None:
        return lease.take(run, ranks.world_size)
    life, restart = lease.last_life(run), int(os.environ.get("SLURM_RESTART_COUNT") or 0)
    owner, start = lease.read_owner(run, life), this_start(os.environ)
    waits = owner.get("kind") == "slurm" and owner["job"] in (None, job) and lease.is_untouched(run, life)
    if waits and lease.claim(run, life, start):
        lease.give_to_job(run, life, job)
        return life
    if owner.get("job") == job:  # of the same start it is another step, which may live
        over = 0 if lease.claimed_by(run, life) == start else life
    else:
        over = life if _is_gone(run, owner.get("job"), chained=job in owner.get("chain", [])) else 0
    chain = [other for other in owner.get("chain", []) if other != job]
    taken = lease.take(run, ranks.world_size, over=over, kind="slurm", job=job, restart=restart, chain=chain)
    lease.claim(run, taken, start)
    return taken


def _is_gone(run: RunDir, job: str | None, *, chained: bool) -> bool:
    """Whether the job that had the last life has ended, by the scheduler's word; where it has none, by the job's silence.

    Raises: OwnedError if we only follow it in a chain, and it was cancelled.
    """
    if job is None:
        return False
    answer = scheduler.look([job], history=False)
    if chained and job in answer.jobs and answer.jobs[job].state == "CANCELLED":
        raise OwnedError(f"run={run.path.name}: job {job} was cancelled, so the chain ends. hpcai resume starts it again.")
    if answer.queue:
        return scheduler.gone(answer, job)
    before = time.monotonic()
    while lease.read_state(run).state in lease.ACTIVE and time.monotonic() - before < lease.SILENT_S:
        time.sleep(1.0)
    return False


def _beat(context: RunContext) -> None:
    while True:
        try:
            lease.beat(context.dir, context.life)
        except OSError:
            log.debug("%s", traceback.format_exc())
        time.sleep(lease.BEAT_S)


def leave(code: int) -> NoReturn:
    """Ends the process at once: interpreter teardown with communication threads alive has hung for ever."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    steady()
    leave(main(sys.argv[1:]))

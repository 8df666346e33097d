"""`python -m hpcai.run +experiment=NAME [key=value ...]`: arguments -> compose -> check -> plan -> submit -> watch.

The words are Hydra's; the exit codes stand in errors.py. Starts light: neither torch nor numpy before the job's own process.
An old Python must be able to parse it, to be told that it is old (hpcai/__init__.py): so no `:=`, and quotes round types
that are imported for typing alone.
"""

import argparse
import gc
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if not __package__:  # started by its path: then src/ is the place to import from, not the package's own folder
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from hpcai.errors import ConfigError, Faults, HpcaiError, OwnedError, PlanError, one_line
from hpcai.output import exit_code, steady

if TYPE_CHECKING:
    from hpcai.config.schema import Config
    from hpcai.inputs import Input
    from hpcai.lease import RunState
    from hpcai.plan import JobPlan
    from hpcai.rundir import RunDir


def parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Our few options and Hydra's overrides.

    Raises: ConfigError for an unknown option.
    """
    parser = _Parser(prog="python -m hpcai.run", add_help=False, allow_abbrev=False)
    parser.add_argument("--help", "-h", action="store_true")
    parser.add_argument("--version", action="store_true")
    parser.add_argument("--cfg", choices=["job"])
    parser.add_argument("--config-dir", "-cd", type=Path)
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--explain", action="store_true")
    parser.add_argument("--no-wait", action="store_true")
    parser.add_argument("--anew", action="store_true")
    parser.add_argument("--multirun", "-m", action="store_true")
    parser.add_argument("--search", metavar="trials=N[,seed=0,sampler=tpe,pruner=median]")
    parser.add_argument("--junit", type=Path, metavar="FILE")
    options, rest = parser.parse_known_args(argv)
    options.dry_run |= options.explain
    unknown = [word for word in rest if word.startswith("-") and "=" not in word]
    if unknown:
        raise ConfigError(f"{unknown[0]}: unknown option. See --help.")
    for name in ("search", "junit"):
        if getattr(options, name) is not None and not options.multirun:
            raise ConfigError(f"--{name}: is about many runs. Write -m too.")
    return options, rest


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}. See --help.")


def main(argv: list[str] | None = None) -> int:
    """The command; returns the exit code. Every fault is one line on stderr."""
    gc.disable()  # nothing to collect while starting, and looking for it takes a tenth of that time
    if argv is None:
        steady()
    words = sys.argv[1:] if argv is None else argv
    try:
        cure = "Free space or mend the folder, then start the same command again."
        return exit_code(lambda: _run(*parse(words)), "run", cure)
    except KeyboardInterrupt:
        print("stopped before it started. The same command starts it.", file=sys.stderr)
        return 130


def _run(options: argparse.Namespace, overrides: list[str]) -> int:
    if options.version:
        import hpcai

        print(hpcai.__version__)
        return 0
    if options.help or not (overrides or options.cfg):
        from hpcai.config.help import help_text

        print(help_text(options.config_dir))
        return 0
    if options.multirun:
        return many(options, overrides)
    from hpcai.config.check import examine, load, with_faults_of_plan

    if options.cfg:
        import yaml

        print(yaml.safe_dump(load(overrides, options.config_dir).to_plain(), sort_keys=False, allow_unicode=True), end="")
        return 0
    config, faults = examine(overrides, options.config_dir)
    if config is None:
        raise Faults(faults)
    parted = config.job == "predict" and config.predict.parted
    if not faults and (config.pipeline or config.depends_on or parted):
        return many(options, overrides)  # one command, but more than one run to wait for
    from hpcai.plan import make_plan

    try:
        plan, config, files = make_plan(config, anew=options.anew)
    except HpcaiError as e:
        raise Faults(with_faults_of_plan(faults, e.members)) from None
    if faults:
        raise Faults(faults)
    return launch(options, plan, config, files)


def many(options: argparse.Namespace, overrides: list[str]) -> int:
    """Sweeps, pipelines and what depends on a run: sweep.py; searches: hunt.py."""
    from hpcai.driver import Options

    told = Options(options.config_dir, options.dry_run, options.explain, options.no_wait, options.anew, options.junit)
    if options.search is not None:
        from hpcai import hunt

        return hunt.run_search(overrides, options.search, told)
    from hpcai import sweep

    return sweep.run_grid(overrides, told)


def launch(options: argparse.Namespace, plan: "JobPlan", config: "Config", files: "list[Input]") -> int:
    """Shows the finished run, says who runs it, or starts it and watches it to its end.

    Raises: OwnedError if somebody runs it; Faults if it cannot go on as it began.
    """
    from hpcai import lease, rundir, submit, watch
    from hpcai.rundir import RunDir

    run = RunDir(Path(plan.run_dir))
    submit.check_identity(run, plan)
    if plan.executor == "slurm":
        return send(options, run, plan, config, files)
    state = lease.read_state(run)
    if state.state == "completed":
        return show_finished(run, plan, files, state)
    unfinished = state.state in ("stopped", "failed", "lost") and run.plan.is_file()
    faults = list(submit.differences(run, plan, files)) if unfinished else []
    if faults:
        raise Faults(faults)  # before a life is taken: what is refused leaves no trace
    announce(plan, config, files)
    if options.dry_run:
        print(shlex.join(submit.command(run, state.life + 1)))
        return 0
    rundir.guard(plan.access)
    life = lease.take(run, plan.ranks)
    submit.prepare(run, plan, config, files)
    asked = watch.listen()
    job = submit.start(run, plan, life)
    if options.no_wait:
        print(f"started: {watch.shown(run.path)}  log: {watch.shown(run.log(0))}")
        return 0
    gc.enable()
    return watch.follow(run, plan, config, job, life, asked)


def send(options: argparse.Namespace, run: "RunDir", plan: "JobPlan", config: "Config", files: "list[Input]") -> int:
    """The same on Slurm: shows, says who runs it, or submits it and returns at once.

    Raises: OwnedError if it is in the queue or runs; PlanError if Slurm does not answer or refuses it.
    """
    from hpcai import lease, queued, rundir, scheduler, script, submit

    state = queued.state_of(run)
    if state.state == "completed":
        return show_finished(run, plan, files, state)
    if not options.dry_run and state.state in lease.ACTIVE:
        raise OwnedError(f"run={plan.run_id}: {state.owner} has it ({state.state}). hpcai status {plan.run_id} says more.")
    faults = list(submit.differences(run, plan, files)) if run.plan.is_file() and state.state != "new" else []
    if faults:
        raise Faults(faults)
    announce(plan, config, files)
    if options.dry_run:
        print(script.explain(plan, config) if options.explain else script.text(plan, config), end="")
        return 0
    why = scheduler.unavailable()
    if why:
        raise PlanError(f"cluster={plan.cluster}: {why}")
    rundir.guard(plan.access)
    life = lease.take(run, plan.ranks, over=state.life, kind="slurm", job=None, restart=0)
    submit.prepare(run, plan, config, files)
    jobs = submit.send(run, plan, life, [[""]] * submit.chain(config))
    price = (plan.slurm or {}).get("price")
    cost = f", {price['words']} for each start" if price else ""
    print(f"submitted: job {', '.join(jobs)}{cost}  see: hpcai status {plan.run_id}")
    return 0


def show_finished(run: "RunDir", plan: "JobPlan", files: "list[Input]", state: "RunState") -> int:
    """A finished run is shown, with what differs today."""
    from hpcai import submit, watch

    print(f"finished {watch.ago(time.time() - (state.ended or 0))}: {watch.shown(run.report_html)}")
    for fault in submit.differences(run, plan, files):
        print(f"note: {fault}", file=sys.stderr)
    return 0


def announce(plan: "JobPlan", config: "Config", files: "list[Input]") -> None:
    """The plan, what a try of it has shown, and the warnings."""
    from hpcai import proposal

    print(describe(plan, config, files), flush=True)
    tried = proposal.find(plan)
    if tried:
        print(proposal.quote(tried), flush=True)
    for warning in plan.warnings:
        print(f"warning: {warning}", file=sys.stderr)


def describe(plan: "JobPlan", config: "Config", files: "list[Input]") -> str:
    """The plan on one line."""
    size = sum(f.bytes for f in files)
    asked = plan.resources
    parts = [
        f"plan  {plan.run_id}",
        plan.job,
        f"{plan.ranks} rank{'s' * (plan.ranks > 1)} x {plan.threads} thread{'s' * (plan.threads > 1)}"
        + (f", {asked['gpus_per_node']} GPU{'s' * (asked['gpus_per_node'] > 1)}" if asked["gpus_per_node"] else ""),
        f"data: {config.data.name or 'unnamed'} ({len(files)} file{'s' * (len(files) > 1)}, {size / 1e6:.1f} MB"
        + (f", {config.data.licence})" if config.data.licence else ")"),
        f"folder: {plan.run_dir}",
    ]
    return one_line("  ".join(parts), 1000)


if __name__ == "__main__":
    sys.exit(main())

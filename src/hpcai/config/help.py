"""The text of `--help`, made of what is there: experiments, clusters, jobs, models, and every key of the schema. Light."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

from hpcai.config.folder import Folder
from hpcai.config.jobs import JOBS
from hpcai.config.keys import all_keys
from hpcai.config.userfile import comments, read_head
from hpcai.errors import ConfigError, one_line

WIDTH = 110
SITE_KEY = re.compile(r"^ +site: *(\S.*)$", re.MULTILINE)  # of a cluster file without a comment, such as one by other hands
USAGE = """\
hpcai: AI health workloads, from an experiment's name to a trained model and its report. Research use only.

  python -m hpcai.run +experiment=pneumonia                          train, and write a report
  python -m hpcai.run +experiment=pneumonia trainer.lr=1e-3 seed=1   other values, another run
  python -m hpcai.run +experiment=pneumonia --dry-run                print the plan, write nothing
  python -m hpcai.run --config-dir mine/ +experiment=x --cfg job     own experiments; print the config
  python -m hpcai.run job=predict name=new from_run=RUN data.reader=images data.path=images/
  python -m hpcai.run job=predict name=new from_run=RUN data.path=big.npz predict.shards=8   in 8 runs, merged
  python -m hpcai.run +experiment=pneumonia job=evaluate from_run=[A,B,C]          the mean of several runs
  python -m hpcai.run -m +experiment=pneumonia seed=0,1,2 trainer.lr=1e-3,3e-3   a run each
  python -m hpcai.run -m --search trials=30 +experiment=x 'trainer.lr=tag(log,interval(1e-4,1e-1))'
  python -m hpcai.run +experiment=pneumonia 'pipeline=[train,evaluate]'            jobs in a row
  hpcai status                                                       what there is; hpcai help: more verbs
  hpcai new NAME --images DIR --labels labels.csv                    look at own images, write an experiment

Words are Hydra's: key=value sets, +group=choice adds, group=choice replaces, ~key deletes.
Quote a value that holds commas, brackets or quotes: 'data.path="/data/a,b"'.
Your own data: hpcai new first; data.identifiers=none|pseudonymised|identifying must be stated.

Options
  --config-dir DIR  experiments and other groups of your own, beside these
  --cfg job         print the config, start nothing
  --dry-run         print the plan and the command, write nothing
  --no-wait         start, and give the prompt back
  --anew            a new folder, though this run has one
  --multirun, -m    many runs: a=1,2  a=range(0,5)  a=choice(x,y)  group=glob(*); as many at once as fit
  --search trials=N[,seed=N][,sampler=tpe|random][,pruner=median|none]
                    with -m: let Optuna choose within a=interval(0,1)  a=tag(log,interval(1e-4,1))  a=1,2
  --junit FILE      with -m: each run as a test case, for CI
  --version, --help

The same command again shows a finished run, goes on with an interrupted one, or says who runs it. Exit codes:
0 done, 2 config, 3 plan, 4 data, 5 run, 7 owned by another, 128+n stopped by signal n, 1 our own fault."""


def help_text(config_dir: Path | None = None) -> str:
    """The whole text, at most 110 columns.

    Raises:
        ConfigError: `config_dir` cannot be used.
    """
    found = choices(config_dir)
    parts = [USAGE, _table("Jobs (job=NAME)", [(name, job.help) for name, job in JOBS.items()])]
    order = ["experiment", *(group for group in found if group != "experiment")]
    for group in order:
        plus = "+" if group == "experiment" else ""
        if found.get(group):
            parts.append(_table(f"{group.capitalize()} ({plus}{group}=NAME)", list(found[group].items())))
    parts.append(_table("Models (model.name=NAME)", _models()))
    rows = [(key.name, f"{key.type}{f' [{key.unit}]' if key.unit else ''}, {key.default}. {key.meaning}") for key in all_keys()]
    parts.append(_table("Keys: type [unit], default. Meaning", rows))
    return "\n\n".join(parts) + "\n"


def choices(config_dir: Path | None = None) -> dict[str, dict[str, str]]:
    """Group -> name -> the first comment line of its file, hpcai's and the user's.

    Raises:
        ConfigError: `config_dir` cannot be used.
    """
    folder = Folder(config_dir)
    return {group: {name: _first_line(folder, group, name) for name in folder.choices(group)} for group in folder.groups()}


def _first_line(folder: Folder, group: str, name: str) -> str:
    root, called = folder.place(f"{group}/{name}")
    try:
        text = read_head(root, f"{called}.yaml")
    except ConfigError as e:
        return one_line(str(e).partition(": ")[2], 200)
    said = next((line for line in comments(text) if not line.startswith("@")), "")
    if not said and group == "cluster" and (site := SITE_KEY.search(text)):
        said = site[1]
    return one_line(said, 200)


def _models() -> list[tuple[str, str]]:
    """Ours with their extra; plug-ins by name only, since help imports none of them."""
    from hpcai.config.registry import MODELS, entry_names

    ours = [
        (name, f"{'/'.join(f'{d}D' for d in spec.dims)}{f', extra {spec.extra}' if spec.extra else ''}")
        for name, spec in MODELS.items()
    ]
    return ours + [(name, "plug-in") for name in entry_names() if name not in MODELS]


def _table(title: str, rows: list[tuple[str, str]]) -> str:
    """A title and rows of name and text, the texts wrapped in one column."""
    column = min(30, max((len(name) for name, _ in rows), default=0)) + 4
    lines = [f"{title}"]
    for name, text in rows:
        indent = " " * column
        start = f"  {name}".ljust(column)
        lines += (
            textwrap.wrap(text or "-", WIDTH, initial_indent=start, subsequent_indent=indent, break_on_hyphens=False)
            if len(start) <= column
            else [start, *textwrap.wrap(text, WIDTH, initial_indent=indent, subsequent_indent=indent)]
        )
    return "\n".join(lines)

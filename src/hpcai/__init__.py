"""hpcai: AI health workloads on a supercomputer, from an experiment's name to a trained model and its report."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from hpcai.notebook import OpenRun

__version__ = "0.1.0"


def open_run(run: str | Path, runs_dir: str | Path = "runs") -> OpenRun:
    """A run as a notebook reads it: its config, state, report, metrics and rows.

    Args:
        run: its folder, its name, or an unambiguous beginning of its name.
        runs_dir: the folder of run folders, where a name is looked for.

    Raises: ConfigError if that is no run.
    """
    from hpcai.notebook import open_run as opened

    return opened(run, runs_dir)

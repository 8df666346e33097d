"""hpcai: AI health workloads on a supercomputer, from an experiment's name to a trained model and its report."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

# An old Python reads this file and the head of run.py before it can be told: both keep to words that 3.6 knows, which has no
# `from __future__ import annotations`.
_version = sys.version_info[:2]
if _version < (3, 11):
    _script = Path(__file__).resolve().parent.parent.parent / "slurm" / "setup" / "meluxina-install.sh"
    _cure = f"On a login node of MeluXina: bash {_script}. Elsewhere" if _script.is_file() else "Please"
    _said = f"hpcai needs Python 3.11 or newer; this is {_version[0]}.{_version[1]}. {_cure} start it with a newer one."
    sys.stderr.write(_said + "\n")
    sys.exit(3)

if TYPE_CHECKING:
    from hpcai.notebook import OpenRun

__version__ = "0.1.0"


def open_run(run: "str | Path", runs_dir: "str | Path" = "runs") -> "OpenRun":
    """A run as a notebook reads it: its config, state, report, metrics and rows.

    Args:
        run: its folder, its name, or an unambiguous beginning of its name.
        runs_dir: the folder of run folders, where a name is looked for.

    Raises: ConfigError if that is no run.
    """
    from hpcai.notebook import open_run as opened

    return opened(run, runs_dir)

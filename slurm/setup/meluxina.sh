# shellcheck shell=bash source=slurm/setup/modules.sh
# MeluXina: what a job loads. Job scripts read it with `.` right after their #SBATCH lines and before `set -euo pipefail`, for
# which the site's module code is not written. It leaves `python3` of the release that meluxina-install.sh builds on.
#
# Release and Python 3.12.3: docs.lxp.lu system/whatsnew, 2025-02; the full name of the Python module: second-hand, 2026.
# For another release change both words and run meluxina-install.sh again.
. "$(dirname "${BASH_SOURCE[0]}")/modules.sh" || return 3
hpcai_load meluxina env/release/2024.1 Python/3.12.3-GCCcore-13.3.0

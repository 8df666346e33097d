# shellcheck shell=bash source=slurm/setup/modules.sh
# Lucia (Cenaero): what a job loads. Job scripts read it with `.` right after their #SBATCH lines, before `set -euo pipefail`.
#
# Names: second-hand, from job scripts that university users have published (undated).
. "$(dirname "${BASH_SOURCE[0]}")/modules.sh" || return 3
hpcai_load lucia EasyBuild/2024a Python/3.12.3-GCCcore-13.3.0

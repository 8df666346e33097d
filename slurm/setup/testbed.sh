# shellcheck shell=bash
# The test bed (slurm/testbed): what a job loads. Nothing: its nodes are this machine. The file stands here so that a job on the
# bed takes the same road as on a site: read with `.` right after the #SBATCH lines, before `set -euo pipefail`.
:

# shellcheck shell=bash source=slurm/setup/modules.sh
# LUMI (CSC): what a job loads. Job scripts read it with `.` right after their #SBATCH lines, before `set -euo pipefail`.
#
# LUMI, partition/G, cray-python: LUMI user guide, docs/software, 2024-10; without a version the site's default is taken.
# partition/C for nodes without GPUs: unverified. The GPUs are AMD's: torch has to be a ROCm build.
. "$(dirname "${BASH_SOURCE[0]}")/modules.sh" || return 3
case "${SLURM_JOB_PARTITION:-}" in
  *-g) hpcai_load lumi LUMI partition/G cray-python ;;
  *) hpcai_load lumi LUMI partition/C cray-python ;;
esac

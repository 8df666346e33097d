# shellcheck shell=bash
# hpcai_load SITE MODULE...: loads a site's modules, in order; 3 and one sentence where a job cannot have them. Read by SITE.sh.
# Outside a job a missing `module` is only said: on many sites it exists on compute nodes alone.

hpcai_load() {
  local site=$1 name
  shift
  if ! type module > /dev/null 2>&1; then
    if [ -z "${SLURM_JOB_ID:-}" ]; then
      echo "$site.sh: no \`module\` here, as on login nodes of some sites: nothing is loaded." >&2
      return 0
    fi
    printf '%s\n' "$site.sh: job $SLURM_JOB_ID finds no \`module\` on ${SLURMD_NODENAME:-$HOSTNAME}, so it has no Python.\
 Start its script with '#!/bin/bash -l'; if it has that, ask the site's help desk." >&2
    return 3
  fi
  for name in "$@"; do
    if ! module load "$name"; then
      printf '%s\n' "$site.sh: \`module load $name\` failed. \`module avail\` in a job lists what there is: name that in\
 slurm/setup/$site.sh and build the environment with it." >&2
      return 3
    fi
  done
}

#!/usr/bin/env bash
# Is this node fit for the run? One process a node, before the ranks; the optional first step of a job (cluster.preflight=true):
#
#   HPCAI_PYTHON=PYTHON srun --ntasks-per-node=1 --kill-on-bad-exit=0 bash slurm/preflight.sh RUN_DIR [--deep] [--gpus N]
#
# Looks at GPUs, driver, MPI, disk, clock and versions (hpcai.preflight); writes RUN_DIR/preflight/NODE.json and, to stderr, one
# line a fault. Exit code 1: unfit, so that the job ends before it burns hours. --deep also measures NCCL's bandwidth.
# This shell is here for what no Python can say: that it does not start, or hangs in a sick file system.
set -uo pipefail

run_dir=${1:-}
if [ ! -d "$run_dir" ]; then
  echo "usage: preflight.sh RUN_DIR [--deep] [--gpus N]" >&2
  exit 2
fi
python=${HPCAI_PYTHON:-python3}
limit=${HPCAI_PREFLIGHT_S:-900} # above the sum of the limits inside
node=${SLURMD_NODENAME:-$(uname -n)}
node=${node//[^A-Za-z0-9._-]/_}
if [ -d "$run_dir/code/hpcai" ]; then
  export PYTHONPATH="$run_dir/code${PYTHONPATH:+:$PYTHONPATH}"
fi

verdict=$run_dir/preflight/$node.json

unfit() { # WORDS: the verdict where Python gave none
  local words=${1//[\"\\[:cntrl:]]/ }
  echo "node=$node: $1" >&2
  # On a full disk it cannot be written: the line above and the exit code say it too.
  if mkdir -p "$run_dir/preflight" && cat > "$verdict.new" && mv "$verdict.new" "$verdict"; then :; fi 2> /dev/null << JSON
{"node": "$node", "job": "${SLURM_JOB_ID:-}", "time": $(date +%s), "ok": false, "checks": [
 {"name": "python", "ok": false, "found": "no verdict", "wanted": "a verdict", "words": "$words"}
]}
JSON
  exit 1
}

rm -f "$verdict" 2> /dev/null
export PYTHONSAFEPATH=1 # as -P, which an old Python does not know: it shall come as far as hpcai's own words about it
"$python" -u -m hpcai.preflight "$@" &
pid=$!
end=$((SECONDS + limit))
# Not `timeout`, nor `wait` at once: a process in a sick file system cannot be killed, and both would wait for it for ever.
while kill -0 "$pid" 2> /dev/null; do
  if [ "$SECONDS" -ge "$end" ]; then
    kill -KILL "$pid" 2> /dev/null
    disown "$pid"
    unfit "no verdict in $limit s: a file system, driver or MPI hangs. Tell the site; sbatch --exclude=$node goes elsewhere."
  fi
  sleep 0.2
done
wait "$pid"
code=$?
if [ "$code" -eq 0 ] || [ "$code" -eq 2 ] || [ -f "$verdict" ]; then
  exit "$code"
fi
unfit "$python -m hpcai.preflight ended with $code and no verdict. Does cluster.python run here, after the script in slurm/setup?"

#!/usr/bin/env bash
# From a grant on MeluXina to an hpcai that submits: two environments in the project folder. On a login node, in a checkout:
#
#   bash slurm/setup/meluxina-install.sh --account p200000 [--qos short] [--partition cpu] [--to FOLDER] [--extras imaging,hpo]
#                                        [--torch-index URL] [--dry-run]
#
#   light/  plans and submits, here on the login node: hpcai and the light part of its dependencies, no torch
#   heavy/  what jobs run: torch and the rest, built on a compute node, where alone the site's modules exist
#   build/  what it was made from: requirements, the job's script and log, pip's downloads until heavy/ is ready
#
# light/ needs a Python of 3.11 or newer: python3.11, python3.12 or python3.13 beside the site's 3.6, or PYTHON=/path/to/one.
# The same command again finishes what was interrupted and repeats nothing that is done.
# --torch-index: PyTorch's index of the torch variant that the GPUs' driver can run (its install page names them).
# Exit codes: 0 done or on its way, 2 a wrong option, 3 this machine does not allow it, 5 a step failed, 7 another one is at it.
set -euo pipefail
umask 027 # the project may read and run it: these are programs, not data

say() { printf '%s\n' "$*"; }
stop() { # CODE WORDS...
  printf '%s\n' "meluxina-install: ${*:2}" >&2
  exit "$1"
}
new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' > /dev/null 2>&1; }
digest() { sha256sum | cut -c 1-64; }

# --- what is asked for

account='' qos=short partition=cpu to='' extras='' torch_index='' dry=no
while (($#)); do
  case $1 in
    --dry-run) dry=yes ;;
    --account | --qos | --partition | --to | --extras | --torch-index)
      [ $# -ge 2 ] || stop 2 "$1: no value. Write one after it."
      case $1 in
        --account) account=$2 ;;
        --qos) qos=$2 ;;
        --partition) partition=$2 ;;
        --to) to=$2 ;;
        --extras) extras=$2 ;;
        --torch-index) torch_index=$2 ;;
      esac
      shift
      ;;
    *) stop 2 "$1: unknown. Known: --account --qos --partition --to --extras --torch-index --dry-run." ;;
  esac
  shift
done
[[ $account =~ ^p[0-9]{6}$ ]] || stop 2 "--account=$account: p and six digits, such as p200000 (\`myquota\` lists yours). Give one."
for value in "$qos" "$partition"; do
  [[ $value =~ ^[A-Za-z0-9][A-Za-z0-9._-]*$ ]] || stop 2 "--qos, --partition: $value is no name. Correct it."
done
me=$(id -un)
to=${to:-/project/home/$account/$me/hpcai}
[[ $to =~ ^/[A-Za-z0-9._/+-]+$ ]] || stop 2 "--to=$to: an absolute path of letters, digits and ._/+- is taken. Choose one."
[[ $extras =~ ^[a-z,]*$ ]] || stop 2 "--extras=$extras: names with commas between. Correct it."
[[ $torch_index =~ ^[^[:space:]\'\"]*$ ]] || stop 2 "--torch-index: no spaces or quotes. Correct it."
checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
[ -f "$checkout/pyproject.toml" ] || stop 3 "no pyproject.toml above this script. Run it in a checkout of hpcai."

# --- the Python of the light world

python=${PYTHON:-}
if [ -n "$python" ]; then
  new_enough "$python" || stop 3 "PYTHON=$python: is no Python of 3.11 or newer. Give the path of one."
else
  for candidate in python3.11 python3.12 python3.13 python3; do
    if new_enough "$candidate"; then
      python=$candidate
      break
    fi
  done
fi
if [ -z "$python" ]; then
  there=$(python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2> /dev/null) || there=missing
  stop 3 "no Python of 3.11 or newer on PATH (python3: $there). Put one into your home, then: PYTHON=/path/to/it bash $0 ..."
fi
python=$(command -v "$python")
version=$("$python" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])')

# --- what goes in: pyproject.toml lists the light dependencies first, then the heavy ones

requirements() { # light | all
  "$python" - "$checkout/pyproject.toml" "$1" "$extras" << 'PYTHON'
import pathlib, sys, tomllib
file, which, extras = sys.argv[1:]
text = pathlib.Path(file).read_text("utf-8")
project = tomllib.loads(text)["project"]
light = [r for r in project["dependencies"] if text.index(f'"{r}"') < text.index("# heavy:")]
known = project["optional-dependencies"]
names = [name for name in extras.split(",") if name]
if unknown := [name for name in names if name not in known]:
    sys.exit(f"meluxina-install: --extras={unknown[0]}: unknown. Known: {', '.join(known)}.")
more = [r for name in names for r in known[name] if which == "all" or name == "hpo"]  # searches ask optuna where they start
print("\n".join((light if which == "light" else project["dependencies"]) + more))
PYTHON
}
light=$(requirements light) || exit 2
heavy=$(requirements all)
constraints=$(cat "$checkout/constraints.txt")
setup=$(cat "$checkout/slurm/setup/modules.sh" "$checkout/slurm/setup/meluxina.sh")
light_digest=$(printf '%s\n' "$light" "$constraints" "$version" "$checkout" | digest)
heavy_digest=$(printf '%s\n' "$heavy" "$constraints" "$setup" "$torch_index" | digest)
job_name=hpcai-build-$(printf '%s\n' "$to" | digest | cut -c 1-8) # one a folder: nothing else of this user has this name
hpcai_version=$(sed -n 's/^version = "\(.*\)"$/\1/p' "$checkout/pyproject.toml")

job_script() {
  cat << SCRIPT
#!/bin/bash -l
# hpcai $hpcai_version: makes heavy/, what jobs run, for account $account. At most 1 hour on one node of $partition.
# Writes heavy/ and build/ of $to; needs the network. Sent by slurm/setup/meluxina-install.sh.
#SBATCH --job-name=$job_name
#SBATCH --comment=hpcai:$hpcai_version:build
#SBATCH --account=$account
#SBATCH --partition=$partition
#SBATCH --qos=$qos
#SBATCH --time=01:00:00
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=$to/build/heavy-%j.log
#SBATCH --export=NONE

umask 027
. $to/build/setup/meluxina.sh || exit 3
set -euo pipefail
cd $to/build
export PIP_CACHE_DIR=$to/build/pip-cache PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1
python3 -c 'import sys; sys.exit(sys.version_info < (3, 11) and "hpcai needs Python 3.11 or newer; the module has " + sys.version)'
python3 -m venv --clear $to/heavy # anew: what a killed pip leaves half unpacked looks installed. Its downloads are kept
SCRIPT
  if [ -n "$torch_index" ]; then
    say "../heavy/bin/python3 -m pip install -c constraints.txt --extra-index-url '$torch_index' -r heavy.txt"
  else
    say "../heavy/bin/python3 -m pip install -c constraints.txt -r heavy.txt"
  fi
  cat << SCRIPT
../heavy/bin/python3 -c 'import torch; print("torch", torch.__version__, "for CUDA", torch.version.cuda)'
printf '%s\n' $heavy_digest > ../heavy/.ready
rm -rf pip-cache
SCRIPT
}

# --- said first

say "hpcai $hpcai_version for $account. Written, and nothing else:
  $to/light   by $python ($version): plans and submits
  $to/heavy   by a job of at most 1 h on one node of $partition (QOS $qos, at most 1 node-hour): what jobs run, some GB
  $to/build   requirements, that job's script and log
  $checkout/src/hpcai.egg-info   pip's note of where light/ finds hpcai"
[ -n "$torch_index" ] || say "note: the torch of pip's usual index may be built for a newer CUDA than the GPUs' \
driver runs (12.6: docs.lxp.lu, 2024-09; later unverified). For runs on GPUs give --torch-index, PyTorch's index of cu126."
if [ "$dry" = yes ]; then
  say "--- $to/build/heavy.sbatch"
  job_script
  exit 0
fi

# --- light

if ! mkdir -p "$to/build/setup" 2> /dev/null || [ ! -w "$to/build" ]; then
  stop 3 "$to: cannot be written. Is the account right? --to names another folder."
fi
exec 9> "$to/build/lock"
flock -n 9 || stop 7 "another one works in $to. Wait for it."
export PIP_CACHE_DIR=$to/build/pip-cache PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1
put() { # FILE: stdin, whole or not at all
  cat > "$to/build/$1.new"
  mv "$to/build/$1.new" "$to/build/$1"
}
printf '%s\n' "$light" | put light.txt
printf '%s\n' "$heavy" | put heavy.txt
printf '%s\n' "$constraints" | put constraints.txt
for file in modules.sh meluxina.sh; do put "setup/$file" < "$checkout/slurm/setup/$file"; done
job_script | put heavy.sbatch

is_ready() { [ "$(cat "$to/$1/.ready" 2> /dev/null)" = "$2" ]; }
if is_ready light "$light_digest"; then
  say "light/ is ready."
else
  say "making light/ (a minute or two)"
  "$python" -m venv --clear "$to/light" || stop 5 "$python -m venv failed, see above. PYTHON= names another one."
  pip=("$to/light/bin/python" -m pip install -q)
  again="Mend what it names (often the network), then run the same command."
  "${pip[@]}" -c "$to/build/constraints.txt" -r "$to/build/light.txt" || stop 5 "pip failed, see above. $again"
  "${pip[@]}" --no-deps -e "$checkout" || stop 5 "pip failed, see above. $again"
  printf '%s\n' "$light_digest" > "$to/light/.ready"
fi

# --- heavy

next() {
  say "next: $to/light/bin/hpcai run +experiment=smoke cluster=meluxina cluster.account=$account \\
        cluster.python=$to/heavy/bin/python3 runs_dir=$to/runs --dry-run"
}
if is_ready heavy "$heavy_digest"; then
  say "heavy/ is ready."
  next
  exit 0
fi
command -v sbatch > /dev/null || stop 3 "no sbatch here. Run it on a login node; light/ is ready."
queued=$(squeue -h -u "$me" -n "$job_name" -o '%i %T' 2>&1) ||
  stop 3 "squeue does not say whether a job makes heavy/ already ($(head -n 1 <<< "$queued")). Try again later; light/ is ready."
if [ -n "$queued" ]; then
  say "job ${queued% *} makes heavy/: ${queued#* }. Its log: $to/build/heavy-${queued% *}.log"
  next
  exit 0
fi
logs=("$to"/build/heavy-*.log)
if [ ! -e "$to/heavy/.ready" ] && [ -e "${logs[0]}" ]; then
  say "note: an earlier job did not finish heavy/; see the last of $to/build/heavy-*.log."
fi
job=$(sbatch --parsable "$to/build/heavy.sbatch") ||
  stop 3 "sbatch refused $to/build/heavy.sbatch, see above. Correct --account, --qos or --partition; light/ is ready."
say "job ${job%%;*} makes heavy/. Its log: $to/build/heavy-${job%%;*}.log"
next

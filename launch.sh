#!/usr/bin/env bash
# Sets up .venv from requirements.lock, once and again when the lock changes, then runs the command.
#
#   ./launch.sh                      mpo run configs/quickstart.yaml
#   ./launch.sh test [pytest args]   the tests
#   ./launch.sh COMMAND ...          mpo COMMAND ..., such as: plan configs/quickstart.yaml
#
# MPO_PROCESSES=N   run and train-judge with that many processes on this machine, through `accelerate launch`
# MPO_ACCELERATE=F  accelerate's settings, as in configs/accelerate/; a process for each GPU, unless MPO_PROCESSES is set
# MPO_NODES=N       that many machines; each is started with its number MPO_NODE=0..N-1 and MPO_MAIN=HOST:PORT of the first
# MPO_PYTHON=PATH   the Python that .venv is made with; by default the first of 3.11 or newer on the PATH
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

fail() {
    echo "launch.sh: $*" >&2
    exit 2
}

find_python() {
    local name
    for name in ${MPO_PYTHON:-python3.11 python3.12 python3.13 python3.14 python3}; do
        if "$name" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$name"
            return
        fi
    done
    fail "needs Python 3.11 or newer with venv (on Debian: apt install python3.11-venv); found none in: ${MPO_PYTHON:-PATH}"
}

# The copy of the lock inside .venv is written last: without it, or with another, the environment is made anew.
set_up() {
    local name
    name=$(find_python)
    echo "launch.sh: installing requirements.lock into .venv with $("$name" --version); this takes a few minutes" >&2
    rm -rf .venv
    "$name" -m venv .venv
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --requirement requirements.lock
    cp requirements.lock .venv/requirements.lock.part
    mv .venv/requirements.lock.part .venv/requirements.lock
}

ready() {
    cmp -s requirements.lock .venv/requirements.lock && .venv/bin/python -c ''
}

if ! ready; then
    exec 9>.venv.lock
    if command -v flock >/dev/null; then
        flock 9 # a second start waits for the first one's installation
    fi
    ready || set_up
    exec 9>&-
fi
python=$PWD/.venv/bin/python

if [ "${1:-}" = test ]; then
    exec "$python" -m pytest "${@:2}"
fi
if [ $# -eq 0 ]; then
    set -- run configs/quickstart.yaml
fi

number() { # NAME VALUE LEAST
    case $2 in
        *[!0-9]* | '') fail "$1=$2: must be a whole number from $3" ;;
    esac
    [ "$2" -ge "$3" ] || fail "$1=$2: must be a whole number from $3"
}

gpus=$(nvidia-smi --list-gpus 2>/dev/null | wc -l) || true
settings=(--multi_gpu --dynamo_backend no)
processes=${MPO_PROCESSES:-1}
if [ -n "${MPO_ACCELERATE:-}" ]; then
    [ -f "$MPO_ACCELERATE" ] || fail "MPO_ACCELERATE=$MPO_ACCELERATE: no such file; there are $(echo configs/accelerate/*.yaml)"
    settings=(--config_file "$MPO_ACCELERATE")
    if grep -qi '^distributed_type: *deepspeed' "$MPO_ACCELERATE" && ! "$python" -c 'import importlib.util as u, sys; sys.exit(not u.find_spec("deepspeed"))'; then
        fail "MPO_ACCELERATE=$MPO_ACCELERATE: needs DeepSpeed, which is not installed: .venv/bin/pip install deepspeed"
    fi
    processes=${MPO_PROCESSES:-$((gpus > 0 ? gpus : 1))}
fi
nodes=${MPO_NODES:-1}
number MPO_PROCESSES "$processes" 1
number MPO_NODES "$nodes" 1
case $1 in
    run | train-judge) ;;
    *) exec "$python" -m mpo "$@" ;; # one process's work, whose tables would be printed several times
esac
if [ "$nodes" -gt 1 ]; then
    number MPO_NODE "${MPO_NODE:-}" 0
    [ "$MPO_NODE" -lt "$nodes" ] || fail "MPO_NODE=$MPO_NODE: must be less than MPO_NODES=$nodes"
    [[ ${MPO_MAIN:-} == *:* ]] || fail "MPO_MAIN=${MPO_MAIN:-}: must be HOST:PORT of the first machine"
    settings+=(--machine_rank "$MPO_NODE" --main_process_ip "${MPO_MAIN%:*}" --main_process_port "${MPO_MAIN##*:}")
else
    settings+=(--main_process_port 0) # any that is free
fi
if [ $((processes * nodes)) -eq 1 ]; then
    exec "$python" -m mpo "$@"
fi
# `accelerate launch --cpu` starts a single process; without a GPU these go to the CPU by the variable.
if [ "$gpus" -eq 0 ]; then
    export ACCELERATE_USE_CPU=true
    # As many threads as one process takes: sums in another order would give other candidates.
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$("$python" -c 'import torch; print(torch.get_num_threads())')}
    export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE}
fi
exec "$python" -m accelerate.commands.launch "${settings[@]}" --num_processes $((processes * nodes)) \
    --num_machines "$nodes" --mixed_precision no --module mpo "$@"

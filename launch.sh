#!/usr/bin/env bash
# Sets up .venv from requirements.lock, once and again when the lock changes, then runs the command.
#
#   ./launch.sh                      mpo run configs/quickstart.yaml
#   ./launch.sh test [pytest args]   the tests
#   ./launch.sh COMMAND ...          mpo COMMAND ..., such as: plan configs/quickstart.yaml
#
# MPO_PROCESSES=N   that many processes, through `accelerate launch`
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

processes=${MPO_PROCESSES:-1}
case $processes in
    *[!0-9]* | 0 | '') fail "MPO_PROCESSES=$processes: must be a whole number from 1" ;;
    1) exec "$python" -m mpo "$@" ;;
esac
# `accelerate launch --cpu` starts a single process; without a GPU these go to the CPU by the variable.
if ! nvidia-smi --list-gpus >/dev/null 2>&1; then
    export ACCELERATE_USE_CPU=true
    # As many threads as one process takes: sums in another order would give other candidates.
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$("$python" -c 'import torch; print(torch.get_num_threads())')}
    export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE}
fi
exec "$python" -m accelerate.commands.launch --multi_gpu --num_processes "$processes" --num_machines 1 \
    --mixed_precision no --dynamo_backend no --module mpo "$@"

#!/usr/bin/env bash
# The whole test suite, in the project's own environment.
#
#   ./test.sh            what takes minutes
#   ./test.sh --all      everything, the demo's promises and repeated kills included
#   ./test.sh tests/test_rle.py -k corner      arguments go to pytest
#   TEST_PROCESSES=0 ./test.sh --pdb ...       in this process
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
. ./environment.sh
make_environment requirements-dev.txt

if [ "${1:-}" = --all ]; then  # some of these are timed: one after the other, each with all cores
    shift
    exec python -m pytest -m "slow or not slow" "$@"
fi
# Files are shared out to the cores, at most four; one thread per process, or they get in each other's way.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
exec python -m pytest --numprocesses "${TEST_PROCESSES:-auto}" --maxprocesses 4 --dist loadfile "$@"

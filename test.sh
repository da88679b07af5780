#!/usr/bin/env bash
# Run the tests in the project's environment, which is created if needed.
#
#   ./test.sh                                the whole suite, without the slow tests
#   ./test.sh --all                          every test, one after another (some are timed)
#   ./test.sh tests/test_rle.py -k corner    other arguments go to pytest
#   TEST_PROCESSES=0 ./test.sh --pdb         without worker processes
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
. ./environment.sh
make_environment requirements-dev.txt

if [ "${1:-}" = --all ]; then
    shift
    exec python -m pytest -m "slow or not slow" "$@"
fi
# At most four processes, each with a whole file at a time and one thread, so that they do not
# slow each other down.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
exec python -m pytest --numprocesses "${TEST_PROCESSES:-auto}" --maxprocesses 4 --dist loadfile \
    --no-loadscope-reorder "$@"

#!/usr/bin/env bash
# The whole test suite, in the project's own environment.
#
#   ./test.sh            what takes minutes
#   ./test.sh --all      everything, the demo's promises and repeated kills included
#   ./test.sh tests/test_rle.py -k corner      arguments go to pytest
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
. ./environment.sh
make_environment requirements-dev.txt

if [ "${1:-}" = --all ]; then
    shift
    set -- -m "slow or not slow" "$@"
fi
exec python -m pytest "$@"

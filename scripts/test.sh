#!/usr/bin/env bash
# Makes .venv, installs, and runs lint, types, import layers and all tests.
# Arguments go to pytest: ./scripts/test.sh -k policies
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

# At most four: each holds torch and a few models.
processes() {
    "$VENV/bin/python" -c 'import os; print(min(4, len(os.sched_getaffinity(0))))'
}

install dev
cd "$ROOT"
export PATH="$VENV/bin:$PATH"

ruff check .
ruff format --check .
mypy
lint-imports --no-cache
# A process a core, each with one thread: most tests are too small to fill two. A file's tests stay
# together, so that what its fixtures export is exported once.
OMP_NUM_THREADS=1 pytest --numprocesses "$(processes)" --dist loadfile "$@"

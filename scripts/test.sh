#!/usr/bin/env bash
# Makes .venv, installs, and runs lint, types, import layers and all tests.
# Arguments go to pytest: ./scripts/test.sh -k policies
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

install dev
cd "$ROOT"
export PATH="$VENV/bin:$PATH"

ruff check .
ruff format --check .
mypy
lint-imports --no-cache
pytest "$@"

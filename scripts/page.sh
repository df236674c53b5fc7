#!/usr/bin/env bash
# Tests the server's page in a real Chromium, which is installed first where there is none (by apt,
# as root). With --pictures it also draws the pictures of it in docs/ anew.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

install dev
if ! command -v chromium >/dev/null; then
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core >/dev/null ||
        fail "expected Debian's chromium, found none; install a Chromium as 'chromium'"
fi
cd "$ROOT"
"$VENV/bin/pytest" tests/serve/test_page.py tests/serve/test_browser.py
if [[ "${1:-}" == --pictures ]]; then
    "$VENV/bin/python" scripts/page_pictures.py
fi

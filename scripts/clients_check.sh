#!/usr/bin/env bash
# Has litellm and lmms-eval (clients.txt), each a process of its own, ask avl-serve about pictures:
#     ./scripts/clients_check.sh           # writes benchmarks/clients-check.json
# The clients are installed into build/clients the first time, which takes some minutes.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

readonly PLACE="$ROOT/build/clients" PACKAGE="$ROOT/build/avl-tiny.avl"
install dev
[[ -x "$PLACE/bin/python" ]] || "$(find_python)" -m venv "$PLACE"
if ! cmp -s "$ROOT/scripts/clients.txt" "$PLACE/installed.txt"; then
    "$PLACE/bin/python" -m pip install -q -r "$ROOT/scripts/clients.txt" ||
        fail "pip could not install the clients; see its message above"
    # lmms-eval brings it; beside torch's build for CPUs the one from the index cannot be imported.
    "$PLACE/bin/python" -m pip uninstall -q -y torchvision ||
        fail "pip could not remove torchvision; see its message above"
    cp "$ROOT/scripts/clients.txt" "$PLACE/installed.txt"
fi
[[ -f "$PACKAGE/avl.json" ]] || "$VENV/bin/avl-export" --model avl-tiny --out "$PACKAGE"
"$VENV/bin/python" "$ROOT/scripts/clients_check.py" "$PACKAGE" --python "$PLACE/bin/python" \
    --json "$ROOT/benchmarks/clients-check.json"

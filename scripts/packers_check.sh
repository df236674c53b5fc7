#!/usr/bin/env bash
# Has GPTQModel, AutoGPTQ, AutoAWQ, HQQ and AutoRound (packers.txt) pack a small model, and avl-export
# read what they wrote:
#     ./scripts/packers_check.sh           # writes benchmarks/packers-check.json
# The tools are installed into build/packers the first time, which takes some minutes and 6 GB.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

readonly PLACE="$ROOT/build/packers"
install dev
[[ -x "$PLACE/bin/python" ]] || "$(find_python)" -m venv "$PLACE"
if ! cmp -s "$ROOT/scripts/packers.txt" "$PLACE/installed.txt"; then
    # Their setup scripts import torch.
    { "$PLACE/bin/python" -m pip install -q torch setuptools wheel ninja &&
        BUILD_CUDA_EXT=0 GPTQMODEL_BUILD_CUDA_EXT=0 "$PLACE/bin/python" -m pip install -q \
            --no-build-isolation -r "$ROOT/scripts/packers.txt"; } ||
        fail "pip could not install the tools; see its message above"
    cp "$ROOT/scripts/packers.txt" "$PLACE/installed.txt"
fi
"$VENV/bin/python" "$ROOT/scripts/packers_check.py" --python "$PLACE/bin/python" \
    --json "$ROOT/benchmarks/packers-check.json" \
    --sample "$ROOT/tests/quantize/packed_by_tools.safetensors"

#!/usr/bin/env bash
# mnnconvert, the command of the MNN wheel that converts ONNX models for phones, runs pip while it
# starts: it installs aliyun-log-python-sdk, with which it reports each conversion (its source: the
# arguments, sizes, and an id of the machine). It runs the first pip on the PATH, not that of its own
# environment, so that the system's Python gets that package and what it needs (protobuf, elasticsearch
# and others), newer versions of what was there included. No option is against it; without the package
# the conversion works as well.
#
# Guess before running: converting a file writes that file and nothing else.
# Found with MNN 3.6.1: "pip install -U aliyun-log-python-sdk". Here a pip that installs nothing is
# first on the PATH, so that nothing is installed and nothing is sent.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check MNN==3.6.1 onnx==1.23.2 numpy==2.4.6
"$folder/venv/bin/python" - "$folder/model.onnx" <<'PYTHON'
import sys
from importlib.metadata import version

import onnx

print("MNN", version("MNN"))
onnx.save(onnx.parser.parse_model(
    '<ir_version: 8, opset_import: ["" : 17]> g (float[1, 4] x) => (float[1, 4] y) { y = Relu (x) }'
), sys.argv[1])
PYTHON
mkdir "$folder/first"
printf '#!/bin/sh\necho "pip $*" >> "%s/asked"\nexit 1\n' "$folder" > "$folder/first/pip"
chmod +x "$folder/first/pip"
PATH="$folder/first:$PATH" "$folder/venv/bin/mnnconvert" -f ONNX --modelFile "$folder/model.onnx" \
    --MNNModel "$folder/model.mnn" --bizCode example > "$folder/said" 2>&1
test -s "$folder/model.mnn"
echo "the model is converted; the converter has run:"
cat "$folder/asked"
grep -qx "pip install -U aliyun-log-python-sdk" "$folder/asked"
echo "as described"

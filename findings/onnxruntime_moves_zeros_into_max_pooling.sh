#!/usr/bin/env bash
# ONNX Runtime's graph optimizations, on by default, move a Pad with zeros into the MaxPool behind it.
# MaxPool's own padding is of minus infinity, not of zeros, so that windows at the border that hold
# negative values alone give another maximum. Nothing is said of it; ONNX's reference, and ONNX
# Runtime without optimizations, keep the zeros. Behind a ReLU it cannot be seen; behind SiLU or GELU,
# as convolutional stems of vision towers have them, it can.
#
# Guess before running: optimizations change rounding at most.
# Found with onnxruntime 1.31.1 beside onnx 1.23.2: the border is -1 instead of 0.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check onnxruntime==1.31.1 onnx==1.23.2 \
    numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import numpy as np
import onnx
import onnxruntime
from onnx.reference import ReferenceEvaluator

Level = onnxruntime.GraphOptimizationLevel
x = np.full((1, 1, 4, 4), -1, np.float32)
print("onnxruntime", onnxruntime.__version__, "onnx", onnx.__version__)
model = onnx.parser.parse_model(
    '<ir_version: 8, opset_import: ["" : 17]> g (float[1, 1, 4, 4] x) => (float[1, 1, 4, 4] y) '
    "<int64[8] pads = {0, 0, 1, 1, 0, 0, 1, 1}> "
    "{ padded = Pad (x, pads) y = MaxPool <kernel_shape = [3, 3]> (padded) }")
onnx.checker.check_model(model, full_check=True)
found = {"ONNX reference": ReferenceEvaluator(model).run(None, {"x": x})[0]}
for name, level in (("no optimizations", Level.ORT_DISABLE_ALL), ("as by default", None)):
    options = onnxruntime.SessionOptions()
    if level is not None:
        options.graph_optimization_level = level
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    (found[f"ONNX Runtime, {name}"],) = session.run(None, {"x": x})
for name, y in found.items():
    print(f"{name}: corner {y[0, 0, 0, 0]}, middle {y[0, 0, 1, 1]}")
right, plain, default = found.values()
assert right[0, 0, 0, 0] == 0 and right[0, 0, 1, 1] == -1
assert np.array_equal(right, plain) and (default == -1).all()
PYTHON
echo "as described"

#!/usr/bin/env bash
# A model that takes an attention mask counts its ones for the tokens' positions: mask.cumsum(-1), in
# ONNX CumSum without attributes, as exporters write it. ONNX says that this sums from the start
# (reverse is 0 by default). onnx2torch takes 1 for the default: it sums from the end, so that the last
# token has the first position. Nothing is said of it. With reverse=0 written out it is right. NonZero,
# by which exported models find the image tokens, gives rows and columns exchanged.
#
# Guess before running: the PyTorch module gives what ONNX Runtime gives.
# Found with onnx2torch 1.5.15 beside onnxruntime 1.31.1: [6, 5, 4, 3, 2, 1] instead of
# [1, 2, 3, 4, 5, 6].
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check torch==2.13.0 numpy==2.4.6 \
    onnx==1.23.2 onnxruntime==1.31.1
"$folder/venv/bin/pip" install -q --disable-pip-version-check --no-deps onnx2torch==1.5.15
"$folder/venv/bin/python" - <<'PYTHON'
import sys
from importlib.metadata import version
from types import ModuleType

# onnx2torch imports torchvision for boxes (NonMaxSuppression, RoiAlign) alone: an empty one will do.
sys.modules["torchvision"] = ModuleType("torchvision")
sys.modules["torchvision.ops"] = ModuleType("torchvision.ops")
sys.modules["torchvision.ops"].roi_align = None

import numpy as np
import onnx
import onnxruntime
import torch
from onnx2torch import convert

onnxruntime.set_default_logger_severity(3)


def both(nodes, x):
    """What ONNX Runtime and onnx2torch make of x."""
    shape = ", ".join(map(str, x.shape))
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 14]> g (int64[{shape}] x) => (int64[a, b] y) '
        f"<int64 axis = {{1}}> {{ {nodes} }}")
    onnx.checker.check_model(model, full_check=True)
    right = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x})[0].tolist()
    found = convert(model)(torch.from_numpy(x)).tolist()
    print(f"{nodes}: ONNX Runtime {right}, onnx2torch {found}")
    return right, found


print("onnx2torch", version("onnx2torch"), "onnxruntime", onnxruntime.__version__)
mask = np.ones((1, 6), np.int64)
assert both("y = CumSum (x, axis)", mask) == ([[1, 2, 3, 4, 5, 6]], [[6, 5, 4, 3, 2, 1]])
right, found = both("y = CumSum <reverse = 0> (x, axis)", mask)
assert right == found
image_tokens = np.array([[0, 1, 1], [0, 0, 1]], np.int64)
right, found = both("y = NonZero (x)", image_tokens)
assert right == [[0, 0, 1], [1, 2, 2]] and found == np.transpose(right).tolist()
PYTHON
echo "as described"

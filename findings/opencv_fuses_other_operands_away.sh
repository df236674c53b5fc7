#!/usr/bin/env bash
# OpenCV's dnn replaces groups of ONNX nodes by one layer: log(exp(x) + 1) by softplus,
# x * tanh(softplus(x)) by Mish, x / |x| by a normalization, a product of matrices and a sum by one
# layer with a bias. It looks at the kinds of nodes and not at all of their operands: log(exp(x) + c)
# is softplus whatever c is, w * tanh(softplus(x)) is Mish of x whatever w is, w / |x| is x / |x|, and
# a column that is added to a product is added as a row where both fit. Nothing is said of it.
#
# Guess before running: OpenCV gives what ONNX Runtime gives, within rounding, or refuses.
# Found with opencv-python-headless 5.0.0.93 beside onnxruntime 1.31.1: the values of other formulas.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check opencv-python-headless==5.0.0.93 \
    onnxruntime==1.31.1 onnx==1.23.2 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import cv2
import numpy as np
import onnx
import onnxruntime

rng = np.random.default_rng(0)
x, w = rng.standard_normal((2, 8, 8)).astype(np.float32)
column = rng.standard_normal((8, 1)).astype(np.float32)
softplus = np.log(np.exp(x) + 1)
length = np.sqrt((x * x).sum(1, keepdims=True))
print("opencv", cv2.__version__, "onnxruntime", onnxruntime.__version__)
for formula, nodes, constants, what, instead in (
    ("log(exp(x) + 0.1)", "e = Exp (x) s = Add (e, c) y = Log (s)", {"c": np.float32(0.1)},
     "log(exp(x) + 1)", softplus),
    ("w * tanh(softplus(x))", "s = Softplus (x) t = Tanh (s) y = Mul (w, t)", {"w": w},
     "x * tanh(softplus(x))", x * np.tanh(softplus)),
    ("w / |x|", "n = ReduceL2 <axes = [1], keepdims = 1> (x) y = Div (w, n)", {"w": w},
     "x / |x|", x / length),
    ("x @ w + column", "p = MatMul (x, w) y = Add (p, c)", {"w": w, "c": column},
     "x @ w + row", x @ w + column.T),
):
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[8, 8] x) => (float[8, 8] y) '
        f"{{ {nodes} }}")
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items())
    onnx.checker.check_model(model, full_check=True)
    content = model.SerializeToString()
    (right,) = onnxruntime.InferenceSession(content).run(None, {"x": x})
    net = cv2.dnn.readNetFromONNX(np.frombuffer(content, np.uint8))
    net.setInput(x, "x")
    found = net.forward()
    print(f"{formula}: {np.abs(found - right).max():.2f} apart, {np.abs(found - instead).max():.4f} "
          f"from {what}")
    assert found.shape == right.shape and np.abs(found - right).max() > 0.5
    assert np.abs(found - instead).max() < 1e-4
PYTHON
echo "as described"

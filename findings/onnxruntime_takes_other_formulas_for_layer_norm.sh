#!/usr/bin/env bash
# ONNX Runtime's graph optimizations, on by default, replace the nodes of (x - mean) / sqrt(mean((x -
# mean) ** 2) + epsilon) by LayerNormalization. They ask for the kinds of nodes and their order, not for
# the exponent nor for which operand comes first: with (x - mean) ** 4, with mean - x, with the root
# divided by the difference, and with an epsilon for each channel (they take 1e-5) the outcome is
# the plain layer norm. Nothing is said of it, and so it is on the lowest level, ORT_ENABLE_BASIC, whose
# rewrites the documents call semantics-preserving. The fourth power in the RMS form they leave alone.
#
# Guess before running: what is not a layer norm is left as it is; optimizations change rounding at most.
# Found with onnxruntime 1.31.1: the values of the layer norm for all four.
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

Level = onnxruntime.GraphOptimizationLevel
print("onnxruntime", onnxruntime.__version__, "onnx", onnx.__version__)
x = np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32)
small, channels = np.float32(1e-5), np.arange(1, 9, dtype=np.float32)


def formula(exponent=2, epsilon=small, flipped=False, turned=False):
    """The formula in float64; flipped: mean - x; turned: the root divided by the difference."""
    wide = x.astype(np.float64)
    difference = wide - wide.mean(1, keepdims=True)
    difference = -difference if flipped else difference
    root = np.sqrt((difference**exponent).mean(1, keepdims=True) + epsilon)
    return root / difference if turned else difference / root


norm = formula()
for name, exponent, epsilon, minus, over, right in (
    ("layer norm", 2, small, "x, mean", "d, root", norm),
    ("fourth power", 4, small, "x, mean", "d, root", formula(exponent=4)),
    ("mean - x", 2, small, "mean, x", "d, root", formula(flipped=True)),
    ("root / difference", 2, small, "x, mean", "root, d", formula(turned=True)),
    ("an epsilon for each channel", 2, channels, "x, mean", "d, root", formula(epsilon=channels)),
):
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[4, 8] x) => (float[4, 8] y) { '
        f"mean = ReduceMean <axes = [-1]> (x) d = Sub ({minus}) p = Pow (d, exponent) "
        "v = ReduceMean <axes = [-1]> (p) e = Add (v, epsilon) root = Sqrt (e) "
        f"n = Div ({over}) scaled = Mul (n, scale) y = Add (scaled, bias) }}")
    constants = {"exponent": np.float32(exponent), "epsilon": epsilon,
                 "scale": np.ones(8, np.float32), "bias": np.zeros(8, np.float32)}
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(value, key) for key, value in constants.items())
    onnx.checker.check_model(model, full_check=True)
    found = []
    for level in (Level.ORT_DISABLE_ALL, Level.ORT_ENABLE_BASIC, None):
        options = onnxruntime.SessionOptions()
        if level is not None:
            options.graph_optimization_level = level
        session = onnxruntime.InferenceSession(model.SerializeToString(), options)
        found.append(session.run(None, {"x": x})[0])
    plain, basic, default = found
    print(f"{name}: default {np.abs(default - right).max():.2f} from float64, "
          f"{np.abs(default - norm).max():.6f} from the layer norm")
    assert np.allclose(plain, right, rtol=1e-4, atol=1e-5)
    for one in (basic, default):
        assert np.allclose(one, norm, rtol=1e-4, atol=1e-5)
    assert name == "layer norm" or np.abs(default - right).max() > 0.3
PYTHON
echo "as described"

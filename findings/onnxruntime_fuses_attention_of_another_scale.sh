#!/usr/bin/env bash
# onnxruntime.transformers.optimizer, ONNX Runtime's tool that makes its own fused operators of exported
# models (vision towers with model_type="clip" or "vit"), finds attention by its nodes. It takes the
# node between scores and softmax away and does not read the number in it: the fused Attention
# divides by the root of the head size. A model with another scale (1 / head size, or a multiplier of
# its own as Granite's) computes something else, and with "clip" one that has no scale there, because it
# is part of the query's weights, is scaled twice. Nothing is said of it; where the number is the usual
# one all is right.
#
# Guess before running: the fused attention has the model's scale, or is not made.
# Found with onnxruntime 1.31.1: to rounding what the same model gives with the usual scale.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check onnxruntime==1.31.1 onnx==1.23.2 \
    numpy==2.4.6 sympy==1.14.0
"$folder/venv/bin/python" - "$folder/model.onnx" <<'PYTHON'
import logging
import sys

import numpy as np
import onnx
import onnxruntime
from onnxruntime.transformers.optimizer import optimize_model

onnxruntime.set_default_logger_severity(3)
print("onnxruntime", onnxruntime.__version__)
heads, size, tokens, width = 2, 16, 5, 32
rng = np.random.default_rng(0)
matrices = {f"{name}w": rng.standard_normal((width, width)) / 2 for name in "qkvf"}
vectors = {f"{name}b": rng.standard_normal(width) for name in "qkvf"}
norms = {"one": np.ones(width), "zero": np.zeros(width)}
weights = {name: value.astype(np.float32) for name, value in (matrices | vectors | norms).items()}
weights |= {"split": np.array([0, 0, heads, size]), "join": np.array([0, 0, width])}
feeds = {name: rng.standard_normal((1, tokens, width)).astype(np.float32) for name in ("x", "p")}


def linear(name, x):
    return f"{name}m = MatMul ({x}, {name}w) {name} = Add ({name}m, {name}b) "


def cut(name, order):
    return f"{name}r = Reshape ({name}, split) {name}h = Transpose <perm = {order}> ({name}r) "


def tower(kind, number):
    """A layer of attention between two norms; its scores go through a node of that kind."""
    shape = f"float[1, {tokens}, {width}]"
    scaled = f"t = {kind} (d, number) w = Softmax <axis = -1> (t) " if kind else (
        "w = Softmax <axis = -1> (d) ")
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17]> g ({shape} x, {shape} p) => ({shape} y) {{'
        "e = Add (x, p) a = LayerNormalization (e, one, zero) "
        + linear("q", "a") + linear("k", "a") + linear("v", "a")
        + cut("q", [0, 2, 1, 3]) + cut("k", [0, 2, 3, 1]) + cut("v", [0, 2, 1, 3])
        + "d = MatMul (qh, kh) " + scaled + "o = MatMul (w, vh) "
        "oh = Transpose <perm = [0, 2, 1, 3]> (o) or = Reshape (oh, join) " + linear("f", "or")
        + "h = Add (e, f) y = LayerNormalization (h, one, zero) }")
    constants = weights | ({"number": np.float32(number)} if kind else {})
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items())
    onnx.checker.check_model(model, full_check=True)
    return model


def run(model):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(model.SerializeToString(), options).run(None, feeds)[0]


def attention(scale):
    """The same layer in float64."""
    def norm(x):
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)

    e = feeds["x"].astype(np.float64) + feeds["p"]
    q, k, v = ((norm(e) @ weights[f"{name}w"] + weights[f"{name}b"]).reshape(tokens, heads, size)
               for name in "qkv")
    scores = np.exp(np.einsum("ihc,jhc->hij", q, k) * scale)
    mixed = np.einsum("hij,jhc->ihc", scores / scores.sum(-1, keepdims=True), v)
    return norm(e + mixed.reshape(1, tokens, width) @ weights["fw"] + weights["fb"])


class Heard(logging.Handler):
    def __init__(self):
        super().__init__(logging.WARNING)
        self.said = []

    def emit(self, record):
        self.said.append(record.getMessage())


usual = attention(size**-0.5)
for model_type, kind, number, scale in (
    ("clip", "Mul", size**-0.5, size**-0.5),
    ("clip", "Mul", 1 / size, 1 / size),
    ("clip", "", None, 1.0),
    ("vit", "Div", size**0.5, size**-0.5),
    ("vit", "Div", size, 1 / size),
    ("bert", "Div", size, 1 / size),
):
    model = tower(kind, number)
    onnx.save(model, sys.argv[1])
    heard = Heard()
    logging.getLogger().addHandler(heard)
    fused = optimize_model(sys.argv[1], model_type=model_type, num_heads=heads, hidden_size=width,
                           opt_level=0).model
    logging.getLogger().removeHandler(heard)
    (node,) = [one for one in fused.graph.node if one.op_type == "Attention"]
    right, found = run(model), run(fused)
    print(f'"{model_type}", scores through {kind or "nothing"} {number or ""}: '
          f"{np.abs(found - right).max():.6f} from the model, {np.abs(found - usual).max():.6f} "
          f"from one with the usual scale, warnings {heard.said}")
    assert np.allclose(right, attention(scale), atol=1e-4)
    assert np.allclose(found, usual, atol=1e-4) and heard.said == []
    assert (np.abs(found - right).max() > 0.1) == (scale != size**-0.5)
    assert not any(one.name == "scale" for one in node.attribute)
PYTHON
echo "as described"

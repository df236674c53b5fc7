#!/usr/bin/env bash
# ONNX's Attention lets groups of neighbouring query heads share a head of keys and values: with 4 and 2
# of them, query heads 0 and 1 take the first. tinygrad, which runs ONNX models, takes the two in turn: 0
# and 2 have the first, 1 and 3 the second, so that every decoder with grouped heads (Llama, Qwen,
# Mistral) computes something else. It also masks before it caps the scores (softcap, Gemma 2): minus
# infinity becomes -softcap, and hidden tokens are seen. And with is_causal=1 and a cache a new token
# sees the first cached one alone. Nothing is said of any.
#
# Guess before running: tinygrad gives what ONNX Runtime gives, within rounding, or refuses.
# Found with tinygrad 0.14.0 beside onnxruntime 1.31.1 and float64: three times something else.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check tinygrad==0.14.0 onnxruntime==1.31.1 \
    onnx==1.23.2 numpy==2.4.6
# tinygrad's own interpreter needs no compiler and no device.
HOME="$folder" DEV=PYTHON "$folder/venv/bin/python" - "$folder/model.onnx" <<'PYTHON'
import sys
from importlib.metadata import version

import numpy as np
import onnx
import onnxruntime
from tinygrad.nn.onnx import OnnxRunner

print("tinygrad", version("tinygrad"), "onnxruntime", onnxruntime.__version__)


def attend(query, keys, values, past, pairs, cap, hides=-np.inf):
    """Causal attention in float64; pairs: the head of keys and values for each query head."""
    keys, values = keys[:, pairs].astype(np.float64), values[:, pairs].astype(np.float64)
    scores = query @ keys.swapaxes(2, 3) / np.sqrt(query.shape[3])
    if cap:
        scores = cap * np.tanh(scores / cap)
    later = np.arange(keys.shape[2]) > past + np.arange(query.shape[2])[:, None]
    weights = np.exp(np.where(later, hides, scores))
    return weights @ values / weights.sum(3, keepdims=True)


rng = np.random.default_rng(0)
one, grouped, in_turn = [0], [0, 0, 1, 1], [0, 1, 0, 1]
for name, pairs, instead, past, new, cap, hides in (
    ("as many heads", one, one, 0, 3, 0, -np.inf),
    ("grouped heads", grouped, in_turn, 0, 3, 0, -np.inf),
    ("capped scores", one, one, 0, 3, 2, -2),
    ("a cache", one, one, 3, 1, 0, -np.inf),
):
    heads, shared = len(pairs), max(pairs) + 1
    query = rng.standard_normal((1, heads, new, 4)).astype(np.float32)
    keys, values = rng.standard_normal((2, 1, shared, past + new, 4)).astype(np.float32)
    inputs = {"q": query, "k": keys[:, :, past:], "v": values[:, :, past:]}
    given = "q, k, v"
    if past:
        inputs |= {"pk": keys[:, :, :past], "pv": values[:, :, :past]}
        given = "q, k, v, , pk, pv"
    took = ", ".join(f"float[{', '.join(map(str, x.shape))}] {label}" for label, x in inputs.items())
    model = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : 23]> g ({took}) => (float[1, {heads}, {new}, 4] y) '
        f"{{ y{', nk, nv' if past else ''} = Attention <is_causal = 1, softcap = {cap}.0> ({given}) }}")
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, sys.argv[1])
    (ours,) = onnxruntime.InferenceSession(sys.argv[1]).run(None, inputs)
    found = OnnxRunner(sys.argv[1])(dict(inputs))["y"].numpy()
    right = attend(query, keys, values, past, pairs, cap)
    other = attend(query, keys, values, 0, instead, cap, hides)
    print(f"{name}: {np.abs(found - right).max():.2f} from float64, {np.abs(found - other).max():.6f} "
          "from the other formula")
    assert np.allclose(ours, right, atol=1e-5) and np.allclose(found, other, atol=1e-5)
    assert (name == "as many heads") == np.allclose(found, right, atol=0.1)
PYTHON
echo "as described"

#!/usr/bin/env bash
# A decoder with a cache gives ONNX's Attention the new token's query and the cached keys and values as
# past_key and past_value, with is_causal=1. ONNX counts the past: query i sees past_sequence_length + i
# + 1 keys. tract begins at the first key instead: the new token sees the first cached token alone, not
# itself nor any other, while present_key and present_value are right. Nothing is said of it, and a
# prompt without past is right, so that only generated tokens are wrong. tract also takes left_window_size
# and right_window_size of opset 25 and attends to everything, and leaves the factor alpha out of Celu.
#
# Guess before running: tract gives what ONNX Runtime gives, within rounding, or refuses.
# Found with tract 0.23.9 beside onnxruntime 1.31.1: the first cached value, whatever the queries are.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check tract==0.23.9 onnxruntime==1.31.1 \
    onnx==1.23.2 numpy==2.4.6
"$folder/venv/bin/python" - "$folder/model.onnx" <<'PYTHON'
import sys
from importlib.metadata import version

import numpy as np
import onnx
import onnxruntime
import tract

print("tract", version("tract"), "onnxruntime", onnxruntime.__version__)


def run(text, inputs):
    """What tract and ONNX Runtime give for the model of this text: lists of arrays."""
    model = onnx.parser.parse_model(text)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, sys.argv[1])
    found = tract.onnx().load(sys.argv[1]).into_model().into_runnable().run(list(inputs.values()))
    right = onnxruntime.InferenceSession(sys.argv[1]).run(None, inputs)
    return [one.to_numpy() for one in found], right


def attend(query, keys, values, past):
    """Causal attention in float64, [tokens, width]."""
    scores = query.astype(np.float64) @ keys.T / np.sqrt(query.shape[1])
    scores[np.arange(len(keys)) > past + np.arange(len(query))[:, None]] = -np.inf
    weights = np.exp(scores - scores.max(1, keepdims=True))
    return weights @ values / weights.sum(1, keepdims=True)


rng = np.random.default_rng(0)
for past, new in ((0, 5), (5, 1), (3, 2)):
    query = rng.standard_normal((1, 1, new, 8)).astype(np.float32)
    keys, values = rng.standard_normal((2, 1, 1, past + new, 8)).astype(np.float32)
    parts = {"k": keys[:, :, past:], "v": values[:, :, past:]}
    took, gave, inputs, outputs = "", "", "q, k, v", "y"
    if past:
        parts |= {"pk": keys[:, :, :past], "pv": values[:, :, :past]}
        took = f", float[1, 1, {past}, 8] pk, float[1, 1, {past}, 8] pv"
        gave = f", float[1, 1, {past + new}, 8] nk, float[1, 1, {past + new}, 8] nv"
        inputs, outputs = "q, k, v, , pk, pv", "y, nk, nv"
    one = f"float[1, 1, {new}, 8]"
    found, ours = run(
        f'<ir_version: 10, opset_import: ["" : 23]> g ({one} q, {one} k, {one} v{took}) => '
        f"({one} y{gave}) {{ {outputs} = Attention <is_causal = 1> ({inputs}) }}",
        {"q": query, **parts})
    right = attend(query[0, 0], keys[0, 0], values[0, 0], past)
    without = attend(query[0, 0], keys[0, 0], values[0, 0], 0)
    assert np.allclose(ours[0][0, 0], right, atol=1e-5)
    for mine, theirs in zip(found[1:], ours[1:], strict=True):
        assert np.array_equal(mine, theirs)
    apart, instead = (np.abs(found[0][0, 0] - one).max() for one in (right, without))
    print(f"{past} cached tokens and {new} new: {apart:.2f} from float64, {instead:.6f} from float64 "
          "without counting the cached ones")
    assert instead < 1e-5 and (apart > 0.5 if past else apart < 1e-5)
    if new == 1:
        assert np.array_equal(found[0][0, 0, 0], values[0, 0, 0])

# ONNX Runtime has no windows of opset 25 yet: the formula is that of the operator's text.
query, keys, values = rng.standard_normal((3, 1, 1, 6, 8)).astype(np.float32)
one = "float[1, 1, 6, 8]"
model = onnx.parser.parse_model(
    f'<ir_version: 11, opset_import: ["" : 25]> g ({one} q, {one} k, {one} v) => ({one} y) '
    "{ y = Attention <is_causal = 1, left_window_size = 0> (q, k, v) }")
onnx.checker.check_model(model, full_check=True)
onnx.save(model, sys.argv[1])
(y,) = tract.onnx().load(sys.argv[1]).into_model().into_runnable().run([query, keys, values])
whole = attend(query[0, 0], keys[0, 0], values[0, 0], 0)
print(f"a window of the token alone: {np.abs(y.to_numpy() - values).max():.2f} from its value, "
      f"{np.abs(y.to_numpy()[0, 0] - whole).max():.6f} from attention without a window")
assert np.abs(y.to_numpy() - values).max() > 0.5 and np.allclose(y.to_numpy()[0, 0], whole, atol=1e-5)

x = np.float32([-4, -1, 0, 1])
(found,), (right,) = run(
    '<ir_version: 8, opset_import: ["" : 17]> g (float[4] x) => (float[4] y) '
    "{ y = Celu <alpha = 2.0> (x) }", {"x": x})
print("Celu of alpha 2:", found.tolist(), "instead of", right.tolist())
assert np.allclose(right, np.maximum(x, 0) + np.minimum(2 * (np.exp(x / 2) - 1), 0))
assert np.allclose(found, np.maximum(x, 0) + np.minimum(np.exp(x / 2) - 1, 0))
PYTHON
echo "as described"

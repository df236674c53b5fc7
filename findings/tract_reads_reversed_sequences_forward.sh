#!/usr/bin/env bash
# A reader of text lines or of sound runs an LSTM, GRU or RNN over its sequence backwards: in ONNX
# direction="reverse". tract runs it forwards, with the same weights: its outputs are to the last step
# those of direction="forward". Nothing is said of it. With direction="bidirectional" its backward half
# is right, so that only models that name the one direction, or split the two into two nodes, are wrong.
#
# Guess before running: a direction that works as half of "bidirectional" works alone, or is refused.
# Found with tract 0.23.9 beside onnxruntime 1.31.1: all three read forwards.
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
rng = np.random.default_rng(0)
x = rng.standard_normal((4, 1, 3)).astype(np.float32)


def run(kind, direction, weights, recurrent):
    """What tract and ONNX Runtime give: [steps, directions, batch, hidden]."""
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[4, 1, 3] x) => '
        f"(float[4, {len(weights)}, 1, 2] y) "
        f'{{ y = {kind} <hidden_size = 2, direction = "{direction}"> (x, weights, recurrent) }}')
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(value, name)
        for name, value in (("weights", weights), ("recurrent", recurrent)))
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, sys.argv[1])
    (found,) = tract.onnx().load(sys.argv[1]).into_model().into_runnable().run([x])
    (right,) = onnxruntime.InferenceSession(sys.argv[1]).run(None, {"x": x})
    return found.to_numpy(), right


def backwards(weights, recurrent):
    """A plain RNN in float64 that begins with the last step: [steps, hidden]."""
    state, states = np.zeros(2), []
    for step in x[::-1, 0].astype(np.float64):
        state = np.tanh(weights @ step + recurrent @ state)
        states.insert(0, state)
    return np.stack(states)


for kind, gates in (("RNN", 1), ("GRU", 3), ("LSTM", 4)):
    both = [rng.standard_normal((2, 2 * gates, width)).astype(np.float32) for width in (3, 2)]
    one = [value[:1] for value in both]
    found, right = run(kind, "reverse", *one)
    forward, forward_right = run(kind, "forward", *one)
    two, two_right = run(kind, "bidirectional", *both)
    print(f"{kind} in reverse: {np.abs(found - right).max():.2f} from ONNX Runtime, "
          f"{np.abs(found - forward_right).max():.6f} from ONNX Runtime's forward")
    assert np.allclose(two, two_right, atol=1e-5) and np.allclose(forward, forward_right, atol=1e-5)
    assert np.abs(found - right).max() > 0.1 and np.allclose(found, forward_right, atol=1e-5)
    if kind == "RNN":
        assert np.allclose(right[:, 0, 0], backwards(*(value[0] for value in one)), atol=1e-5)
PYTHON
echo "as described"

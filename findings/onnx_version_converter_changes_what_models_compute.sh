#!/usr/bin/env bash
# onnx.version_converter brings a model to another opset, as engines ask for it that no longer read an old
# one, or not yet a new one. Where what an operator means by the same attributes has changed, it adapts
# some and forgets others:
# - Resize 10 takes the sample at i / scale, Resize 11 by default that at (i + 0.5) / scale - 0.5: a
#   feature map that is enlarged by two moves by a quarter of a pixel (Upsample becomes the same);
# - Hardmax 11 has one winner in all that lies behind its axis, Hardmax 13 one in each row. Softmax and
#   LogSoftmax, which changed in the same way, it adapts on the way up and not on that down: a softmax
#   over channels becomes one over the whole picture.
# Nothing is said of it, and what comes out passes the full check. Most of what has no equal it refuses.
#
# Guess before running: a converted model computes the same, or converting is refused.
# Found with onnx 1.23.2, computed by onnxruntime 1.31.1: something else for all of these.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check onnx==1.23.2 onnxruntime==1.31.1 \
    numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import numpy as np
import onnx
import onnxruntime
from onnx import version_converter

onnxruntime.set_default_logger_severity(3)
print("onnx", onnx.__version__, "onnxruntime", onnxruntime.__version__)
rng = np.random.default_rng(0)


def computed(model, feeds):
    onnx.checker.check_model(model, full_check=True)
    return onnxruntime.InferenceSession(model.SerializeToString()).run(None, feeds)[0]


def converted_is_right(node, old, new, right, constants="", **feeds):
    """Whether a model of one node still gives its opset's values when it is brought to another one."""
    feeds = {name: value.astype(np.float32) for name, value in feeds.items()}
    form = lambda value: f"float[{', '.join(map(str, value.shape))}]"
    inputs = ", ".join(f"{form(value)} {name}" for name, value in feeds.items())
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : {old}]> '
        f"g ({inputs}) => ({form(right)} y) {constants} {{ y = {node} }}")
    assert np.allclose(computed(model, feeds), right, atol=1e-5), node
    found = computed(version_converter.convert_version(model, new), feeds)
    same = np.allclose(found, right, atol=1e-5)
    worst = np.abs(found - right).max()
    print(f"{node}, opset {old} to {new}: {'the same' if same else f'differs by {worst:.3g}'}")
    return same


def softmax(x, axes):
    power = np.exp(x)
    return power / power.sum(axes, keepdims=True)


ramp = np.arange(6.0)[None, None, None] * np.ones((1, 1, 6, 1))
doubled = np.interp(np.arange(12) / 2, np.arange(6), np.arange(6.0)) * np.ones((1, 1, 12, 1))
scales = "<float[4] scales = {1, 1, 2, 2}>"
assert not converted_is_right('Resize <mode = "linear"> (x, scales)', 10, 11, doubled, scales, x=ramp)
assert not converted_is_right('Upsample <mode = "linear"> (x, scales)', 9, 11, doubled, scales, x=ramp)
assert converted_is_right('Upsample <mode = "linear"> (x, scales)', 9, 10, doubled, scales, x=ramp)

x = rng.standard_normal((2, 3, 4))
winner = x == x.max((1, 2), keepdims=True)
assert not converted_is_right("Hardmax (x)", 11, 13, winner.astype(np.float32), x=x)
assert converted_is_right("Softmax (x)", 11, 13, softmax(x, (1, 2)), x=x)
log = np.log(softmax(x, (1, 2)))
assert converted_is_right("LogSoftmax (x)", 11, 13, log, x=x)
for axis in (1, 2):  # the last axis alone is the same in both
    by_axis = softmax(x, axis)
    assert converted_is_right(f"Softmax <axis = {axis}> (x)", 13, 11, by_axis, x=x) == (axis == 2)
    log = np.log(by_axis)
    assert converted_is_right(f"LogSoftmax <axis = {axis}> (x)", 13, 11, log, x=x) == (axis == 2)
PYTHON
echo "as described"

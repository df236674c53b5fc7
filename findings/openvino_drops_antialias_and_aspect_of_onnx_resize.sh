#!/usr/bin/env bash
# An image processor that is part of an ONNX model (torch's interpolate with antialias=True exports as
# Resize with antialias=1) shrinks pictures with a filter as wide as the step. OpenVINO reads such a
# model and leaves the filter out, so that fine patterns alias and a vision tower sees other pixels.
# It leaves out keep_aspect_ratio_policy too: the output has another shape than ONNX asks for. It
# reports neither; other attributes that it lacks, as half_pixel_symmetric, it refuses.
#
# Guess before running: ONNX's reference, ONNX Runtime and OpenVINO agree, or OpenVINO refuses.
# Found with openvino 2026.4.1 beside onnx 1.23.2 and onnxruntime 1.31.1: OpenVINO alone differs, and
# gives to the last bit what it gives without the attribute.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check openvino==2026.4.1 onnx==1.23.2 \
    onnxruntime==1.31.1 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import numpy as np
import onnx
import onnxruntime
import openvino
from onnx.reference import ReferenceEvaluator

# A pattern of one pixel's width, as of a screen or a page: its mean is 0.5 everywhere.
stripes = np.zeros((1, 1, 96, 96), np.float32)
stripes[..., ::2] = 1
ENGINES = ("ONNX reference", "ONNX Runtime", "OpenVINO")


def results(attributes, picture):
    shape = ", ".join(map(str, picture.shape))
    model = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : 19]> g (float[{shape}] x) => (float[a, b, c, d] y) '
        f"<int64[2] size = {{40, 40}}> {{ y = Resize <axes = [2, 3], {attributes}> (x, , , size) }}")
    model.graph.output[0].type.tensor_type.ClearField("shape")
    data = model.SerializeToString()
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(data), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    yield ReferenceEvaluator(model).run(None, {"x": picture})[0]
    yield onnxruntime.InferenceSession(data).run(None, {"x": picture})[0]
    yield compiled([picture])[0]


print("openvino", openvino.__version__, "onnx", onnx.__version__, "onnxruntime",
      onnxruntime.__version__)
for mode in ("linear", "cubic"):
    plain = list(results(f'mode = "{mode}"', stripes))
    smooth = list(results(f'mode = "{mode}", antialias = 1', stripes))
    print(f"{mode}, 96 to 40, antialias=1, values inside:")
    for name, found in zip(ENGINES, smooth):
        print(f"    {name}: {found[..., 5:-5].min():.2f} to {found[..., 5:-5].max():.2f}")
    assert all(np.abs(one - plain[0]).max() < 1e-4 for one in plain)
    assert np.abs(smooth[0] - smooth[1]).max() < 1e-4 and np.abs(smooth[0] - smooth[2]).max() > 0.3
    assert np.array_equal(smooth[2], plain[2])
policy = 'mode = "linear", keep_aspect_ratio_policy = "not_larger"'
shapes = [one.shape for one in results(policy, stripes[:, :, :48])]
print("48 x 96 to at most 40 x 40:", dict(zip(ENGINES, shapes)))
assert shapes == [(1, 1, 20, 40), (1, 1, 20, 40), (1, 1, 40, 40)], shapes
PYTHON
echo "as described"

#!/usr/bin/env bash
# ONNX's Resize finds the place of each sample by its scale, or by the corners of a region to cut out
# (tf_crop_and_resize); how many samples there are is another matter. ONNX Runtime looks at the sizes
# alone: where all stay as they are it copies the input. DINOv2's kind of tower fits its table of
# positions by a scale such as 14.1 / 14 (its offset of 0.1), which torch's bicubic interpolate and
# ONNX count and ONNX Runtime does not; and a region that is zoomed to the size of the picture it was
# cut from comes out as the whole picture. Nothing is said of it, and with one more row or column all is
# right.
#
# Guess before running: torch, ONNX's reference and ONNX Runtime agree within rounding.
# Found with onnxruntime 1.31.1 beside onnx 1.23.2 and torch 2.13.0: ONNX Runtime alone gives its input.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check torch==2.13.0 numpy==2.4.6 \
    onnx==1.23.2 onnxruntime==1.31.1
"$folder/venv/bin/python" - <<'PYTHON'
import numpy as np
import onnx
import onnxruntime
import torch
from onnx.reference import ReferenceEvaluator

onnxruntime.set_default_logger_severity(3)
print("onnxruntime", onnxruntime.__version__, "onnx", onnx.__version__, "torch", torch.__version__)


def resize(x, attributes, inputs, constants):
    """What ONNX Runtime and ONNX's reference give."""
    side = x.shape[-1]
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 18]> g (float[1, 1, {side}, {side}] x) => '
        f"(float[n, c, h, w] y) <{constants}> {{ y = Resize <{attributes}> (x, {inputs}) }}")
    onnx.checker.check_model(model, full_check=True)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    return session.run(None, {"x": x})[0], ReferenceEvaluator(model).run(None, {"x": x})[0]


positions = np.random.default_rng(0).standard_normal((1, 1, 14, 14)).astype(np.float32)
for side, scale in (("14.1", 14.1 / 14), ("14.9", 14.9 / 14), ("15.1", 15.1 / 14)):
    found, right = resize(
        positions, 'mode = "cubic", coordinate_transformation_mode = "half_pixel"', ", scales",
        f"float[4] scales = {{1.0, 1.0, {scale}, {scale}}}")
    tower = torch.nn.functional.interpolate(
        torch.from_numpy(positions), scale_factor=(scale, scale), mode="bicubic").numpy()
    print(f"14 values by {side} / 14 become {found.shape[-1]}: ONNX Runtime differs by "
          f"{np.abs(found - tower).max():.2f} from torch, the reference by "
          f"{np.abs(right - tower).max():.6f}")
    assert np.allclose(right, tower, atol=1e-4)
    if side == "15.1":
        assert np.allclose(found, tower, atol=1e-4)
    else:
        assert np.array_equal(found, positions) and np.abs(found - tower).max() > 0.3

# A ramp: each value is its column, so that the outcome says which columns were looked at.
ramp = np.broadcast_to(np.arange(5, dtype=np.float32), (1, 1, 5, 5)).copy()
for width in (5, 6):
    found, right = resize(
        ramp, 'mode = "linear", coordinate_transformation_mode = "tf_crop_and_resize"',
        "roi, , sizes", "float[8] roi = {0.0, 0.0, 0.0, 0.5, 1.0, 1.0, 1.0, 1.0}, "
        f"int64[4] sizes = {{1, 1, 5, {width}}}")
    expected = np.linspace(2, 4, width)
    print(f"the right half, {width} columns wide: {found[0, 0, 0].round(2)}, expected "
          f"{right[0, 0, 0].round(2)}")
    assert np.allclose(right, expected, atol=1e-5)
    assert np.array_equal(found, ramp) if width == 5 else np.allclose(found, expected, atol=1e-5)
PYTHON
echo "as described"

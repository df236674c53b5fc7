#!/usr/bin/env bash
# Vision towers enlarge their table of positions to the picture's grid: torch's bicubic interpolate,
# in ONNX Resize with mode="cubic" and half_pixel. MNN takes such a model and gets the first row and
# column wrong: where a sample lies before the first value, it rounds the position towards zero instead
# of down and weighs values that are one too far. Inside it is right. It also leaves out cubic_coeff_a
# (-0.5 is that of Pillow and JAX) and antialias. Nothing is said of any.
#
# Guess before running: MNN gives what ONNX Runtime gives, within rounding, or refuses.
# Found with MNN 3.6.1 beside onnxruntime 1.31.1: 0.77 instead of -0.09 at the border of a ramp.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check MNN==3.6.1 onnx==1.23.2 \
    onnxruntime==1.31.1 numpy==2.4.6
cd "$folder"
venv/bin/python - 2>&1 <<'PYTHON' | grep -E "^(MNN |0, 1|cubic|antialias|[A-Za-z]*Error)"
from importlib.metadata import version

import _tools
import MNN
import MNN.expr as expr
import numpy as np
import onnx
import onnxruntime


def both(x, size, more=""):
    """What ONNX Runtime and MNN make of x, resized to size by size."""
    height, width = x.shape[2:]
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 18]> g (float[1, 1, {height}, {width}] x) => '
        f"(float[1, 1, {size}, {size}] y) <int64[4] size = {{1, 1, {size}, {size}}}> "
        f'{{ y = Resize <mode = "cubic", coordinate_transformation_mode = "half_pixel"{more}> '
        "(x, , , size) }")
    onnx.save(model, "model.onnx")
    # The converter itself, without the command's wrapper, which runs pip.
    _tools.mnnconvert(["mnnconvert", "-f", "ONNX", "--modelFile", "model.onnx", "--MNNModel",
                       "model.mnn", "--bizCode", "example"])
    net = MNN.nn.load_module_from_file("model.mnn", ["x"], ["y"])
    found = net.forward([expr.const(x, list(x.shape), expr.NCHW, expr.float)])[0]
    found = np.array(expr.convert(found, expr.NCHW).read())
    return onnxruntime.InferenceSession("model.onnx").run(None, {"x": x})[0], found


ramp = np.broadcast_to(np.arange(16, dtype=np.float32), (1, 1, 16, 16)).copy()
right, found = both(ramp, 24)
print("MNN", version("MNN"), "onnxruntime", onnxruntime.__version__)
print("0, 1, ..., 15 to 24 columns, ONNX Runtime:", right[0, 0, 12, :4].round(2).tolist())
print("0, 1, ..., 15 to 24 columns, MNN:         ", found[0, 0, 12, :4].round(2).tolist())
apart = np.abs(right - found)
assert apart[..., 1:].max() < 1e-4 and apart[..., 0].min() > 0.8
right, found = both(ramp.swapaxes(2, 3).copy(), 24)
apart = np.abs(right - found)
assert apart[..., 1:, :].max() < 1e-4 and apart[..., 0, :].min() > 0.8
stripes = np.tile(np.array([1, 0], np.float32), (1, 1, 96, 48))
for name, x, size in (("cubic_coeff_a = -0.5", ramp, 12), ("antialias = 1", stripes, 40)):
    right, found = both(x, size, f", {name}")
    plain = both(x, size)[1]
    print(f"{name}: {np.abs(right - found).max():.2f} apart, {np.abs(plain - found).max():.2f} from "
          "MNN's without it")
    assert np.abs(right - found).max() > 0.04 and np.array_equal(plain, found)
PYTHON
echo "as described"

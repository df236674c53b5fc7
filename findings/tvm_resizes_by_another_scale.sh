#!/usr/bin/env bash
# A model that enlarges or shrinks a feature map or a table of positions by a factor, as torch's
# interpolate(scale_factor=...) exports it, has an ONNX Resize with scales. ONNX (and torch) find the place
# of a sample by that scale, and round the size alone: 5 values by 1.5 are 7, at distances of 1 / 1.5.
# TVM's importer keeps the size that comes out and forgets the scale: it takes distances of 5 / 7, so that
# samples lie further and further off to the end, in every mode. Where the size is a whole number it is
# right. MaxPool with auto_pad="SAME_LOWER" comes out a row and column smaller than ONNX says, and IsInf
# takes both infinities where it is asked for one. Nothing is said of any.
#
# Guess before running: TVM gives what ONNX Runtime gives, within rounding, or refuses.
# Found with apache-tvm 0.27.0.post1 beside onnxruntime 1.31.1: the values of other scales.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check apache-tvm==0.27.0.post1 onnx==1.23.2 \
    onnxruntime==1.31.1 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
from importlib.metadata import version

import numpy as np
import onnx
import onnxruntime
import tvm
from tvm import relax
from tvm.relax.frontend.onnx import from_onnx

onnxruntime.set_default_logger_severity(3)
print("apache-tvm", version("apache-tvm"), "onnxruntime", onnxruntime.__version__)


def both(nodes, x, constants=""):
    """What ONNX Runtime and TVM make of x."""
    shape = ", ".join(map(str, x.shape))
    dims = ", ".join("abcd"[:x.ndim])
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 13]> g (float[{shape}] x) => (float[{dims}] y) '
        f"{constants} {{ {nodes} }}")
    onnx.checker.check_model(model, full_check=True)
    right = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x})[0]
    machine = relax.VirtualMachine(tvm.compile(from_onnx(model), target="llvm"), tvm.cpu())
    return right, machine["main"](tvm.runtime.tensor(x)).numpy()


for size, scale in ((6, 2), (5, 1.5), (7, 0.6)):
    ramp = np.arange(size, dtype=np.float32)[None, None, None] * np.ones((1, 1, size, 1), np.float32)
    for mode in ("linear", "cubic", "nearest"):
        right, found = (one[0, 0, 0] for one in both(
            f'y = Resize <mode = "{mode}"> (x, , scales)', ramp,
            f"<float[4] scales = {{1, 1, {scale}, {scale}}}>"))
        print(f"{mode}, {size} by {scale}: ONNX Runtime {right.round(2)}, TVM {found.round(2)}")
        assert len(right) == len(found) == int(size * scale)
        if mode == "linear":  # a ramp's value is its place, held at the ends
            place = lambda by: np.clip((np.arange(len(found)) + 0.5) / by - 0.5, 0, size - 1)
            assert np.allclose(right, place(scale), atol=1e-5)
            assert np.allclose(found, place(len(found) / size), atol=1e-5)
        if scale == 2 or mode != "nearest":  # of the nearest, few are others
            assert np.allclose(right, found, atol=1e-4) == (scale == 2)

x = np.random.default_rng(0).standard_normal((1, 1, 7, 9)).astype(np.float32)
for pad, shape in (("SAME_UPPER", (1, 1, 4, 5)), ("SAME_LOWER", (1, 1, 3, 4))):
    right, found = both(f'y = MaxPool <auto_pad = "{pad}", kernel_shape = [2, 2], strides = [2, 2]> (x)', x)
    print(f"MaxPool {pad}: ONNX Runtime {right.shape}, TVM {found.shape}")
    assert right.shape == (1, 1, 4, 5) and found.shape == shape
right, found = both("found = IsInf <detect_negative = 0> (x) y = Cast <to = 1> (found)",
                    np.float32([-np.inf, 0, np.inf]))
print(f"IsInf without negative ones: ONNX Runtime {right}, TVM {found}")
assert right.tolist() == [0, 0, 1] and found.tolist() == [1, 0, 1]
PYTHON
echo "as described"

#!/usr/bin/env bash
# pnnx converts ONNX models for ncnn, an engine for phones. ONNX's Gather with a list of indices, by
# which a model picks image tokens, frames or channels, becomes a Crop of a single one: the row whose
# number is the axis, none of those that were asked for, and the axis is gone. With an index that is a
# number all is right. Resize becomes Interp with the places of half_pixel whatever
# coordinate_transformation_mode says ("asymmetric" is what older exporters and converted TensorFlow
# models have), without the antialiasing filter, and with -0.75 for every cubic_coeff_a (-0.5 is that
# of Pillow). Nothing is said of any.
#
# Guess before running: ncnn gives what ONNX Runtime gives, within rounding, or pnnx refuses.
# Found with pnnx 20261020 and ncnn 1.0.20261020 beside onnxruntime 1.31.1: other values, and for Gather
# another shape.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check numpy==2.4.6 onnx==1.23.2 \
    onnxruntime==1.31.1
# pnnx needs torch for models of torch alone; ncnn's other requirements are for its zoo of models.
"$folder/venv/bin/pip" install -q --disable-pip-version-check --no-deps pnnx==20261020 \
    ncnn==1.0.20261020
"$folder/venv/bin/python" - "$folder" <<'PYTHON'
import re
import subprocess
import sys
from importlib.metadata import distribution, version
from pathlib import Path

import ncnn
import numpy as np
import onnx
import onnxruntime

onnxruntime.set_default_logger_severity(3)
folder = Path(sys.argv[1])
program = distribution("pnnx").locate_file("pnnx/pnnx")
print("pnnx", version("pnnx"), "ncnn", version("ncnn"), "onnxruntime", onnxruntime.__version__)


def both(x, node, constants):
    """What ONNX Runtime and ncnn give of x, and ncnn's layers."""
    shape = ", ".join(map(str, x.shape))
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 18]> g (float[{shape}] x) => (float y) {{ {node} }}')
    model.graph.output[0].type.tensor_type.ClearField("shape")
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items())
    (right,) = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x})
    model.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info("y", 1, right.shape))
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, folder / "m.onnx")
    told = subprocess.run(
        [program, "m.onnx", f"inputshape=[{shape.replace(' ', '')}]f32", "fp16=0"], cwd=folder,
        capture_output=True, text=True, check=True)
    # The ONNX Runtime within it may speak of the processor.
    lines = [line for line in (told.stdout + told.stderr).splitlines() if "onnxruntime" not in line]
    assert not any(word in line.lower() for line in lines
                   for word in ("warn", "ignor", "support", "error", "fail")), lines
    layers = [line.split()[0] for line in (folder / "m.ncnn.param").read_text().splitlines()[3:]]
    # Which axis is that of batches is what pnnx's own program for the model says.
    batch = {int(one) for one in re.findall(r"batch_index=(\d+)", (folder / "m_ncnn.py").read_text())}
    assert len(batch) == 1
    axis = batch.pop()
    net = ncnn.Net()
    net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = net.opt.use_fp16_packed = False
    net.opt.use_bf16_storage = False
    net.load_param(str(folder / "m.ncnn.param"))
    net.load_model(str(folder / "m.ncnn.bin"))
    extractor = net.create_extractor()
    extractor.input("in0", ncnn.Mat(x, batch_index=axis).clone())
    code, found = extractor.extract("out0")
    assert code == 0
    return right, np.array(found.numpy(batch_index=axis)), layers


# Ten tokens, each filled with its number, along the second axis and along the third.
for axis, index in ((1, [0, 3, 5]), (1, [7, 8]), (2, [7, 8]), (1, 3)):
    tokens = np.broadcast_to(np.arange(10, dtype=np.float32), (1, 8, 10)).swapaxes(axis, 2).copy()
    right, found, layers = both(
        tokens, f"y = Gather <axis = {axis}> (x, index)", {"index": np.array(index, np.int64)})
    print(f"tokens {index} of axis {axis}: {np.unique(right).tolist()} in ONNX Runtime, "
          f"{np.unique(found).tolist()} of shape {found.shape} in ncnn ({', '.join(layers)})")
    assert np.array_equal(right, tokens.take(index, axis))
    if isinstance(index, int):
        assert np.array_equal(found, right)
    else:
        assert found.shape == (1, 8) and np.all(found == axis)

picture = np.random.default_rng(0).standard_normal((1, 3, 8, 8)).astype(np.float32)
for mode, attribute, factor in (
    ("linear", 'coordinate_transformation_mode = "asymmetric"', 2),
    ("linear", "antialias = 1", 0.5),
    ("cubic", "cubic_coeff_a = -0.5", 2),
):
    scales = {"scales": np.array([1, 1, factor, factor], np.float32)}
    right, found, _ = both(picture, f'y = Resize <mode = "{mode}", {attribute}> (x, , scales)', scales)
    usual, same, _ = both(picture, f'y = Resize <mode = "{mode}"> (x, , scales)', scales)
    print(f"Resize with {attribute}: {np.abs(found - right).max():.2f} from ONNX Runtime, "
          f"{np.abs(found - usual).max():.6f} from the same without it")
    assert np.abs(found - right).max() > 0.1
    assert np.array_equal(found, same) and np.allclose(same, usual, atol=1e-4)
PYTHON
echo "as described"

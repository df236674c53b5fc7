#!/usr/bin/env bash
# quantize_static, ONNX Runtime's quantizer of whole models, takes out the Clip behind a layer that it
# quantizes: the eight bits hold its bounds, as the calibration has seen them. But they always hold 0 too,
# so that a lower bound above 0 (torch's clamp(min=...), by which models guard a division, a root or a
# logarithm) is gone with its Clip, in both formats: values that the model held at 1 come out as 0, and
# their reciprocal is infinite. Nothing is said of it.
#
# Guess before running: a quantized model differs by about a step of its eight bits; a Clip that the
# quantized range does not make up for stays.
# Found with onnxruntime 1.31.1: no Clip is left, 0 instead of 1, and infinity instead of 1.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check onnxruntime==1.31.1 onnx==1.23.2 \
    numpy==2.4.6
"$folder/venv/bin/python" - "$folder" <<'PYTHON'
import logging
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

logging.disable(logging.WARNING)  # advice to run a step before quantizing, which changes nothing here
print("onnxruntime", onnxruntime.__version__, "onnx", onnx.__version__)
plain, quantized = (Path(sys.argv[1], name) for name in ("plain.onnx", "quantized.onnx"))
rng = np.random.default_rng(0)
x = rng.standard_normal((32, 8)).astype(np.float32)
w = rng.standard_normal((8, 4)).astype(np.float32)


class Calibration(CalibrationDataReader):
    def __init__(self):
        self.left = [{"x": x}]

    def get_next(self):
        return self.left.pop() if self.left else None


for low, high, behind in ((-1, 1, ""), (0, 2, ""), (1, 2, ""), (1, 2, " z = Reciprocal (y)")):
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[32, 8] x) => '
        f"(float[32, 4] {'z' if behind else 'y'}) "
        f"{{ product = MatMul (x, w) y = Clip (product, low, high){behind} }}")
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(np.asarray(value, np.float32), name)
        for name, value in (("w", w), ("low", low), ("high", high)))
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, plain)
    right = np.clip(x.astype(np.float64) @ w, low, high)
    if behind:
        right = 1 / right
    (ours,) = onnxruntime.InferenceSession(plain).run(None, {"x": x})
    assert np.allclose(ours, right, atol=1e-5)
    for form in (QuantFormat.QDQ, QuantFormat.QOperator):
        quantize_static(plain, quantized, Calibration(), quant_format=form)
        kinds = [node.op_type for node in onnx.load(quantized).graph.node]
        (found,) = onnxruntime.InferenceSession(quantized).run(None, {"x": x})
        print(f"Clip from {low} to {high}{behind}, {form}: {right.min():.2f} to {right.max():.2f} "
              f"in float64, {found.min():.2f} to {found.max():.2f} quantized")
        assert "Clip" not in kinds
        if behind:
            assert right.max() == 1 and np.isinf(found).any()
        elif low > 0:
            assert right.min() == 1 and found.min() == 0
        else:
            assert np.abs(found - right).max() < 0.15
PYTHON
echo "as described"

#!/usr/bin/env bash
# ONNX's Gemm is alpha * A @ B + beta * C; torch's addmm exports as it, scales of LoRA and of attention
# as alpha, and baddbmm's usual beta is 0. quantize_static of ONNX Runtime stores the bias C divided by
# beta and quantizes to QGemm, which has no beta and multiplies the bias by alpha too: the outcome is
# alpha * (A @ B + C / beta). With QuantFormat.QDQ the file itself says alpha * A @ B + C, and the
# session makes QGemm of it where alpha is 1. With beta=0, which hides the bias, it is divided by
# 0 (numpy warns, alone) and both formats add what comes of that. Nothing else is said of it; with alpha
# and beta of 1 all is right.
#
# Guess before running: alpha and beta are counted, or such a Gemm is left in float.
# Found with onnxruntime 1.31.1: within two steps of eight bits of other formulas.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check onnxruntime==1.31.1 onnx==1.23.2 \
    numpy==2.4.6
"$folder/venv/bin/python" -W ignore - "$folder" <<'PYTHON'
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
bias = np.array([1, -2, 3, -4], np.float32)
product = x.astype(np.float64) @ w


class Calibration(CalibrationDataReader):
    def __init__(self):
        self.left = [{"x": x}]

    def get_next(self):
        return self.left.pop() if self.left else None


QDQ, QOperator = QuantFormat.QDQ, QuantFormat.QOperator
for alpha, beta, form, other in (
    (1, 1, QDQ, None),
    (1, 1, QOperator, None),
    (0.5, 1, QDQ, None),
    (0.5, 1, QOperator, 0.5 * (product + bias)),
    (1, 2, QDQ, product + bias / 2),
    (1, 2, QOperator, product + bias / 2),
    (0.5, 2, QDQ, 0.5 * product + bias),
    (0.5, 2, QOperator, 0.5 * (product + bias / 2)),
    (1, 0, QDQ, None),
    (1, 0, QOperator, None),
):
    right = alpha * product + beta * bias
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[32, 8] x) => (float[32, 4] y) '
        f"{{ y = Gemm <alpha = {float(alpha)}, beta = {float(beta)}> (x, w, bias) }}")
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(value, name) for name, value in (("w", w), ("bias", bias)))
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, plain)
    (ours,) = onnxruntime.InferenceSession(plain).run(None, {"x": x})
    assert np.allclose(ours, right, atol=1e-5)
    quantize_static(plain, quantized, Calibration(), quant_format=form)
    (found,) = onnxruntime.InferenceSession(quantized).run(None, {"x": x})
    # The output's range, as calibrated, holds what the other formula has: it may be cut at its ends.
    step = (max(right.max(), 0) - min(right.min(), 0)) / 255
    low, high = min(right.min(), 0), max(right.max(), 0)
    apart = np.abs(found - right).max() / step
    print(f"alpha {alpha}, beta {beta}, {form}: {apart:.0f} steps from float64", end="")
    if other is None:
        print()
        assert apart > 100 if beta == 0 else apart < 6
    else:
        instead = np.abs(found - np.clip(other, low, high)).max() / step
        print(f", {instead:.0f} from the other formula")
        assert apart > 30 and instead < 6
PYTHON
echo "as described"

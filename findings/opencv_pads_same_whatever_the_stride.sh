#!/usr/bin/env bash
# auto_pad="SAME_UPPER" of ONNX (padding "same" of TensorFlow and Keras) pads no more than the last
# window needs: nothing where the stride is the kernel and divides the picture, as a vision
# transformer's patches have it, and one row and column at the end for a stem of 3 by 3 with stride 2.
# OpenCV's dnn takes no account of the stride and begins (kernel - 1) // 2 pixels before the picture:
# patches of 16 pixels lie 7 pixels too far up and left, with 7 rows and columns of zeros, and their
# last 7 are never seen. The output has the right shape, and nothing is said of it. With stride 1, as
# most layers have it, all is right.
#
# Guess before running: OpenCV gives what ONNX Runtime gives, within rounding, or refuses.
# Found with opencv-python-headless 5.0.0.93 beside onnxruntime 1.31.1: the same with stride 1; with
# stride 2 and 16 what ONNX Runtime gives for other pads.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check opencv-python-headless==5.0.0.93 \
    onnxruntime==1.31.1 onnx==1.23.2 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import cv2
import numpy as np
import onnx
import onnxruntime

rng = np.random.default_rng(0)
picture = rng.standard_normal((1, 3, 64, 64)).astype(np.float32)


def model(padding, kernel, stride):
    """A convolution of the picture to 4 channels, with random weights, as bytes of an ONNX file."""
    size = 64 // stride
    parsed = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[1, 3, 64, 64] x) => '
        f"(float[1, 4, {size}, {size}] y) {{ y = Conv <{padding}, strides = [{stride}, {stride}]> "
        "(x, w) }")
    weights = np.random.default_rng(1).standard_normal((4, 3, kernel, kernel)).astype(np.float32)
    parsed.graph.initializer.append(onnx.numpy_helper.from_array(weights, "w"))
    onnx.checker.check_model(parsed, full_check=True)
    return parsed.SerializeToString()


def expected(padding, kernel, stride):
    session = onnxruntime.InferenceSession(model(padding, kernel, stride))
    return session.run(None, {"x": picture})[0]


print("opencv", cv2.__version__, "onnxruntime", onnxruntime.__version__)
for kernel, stride in ((3, 1), (3, 2), (16, 16)):
    right = expected('auto_pad = "SAME_UPPER"', kernel, stride)
    content = np.frombuffer(model('auto_pad = "SAME_UPPER"', kernel, stride), np.uint8)
    net = cv2.dnn.readNetFromONNX(content)
    net.setInput(picture, "x")
    found = net.forward()
    assert found.shape == right.shape
    start = (kernel - 1) // 2
    end = (64 // stride - 1) * stride + kernel - 64 - start
    moved = expected(f"pads = [{start}, {start}, {max(end, 0)}, {max(end, 0)}]", kernel, stride)
    print(f"{kernel} by {kernel}, stride {stride}: {np.abs(found - right).max():.4f} from SAME_UPPER, "
          f"{np.abs(found - moved).max():.4f} from {start} rows and columns before the picture")
    assert np.abs(found - moved).max() < 1e-3
    assert (np.abs(found - right).max() > 10) == (stride > 1)
PYTHON
echo "as described"

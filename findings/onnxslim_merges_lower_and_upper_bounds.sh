#!/usr/bin/env bash
# onnxslim makes exported models smaller. It leaves out inputs without a name when it looks for nodes
# that do the same: x.clamp(min=c) and x.clamp(max=c), which torch's exporter (dynamo=False) writes as
# Clip (x, c, "") and Clip (x, "", c), become one Clip, so that a model that treats small and large
# values apart, as a leaky activation does, sees the large ones twice. A factor behind a linear layer
# whose output is cut into heads, such as the scale of queries, goes into the layer's weights although
# others read that layer too: they are scaled with it. And a factor for each column behind a
# convolution goes into its channels where there are as many. Nothing is said of any, and ONNX's full
# check passes.
#
# Guess before running: a slimmed model computes the same within rounding.
# Found with onnxslim 0.1.98 (onnxruntime 1.31.1, without optimizations, runs both): three others.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check onnxslim==0.1.98 numpy==2.4.6 \
    onnx==1.23.2 onnxruntime==1.31.1
"$folder/venv/bin/python" - <<'PYTHON'
from importlib.metadata import version

import numpy as np
import onnx
import onnxruntime
import onnxslim
from onnx.helper import make_node as node

onnxruntime.set_default_logger_severity(3)
rng = np.random.default_rng(0)
print("onnxslim", version("onnxslim"), "onnxruntime", onnxruntime.__version__)


def run(model, x):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(model.SerializeToString(), options).run(None, {"x": x})


def both(nodes, x, constants, **outputs):
    """What the model gives, and what its slimmed one gives."""
    values = {name: np.asarray(value) for name, value in constants.items()}
    tensor = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes, "g", [tensor("x", 1, x.shape)],
        [tensor(name, 1, shape) for name, shape in outputs.items()],
        [onnx.numpy_helper.from_array(value, name) for name, value in values.items()])
    model = onnx.helper.make_model(
        graph, ir_version=8, opset_imports=[onnx.helper.make_opsetid("", 17)])
    onnx.checker.check_model(model, full_check=True)
    right = run(model, x)
    slim = onnxslim.slim(onnx.ModelProto.FromString(model.SerializeToString()))
    onnx.checker.check_model(slim, full_check=True)
    print([one.op_type for one in model.graph.node], "->", [one.op_type for one in slim.graph.node])
    return right, run(slim, x)


def normal(*shape):
    return rng.standard_normal(shape).astype(np.float32)


def short(values):
    return [round(float(one), 2) for one in values.ravel()]


# The positive part, and a tenth of the negative one.
x = np.array([[-3, -1, 0, 2, 4]], np.float32)
for without, name in ((["low"], "no third input"), (["low", ""], "a third input without a name")):
    nodes = [node("Clip", ["x", *without], ["p"]), node("Clip", ["x", "", "high"], ["n"]),
             node("Mul", ["n", "tenth"], ["m"]), node("Add", ["p", "m"], ["y"])]
    constants = {"low": np.float32(0), "high": np.float32(0), "tenth": np.float32(0.1)}
    (right,), (found,) = both(nodes, x, constants, y=(1, 5))
    print(f"{name}: {short(found)}, expected {short(right)}")
    assert np.allclose(right, np.where(x > 0, x, x / 10))
    positive = np.maximum(x, 0)
    assert np.allclose(found, positive + positive / 10 if "" in without else right)

# A linear layer's output in two heads and scaled by 3, and the same output as it is.
x, weight = normal(8, 8), normal(8, 8)
nodes = [node("Gemm", ["x", "weight"], ["h"], transB=1), node("Reshape", ["h", "shape"], ["heads"]),
         node("Mul", ["heads", "scale"], ["q"]), node("Neg", ["h"], ["k"])]
constants = {"weight": weight, "shape": np.array([8, 2, 4]), "scale": np.float32(3)}
right, found = both(nodes, x, constants, q=(8, 2, 4), k=(8, 8))
print(f"of one linear layer: what is scaled by 3 is {np.median(found[0] / right[0]):.2f} times what "
      f"it was, what is not {np.median(found[1] / right[1]):.2f} times")
assert np.allclose(right[1], -x @ weight.T, atol=1e-4)
assert np.allclose(found[0], right[0], atol=1e-4) and np.allclose(found[1], 3 * right[1], atol=1e-4)

# A factor for each column of eight, then the same as a factor for each of eight channels.
x, weight, factor = normal(1, 3, 8, 8), normal(8, 3, 1, 1), normal(8)
plain = np.einsum("oi,nihw->nohw", weight[..., 0, 0], x)
for shape in ((8,), (8, 1, 1)):
    nodes = [node("Conv", ["x", "weight"], ["h"]), node("Mul", ["h", "factor"], ["y"])]
    constants = {"weight": weight, "factor": factor.reshape(shape)}
    (right,), (found,) = both(nodes, x, constants, y=(1, 8, 8, 8))
    print(f"a factor of shape {shape} behind a convolution: {np.abs(found - right).max():.2f} off")
    assert np.allclose(right, plain * factor.reshape(shape), atol=1e-4)
    assert np.allclose(found, plain * factor.reshape(8, 1, 1), atol=1e-4)
    assert (np.abs(found - right).max() > 1) == (shape == (8,))
PYTHON
echo "as described"

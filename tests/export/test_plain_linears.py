"""Which Gemms become a Linear, and that it reads weights where and as they are stored."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from avl_plugins import cpu
from ops.op_models import session
from support.linears import joined, replies, types_of

KINDS = {
    TensorProto.FLOAT16: np.float16,
    TensorProto.BFLOAT16: ml_dtypes.bfloat16,
    TensorProto.FLOAT: np.float32,
}


def model_of(
    *outputs: int,
    inputs: int = 32,
    stored: int = TensorProto.FLOAT16,
    to: int = TensorProto.FLOAT,
    bias: bool = False,
    transposed: bool = True,
    constant: bool = True,
    readers: int = 1,
) -> onnx.ModelProto:
    """x [rows, inputs] through `readers` Gemms for each number of outputs, and Casts of weights."""
    numbers = np.random.default_rng(0)
    nodes, tensors, given, found = [], [], [("x", to, ["rows", inputs])], []
    for i, size in enumerate(outputs):
        shape = (size, inputs) if transposed else (inputs, size)
        if constant:
            weight = numbers.standard_normal(shape).astype(KINDS[stored])
            tensors.append(numpy_helper.from_array(weight, f"w{i}"))
        else:
            given.append((f"w{i}", stored, list(shape)))
        names = ["x", f"w{i}"]
        if stored != to:
            names[1] = f"w{i}.cast"
            nodes.append(helper.make_node("Cast", [f"w{i}"], [names[1]], to=to))
        if bias:
            values = numbers.random(size).astype(helper.tensor_dtype_to_np_dtype(to))
            tensors.append(numpy_helper.from_array(values, f"b{i}"))
            names.append(f"b{i}")
        for reader in range(readers):
            name = f"y{i}.{reader}"
            nodes.append(helper.make_node("Gemm", names, [name], transB=int(transposed)))
            found.append((name, to, ["rows", size]))
    return helper.make_model(
        helper.make_graph(
            nodes,
            "linears",
            [helper.make_tensor_value_info(*value) for value in given],
            [helper.make_tensor_value_info(*value) for value in found],
            tensors,
        ),
        opset_imports=[helper.make_opsetid("", 23)],
        ir_version=11,
    )


@pytest.mark.parametrize("stored", KINDS)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_linears_of_the_same_rows_become_one_node(count: int, bias: bool, stored: int) -> None:
    plain = model_of(*range(3, 3 + count), bias=bias, stored=stored)
    model = joined(plain)
    ops = {1: [""], 2: ["2"], 3: ["3"], 4: ["3", ""]}[count]
    assert types_of(model) == Counter(f"Linear{n}" + "AddBias" * bias for n in ops)
    assert model.graph.output == plain.graph.output
    feeds = {"x": np.random.default_rng(1).standard_normal((3, 32), np.float32)}
    runs = [session(each).run(None, feeds) for each in (model, plain)]
    for found, wanted in zip(*runs, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(model_of(4, inputs=24), id="odd-inputs"),
        pytest.param(model_of(4, readers=2), id="two-readers"),
        pytest.param(model_of(4, transposed=False), id="not-transposed"),
        pytest.param(model_of(4, constant=False), id="not-constant"),
        pytest.param(model_of(4, constant=False, stored=TensorProto.FLOAT), id="fp32-not-constant"),
        pytest.param(model_of(4, inputs=24, stored=TensorProto.FLOAT), id="fp32-odd-inputs"),
        pytest.param(model_of(4, to=TensorProto.FLOAT16), id="fp16-not-cast"),
        pytest.param(model_of(4, to=TensorProto.FLOAT16, stored=TensorProto.BFLOAT16), id="fp16"),
    ],
)
def test_what_the_kernel_does_not_take_stays(model: onnx.ModelProto) -> None:
    found = joined(model)
    assert types_of(found) == types_of(model)
    assert not found.functions


def ending_in_logits(model: onnx.ModelProto, reshaped: bool) -> onnx.ModelProto:
    """`model` with its one product as the output `logits`, of rank 3 if `reshaped`."""
    graph = model.graph
    (output,) = graph.output
    shape = output.type.tensor_type.shape
    if reshaped:
        graph.initializer.append(numpy_helper.from_array(np.array([-1, 1, 5]), "shape"))
        graph.node.append(helper.make_node("Reshape", [output.name, "shape"], ["logits"]))
        shape.dim.insert(1, helper.make_tensor_value_info("", 1, [1]).type.tensor_type.shape.dim[0])
    else:
        graph.node[-1].output[0] = "logits"
    output.name = "logits"
    return model


@pytest.mark.parametrize("reshaped", [False, True])
@pytest.mark.parametrize("stored", KINDS)
def test_a_linear_for_logits_says_so(stored: int, reshaped: bool) -> None:
    plain = ending_in_logits(model_of(5, stored=stored), reshaped)
    model = joined(plain)
    assert types_of(model) == Counter(["LogitsLinear"] + ["Reshape"] * reshaped)
    feeds = {"x": np.random.default_rng(1).standard_normal((3, 32), np.float32)}
    (found,), (wanted,) = (session(each).run(None, feeds) for each in (model, plain))
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-6)


def test_logits_to_which_a_bias_is_added_are_no_products() -> None:
    model = joined(ending_in_logits(model_of(5, bias=True), reshaped=False))
    assert types_of(model) == Counter(["LinearAddBias"])


def test_a_decoder_has_one_linear_for_logits(tiny_package: Path) -> None:
    for file, count in {"decoder.0.onnx": 0, "decoder.1.onnx": 1, "vision.onnx": 0}.items():
        model = onnx.load(tiny_package / file, load_external_data=False)
        assert types_of(model)["LogitsLinear"] == count


def test_no_cast_of_a_matrix_is_left(tiny_package: Path) -> None:
    """avl-tiny is stored in fp16; what is still widened are norms, biases and a convolution."""
    for file in ("decoder.0.onnx", "decoder.1.onnx", "vision.onnx"):
        graph = onnx.load(tiny_package / file, load_external_data=False).graph
        ranks = {tensor.name: len(tensor.dims) for tensor in graph.initializer}
        cast = {node.input[0] for node in graph.node if node.op_type == "Cast"} & ranks.keys()
        linear = {name for node in graph.node if "Linear" in node.op_type for name in node.input}
        assert {ranks[name] for name in linear & ranks.keys()} == {2}
        assert not {name for name in cast if ranks[name] == 2} - {
            "model.vision_tower.embeddings.position_embedding.weight"
        }


MEMORY = """
import sys
from pathlib import Path
import numpy as np
import onnxruntime as ort

def own():
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) << 10

x = np.ones((1, 2048), np.float32)
options = ort.SessionOptions()
options.intra_op_num_threads = 1
for library in sys.argv[2:]:
    options.register_custom_ops_library(library)
before = own()
session = ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
session.run(None, {"x": x})
print(own() - before)
"""


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.FLOAT])
def test_weights_are_not_copied(linear_kernel: Path, tmp_path: Path, kind: int) -> None:
    """With the kernel a session holds nothing of its own for weights that lie in a file."""
    if sys.platform != "linux":
        pytest.skip("there is no /proc/self/status")
    model = joined(model_of(4096, 4096, inputs=2048, stored=kind))
    stored = 2 * np.dtype(KINDS[kind]).itemsize * 4096 * 2048
    file = tmp_path / "model.onnx"
    onnx.save(model, file, save_as_external_data=True, location="weights", size_threshold=1024)
    assert (tmp_path / "weights").stat().st_size >= stored

    def taken(*libraries: Path) -> int:
        command = [sys.executable, "-c", MEMORY, file, *libraries]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return int(done.stdout)

    assert taken(linear_kernel) < stored / 4
    assert taken() >= stored  # ONNX Runtime's copies


def test_replies_are_the_same_without_the_kernel(
    tiny_package: Path, linear_kernel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = replies(tiny_package)
    monkeypatch.setenv(cpu.SWITCH, "off")
    assert found == replies(tiny_package)

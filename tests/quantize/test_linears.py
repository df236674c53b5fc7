"""Which DequantizeLinear and Gemm become one QuantizedLinear, and that nothing else changes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx.compose
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper

from avl_plugins import cpu
from avl_runtime.execute.host.ort import OrtBackend
from avl_runtime.package.package import load_package
from quantize.conftest import Exported
from support.linears import joined, replies, types_of

FLOAT, FLOAT16 = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16


def model_of(
    inputs: int = 64,
    outputs: int = 6,
    block: int | None = 32,
    *,
    bias: bool = False,
    zeros: bool = False,
    dtype: int = FLOAT,
    readers: int = 1,
) -> onnx.ModelProto:
    """x [rows, inputs] through a DequantizeLinear that `readers` Gemms read."""
    numbers = np.random.default_rng(0)
    shape = (outputs,) if block is None else (inputs // block, outputs)
    float_type = helper.tensor_dtype_to_np_dtype(dtype)
    tensors = {
        "codes": numbers.integers(-127, 128, (inputs, outputs), np.int8),
        "scales": numbers.uniform(0.01, 0.1, shape).astype(float_type),
    }
    if zeros:
        tensors["zeros"] = numbers.integers(-9, 9, shape, np.int8)
    form = {"axis": 1} if block is None else {"axis": 0, "block_size": block}
    nodes = [helper.make_node("DequantizeLinear", list(tensors), ["w"], **form)]
    if bias:
        tensors["bias"] = numbers.random(outputs).astype(float_type)
    for i in range(readers):
        names = ["x", "w", "bias"] if bias else ["x", "w"]
        nodes.append(helper.make_node("Gemm", names, [f"y{i}"]))
    return helper.make_model(
        helper.make_graph(
            nodes,
            "linear",
            [helper.make_tensor_value_info("x", dtype, ["rows", inputs])],
            [
                helper.make_tensor_value_info(f"y{i}", dtype, ["rows", outputs])
                for i in range(readers)
            ],
            [numpy_helper.from_array(array, name) for name, array in tensors.items()],
        ),
        opset_imports=[helper.make_opsetid("", 23)],
        ir_version=11,
    )


def outputs_of(model: onnx.ModelProto) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    (given,) = session.get_inputs()
    kind = np.float16 if given.type == "tensor(float16)" else np.float32
    x = np.random.default_rng(1).standard_normal((3, given.shape[1])).astype(kind)
    return session.run(None, {"x": x})


@pytest.mark.parametrize("block", [32, 64, None])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("zeros", [False, True])
def test_a_linear_becomes_one_node(block: int | None, bias: bool, zeros: bool) -> None:
    plain = model_of(block=block, bias=bias, zeros=zeros)
    model = joined(plain)
    name = "QuantizedLinear" + "WithZeros" * zeros + "AddBias" * bias
    assert types_of(model) == Counter([name])
    assert [function.name for function in model.functions] == [name]
    assert [value.name for value in model.graph.output] == ["y0"]
    np.testing.assert_allclose(*outputs_of(model), *outputs_of(plain), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_linears_of_the_same_rows_become_one_node(count: int) -> None:
    plain = merged([model_of(outputs=2 * n, bias=n == 2) for n in range(1, count + 1)])
    model = joined(plain)
    names = {2: ["2"], 3: ["3"], 4: ["3", ""]}[count]
    assert types_of(model) == Counter([f"QuantizedLinear{name}" for name in names] + ["Add"])
    for found, wanted in zip(outputs_of(model), outputs_of(plain), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-6)


def test_linears_that_differ_do_not() -> None:
    others = [model_of(block=64), model_of(zeros=True), model_of()]
    types = types_of(joined(merged(others)))
    assert types == Counter(["QuantizedLinear"] * 2 + ["QuantizedLinearWithZeros"])


def merged(models: list[onnx.ModelProto]) -> onnx.ModelProto:
    """All of them in one graph, with the same x."""
    result = onnx.ModelProto()
    result.CopyFrom(models[0])
    for number, model in enumerate(models[1:]):
        graph = onnx.compose.add_prefix(model, f"{number}.").graph
        for node in graph.node:
            node.input[:] = ["x" if name == f"{number}.x" else name for name in node.input]
        result.graph.node.extend(graph.node)
        result.graph.initializer.extend(graph.initializer)
        result.graph.output.extend(graph.output)
    return result


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(model_of(dtype=FLOAT16), id="fp16"),
        pytest.param(model_of(block=16), id="small-blocks"),
        pytest.param(model_of(inputs=48, block=None), id="odd-inputs"),
        pytest.param(model_of(outputs=5), id="odd-outputs"),
        pytest.param(model_of(readers=2), id="two-readers"),
    ],
)
def test_what_kernels_do_not_take_stays(model: onnx.ModelProto) -> None:
    found = joined(model)
    assert types_of(found) == types_of(model)
    assert not found.functions
    for before, after in zip(outputs_of(model), outputs_of(found), strict=True):
        np.testing.assert_array_equal(before, after)


def mapped_bytes(name: str) -> int:
    """Bytes of a file that this process holds in memory."""
    held, found = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        words = line.split()
        if "-" in words[0] and not words[0].endswith(":"):
            found = words[-1].endswith(name)
        elif found and words[0] == "Rss:":
            held += int(words[1]) << 10
    return held


def test_packed_weights_are_not_held_twice(tiny_int4: Exported, quantized_kernel: Path) -> None:
    package = load_package(tiny_int4.folder)
    (name,) = (shard.path for shard in package.manifest.weights.shards if "int4" in shard.path)
    file = package.weights_folder / name
    backend = OrtBackend(package, threads=1)
    # What is left are pages that two tensors share.
    assert mapped_bytes(name) < 0.5 * file.stat().st_size
    del backend


def test_replies_are_the_same_without_the_kernel(
    tiny_int4: Exported, quantized_kernel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = replies(tiny_int4.folder)
    monkeypatch.setenv(cpu.SWITCH, "off")
    assert found == replies(tiny_int4.folder)

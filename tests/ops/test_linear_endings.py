"""What follows linears in their op, a bias and GELUs: kernels and bodies against float64."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from avl_plugins import cpu
from avl_plugins.bodies.function import linear_function
from avl_plugins.bodies.linear_ops import ADD_BIAS, ENDINGS, FINISHED_LINEARS
from ops import test_plain_linear as plain_linears
from ops.op_models import session
from ops.test_quantized_linear import LEVELS, model_of, plain

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
erfc = np.vectorize(math.erfc, otypes=[np.float64])


def gelu(x: Doubles) -> Doubles:
    return 0.5 * x * erfc(-x / math.sqrt(2))


def tanh_gelu(x: Doubles) -> Doubles:
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def quick_gelu(x: Doubles) -> Doubles:
    return x / (1 + np.exp(-1.702 * x))


FUNCTIONS = {
    ADD_BIAS: lambda x: x,
    "AddBiasGelu": gelu,
    "AddBiasTanhGelu": tanh_gelu,
    "AddBiasQuickGelu": quick_gelu,
}


def with_ending(model: onnx.ModelProto, ending: str, biases: list[Floats]) -> onnx.ModelProto:
    """A model of one linear node with what follows it."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    (node,) = made.graph.node
    op = FINISHED_LINEARS[node.op_type, ending]
    known = list(node.input)
    node.op_type = op.name
    node.input[:] = [known[0]]
    each = (len(known) - 1) // len(biases)
    for at, bias in enumerate(biases):
        node.input.extend([*known[1 + at * each : 1 + (at + 1) * each], f"bias{at}"])
        made.graph.initializer.append(numpy_helper.from_array(bias, f"bias{at}"))
    del made.functions[:]
    made.functions.append(linear_function(op, 23))
    return made


def random_model(kind: str, outputs: list[int]) -> onnx.ModelProto:
    numbers = np.random.default_rng(len(outputs))
    if kind == "float":
        weights = tuple(numbers.standard_normal((n, 64)).astype(np.float16) for n in outputs)
        return plain_linears.model_of(plain_linears.Linear(np.zeros((1, 64), np.float32), weights))
    linears = []
    for n in outputs:
        codes = numbers.integers(-7, 8, (64, n), np.int8)
        one = plain(codes, numbers.random((2, n), np.float32) / 4, 4)
        zeros = numbers.integers(-3, 3, (2, n), np.int8) if kind == "zeros" else None
        linears.append(dataclasses.replace(one, zeros=zeros))
    return model_of(*linears)


def assert_follows(found: Floats, product: Floats, bias: Floats, ending: str) -> None:
    sums = product.astype(np.float64) + bias
    wanted = FUNCTIONS[ending](sums)
    # What float32 rounds of the sum, of which functions change at most 1.13 as much, and a few more
    # units of its last place.
    error = 2.0**-23 * (2 * np.abs(product) + 2 * np.abs(bias) + 4 * np.abs(sums))
    assert (np.abs(found - wanted) <= error + 1e-37).all()


@pytest.mark.parametrize("kind", ["float", "codes", "zeros"])
@pytest.mark.parametrize("ending", ENDINGS)
def test_a_kernel_gives_what_follows_its_products(
    quantized_kernel: Path, ending: str, kind: str
) -> None:
    """Few rows and many, with AMX where there is one: 700 are more than a block of rows."""
    numbers = np.random.default_rng(3)
    for outputs in ([70, 6, 132], [70, 6], [70]) if ending == ADD_BIAS else ([70],):
        model = random_model(kind, outputs)
        biases = [numbers.standard_normal(n).astype(np.float32) for n in outputs]
        given = {"intra_op_num_threads": 2}
        before = session(model, quantized_kernel, **given)
        after = session(with_ending(model, ending, biases), quantized_kernel, **given)
        for rows in (0, 1, 5, 70, 700):
            x = numbers.standard_normal((rows, 64)).astype(np.float32)
            products = before.run(None, {"x": x})
            for found, product, bias in zip(
                after.run(None, {"x": x}), products, biases, strict=True
            ):
                assert_follows(found, product, bias, ending)


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("level", ["base", *LEVELS[::2]])
def test_every_level_takes_functions_of_all_numbers(
    quantized_kernel: Path, level: str, ending: str
) -> None:
    """A weight of one times x, which bf16 and 8 bits would round: in float32."""
    x = np.zeros((4003, 16), np.float32)
    x[:, 0] = [*np.linspace(-12, 12, 3999), 3e38, -3e38, 1e-30, -0.0]
    weight = np.zeros((2, 16), np.float16)
    weight[:, 0] = 1
    model = plain_linears.model_of(plain_linears.Linear(x, (weight,)))
    bias = np.array([0, 0.5], np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(cpu.LEVEL_SWITCH, level)
        run = session(with_ending(model, ending, [bias]), quantized_kernel)
    (found,) = run.run(None, {"x": x})
    with np.errstate(over="ignore"):
        assert_follows(found, np.repeat(x[:, :1], 2, 1), bias, ending)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("ending", ENDINGS)
def test_what_is_no_number_stays_none(quantized_kernel: Path, ending: str, value: float) -> None:
    model = random_model("float", [20])
    bias = np.zeros(20, np.float32)
    x = np.ones((3, 64), np.float32)
    x[1, 5] = value
    run = session(with_ending(model, ending, [bias]), quantized_kernel)
    (found,) = run.run(None, {"x": x})
    assert np.isfinite(found[[0, 2]]).all()
    if math.isnan(value):
        assert np.isnan(found[1]).all()


@pytest.mark.parametrize("kind", ["float", "codes", "zeros"])
@pytest.mark.parametrize("ending", ENDINGS)
def test_a_body_gives_the_same(ending: str, kind: str) -> None:
    numbers = np.random.default_rng(4)
    outputs = [6, 4] if ending == ADD_BIAS else [6]
    model = random_model(kind, outputs)
    biases = [numbers.standard_normal(n).astype(np.float32) for n in outputs]
    none: dict[str, Any] = {"graph_optimization_level": ort.GraphOptimizationLevel.ORT_DISABLE_ALL}
    x = numbers.standard_normal((5, 64)).astype(np.float32)
    products = session(model, **none).run(None, {"x": x})
    found = session(with_ending(model, ending, biases), **none).run(None, {"x": x})
    for one, product, bias in zip(found, products, biases, strict=True):
        assert_follows(one, product, bias, ending)


@pytest.mark.parametrize("kind", ["float", "codes", "zeros"])
@pytest.mark.parametrize("ending", ENDINGS)
def test_a_bias_of_another_width_is_refused(quantized_kernel: Path, ending: str, kind: str) -> None:
    """By the kernel of each op, which is there then."""
    model = with_ending(random_model(kind, [6]), ending, [np.zeros(5, np.float32)])
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None))
    run = session(model, quantized_kernel)
    with pytest.raises(Exception, match="expected a bias with one number for each output"):
        run.run(None, {"x": np.zeros((1, 64), np.float32)})

"""SparseExperts: body and kernels against a loop in float64, and which weights are read."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx.inliner
import onnxruntime as ort
import pytest
from onnx import TensorProto

from avl_plugins.bodies.compiled_experts import compiled_experts_function
from avl_plugins.bodies.experts_body import experts_function
from avl_plugins.cpu.build import STACKED_LEVELS
from avl_plugins.schema import SPARSE_EXPERTS
from ops.expert_models import Array, drawn, expected, guarded, run
from ops.op_models import op_model, session
from support.compiled import library_for

LEVELS = {
    "avx2": STACKED_LEVELS["avl_stacked_avx2"],
    "avx512": STACKED_LEVELS["avl_stacked_avx512"],
}
STORED = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
# Rows, hidden size, experts, experts of a row, intermediate size; kernels take 16 inputs at best.
SIZES = [(1, 48, 7, 3, 32), (9, 20, 11, 4, 13), (70, 64, 5, 2, 48), (3, 17, 4, 4, 130)]


@functools.cache
def opened(
    stored: int, trans: tuple[int, int], kernels: Path | None, level: str
) -> ort.InferenceSession:
    """The op in a graph of its own; `level` is what the environment says, which a session reads."""
    attributes = {"gate_up_trans": trans[0], "down_trans": trans[1]}
    model = op_model(
        SPARSE_EXPERTS, [experts_function(SPARSE_EXPERTS)], {}, attributes, stored=stored
    )
    return session(model, kernels, intra_op_num_threads=2)


Form = Callable[[int, tuple[int, int], Mapping[str, Array]], Array]


@pytest.fixture(params=["body", *LEVELS])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Form:
    """The op's result by its body, or by kernels for instructions that this processor has."""
    library = library_for(request, monkeypatch, LEVELS)

    def computed(stored: int, trans: tuple[int, int], arrays: Mapping[str, Array]) -> Array:
        return run(opened(stored, trans, library, request.param), arrays)

    return computed


@pytest.mark.parametrize("stored", STORED.values(), ids=STORED)
@pytest.mark.parametrize("trans", [(0, 0), (0, 1), (1, 0), (1, 1)], ids=str)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_it_is_the_sum_over_chosen_experts(
    form: Form, sizes: tuple[int, ...], trans: tuple[int, int], stored: int
) -> None:
    arrays = drawn(sizes, stored)
    want = expected(arrays)
    for name, straight in zip(("gate_up", "down"), trans, strict=True):
        if not straight:
            arrays[name] = np.ascontiguousarray(arrays[name].swapaxes(1, 2))
    np.testing.assert_allclose(form(stored, trans, arrays), want, atol=2e-6, rtol=0)


def test_rows_in_half_precision() -> None:
    """Which no kernel takes; the body computes in the rows' type and adds in float32."""
    arrays = drawn(SIZES[0], TensorProto.BFLOAT16)
    arrays |= {name: arrays[name].astype(np.float16) for name in ("x", "shares")}
    attributes = {"gate_up_trans": 1, "down_trans": 1}
    kinds = {"element": TensorProto.FLOAT16, "stored": TensorProto.BFLOAT16}
    model = op_model(SPARSE_EXPERTS, [experts_function(SPARSE_EXPERTS)], {}, attributes, **kinds)
    found = run(session(model), arrays)
    assert found.dtype == np.float16
    np.testing.assert_allclose(found, expected(arrays), atol=1e-2, rtol=0)


@pytest.mark.parametrize("trans", [(0, 1), (1, 0)], ids=str)
def test_the_form_for_compilers_computes_the_same(trans: tuple[int, int]) -> None:
    """A step reads its experts alone; an infinity of another one counts for nothing."""
    attributes = {"gate_up_trans": trans[0], "down_trans": trans[1]}
    body = compiled_experts_function()
    model = onnx.inliner.inline_local_functions(op_model(SPARSE_EXPERTS, [body], {}, attributes))
    assert not {"Unique", "NonZero"} & {node.op_type for node in model.graph.node}
    computed = session(model)
    for sizes in SIZES:
        arrays = drawn(sizes)
        arrays["chosen"][:, 1] = arrays["chosen"][:, 0]
        arrays["chosen"][arrays["chosen"] == 2] = 3
        arrays["gate_up"][2] = np.inf
        want = expected(arrays)
        for name, straight in zip(("gate_up", "down"), trans, strict=True):
            if not straight:
                arrays[name] = np.ascontiguousarray(arrays[name].swapaxes(1, 2))
        np.testing.assert_allclose(run(computed, arrays), want, atol=2e-6, rtol=0)
    arrays = drawn((1, 32, 8, 2, 32))
    want = expected(arrays)
    for name, straight in zip(("gate_up", "down"), trans, strict=True):
        weights = arrays[name] if straight else arrays[name].swapaxes(1, 2)
        arrays[name] = guarded(weights, set(arrays["chosen"].flat))
    np.testing.assert_allclose(run(computed, arrays), want, atol=2e-6, rtol=0)


def test_an_expert_that_a_row_chose_twice_counts_twice(form: Form) -> None:
    arrays = drawn(SIZES[1])
    arrays["chosen"][:, 2] = arrays["chosen"][:, 0]
    found = form(TensorProto.FLOAT, (1, 1), arrays)
    np.testing.assert_allclose(found, expected(arrays), atol=2e-6, rtol=0)


def test_no_rows(form: Form) -> None:
    arrays = {name: a[:0] if a.ndim == 2 else a for name, a in drawn(SIZES[0]).items()}
    assert form(TensorProto.FLOAT, (1, 1), arrays).shape == (0, SIZES[0][1])


@pytest.mark.parametrize("trans", [(0, 0), (1, 1)], ids=["swapped", "straight"])
def test_weights_of_others_are_not_read(form: Form, trans: tuple[int, int]) -> None:
    """Pages of experts that no row chose must not be touched: the system would end the process."""
    arrays = drawn((5, 32, 8, 2, 32))
    arrays["chosen"] = arrays["chosen"] % 2 + [[1, 5]] * 5  # experts 1 and 2, 5 and 6
    want = expected(arrays)
    for name, straight in zip(("gate_up", "down"), trans, strict=True):
        weights = arrays[name] if straight else arrays[name].swapaxes(1, 2)
        arrays[name] = guarded(weights, set(arrays["chosen"].flat))
    np.testing.assert_allclose(form(TensorProto.FLOAT, trans, arrays), want, atol=2e-6, rtol=0)


def test_what_does_not_fit_is_refused(kernels: Path) -> None:
    model = opened(TensorProto.FLOAT, (1, 1), kernels, "")
    arrays = drawn(SIZES[0])
    for chosen in (-1, 7):
        with pytest.raises(Exception, match="expected experts from 0 to one less than there are"):
            run(model, arrays | {"chosen": np.full_like(arrays["chosen"], chosen)})
    with pytest.raises(Exception, match="expected shapes that agree"):
        run(model, arrays | {"shares": arrays["shares"][:, :2].copy()})
    with pytest.raises(Exception, match="expected shapes that agree"):
        run(model, arrays | {"down": arrays["down"][:, :, :16].copy()})

"""Attention of rows that are kept in 16 bits: kernels and body against float64."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avl_plugins import reference
from avl_plugins.bodies.function import split_cache_attention_functions
from avl_plugins.bodies.kept_function import kept_attention_function
from avl_plugins.schema import FP16, HALF_CACHE_ATTENTION
from ops.agreement import assert_masked_rows_have_no_mass, scale_of
from ops.op_models import Arrays, attention_inputs, op_model, run, session
from ops.test_prompt_amx import IN_BF16
from ops.test_prompt_kernel import prompt_inputs

LONG = 2600  # more rows than two of the kernel's chunks
SIZES = ((1, 64), (2, 80), (3, 5), (4, 128), (7, 8))  # query heads a KV head, and of a head


@functools.cache
def half_session(kernels: Path | None, tiles: bool, *key: int) -> ort.InferenceSession:
    heads, kv_heads, head_dim = key
    functions = (
        *split_cache_attention_functions(heads=(heads, kv_heads)),
        kept_attention_function(FP16, [head_dim]),
    )
    model = op_model(
        HALF_CACHE_ATTENTION,
        functions,
        {"H": heads, "Hkv": kv_heads, "D": head_dim},
        {"scale": scale_of(head_dim)},
    )
    return session(model, kernels, IN_BF16 if tiles else {}, intra_op_num_threads=2)


def kept(arrays: Arrays) -> Arrays:
    """The same with cached rows of 16 bits; what lies behind the rows in use stays large."""
    cached = [f"{x}_{place}" for x in "kv" for place in ("active", "parked")]
    return arrays | {name: reference.halved(arrays[name]) for name in cached}


def ran(kernels: Path | None, arrays: Arrays, tiles: bool = False) -> list[np.ndarray[Any, Any]]:
    key = arrays["q"].shape[1], arrays["k_new"].shape[1], arrays["q"].shape[3]
    return run(half_session(kernels, tiles, *key), arrays)


def assert_right(arrays: Arrays, outputs: list[np.ndarray[Any, Any]]) -> None:
    """New rows are rounded to the nearest; attention is that of the rows as kept, in float64."""
    for name, made in zip(("k_new", "v_new"), outputs[4:], strict=True):
        assert made.dtype == np.float16
        np.testing.assert_array_equal(made, reference.halved(arrays[name]))
    seen = arrays | {name: reference.halved(arrays[name]) for name in ("k_new", "v_new")}
    wanted = reference.split_cache_attention(
        *(
            seen[value.name].astype(np.float64)
            if seen[value.name].dtype == np.float16
            else seen[value.name]
            for value in HALF_CACHE_ATTENTION.inputs
        ),
        scale=scale_of(arrays["q"].shape[3]),
    )
    for found, right in zip(outputs[:4], wanted, strict=True):
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, right, rtol=1e-5, atol=1e-5)
    assert_masked_rows_have_no_mass(arrays, outputs)


@pytest.mark.parametrize(("group", "head_dim"), SIZES)
def test_the_kernel_agrees_with_the_reference(group: int, head_dim: int, kernels: Path) -> None:
    @settings(max_examples=12, deadline=None, derandomize=True, database=None)
    @given(
        arrays=st.sampled_from((12, LONG)).flatmap(
            lambda largest: attention_inputs(group, head_dim, largest=largest)
        ),
        one=st.booleans(),
    )
    def check(arrays: Arrays, one: bool) -> None:
        if one:
            for name in ("q", "k_new", "v_new", "row_weights"):
                arrays[name] = np.ascontiguousarray(arrays[name][:, :, :1])
        arrays = kept(arrays)
        assert_right(arrays, ran(kernels, arrays))

    check()


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(arrays=st.sampled_from(SIZES).flatmap(lambda size: attention_inputs(*size)))
def test_the_body_agrees_with_the_reference(arrays: Arrays) -> None:
    arrays = kept(arrays)
    assert_right(arrays, ran(None, arrays))


def test_prompts_read_halves_on_tiles(amx_kernel: Path) -> None:
    """In bf16 as far as it rounds; masses and new rows are those of float32."""
    for rows, active, parked, group in ((64, 200, 0, 1), (97, 700, 31, 3)):
        sizes = {"B": 2, "H": 2 * group, "Hkv": 2, "S": rows, "D": 64, "R": 2}
        sizes |= {"A": active + 3, "P": parked + 1}
        lengths = {"active": [active, active // 2], "parked": [parked, 0]}
        arrays = kept(prompt_inputs(sizes, lengths, 0.2, rows))
        plain, found = (ran(amx_kernel, arrays, tiles) for tiles in (False, True))
        assert_right(arrays, plain)
        off = np.abs(found[0] - plain[0]).max()
        assert 0 < off < 2e-2 * np.abs(arrays["v_new"]).max()
        for one, other in zip(found[1:], plain[1:], strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_what_is_too_large_is_kept_as_the_largest(kernels: Path) -> None:
    """Infinite rows would make no numbers of every reply after them."""
    shape = (1, 1, 3, 8)
    rows = np.full(shape, 1e5, np.float32)
    arrays = {"q": np.full(shape, 1e-7, np.float32), "k_new": rows, "v_new": -rows}
    arrays["row_weights"] = np.ones((1, 1, 3), np.float32)
    for place in ("active", "parked"):
        arrays[f"{place}_len"] = np.zeros(1, np.int64)
        arrays |= {f"{x}_{place}": np.zeros(shape, np.float16) for x in "kv"}
    for library in (kernels, None):
        outputs = ran(library, arrays)
        assert_right(arrays, outputs)
        assert (outputs[4] == 65504).all()
        assert (outputs[5] == -65504).all()

"""Attention of rows that are codes: kernels and body against float64."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avl_plugins import reference
from avl_plugins.bodies.function import split_cache_attention_functions
from avl_plugins.bodies.kept_function import kept_attention_function
from avl_plugins.cpu import build
from avl_plugins.schema import INT8, QUANTIZED_CACHE_ATTENTION, rotation
from ops.agreement import assert_masked_rows_have_no_mass, scale_of
from ops.op_models import Arrays, attention_inputs, op_model, run, session
from ops.test_cpu_levels import Kernels, ran
from ops.test_prompt_amx import IN_BF16
from ops.test_prompt_kernel import prompt_inputs
from support.compiled import compiled, require

GROUPS = (1, 2, 3, 4, 7)
HEAD_DIMS = (5, 8, 64, 80, 128)
LONG = 2600  # more rows than two of the kernel's chunks


@functools.cache
def quantized_model(heads: int, kv_heads: int, head_dim: int) -> onnx.ModelProto:
    functions = (
        *split_cache_attention_functions(heads=(heads, kv_heads)),
        kept_attention_function(INT8, [head_dim]),
    )
    return op_model(
        QUANTIZED_CACHE_ATTENTION,
        functions,
        {"H": heads, "Hkv": kv_heads, "D": head_dim, "E": 1},
        {"scale": scale_of(head_dim)},
    )


@functools.cache
def quantized_session(kernels: Path | None, *key: int) -> ort.InferenceSession:
    return session(quantized_model(*key), kernels, intra_op_num_threads=2)


def coded_inputs(arrays: Arrays) -> Arrays:
    """The same with cached rows as codes; what lies behind the rows in use stays large."""
    made = dict(arrays)
    for place in ("active", "parked"):
        for kind in "kv":
            name = f"{kind}_{place}"
            made[name], made[f"{name}_scale"] = reference.coded(arrays[name].astype(np.float64))
    return made


def assert_right(arrays: Arrays, outputs: list[np.ndarray[Any, Any]]) -> None:
    """New rows are rounded to the nearest code; attention is that of the codes, in float64."""
    out, *masses = outputs[:4]
    k_made, v_made, k_scale, v_scale = outputs[4:]
    turn = rotation(arrays["q"].shape[3])
    for rows, codes, scale in (
        (arrays["k_new"].astype(np.float64) @ turn, k_made, k_scale),
        (arrays["v_new"].astype(np.float64), v_made, v_scale),
    ):
        wanted = np.abs(rows).max(axis=-1, keepdims=True) / 127
        np.testing.assert_allclose(scale, wanted, rtol=1e-6)
        off = np.abs(reference.decoded(codes, scale) - rows)
        assert (off <= 0.501 * wanted + 1e-12).all()
        assert codes.dtype == np.int8
        assert codes.min(initial=0) >= -127
    numbers = {
        f"{x}_{place}": reference.decoded(arrays[f"{x}_{place}"], arrays[f"{x}_{place}_scale"])
        for x in "kv"
        for place in ("active", "parked")
    }
    wanted_out, *wanted_masses = reference.split_cache_attention(
        arrays["q"].astype(np.float64) @ turn,
        reference.decoded(k_made, k_scale),
        reference.decoded(v_made, v_scale),
        numbers["k_active"],
        numbers["v_active"],
        arrays["active_len"],
        numbers["k_parked"],
        numbers["v_parked"],
        arrays["parked_len"],
        arrays["row_weights"],
        scale=scale_of(arrays["q"].shape[3]),
    )
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, wanted_out, rtol=1e-5, atol=1e-5)
    for found, wanted in zip(masses, wanted_masses, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
    assert_masked_rows_have_no_mass(arrays, outputs)


@pytest.mark.parametrize("head_dim", [4, 8, 96])
def test_one_body_serves_heads_of_several_sizes(head_dim: int) -> None:
    """Each node takes the rotation of its own size."""

    @settings(max_examples=3, deadline=None, derandomize=True, database=None)
    @given(attention_inputs(group=2, head_dim=head_dim))
    def check(arrays: Arrays) -> None:
        model = onnx.ModelProto.FromString(quantized_model(*key_of(arrays)).SerializeToString())
        body = kept_attention_function(INT8, [4, 8, 96])
        next(one for one in model.functions if one.name == body.name).CopyFrom(body)
        coded = coded_inputs(arrays)
        assert_right(coded, run(session(model), coded))

    check()


def key_of(arrays: Arrays) -> tuple[int, int, int]:
    return arrays["q"].shape[1], arrays["k_new"].shape[1], arrays["q"].shape[3]


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("group", GROUPS)
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
        arrays = coded_inputs(arrays)
        assert_right(arrays, run(quantized_session(kernels, *key_of(arrays)), arrays))

    check()


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(arrays=st.sampled_from(HEAD_DIMS).flatmap(lambda d: attention_inputs(2, d)))
def test_the_body_agrees_with_the_reference(arrays: Arrays) -> None:
    arrays = coded_inputs(arrays)
    assert_right(arrays, run(quantized_session(None, *key_of(arrays)), arrays))


def test_prompts_read_codes_on_tiles(amx_kernel: Path) -> None:
    """In bf16 as far as it rounds; masses and new rows are those of float32."""
    numbers = np.random.default_rng(4)
    for rows, active, parked, group in ((64, 200, 0, 1), (97, 700, 31, 3), (300, 0, 90, 2)):
        sizes = {"B": 2, "H": 2 * group, "Hkv": 2, "S": rows, "D": 64, "R": 2}
        sizes |= {"A": active + 3, "P": parked + 1}
        lengths = {"active": [active, active // 2], "parked": [parked, 0]}
        arrays = coded_inputs(prompt_inputs(sizes, lengths, 0.2, int(numbers.integers(1 << 30))))
        plain = run(quantized_session(amx_kernel, *key_of(arrays)), arrays)
        model = quantized_model(*key_of(arrays))
        found = run(session(model, amx_kernel, IN_BF16, intra_op_num_threads=2), arrays)
        assert_right(arrays, plain)
        off = np.abs(found[0] - plain[0]).max()
        assert 0 < off < 2e-2 * np.abs(arrays["v_new"]).max()
        for one, other in zip(found[1:4], plain[1:4], strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
        for one, other in zip(found[4:], plain[4:], strict=True):
            np.testing.assert_array_equal(one, other)


def test_rows_of_zeros_are_codes_of_zeros(kernels: Path) -> None:
    shape = (1, 2, 3, 64)
    arrays: Arrays = {name: np.zeros(shape, np.float32) for name in ("q", "k_new", "v_new")}
    arrays["row_weights"] = np.ones((1, 1, 3), np.float32)
    for place in ("active", "parked"):
        arrays[f"{place}_len"] = np.zeros(1, np.int64)
        for kind in "kv":
            arrays[f"{kind}_{place}"] = np.zeros(shape, np.float32)
    arrays = coded_inputs(arrays)
    for library in (kernels, None):
        outputs = run(quantized_session(library, *key_of(arrays)), arrays)
        assert_right(arrays, outputs)
        assert not any(rows.any() for rows in (outputs[0], *outputs[4:]))


@pytest.mark.parametrize("head_dim", [1, 3, 8, 64, 80, 96])
def test_the_rotation_keeps_products(head_dim: int) -> None:
    turn = rotation(head_dim)
    block = head_dim & -head_dim
    np.testing.assert_allclose(turn @ turn, np.eye(head_dim), atol=1e-12)
    ones = [[(row & column).bit_count() % 2 for column in range(block)] for row in range(block)]
    signs = 1 - 2 * np.array(ones)
    np.testing.assert_allclose(turn[:block, :block] * np.sqrt(block), signs)


class Codes(ctypes.Structure):
    """avl_codes of codes.h."""

    _fields_ = [
        (f"{kind}_{place}{what}", ctypes.c_void_p)
        for what in ("", "_scale")
        for place in ("new", "active", "parked")
        for kind in "kv"
    ] + [("bits", ctypes.c_int64)]


class CodeKernels(ctypes.Structure):
    """avl_code_kernels of codes.h."""

    _fields_ = [
        ("rotate", ctypes.CFUNCTYPE(None, ctypes.c_void_p, *[ctypes.c_int64] * 2, ctypes.c_void_p)),
        (
            "round",
            ctypes.CFUNCTYPE(None, ctypes.c_void_p, *[ctypes.c_int64] * 2, *[ctypes.c_void_p] * 2),
        ),
        ("halve", ctypes.CFUNCTYPE(None, ctypes.c_void_p, *[ctypes.c_int64] * 2, ctypes.c_void_p)),
    ]


def made_at(level: str, source: str, kind: type[Any], folder: Path) -> Any:
    options = {**build.LEVELS, **build.CODES_LEVELS}.get(level, ())
    require(options)
    library = compiled(source, folder, f"-DAVL_LEVEL={level}", *options, "-lm")
    return kind.in_dll(library, level)


@pytest.mark.parametrize("level", ["avl_codes_base", *build.CODES_LEVELS])
def test_a_level_rotates_rounds_and_halves(level: str, tmp_path: Path, kernels: Path) -> None:
    code = made_at(level, build.CODES, CodeKernels, tmp_path)
    numbers = np.random.default_rng(7)
    for width in (1, 5, 16, 64, 80, 96, 128, 256):
        rows = numbers.standard_normal((9, width), np.float32)
        rows[3] = 0
        turned = np.empty_like(rows)
        codes, scales = np.empty((9, width), np.int8), np.empty((9, 1), np.float32)
        at = {id(a): a.ctypes.data for a in (rows, turned, codes, scales)}
        code.rotate(at[id(rows)], 9, width, at[id(turned)])
        code.round(at[id(rows)], 9, width, at[id(codes)], at[id(scales)])
        np.testing.assert_allclose(turned, rows @ rotation(width), rtol=1e-5, atol=1e-5)
        wanted = reference.coded(rows)
        np.testing.assert_array_equal(codes, wanted[0])
        np.testing.assert_array_equal(scales, wanted[1])
    assert_halves(code)


def assert_halves(code: Any) -> None:
    """To the nearest, of equals the even one, what is too large as the largest; small ones too."""
    numbers = np.random.default_rng(9)
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)
    finite = np.sort(every[np.isfinite(every)])
    middles = (finite[:-1] + finite[1:]) / 2  # exact in float32
    drawn = numbers.standard_normal(9999, np.float32)
    drawn = np.ldexp(drawn, numbers.integers(-40, 40, drawn.size))
    for rows in (every, middles, drawn):
        made = np.empty(rows.shape, np.float16)
        code.halve(rows.ctypes.data, 1, rows.size, made.ctypes.data)
        np.testing.assert_array_equal(made, reference.halved(rows))


@pytest.mark.parametrize("level", ["avl_step_base", *build.LEVELS])
def test_a_level_reads_codes(level: str, tmp_path: Path, kernels: Path) -> None:
    step = made_at(level, build.KERNELS, Kernels, tmp_path)
    numbers = np.random.default_rng(8)
    for case in range(60):
        bits = 16 if case % 4 < 2 else 8
        group, kv, batch = (int(numbers.integers(1, 8)), *map(int, numbers.integers(1, 3, 2)))
        width = int(numbers.choice((5, 16, 64, 65, 80, 128)))
        rows = {place: int(numbers.integers(1, 1300 if case % 2 else 40)) for place in "ap"}
        shapes = {"new": 1, "active": rows["a"], "parked": rows["p"]}
        arrays: Arrays = {
            "q": numbers.standard_normal((batch, group * kv, 1, width), np.float32),
            "row_weights": numbers.random((batch, 1, 1), np.float32),
            "active_len": numbers.integers(0, rows["a"] + 1, batch),
            "parked_len": numbers.integers(0, rows["p"] + 1, batch),
        }
        held, wanted = Codes(bits=bits), dict(arrays)
        kept = []  # memory that the structure points into
        for kind in "kv":
            for place, count in shapes.items():
                shape = (batch, kv, count, width)
                rows = numbers.standard_normal(shape)
                made = reference.coded(rows) if bits == 8 else (reference.halved(rows),)
                kept += made
                setattr(held, f"{kind}_{place}", made[0].ctypes.data)
                if bits == 8:
                    setattr(held, f"{kind}_{place}_scale", made[1].ctypes.data)
                read = reference.decoded(*made) if bits == 8 else made[0].astype(np.float64)
                wanted[f"{kind}_{place}"] = read
                arrays[f"{kind}_{place}"] = np.empty(shape, np.float32)  # its shape alone is read
        found = ran(step, arrays, ctypes.addressof(held))
        expected = reference.split_cache_attention(
            *(wanted[name] for name in _ORDER), scale=scale_of(width)
        )
        for output, right in zip(found, expected, strict=True):
            np.testing.assert_allclose(output, right, rtol=1e-5, atol=1e-5)


_ORDER = (
    *("q", "k_new", "v_new", "k_active", "v_active", "active_len"),
    *("k_parked", "v_parked", "parked_len", "row_weights"),
)

"""The compiled CPU kernels against the reference, and against plain NumPy."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avl_plugins import cpu
from avl_plugins.cpu import build
from avl_plugins.cpu.host import host
from ops.agreement import assert_agrees, expected
from ops.op_models import Arrays, attention_inputs, run, session
from ops.test_attention_function import GROUPS, attention_model, key_of

HEAD_DIMS = (8, 32, 64, 80, 128)
LONG = 2600  # more rows than two of the kernel's chunks


@functools.cache
def step_session(kernels: Path, *key: Any) -> ort.InferenceSession:
    return session(attention_model(*key), kernels, intra_op_num_threads=2)


def of_one_row(arrays: Arrays, weightings: int | None = None) -> Arrays:
    """The same with the first new row alone, and as many row weightings as wanted."""
    for name in ("q", "k_new", "v_new", "row_weights"):
        arrays[name] = np.ascontiguousarray(arrays[name][:, :, :1])
    if weightings is not None:
        arrays["row_weights"] = np.resize(
            arrays["row_weights"], (len(arrays["q"]), weightings, 1)
        ).astype(np.float32)
    return arrays


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("group", GROUPS)
def test_a_step_agrees_with_the_reference(group: int, head_dim: int, kernels: Path) -> None:
    @settings(max_examples=20, deadline=None, derandomize=True, database=None)
    @given(arrays=st.sampled_from((12, LONG)).flatmap(_inputs(group, head_dim)))
    def check(arrays: Arrays) -> None:
        arrays = of_one_row(arrays)
        outputs = run(step_session(kernels, *key_of(arrays)), arrays)
        assert_agrees(arrays, outputs)

    check()


def _inputs(group: int, head_dim: int) -> Callable[[int], st.SearchStrategy[Arrays]]:
    return lambda largest: attention_inputs(group, head_dim, largest=largest)


@settings(max_examples=20, deadline=None, derandomize=True, database=None)
@given(arrays=attention_inputs(2, 32))
def test_a_step_without_masses(kernels: Path, arrays: Arrays) -> None:
    wanted = expected(of_one_row(arrays, 1))[0]
    out, *masses = run(step_session(kernels, *key_of(arrays)), of_one_row(arrays, 0))
    np.testing.assert_allclose(out, wanted, rtol=1e-5, atol=1e-5)
    assert [mass.shape[2] for mass in masses] == [0, 0, 0]


@pytest.mark.parametrize("factor", [1e-3, 30.0, 1e3])
def test_scores_of_any_size(kernels: Path, factor: float) -> None:
    """Probabilities from almost equal to one row that has all, over several chunks."""
    numbers = np.random.default_rng(3)

    def normal(*shape: int) -> np.ndarray[Any, Any]:
        return numbers.standard_normal(shape, np.float32)

    arrays: Arrays = {
        "q": factor * normal(1, 4, 1, 64),
        "k_new": normal(1, 2, 1, 64),
        "v_new": normal(1, 2, 1, 64),
        "row_weights": np.ones((1, 2, 1), np.float32),
        "active_len": np.array([LONG]),
        "parked_len": np.array([LONG - 1]),
    }
    for name in ("k_active", "v_active", "k_parked", "v_parked"):
        arrays[name] = normal(1, 2, LONG, 64)
    outputs = run(step_session(kernels, *key_of(arrays)), arrays)
    # Scores of hundreds are rounded to float32 before they become exponents.
    tolerance = max(1e-5, factor * 64**0.5 * 2.0**-23 * 8)
    for found, wanted in zip(outputs, expected(arrays), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=tolerance, atol=tolerance)
    totals = np.concatenate(outputs[1:], axis=3).sum(axis=3)
    np.testing.assert_allclose(totals, 1, rtol=1e-5)


@pytest.mark.parametrize(("name", "length"), [("active_len", 6), ("parked_len", -1)])
def test_a_length_past_the_rows_is_refused(kernels: Path, name: str, length: int) -> None:
    numbers = np.random.default_rng(0)
    arrays: Arrays = {
        "row_weights": np.ones((1, 2, 1), np.float32),
        "active_len": np.array([5]),
        "parked_len": np.array([0]),
    }
    shapes = {"q": 1, "k_new": 1, "v_new": 1, "k_active": 5, "v_active": 5, "k_parked": 3}
    for key, rows in {**shapes, "v_parked": 3}.items():
        arrays[key] = numbers.standard_normal((1, 2, rows, 32), np.float32)
    arrays[name][:] = length
    with pytest.raises(Exception, match="lengths within capacities"):
        run(step_session(kernels, 2, 2, 32), arrays)


def test_the_kernels_can_be_switched_off(kernels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cpu.SWITCH, "off")
    assert cpu.library() is None


def test_without_a_compiler_the_build_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(build.CompileError, match="expected a C compiler"):
        build.build()


def test_a_build_that_fails_leaves_nothing(tmp_path: Path, kernels: Path) -> None:
    for name in ("build.py", *build.SOURCES):
        (tmp_path / name).write_bytes((build.FOLDER / name).read_bytes())
    (tmp_path / "attention.h").write_text("#error broken\n")
    done = subprocess.run(
        [sys.executable, tmp_path / "build.py"],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"TMPDIR": str(tmp_path)},
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: expected ")
    assert {path.suffix for path in tmp_path.iterdir()} == {".py", ".c", ".h"}


def test_kernels_of_another_version_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kernels: Path
) -> None:
    (tmp_path / "other.c").write_text("int nothing;\n")
    other = tmp_path / "other.so"
    subprocess.run([build.compiler(), "-shared", tmp_path / "other.c", "-o", other], check=True)
    monkeypatch.setattr(cpu, "LIBRARY", other)
    with pytest.raises(OSError, match=r"other\.so: expected this version's CPU kernels"):
        host()


@pytest.mark.parametrize("switch", [cpu.SWITCH, cpu.AMX_SWITCH])
@pytest.mark.parametrize("value", ["OFF", "0", "off ", "no"])
def test_a_switch_that_says_neither_on_nor_off(
    monkeypatch: pytest.MonkeyPatch, switch: str, value: str
) -> None:
    monkeypatch.setenv(switch, value)
    with pytest.raises(cpu.SwitchError, match=f"{switch}: expected on or off, found '{value}'"):
        cpu.library()


@pytest.mark.parametrize("value", ["avx", "AVX2", "sse"])
def test_a_level_that_is_none(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv(cpu.LEVEL_SWITCH, value)
    with pytest.raises(cpu.SwitchError, match=f"AVL_CPU_LEVEL: expected one of base, .*'{value}'"):
        cpu.library()


def test_a_level_of_another_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cpu.LEVEL_SWITCH, "avx2")
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    with pytest.raises(cpu.SwitchError, match="expected one of base, dotprod, i8mm, found 'avx2'"):
        cpu.library()


def test_a_level_leaves_out_what_comes_after_it(
    monkeypatch: pytest.MonkeyPatch, kernels: Path
) -> None:
    told = []
    for level in cpu.LEVELS["x86_64" if platform.machine() in build.X86 else "aarch64"]:
        monkeypatch.setenv(cpu.LEVEL_SWITCH, level)
        functions = host()
        assert functions is not None
        told.append(functions.instructions())
    assert told[0] in ("the compiler's own", "NEON")
    monkeypatch.delenv(cpu.LEVEL_SWITCH)
    functions = host()
    assert functions is not None
    assert told[-1] == functions.instructions()  # the last one leaves out nothing
    if platform.machine() in build.X86:
        assert not any("512" in one for one in told[:3])
        assert not any("AMX" in one for one in told[:5])


def test_switches_that_say_on(monkeypatch: pytest.MonkeyPatch) -> None:
    without = cpu.library()
    monkeypatch.setenv(cpu.LEVEL_SWITCH, "")
    for value in ("", "on"):
        for switch in (cpu.SWITCH, cpu.AMX_SWITCH):
            monkeypatch.setenv(switch, value)
        assert cpu.library() == without

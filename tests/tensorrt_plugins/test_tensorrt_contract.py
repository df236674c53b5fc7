"""The plugins against TensorRT's own framework, as far as it goes without a builder or a GPU."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from avl_plugins.cuda.packaged import index, kernel
from avl_plugins.kernels.aot import parameters
from avl_plugins.kernels.catalog import HEAD_DIMS
from avl_plugins.schema import PLUGIN_ATTRIBUTES, RESTORED_CACHE_ATTENTION, SPLIT_CACHE_ATTENTION
from kernel_cases import Attention
from tensorrt_plugins import contract

Remote = Callable[..., Any]
DECODE, SLICED, PREFILL = 1, 2, 3
OPS = {"": SPLIT_CACHE_ATTENTION, "restored": RESTORED_CACHE_ATTENTION}


def test_nodes_name_what_is_registered(remote: Remote) -> None:
    offer = remote(contract.attention_offer, "HALF", 1, 1, 4)
    assert offer["declared"] == [one.name for one in SPLIT_CACHE_ATTENTION.attributes]
    assert PLUGIN_ATTRIBUTES["plugin_namespace"] == SPLIT_CACHE_ATTENTION.domain
    assert "." not in SPLIT_CACHE_ATTENTION.domain


@pytest.mark.parametrize(
    ("dtype", "form"), [("HALF", ""), ("BF16", ""), ("HALF", "restored"), ("BF16", "restored")]
)
def test_types_shapes_aliases_and_formats(dtype: str, form: str, remote: Remote) -> None:
    offer = remote(contract.attention_offer, dtype, 1, 64, 4, form)
    assert offer["declared"] == [one.name for one in OPS[form].attributes]
    assert offer["types"] == [dtype, "FLOAT", "FLOAT", "FLOAT"]
    # B 1, H 8, Hkv 2, S 5, A 7, P 9, R 2, D 128
    assert offer["shapes"] == [(1, 8, 5, 128), (1, 2, 2, 7), (1, 2, 2, 9), (1, 2, 2, 5)]
    assert offer["aliases"] == [-1] * 4
    kinds = {"T": dtype, "int64": "INT64", "float32": "FLOAT"}
    op = OPS[form]
    assert offer["formats"] == [[kinds[value.dtype] for value in op.inputs + op.outputs]]


@pytest.mark.parametrize(
    ("least", "most", "group", "tactics"),
    [
        (1, 1, 1, [DECODE, SLICED]),
        (1, 8, 2, [DECODE, SLICED]),
        (1, 8, 7, [DECODE, SLICED, PREFILL]),
        (1, 4096, 1, [DECODE, SLICED, PREFILL]),
        (64, 4096, 1, [PREFILL]),
        (1, 1, 32, [PREFILL]),
    ],
)
def test_a_profile_gets_the_tactics_that_suit_it(
    least: int, most: int, group: int, tactics: list[int], remote: Remote
) -> None:
    assert remote(contract.attention_offer, "HALF", least, most, group)["tactics"] == tactics


@pytest.mark.parametrize(
    ("tactic", "sizes", "grid", "head_dim"),
    [
        # One owner of mass, then row tiles of 16 or 64 of S * G; slices of 32 columns.
        (DECODE, {"S": 1, "B": 1}, (1 + 1, 2, 1), 128),
        (DECODE, {"S": 9, "B": 16}, (1 + 3, 2, 16), 128),
        (SLICED, {"S": 1, "B": 2}, (1 + 4, 2, 2), 128),
        (SLICED, {"S": 5, "B": 2}, (1 + 8, 2, 2), 128),
        (SLICED, {"S": 5, "B": 2}, (1 + 6, 2, 2), 96),
        (SLICED, {"S": 5, "B": 2}, (1 + 4, 2, 2), 64),
        (PREFILL, {"S": 577, "B": 1}, (1 + 37, 2, 1), 128),
        (PREFILL, {"S": 4096, "B": 1}, (1 + 256, 2, 1), 128),
    ],
)
def test_launches_follow_the_sizes(
    tactic: int, sizes: dict[str, int], grid: tuple[int, ...], head_dim: int, remote: Remote
) -> None:
    rows = {"A": 3040, "P": 1440}
    launch = remote(contract.attention_launch, tactic, {**sizes, **rows}, head_dim)
    packaged = kernel(launch["variant"], 80)
    assert launch["grid"] == grid
    assert launch["block"] == (packaged.threads, 1, 1)
    assert launch["shared"] == packaged.shared <= 48 << 10
    assert launch["scalars"][:5] == (sizes["S"], 3040, 1440, 2, 4)  # S, A, P, R, G
    assert launch["scalars"][6] == 1  # owners


@pytest.mark.parametrize("tactic", [DECODE, SLICED, PREFILL])
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("form", OPS)
def test_the_ptx_takes_what_tensorrt_passes(
    form: str, tactic: int, head_dim: int, remote: Remote
) -> None:
    """Inputs, scalars, outputs: addresses are 64 bits wide, scalars 32."""
    launch = remote(contract.attention_launch, tactic, {}, head_dim, form)
    widths = [one.split()[1] for one in parameters(launch["ptx"])]
    op = OPS[form]
    scalars = len(launch["scalars"])
    assert widths == [".u64"] * len(op.inputs) + [".u32"] * scalars + [".u64"] * len(op.outputs)


@pytest.mark.parametrize(("form", "kind"), zip(OPS, ("fused", "restored"), strict=True))
def test_arguments_are_in_the_order_of_the_schema(form: str, kind: str) -> None:
    op, entry = OPS[form], index()["kernels"][f"{kind}_prefill-fp16-d64"]
    arguments = [argument for argument, _ in entry["arguments"]]
    scalars = [argument for argument, kind in entry["arguments"] if kind == "i32"]
    inputs, outputs = [v.name for v in op.inputs], [v.name for v in op.outputs]
    assert arguments == [*inputs, *scalars, *outputs]


CASES = [
    (DECODE, Attention("", "float16", 128, 2, 4, 1, 70, 40, (64, 9), (0, 40))),
    (SLICED, Attention("", "bfloat16", 96, 1, 2, 9, 64, 9, (64,), (8,), 3)),
    (PREFILL, Attention("", "float16", 64, 1, 2, 40, 33, 5, (33,), (4,))),
    (DECODE, Attention("", "bfloat16", 80, 1, 1, 20, 33, 5, (0,), (4,), 1)),
    (DECODE, Attention("restored", "float16", 64, 2, 2, 1, 40, 9, (40,), (8,), unlike=True)),
    (PREFILL, Attention("restored", "bfloat16", 64, 1, 1, 20, 33, 5, (33,), (4,), axes=3)),
]


@pytest.mark.parametrize(("tactic", "case"), CASES)
def test_what_would_be_launched_is_right(tactic: int, case: Attention, remote: Remote) -> None:
    out, mass = remote(contract.attention_errors_of, case, tactic)
    assert out <= 2
    assert mass <= 1e-6


@pytest.mark.parametrize(
    ("capability", "target"), [(80, "sm_80"), (89, "sm_80"), (90, "sm_90a"), (121, "sm_80")]
)
def test_engines_get_ptx_for_their_gpu(capability: int, target: str, remote: Remote) -> None:
    assert remote(contract.prefill_target, capability) == target


def test_refusals_are_plain(remote: Remote) -> None:
    assert "expected float16 or bfloat16, found" in remote(contract.refusal, "FLOAT", 128)
    assert "expected a head_dim of (64, 80, 96, 128), found 72" in remote(
        contract.refusal, "HALF", 72
    )
    assert "expected positions on at most 3 axes, found 4; build without plugins" in remote(
        contract.refusal, "HALF", 64, "restored", 4
    )


def refused(tensorrt: str) -> str:
    """What `register(75)` says where the module tensorrt is that expression."""
    code = f"""
import sys, types
sys.modules["tensorrt"] = {tensorrt}
from avl_plugins.errors import AvlError
from avl_plugins.tensorrt import register
try:
    register(75)
except AvlError as error:
    print(error)
"""
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_without_tensorrt_the_message_says_so() -> None:
    assert "expected TensorRT for its plugins, found none" in refused("None")


def test_an_old_tensorrt_is_refused() -> None:
    found = refused('types.SimpleNamespace(__version__="10.3.0")')
    assert "expected TensorRT 10.9 or later, found 10.3.0" in found


def test_gpus_that_are_too_old_are_refused_at_once() -> None:
    found = refused(
        'types.SimpleNamespace(__version__="10.9.0.34", QuickPluginCreationRequest=None)'
    )
    assert "expected a GPU of compute capability 8.0 or later, found 7.5; build without" in found

"""torchao's weights as bytes: taken over as codes of 4 or 8 bits, or computed from FP8."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from avl_export.options import Options
from avl_export.plan.plan import make_plan
from avl_runtime.package.package import load_package
from quantize.conftest import Exports
from quantize.dense import Change, assert_computes, assert_holds, write_quantized

Refused = Callable[..., str]


def config(kind: str, weight_dtype: str | None = None) -> dict[str, Any]:
    """A configuration as torchao writes it."""
    values: dict[str, Any] = {"granularity": {"_data": {"dim": -1}, "_type": "PerRow"}}
    if weight_dtype is not None:
        values["weight_dtype"] = {"_data": weight_dtype, "_type": "torch.dtype"}
    return {"_type": kind, "_data": values, "_version": 2}


def told(quant_type: dict[str, Any]) -> dict[str, Any]:
    return {"quant_method": "torchao", "quant_type": {"default": quant_type}}


def write_torchao(
    source: Path,
    folder: Path,
    quant_type: dict[str, Any],
    bits: int = 8,
    group: int = 32,
    change: Change | None = None,
) -> dict[str, torch.Tensor]:
    """Store the decoder's linears as torchao does.

    Args:
        bits: of a code; 0: FP8.
        group: inputs that share a scale, -1: all of an output's, 0: all of the tensor's.

    Returns:
        what the codes stand for, by the checkpoint's keys.
    """
    rng, middle = np.random.default_rng(0), 1 << max(bits - 1, 3)

    def pack(key: str, weight: torch.Tensor, to: dict[str, torch.Tensor]) -> torch.Tensor | None:
        if "language_model" not in key:
            return None
        (outputs, inputs), stem = weight.shape, key.removesuffix("weight")
        groups = inputs // group if group > 0 else 1
        table = (outputs, groups) if group else (1, 1)
        scales = torch.from_numpy((rng.random(table) * 0.16 + 0.08) / middle).float()
        to[f"{stem}_weight_scale"] = scales
        wide = scales.expand(outputs, groups).repeat_interleave(inputs // groups, 1)
        if bits == 0:
            to[f"{stem}_weight_qdata"] = (weight * 8).to(torch.float8_e4m3fn)
            return to[f"{stem}_weight_qdata"].float() * wide
        codes = torch.from_numpy(rng.integers(-middle, middle, weight.shape).astype(np.int8))
        zeros = torch.from_numpy(rng.integers(-middle, middle, table).astype(np.int8))
        to[f"{stem}_weight_qdata"], to[f"{stem}_weight_zero_point"] = codes, zeros
        offsets = zeros.expand(outputs, groups).repeat_interleave(inputs // groups, 1)
        return (codes.float() - offsets.float()) * wide

    return write_quantized(source, folder, told(quant_type), pack, change)


INT4 = config("IntxWeightOnlyConfig", "int4")
VARIANTS: dict[str, dict[str, Any]] = {
    "int8 by output": {"quant_type": config("Int8WeightOnlyConfig"), "group": -1},
    "int8 by group": {"quant_type": config("Int8WeightOnlyConfig")},
    "int8 by tensor": {"quant_type": config("Int8WeightOnlyConfig"), "group": 0},
    "int4 in bytes": {"quant_type": INT4, "bits": 4},
    "int4 and int8": {
        "quant_type": {
            "_type": "FqnToConfig",
            "_data": {"fqn_to_config": {"_default": INT4, "x": config("Int8WeightOnlyConfig")}},
        },
        "bits": 4,
    },
}


@pytest.mark.parametrize("name", VARIANTS)
def test_weights_are_those_that_the_codes_mean(
    name: str, small: Path, tmp_path: Path, exports: Exports, traced: None
) -> None:
    meant = write_torchao(small, tmp_path / "packed", **VARIANTS[name])
    exported = exports(tmp_path / "packed", check=False)
    assert_holds(exported, meant)
    assert len(exported.plan.store.linears) == len(meant) == 3 * 7
    entry = load_package(exported.folder).manifest.quantization
    assert entry is not None
    assert (entry.method, entry.bits) == ("torchao", 4 if name == "int4 in bytes" else 8)


def test_logits_are_those_of_the_weights(small: Path, tmp_path: Path, exports: Exports) -> None:
    packed = tmp_path / "packed"
    meant = write_torchao(small, packed, INT4, bits=4)
    assert_computes(exports(packed, check=True), small, packed, meant)


def test_fp8(small: Path, tmp_path: Path) -> None:
    packed = tmp_path / "packed"
    kind = "Float8DynamicActivationFloat8WeightConfig"
    meant = write_torchao(small, packed, config(kind), bits=0, group=-1)
    plan = make_plan(Options(str(packed), tmp_path / "out"))
    assert plan.store is not None
    assert any("activations" in note for note in plan.notes)
    assert list(plan.store.kept.values()) == ["codes are FP8"] * len(meant)
    for key, weight in meant.items():
        (name,) = (n for n in plan.store.kept if n.endswith(key.partition("layers.")[2]))
        found = plan.store.plain[name].source.read_floats(0, weight.shape[0])
        np.testing.assert_array_equal(found, weight.numpy())


def one(tensors: dict[str, torch.Tensor], part: str) -> str:
    return next(key for key in tensors if key.endswith(f"q_proj._weight_{part}"))


def wide_code(tensors: dict[str, torch.Tensor]) -> None:
    tensors[one(tensors, "qdata")][3, 40] = 8


def wide_zero(tensors: dict[str, torch.Tensor]) -> None:
    tensors[one(tensors, "zero_point")][3, 1] = -9


def no_zeros(tensors: dict[str, torch.Tensor]) -> None:
    del tensors[one(tensors, "zero_point")]


def factors(tensors: dict[str, torch.Tensor]) -> None:
    tensors[one(tensors, "qdata").replace("qdata", "act_pre_scale")] = torch.ones(64)


def two_a_byte(tensors: dict[str, torch.Tensor]) -> None:
    key = one(tensors, "qdata")
    tensors[key] = tensors[key][:, ::2].contiguous()


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (wide_code, "expected codes from -8 to 7 as config.json says, found -8 to 8"),
        (wide_zero, "expected codes from -8 to 7 as config.json says, found -9 to 7"),
        (no_zeros, "found no _weight_zero_point"),
        (factors, "found factors for rows"),
        (two_a_byte, "expected I8 [64, 64], found I8 [64, 32]"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_tensors_that_are_refused(
    change: Change, part: str, small: Path, tmp_path: Path, refused: Refused, traced: None
) -> None:
    write_torchao(small, tmp_path / "packed", INT4, bits=4, change=change)
    assert part in refused(tmp_path / "packed", "--no-check")


@pytest.mark.parametrize(
    ("quant_type", "part"),
    [
        (config("Int4WeightOnlyConfig"), "torchao (Int4WeightOnlyConfig)"),
        (config("IntxWeightOnlyConfig", "uint4"), "torchao (IntxWeightOnlyConfig)"),
        ({}, "quantized with torchao"),
    ],
    ids=str,
)
def test_configs_that_are_refused(
    quant_type: dict[str, Any], part: str, small: Path, tmp_path: Path, refused: Refused
) -> None:
    write_torchao(small, tmp_path / "packed", quant_type)
    assert part in refused(tmp_path / "packed", "--dry-run")

"""GPTQ and AWQ checkpoints are taken over without a change to what they compute."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from avl_export.cli import main
from avl_export.options import Options
from avl_export.plan.plan import make_plan
from avl_export.quantize.reading import read_weight
from avl_plugins.bodies.linear_ops import GATED_LINEARS, QUANTIZED_LINEARS
from avl_runtime import LVLM
from avl_runtime.package.package import load_package
from quantize.conftest import Exported, Exports
from quantize.dense import assert_computes, assert_holds
from quantize.packers import quantize_checkpoint

Refused = Callable[..., str]

VARIANTS: dict[str, dict[str, Any]] = {
    "gptq": {"method": "gptq", "group": 32},
    "gptq_v2_asymmetric_one_group": {
        "method": "gptq",
        "group": -1,
        "asymmetric": True,
        "zero_offset": 0,
        "config": {"checkpoint_format": "gptq_v2"},
    },
    "gptq_8_bits": {"method": "gptq", "group": 32, "bits": 8},
    "gptq_8_bits_asymmetric_one_group": {
        "method": "gptq",
        "group": -1,
        "bits": 8,
        "asymmetric": True,
    },
    "awq_asymmetric": {"method": "awq", "group": 32, "asymmetric": True},
}


def autoround(packing_format: str | None, **more: Any) -> dict[str, Any]:
    told = {"quant_method": "auto-round", "packing_format": packing_format, "data_type": "int"}
    return {"config": {**told, **more}}


WIDE = {"wide": "down_proj", "asymmetric": True}
TAKEN_OVER: dict[str, dict[str, Any]] = {
    "autoround": {"method": "gptq", "zero_offset": 0, "asymmetric": True} | autoround("auto_round"),
    "autoround as gptq": {"method": "gptq"} | autoround("auto_round:auto_gptq"),
    "autoround as awq": {"method": "awq"} | autoround("auto_round:auto_awq"),
    "autoround of old": {"method": "gptq"} | autoround(None, backend="auto_round:gptq"),
    "autoround of 8 bits and 4": WIDE
    | {"method": "gptq"}
    | autoround("auto_round:auto_gptq", extra_config={"down_proj": {"bits": 8}}),
    "gptq of 8 bits and 4": WIDE
    | {"method": "gptq", "config": {"dynamic": {"+:.*down_proj": {"bits": 8, "group_size": 16}}}},
}


@pytest.mark.parametrize("name", TAKEN_OVER)
def test_weights_are_those_that_the_codes_mean(
    name: str, small: Path, tmp_path: Path, exports: Exports, traced: None
) -> None:
    meant = quantize_checkpoint(small, tmp_path / "packed", group=32, **TAKEN_OVER[name])
    exported = exports(tmp_path / "packed", check=False)
    assert_holds(exported, meant)
    assert len(exported.plan.store.linears) == 3 * 7


@pytest.mark.parametrize("name", VARIANTS)
def test_logits_are_those_of_the_dequantized_weights(
    name: str, small: Path, tmp_path: Path, exports: Exports
) -> None:
    meant = quantize_checkpoint(small, tmp_path / "packed", **VARIANTS[name])
    assert len(meant) == 3 * 7
    exported = exports(tmp_path / "packed", check=name == "gptq")
    parameters = assert_computes(exported, small, tmp_path / "packed", meant)
    entry = load_package(exported.folder).manifest.quantization
    assert entry is not None
    assert entry.method == VARIANTS[name]["method"]
    assert entry.bits == VARIANTS[name].get("bits", 4)
    assert entry.zero_points == VARIANTS[name].get("asymmetric", False)
    for parameter, place in exported.plan.store.linears.items():
        np.testing.assert_array_equal(
            read_weight(exported.folder, place), parameters[parameter].numpy()
        )
        assert (place.zeros is not None) == entry.zero_points
    graph = onnx.load(exported.folder / "decoder.0.onnx", load_external_data=False).graph
    types = {node.op_type for node in graph.node if "Quantized" in node.op_type}
    one, two, three = (QUANTIZED_LINEARS[n, entry.zero_points].name for n in (1, 2, 3))
    assert types == {one, GATED_LINEARS[two, "SiluGate"].name, three}
    LVLM.load(exported.folder, threads=1).generate("a b", max_new_tokens=2)


def plan_of(tensors: dict[str, torch.Tensor], suffix: str) -> str:
    return next(key for key in tensors if key.endswith(suffix))


def no_such_group(tensors: dict[str, torch.Tensor]) -> None:
    tensors[plan_of(tensors, "g_idx")][5] = 3


def no_zeros(tensors: dict[str, torch.Tensor]) -> None:
    del tensors[plan_of(tensors, "qzeros")]


def no_order(tensors: dict[str, torch.Tensor]) -> None:
    del tensors[plan_of(tensors, "g_idx")]


def zero_16(tensors: dict[str, torch.Tensor]) -> None:
    tensors[plan_of(tensors, "qzeros")][0, 0] = -1


def short_scales(tensors: dict[str, torch.Tensor]) -> None:
    key = plan_of(tensors, "scales")
    tensors[key] = tensors[key][:-1].contiguous()


def a_bias(tensors: dict[str, torch.Tensor]) -> None:
    key = plan_of(tensors, "q_proj.qweight")
    tensors[key.replace("qweight", "bias")] = torch.ones(64)


def infinite_scale(tensors: dict[str, torch.Tensor]) -> None:
    tensors[plan_of(tensors, "scales")][0, 0] = torch.inf


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (no_such_group, "groups from 0 to"),
        (no_zeros, "no qzeros"),
        (zero_16, "4 bits cannot hold"),
        (short_scales, "or BF16 [3, 64], found F16 [2, 64]"),
        (a_bias, "maps to none"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_tensors_that_are_refused(
    change: Callable[[dict[str, torch.Tensor]], None],
    part: str,
    small: Path,
    tmp_path: Path,
    refused: Refused,
) -> None:
    quantize_checkpoint(small, tmp_path / "packed", "gptq", group=32, change=change)
    assert part in refused(tmp_path / "packed", "--dry-run")


def test_an_order_that_is_missing(small: Path, tmp_path: Path, refused: Refused) -> None:
    """Read as the order of neighbours, it would be another weight."""
    for act, group in ((True, 32), (True, -1), (False, 32)):
        packed = tmp_path / f"{act}{group}"
        config = {"desc_act": act}
        quantize_checkpoint(small, packed, "gptq", group, config=config, change=no_order)
        if act and group > 0:
            assert "found no g_idx" in refused(packed, "--dry-run")
        else:
            make_plan(Options(str(packed), tmp_path / "out"))


def test_scales_that_are_not_finite(
    small: Path, tmp_path: Path, refused: Refused, traced: None
) -> None:
    folder = tmp_path / "packed"
    quantize_checkpoint(small, folder, "gptq", group=32, change=infinite_scale)
    assert "finite" in refused(folder, "--no-check")


@pytest.mark.parametrize("bits", [4, 8])
def test_inputs_in_another_order(
    bits: int, small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """desc_act: no block of neighbours has one scale, so the weights are floating-point ones."""
    packed, out = tmp_path / "packed", tmp_path / "model.avl"
    meant = quantize_checkpoint(
        small, packed, "gptq", group=32, asymmetric=True, bits=bits, desc_act=True
    )
    assert main(["--model", str(packed), "--out", str(out), "--check"]) == 0
    assert "21 weights whose inputs are in another order" in capsys.readouterr().err
    exported = Exported(out, make_plan(Options(str(packed), tmp_path / "none")), None)
    assert_computes(exported, small, packed, meant)
    assert load_package(out).manifest.quantization is None


def test_one_layer_in_another_order(small: Path, tmp_path: Path, exports: Exports) -> None:
    packed = tmp_path / "packed"
    meant = quantize_checkpoint(small, packed, "gptq", group=32, desc_act="layers.1.")
    exported = exports(packed, check=True)
    assert_computes(exported, small, packed, meant)
    report = exported.plan.report()["quantization"]
    assert (report["tensors"], report["kept_in"]) == (2 * 7, ["F32"])


@pytest.mark.parametrize(
    ("config", "part"),
    [
        ({"bits": 3}, "to 3 bits"),
        ({"quant_method": "awq", "bits": 8}, "to 8 bits"),
        ({"quant_method": "bitsandbytes"}, "with bitsandbytes"),
        ({"checkpoint_format": "marlin"}, "'marlin'"),
        ({"quant_method": "awq", "version": "GEMV"}, "'gemv'"),
        ({"group_size": 24}, "found 24"),
        ({"group_size": 8}, "found 8"),
        (
            autoround("auto_round:fp8_static")["config"],
            "auto-round to 4 bits (auto_round:fp8_static)",
        ),
        (autoround(None)["config"], "with auto-round to 4 bits"),
        (autoround("auto_round", data_type="mx_fp")["config"], "with auto-round to 4 bits"),
        (
            autoround("auto_round", rotation_config={"kind": "x"})["config"],
            "found a rotation_config",
        ),
    ],
    ids=str,
)
def test_configs_that_are_refused(
    config: dict[str, Any], part: str, small: Path, tmp_path: Path, refused: Refused
) -> None:
    quantize_checkpoint(small, tmp_path / "packed", "gptq", group=32, config=config)
    line = refused(tmp_path / "packed", "--dry-run")
    assert part in line
    assert "--quantize int4" in line


def test_options_that_do_not_fit(small: Path, tmp_path: Path, refused: Refused) -> None:
    quantize_checkpoint(small, tmp_path / "packed", "awq", group=32)
    assert "leave --quantize out" in refused(tmp_path / "packed", "--quantize", "int8")


def test_an_empty_bias_is_left_out(small: Path, tmp_path: Path) -> None:
    def add(tensors: dict[str, torch.Tensor]) -> None:
        key = plan_of(tensors, "q_proj.qweight")
        tensors[key.replace("qweight", "bias")] = torch.zeros(64, dtype=torch.float16)

    quantize_checkpoint(small, tmp_path / "packed", "gptq", group=32, change=add)
    plan = make_plan(Options(str(tmp_path / "packed"), tmp_path / "out"))
    assert len(plan.store.linears) == 3 * 7

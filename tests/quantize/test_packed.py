"""GPTQ and AWQ checkpoints are taken over without a change to what they compute."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlavaForConditionalGeneration

from avl_export.check.compare import check_package
from avl_export.check.reference import Reference, tensors
from avl_export.check.walk import check_prompt
from avl_export.checkpoint.checkpoint import open_checkpoint
from avl_export.families import load_family
from avl_export.quantize.reading import read_weight
from avl_plugins.schema import QUANTIZED_LINEARS
from avl_runtime import LVLM
from avl_runtime.package.package import load_package
from quantize.conftest import Exports
from quantize.packers import quantize_checkpoint

Refused = Callable[..., str]

VARIANTS: dict[str, dict[str, Any]] = {
    "gptq": {"method": "gptq", "group": 32},
    "gptq_v2_asymmetric_one_group": {
        "method": "gptq",
        "group": -1,
        "asymmetric": True,
        "config": {"checkpoint_format": "gptq_v2"},
    },
    "awq_asymmetric": {"method": "awq", "group": 32, "asymmetric": True},
}


def dense_checkpoint(source: Path, folder: Path, meant: dict[str, torch.Tensor]) -> Path:
    """`source` with the weights that the codes stand for."""
    shutil.copytree(source, folder)
    tensors = load_file(source / "model.safetensors")
    save_file({**tensors, **meant}, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize("name", VARIANTS)
def test_logits_are_those_of_the_dequantized_weights(
    name: str, small: Path, tmp_path: Path, exports: Exports
) -> None:
    meant = quantize_checkpoint(small, tmp_path / "packed", **VARIANTS[name])
    assert len(meant) == 3 * 7
    exported = exports(tmp_path / "packed", check=name == "gptq")
    package = load_package(exported.folder)
    reference = LlavaForConditionalGeneration.from_pretrained(
        dense_checkpoint(small, tmp_path / "dense", meant),
        dtype=torch.float32,
        attn_implementation="eager",
    ).eval()
    family = load_family(open_checkpoint(str(tmp_path / "packed")), torch.float32)
    computed = tensors(family, reference, check_prompt(package))
    report = check_package(package, Reference(computed))
    assert report.logits <= 2e-5 * report.logit_scale
    assert report.logit_scale > 0.5
    entry = package.manifest.quantization
    assert entry.method == VARIANTS[name]["method"]
    assert entry.zero_points == VARIANTS[name].get("asymmetric", False)
    parameters = dict(reference.named_parameters())
    for parameter, place in exported.plan.store.linears.items():
        np.testing.assert_array_equal(
            read_weight(exported.folder, place), parameters[parameter].detach().numpy()
        )
        assert (place.zeros is not None) == entry.zero_points
    graph = onnx.load(exported.folder / "decoder.0.onnx", load_external_data=False).graph
    types = {node.op_type for node in graph.node if "Quantized" in node.op_type}
    assert types == {
        op.name for (_, zeros), op in QUANTIZED_LINEARS.items() if zeros == entry.zero_points
    }
    LVLM.load(exported.folder, threads=1).generate("a b", max_new_tokens=2)


def plan_of(tensors: dict[str, torch.Tensor], suffix: str) -> str:
    return next(key for key in tensors if key.endswith(suffix))


def act_order(tensors: dict[str, torch.Tensor]) -> None:
    key = plan_of(tensors, "g_idx")
    tensors[key] = tensors[key].flip(0).contiguous()


def no_zeros(tensors: dict[str, torch.Tensor]) -> None:
    del tensors[plan_of(tensors, "qzeros")]


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
        (act_order, "desc_act"),
        (no_zeros, "no qzeros"),
        (zero_16, "4 bits cannot hold"),
        (short_scales, "expected F16 [3, 64], found F16 [2, 64]"),
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


def test_scales_that_are_not_finite(
    small: Path, tmp_path: Path, refused: Refused, traced: None
) -> None:
    folder = tmp_path / "packed"
    quantize_checkpoint(small, folder, "gptq", group=32, change=infinite_scale)
    assert "finite" in refused(folder, "--no-check")


@pytest.mark.parametrize(
    ("config", "part"),
    [
        ({"bits": 8}, "to 8 bits"),
        ({"quant_method": "bitsandbytes"}, "with bitsandbytes"),
        ({"quant_method": "fp8", "bits": None}, "with fp8"),
        ({"checkpoint_format": "marlin"}, "'marlin'"),
        ({"quant_method": "awq", "version": "GEMV"}, "'gemv'"),
        ({"group_size": 24}, "found 24"),
        ({"group_size": 8}, "found 8"),
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
    from avl_export.options import Options
    from avl_export.plan.plan import make_plan

    plan = make_plan(Options(str(tmp_path / "packed"), tmp_path / "out"))
    assert len(plan.store.linears) == 3 * 7

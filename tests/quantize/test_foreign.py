"""Checkpoints quantized by other tools are refused by the name of the method, bits and format."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from avl_export.checkpoint.checkpoint import find_checkpoint
from avl_export.checkpoint.safetensors_header import CheckpointError

GROUP = {"targets": ["Linear"], "input_activations": {"num_bits": 8, "type": "float"}}
# Each as its tool writes it, without what says nothing about bits.
CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "compressed-tensors": (
        {
            "quant_method": "compressed-tensors",
            "config_groups": {"group_0": GROUP | {"weights": {"num_bits": 4, "type": "float"}}},
            "format": "nvfp4-pack-quantized",
            "ignore": ["lm_head"],
        },
        "compressed-tensors to 4 bits (nvfp4-pack-quantized)",
    ),
    "auto-round": (
        {
            "quant_method": "auto-round",
            "bits": 4,
            "group_size": 128,
            "sym": True,
            "packing_format": "auto_round:fp8_static",
        },
        "auto-round to 4 bits (auto_round:fp8_static)",
    ),
    "bitsandbytes": (
        {
            "quant_method": "bitsandbytes",
            "load_in_4bit": True,
            "load_in_8bit": False,
            "bnb_4bit_quant_type": "nf4",
        },
        "bitsandbytes to 4 bits (nf4)",
    ),
    "bitsandbytes of old": ({"load_in_8bit": True}, "bitsandbytes to 8 bits"),
    "fp8": (
        {"quant_method": "fp8", "fmt": "e5m2", "weight_block_size": [128, 128]},
        "fp8 (e5m2)",
    ),
    "torchao": (
        {
            "quant_method": "torchao",
            "quant_type": {"default": {"_type": "Int4WeightOnlyConfig", "_version": 1}},
        },
        "torchao (Int4WeightOnlyConfig)",
    ),
    "hqq": (
        {
            "quant_method": "hqq",
            "quant_config": {"weight_quant_params": {"nbits": 3, "group_size": 64}},
        },
        "hqq to 3 bits",
    ),
    "quanto": ({"quant_method": "quanto", "weights": "int8"}, "quanto (int8)"),
    "modelopt": ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "modelopt (NVFP4)"),
    "MLX": ({"group_size": 64, "bits": 4, "mode": "affine"}, "MLX to 4 bits (affine)"),
    "mxfp4": ({"quant_method": "mxfp4"}, "mxfp4"),
    "gptq to 2 bits": ({"quant_method": "gptq", "bits": 2, "group_size": 128}, "gptq to 2 bits"),
    "awq of no bits": ({"quant_method": "awq"}, "awq"),
    "nothing": ({}, "a method that quantization_config does not name"),
    "nonsense": ({"quant_method": ["x" * 500], "bits": True}, "['xxx"),
}


def write(folder: Path, **config: Any) -> str:
    (folder / "config.json").write_text(json.dumps({"model_type": "llava"} | config))
    return str(folder)


def refusal(model: str) -> str:
    with pytest.raises(CheckpointError) as caught:
        find_checkpoint(model)
    text = str(caught.value)
    assert "None" not in text
    assert "\n" not in text
    assert "--quantize int4" in text
    return text.replace(model, "")


@pytest.mark.parametrize("name", CONFIGS)
def test_the_method_is_named(name: str, tmp_path: Path) -> None:
    config, expected = CONFIGS[name]
    text = refusal(write(tmp_path, quantization_config=config))
    assert f"found them quantized with {expected}" in text
    assert len(text) < 500


@pytest.mark.parametrize(
    "place",
    [
        lambda found: {"compression_config": found},
        lambda found: {"text_config": {"quantization_config": found}},
        lambda found: {"vision_config": {"quantization_config": found}},
    ],
)
def test_methods_named_elsewhere(
    place: Callable[[dict[str, Any]], dict[str, Any]], tmp_path: Path
) -> None:
    config, expected = CONFIGS["compressed-tensors"]
    where = place(config)
    text = refusal(write(tmp_path, **where))
    assert f"found in {next(iter(where))} that they are quantized with {expected}" in text


def test_mlx_without_a_quantization_config(tmp_path: Path) -> None:
    text = refusal(write(tmp_path, quantization={"group_size": 64, "bits": 8}))
    assert "found in quantization that they are quantized with MLX to 8 bits" in text


def test_weights_that_are_not_quantized(tmp_path: Path) -> None:
    parts = {"text_config": {"model_type": "llama"}, "vision_config": None}
    assert find_checkpoint(write(tmp_path, quantization_config=None, **parts)).packing is None

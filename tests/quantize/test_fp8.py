"""FP8 checkpoints: computed with the floating-point weights that they stand for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from avl_export.checkpoint.packings.choose import packing_of
from avl_export.cli import main
from avl_export.options import Options
from avl_export.plan.plan import make_plan
from avl_export.quantize.codes import Dequantized
from avl_export.quantize.fp8 import _values
from avl_runtime import LVLM
from avl_runtime.package.package import load_package
from export.checkpoints import make_config, write_random
from quantize.compressed_packers import Scheme
from quantize.conftest import TEXT, Exported, Exports
from quantize.dense import Change, assert_computes, assert_holds, write_quantized

Refused = Callable[..., str]
Block = tuple[int, int] | None

DYNAMIC = {"quant_method": "fp8", "activation_scheme": "dynamic"}


def scheme(strategy: str, block: Block = None) -> dict[str, Any]:
    """A scheme of compressed-tensors."""
    structure = None if block is None else list(block)
    weights = {"num_bits": 8, "type": "float", "strategy": strategy, "block_structure": structure}
    return {"targets": ["Linear"], "weights": weights, "input_activations": {"num_bits": 8}}


def compressed(*schemes: dict[str, Any]) -> dict[str, Any]:
    """A quantization_config of compressed-tensors."""
    return {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "config_groups": {f"group_{n}": one for n, one in enumerate(schemes)},
    }


def write_fp8(
    source: Path,
    folder: Path,
    config: dict[str, Any],
    scale: str = "weight_scale_inv",
    block: Block = (32, 48),
    flat: bool = False,
    change: Change | None = None,
) -> dict[str, torch.Tensor]:
    """Store the decoder's linears as FP8.

    Args:
        block: outputs and inputs that share a scale; None: all inputs of an output do.
        flat: scales without dimensions of 1.

    Returns:
        what they stand for, in the dtype of `source`.
    """
    generator = torch.Generator().manual_seed(0)

    def pack(key: str, weight: torch.Tensor, to: dict[str, torch.Tensor]) -> torch.Tensor | None:
        if "language_model" not in key:
            return None
        rows, columns = block or (1, weight.shape[1])
        grid = (-(-weight.shape[0] // rows), -(-weight.shape[1] // columns))
        scales = torch.rand(grid, generator=generator) * 0.1 + 0.05
        values = (torch.randn(weight.shape, generator=generator) * 2).to(torch.float8_e4m3fn)
        to[key] = values
        stored = scales.squeeze() if flat else scales
        to[f"{key.removesuffix('.weight')}.{scale}"] = stored.contiguous()
        wide = scales.repeat_interleave(rows, 0).repeat_interleave(columns, 1)
        wide = wide[: weight.shape[0], : weight.shape[1]]
        return (values.float() * wide).to(weight.dtype)

    return write_quantized(source, folder, config, pack, change)


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same checkpoint as `small` in bf16."""
    folder = tmp_path_factory.mktemp("halves") / "model"
    return write_random(folder, make_config(text=TEXT), torch.bfloat16)


WHOLE = (1 << 10, 1 << 10)
BLOCKS = DYNAMIC | {"weight_block_size": [32, 48]}
VARIANTS: dict[str, dict[str, Any]] = {
    "blocks": {"config": BLOCKS},
    "blocks that end early": {
        "config": DYNAMIC | {"weight_block_size": [40, 44]},
        "block": (40, 44),
    },
    "one scale a tensor": {
        "config": DYNAMIC | {"weight_block_size": None},
        "block": WHOLE,
        "flat": True,
    },
    "fbgemm": {
        "config": {"quant_method": "fbgemm_fp8"},
        "block": None,
        "scale": "weight_scale",
    },
    "compressed-tensors by output": {
        "config": compressed(scheme("channel")),
        "block": None,
        "scale": "weight_scale",
    },
    "compressed-tensors by tensor": {
        "config": compressed(scheme("tensor")),
        "block": WHOLE,
        "scale": "weight_scale",
    },
    "compressed-tensors by block": {
        "config": compressed(scheme("block", (32, 48)), scheme("channel")),
        "scale": "weight_scale",
    },
}


@pytest.mark.parametrize("name", VARIANTS)
def test_weights_are_those_that_are_meant(name: str, halves: Path, tmp_path: Path) -> None:
    meant = write_fp8(halves, tmp_path / "packed", **VARIANTS[name])
    plan = make_plan(Options(str(tmp_path / "packed"), tmp_path / "out"))
    assert plan.store is not None
    found = {
        parameter.partition("layers.")[2]: plain.source
        for parameter, plain in plan.store.plain.items()
        if isinstance(plain.source, Dequantized)
    }
    assert len(found) == len(meant) == 3 * 7
    for key, weight in meant.items():
        source = found[key.partition("layers.")[2]]
        assert source.record.dtype == "BF16"
        floats = source.read_floats(0, source.record.shape[0])
        np.testing.assert_array_equal(floats, weight.float().numpy())
        np.testing.assert_array_equal(source.read_floats(3, 9), floats[3:9])


def test_logits_are_those_of_the_weights(
    halves: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    packed, out = tmp_path / "packed", tmp_path / "model.avl"
    meant = write_fp8(halves, packed, BLOCKS)
    assert main(["--model", str(packed), "--out", str(out), "--check"]) == 0
    told = capsys.readouterr().err
    assert "not quantized, stored in BF16: 21 weights whose codes are FP8" in told
    assert "activations" in told
    exported = Exported(out, make_plan(Options(str(packed), tmp_path / "none")), None)
    assert_computes(exported, halves, packed, meant)
    assert load_package(out).manifest.quantization is None
    assert LVLM.load(out, threads=1).generate("a b", max_new_tokens=2).token_ids


def test_quantized_further(halves: Path, tmp_path: Path, exports: Exports, traced: None) -> None:
    """--quantize makes codes of what the values stand for."""
    meant = write_fp8(halves, tmp_path / "packed", BLOCKS)
    folder = tmp_path / "dense"
    write_quantized(halves, folder, {}, lambda key, weight, to: None, lambda to: to.update(meant))
    (folder / "config.json").write_bytes((halves / "config.json").read_bytes())
    options = {"quantize": "int4", "block_size": 32, "check": False}
    packages = [exports(tmp_path / name, **options).folder for name in ("packed", "dense")]
    ours, theirs = ((one / "weights.int4.safetensors").read_bytes() for one in packages)
    assert ours == theirs


def test_values_beside_codes(small: Path, tmp_path: Path, exports: Exports, traced: None) -> None:
    """Attention in FP8, the rest in 4 bits, as mixed schemes of compressed-tensors have it."""
    rng, words = np.random.default_rng(0), Scheme()

    def pack(key: str, weight: torch.Tensor, to: dict[str, torch.Tensor]) -> torch.Tensor | None:
        if "language_model" not in key:
            return None
        if "self_attn" not in key:
            return words.pack(rng, key, weight, to)
        to[key] = (weight * 8).to(torch.float8_e4m3fn)
        scales = torch.rand(weight.shape[0], 1) + 0.5
        to[key.replace("weight", "weight_scale")] = scales
        return to[key].float() * scales

    config = compressed({"format": "pack-quantized"} | words.config(), scheme("channel"))
    meant = write_quantized(small, tmp_path / "packed", config, pack)
    exported = exports(tmp_path / "packed", check=False)
    assert_holds(exported, meant)
    assert len(exported.plan.store.linears) == 3 * 3
    assert "codes are FP8" in exported.plan.store.kept.values()


def test_values_beside_codes_need_no_zeros(tmp_path: Path) -> None:
    """What codes of 4 bits cannot be read without, is asked of these alone."""
    codes = {"format": "pack-quantized"} | Scheme(symmetric=False).config()
    packing = packing_of({"quantization_config": compressed(codes, scheme("channel"))}, tmp_path)
    assert packing is not None
    assert (packing.bits, packing.also) == ((4, 8), {4: ("weight_zero_point",)})


def test_every_value() -> None:
    theirs = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float().numpy()
    np.testing.assert_array_equal(_values(), theirs)


def not_a_number(tensors: dict[str, torch.Tensor]) -> None:
    key = next(key for key in tensors if key.endswith("q_proj.weight"))
    tensors[key].view(torch.uint8)[3, 5] = 0xFF


def test_values_that_are_no_numbers(
    halves: Path, tmp_path: Path, refused: Refused, traced: None
) -> None:
    write_fp8(halves, tmp_path / "packed", BLOCKS, change=not_a_number)
    assert "expected finite weights" in refused(tmp_path / "packed", "--no-check")


def other_grid(tensors: dict[str, torch.Tensor]) -> None:
    key = next(key for key in tensors if key.endswith("q_proj.weight_scale_inv"))
    tensors[key] = tensors[key][:, :1].contiguous()


def no_scales(tensors: dict[str, torch.Tensor]) -> None:
    for key in [key for key in tensors if key.endswith("weight_scale_inv")]:
        del tensors[key]


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (other_grid, "or BF16 [2, 2], found F32 [2, 1]"),
        (no_scales, "found F8_E4M3"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_tensors_that_are_refused(
    change: Change, part: str, halves: Path, tmp_path: Path, refused: Refused
) -> None:
    write_fp8(halves, tmp_path / "packed", BLOCKS, change=change)
    assert part in refused(tmp_path / "packed", "--dry-run")


@pytest.mark.parametrize(
    ("config", "part"),
    [
        (DYNAMIC | {"fmt": "e5m2"}, "fp8 (e5m2)"),
        (DYNAMIC | {"scale_fmt": "ue8m0"}, "found scale_fmt 'ue8m0'"),
        (DYNAMIC | {"weight_block_size": [128]}, "found [128]"),
        (compressed(scheme("group")), "expected scales by channel, tensor, block, found 'group'"),
        (compressed(scheme("block", (8, 8)), scheme("block", (4, 4))), "compressed-tensors"),
    ],
    ids=str,
)
def test_configs_that_are_refused(
    config: dict[str, Any], part: str, halves: Path, tmp_path: Path, refused: Refused
) -> None:
    write_fp8(halves, tmp_path / "packed", config)
    assert part in refused(tmp_path / "packed", "--dry-run")

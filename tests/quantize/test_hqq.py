"""HQQ checkpoints: computed with the floating-point weights that they stand for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from avl_export.checkpoint.safetensors_header import read_header
from avl_export.checkpoint.source import Source
from avl_export.options import Options
from avl_export.plan.plan import make_plan
from avl_export.quantize.store import PLAIN
from quantize.conftest import Exports
from quantize.dense import Change, write_quantized

Refused = Callable[..., str]


def encoded(value: Any) -> torch.Tensor:
    """As hqq makes tensors of settings: `encode_safetensor_type`."""
    if isinstance(value, bool):
        return torch.tensor(int(value), dtype=torch.uint8)
    if isinstance(value, int):
        return torch.tensor(value, dtype=torch.int32)
    if isinstance(value, str):
        return torch.tensor([ord(letter) for letter in value], dtype=torch.uint8)
    return torch.tensor(value)


def write_hqq(
    source: Path,
    folder: Path,
    bits: int = 4,
    axis: int = 1,
    group: int = 32,
    change: Change | None = None,
    **config: Any,
) -> dict[str, torch.Tensor]:
    """Store the decoder's linears as hqq 0.2.8 does: `BitPack` and `HQQLinear.state_dict`."""
    rng = np.random.default_rng(0)

    def pack(key: str, weight: torch.Tensor, to: dict[str, torch.Tensor]) -> torch.Tensor | None:
        if "language_model" not in key:
            return None
        stem, count = key.removesuffix(".weight"), weight.numel()
        shape = (group, count // group) if axis == 0 else (count // group, group)
        table = (1, shape[1]) if axis == 0 else (shape[0], 1)
        codes = rng.integers(0, 1 << bits, shape).astype(np.uint8)
        zero = rng.uniform(0, (1 << bits) - 1, table).astype(np.float16)
        scale = ((rng.random(table) * 0.16 + 0.08) / (1 << (bits - 1))).astype(np.float16)
        half = len(codes) // 2
        packed = codes if bits == 8 else (codes[:half] << 4) | codes[half:]
        to[f"{stem}.W_q"] = torch.from_numpy(packed)
        to[f"{stem}.scale"], to[f"{stem}.zero"] = map(torch.from_numpy, (scale, zero))
        settings = {
            "nbits": bits,
            "group_size": group,
            "shape": tuple(weight.shape),
            "axis": axis,
            "packing": f"{bits}bit_u8",
            "unpack_view_dtype": "torch.uint8",
            "view_as_float": False,
            "quant_scale": False,
            "quant_zero": False,
            "compute_dtype": "torch.float16",
            "offload_meta": False,
            "encoded_state_dict": True,
            "stores_quant_config": True,
            "channel_wise": True,
            "optimize": True,
            "round_zero": True,
        }
        to.update({f"{stem}.{name}": encoded(value) for name, value in settings.items()})
        meant = (codes.astype(np.float32) - zero.astype(np.float32)) * scale.astype(np.float32)
        return torch.from_numpy(meant.reshape(tuple(weight.shape)))

    params = {"nbits": bits, "group_size": group, "axis": axis, "view_as_float": False}
    told = {"quant_method": "hqq", "quant_config": {"weight_quant_params": params}}
    return write_quantized(source, folder, {**told, **config}, pack, change)


@pytest.mark.parametrize(
    ("bits", "axis", "group"), [(4, 0, 64), (4, 1, 16), (8, 0, 32), (8, 1, 64)]
)
def test_weights_are_those_that_the_codes_mean(
    bits: int, axis: int, group: int, small: Path, tmp_path: Path, exports: Exports, traced: None
) -> None:
    meant = write_hqq(small, tmp_path / "packed", bits, axis, group)
    exported = exports(tmp_path / "packed", check=False, dtype="fp32")
    store = exported.plan.store
    assert store.spec is None
    path = exported.folder / PLAIN
    own = {key.partition("layers.")[2]: weight for key, weight in meant.items()}
    for name, record in read_header(path).items():
        wanted = own.get(name.partition("language_model.layers.")[2])
        if wanted is not None:
            found = Source(name, path, record).read_floats(0, record.shape[0])
            np.testing.assert_array_equal(found, wanted.numpy(), err_msg=name)
    assert [*store.kept.values()] == ["codes of 0 lie between codes (hqq)"] * 3 * 7


def test_modules_may_have_their_own_settings(small: Path, tmp_path: Path) -> None:
    each = {"self_attn.q_proj": {"weight_quant_params": {"nbits": 4}}, "k_proj": {"nbits": 8}}
    write_hqq(small, tmp_path / "packed", 8, quant_config=each)
    plan = make_plan(Options(str(tmp_path / "packed"), tmp_path / "out"))
    assert len(plan.store.kept) == 3 * 7


def test_they_may_be_quantized_anew(
    small: Path, tmp_path: Path, exports: Exports, traced: None
) -> None:
    write_hqq(small, tmp_path / "packed", 8)
    exported = exports(tmp_path / "packed", quantize="int8", check=False)
    assert len(exported.plan.store.linears) == 3 * 7


def edit(name: str, value: Any) -> Change:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        key = next(key for key in tensors if key.endswith(f"q_proj.{name}"))
        if value is None:
            del tensors[key]
        else:
            tensors[key] = encoded(value) if not isinstance(value, torch.Tensor) else value

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (edit("nbits", 3), "found 3 bits"),
        (edit("axis", 2), "along axis 2"),
        (edit("group_size", 0), "groups of 0"),
        (edit("group_size", 48), "groups of 48"),
        (edit("packing", "3bit_32"), "packed as 3bit_32"),
        (edit("packing", torch.zeros(3)), "packed as something else"),
        (edit("view_as_float", True), ", view_as_float;"),
        (edit("quant_zero", True), ", quant_zero;"),
        (edit("shape", (64, 32)), "expected [64, 64] as config.json says, found [64, 32]"),
        (edit("scale", torch.ones(3, 1)), "found F32 [3, 1]"),
        (edit("zero", None), "found no zero"),
    ],
)
def test_tensors_that_are_refused(
    change: Change, said: str, small: Path, tmp_path: Path, refused: Refused
) -> None:
    write_hqq(small, tmp_path / "packed", change=change)
    assert said in refused(tmp_path / "packed", "--dry-run")


@pytest.mark.parametrize(
    "config",
    [
        {"weight_quant_params": {"nbits": 2}},
        {"q_proj": {"weight_quant_params": {"nbits": 4}}, "k_proj": {"nbits": 3}},
        {},
        [],
    ],
    ids=str,
)
def test_configs_that_are_refused(
    config: Any, small: Path, tmp_path: Path, refused: Refused
) -> None:
    write_hqq(small, tmp_path / "packed", quant_config=config)
    assert "quantized with hqq" in refused(tmp_path / "packed", "--dry-run")

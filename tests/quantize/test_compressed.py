"""compressed-tensors checkpoints are taken over without a change to what they compute."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from avl_export.checkpoint.packings.packing import Packing
from avl_export.checkpoint.safetensors_header import TensorRecord
from avl_export.checkpoint.source import Source
from avl_export.options import Options
from avl_export.plan.plan import make_plan
from avl_export.quantize.compressed import CompressedCodes
from avl_export.quantize.packaged import read_packaged
from avl_export.quantize.packing import turn_bytes, unpack_words
from avl_runtime import LVLM
from avl_runtime.package.package import load_package
from quantize.compressed_packers import DECODER, MIXED, Scheme, write_compressed
from quantize.conftest import Exports
from quantize.dense import Change, assert_computes, assert_holds
from quantize.packers import pack_columns

Refused = Callable[..., str]


VARIANTS: dict[str, dict[str, Scheme]] = {
    "w4a16": {DECODER: Scheme()},
    "w4a16 with zero points": {DECODER: Scheme(symmetric=False, dtype=torch.bfloat16)},
    "w4a16 by output": {DECODER: Scheme(group=-1)},
    "w4a16 by output with zero points": {DECODER: Scheme(group=-1, symmetric=False)},
    "w8a16 by output": {DECODER: Scheme(8, -1, dtype=torch.float16)},
    "w8a16 by output with zero points": {DECODER: Scheme(8, -1, symmetric=False)},
    "w8a16 with zero points": {DECODER: Scheme(8, 32, symmetric=False)},
    "int8": {DECODER: Scheme(8, -1, words=False)},
    "int8 with zero points": {DECODER: Scheme(8, 32, words=False, symmetric=False)},
    "one scale a tensor": {DECODER: Scheme(8, 0, words=False)},
    "one scale and zero a tensor": {DECODER: Scheme(8, 0, symmetric=False)},
    "mixed": MIXED,
}


@pytest.mark.parametrize("name", VARIANTS)
def test_weights_are_those_that_the_codes_mean(
    name: str, small: Path, tmp_path: Path, exports: Exports, traced: None
) -> None:
    meant = write_compressed(small, tmp_path / "packed", VARIANTS[name])
    exported = exports(tmp_path / "packed", check=False)
    schemes = list(VARIANTS[name].values())
    entry = load_package(exported.folder).manifest.quantization
    assert entry is not None
    assert entry.method == "compressed-tensors"
    assert entry.bits == min(scheme.bits for scheme in schemes)
    assert entry.zero_points == any(not scheme.symmetric for scheme in schemes)
    assert_holds(exported, meant)
    assert len(exported.plan.store.linears) == len(meant) == 3 * 7
    packaged = read_packaged(load_package(exported.folder))
    assert packaged.linears == exported.plan.store.linears


def test_mixed_schemes_compute_what_they_mean(
    small: Path, tmp_path: Path, exports: Exports
) -> None:
    packed = tmp_path / "packed"
    meant = write_compressed(small, packed, VARIANTS["mixed"])
    exported = exports(packed, check=True)
    assert_computes(exported, small, packed, meant)
    model = LVLM.load(exported.folder, threads=1)
    assert model.generate("a b", max_new_tokens=2).token_ids


def test_a_tower_is_taken_over_too(small: Path, tmp_path: Path, exports: Exports) -> None:
    packed = tmp_path / "packed"
    meant = write_compressed(small, packed, {r"\.layers\.": Scheme(symmetric=False)})
    exported = exports(packed)
    assert_computes(exported, small, packed, meant)
    assert exported.plan.report()["quantization"]["parts"] == ["decoder", "vision"]


def test_inputs_in_another_order(small: Path, tmp_path: Path, exports: Exports) -> None:
    packed = tmp_path / "packed"
    schemes = {r"mlp": Scheme(symmetric=False, reordered=True), DECODER: Scheme()}
    meant = write_compressed(small, packed, schemes)
    exported = exports(packed, check=True)
    assert_computes(exported, small, packed, meant)
    kept = exported.plan.report()["quantization"]["kept"]
    assert [why for name, why in kept.items() if "language_model.layers" in name] == [
        "inputs are in another order (desc_act)"
    ] * 9


def test_groups_of_no_block(small: Path, tmp_path: Path, exports: Exports, traced: None) -> None:
    packed = tmp_path / "packed"
    meant = write_compressed(small, packed, {"down_proj": Scheme(group=8), DECODER: Scheme()})
    exported = exports(packed, check=False)
    assert_holds(exported, meant)
    assert set(exported.plan.store.kept.values()) == {
        "groups of 8 inputs are no multiple of 16",
        "codes the checkpoint does not hold",
    }


def test_no_order_at_all(small: Path, tmp_path: Path, exports: Exports, traced: None) -> None:
    """-1 in weight_g_idx: inputs are where they were."""

    def change(tensors: dict[str, torch.Tensor]) -> None:
        for key in [key for key in tensors if key.endswith("weight_scale")]:
            stem = key.removesuffix("weight_scale")
            inputs = int(tensors[f"{stem}weight_shape"][1])
            tensors[f"{stem}weight_g_idx"] = torch.full((inputs,), -1, dtype=torch.int32)

    packed = tmp_path / "packed"
    meant = write_compressed(small, packed, {DECODER: Scheme()}, change)
    exported = exports(packed, check=False)
    assert_holds(exported, meant)
    assert len(exported.plan.store.linears) == 3 * 7


def one(tensors: dict[str, torch.Tensor], suffix: str) -> str:
    return next(key for key in tensors if key.endswith(f"q_proj.{suffix}"))


def no_scale(tensors: dict[str, torch.Tensor]) -> None:
    del tensors[one(tensors, "weight_scale")]


def other_shape(tensors: dict[str, torch.Tensor]) -> None:
    tensors[one(tensors, "weight_shape")][1] = 60


def words_cut(tensors: dict[str, torch.Tensor]) -> None:
    key = one(tensors, "weight_packed")
    tensors[key] = tensors[key][:, 1:].contiguous()


def scales_cut(tensors: dict[str, torch.Tensor]) -> None:
    key = one(tensors, "weight_scale")
    tensors[key] = tensors[key][1:].contiguous()


def odd_groups(tensors: dict[str, torch.Tensor]) -> None:
    key = one(tensors, "weight_scale")
    tensors[key] = tensors[key].repeat(1, 3)[:, :5].contiguous()


def a_bias(tensors: dict[str, torch.Tensor]) -> None:
    tensors[one(tensors, "weight_packed").replace("weight_packed", "bias")] = torch.ones(64)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (no_scale, "found no weight_scale"),
        (other_shape, "expected [64, 64] as config.json says, found [64, 60]"),
        (words_cut, "expected words of 4 bits for 64 inputs, found I32 [64, 7]"),
        (scales_cut, "or BF16 [64, 2], found F32 [63, 2]"),
        (odd_groups, "equal parts of 64 inputs, found [64, 5]"),
        (a_bias, "maps to none"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_tensors_that_are_refused(
    change: Change, part: str, small: Path, tmp_path: Path, refused: Refused
) -> None:
    write_compressed(small, tmp_path / "packed", {DECODER: Scheme()}, change)
    assert part in refused(tmp_path / "packed", "--dry-run")


def weights(**fields: Any) -> dict[str, Any]:
    config = Scheme().config()
    return {"config_groups": {"group_0": config | {"weights": config["weights"] | fields}}}


def no_zero_point(tensors: dict[str, torch.Tensor]) -> None:
    tensors.pop(one(tensors, "weight_zero_point"))


def test_parts_that_the_configuration_asks_for(
    small: Path, tmp_path: Path, refused: Refused
) -> None:
    """Without them codes would be read, as other weights."""
    uneven = {DECODER: Scheme(symmetric=False)}
    write_compressed(small, tmp_path / "zeros", uneven, no_zero_point)
    assert "found no weight_zero_point" in refused(tmp_path / "zeros", "--dry-run")
    write_compressed(small, tmp_path / "mixed", {"k_proj": Scheme(8, -1)} | uneven, no_zero_point)
    assert "found no weight_zero_point" in refused(tmp_path / "mixed", "--dry-run")
    spread = weights(actorder="group")
    write_compressed(small, tmp_path / "order", {DECODER: Scheme()}, **spread)
    assert "found no weight_g_idx" in refused(tmp_path / "order", "--dry-run")


@pytest.mark.parametrize(
    ("config", "part"),
    [
        (weights(num_bits=3), "found 3, which versions of compressed-tensors"),
        (weights(num_bits=5), "found 5, which versions of compressed-tensors"),
        (weights(num_bits=6) | {"version": None}, "(this one tells no version)"),
        (weights(num_bits=2), "compressed-tensors to 2 bits (pack-quantized)"),
        (weights(type="float"), "compressed-tensors to 4 bits (pack-quantized)"),
        (weights(strategy="tensor_group"), "found 'tensor_group'"),
        ({"config_groups": {"W4A16": ["Linear"]}}, "found W4A16, the name of one"),
        ({"config_groups": {}}, "expected config_groups"),
        ({"sparsity_config": {"format": "sparse-24-bitmask"}}, "found a sparsity_config"),
        ({"transform_config": {"config_groups": {"R1": {}}}}, "found a transform_config"),
        ({"quantization_status": "frozen"}, "found the status 'frozen'"),
    ],
    ids=str,
)
def test_configs_that_are_refused(
    config: dict[str, Any], part: str, small: Path, tmp_path: Path, refused: Refused
) -> None:
    write_compressed(small, tmp_path / "packed", {DECODER: Scheme()}, **config)
    assert part in refused(tmp_path / "packed", "--dry-run")


def test_formats_that_are_refused(small: Path, tmp_path: Path, refused: Refused) -> None:
    packed = tmp_path / "packed"
    write_compressed(small, packed, {DECODER: Scheme()})
    path = packed / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"]["config_groups"]["group_0"]["format"] = "marlin-24"
    path.write_text(json.dumps(config))
    assert "compressed-tensors to 4 bits (marlin-24)" in refused(packed, "--dry-run")


def test_rounded_activations_are_named(small: Path, tmp_path: Path) -> None:
    config = Scheme(8, -1, words=False).config()
    config["input_activations"] = {"num_bits": 8, "type": "int", "dynamic": True}
    packed = tmp_path / "packed"
    write_compressed(
        small, packed, {DECODER: Scheme(8, -1, words=False)}, config_groups={"group_0": config}
    )
    plan = make_plan(Options(str(packed), tmp_path / "out"))
    assert any("activations" in note for note in plan.notes)
    assert plan.store.linears


def test_options_that_do_not_fit(small: Path, tmp_path: Path, refused: Refused) -> None:
    write_compressed(small, tmp_path / "packed", {DECODER: Scheme()})
    assert "leave --quantize out" in refused(tmp_path / "packed", "--quantize", "int8")


@given(st.integers(0, 1 << 30))
def test_bytes_are_turned(seed: int) -> None:
    rng = np.random.default_rng(seed)
    codes = rng.integers(-8, 8, (2 * int(rng.integers(1, 5)), 2 * int(rng.integers(1, 6))))
    rows = (codes[:, 0::2] % 16 + 16 * (codes[:, 1::2] % 16)).astype(np.uint8)
    columns = (codes.T[:, 0::2] % 16 + 16 * (codes.T[:, 1::2] % 16)).astype(np.uint8)
    np.testing.assert_array_equal(turn_bytes(rows), columns)


@given(st.integers(0, 1 << 30), st.sampled_from([4, 8]))
def test_words(seed: int, bits: int) -> None:
    rng, middle = np.random.default_rng(seed), 1 << (bits - 1)
    codes = rng.integers(0, 2 * middle, (3, int(rng.integers(1, 20))))
    found = unpack_words(pack_columns(codes, bits), bits)[:, : codes.shape[1]]
    np.testing.assert_array_equal(found, codes - middle)


def test_large_tensors_are_taken_in_pieces(tmp_path: Path) -> None:
    """Pieces join to the whole, where a tensor has several."""
    outputs, inputs = 2048, 1040
    codes = np.random.default_rng(0).integers(-128, 128, (outputs, inputs)).astype(np.int8)
    scales = np.ones((outputs, 1), np.float32)
    path = tmp_path / "tensors"
    path.write_bytes(codes.tobytes() + scales.tobytes())
    stored = CompressedCodes.of(
        Packing("compressed-tensors", "compressed", (8,)),
        (outputs, inputs),
        {
            "weight": Source("weight", path, TensorRecord("I8", codes.shape, 0, codes.nbytes)),
            "weight_scale": Source(
                "scale", path, TensorRecord("F32", scales.shape, codes.nbytes, scales.nbytes)
            ),
        },
    )
    pieces = list(stored.pieces())
    assert len(pieces) > 1
    assert b"".join(pieces) == codes.T.tobytes()
    np.testing.assert_array_equal(stored.rows(5, 9), codes[5:9])

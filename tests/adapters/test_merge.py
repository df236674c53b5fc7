"""Merged weights are those that PEFT merges, and a package computes what PEFT's model does."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from adapters.made import WEIGHTS, adapted, base_model, edit, rename, train
from avl_export.check.cli import main as avl_check
from avl_export.checkpoint.source import ChangedSource
from avl_export.cli import main
from avl_export.options import Options
from avl_export.plan.plan import Plan, make_plan
from avl_export.quantize.packaged import read_packaged
from avl_export.quantize.reading import read_weight
from avl_runtime import LVLM
from avl_runtime.package.package import load_package

TABLE = "model.language_model.embed_tokens.weight"
DECODER = ["q_proj", "v_proj", "down_proj"]
KINDS: dict[str, dict[str, Any]] = {
    "plain": {"target_modules": DECODER, "r": 4, "lora_alpha": 10},
    "every linear": {"target_modules": "all-linear", "r": 2, "lora_alpha": 4},
    "rank-stabilised": {"target_modules": DECODER, "r": 9, "lora_alpha": 5, "use_rslora": True},
    "dora": {"target_modules": DECODER, "r": 4, "lora_alpha": 8, "use_dora": True},
    "patterns": {
        "target_modules": DECODER,
        "r": 4,
        "lora_alpha": 8,
        "rank_pattern": {"layers.1.self_attn.q_proj": 2, "down_proj": 6},
        "alpha_pattern": {r"^model.language_model.layers.\d.mlp.down_proj": 3, "v_proj": 20},
    },
    "tower and projector": {
        "target_modules": r".*(vision_tower.*(q_proj|fc1|patch_embedding)|projector.linear_1)",
        "r": 3,
        "lora_alpha": 6,
    },
    "convolution with dora": {
        "target_modules": ["patch_embedding"],
        "r": 3,
        "lora_alpha": 6,
        "use_dora": True,
    },
    "embedding and output matrix": {
        "target_modules": ["embed_tokens", "lm_head"],
        "r": 4,
        "lora_alpha": 8,
    },
    "dora of an embedding": {
        "target_modules": ["embed_tokens"],
        "r": 4,
        "lora_alpha": 8,
        "use_dora": True,
    },
    "whole modules": {
        "target_modules": ["o_proj"],
        "r": 4,
        "modules_to_save": ["lm_head", "linear_2"],
    },
    "biases": {"target_modules": ["fc2"], "r": 4, "lora_alpha": 8, "bias": "lora_only"},
    "a bias of b": {"target_modules": ["fc1"], "r": 4, "lora_alpha": 12, "lora_bias": True},
    "fan in": {"target_modules": ["up_proj"], "r": 4, "lora_alpha": 8, "fan_in_fan_out": True},
    "some layers": {
        "target_modules": ["k_proj"],
        "layers_to_transform": [1],
        "layers_pattern": "layers",
        "exclude_modules": r".*vision_tower.*",
    },
}


def planned(model: Path, tmp_path: Path, **options: Any) -> Plan:
    return make_plan(Options(str(model), tmp_path / "out", split=(1,), **options))


def merged_weights(plan: Plan) -> dict[str, np.ndarray]:
    """What the package will hold, by parameter."""
    assert plan.store is not None
    found = {}
    for name, plain in plan.store.plain.items():
        shape = plain.record.shape
        rows = shape[0] if shape else 1  # a number by itself is a row
        values = plain.source.read_floats(0, rows).reshape(shape)
        found[name] = values.swapaxes(1, 2) if plan.weights.places[name].swapped else values
    return found


def assert_merged(plan: Plan, expected: Any) -> None:
    """Every weight that the package holds is that of PEFT's merged model."""
    merged = expected.merge_and_unload()
    wanted = dict(merged.named_buffers())  # Gemma 4 stores some
    wanted |= dict(merged.named_parameters(remove_duplicate=False))
    found = merged_weights(plan)
    assert plan.adapter is not None
    assert plan.adapter.changes.keys() <= wanted.keys()
    for name, values in found.items():
        exact = wanted[name].detach().numpy()
        scale = float(np.abs(exact).max())
        np.testing.assert_allclose(values, exact, rtol=0, atol=2e-6 * scale, err_msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_weights(kind: str, base: Path, tmp_path: Path) -> None:
    folder = train(base, tmp_path / "adapter", **KINDS[kind])
    plan = planned(base, tmp_path, lora=folder)
    assert_merged(plan, adapted(base, folder))
    assert plan.store is not None
    changed = {n for n, p in plan.store.plain.items() if isinstance(p.source, ChangedSource)}
    assert plan.adapter is not None
    assert changed == plan.adapter.changes.keys() & plan.store.plain.keys()
    assert changed


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_factors_in_16_bits(dtype: torch.dtype, base: Path, tmp_path: Path) -> None:
    folder = train(base, tmp_path / "adapter", **KINDS["plain"])
    halves = {key: tensor.to(dtype) for key, tensor in load_file(folder / WEIGHTS).items()}
    save_file(halves, folder / WEIGHTS)
    plan = planned(base, tmp_path, lora=folder)
    # PEFT rounds B A to 16 bits; from the same factors in 32 bits its sum is exact.
    exact = shutil.copytree(folder, tmp_path / "exact")
    save_file({key: tensor.float() for key, tensor in halves.items()}, exact / WEIGHTS)
    assert_merged(plan, adapted(base, exact))


OLDER = {
    "4.36": (
        ("model.language_model.", "language_model.model."),
        ("model.vision_tower.", "vision_tower.vision_model."),
        ("model.multi", "multi"),
        ("lm_head.", "language_model.lm_head."),
    ),
    "no prefix": (),
    "named": (),
}


@pytest.mark.parametrize("layout", OLDER)
def test_names_of_older_versions(layout: str, base: Path, tmp_path: Path) -> None:
    """The same adapter under the names that older trees of modules gave it."""
    kind = {
        "target_modules": r".*(q_proj|linear_1|lm_head)",
        "r": 4,
        "lora_alpha": 8,
        "use_dora": True,
    }
    folder = train(base, tmp_path / "adapter", **kind)
    expected = adapted(base, folder)

    def older(key: str) -> str:
        if layout == "no prefix":
            return key.removeprefix("base_model.model.")
        if layout == "named":
            named = re.sub(r"\.(lora_[AB])\.weight$", r".\1.default.weight", key)
            return re.sub(r"lora_magnitude_vector$", "lora_magnitude_vector.default.weight", named)
        own = key.removeprefix("base_model.model.")
        for now, then in OLDER[layout]:
            if own.startswith(now):
                own = then + own.removeprefix(now)
                break
        return f"base_model.model.{own}"

    rename(folder, older)
    if layout == "4.36":
        edit(folder, alpha_pattern={"language_model.model.layers.0.self_attn.q_proj": 8})
    assert_merged(planned(base, tmp_path, lora=folder), expected)


def test_a_package_computes_what_peft_does(
    tied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Logits of PEFT's model, not merged: of two tied matrices only the adapted one changes."""
    kind = {"target_modules": ["q_proj", "down_proj", "fc1", "linear_1", "lm_head"]}
    folder = train(tied, tmp_path / "adapter", r=2, lora_alpha=4, **kind)
    out = tmp_path / "out"
    command = ["--model", str(tied), "--lora", str(folder), "--out", str(out), "--split", "1"]
    assert main([*command, "--check"]) == 0, capsys.readouterr().err
    assert_logits(out, adapted(tied, folder), 1e-3)
    manifest = load_package(out).manifest
    assert (manifest.weights.folder, manifest.adapter) == (None, "adapter")
    capsys.readouterr()
    recheck = [str(out), "--layers", "--model", str(tied)]
    assert avl_check(recheck) == 1
    assert "expected the adapter adapter, which it has merged" in capsys.readouterr().err
    assert avl_check([*recheck, "--lora", str(folder)]) == 0


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_tied_matrices_part(target: str, tied: Path, tmp_path: Path) -> None:
    """An adapter of one of two tied matrices leaves the other as it is."""
    folder = train(tied, tmp_path / "adapter", target_modules=[target], r=4, lora_alpha=8)
    found = merged_weights(planned(tied, tmp_path, lora=folder))
    names = {"lm_head": "lm_head.weight", "embed_tokens": TABLE}
    table = base_model(tied).get_input_embeddings().weight.detach().numpy()
    factors = load_file(folder / WEIGHTS)
    a, b = (next(t for key, t in factors.items() if f"_{side}" in key) for side in "AB")
    delta = 2 * (b @ a).numpy()
    for short, name in names.items():
        wanted = table + (delta.T if target == "embed_tokens" else delta) * (short == target)
        np.testing.assert_allclose(found[name], wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (("--quantize", "int8", "--quantize-also", "lm_head,embedding"), 1 / 200),
        (("--quantize", "int4", "--block-size", "32", "--quantize-method", "rtn"), 1 / 12),
    ],
    ids=str,
)
def test_codes_stand_for_merged_weights(
    options: tuple[str, ...], error: float, blocks: Path, tmp_path: Path
) -> None:
    kind = {**KINDS["dora"], "target_modules": [*DECODER, "lm_head"]}
    folder = train(blocks, tmp_path / "adapter", **kind)
    out = tmp_path / "out"
    command = ["--model", str(blocks), "--lora", str(folder), "--out", str(out), "--split", "1"]
    assert main([*command, "--check", *options]) == 0
    merged = dict(adapted(blocks, folder).merge_and_unload().named_parameters())
    packaged = read_packaged(load_package(out))
    assert packaged.linears
    for name, place in packaged.linears.items():
        exact = merged[name].detach().numpy()
        difference = np.abs(read_weight(out, place) - exact).max()
        assert difference <= np.abs(exact).max() * error, name


def assert_logits(out: Path, model: Any, tolerance: float) -> None:
    package = LVLM.load(out, backend="ort-cpu", threads=1)
    result = package.generate("w5 w7 w9", max_new_tokens=3, return_logits=True)
    prompt = package.processor.encode("w5 w7 w9", []).input_ids.tolist()
    ids = torch.tensor([[*prompt, *result.token_ids[:-1]]])
    with torch.no_grad():
        expected = model(input_ids=ids).logits[0, len(prompt) - 1 :].float().numpy()
    assert result.logits is not None
    scale = float(np.abs(expected).max())
    np.testing.assert_allclose(result.logits, expected, rtol=0, atol=tolerance * scale)

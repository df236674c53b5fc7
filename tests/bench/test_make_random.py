"""Random checkpoints: what transformers and avl-export make of them, and what is refused."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from tokenizers import Tokenizer
from transformers import AutoModelForImageTextToText

from avl_export.checkpoint.aliases import known_files
from avl_export.checkpoint.supported import SUPPORTED
from avl_export.cli import main as avl_export
from avl_export.options import Options
from avl_export.plan.plan import make_plan
from make_random import PRESETS, main, write
from random_config import FAMILIES, Shape, ShapeError, files_of

SMALL = Shape(
    hidden=64,
    intermediate=96,
    layers=3,
    heads=4,
    kv_heads=2,
    vocabulary=300,
    context=2048,
    vision_hidden=64,
    dtype="fp32",
)


def digest(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


def test_a_checkpoint_is_exported_and_checked_against_transformers(tmp_path: Path) -> None:
    shape = dataclasses.replace(SMALL, image_tokens=16, dtype="bf16")
    write(tmp_path / "model", shape)
    # --check loads it with transformers, whose logits and image features must be the package's.
    arguments = ["--model", str(tmp_path / "model"), "--out", str(tmp_path / "x.avl"), "--check"]
    assert avl_export([*arguments, "--dtype", "fp32"]) == 0
    manifest = json.loads((tmp_path / "x.avl/avl.json").read_text())
    dims = manifest["dims"]
    assert (dims["hidden_size"], dims["num_layers"], dims["num_kv_heads"]) == (64, 3, 2)
    assert dims["vocab_size"] == 300 and dims["max_positions"] == 2048
    assert manifest["image"]["layout"]["tokens"] == 16
    tokenizer = Tokenizer.from_file(str(tmp_path / "model/tokenizer.json"))
    assert tokenizer.get_vocab_size() == 300
    assert tokenizer.encode("w5 w77\nw5", add_special_tokens=False).ids[:2] == [5, 77]


def test_every_family_is_known() -> None:
    assert {*FAMILIES, "glm46v"} == set(SUPPORTED)  # GLM-4V by another name
    for family, alias in FAMILIES.items():
        assert known_files(alias)["config.json"]["model_type"] == family


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_a_plan(family: str, tmp_path: Path) -> None:
    write(tmp_path / "model", dataclasses.replace(SMALL, family=family))
    plan = make_plan(Options(str(tmp_path / "model"), tmp_path / "x.avl"))
    assert plan.family.name == family
    assert plan.family.config.get_text_config().num_hidden_layers == 3


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write(tmp_path / name, SMALL, seed)
    one, same, other = (digest(tmp_path / name) for name in "abc")
    assert one == same
    changed = {name for name in one if one[name] != other[name]}
    assert changed == {"model-00001-of-00001.safetensors"}


def test_weights_are_spread_as_in_a_trained_model(tmp_path: Path) -> None:
    write(tmp_path / "model", SMALL)
    with safe_open(tmp_path / "model/model-00001-of-00001.safetensors", "np") as file:
        names = list(file.keys())
        norms = [file.get_tensor(n) for n in names if "norm" in n and n.endswith("weight")]
        query = file.get_tensor(next(n for n in names if n.endswith("q_proj.weight")))
        drawn = np.concatenate([file.get_tensor(n).ravel()[:8] for n in names])
    assert query.std() == pytest.approx(1 / 8, rel=0.1)
    assert np.mean([norm.mean() for norm in norms]) == pytest.approx(1, abs=0.1)
    # No two tensors begin alike: builders store equal ones once.
    assert len(np.unique(drawn)) == len(drawn)


def test_attention_of_gemma4_is_no_sharper_than_float32_can_tell(tmp_path: Path) -> None:
    """Nothing but a norm's weight scales its queries: at 1, logits are off in the first digit."""
    write(tmp_path / "model", dataclasses.replace(SMALL, family="gemma4", layers=6))
    ids = torch.arange(20, 280)[None]
    found = []
    for dtype in (torch.float32, torch.float64):
        model = AutoModelForImageTextToText.from_pretrained(tmp_path / "model", dtype=dtype)
        with torch.inference_mode():
            found.append(model(input_ids=ids, use_cache=False).logits.double().numpy())
    assert np.abs(found[1]).max() > 1
    np.testing.assert_allclose(found[0], found[1], atol=2e-5, rtol=0)


@pytest.mark.parametrize(
    ("preset", "hidden", "layers", "heads", "kv_heads"),
    [
        ("S1", 1024, 8, 16, 16),
        ("S2", 1024, 8, 16, 4),
        ("S3", 512, 8, 8, 8),
        ("deep", 512, 24, 8, 8),
    ],
)
def test_presets_are_the_issues(
    preset: str, hidden: int, layers: int, heads: int, kv_heads: int
) -> None:
    text = files_of(PRESETS[preset])["config.json"]["text_config"]
    found = [text[f"num_{name}"] for name in ("hidden_layers", "attention_heads")]
    assert [text["hidden_size"], *found] == [hidden, layers, heads]
    assert text["num_key_value_heads"] == kv_heads
    assert text["vocab_size"] == 32064


def test_half_a_billion_parameters() -> None:
    shape = PRESETS["half-billion"]
    layer = 4 * shape.hidden**2 + 3 * shape.hidden * shape.intermediate
    assert shape.layers * layer + 2 * shape.vocabulary * shape.hidden > 0.5e9


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--hidden", "65"], "whole multiples: hidden 65"),
        (["--kv-heads", "3"], "heads of KV heads 3"),
        (["--image-tokens", "15"], "expected a square number, found 15; choose 9 or 16"),
        (["--family", "qwen3_vl", "--image-tokens", "16"], "found qwen3_vl; choose one"),
        (["--family", "qwen2_vl", "--preset", "small"], "or the preset's.*, found qwen2_vl"),
        (["--vocab", "9"], "--vocab: expected"),
    ],
)
def test_impossible_shapes_are_refused(arguments: list[str], told: str, tmp_path: Path) -> None:
    with pytest.raises(ShapeError, match=told):
        main([str(tmp_path / "model"), "--heads", "4", "--kv-heads", "2", *arguments])
    assert not (tmp_path / "model").exists()

"""Weights that do not fit blocks or pairs stay as the checkpoint has them, and that is said."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from avl_export import cli
from avl_runtime import LVLM
from avl_runtime.package.package import load_package
from export.checkpoints import make_config, write_random
from quantize.conftest import TEXT

Make = Callable[..., Path]
BLOCKS: dict[str, Any] = {}  # intermediate 96: down_proj has no whole blocks of 64
NARROW = {"hidden_size": 48, "intermediate_size": 64}  # only down_proj has whole blocks of 64
ODD = {"intermediate_size": 97}  # gate_proj and up_proj have odd outputs too


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """A checkpoint of an odd size, in a dtype of the field."""

    def write(text: dict[str, Any], dtype: torch.dtype, **top: Any) -> Path:
        folder = tmp_path_factory.mktemp("kept") / "model"
        return write_random(folder, make_config(text=TEXT | text, **top), dtype)

    return write


def stored(folder: Path, part: str) -> dict[str, torch.Tensor]:
    """Tensors of all files whose names hold `part`."""
    found: dict[str, torch.Tensor] = {}
    for path in folder.glob("*.safetensors"):
        found |= {name: t for name, t in load_file(path).items() if part in name}
    return found


@pytest.mark.parametrize(
    ("text", "dtype", "named", "reasons"),
    [
        (BLOCKS, torch.float16, "F16", ["3 weights whose 96 inputs are no multiple of 64"]),
        (BLOCKS, torch.bfloat16, "BF16", ["3 weights whose 96 inputs are no multiple of 64"]),
        (
            ODD,
            torch.float32,
            "F32",
            [
                "6 weights whose 97 outputs are an odd number",
                "3 weights whose 97 inputs are no multiple of 64",
            ],
        ),
    ],
    ids=str,
)
def test_what_does_not_fit_stays(
    text: dict[str, Any],
    dtype: torch.dtype,
    named: str,
    reasons: list[str],
    make: Make,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Graphs are compared with transformers, run on what the package stores."""
    model, out = make(text, dtype), tmp_path / "out"
    assert cli.main(["--model", str(model), "--out", str(out), "--quantize", "int4"]) == 0
    said = capsys.readouterr().out
    for reason in reasons:
        assert f"not quantized, stored in {named}: {reason}" in said
    assert ("--block-size 32 would quantize these too" in said) == (text == BLOCKS)
    before, after = stored(model, "down_proj.weight"), stored(out, "down_proj.weight")
    assert len(after) == 3
    for (_, mine), (_, theirs) in zip(sorted(after.items()), sorted(before.items()), strict=True):
        assert mine.dtype == theirs.dtype == dtype
        assert torch.equal(mine, theirs)
    assert stored(out, "q_proj.weight.int4")
    assert LVLM.load(out, backend="ort-cpu").generate("w5 w6", max_new_tokens=3).token_ids


def test_a_graph_of_16_bits_keeps_its_own_dtype(make: Make, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ["--quantize", "int4", "--dtype", "fp16", "--no-check"]
    assert cli.main(["--model", str(make(BLOCKS, torch.float32)), "--out", str(out), *options]) == 0
    assert {t.dtype for t in stored(out, "down_proj.weight").values()} == {torch.float16}


def test_the_plan_names_them(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(make(BLOCKS, torch.float16))
    arguments = ["--model", model, "--out", str(tmp_path / "out"), "--dry-run", "--json"]
    assert cli.main([*arguments, "--quantize", "int4"]) == 0
    found = json.loads(capsys.readouterr().out)["quantization"]
    assert len(found["kept"]) == 3
    assert all("down_proj" in name for name in found["kept"])
    assert (found["kept_in"], found["fitting_block_size"]) == (["F16"], 32)
    assert cli.main([*arguments, "--quantize", "int8"]) == 0
    found = json.loads(capsys.readouterr().out)["quantization"]
    assert (found["kept"], found["kept_in"], found["fitting_block_size"]) == ({}, [], None)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    ("text", "also", "output", "rows"),
    [
        ({"vocab_size": 301}, "lm_head", "301 outputs are an odd number", None),
        ({"vocab_size": 301}, "lm_head,embedding", "301 outputs are an odd number", "I4"),
        (NARROW, "lm_head,embedding", "48 inputs are no multiple of 64", "F16"),
    ],
    ids=str,
)
def test_an_output_matrix_that_does_not_fit_stays(
    text: dict[str, Any],
    also: str,
    output: str,
    rows: str | None,
    tied: bool,
    make: Make,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A vocabulary with one token added is odd. Looked up by rows, it does not matter."""
    top = {"tie_word_embeddings": tied}
    model, out = make(text | top, torch.float16, **top), tmp_path / "out"
    options = ["--quantize", "int4", "--quantize-also", also, "--check", "--json"]
    assert cli.main(["--model", str(model), "--out", str(out), *options]) == 0
    kept = json.loads(capsys.readouterr().out)["quantization"]["kept"]
    name = "embed_tokens.weight" if tied else "lm_head.weight"
    assert [why for key, why in kept.items() if key.endswith(name)] == [output]
    assert {t.dtype for t in stored(out, name).values() if t.dim() == 2} >= {torch.float16}
    if rows is not None:
        assert load_package(out).manifest.embedding.dtype == rows

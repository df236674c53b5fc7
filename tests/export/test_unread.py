"""Stored tensors that no graph reads are named, and export goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir
import pytest
import torch
from safetensors.torch import load_file, save_file

from avl_export.checkpoint.safetensors_header import read_header
from avl_export.cli import main
from avl_runtime.package.package import load_package

Refused = Callable[..., str]
SINGLE = "model.safetensors"


def add(folder: Path, **tensors: torch.Tensor) -> None:
    path = folder / SINGLE
    save_file(load_file(path) | {k.replace("__", "."): t for k, t in tensors.items()}, path)


def offsets_read(out: Path) -> set[int]:
    """Where in the checkpoint's file graphs and the runtime read."""
    package = load_package(out)
    found = {package.manifest.embedding.offset}
    for path in out.glob("*.onnx"):
        for value in ir.load(path).graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                found.add(value.const_value.offset or 0)
    return found


def test_every_unread_tensor_is_named(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layer = "language_model__model__layers__3__mlp__up_proj__weight"
    add(checkpoint, v_head__weight=torch.ones(1, 48), score=torch.ones(3), **{layer: torch.ones(4)})
    out = tmp_path / "out"
    assert main(["--model", str(checkpoint), "--out", str(out), "--check", "--json"]) == 0
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    read = offsets_read(out)
    records = read_header(checkpoint / SINGLE)
    expected = {name for name, record in records.items() if record.offset not in read}
    assert set(report["unread_tensors"]) == expected
    strays, unused = (note for note in report["notes"] if "stored tensors" in note)
    assert f"avl-export: {strays}\navl-export: {unused}\n" in captured.err
    assert strays.startswith("3 stored tensors of no weight of LlavaForConditionalGeneration")
    assert {"v_head.weight", "score", layer.replace("__", ".")} == set(
        strays.split("left out: ")[1].split(", ")
    )
    assert unused.startswith(f"{len(expected) - 3} stored tensors that no graph reads left out: ")
    assert "and" in unused
    assert report["largest_logit_difference"] < 1e-3


def test_one_is_one(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add(checkpoint, v_head__weight=torch.zeros(1, 48))
    assert main(["--model", str(checkpoint), "--dry-run"]) == 0
    line = capsys.readouterr().err.splitlines()[0]
    assert line == (
        "avl-export: 1 stored tensor of no weight of LlavaForConditionalGeneration left out: "
        "v_head.weight"
    )


def test_an_adapter_among_the_weights(checkpoint: Path, refused: Refused) -> None:
    name = "language_model__model__layers__0__self_attn__q_proj__lora_A__default__weight"
    add(checkpoint, **{name: torch.ones(4, 48)})
    assert "merge_and_unload()" in refused(checkpoint)

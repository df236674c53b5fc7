"""Two matrices that the configuration calls one are kept apart where they are stored apart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from avl_export.cli import main
from avl_export.options import Options
from avl_export.plan.plan import Plan, make_plan
from export.layouts import CASES, FAMILIES, assert_reads_as_transformers, rename, write_layout

SINGLE = "model.safetensors"
TIED: dict[str, Any] = {"text": {"tie_word_embeddings": True}, "tie_word_embeddings": True}
TABLE = "model.language_model.embed_tokens.weight"


def write_both(folder: Path, layout: str = "now", change: Any = None) -> Path:
    """A tied checkpoint that also stores the output matrix, which `change` makes of the other."""
    write_layout(folder, "llava", layout, **TIED)
    renaming = FAMILIES["llava"].layouts[layout]
    tensors = load_file(folder / SINGLE)
    table = tensors[rename(TABLE, renaming)]
    tensors[rename("lm_head.weight", renaming)] = (change or torch.clone)(table)
    save_file(tensors, folder / SINGLE, {"format": "pt"})
    return folder


def planned(folder: Path, tmp_path: Path, **options: Any) -> Plan:
    return make_plan(Options(str(folder), tmp_path / "out", split=(1,), **options))


def flipped(table: torch.Tensor) -> torch.Tensor:
    return table.flip(0).contiguous()


def last_value(table: torch.Tensor) -> torch.Tensor:
    changed = table.clone()
    changed[-1, -1] += 1
    return changed


def head_place(plan: Plan) -> tuple[Any, Any]:
    shape = tuple(plan.family.decoder.head.get_parameter("weight").shape)
    return plan.weights.place("lm_head.weight", shape), plan.weights.place(TABLE, shape)


@pytest.mark.parametrize("change", [flipped, last_value])
@pytest.mark.parametrize(("family", "layout"), CASES)
def test_kept_apart(family: str, layout: str, change: Any, tmp_path: Path) -> None:
    plan = planned(write_both(tmp_path / "model", layout, change), tmp_path)
    head, table = head_place(plan)
    assert head != table
    names = {name for name, _ in plan.family.model.named_parameters()}
    assert {"lm_head.weight", TABLE} <= names
    assert_reads_as_transformers(plan)


def test_equal_ones_stay_tied(tmp_path: Path) -> None:
    plan = planned(write_both(tmp_path / "model"), tmp_path)
    assert "lm_head.weight" not in {name for name, _ in plan.family.model.named_parameters()}
    assert_reads_as_transformers(plan)
    assert not [key for key in plan.unread.names if "lm_head" in key]


def test_equal_values_of_two_dtypes_stay_tied(tmp_path: Path) -> None:
    folder = write_both(tmp_path / "model", change=lambda table: table.half())
    tensors = load_file(folder / SINGLE)
    tensors[TABLE] = tensors["lm_head.weight"].float()
    save_file(tensors, folder / SINGLE, {"format": "pt"})
    assert "lm_head.weight" not in dict(planned(folder, tmp_path).family.model.named_parameters())
    tensors[TABLE][0, 0] += 1e-4
    save_file(tensors, folder / SINGLE, {"format": "pt"})
    assert "lm_head.weight" in dict(planned(folder, tmp_path).family.model.named_parameters())


@pytest.mark.parametrize(
    "arguments",
    [
        ("--check",),
        ("--layers",),
        ("--dtype", "fp16", "--check"),
        ("--quantize", "int8", "--quantize-also", "lm_head,embedding", "--check", "--layers"),
    ],
    ids=" ".join,
)
def test_the_check_agrees(
    arguments: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_both(tmp_path / "model", change=flipped)
    out = tmp_path / "out"
    status = main(["--model", str(folder), "--out", str(out), "--split", "1", *arguments, "--json"])
    captured = capsys.readouterr()
    assert status == 0, captured.err
    assert json.loads(captured.out)["quantization"] is None or "--quantize" in arguments

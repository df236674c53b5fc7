"""Every layout that checkpoints come in is read as transformers itself reads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from avl_export import cli
from avl_export.checkpoint.checkpoint import model_name, open_checkpoint
from avl_export.families import load_family
from avl_export.options import Options
from avl_export.plan.plan import Plan, make_plan
from avl_runtime.package.package import load_package
from export.layouts import (
    CASES,
    FAMILIES,
    as_hub_cache,
    assert_reads_as_transformers,
    split_shards,
    write_layout,
)


def planned(folder: Path, out: Path) -> Plan:
    return make_plan(Options(str(folder), out, split=(1,)))


@pytest.mark.parametrize("sharded", [False, True], ids=["single", "sharded"])
@pytest.mark.parametrize(("family", "layout"), CASES)
def test_old_and_new_keys(family: str, layout: str, sharded: bool, tmp_path: Path) -> None:
    folder = write_layout(tmp_path / "model", family, layout)
    if sharded:
        split_shards(folder)
    plan = planned(folder, tmp_path / "out")
    assert len(plan.checkpoint.shards) == (3 if sharded else 1)
    assert_reads_as_transformers(plan)


@pytest.mark.parametrize(("family", "layout"), CASES)
def test_tied_embeddings(family: str, layout: str, tmp_path: Path) -> None:
    config = FAMILIES[family].config(text={"tie_word_embeddings": True}, tie_word_embeddings=True)
    folder = write_layout(
        tmp_path / "model",
        family,
        layout,
        text={"tie_word_embeddings": True},
        tie_word_embeddings=True,
    )
    plan = planned(folder, tmp_path / "out")
    assert not any("lm_head" in key for key in plan.checkpoint.tensors)
    matrix = (config.get_text_config().vocab_size, config.get_text_config().hidden_size)
    head = plan.weights.place("lm_head.weight", matrix)
    assert head.record.offset == plan.embedding.offset
    assert head.location == plan.embedding.file
    assert_reads_as_transformers(plan)


@pytest.mark.parametrize("family", FAMILIES)
def test_hub_cache(family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Links are followed: ONNX Runtime takes none, so graphs name the files behind them."""
    folder = write_layout(tmp_path / "model", family, "now")
    split_shards(folder, 2)
    snapshot = as_hub_cache(folder, tmp_path / "hub")
    assert model_name(str(snapshot)) == "model"
    out = tmp_path / "out"
    assert cli.main(["--model", str(snapshot), "--out", str(out), "--check"]) == 0
    assert "check against transformers" in capsys.readouterr().out
    package = load_package(out)
    package.check_shards()
    assert package.weights_folder == (tmp_path / "hub/models--some--model/blobs").resolve()
    for shard in package.manifest.weights.shards:
        assert not (package.weights_folder / shard.path).is_symlink()


def state(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def read_only(tmp_path: Path) -> Any:
    """A checkpoint that must stay as it is; permissions hold back all but root."""
    folder = write_layout(tmp_path / "model", "llava", "now")
    for path in folder.iterdir():
        path.chmod(0o444)
    folder.chmod(0o555)
    before = state(folder)
    yield folder
    assert state(folder) == before
    assert {path.name for path in tmp_path.iterdir()} <= {"model", "model.avl", "elsewhere"}
    folder.chmod(0o755)


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("place", ["inside", "elsewhere"])
def test_read_only(place: str, read_only: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even one who works in the checkpoint's folder gets the package beside it."""
    elsewhere = read_only.parent / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(read_only if place == "inside" else elsewhere)
    assert cli.main(["--model", "." if place == "inside" else "../model", "--no-check"]) == 0
    out = read_only.parent / "model.avl" if place == "inside" else elsewhere / "model.avl"
    load_package(out).check_shards()


def test_both_of_a_tied_pair(tmp_path: Path) -> None:
    """Older files hold the tied matrix twice."""
    tie: dict[str, Any] = {"text": {"tie_word_embeddings": True}, "tie_word_embeddings": True}
    folder = write_layout(tmp_path / "model", "llava", "now", **tie)
    checkpoint = open_checkpoint(str(folder))
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.language_model.embed_tokens.weight"].clone()
    save_file(tensors, folder / "model.safetensors")
    assert_reads_as_transformers(planned(folder, tmp_path / "out"))
    assert len(open_checkpoint(str(folder)).tensors) == len(checkpoint.tensors) + 1


@pytest.mark.parametrize("family", FAMILIES)
def test_config_names_the_dtype_it_is_stored_in(family: str, tmp_path: Path) -> None:
    """Graphs read half precision in place and compute in what was asked for."""
    folder = write_layout(tmp_path / "model", family, "now")
    config = json.loads((folder / "config.json").read_text())
    assert config["dtype"] == "float32"
    family_of = load_family(open_checkpoint(str(folder)), torch.float16)
    assert next(family_of.model.parameters()).dtype == torch.float16

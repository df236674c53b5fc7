"""A check layer by layer finds the wrong one, in little memory."""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import export_size
from avl_export.check.cli import main as avl_check
from avl_export.check.layers import check_layers, matching_rows
from avl_export.check.reference import checkpoint_loader, empty_model
from avl_export.check.streaming import streamed
from avl_export.check.table import CheckError, Row
from avl_export.check.walk import check_prompt
from avl_export.checkpoint.checkpoint import open_checkpoint
from avl_export.cli import main
from avl_export.families import load_family
from avl_runtime.package.package import Package, load_package
from export.checkpoints import make_config, write_random, write_sparse

ROWS = [
    "token embedding",
    "vision embeddings",
    "vision layer 0",
    "last vision layer and projector",
    "decoder layer 0",
    "decoder layer 1",
    "decoder layer 2",
    "final norm and output matrix",
]


def checked(package: Package, model: Path) -> tuple[list[Row], str]:
    """All rows, and what was raised."""
    checkpoint = open_checkpoint(str(model))
    family = load_family(checkpoint, torch.float32)
    rows: list[Row] = []
    try:
        load = checkpoint_loader(checkpoint, family.model)
        assert check_layers(package, family, load, rows.append) == rows
    except CheckError as error:
        return rows, str(error)
    return rows, ""


def wrong(rows: list[Row]) -> list[str]:
    return [row.name for row in rows if not row.ok]


def change(package: Package, file: str, edit: Callable[[onnx.GraphProto], None]) -> None:
    path = package.file(file)
    model = onnx.load(path, load_external_data=False)
    edit(model.graph)
    onnx.save(model, path)


def swap(one: str, other: str) -> Callable[[onnx.GraphProto], None]:
    """Exchange the places that two weights of one shape are read from."""

    def edit(graph: onnx.GraphProto) -> None:
        first, second = (
            next(w for w in graph.initializer if w.name.endswith(name)) for name in (one, other)
        )
        assert list(first.dims) == list(second.dims)
        places = [copy.deepcopy(list(w.external_data)) for w in (first, second)]
        for weight, place in zip((first, second), reversed(places), strict=True):
            del weight.external_data[:]
            weight.external_data.extend(place)

    return edit


def test_a_right_package(master: Path, master_package: Path) -> None:
    rows, error = checked(load_package(master_package), master)
    assert error == ""
    assert [row.name for row in rows] == ROWS
    assert all(row.difference < 1e-4 and row.cosine < 1e-5 for row in rows)
    assert all(row.share < 0.1 for row in rows)
    assert all(row.largest > 0.1 for row in rows), "values too small to compare anything"


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_swapped_offsets_in_a_decoder_layer(layer: int, master: Path, package_folder: Path) -> None:
    """The layer with the wrong weights is named, and no other."""
    package = load_package(package_folder)
    file = next(s.file for s in package.manifest.segments if layer < s.last_layer)
    place = f"layers.{layer}.self_attn."
    change(package, file, swap(f"{place}k_proj.weight", f"{place}v_proj.weight"))
    rows, error = checked(package, master)
    assert wrong(rows) == [f"decoder layer {layer}"]
    assert f"found decoder layer {layer} " in error
    assert error.count("\n") == 0


def test_swapped_offsets_between_layers(master: Path, package_folder: Path) -> None:
    package = load_package(package_folder)
    names = [f"layers.{layer}.mlp.up_proj.weight" for layer in (0, 1)]
    change(package, "decoder.0.onnx", swap(*names))
    rows, error = checked(package, master)
    assert wrong(rows) == ["decoder layer 0", "decoder layer 1"]
    assert "and 1 more" in error


def test_swapped_offsets_in_a_vision_layer(master: Path, package_folder: Path) -> None:
    package = load_package(package_folder)
    place = "layers.0.self_attn."
    change(package, "vision.onnx", swap(f"{place}q_proj.weight", f"{place}v_proj.weight"))
    rows, error = checked(package, master)
    assert wrong(rows) == ["vision layer 0", "last vision layer and projector"]
    assert "found vision layer 0 " in error


@pytest.mark.parametrize(
    ("file", "weight", "row"),
    [
        ("vision.onnx", "linear_1.bias", "last vision layer and projector"),
        ("vision.onnx", "pre_layrnorm.weight", "vision embeddings"),
        ("decoder.1.onnx", "language_model.norm.weight", "final norm and output matrix"),
        ("decoder.1.onnx", "layers.2.post_attention_layernorm.weight", "decoder layer 2"),
    ],
)
def test_other_parts(file: str, weight: str, row: str, master: Path, package_folder: Path) -> None:
    def overwrite(graph: onnx.GraphProto) -> None:
        index, found = next(
            (i, w) for i, w in enumerate(graph.initializer) if w.name.endswith(weight)
        )
        ramp = np.linspace(-2, 3, int(np.prod(found.dims)), dtype=np.float32)
        graph.initializer[index].CopyFrom(onnx.numpy_helper.from_array(ramp, found.name))

    package = load_package(package_folder)
    change(package, file, overwrite)
    rows, _ = checked(package, master)
    assert wrong(rows)[0] == row


def test_another_embedding(master: Path, master_package: Path) -> None:
    package = load_package(master_package)
    place = package.manifest.embedding
    moved = dataclasses.replace(place, offset=place.offset + 8)
    manifest = dataclasses.replace(package.manifest, embedding=moved)
    rows, _ = checked(Package(package.folder, manifest), master)
    assert wrong(rows) == ["token embedding"]


def test_half_precision(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_random(tmp_path / "model", make_config("qwen2"), torch.float16)
    arguments = ["--model", str(folder), "--out", str(tmp_path / "out"), "--dtype", "fp16"]
    assert main([*arguments, "--layers", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["layer_check"]
    assert [row["name"] for row in rows] == ROWS
    assert max(row["cosine"] for row in rows) < 1e-3


@pytest.mark.parametrize("tied", [False, True])
def test_quantized_weights(tied: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Layers are held against transformers' on the very weights that codes stand for."""
    text = {"hidden_size": 64, "vocab_size": 128, "tie_word_embeddings": tied}
    config = make_config(text=text, tie_word_embeddings=tied)
    folder = write_random(tmp_path / "model", config)
    arguments = ["--model", str(folder), "--out", str(tmp_path / "out"), "--layers", "--json"]
    parts = ["--quantize", "int4", "--quantize-also", "lm_head" if tied else "lm_head,embedding"]
    assert main([*arguments, *parts]) == 0
    rows = json.loads(capsys.readouterr().out)["layer_check"]
    assert max(row["difference"] for row in rows) < 1e-3
    assert avl_check([str(tmp_path / "out"), "--layers"]) == 1
    assert "without quantized weights" in capsys.readouterr().err


def test_an_export_with_a_wrong_layer_is_not_kept(
    master: Path,
    tmp_path: Path,
    package_folder: Path,
    traced: None,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place = "layers.1.self_attn."
    edit = swap(f"{place}k_proj.weight", f"{place}v_proj.weight")
    change(load_package(package_folder), "decoder.0.onnx", edit)
    from avl_export import export

    def save(_: Any, path: Path) -> None:
        shutil.copy(package_folder / path.name, path)

    monkeypatch.setattr(export.ir, "save", save)
    monkeypatch.setattr(export, "check_package", lambda *_: None)
    assert main(["--model", str(master), "--out", str(tmp_path / "out"), "--layers"]) == 1
    told = capsys.readouterr()
    assert "found decoder layer 1 " in told.err
    assert [line for line in told.out.splitlines() if line.endswith("differs")]
    assert not (tmp_path / "out").exists()


def test_a_package_that_is_there(
    master: Path, master_package: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert avl_check([str(master_package), "--layers"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line[:34].strip() for line in lines[:-1]] == ["", *ROWS]
    assert lines[-1] == f"{len(ROWS)} layers and parts compared, none differs"
    assert avl_check([str(master_package), "--layers", "--json"]) == 0
    assert [row["name"] for row in json.loads(capsys.readouterr().out)["rows"]] == ROWS


def test_what_cannot_be_checked(
    master: Path,
    master_package: Path,
    package_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def line(command: Callable[[list[str]], int], *arguments: str) -> str:
        assert command([*arguments, "--layers"]) == 1
        (found,) = capsys.readouterr().err.splitlines()
        return found

    assert "expected a package folder" in line(avl_check, str(tmp_path / "none"))
    other = line(avl_check, str(master_package), "--model", "avl-tiny")
    assert "of another family or size" in other
    (package_folder / "vision.onnx").write_bytes(b"other")
    assert "changed since export" in line(avl_check, str(package_folder))
    out = str(tmp_path / "out")
    assert "--dtype fp32" in line(main, "--model", str(master), "--out", out, "--dtype", "bf16")
    for arguments in (["--layers", "--copy"], ["--layers", "--no-check"]):
        with pytest.raises(SystemExit) as stop:
            avl_check([str(master_package), *arguments])
        assert stop.value.code == 2
    with pytest.raises(SystemExit) as stop:
        main(["--model", str(master), "--out", out, "--layers", "--no-check"])
    assert stop.value.code == 2
    assert "leave one out" in capsys.readouterr().err


def test_streamed_weights_make_the_same_model(master: Path, master_package: Path) -> None:
    checkpoint = open_checkpoint(str(master))
    family = load_family(checkpoint, torch.float32)
    inputs = family.reference_inputs(check_prompt(load_package(master_package)))
    model: Any = empty_model(family)
    whole: Any = family.reference()
    with torch.no_grad():
        with streamed(model, checkpoint_loader(checkpoint, model)):
            found = model(**inputs, use_cache=False).logits
        assert torch.equal(found, whole(**inputs, use_cache=False).logits)
    assert {p.device.type for p in model.parameters()} == {"meta"}


def test_memory(tmp_path: Path) -> None:
    """The whole model takes 2.6 GB in fp32, and in ONNX Runtime as much again."""
    text = {
        "hidden_size": 2048,
        "intermediate_size": 5504,
        "num_hidden_layers": 12,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
    }
    config = make_config(text=text)
    folder = write_sparse(tmp_path / "wide", config)
    assert 2 * open_checkpoint(str(folder)).nbytes > 2.4e9
    found = export_size.measure(folder, tmp_path / "out", ["--layers"])
    assert found["peak_rss_bytes"] < 1.3e9


@given(st.integers(1, 12), st.integers(0, 6), st.randoms())
def test_matching_rows(rows: int, padding: int, random: Any) -> None:
    rng = np.random.default_rng(random.randrange(1 << 30))
    expected = rng.standard_normal((rows, 8)).astype(np.float32)
    places = rng.permutation(rows + padding)[:rows]
    found = np.zeros((rows + padding, 8), np.float32)
    found[places] = expected + 1e-4
    order = matching_rows(found, expected)
    assert order is not None
    np.testing.assert_array_equal(order, places)
    assert matching_rows(found * 3, expected) is None

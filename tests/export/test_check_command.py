"""avl-check without options: a package that is there, as an export checks it."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest

from avl_export.check.cli import main
from avl_export.cli import main as avl_export
from avl_runtime.package.package import MANIFEST, load_package
from export.checkpoints import make_config, write_random
from export.hub_server import serve, use
from export.test_compare import damage, swap


def test_a_right_package(
    master: Path, master_package: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(master_package)]) == 0
    lines = capsys.readouterr().out.splitlines()
    places = ("encoders ", "parked decoder.0 ", "parked decoder.1 ")
    assert all(line.startswith(place) for line, place in zip(lines[1:4], places, strict=True))
    assert re.fullmatch(r"\d+ outputs compared, none differs", lines[4])
    assert lines[5].startswith("check against transformers: largest logit difference ")
    assert len(lines) == 6
    assert main([str(master_package), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["against"], report["backends"], report["layers"]) == ("transformers", [], False)
    assert report["package"] == str(master_package) and report["quantization"] is None
    assert report["differs"] is None
    names = [row["name"] for row in report["rows"]]
    assert names[0] == "encoders features" and names[-1] == "parked decoder.1 logits"
    assert all(row["difference"] < 1e-4 < row["largest"] for row in report["rows"])


def test_what_is_fetched_is_told_in_its_own_name(
    master: Path,
    master_package: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with serve() as hub:
        use(hub, tmp_path / "cache", monkeypatch)
        hub.add("some/model", master)
        assert main([str(master_package), "--model", "some/model"]) == 0
    said = capsys.readouterr().err
    assert "avl-check: fetching model.safetensors" in said and "avl-export" not in said


@pytest.mark.parametrize(
    ("file", "one", "other", "where"),
    [
        ("vision.onnx", "k_proj", "q_proj", "the vision tower or the projector"),
        ("decoder.0.onnx", "k_proj", "v_proj", "decoder layer 0"),
        ("decoder.1.onnx", "k_proj", "v_proj", "decoder layer 2"),
    ],
)
def test_a_wrong_layer_is_named(
    file: str,
    one: str,
    other: str,
    where: str,
    package_folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    layer = 2 if file == "decoder.1.onnx" else 0
    names = (f"layers.{layer}.self_attn.{name}.weight" for name in (one, other))
    damage(package_folder, file, swap(*names))
    assert main([str(package_folder)]) == 1
    said = capsys.readouterr()
    assert said.err.splitlines()[-1].startswith("avl-check: expected the package to compute ")
    assert f"first in {where}; " in said.err
    assert any(line.endswith("differs") for line in said.out.splitlines())
    assert main([str(package_folder), "--json"]) == 1
    said = capsys.readouterr()
    report = json.loads(said.out)
    wrong = [row["name"] for row in report["rows"] if row["share"] > 1]
    assert report["differs"] == wrong[0]
    assert f"first in {where}; " in said.err


def test_quantized_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What codes themselves change is told beside it."""
    config = make_config(text={"hidden_size": 64, "intermediate_size": 96, "vocab_size": 100})
    folder = write_random(tmp_path / "model", config)
    out = tmp_path / "out"
    command = ["--model", str(folder), "--out", str(out), "--quantize", "int4", "--no-check"]
    assert avl_export([*command, "--block-size", "32"]) == 0
    capsys.readouterr()
    assert main([str(out), "--model", str(folder), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    worst = max(row["difference"] for row in report["rows"] if row["name"].endswith(" logits"))
    assert worst < 1e-4
    assert report["quantization"] > 1e-2


def test_bfloat16_needs_a_backend(
    master: Path, package_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = dataclasses.replace(load_package(package_folder).manifest, dtype="bf16")
    (package_folder / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    assert main([str(package_folder)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "found bf16" in line and "--backend" in line


@pytest.mark.parametrize("old", [["--package", "p", "--layers"], ["--backend", "ort-cpu"]])
def test_the_old_spelling_names_the_new_one(
    old: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as status:
        avl_export(old)
    assert status.value.code == 2
    assert "use avl-check PACKAGE" in capsys.readouterr().err

"""Weights are pinned by size and header; with --hash-weights by every byte."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from avl_export import cli
from avl_runtime import LVLM
from avl_runtime.cli.run import main as avl_run
from avl_runtime.package import PackageError, load_package

SHARD = "model.safetensors"


def export(model: Path, out: Path, *arguments: str) -> Path:
    assert cli.main(["--model", str(model), "--out", str(out), "--no-check", *arguments]) == 0
    return out


def change_a_weight(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[-3] ^= 1
    path.write_bytes(raw)


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("how", ["--hash-weights", "--copy"])
def test_a_changed_weight_is_seen(how: str, checkpoint: Path, tmp_path: Path) -> None:
    package = load_package(export(checkpoint, tmp_path / "out", how))
    (shard,) = package.manifest.weights.shards
    path = package.weights_folder / shard.path
    assert shard.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    package.check_shards(whole=True)
    change_a_weight(path)
    package.check_shards()
    with pytest.raises(PackageError, match="weights have changed since export"):
        package.check_shards(whole=True)


@pytest.mark.usefixtures("traced")
def test_no_hash_to_compare_with(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = export(checkpoint, tmp_path / "out")
    capsys.readouterr()
    assert avl_run([str(out), "Hello", "--verify"]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    with pytest.raises(PackageError, match="export with --hash-weights"):
        LVLM.load(out, verify=True)


@pytest.mark.usefixtures("traced")
def test_avl_run_verifies(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = export(checkpoint, tmp_path / "out", "--hash-weights")
    assert LVLM.load(out, verify=True).package.folder == out
    change_a_weight(checkpoint / SHARD)
    capsys.readouterr()
    assert avl_run([str(out), "Hello", "--verify"]) == 1
    assert "weights have changed" in capsys.readouterr().err

"""Weights are pinned by size, header and a sample; with --hash-weights by every byte."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from avl_export import cli
from avl_export.check.recheck import recheck
from avl_export.check.table import ignore
from avl_runtime import LVLM
from avl_runtime.cli.run import main as avl_run
from avl_runtime.package.package import MANIFEST, PackageError, load_package
from avl_runtime.package.shard_files import BLOCK, Compared, check_file, describe

SHARD = "model.safetensors"
CHANGED = "weights have changed since export"


def export(model: Path, out: Path, *arguments: str) -> Path:
    assert cli.main(["--model", str(model), "--out", str(out), "--no-check", *arguments]) == 0
    return out


def change_a_weight(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[-3] ^= 1
    path.write_bytes(raw)


def retrain(path: Path, part: str) -> None:
    """Other values in every tensor whose name holds `part`, in a file of the same size."""
    tensors, size = load_file(path), path.stat().st_size
    header = path.read_bytes()[:200]
    torch.manual_seed(1)
    for name, tensor in tensors.items():
        if part in name:
            tensor.add_(torch.randn_like(tensor) * 1e-3)
    save_file(tensors, path, {"format": "pt"})
    assert (path.stat().st_size, path.read_bytes()[:200]) == (size, header)


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("how", ["--hash-weights", "--copy"])
def test_a_changed_weight_is_seen(how: str, checkpoint: Path, tmp_path: Path) -> None:
    package = load_package(export(checkpoint, tmp_path / "out", how))
    (shard,) = package.manifest.weights.shards
    path = package.weights_folder / shard.path
    assert shard.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert package.check_shards(whole=True) == Compared(whole=path.stat().st_size)
    change_a_weight(path)
    with pytest.raises(PackageError, match=CHANGED):
        package.check_shards(whole=True)


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("part", ["", "projector", "norm.weight", "layers.1.self_attn.q_proj"])
@pytest.mark.parametrize("same_time", [False, True])
def test_retrained_weights_are_refused(
    part: str,
    same_time: bool,
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """By a default export's package, whatever part was trained, and whatever its file's time."""
    out, shard = export(checkpoint, tmp_path / "out"), checkpoint / SHARD
    LVLM.load(out)
    stat = shard.stat()
    retrain(shard, part)
    if same_time:  # as in images and archives that are made with one time for all files
        os.utime(shard, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(PackageError, match=CHANGED) as caught:
        LVLM.load(out)
    assert ("as old as that one" if same_time else "modified since") in str(caught.value)
    capsys.readouterr()
    assert avl_run([str(out), "Hello"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert CHANGED in line


@pytest.mark.usefixtures("traced")
def test_a_copy_of_the_same_weights_runs(checkpoint: Path, tmp_path: Path) -> None:
    out, shard = export(checkpoint, tmp_path / "out"), checkpoint / SHARD
    shutil.copyfile(shard, tmp_path / "copy")
    os.utime(tmp_path / "copy", ns=(0, 1_000_000_000))
    (tmp_path / "copy").replace(shard)
    assert load_package(out).check_shards().touched == 1
    LVLM.load(out)


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("touched", [False, True])
def test_verifying_a_default_export_says_what_it_did(
    touched: bool, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, shard = export(checkpoint, tmp_path / "out"), checkpoint / SHARD
    if touched:
        os.utime(shard, ns=(0, 1_000_000_000))
    capsys.readouterr()
    assert avl_run([str(out), "Hello", "--verify", "--backend", "ort-cpu"]) == 0
    line = next(one for one in capsys.readouterr().err.splitlines() if "sample" in one)
    assert line.startswith("avl: a sample of ")
    assert ("1 of its files modified" if touched else "no file modified") in line
    assert "--hash-weights" in line
    retrain(shard, "embed_tokens")
    with pytest.raises(PackageError, match=CHANGED):
        LVLM.load(out, verify=True)


@pytest.mark.usefixtures("traced")
def test_packages_of_before_have_no_sample(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They load as they did, and there is nothing to verify."""
    out = export(checkpoint, tmp_path / "out")
    manifest = json.loads((out / MANIFEST).read_text())
    for name in ("modified_ns", "sample_sha256"):
        del manifest["weights"]["shards"][0][name]
    (out / MANIFEST).write_text(json.dumps(manifest))
    LVLM.load(out)
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
    assert "read and found unchanged" in capsys.readouterr().err
    change_a_weight(checkpoint / SHARD)
    capsys.readouterr()
    assert avl_run([str(out), "Hello", "--verify"]) == 1
    assert "weights have changed" in capsys.readouterr().err


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("how", ["--hash-weights", "--copy"])
def test_a_check_of_a_package_reads_what_was_hashed(
    how: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = export(checkpoint, tmp_path / "out", how)
    package = load_package(out)
    path = package.weights_folder / SHARD
    raw = bytearray(path.read_bytes())
    place = unsampled(path)
    raw[place] ^= 1
    path.write_bytes(raw)
    package.check_shards()
    capsys.readouterr()
    with pytest.raises(PackageError, match=CHANGED):
        recheck(out, ignore, layers=True, model=str(checkpoint))


def unsampled(path: Path) -> int:
    """Where in the file a byte lies that no sample has."""
    shard = describe(path, SHARD, None, linked=True)
    raw, number = path.read_bytes(), 0
    for number in range(len(raw) - 1, 0, -BLOCK // 2):
        changed = path.with_name("changed")
        changed.write_bytes(raw[:number] + bytes([raw[number] ^ 1]) + raw[number + 1 :])
        try:
            check_file(changed, shard, False, Compared())
        except PackageError:
            continue
        finally:
            changed.unlink()
        return number
    raise AssertionError("the sample is the whole file")


def write_holes(path: Path, nbytes: int, tensors: int) -> int:
    """A safetensors file of zeros that takes no room; returns where its data starts."""
    each = nbytes // tensors // 2 * 2
    header = {
        f"t{number}": {
            "dtype": "F16",
            "shape": [each // 2],
            "data_offsets": [number * each, (number + 1) * each],
        }
        for number in range(tensors)
    }
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + tensors * each)
    return 8 + len(text)


@pytest.mark.parametrize("tensors", [1, 291, 20_000])
def test_the_sample_of_a_large_file_is_small(tensors: int, tmp_path: Path) -> None:
    path = tmp_path / SHARD
    write_holes(path, 14 << 30, tensors)
    shard, compared = describe(path, SHARD, None, linked=True), Compared()
    check_file(path, shard, False, compared)
    assert compared.sampled == path.stat().st_size
    assert compared.sample <= (4096 + 64) * BLOCK


def test_any_tensor_that_was_trained_is_seen(tmp_path: Path) -> None:
    """In a file of many tensors: one of them has other values."""
    path, count, each = tmp_path / SHARD, 300, 20_000
    start = write_holes(path, count * each, count)
    shard = describe(path, SHARD, None, linked=True)
    noise = np.random.default_rng(0).integers(1, 255, each, np.uint8).tobytes()
    for number in range(0, count, 7):
        with path.open("r+b") as file:
            file.seek(start + number * each)
            file.write(noise)
        with pytest.raises(PackageError, match=CHANGED):
            check_file(path, shard, False, Compared())
        with path.open("r+b") as file:
            file.seek(start + number * each)
            file.write(bytes(each))
    check_file(path, shard, False, Compared())


@pytest.mark.parametrize(
    "edit",
    [
        lambda h: h.update(t0=3),
        lambda h: h["t0"].update(data_offsets=[0]),
        lambda h: h["t0"].update(data_offsets=["0", "8"]),
        lambda h: h["t0"].update(data_offsets=[-4096, 8]),
        lambda h: h["t0"].update(data_offsets=[10**30, 10**31]),
        lambda h: h["t0"].pop("dtype"),
    ],
)
def test_a_header_that_lies(edit: Callable[[dict], None], tmp_path: Path) -> None:
    """A manifest may pin any header: what is no range of bytes is refused or not read."""
    path = tmp_path / SHARD
    header = {"t0": {"dtype": "F16", "shape": [4], "data_offsets": [0, 8]}}
    edit(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))
    try:
        describe(path, SHARD, None, linked=True)
    except PackageError as error:
        assert "safetensors header" in str(error)

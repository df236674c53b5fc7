"""TensorRT-RTX builds real engines, on a CPU, from the command line."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from avl_runtime.cli.build import main
from avl_runtime.engines import plan as planning
from avl_runtime.engines.jobs import REFUSED, Job, read_outcome
from avl_runtime.machine.libraries import Library
from avl_runtime.package.engine_sets import Limits
from avl_runtime.package.package import FileEntry, load_package
from engines.wide import write_wide

pytest.importorskip("tensorrt_rtx")
AS_TENSORRT = Path(__file__).parent / "as_tensorrt"
BACKEND = ["--backend", "tensorrt-rtx"]
MIB = 1 << 20


def run(capsys: pytest.CaptureFixture[str], folder: Path, *options: str) -> dict[str, Any]:
    status = main([str(folder), *BACKEND, "--json", *options])
    captured = capsys.readouterr()
    assert status == 0, captured.err
    report: dict[str, Any] = json.loads(captured.out)
    return report


@pytest.mark.parametrize(
    "options",
    [
        ("--dtype", "fp32"),
        ("--dtype", "fp16"),
        ("--dtype", "bf16"),
        ("--dtype", "fp16", "--quantize", "int4", "--block-size", "32"),
        ("--dtype", "fp16", "--quantize", "int8"),
    ],
    ids=["fp32", "fp16", "bf16", "int4", "int8"],
)
def test_avl_tiny(
    options: tuple[str, ...],
    tiny_as: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = shutil.copytree(tiny_as(*options), tmp_path / "tiny.avl")
    capsys.readouterr()
    report = run(capsys, folder, "--compute-capability", "89,120")
    (made,) = load_package(folder).manifest.engines
    assert (made.backend, made.targets, made.plugins) == ("tensorrt-rtx", (89, 120), False)
    assert made.folder.endswith("-sm89-sm120")
    assert [file.graph for file in made.files] == [
        "vision.onnx",
        "decoder.0.onnx",
        "decoder.1.onnx",
    ]
    for file in made.files:
        data = (folder / file.path).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (file.size, file.sha256)
    for graph, layers in zip(report["graphs"], (0, 2, 4), strict=True):
        kinds = graph["layers"]
        assert not any(kind.startswith("PLUGIN") for kind in kinds)
        if layers:
            # An attention has one softmax over all keys, behind three masks.
            assert kinds["SOFTMAX"] == layers
            assert kinds["SELECT"] == 3 * layers
            assert "ATTENTION_INPUT" not in kinds
        assert graph["unsupported"] == []
        # Mostly kernels at this size; the estimate must not be far off.
        assert 0.4 < graph["size"] / graph["estimate"]["engine"] < 1.3


def test_a_decoder_of_real_width(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two of LLaVA-1.5-7B's layers with random weights: equal ones would be stored once anyway."""
    from avl_export.cli import main as export

    checkpoint, folder = write_wide(tmp_path / "wide", layers=2, hidden=4096), tmp_path / "w.avl"
    options = ["--model", str(checkpoint), "--out", str(folder), "--dtype", "fp16", "--no-check"]
    assert export([*options, "--split", "1"]) == 0
    capsys.readouterr()
    for graph in run(capsys, folder, "--dry-run")["graphs"]:
        assert graph["peak_rss_bytes"] < 700 * MIB, "parsing maps weights, and reads none"
    graphs = {one["graph"]: one for one in run(capsys, folder)["graphs"]}
    for name in ("decoder.0.onnx", "decoder.1.onnx"):
        graph = graphs[name]
        weights = graph["weight_bytes"]
        assert weights > 375 * MIB
        # Two profiles and one copy of the weights, 5 % for everything else.
        assert weights < graph["size"] < 1.05 * weights
        assert graph["peak_rss_bytes"] < 1.2 * graph["estimate"]["build"] < 4096 * MIB
    shutil.rmtree(tmp_path)  # 1.5 GB


def test_a_dry_run_builds_nothing(fp16: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.read_bytes() for path in fp16.rglob("*") if path.is_file()}
    report = run(capsys, fp16, "--dry-run")
    assert {path: path.read_bytes() for path in fp16.rglob("*") if path.is_file()} == before
    decoder = report["graphs"][1]
    assert decoder["operators"]["Softmax"] == 2
    assert decoder["size"] == 0
    assert decoder["estimate"]["engine"] > decoder["weight_bytes"]
    assert decoder["estimate"]["scratch"] > 0
    assert main([str(fp16), *BACKEND, "--dry-run"]) == 0
    text = capsys.readouterr().out
    for part in ("decoder.1.onnx", "Softmax", "scratch", "2048 rows", "is its function body"):
        assert part in text


def test_a_length_that_does_not_arrive(fp16: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The first layer masks its cache by the second one's length: the lint, not the parser."""
    import onnx

    model = onnx.load(fp16 / "decoder.0.onnx", load_external_data=False)
    node = next(node for node in model.graph.node if node.op_type == "SplitCacheAttention")
    assert node.input[5] == "active_len.0"
    node.input[5] = "active_len.1"
    replace_file(fp16, "decoder.0.onnx", model.SerializeToString())
    wanted = "decoder.0.onnx: expected the input active_len.0 to be read, found that the parser"
    for more in ([], ["--dry-run"]):
        assert main([str(fp16), *BACKEND, *more]) == 1
        assert wanted in capsys.readouterr().err.splitlines()[-1]
    assert not (fp16 / "engines").exists()


def test_a_package_in_fp32_is_told_of_fp16(
    tiny_package: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tiny_package), *BACKEND, "--dry-run"]) == 0
    assert "exported with --dtype fp16 take half the memory" in capsys.readouterr().err


def test_unsupported_nodes_are_named(fp16: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import onnx

    model = onnx.parser.parse_model(
        '<ir_version: 11, opset_import: ["" : 23, "strange" : 1]> '
        "g (float16[n, 3, 168, 168] pixel_values) => (float16[n, 3, 168, 168] image_features) "
        "{ image_features = strange.Tower (pixel_values) }"
    )
    replace_file(fp16, "vision.onnx", model.SerializeToString())
    wanted = "strange::Tower that makes image_features"
    assert main([str(fp16), *BACKEND, "--dry-run"]) == 1
    assert f"not supported: {wanted}" in capsys.readouterr().out
    assert main([str(fp16), *BACKEND]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("avl-build: vision.onnx: expected nodes that tensorrt-rtx supports")
    assert wanted in lines[-1]
    assert not (fp16 / "engines").exists()


def replace_file(folder: Path, name: str, data: bytes) -> None:
    """Put another file into a package, and its size and hash into the manifest."""
    (folder / name).write_bytes(data)
    path = folder / "avl.json"
    manifest = json.loads(path.read_text())
    entry = FileEntry(name, len(data), hashlib.sha256(data).hexdigest())
    manifest["files"] = [
        {"path": entry.path, "size": entry.size, "sha256": entry.sha256}
        if one["path"] == name
        else one
        for one in manifest["files"]
    ]
    path.write_text(json.dumps(manifest))


def work(job: Job, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "avl_runtime.engines.worker"],
        input=job.to_json(),
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


def tensorrt_job(folder: Path, out: Path, plugins: bool) -> Job:
    return Job(
        package=str(folder),
        graph="decoder.0.onnx",
        backend="tensorrt",
        targets=(89,),
        plugins=plugins,
        limits=Limits(8, 64, 128, 2),
        out=str(out),
        timing_cache=str(out.with_name("cache") / "kernels.timing"),
    )


def test_tensorrt_through_the_same_code(fp16: Path, tmp_path: Path) -> None:
    """TensorRT-RTX under TensorRT's name: Polygraphy's other half, and a timing cache."""
    path = f"{AS_TENSORRT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    done = work(tensorrt_job(fp16, tmp_path / "a.engine", plugins=False), PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
    outcome = read_outcome(done.stdout)
    data = (tmp_path / "a.engine").read_bytes()
    assert (outcome.size, outcome.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert outcome.size > outcome.weight_bytes
    cache = tmp_path / "cache" / "kernels.timing"
    assert cache.is_file()
    again = work(tensorrt_job(fp16, tmp_path / "b.engine", plugins=False), PYTHONPATH=path)
    assert again.returncode == 0, again.stderr
    cache.write_bytes(b"not a timing cache")
    foreign = work(tensorrt_job(fp16, tmp_path / "c.engine", plugins=False), PYTHONPATH=path)
    assert foreign.returncode == 0, foreign.stderr
    assert cache.read_bytes() != b"not a timing cache"


@pytest.mark.parametrize(
    ("version", "options", "why"),
    [
        ("10.3.0", [], "TensorRT 10.3.0 has no ahead-of-time plugins, 10.9 has: "),
        ("11.4.0", ["--no-plugins"], "as asked, "),
    ],
)
def test_tensorrt_without_plugins_takes_the_body_and_says_so(
    version: str,
    options: list[str],
    why: str,
    fp16: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(AS_TENSORRT))
    monkeypatch.setattr(planning, "installed", lambda _: Library(version, 12))
    command = [str(fp16), "--backend", "tensorrt", "--dry-run", *options]
    assert main(command) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert first.endswith(f"; {why}attention is its function body")
    assert main([*command, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["plugins"], report["row_block"]) == (False, 8)
    for graph, layers in zip(report["graphs"][1:], (2, 4), strict=True):
        assert graph["layers"]["SOFTMAX"] == layers
        assert "SplitCacheAttention" not in graph["operators"]
        assert not any(kind.startswith("PLUGIN") for kind in graph["layers"])


def test_a_tensorrt_that_cannot_take_plugins(fp16: Path, tmp_path: Path) -> None:
    path = f"{AS_TENSORRT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    done = work(tensorrt_job(fp16, tmp_path / "a.engine", plugins=True), PYTHONPATH=path)
    assert done.returncode == REFUSED
    assert "expected TensorRT 10.9 or later" in done.stdout
    assert not (tmp_path / "a.engine").exists()

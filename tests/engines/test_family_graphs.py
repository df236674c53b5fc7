"""Every graph of the families of `engine_matrix` becomes an engine of TensorRT-RTX.

Precisions take turns here; `scripts/engine_matrix.py` builds all of them for each family, with
towers of real size (benchmarks/engine-matrix.json). Other families have the same kinds of encoders.
"""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from avl_export.cli import main as export
from avl_runtime.engines import run
from avl_runtime.engines.options import Options
from avl_runtime.engines.plan import make_plan
from avl_runtime.machine.probe import probe
from engines.test_build import replace_file
from families.every import CASES
from families.support import Case, write_checkpoint

pytest.importorskip("tensorrt_rtx")
MIB = 1 << 20
PRECISIONS = {
    "fp32": ["--dtype", "fp32"],
    "fp16": ["--dtype", "fp16"],
    "bf16": ["--dtype", "bf16"],
    "int4": ["--dtype", "fp16", "--quantize", "int4", "--block-size", "32"],
}
BUILT = [
    *(("llava_next", "fp32"), ("llava_onevision", "fp16"), ("video_llava", "fp32")),
    *(("internvl", "bf16"), ("qwen2_5_vl", "int4"), ("qwen3_vl", "fp16")),
]


def write_package(family: str, precision: str, folder: Path, *options: str) -> Path:
    """A family's first case, exported."""
    case: Case = CASES[family]
    write_checkpoint(case, folder / "model")
    package = folder / "package"
    arguments = ["--model", str(folder / "model"), "--out", str(package), "--no-check", *options]
    assert export([*arguments, "--split", "1", *PRECISIONS[precision]]) == 0
    return package


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """Maps a family and a precision to the package of its first case, exported once."""

    @functools.cache
    def exported(family: str, precision: str) -> Path:
        return write_package(family, precision, tmp_path_factory.mktemp("family"))

    return exported


@pytest.mark.parametrize(("family", "precision"), BUILT)
def test_all_graphs_become_engines(
    family: str, precision: str, packages: Callable[[str, str], Path], tmp_path: Path
) -> None:
    """With the profiles that avl-build takes by itself."""
    plan = make_plan(Options(packages(family, precision), "tensorrt-rtx"), probe())
    manifest = plan.package.manifest
    segments = {one.file: one.last_layer - one.first_layer for one in manifest.segments}
    encoders = [graph for graph in manifest.graphs if graph not in segments]
    assert len(encoders) == (2 if family == "video_llava" else 1)
    for graph in manifest.graphs:
        out = tmp_path / f"{graph}.engine"
        built = run._work(plan, graph, out)
        assert out.stat().st_size == built.outcome.size > built.outcome.weight_bytes
        assert built.outcome.checked
        assert not built.outcome.unsupported
        assert 0.3 < built.outcome.size / built.estimate.engine < 3
        assert built.estimate.scratch > (0 if graph in segments else 8 * MIB)
        if graph in segments:
            kinds = dict(built.outcome.layers)
            assert kinds["SOFTMAX"] == segments[graph]
            assert kinds["SELECT"] == 3 * segments[graph]


def attention(kind: str, head_dim: int) -> bytes:
    """The model of one attention over any number of pictures, as encoders have it."""
    import onnx

    shape = f"{kind}[n, 3, 16, {head_dim}]"
    number = {"float": onnx.TensorProto.FLOAT, "float16": onnx.TensorProto.FLOAT16}[kind]
    model = onnx.parser.parse_model(
        '<ir_version: 11, opset_import: ["" : 23]> '
        f"g ({shape} pixel_values) => ({shape} image_features) <float[1] half = {{0.5}}>"
        f"{{ c = Cast <to = {number}> (half) q = Mul (pixel_values, c) k = Add (pixel_values, c) "
        "v = Sub (pixel_values, c) image_features = Attention (q, k, v) }"
    )
    data: bytes = model.SerializeToString()
    return data


@pytest.mark.parametrize(
    ("precision", "kind", "head_dim"),
    [("fp32", "float", 16), ("fp32", "float", 96), ("fp16", "float16", 320)],
)
def test_attention_that_has_no_kernel_of_its_own(
    precision: str,
    kind: str,
    head_dim: int,
    packages: Callable[[str, str], Path],
    tmp_path: Path,
) -> None:
    """What TensorRT-RTX refuses with sizes that may change, unless it may be taken apart."""
    package = shutil.copytree(packages("llava_next", precision), tmp_path / "package")
    assert json.loads((package / "avl.json").read_text())["image"]["layout"]["kind"] == "anyres"
    replace_file(package, "vision.onnx", attention(kind, head_dim))
    plan = make_plan(Options(package, "tensorrt-rtx"), probe())
    built = run._work(plan, "vision.onnx", tmp_path / "vision.engine")
    assert dict(built.outcome.layers)["ATTENTION_INPUT"] == 1
    assert built.outcome.size > 0

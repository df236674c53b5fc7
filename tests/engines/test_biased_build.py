"""TensorRT-RTX builds decoders whose attention takes RESTORE's bias."""

from __future__ import annotations

from pathlib import Path

import pytest

from avl_plugins.graph_io import UNLIKE, blocks
from avl_runtime.engines import run
from avl_runtime.engines.graphs import prepare
from avl_runtime.engines.options import Options
from avl_runtime.engines.plan import make_plan
from avl_runtime.machine.probe import probe
from avl_runtime.package.engine_sets import ROW_BLOCK
from engines.test_family_graphs import write_package

pytest.importorskip("tensorrt_rtx")


def test_a_decoder_with_the_bias_becomes_an_engine(tmp_path: Path) -> None:
    """Of positions on three axes, with the profiles that avl-build takes by itself."""
    folder, axes = write_package("qwen2_5_vl", "fp16", tmp_path, "--restore"), 3
    plan = make_plan(Options(folder, "tensorrt-rtx"), probe())
    manifest = plan.package.manifest
    last = manifest.segments[-1]
    prepared = prepare(plan.package.read(last.file), manifest.dims, plan.plugins)
    assert prepared.inputs["row_standing"] == ("batch", "seq", axes + 1)
    shape = ("batch", UNLIKE, blocks("active"), ROW_BLOCK, axes + 1)
    assert prepared.inputs[f"active_standing.{last.first_layer}"] == shape
    # No If, which could not be recorded; the bias of one layer needs a table for each axis.
    assert not {"If", "NonZero"} & set(prepared.operators)
    layers = last.last_layer - last.first_layer
    assert prepared.operators["Log"] == 3 * layers
    out = tmp_path / "decoder.engine"
    built = run._work(plan, last.file, out).outcome
    assert out.stat().st_size == built.size > built.weight_bytes
    assert built.checked and not built.unsupported
    assert dict(built.layers)["SOFTMAX"] == layers

"""Every family's graphs are taken by TensorRT-RTX, and its encoders become engines."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from avl_export.cli import main as export
from avl_runtime.build import run
from avl_runtime.build.options import Options
from avl_runtime.build.plan import Plan, make_plan
from avl_runtime.machine import probe
from families.support import Case, write_checkpoint
from families.test_refusals import CASES

pytest.importorskip("tensorrt_rtx")
MIB = 1 << 20


@pytest.fixture(scope="session")
def plan_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Plan]:
    """Plans of a family's first case, in fp16."""
    made: dict[str, Path] = {}

    def plan(family: str) -> Plan:
        if family not in made:
            folder = tmp_path_factory.mktemp(family)
            case: Case = CASES[family]
            write_checkpoint(case, folder / "model")
            made[family] = folder / "package"
            arguments = ["--model", str(folder / "model"), "--out", str(made[family])]
            assert export([*arguments, "--no-check", "--dtype", "fp16", "--split", "1"]) == 0
        return make_plan(Options(made[family], "tensorrt-rtx", max_context=512), probe())

    return plan


@pytest.mark.parametrize("family", CASES)
def test_encoders_become_engines(
    family: str, plan_of: Callable[[str], Plan], tmp_path: Path
) -> None:
    plan = plan_of(family)
    manifest = plan.package.manifest
    encoders = [graph for graph in manifest.graphs if not graph.startswith("decoder")]
    assert len(encoders) == (2 if family == "video_llava" else 1)
    for graph in encoders:
        out = tmp_path / f"{graph}.engine"
        built = run._work(plan, graph, out)
        assert out.stat().st_size == built.outcome.size > built.outcome.weight_bytes
        assert not built.outcome.unsupported
        assert 0.3 < built.outcome.size / built.estimate.engine < 3
        assert built.estimate.scratch > 8 * MIB
    shutil.rmtree(tmp_path)


@pytest.mark.parametrize("family", CASES)
def test_decoders_are_taken(family: str, plan_of: Callable[[str], Plan]) -> None:
    plan = plan_of(family)
    for segment in plan.package.manifest.segments:
        found = run._work(plan, segment.file, None).outcome
        layers = segment.last_layer - segment.first_layer
        assert found.checked
        assert not found.unsupported
        assert dict(found.layers)["SOFTMAX"] == layers
        assert dict(found.layers)["SELECT"] == 3 * layers

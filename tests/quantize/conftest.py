"""Checkpoints and packages of the quantization tests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from avl_export import cli
from avl_export import export as exporting
from avl_export.export import Result, export
from avl_export.options import Options
from avl_export.plan.plan import Plan, make_plan
from avl_plugins.bodies.linear_ops import LINEARS
from avl_plugins.schema import Op
from export.checkpoints import make_config, write_random
from support.torchlib import always_one_table

__all__ = ["always_one_table"]

TEXT = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "vocab_size": 100}


@dataclass(frozen=True)
class Exported:
    """A package, and what was planned and found while it was made."""

    folder: Path
    plan: Plan
    result: Result


Exports = Callable[..., Exported]


def quantized_linears_of(nodes: Counter[str]) -> int:
    """How many linears the QuantizedLinears among the types of a graph's nodes are."""
    return sum(_weights(op) * nodes[op.name] for op in LINEARS if "Quantized" in op.name)


def linears_of(nodes: Counter[str]) -> int:
    """How many linears there are in all."""
    return nodes["Gemm"] + sum(_weights(op) * nodes[op.name] for op in LINEARS)


def _weights(op: Op) -> int:
    return sum(value.name.startswith(("weight", "codes")) for value in op.inputs)


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random checkpoint in fp32 whose decoder fits blocks of 32."""
    return write_random(tmp_path_factory.mktemp("small") / "model", make_config(text=TEXT))


@pytest.fixture(scope="session")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Exports:
    """Exports a checkpoint with options, once for the same ones."""
    made: dict[tuple[object, ...], Exported] = {}

    def run(model: Path, **options: object) -> Exported:
        key = (model, *sorted(options.items()))
        if key not in made:
            out = tmp_path_factory.mktemp("quantized") / "model.avl"
            plan = make_plan(Options(str(model), out, **options))  # type: ignore[arg-type]
            made[key] = Exported(out, plan, export(plan))
        return made[key]

    return run


@pytest.fixture(scope="session")
def tiny_int4(tiny_checkpoint: Path, exports: Exports) -> Exported:
    """avl-tiny with its decoder in INT4."""
    return exports(tiny_checkpoint, quantize="int4")


@pytest.fixture(scope="session")
def tiny_int8(tiny_checkpoint: Path, exports: Exports) -> Exported:
    """avl-tiny with everything in INT8."""
    also = ("embedding", "lm_head", "vision")
    return exports(tiny_checkpoint, quantize="int8", quantize_also=also)


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write empty graphs instead of tracing: for tests that are about weights."""

    def save(_model: Any, path: Path) -> None:
        path.write_bytes(b"")

    for name in ("trace_encoder", "trace_segment", "bind", "finish", "keep_rows"):
        monkeypatch.setattr(exporting, name, lambda *_: None)
    monkeypatch.setattr(exporting.ir, "save", save)


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run avl-export, expect exit 1 and nothing written; returns its last line."""

    def run(model: Path, *arguments: str) -> str:
        before = {p.name for p in tmp_path.iterdir()}
        status = cli.main(["--model", str(model), "--out", str(tmp_path / "out"), *arguments])
        lines = capsys.readouterr().err.splitlines()
        assert status == 1
        assert all(line.startswith("avl-export: ") for line in lines)
        assert not any(part in line for line in lines[:-1] for part in ("expected", "found"))
        assert {p.name for p in tmp_path.iterdir()} == before
        return lines[-1]

    return run

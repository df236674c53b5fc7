"""Packages to build engines of."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from avl_export.cli import main as export
from avl_export.graph.trace import Traced
from support.torchlib import always_one_table
from support.traced import traced_once

__all__ = ["always_one_table"]


@pytest.fixture(scope="session")
def tiny_as(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """avl-tiny exported with these options, once each."""
    made: dict[tuple[str, ...], Path] = {}
    graphs: dict[Any, Traced] = {}

    def package(*options: str) -> Path:
        if options not in made:
            out = tmp_path_factory.mktemp("tiny") / "tiny.avl"
            arguments = ["--model", str(tiny_checkpoint), "--out", str(out), "--no-check"]
            with traced_once(graphs):
                assert export([*arguments, *options]) == 0
            made[options] = out
        return made[options]

    return package


@pytest.fixture
def fp16(tiny_as: Callable[..., Path], tmp_path: Path) -> Path:
    """A copy of avl-tiny in fp16, to change."""
    return shutil.copytree(tiny_as("--dtype", "fp16"), tmp_path / "tiny.avl")

"""Checkpoints with random weights, written once a session."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from avl_export.cli import main as avl_export_main
from avl_runtime import LVLM
from support.random_llava import write_checkpoint
from support.torchlib import always_one_table

__all__ = ["always_one_table"]

Checkpoints = Callable[[int], Path]


@pytest.fixture(scope="session")
def random_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    """Maps a seed to the folder of its checkpoint."""
    written: dict[int, Path] = {}

    def folder(seed: int) -> Path:
        if seed not in written:
            written[seed] = tmp_path_factory.mktemp(f"random-llava-{seed}")
            write_checkpoint(written[seed], seed)
        return written[seed]

    return folder


@pytest.fixture(scope="session")
def load(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., LVLM]:
    """Exports a checkpoint in float32, once a session, and loads the package."""

    @cache
    def exported(checkpoint: Path, split: str = "2") -> LVLM:
        out = tmp_path_factory.mktemp("packages") / "package.avl"
        arguments = ["--model", str(checkpoint), "--out", str(out), "--dtype", "fp32"]
        assert avl_export_main([*arguments, "--split", split, "--no-check"]) == 0
        return LVLM.load(out, backend="ort-cpu", threads=1)

    return exported

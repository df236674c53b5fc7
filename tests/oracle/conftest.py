"""Checkpoints with random weights, written once a session."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

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

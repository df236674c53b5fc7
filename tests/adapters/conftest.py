"""Fixtures of the adapter tests."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from export.checkpoints import make_config, write_random
from export.conftest import refused
from support.torchlib import always_one_table

__all__ = ["always_one_table", "refused"]


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random checkpoint whose matrices are apart."""
    config = make_config(text={"tie_word_embeddings": False}, tie_word_embeddings=False)
    return write_random(tmp_path_factory.mktemp("base") / "base", config)


@pytest.fixture(scope="session")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random checkpoint whose embedding is its output matrix."""
    config = make_config(text={"tie_word_embeddings": True}, tie_word_embeddings=True)
    return write_random(tmp_path_factory.mktemp("tied") / "tied", config)


@pytest.fixture(scope="session")
def blocks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random checkpoint whose decoder fits blocks of 32."""
    sizes = {"hidden_size": 64, "intermediate_size": 96, "vocab_size": 100}
    return write_random(tmp_path_factory.mktemp("blocks") / "blocks", make_config(text=sizes))

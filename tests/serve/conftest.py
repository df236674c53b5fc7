"""A real server process with avl-tiny, shared by the tests of a run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from avl_runtime.serve.decoding.processes import Decoders
from avl_runtime.serve.limits import Limits
from support.server import KEY, Running, started


@pytest.fixture(scope="session")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("keys") / "keys.txt"
    file.write_text(f"another-key-0123456789\n\n{KEY}\n")
    return file


@pytest.fixture(scope="session")
def decoders() -> Iterator[Decoders]:
    """Processes that decode pictures, as a server has them."""
    found = Decoders(2, Limits().pixels, Limits().body)
    yield found
    found.close()


@pytest.fixture(scope="session")
def server(tiny_package: Path, key_file: Path) -> Iterator[Running]:
    options = "--backend ort-cpu --running 2 --queue 1 --choices 2 --max-body 1000000 --rest 0.5"
    with started(tiny_package, *options.split(), "--api-key", str(key_file)) as running:
        yield running
    text = "".join(running.lines)
    assert "Traceback" not in text and '"status": 500' not in text, text

"""Processes for kernels: some that interpret them, one that compiles them."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

import pytest

from interpreter import interpreters


@pytest.fixture(scope="session")
def interpreting() -> Iterator[ProcessPoolExecutor]:
    with interpreters(2) as pool:
        yield pool

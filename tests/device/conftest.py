"""A process in which kernels are interpreted, and packages to run there."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

import pytest

from interpreter import interpreters


@pytest.fixture(scope="session")
def interpreting() -> Iterator[ProcessPoolExecutor]:
    with interpreters(1) as pool:
        yield pool

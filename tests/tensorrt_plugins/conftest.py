"""A process in which `tensorrt` is tensorrt-lean and kernels are interpreted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from interpreter import interpreters
from tensorrt_plugins import contract

Remote = Callable[..., Any]


@pytest.fixture(scope="session")
def remote() -> Iterator[Remote]:
    """Calls a function of `contract` over there."""
    pytest.importorskip("tensorrt_lean", reason="has no wheels for this machine")
    with interpreters(1) as pool:
        pool.submit(contract.use_lean).result()
        yield lambda function, *arguments: pool.submit(function, *arguments).result()

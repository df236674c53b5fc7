"""torch's table of translations to ONNX, listed once for all exports of a test run."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture(scope="session")
def one_table() -> Iterator[None]:
    """Every graph that is exported gets a copy of one table.

    torch lists its 500 translations anew for each graph, which takes half a second.
    """
    from torch.onnx._internal.exporter import _registration  # three seconds: only where one exports

    registry: Any = _registration.ONNXRegistry
    tables = functools.cache(registry.from_torchlib)

    def copied(*opset: int, **named: int) -> Any:
        table = copy.copy(tables(*opset, **named))
        table.functions = {name: list(known) for name, known in table.functions.items()}
        return table

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "from_torchlib", staticmethod(copied))
        yield


@pytest.fixture(autouse=True, scope="session")
def always_one_table(one_table: None) -> None:
    """For folders whose conftest has this: their tests export by themselves."""

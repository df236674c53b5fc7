"""torch's table of translations to ONNX, listed once for all exports of a test run."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from typing import Any

import pytest
from torch.onnx._internal.exporter import _registration


@pytest.fixture(autouse=True, scope="session")
def one_table() -> Iterator[None]:
    """Every graph that is exported gets a copy of one table, for folders whose conftest has this.

    torch lists its 500 translations anew for each graph, which takes half a second.
    """
    registry: Any = _registration.ONNXRegistry
    tables = functools.cache(registry.from_torchlib)

    def copied(*opset: int, **named: int) -> Any:
        table = copy.copy(tables(*opset, **named))
        table.functions = {name: list(known) for name, known in table.functions.items()}
        return table

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "from_torchlib", staticmethod(copied))
        yield

"""The library of CPU kernels, as it was installed."""

from __future__ import annotations

from pathlib import Path

import pytest

from avl_plugins import cpu
from avl_plugins.cpu.build import CompileError, compiler


@pytest.fixture(scope="session")
def kernels() -> Path:
    """Where there is a C compiler, an installation without the library is a fault."""
    try:
        compiler()
    except CompileError as error:
        pytest.skip(str(error))
    library = cpu.library()
    assert library is not None, "install avl again"
    return library

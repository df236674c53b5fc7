"""Cases of a family's tests as checkpoints, each made once a session."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from families.support import Case, Made
from support.torchlib import always_one_table

__all__ = ["always_one_table"]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that takes `made` runs once for each of its class's cases."""
    if "made" in metafunc.fixturenames:
        cases = metafunc.cls.cases
        ids = [case.name for case in cases]
        metafunc.parametrize("made", cases, indirect=True, ids=ids, scope="session")


@pytest.fixture(scope="session")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Case], Made]:
    """Maps a case to its checkpoint."""
    done: dict[Case, Made] = {}

    def checkpoint(case: Case) -> Made:
        if case not in done:
            done[case] = Made(case, tmp_path_factory.mktemp("family"))
        return done[case]

    return checkpoint


@pytest.fixture(scope="session")
def made(request: pytest.FixtureRequest, make: Callable[[Case], Made]) -> Made:
    """The checkpoint of the case that a test is run for."""
    return make(request.param)

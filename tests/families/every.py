"""Every family's tests and a small checkpoint of it, for tests elsewhere."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping

import families
from families.shared import FamilyTests
from families.support import Case

USERS = ("test_refusals",)  # of what is found here


def tests_of_families() -> Mapping[str, type[FamilyTests]]:
    """model_type -> the class that inherits what all must hold, of each family that has one."""
    found: dict[str, type[FamilyTests]] = {}
    for module in pkgutil.iter_modules(families.__path__):
        if module.name.startswith("test_") and module.name not in USERS:
            for value in vars(importlib.import_module(f"families.{module.name}")).values():
                if isinstance(value, type) and issubclass(value, FamilyTests):
                    for case in getattr(value, "cases", ()):
                        found.setdefault(case.config.model_type, value)
    return found


TESTS = tests_of_families()
CASES: Mapping[str, Case] = {name: tests.cases[0] for name, tests in TESTS.items()}

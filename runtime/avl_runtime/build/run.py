"""Builds the engines of a package, all of them or none."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from avl_runtime.build.estimate import Estimate, estimate
from avl_runtime.build.jobs import Job, Outcome, read_outcome
from avl_runtime.build.options import BuildError, Options
from avl_runtime.build.plan import Plan
from avl_runtime.build.worker import REFUSED
from avl_runtime.engine_sets import EngineFile, EngineSet
from avl_runtime.package import MANIFEST, Package, load_package

MODULE = "avl_runtime.build.worker"


@dataclass(frozen=True, slots=True)
class Built:
    """A graph's outcome, and what was expected of it."""

    graph: str
    outcome: Outcome
    estimate: Estimate

"""Fixtures of the export tests."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from export.checkpoints import make_config, write_random
from support.torchlib import always_one_table

__all__ = ["always_one_table"]

PROGRESS = tuple(f"avl-export: {doing}" for doing in ("tracing", "copying", "fetching", "hashing"))


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def master(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random checkpoint; tests that change it take `checkpoint`."""
    return write_random(tmp_path_factory.mktemp("master") / "model", make_config())


@pytest.fixture
def checkpoint(master: Path, tmp_path: Path) -> Path:
    """A copy of `master` to damage."""
    return shutil.copytree(master, tmp_path / "model")


@pytest.fixture(scope="session")
def master_package(master: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`master` exported; tests that change it take `package_folder`."""
    from avl_export.export import export
    from avl_export.options import Options
    from avl_export.plan.plan import make_plan

    out = tmp_path_factory.mktemp("package") / "out"
    export(make_plan(Options(str(master), out)))
    return out


@pytest.fixture
def package_folder(master_package: Path, tmp_path: Path) -> Path:
    """A copy of `master_package` to damage."""
    return shutil.copytree(master_package, tmp_path / "package")


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run avl-export, expect exit 1, one line and nothing written; returns that line."""
    from avl_export.cli import main

    def run(model: Path | str, *arguments: str) -> str:
        before = {p.name for p in tmp_path.iterdir()}
        capsys.readouterr()  # what was said before is none of its lines
        status = main(["--model", str(model), "--out", str(tmp_path / "out"), *arguments])
        lines = [
            line for line in capsys.readouterr().err.splitlines() if not line.startswith(PROGRESS)
        ]
        assert status == 1
        assert len(lines) == 1, lines
        assert lines[0].startswith("avl-export: ")
        assert {p.name for p in tmp_path.iterdir()} == before
        return lines[0]

    return run


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch, master_package: Path) -> None:
    """Take graphs from `master_package` instead of tracing: for tests that are about files."""
    from avl_export import export

    def save(_model: Any, path: Path) -> None:
        path.write_bytes((master_package / path.name).read_bytes())

    for name in ("trace_encoder", "trace_segment", "bind", "finish", "keep_rows"):
        monkeypatch.setattr(export, name, lambda *_: None)
    monkeypatch.setattr(export.ir, "save", save)

"""The programs of docs/tensorrt.md, with TensorRT-RTX in TensorRT's place and without plugins."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("tensorrt_rtx")
DOCUMENT = Path(__file__).parents[2] / "docs" / "tensorrt.md"
AS_TENSORRT = Path(__file__).parent / "as_tensorrt"
PROFILES, BUILD, NETWORK, PLAIN = re.findall(
    r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL
)
COMMANDS = re.findall(r"^ {4}(polygraphy .*)$", DOCUMENT.read_text(), re.MULTILINE)
ENGINE = "decoder.0.plan"


def without_plugins(program: str) -> str:
    """As the document says: another file, and nothing registered."""
    kept = [line for line in program.splitlines() if "register" not in line]
    changed = "\n".join(kept).replace("pkg/decoder", "pkg/plain.decoder")
    assert changed != program
    return changed


@pytest.fixture(scope="module")
def folder(tiny_as: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the document's files lie, with the plain graphs of its own program."""
    place = tmp_path_factory.mktemp("documented")
    shutil.copytree(tiny_as("--dtype", "fp16", "--copy"), place / "pkg")
    (place / "profiles.py").write_text(PROFILES)
    (place / "network.py").write_text(without_plugins(NETWORK))
    run(place, sys.executable, "-c", PLAIN)
    return place


def run(place: Path, *command: str) -> None:
    path = f"{AS_TENSORRT}{os.pathsep}{place}"
    done = subprocess.run(
        command,
        cwd=place,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("way", ["python", "polygraphy"])
def test_an_engine_is_built(way: str, folder: Path) -> None:
    if way == "python":
        run(folder, sys.executable, "-c", without_plugins(BUILD))
    else:
        (command,) = COMMANDS
        program, *arguments = command.split()
        run(folder, str(Path(sys.executable).with_name(program)), *arguments)
    engine = folder / ENGINE
    # Its weights, in fp16, and kernels: once, although there are two profiles.
    assert 1_500_000 < engine.stat().st_size < 20_000_000
    engine.unlink()

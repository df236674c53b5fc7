"""The runtime needs neither torch nor transformers nor onnx: here they cannot be imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import avl_export
from avl_export.cli import main as avl_export_main

AVL_TINY = Path(avl_export.__file__).parent / "models" / "avl-tiny"

BLOCKER = """
import sys
from importlib.abc import MetaPathFinder

class Blocker(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ImportError(f"{name} is blocked in this test")

BLOCKED = {"torch", "transformers", "onnx", "onnxscript", "safetensors", "avl_export"}
sys.meta_path.insert(0, Blocker())
"""


def run_blocked(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", BLOCKER + code, *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_blocker_blocks() -> None:
    for name in ("torch", "transformers", "onnx"):
        result = run_blocked(f"import {name}")
        assert result.returncode == 1
        assert "blocked in this test" in result.stderr


@pytest.mark.parametrize(
    "module",
    [
        "avl_plugins.policies",
        "avl_plugins.reference",
        "avl_runtime",
        "avl_runtime.execute.device.trusted",
        "avl_runtime.bench.own",
        "avl_runtime.cli.bench",
        "avl_runtime.cli.build",
        "avl_runtime.cli.doctor",
        "avl_runtime.cli.run",
        "avl_runtime.serve.run",
    ],
)
def test_modules_import(module: str) -> None:
    result = run_blocked(f"import {module}")
    assert result.returncode == 0, result.stderr


def test_a_package_runs_under_every_kind_of_policy(tmp_path: Path) -> None:
    package = tmp_path / "avl-tiny.avl"
    assert avl_export_main(["--model", str(AVL_TINY), "--out", str(package), "--no-check"]) == 0
    result = run_blocked(
        """
from avl_runtime import LVLM
import numpy as np
model = LVLM.load(sys.argv[1], backend="ort-cpu", threads=1)
image = np.zeros((168, 168, 3), np.uint8)
for policy in ("dense", "fastv", "avl", "avl+fastv"):
    result = model.generate("Read.", images=[image], policy=policy, max_new_tokens=5)
    assert 1 <= len(result.token_ids) <= 5
""",
        str(package),
    )
    assert result.returncode == 0, result.stderr

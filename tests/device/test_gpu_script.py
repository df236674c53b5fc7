"""The script that checks backends on a GPU, on the stand-in and without any."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import gpu_decode
from avl_runtime import LVLM
from device.loop_cases import on_stand_in


def test_on_the_stand_in(tiny: LVLM, tiny_package: Path, tmp_path: Path) -> None:
    model, device = on_stand_in(tiny_package, tmp_path / "made")
    found = gpu_decode.check(model, tiny, ["avl", "fastv"], 6)
    assert list(found) == ["avl", "fastv"]
    for row in found.values():
        assert row["same_tokens"] and row["same_without_graphs"]
        assert 0 < row["logit_difference"] < 2e-3
    assert device.done["replay"]


def test_what_does_not_load_is_listed(
    tiny_package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "report.json"
    arguments = [str(tiny_package), "--backends", "tensorrt", "--json", str(target)]
    assert gpu_decode.main(arguments) == 0
    assert "tensorrt: not run: " in capsys.readouterr().out
    assert "avl-build" in json.loads(target.read_text())["tensorrt"]["not run"]

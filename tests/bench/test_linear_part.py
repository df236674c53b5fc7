"""scripts/linear_part.py: what it compares, not how fast that is."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest

from avl_plugins import cpu
from linear_part import Layer, compared, measure

SMALL = Layer(hidden=128, intermediate=256)


def test_ratios_are_of_the_same_round() -> None:
    found = compared({"amx": [1, 2, 9], "vnni": [2, 8, 9], "body": [10, 4, 90]})
    assert found["ms"] == {"amx": 2, "vnni": 8, "body": 10}
    assert found["amx_over_vnni"] == 0.5  # of 0.5, 0.25 and 1
    assert found["amx_over_body"] == 0.1  # of 0.1, 0.5 and 0.1


@pytest.mark.parametrize("bits", [4, 8])
def test_each_way_is_the_one_that_it_is_called(
    amx_kernel: Path, monkeypatch: pytest.MonkeyPatch, bits: Literal[4, 8]
) -> None:
    monkeypatch.setenv(cpu.AMX_SWITCH, "off")  # by the user, which is not what a way means
    found = measure(SMALL, bits, (1, 100), threads=1, rounds=2)
    few, many = (found[rows]["error"] for rows in ("1", "100"))
    assert few["amx"] == few["vnni"]
    assert 0.001 < many["amx"] < 0.004 < many["vnni"] < 0.01
    assert 0.004 < many["body"] < 0.01

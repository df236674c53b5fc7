"""The committed measurements: what the defaults rest on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from avl_export.options import METHODS
from avl_export.quantize.blocks import BEST
from avl_export.quantize.spec import DEFAULT_BLOCK
from quantization import VARIANTS, table

REPORT = json.loads((Path(__file__).parents[2] / "benchmarks/quantization.json").read_text())
FLOAT, *QUANTIZED = REPORT["variants"]


def found(bits: int, method: str, block: int | None) -> dict[str, Any]:
    """The variant with only the decoder quantized."""
    (one,) = [
        v
        for v in QUANTIZED
        if (v["bits"], v["method"], v["block_size"]) == (bits, method, block)
        and v["parts"] == ["decoder"]
    ]
    return dict(one)


def test_it_is_of_the_script() -> None:
    assert len(REPORT["variants"]) == len(VARIANTS)
    assert REPORT["samples_per_task"] >= 100
    assert table(REPORT).count("\n") == len(VARIANTS) + 1


@pytest.mark.parametrize("block", [32, DEFAULT_BLOCK])
def test_the_default_method_has_the_least_error(block: int) -> None:
    default = found(4, BEST[4], block)
    for method in set(METHODS) - {BEST[4]}:
        assert default["output_error"] < 0.97 * found(4, method, block)["output_error"]


def test_the_default_of_8_bits_loses_nothing() -> None:
    int8, int4 = found(8, BEST[8], None), found(4, BEST[4], DEFAULT_BLOCK)
    assert int8["divergence"] < 0.1 * int4["divergence"]
    assert int8["output_error"] < 0.1 * int4["output_error"]


@pytest.mark.parametrize("task", ["caption", "vqa", "ocr"])
def test_scores_hold(task: str) -> None:
    for variant in QUANTIZED:
        assert variant["scores"][task] >= 0.97 * FLOAT["scores"][task]
        assert variant["perplexity"] < 1.01 * FLOAT["perplexity"]


def test_codes_are_faster() -> None:
    times = REPORT["linear_ms"]
    assert times["int4"] < 0.5 * times["none"]
    assert times["int8"] < 0.5 * times["none"]

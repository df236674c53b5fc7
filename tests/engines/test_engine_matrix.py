"""The record of engines with towers of real size names every family of its script."""

from __future__ import annotations

import json
from pathlib import Path

from engine_matrix import MEASURED, PRECISIONS

RECORD = Path(__file__).parents[2] / "benchmarks" / "engine-matrix.json"


def test_everything_was_built() -> None:
    families = json.loads(RECORD.read_text())["families"]
    assert families.keys() == set(MEASURED)
    for family, found in families.items():
        assert list(found) == list(PRECISIONS)
        for one in found.values():
            assert one["built"], one
            names = [graph["graph"] for graph in one["graphs"]]
            assert names[-2:] == ["decoder.0.onnx", "decoder.1.onnx"]
            assert len(names) == (4 if family == "video_llava" else 3)
            assert all(graph["size"] > graph["weight_bytes"] > 0 for graph in one["graphs"])

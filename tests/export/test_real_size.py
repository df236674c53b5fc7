"""Exports of real width: what they may take and write. Fewer layers here than in the benchmark."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import export_size
from avl_export.checkpoint.aliases import HUB_IDS

RECORD = Path(__file__).parents[2] / "benchmarks" / "export-size.json"
# Of families' sizes those that people run most.
MOST_USED = ("internvl3.5-8b", "smolvlm2-2.2b", "ministral-3-8b", "qwen2-vl-7b", "glm-4.6v-flash")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """The benchmark on LLaVA-1.5-7B's shape with 3 of its 32 decoder layers."""
    path = tmp_path_factory.mktemp("size") / "report.json"
    options = ["--models", "llava-7b", "--layers", "3", "--repeats", "1", "--json", str(path)]
    returned = export_size.main([*options, "--", "--split", "1"])
    assert json.loads(path.read_text()) == returned
    return returned


def test_memory_and_bytes(report: dict) -> None:
    found = report["models"]["llava-7b"]
    assert found["checkpoint_bytes"] > 2.3e9
    assert found["checkpoint_disk_bytes"] < 2e6
    assert found["peak_rss_bytes"]["max"] < 0.8e9
    assert 1e5 < found["graph_bytes"]["max"] <= found["package_bytes"]["max"] < 5e6
    assert report["arguments"] == ["--split", "1"]
    (run,) = found["runs"]
    assert run["user_s"] > 0
    assert run["wall_s"] > 0


def test_the_record_is_of_whole_models(report: dict) -> None:
    """The committed figures come from this script, and keep within what is promised."""
    record = json.loads(RECORD.read_text())
    assert record.keys() == report.keys()
    assert record["layers"] is None
    assert record["arguments"] == []
    assert {*MOST_USED, "llava-7b", "llava-13b"} <= record["models"].keys()
    for alias, found in record["models"].items():
        assert alias in HUB_IDS
        assert found.keys() == report["models"]["llava-7b"].keys()
        assert len(found["runs"]) >= 3
        assert found["package_bytes"]["max"] <= 5e6
        assert found["peak_rss_bytes"]["max"] <= 0.8e9
        assert found["wall_s"]["median"] <= 20

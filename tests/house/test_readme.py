"""Figures in the README are those of the committed JSON files."""

from __future__ import annotations

import json
from pathlib import Path

from overhead import sentence
from quality import table

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def test_the_quality_table_is_the_measured_one() -> None:
    report = json.loads((ROOT / "benchmarks/quality.json").read_text())
    assert table(report["policies"]) in README
    assert f"{report['samples_per_task']} held-out samples a task" in README


def test_the_overhead_is_the_measured_one() -> None:
    report = json.loads((ROOT / "benchmarks/overhead.json").read_text())
    assert sentence(report) in README


def test_pictures_and_files_named_are_there() -> None:
    for path in ("docs/heatmap.png", "samples/page.png", "samples/scene.png"):
        assert path in README
        assert (ROOT / path).is_file()

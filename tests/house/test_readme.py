"""Figures in the README are those of the committed JSON files."""

from __future__ import annotations

import json
from pathlib import Path

import attention_part
import bench_targets
import build_7b
import export_size
import quantization
from avl_export.aliases import BUNDLED, HUB_IDS, known_files
from avl_export.families import SUPPORTED
from avl_runtime.evaluate.report import table
from bench_targets import targets
from overhead import sentence

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def test_the_quality_table_is_the_measured_one() -> None:
    report = json.loads((ROOT / "benchmarks/evaluation.json").read_text())
    assert table(report["policies"]) in README
    assert f"on avl-tiny, {report['samples_per_task']} held-out samples a task" in README


def test_the_table_of_quantization_is_the_measured_one() -> None:
    report = json.loads((ROOT / "benchmarks/quantization.json").read_text())
    assert quantization.table(report) in README
    assert f"{report['samples_per_task']} held-out samples a task: perplexity" in README


def test_the_overhead_is_the_measured_one() -> None:
    report = json.loads((ROOT / "benchmarks/overhead.json").read_text())
    assert sentence(report) in README


def test_the_size_and_time_of_exports_are_the_measured_ones() -> None:
    report = json.loads((ROOT / "benchmarks/export-size.json").read_text())
    assert export_size.sentence(report) in README


def test_the_size_of_a_quantized_package_is_the_measured_one() -> None:
    report = json.loads((ROOT / "benchmarks/quantize-size.json").read_text())
    assert report["arguments"] == ["--quantize", "int4"] and report["layers"] is None
    assert report["models"]["llava-7b"]["peak_rss_bytes"]["max"] < 1.5e9
    assert export_size.quantized_sentence(report) in README


def test_the_build_of_a_7b_model_is_the_measured_one() -> None:
    report = json.loads((ROOT / "benchmarks/build-7b.json").read_text())
    found = report["runs"]["int4"]
    assert report["layers"] is None and found["engine_over_weights"] < 1.05
    assert found["build_peak_rss_bytes"] < 24 << 30
    assert max(found["export_peak_rss_bytes"], found["dry_run_peak_rss_bytes"]) < 2 << 30
    assert build_7b.sentence(report) in README


def test_the_memory_of_a_check_by_layers_is_the_measured_one() -> None:
    report = json.loads((ROOT / "benchmarks/check-layers.json").read_text())
    assert "--layers" in report["arguments"] and report["layers"] is None
    peak = report["models"]["llava-7b"]["peak_rss_bytes"]["max"]
    assert peak < 8e9
    assert f"{peak / 1e9:.1f} GB at the peak for the full size of `llava-7b`" in README


def test_the_speed_is_the_measured_one() -> None:
    report = json.loads((ROOT / "benchmarks/bench-targets.json").read_text())
    records = {
        path.stem.removeprefix("bench-"): json.loads(path.read_text())
        for path in (ROOT / "benchmarks").glob("bench-*.json")
        if path.stem != "bench-targets"
    }
    attention = json.loads((ROOT / "benchmarks/attention-part.json").read_text())
    assert targets(records, attention) == report["targets"]
    churns = json.loads((ROOT / "benchmarks/churn.json").read_text())
    assert attention_part.sentence(attention, churns) in README
    assert bench_targets.table(report["targets"]) in README
    assert bench_targets.computed(records["s1-computed"]) in README
    assert bench_targets.spread(records["s1"]) in README


def test_the_table_of_models_is_complete() -> None:
    rows = [line for line in README.splitlines() if line.startswith("| ") and "(`" in line]
    for model_type in SUPPORTED:
        assert sum(f"`{model_type}`" in row for row in rows) == 1
    for alias in (*BUNDLED, *HUB_IDS):
        kind = "llava" if alias in BUNDLED else known_files(alias)["config.json"]["model_type"]
        (row,) = (row for row in rows if f"`{alias}`" in row)
        assert f"`{kind}`" in row


def test_pictures_and_files_named_are_there() -> None:
    for path in (
        "docs/heatmap.png",
        "docs/evaluation.png",
        "samples/page.png",
        "samples/scene.png",
    ):
        assert path in README
        assert (ROOT / path).is_file()

#!/usr/bin/env python
"""What building TensorRT-RTX engines of a 7B model takes: time, memory, and size on disk.

    .venv/bin/python scripts/build_7b.py --json benchmarks/build-7b.json
    .venv/bin/python scripts/build_7b.py --layers 4 --quantize none,int4 --json FILE

Makes a checkpoint of real shape with random weights (14 GB for 7B), exports it and builds its
engines, each in a process of its own. Sizes do not depend on the values of weights, as long as no
two tensors are equal. No GPU is needed. Anything after `--` goes to avl-build.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from avl_runtime.machine.resources import cores, physical_memory
from export_size import write_sparse
from measured import run_measured, split_arguments
from random_weights import fill

PACKAGES = ("tensorrt-rtx", "polygraphy", "onnx", "onnxruntime")
PER_GRAPH = ("graph", "weight_bytes", "size", "seconds", "peak_rss_bytes", "layers", "estimate")


def measure(module: str, arguments: list[str]) -> tuple[str, float, int]:
    """Run a command; returns what it printed, its seconds and its own peak RSS in bytes."""
    used = run_measured([sys.executable, "-P", "-m", module, *arguments])
    return used.printed, used.wall_s, used.peak_rss_bytes


def run(checkpoint: Path, package: Path, quantize: str, rest: list[str]) -> dict[str, Any]:
    """Export and build once."""
    options = ["--model", str(checkpoint), "--out", str(package), "--no-check", "--dtype", "fp16"]
    _, seconds, peak = measure("avl_export.cli", [*options, "--quantize", quantize])
    arguments = [str(package), "--backend", "tensorrt-rtx", "--json", *rest]
    printed, dry_seconds, _ = measure("avl_runtime.cli.build", [*arguments, "--dry-run"])
    dry_peak = max(graph["peak_rss_bytes"] for graph in json.loads(printed)["graphs"])
    printed, build_seconds, _ = measure("avl_runtime.cli.build", arguments)
    report = json.loads(printed)
    graphs = [{name: graph[name] for name in PER_GRAPH} for graph in report["graphs"]]
    weights = sum(graph["weight_bytes"] for graph in graphs)
    engines = sum(graph["size"] for graph in graphs)
    return {
        "export_s": seconds,
        "export_peak_rss_bytes": peak,
        "dry_run_s": dry_seconds,
        "dry_run_peak_rss_bytes": dry_peak,
        "build_s": build_seconds,
        "build_peak_rss_bytes": max(graph["peak_rss_bytes"] for graph in graphs),
        "weight_bytes": weights,
        "engine_bytes": engines,
        "engine_over_weights": engines / weights,
        "limits": report["limits"],
        "targets": report["targets"] or "8.0 and newer",
        "graphs": graphs,
    }


def sentence(report: dict[str, Any]) -> str:
    """The figures as the documents quote them."""
    found = report["runs"]["int4"]
    return (
        f"The engines of a whole `{report['model']}` in INT4 take {found['build_s']:.0f} s and "
        f"{found['build_peak_rss_bytes'] / 1e9:.1f} GB of memory to build on "
        f"{report['machine']['cpus']} CPU cores, and {found['engine_bytes'] / 1e9:.2f} GB on disk, "
        f"{100 * (found['engine_over_weights'] - 1):.1f} % over their weights "
        "(`scripts/build_7b.py`, [JSON](benchmarks/build-7b.json))."
    )


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure, print a line a run, and return what --json writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="llava-7b")
    parser.add_argument("--layers", type=int, help="decoder layers (default: all)")
    parser.add_argument("--quantize", default="int4", help="of none,int8,int4 (default: int4)")
    parser.add_argument("--folder", type=Path, help="where the files lie meanwhile")
    parser.add_argument("--json", type=Path)
    own, rest = split_arguments(arguments)
    parsed = parser.parse_args(own)
    report: dict[str, Any] = {
        "model": parsed.model,
        "layers": parsed.layers,
        "arguments": rest,
        "machine": {
            "cpus": cores(),
            "memory_bytes": physical_memory(),
            "platform": platform.platform(),
            "load_average_before": os.getloadavg()[0],
            **{name: version(name) for name in PACKAGES},
        },
        "runs": {},
    }
    with tempfile.TemporaryDirectory(dir=parsed.folder) as place:
        checkpoint, package = Path(place) / "checkpoint", Path(place) / "package"
        report["checkpoint_bytes"] = write_sparse(checkpoint, parsed.model, parsed.layers)
        for number, path in enumerate(sorted(checkpoint.glob("*.safetensors"))):
            fill(path, number)
        for quantize in parsed.quantize.split(","):
            found = run(checkpoint, package, quantize, rest)
            shutil.rmtree(package)
            report["runs"][quantize] = found
            print(
                f"{parsed.model} {quantize}: engines {found['engine_bytes'] / 1e9:.2f} GB, "
                f"{100 * (found['engine_over_weights'] - 1):.1f} % over their weights, "
                f"{found['build_s']:.0f} s, peak {found['build_peak_rss_bytes'] / 1e9:.1f} GB"
            )
    if parsed.json:
        parsed.json.write_text(json.dumps(report, indent=2) + "\n")
    return report


if __name__ == "__main__":
    main()

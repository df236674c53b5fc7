#!/usr/bin/env python
"""Builds TensorRT-RTX engines of every graph of seven families, in every precision.

    .venv/bin/python scripts/engine_matrix.py --json benchmarks/engine-matrix.json
    .venv/bin/python scripts/engine_matrix.py --families llava_next --precisions fp32,int4

Towers have their family's real sizes, two layers of them; decoders are small, with three layers.
Profiles are those that avl-build takes by itself. Weights are random. No GPU is needed.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from avl_export.checkpoint.aliases import known_files
from export_size import write_shapes
from random_config import FAMILIES, Shape, files_of
from random_weights import fill

# Other families have the same kinds of encoders.
MEASURED = (
    "llava",
    "llava_next",
    "llava_onevision",
    "video_llava",
    "internvl",
    "qwen2_5_vl",
    "qwen3_vl",
)
PRECISIONS = {
    "fp32": ["--dtype", "fp32"],
    "fp16": ["--dtype", "fp16"],
    "bf16": ["--dtype", "bf16"],
    "int4": ["--dtype", "fp16", "--quantize", "int4", "--block-size", "32"],
}
SIZES = ("hidden_size", "intermediate_size", "num_attention_heads", "num_heads")  # of a tower
LAYERS = 2  # of a tower
DECODER: dict[str, Any] = {
    "hidden": 512,
    "intermediate": 1408,
    "layers": 3,
    "heads": 8,
    "kv_heads": 4,
}
KEPT = ("graph", "weight_bytes", "size", "seconds", "peak_rss_bytes", "layers")


def write_checkpoint(folder: Path, family: str) -> None:
    """A checkpoint with the family's own tower, two layers of it."""
    files = files_of(Shape(family, vocabulary=2048, vision_layers=LAYERS, **DECODER))
    vision = files["config.json"]["vision_config"]
    known = known_files(FAMILIES[family])["config.json"]["vision_config"]
    vision |= {name: known[name] for name in SIZES if name in known}
    write_shapes(folder, files)
    for number, path in enumerate(sorted(folder.glob("*.safetensors"))):
        fill(path, number)


def run(module: str, arguments: list[str]) -> tuple[int, str, str]:
    """A command of avl: its exit status, and the last line of what it printed or said."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", module, *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout, (done.stderr.strip().splitlines() or [""])[-1]


def build(checkpoint: Path, package: Path, precision: str) -> dict[str, Any]:
    """Export once and build every graph."""
    options = ["--model", str(checkpoint), "--out", str(package), "--no-check", "--split", "1"]
    status, _, said = run("avl_export.cli", [*options, *PRECISIONS[precision]])
    if status:
        raise SystemExit(said)
    arguments = [str(package), "--backend", "tensorrt-rtx", "--json"]
    status, printed, said = run("avl_runtime.cli.build", arguments)
    if status:
        return {"built": False, "said": said}
    report = json.loads(printed)
    graphs = [{name: graph[name] for name in KEPT} for graph in report["graphs"]]
    return {"built": True, "limits": report["limits"], "graphs": graphs}


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Build, print a line a package, and return what --json writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--families", default=",".join(MEASURED))
    parser.add_argument("--precisions", default=",".join(PRECISIONS))
    parser.add_argument("--json", type=Path)
    parsed = parser.parse_args(arguments)
    report: dict[str, Any] = {
        "platform": platform.platform(),
        **{name: version(name) for name in ("tensorrt-rtx", "polygraphy", "onnx")},
        "tower_layers": LAYERS,
        "decoder": DECODER,
        "families": {},
    }
    failed = 0
    for family in parsed.families.split(","):
        with tempfile.TemporaryDirectory() as place:
            checkpoint = Path(place) / "checkpoint"
            write_checkpoint(checkpoint, family)
            found = report["families"][family] = {}
            for precision in parsed.precisions.split(","):
                one = found[precision] = build(checkpoint, Path(place) / precision, precision)
                failed += not one["built"]
                told = one.get("said") or f"{len(one['graphs'])} engines"
                print(f"{family} {precision}: {told}", flush=True)
        if parsed.json:  # after each family, as all of them take some minutes
            parsed.json.write_text(json.dumps(report, indent=2) + "\n")
    if failed:
        raise SystemExit(f"{failed} packages could not be built")
    return report


if __name__ == "__main__":
    main()
